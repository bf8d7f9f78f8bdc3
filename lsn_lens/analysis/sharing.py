"""Sharing Matters: neurons that the same content activates in all languages, in some, in one, or in none.

Functions take the statistics of a run (`run.statistics`), and the `Sharing` of the collection, which defines "active".
Shares are fractions of a layer's neurons.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.methods.sharing import TYPES, Sharing, members
from lsn_lens.statistics.sums import Statistics

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
DEFAULT = Sharing()


@dataclass(frozen=True, eq=False)
class Categories:
    """One layer: the number of languages in which each neuron is active per item, and the language if only one.

    Attributes:
        languages: Labels.
        count: Number of languages in which the neuron is active.
        owner: Index in `languages` of the only language; -1 if there is none or more than one.
    """

    languages: tuple[str, ...]
    count: Int[Tensor, "item unit"]
    owner: Int[Tensor, "item unit"]

    @property
    def members(self) -> Bool[Tensor, "type item unit"]:
        """Which neurons have which type, in the order all-shared, partial-shared, specific, non-activated."""
        return members(self.count, len(self.languages))


def categories(statistics: Statistics, layer: int, method: Sharing = DEFAULT) -> Categories:
    """The type of every neuron of a layer in every item.

    Raises:
        KeyError: The run lacks the method's statistics.
        ValueError: Fewer than two languages, or items that are not parallel.
    """
    method.check(statistics)
    fires = method.fires(statistics, layer)
    count = fires.sum(0)
    return Categories(statistics.languages, count, fires.int().argmax(0).where(count == 1, -1))


def profile(statistics: Statistics, method: Sharing = DEFAULT) -> pd.DataFrame:
    """The share of neurons of each type by layer.

    Returns:
        One row per layer and type: `mean`, `minimum` and `maximum` over items of the share of neurons; `chance`, this
        share if each language chose as many neurons as it has in the item at random; `chance_unrelated`, if items were
        shuffled across languages, so that each neuron keeps its rate in each language; and the number of `items` and
        `languages`. Profiles of different numbers of languages cannot be compared.

    Errors are those of `categories`.

    Source: Wang et al. 2024 (arXiv 2406.09265), released notebooks; both levels of chance are ours.
    """
    return pd.DataFrame(
        {"layer": layer, **row, "items": fires.shape[1], "languages": len(fires)}
        for layer, fires in active_layers(statistics, method)
        for row in _profile(fires)
    )


def activity(statistics: Statistics, method: Sharing = DEFAULT) -> pd.DataFrame:
    """The share of active neurons: one row per layer and language, with `mean`, `minimum`, `maximum` over items.

    Errors are those of `categories`.
    """
    return pd.DataFrame(
        {"layer": layer, "language": label, **_band(shares)}
        for layer, fires in active_layers(statistics, method)
        for label, shares in zip(statistics.languages, fires.double().mean(-1), strict=True)
    )


def threshold_sweep(
    statistics: Statistics, method: Sharing = DEFAULT, thresholds: Iterable[float | int] = THRESHOLDS
) -> pd.DataFrame:
    """`profile` under several thresholds, in the column `threshold`.

    Errors are those of `categories`.
    """
    frames = [profile(statistics, replace(method, threshold=each)).assign(threshold=each) for each in thresholds]
    return pd.concat(frames, ignore_index=True)


def repeatability(statistics: Statistics, method: Sharing = DEFAULT) -> pd.DataFrame:
    """Consistency of types: the share of neurons that have a type in every item.

    Returns:
        One row per layer and type: `mean`, the share of neurons that have it in an item; `always`, in all items;
        `chance`, the share that would have it in all if each item drew as many neurons as it has, afresh;
        `chance_of_rates`, if each neuron had it with its own rate in each item, independently (the rates come from the
        same items, so this is never below `always`); `jaccard`, the mean overlap of two items (pairs without the type
        left out), and `jaccard_chance`, about what the draw afresh would give; `items`. `always` and its chances fall
        with the number of items: only `jaccard` compares between runs.

    Errors are those of `categories`.

    Source: the count over all items is that of the released notebooks of Wang et al. 2024; the rest is ours.
    """
    return pd.DataFrame(
        {"layer": layer, "type": name, **_repeats(has), "items": len(has)}
        for layer, fires in active_layers(statistics, method)
        for name, has in zip(TYPES, members(fires.sum(0), len(fires)), strict=True)
    )


def chance_of_types(rates: Float[Tensor, "language n"]) -> Float[Tensor, "type n"]:
    """Probability of each of the four types for a neuron that is active in language k with `rates[k]`, independently.

    The number of languages it is active in then has a Poisson binomial distribution.
    """
    counts = torch.zeros(len(rates) + 1, rates.shape[1], dtype=torch.float64)
    counts[0] = 1
    for rate in rates.double():
        counts[1:], counts[0] = counts[1:] * (1 - rate) + counts[:-1] * rate, counts[0] * (1 - rate)
    return torch.stack([counts[-1], counts[2:-1].sum(0), counts[1], counts[0]])


def active_layers(statistics: Statistics, method: Sharing) -> Iterator[tuple[int, Bool[Tensor, "language item unit"]]]:
    """Layer by layer, which neurons are active in which item, once the items are known to be parallel."""
    method.check(statistics)
    for layer in range(statistics.tokens.shape[1]):
        yield layer, method.fires(statistics, layer)


def _profile(fires: Bool[Tensor, "language item unit"]) -> Iterator[dict[str, Any]]:
    shares = members(fires.sum(0), len(fires)).double().mean(-1)
    chance, unrelated = (chance_of_types(fires.double().mean(axis)).mean(-1) for axis in (2, 1))
    for name, share, drawn, shuffled in zip(TYPES, shares, chance.tolist(), unrelated.tolist(), strict=True):
        yield {"type": name, **_band(share), "chance": drawn, "chance_unrelated": shuffled}


def _band(shares: Tensor) -> dict[str, float]:
    return {"mean": float(shares.mean()), "minimum": float(shares.min()), "maximum": float(shares.max())}


def _repeats(has: Bool[Tensor, "item unit"]) -> dict[str, float]:
    rows = has.double()
    shares = rows.mean(1)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    shared = (rows @ rows.T)[first, second] / rows.shape[1]
    drawn, sizes = shares[first] * shares[second], shares[first] + shares[second]
    return {
        "mean": float(shares.mean()),
        "always": float(has.all(0).double().mean()),
        "chance": float(shares.prod()),
        "chance_of_rates": float((rows.mean(0) ** len(rows)).mean()),
        "jaccard": float((shared / (sizes - shared)).nanmean()),
        "jaccard_chance": float((drawn / (sizes - drawn)).nanmean()),
    }
