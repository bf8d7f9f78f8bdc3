"""Permutation tests of values by shard: whether a language stands out at a unit, and whether languages differ."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens.controls.contrasts import ByBasis, Contrast, Side, shard_values
from lsn_lens.controls.resampling import permuted, seeds
from lsn_lens.methods.base import Method
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.runs.run import Run

TIE = 1e-9  # smaller differences of statistics are rounding errors
ENTRIES = 1 << 22  # permuted statistics at once, to limit memory


@dataclass(frozen=True)
class Permutations:
    """Settings of label permutations: number, seed, within positions only or not, pooled null statistics or not."""

    permutations: int
    seed: int
    paired: bool
    pool: bool

    def pair(self, one: str, other: str, sizes: tuple[int, int]) -> Float[Tensor, "draw shard"]:
        """Weights whose products with standardised shards contrast two languages; the first row is the true one.

        With `paired`, the signs of the shards' differences are permuted.
        """
        generator = np.random.default_rng([self.seed, zlib.crc32(one.encode()), zlib.crc32(other.encode())])
        if self.paired:
            signs = generator.choice([-1.0, 1.0], size=(self.permutations, sizes[0]))
            return torch.from_numpy(np.vstack([np.ones(sizes[0]), signs]))
        true = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
        true *= np.sqrt(len(true) - 1) / np.linalg.norm(true)
        return torch.from_numpy(np.vstack([true, generator.permuted(np.tile(true, (self.permutations, 1)), axis=1)]))

    def all(self, counts: Mapping[str, int]) -> Float[Tensor, "draw language shard"]:
        """The language of each shard, over the root of its number of shards; the first row has the true labels."""
        order = sorted(counts)
        generator = np.random.default_rng([self.seed, *(zlib.crc32(label.encode()) for label in order)])
        true = np.repeat(np.arange(len(order)), [counts[label] for label in order])
        if self.paired:
            grid = np.tile(true.reshape(len(order), -1), (self.permutations, 1, 1))
            drawn = generator.permuted(grid, axis=1).reshape(self.permutations, -1)
        else:
            drawn = generator.permuted(np.tile(true, (self.permutations, 1)), axis=1)
        given = np.vstack([true, drawn])[:, None] == np.arange(len(order))[:, None]
        return torch.from_numpy(given / np.sqrt(given.sum(2, keepdims=True)))


@dataclass
class Tested:
    """Statistics of the true labels, counts of permuted statistics that reach them, and each draw's maximum."""

    observed: Float[Tensor, "*axes"]
    count: Int[Tensor, "*axes"]
    size: int  # null statistics per comparison
    largest: Float[Tensor, "draw"]

    @property
    def p_values(self) -> Float[Tensor, "*axes"]:
        """The true labels count as one draw."""
        return (1 + self.count).double() / (1 + self.size)


def units_test(values: Mapping[str, Float[Tensor, "shard layer unit"]], draws: Permutations) -> Tested:
    """Whether a unit's shards are alike in all languages: the share of their variance that lies between languages.

    The statistic depends on the unit alone, so its p-value is valid whatever other units do.
    """
    order = sorted(values)
    shards = torch.cat([values[label].flatten(1) for label in order])
    if draws.paired:
        places = shards.unflatten(0, (len(order), -1))
        shards = (places - places.mean(0)).flatten(0, 1)
    weights = draws.all({label: len(each) for label, each in values.items()})

    def statistic(weights: Tensor, rows: Tensor) -> Tensor:
        return (weights.flatten(0, 1) @ rows).unflatten(0, (-1, len(order))).square().sum(1)

    tested = _tested(_standard(shards, centre=True), weights, statistic, draws.pool)
    shape = next(iter(values.values())).shape[1:]
    return Tested(tested.observed.view(shape), tested.count.view(shape), tested.size, tested.largest)


def pair_test(one: Tensor, other: Tensor, weights: Tensor, side: Side, draws: Permutations) -> tuple[Tested, Tested]:
    """For two languages, `[shard unit]` each: the contrast of the first to the second, and of the second to the first.

    The statistic is the correlation of a shard's value with its label (paired: the sum of the differences over the root
    of their sum of squares), with a standard deviation of 1 over the permutations of every unit. Only labels of these
    two languages are permuted, so the other languages do not matter.
    """
    rows = _standard(one - other, centre=False) if draws.paired else _standard(torch.cat([one, other]), centre=True)
    up = _tested(rows, weights, torch.matmul, draws.pool, side == "both")
    if side == "both":
        return up, Tested(-up.observed, up.count, up.size, up.largest)
    return up, _tested(-rows, weights, torch.matmul, draws.pool)


def _standard(rows: Float[Tensor, "shard unit"], centre: bool) -> Float[Tensor, "shard unit"]:
    """Values scaled to mean 0 and length 1; zeros where all are equal."""
    largest = rows.abs().amax(0)
    rows = rows - rows.mean(0) if centre else rows
    norm = rows.norm(dim=0)
    return (rows / norm).where(norm > TIE * largest, 0.0)


def _tested(
    rows: Float[Tensor, "shard unit"],
    weights: Float[Tensor, "draw *language shard"],
    statistic: Callable[[Tensor, Tensor], Tensor],
    pool: bool,
    both: bool = False,
) -> Tested:
    """The test of some units. With `both`, absolute values count."""
    chunks = rows.split(max(1, ENTRIES // weights[..., 0].numel()), dim=1)
    sized = torch.abs if both else torch.clone
    observed = torch.cat([statistic(weights[:1], chunk)[0] for chunk in chunks])
    reached = (sized(observed) - TIE).split([chunk.shape[1] for chunk in chunks])
    ordered, order = torch.cat(reached).sort()
    count, largest = [], torch.full((), -torch.inf, dtype=torch.float64)
    pooled = torch.zeros(len(ordered) + 1, dtype=torch.int64)
    for chunk, own in zip(chunks, reached, strict=True):
        null = sized(statistic(weights[1:], chunk))
        largest = torch.maximum(largest, null.amax(1))
        if pool:  # how many observed statistics each null statistic reaches
            pooled += torch.bincount(torch.searchsorted(ordered, null.flatten(), right=True), minlength=len(pooled))
        else:
            count.append((null >= own).sum(0))
    if pool:
        count = [torch.empty_like(order).scatter_(0, order, pooled.flip(0).cumsum(0).flip(0)[1:])]
    return Tested(observed, torch.cat(count), len(largest) * (len(order) if pool else 1), largest)


@dataclass(frozen=True)
class Tests:
    """p-values by basis, per language and unit and per unit; raw and adjusted for all of them."""

    p_values: ByBasis
    family_wise: ByBasis
    unit_p_values: ByBasis
    unit_family_wise: ByBasis


def values_test(run: Run, contrast: Contrast, method: Method, draws: Permutations, alike: int) -> Tests:
    """Both tests, on the values that the method compares."""
    values, side = shard_values(run, method, contrast), contrast.side(method)
    draws = replace(draws, paired=draws.paired or contrast.parallel(method))
    units = {basis: units_test(each, draws) for basis, each in values.items()}
    pairs = {basis: languages_test(each, run.languages, side, draws, alike) for basis, each in values.items()}
    return _family_wise(units, pairs)


def _family_wise(units: Mapping[str, Tested], pairs: Mapping[str, "Compared"]) -> Tests:
    """p-values adjusted by the largest statistic of each draw over all tests."""
    unit_maxima, maxima = (torch.stack([each.largest for each in x.values()]).amax(0) for x in (units, pairs))
    return Tests(
        {basis: each.p_values for basis, each in pairs.items()},
        {basis: max_t(each.observed - TIE, maxima) for basis, each in pairs.items()},
        {basis: each.p_values for basis, each in units.items()},
        {basis: max_t(each.observed - TIE, unit_maxima) for basis, each in units.items()},
    )


@dataclass(frozen=True)
class Compared:
    """Per language and unit: the p-value, the smallest contrast that must hold, and each draw's largest contrast."""

    p_values: Float[Tensor, "language layer unit"]
    observed: Float[Tensor, "language layer unit"]
    largest: Float[Tensor, "draw"]


def languages_test(
    values: Mapping[str, Tensor], languages: tuple[str, ...], side: Side, draws: Permutations, alike: int
) -> Compared:
    """Whether a language lies beyond all others but `alike` of them, at each unit."""
    sign = -1.0 if side == "low" else 1.0
    flat = [sign * values[label].flatten(1) for label in languages]
    p_values = torch.zeros(len(flat), len(flat), flat[0].shape[1], dtype=torch.float64)
    contrasts = torch.zeros_like(p_values)
    largest = torch.full((draws.permutations,), -torch.inf, dtype=torch.float64)
    for i, j in _pairs(languages):
        weights = draws.pair(languages[i], languages[j], (len(flat[i]), len(flat[j])))
        for (a, b), tested in zip(((i, j), (j, i)), pair_test(flat[i], flat[j], weights, side, draws), strict=True):
            p_values[a, b], contrasts[a, b] = tested.p_values, tested.observed
            largest = torch.maximum(largest, tested.largest)
    each = [_least_clear(p_values, contrasts, alike)]
    if side == "both":  # absolute contrasts: one in the other direction is no evidence for this language
        each = [_least_clear(p_values.where(d * contrasts > 0, 1.0), d * contrasts, alike) for d in (1.0, -1.0)]
    p_value, contrast = (torch.stack(parts) for parts in zip(*each, strict=True))
    shape = values[languages[0]].shape[1:]
    return Compared(p_value.amin(0).unflatten(1, shape), contrast.amax(0).unflatten(1, shape), largest)


def scores_test(run: Run, method: Method, scores: NeuronScores, draws: Permutations, alike: int) -> Tests:
    """Both tests, on a method's scores: for a method without a contrast."""
    languages, every = run.languages, seeds(draws.seed, draws.permutations)

    def null(among: tuple[str, ...]) -> Iterator[NeuronScores]:
        return (method.score(permuted(run, each, paired=draws.paired, among=among).statistics) for each in every)

    ranks = {basis: scores.rank(basis)[None] for basis in scores.values}
    units = {
        basis: replace(each, observed=each.observed[0], count=each.count[0])
        for basis, each in _reached(
            ranks, ({b: x.rank(b)[None] for b in ranks} for x in null(languages)), draws
        ).items()
    }
    shape = {basis: (len(languages), *each.shape) for basis, each in scores.values.items()}
    p_values = {basis: torch.zeros(shape[basis], dtype=torch.float64) for basis in shape}
    largest = torch.full((draws.permutations,), -torch.inf, dtype=torch.float64)
    for i, j in _pairs(languages):
        own = {basis: each[[i, j]] for basis, each in scores.values.items()}
        nulls = ({b: x.values[b][[i, j]] for b in own} for x in null((languages[i], languages[j])))
        for basis, tested in _reached(own, nulls, draws).items():
            p_values[basis][i, j], p_values[basis][j, i] = tested.p_values
            largest = torch.maximum(largest, tested.largest)
    pairs = {}
    for basis, each in scores.values.items():
        p_value, _ = _least_clear(p_values[basis], torch.zeros_like(p_values[basis]), alike)
        pairs[basis] = Compared(p_value, each.double(), largest)
    return _family_wise(units, pairs)


def _reached(observed: ByBasis, nulls: Iterable[ByBasis], draws: Permutations) -> dict[str, Tested]:
    """How many null scores, of the unit or (pooled) of all units, are at least the observed one `[row layer unit]`."""
    count = {basis: torch.zeros(each.shape, dtype=torch.int64) for basis, each in observed.items()}
    largest: dict[str, list[Tensor]] = {basis: [] for basis in observed}
    for null in nulls:
        for basis, each in null.items():
            if draws.pool:
                ordered, own = each.flatten(1).sort().values, observed[basis].flatten(1).contiguous()
                count[basis] += (ordered.shape[1] - torch.searchsorted(ordered, own)).view_as(count[basis])
            else:
                count[basis] += each >= observed[basis]
            largest[basis].append(each.max().double())
    sizes = {basis: draws.permutations * (each[0].numel() if draws.pool else 1) for basis, each in observed.items()}
    return {b: Tested(observed[b].double(), count[b], sizes[b], torch.stack(largest[b])) for b in observed}


def _pairs(languages: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Index pairs of all languages; which language is first does not depend on their order."""
    return combinations(sorted(range(len(languages)), key=lambda place: languages[place]), 2)


def _least_clear(p_values: Tensor, contrasts: Tensor, alike: int) -> tuple[Tensor, Tensor]:
    """The largest p (times `alike` + 1) and the smallest of a language's contrasts, `alike` of which need not hold.

    A language's contrast to itself has p = 0 and is the largest, so it comes first.
    """
    every = torch.arange(len(p_values))
    p_values, contrasts = p_values.clone(), contrasts.clone()
    p_values[every, every], contrasts[every, every] = 0.0, torch.inf
    p_value = p_values.sort(1).values[:, len(every) - 1 - alike]
    return ((1 + alike) * p_value).clamp_max(1), contrasts.sort(1).values[:, alike]


def max_t(observed: Float[Tensor, "*axes"], maxima: Float[Tensor, "permutation"]) -> Float[Tensor, "*axes"]:
    """Family-wise p-values: the share of permutations whose largest statistic is at least the observed one.

    Args:
        observed: Statistics on the true labels.
        maxima: The largest statistic under each permutation. Statistics of all units need the same scale.

    Source: Westfall and Young 1993, single step.
    """
    ordered = maxima.double().sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, observed.double().contiguous())
    return (1 + at_least).double() / (1 + len(ordered))
