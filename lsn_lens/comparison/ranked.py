"""Each method's ranking of the units of each kind, and its first units: as many as those of every other method."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import Method, order_of
from lsn_lens.methods.selection import best_units
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet

SIZES = (0.001, 0.003, 0.01)  # shares of all units of a kind, per language
PROJECTIONS = ("mlp_pre", "mlp_up")
KINDS: Mapping[str, tuple[str, ...]] = {
    "MLP neurons": ("mlp",),
    "projections of MLP neurons": PROJECTIONS,
    "queries, keys and values": ("q", "k", "v"),
    "inputs of the attention output": ("z",),
    "outputs of attention and MLP": ("attn_out", "mlp_out"),
    "residual dimensions": ("resid",),
}

Size = float | int
Curve = tuple[str, str]  # a method, and the bases of a kind of unit
Orders = dict[str, Float[Tensor, "language layer unit"]]


def check_sizes(sizes: Sequence[Size] | None, seeds: int) -> tuple[Size, ...]:
    """The sizes as a tuple; none for None.

    Raises:
        ValueError: A share outside (0, 1], a number of units below 1, or a negative number of random sets.
    """
    given = tuple(sizes or ())
    fit = [(isinstance(each, int) and each >= 1) or (isinstance(each, float) and 0 < each <= 1) for each in given]
    if seeds < 0 or not all(fit) or any(each is True for each in given):
        raise ValueError(
            f"sizes={sizes}, size_seeds={seeds}: expected numbers of units (int, 1 or more) or shares of all units of "
            "a kind (float in (0, 1]), and no fewer than 0 random sets."
        )
    return given


def kind_of(bases: str) -> str:
    """A kind of unit in words; bases of no known kind as they are."""
    return next((words for words, kind in KINDS.items() if set(bases.split(", ")) <= set(kind)), bases)


def rankings(
    methods: Mapping[str, Method], scores: Mapping[str, NeuronScores], given: Mapping[str, NeuronSet]
) -> dict[Curve, NeuronScores]:
    """Each method's ranking of the units of each kind that it shares with another method.

    A method that shares no kind with another is ranked on all of its kinds. Beside methods on MLP neurons, a method on
    their projections ranks neurons, each by the better of its projections. A set that was given limits the ranking.

    Returns:
        Scores whose values rank the units, see `order_of`.
    """
    shapes = {each.values["mlp"].shape[1:] for each in scores.values() if "mlp" in each.values}
    found: dict[Curve, NeuronScores] = {}
    for name, method in methods.items():
        for bases in _kinds_of(scores[name]):
            part = replace(scores[name], values={basis: scores[name].values[basis] for basis in bases})
            order = dict(order_of(method, part))
            if name in given:
                order = _within(order, given[name][scores[name].languages])
            best = torch.stack([*order.values()]).amax(0) if set(bases) <= set(PROJECTIONS) else None
            if best is not None and best.shape[1:] in shapes and "mlp" not in scores[name].values:
                order = {"mlp": best}
            found[name, ", ".join(order)] = replace(part, values=order)
    count = Counter(bases for _, bases in found)
    partnered = {name for name, bases in found if count[bases] > 1}
    return {key: each for key, each in found.items() if count[key[1]] > 1 or key[0] not in partnered}


def _kinds_of(scores: NeuronScores) -> Iterator[tuple[str, ...]]:
    known = {basis for kind in KINDS.values() for basis in kind}
    for kind in (*KINDS.values(), *((basis,) for basis in scores.values if basis not in known)):
        if bases := tuple(basis for basis in kind if basis in scores.values):
            yield bases


def _within(order: Orders, given: NeuronSet) -> Orders:
    """The ranking of the units of a set alone."""
    none = {basis: torch.zeros_like(values, dtype=torch.bool) for basis, values in order.items()}
    return {basis: values.where({**none, **given.masks}[basis], -torch.inf) for basis, values in order.items()}


def available(ranking: NeuronScores) -> dict[str, int]:
    """The number of units that a method ranks, by language."""
    totals = sum(values.isfinite().sum((1, 2)) for values in ranking.values.values())
    return dict(zip(ranking.languages, torch.as_tensor(totals).tolist(), strict=True))


def numbers_of(sizes: Sequence[Size], ranking: NeuronScores) -> list[int]:
    """Different numbers of units, smallest first, from numbers and from shares of all units."""
    units = sum(values[0].numel() for values in ranking.values.values())
    return sorted({each if isinstance(each, int) else max(1, round(each * units)) for each in sizes})


def first_units(ranking: NeuronScores, count: int) -> NeuronSet | None:
    """The first units of each language in which a method ranks as many; None if there is no such language."""
    languages = [label for label, number in available(ranking).items() if number >= count]
    if not languages:
        return None
    masks = best_units(ranking.values, [count] * len(ranking.languages))
    words = f"the first {count} of {ranking.method}"
    return NeuronSet(ranking.languages, masks, words, origin=ranking.origin)[languages]
