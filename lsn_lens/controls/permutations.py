"""Permutation tests of values by shard: does a language stand out at a unit, and do languages differ there at all?"""

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

TIE = 1e-9  # statistics that are nearer than this are equal: beyond it there is rounding error only
ENTRIES = 1 << 22  # of permuted statistics at once, so that temporaries stay small


@dataclass(frozen=True)
class Permutations:
    """Of labels: how many, from which seed, and whether within places only; whether null statistics are pooled."""

    permutations: int
    seed: int
    paired: bool
    pool: bool

    def pair(self, one: str, other: str, sizes: tuple[int, int]) -> Float[Tensor, "draw shard"]:
        """Weights whose products with standardised shards contrast two languages; the first row is the true one.

        With `paired`, of the shards' differences: either language may be the first in any place.
        """
        generator = np.random.default_rng([self.seed, zlib.crc32(one.encode()), zlib.crc32(other.encode())])
        if self.paired:
            signs = generator.choice([-1.0, 1.0], size=(self.permutations, sizes[0]))
            return torch.from_numpy(np.vstack([np.ones(sizes[0]), signs]))
        true = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
        true *= np.sqrt(len(true) - 1) / np.linalg.norm(true)
        return torch.from_numpy(np.vstack([true, generator.permuted(np.tile(true, (self.permutations, 1)), axis=1)]))

    def all(self, counts: Mapping[str, int]) -> Float[Tensor, "draw language shard"]:
        """Which language each shard is given to, over the root of its number; the first row is the true one."""
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
    """Statistics of the true labels, counts of permuted ones that reach them, and each draw's largest of all."""

    observed: Float[Tensor, "*axes"]
    count: Int[Tensor, "*axes"]
    size: int  # null statistics that each is compared with
    largest: Float[Tensor, "draw"]

    @property
    def p_values(self) -> Float[Tensor, "*axes"]:
        """The true labels count as one draw."""
        return (1 + self.count).double() / (1 + self.size)


def units_test(values: Mapping[str, Float[Tensor, "shard layer unit"]], draws: Permutations) -> Tested:
    """Whether a unit's shards are alike in all languages: the share of their variance that lies between languages.

    The statistic hangs on the unit alone, so its p-value holds whatever other units do.
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
    """Of two languages, `[shard unit]` each: the first one's contrast to the second, and the second one's to it.

    The statistic is the correlation of a shard's value with its label (paired: the sum of the differences over the
    root of their sum of squares), with a standard deviation of 1 over the permutations of every unit. Only labels of
    these two languages are permuted, so it does not matter what the others do.
    """
    rows = _standard(one - other, centre=False) if draws.paired else _standard(torch.cat([one, other]), centre=True)
    up = _tested(rows, weights, torch.matmul, draws.pool, side == "both")
    if side == "both":
        return up, Tested(-up.observed, up.count, up.size, up.largest)
    return up, _tested(-rows, weights, torch.matmul, draws.pool)


def _standard(rows: Float[Tensor, "shard unit"], centre: bool) -> Float[Tensor, "shard unit"]:
    """Of length 1, and with a mean of 0; zeros where all are the same."""
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
    """Some units at once. With `both`, sizes count."""
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
        if pool:  # how many of the observed ones each null statistic reaches
            pooled += torch.bincount(torch.searchsorted(ordered, null.flatten(), right=True), minlength=len(pooled))
        else:
            count.append((null >= own).sum(0))
    if pool:
        count = [torch.empty_like(order).scatter_(0, order, pooled.flip(0).cumsum(0).flip(0)[1:])]
    return Tested(observed, torch.cat(count), len(largest) * (len(order) if pool else 1), largest)


@dataclass(frozen=True)
class Tests:
    """p-values by basis, of each language at each unit and of each unit; and adjusted for all of them."""

    p_values: ByBasis
    family_wise: ByBasis
    unit_p_values: ByBasis
    unit_family_wise: ByBasis


def values_test(run: Run, contrast: Contrast, method: Method, draws: Permutations, alike: int) -> Tests:
    """Both tests, of what the method compares."""
    values, side = shard_values(run, method, contrast), contrast.side(method)
    draws = replace(draws, paired=draws.paired or contrast.parallel)
    units = {basis: units_test(each, draws) for basis, each in values.items()}
    pairs = {basis: languages_test(each, run.languages, side, draws, alike) for basis, each in values.items()}
    return _family_wise(units, pairs)


def _family_wise(units: Mapping[str, Tested], pairs: Mapping[str, "Compared"]) -> Tests:
    """Adjusted against the largest statistic of each draw, over all that is tested together."""
    unit_maxima, maxima = (torch.stack([each.largest for each in x.values()]).amax(0) for x in (units, pairs))
    return Tests(
        {basis: each.p_values for basis, each in pairs.items()},
        {basis: max_t(each.observed - TIE, maxima) for basis, each in pairs.items()},
        {basis: each.p_values for basis, each in units.items()},
        {basis: max_t(each.observed - TIE, unit_maxima) for basis, each in units.items()},
    )


@dataclass(frozen=True)
class Compared:
    """Of each language and unit: its p-value, the least clear contrast that must hold, and each draw's largest one."""

    p_values: Float[Tensor, "language layer unit"]
    observed: Float[Tensor, "language layer unit"]
    largest: Float[Tensor, "draw"]


def languages_test(
    values: Mapping[str, Tensor], languages: tuple[str, ...], side: Side, draws: Permutations, alike: int
) -> Compared:
    """Whether a language lies beyond all others, but for `alike` of them, at each unit."""
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
    if side == "both":  # of size: a contrast that points the other way says nothing for this one
        each = [_least_clear(p_values.where(d * contrasts > 0, 1.0), d * contrasts, alike) for d in (1.0, -1.0)]
    p_value, contrast = (torch.stack(parts) for parts in zip(*each, strict=True))
    shape = values[languages[0]].shape[1:]
    return Compared(p_value.amin(0).unflatten(1, shape), contrast.amax(0).unflatten(1, shape), largest)


def scores_test(run: Run, method: Method, scores: NeuronScores, draws: Permutations, alike: int) -> Tests:
    """Both tests, of a method's own scores: for a method that says nothing of what it compares."""
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
    """Places of every two languages; which is the first does not hang on their order."""
    return combinations(sorted(range(len(languages)), key=lambda place: languages[place]), 2)


def _least_clear(p_values: Tensor, contrasts: Tensor, alike: int) -> tuple[Tensor, Tensor]:
    """Of a language's contrasts, `alike` of which need not hold: the largest p (times `alike` + 1), the smallest one.

    A language's contrast to itself comes first in order: it has p = 0, and is larger than any.
    """
    every = torch.arange(len(p_values))
    p_values, contrasts = p_values.clone(), contrasts.clone()
    p_values[every, every], contrasts[every, every] = 0.0, torch.inf
    p_value = p_values.sort(1).values[:, len(every) - 1 - alike]
    return ((1 + alike) * p_value).clamp_max(1), contrasts.sort(1).values[:, alike]


def max_t(observed: Float[Tensor, "*axes"], maxima: Float[Tensor, "permutation"]) -> Float[Tensor, "*axes"]:
    """Family-wise p-values: how often the largest statistic on permuted labels is at least the observed one.

    Args:
        observed: Statistics on the true labels.
        maxima: The largest statistic of all under each permutation. Units count alike only where their statistics
            have the same scale.

    Source: Westfall and Young 1993, single step.
    """
    ordered = maxima.double().sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, observed.double().contiguous())
    return (1 + at_least).double() / (1 + len(ordered))
