"""Functions that several methods share: entropies, order statistics, and rules that turn scores into sets."""

import math
import warnings
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.methods.base import check_languages
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.sums import Statistics

DECIMALS = 12  # entropies or shares equal to this many decimals are ties: later decimals are rounding error


def count_of(share: float, units: int, languages: int = 1) -> int:
    """A share of all units, divided evenly among languages and rounded, as a number; a warning says if it is 0."""
    count = round(share * units / languages)
    if not count:
        among = f", divided among {languages} languages," if languages > 1 else ""
        warnings.warn(
            f"the share {share:g} of {units:,} units{among} rounds to 0 units, so the set is empty: a share above "
            f"{languages / units / 2:.3g} gives one.",
            stacklevel=3,
        )
    return count


def order_statistic(values: Float[Tensor, "..."], share: float) -> Float[Tensor, ""]:
    """The `round(share * n)`-th smallest value (counted from 1), without interpolation.

    Source: LAPE, released `identify.py`, which takes `kthvalue`.
    """
    flat = values.flatten()
    place = min(max(round(share * flat.numel()), 1), flat.numel())
    return flat.kthvalue(place).values


def best_first(ranking: Float[Tensor, "layer unit"]) -> Int[Tensor, "place"]:
    """Flat indices of the finite values, highest first; ties go to the lower layer, then the lower unit."""
    flat = ranking.flatten()
    order = flat.argsort(descending=True, stable=True)
    return order[flat[order].isfinite()]


def best_units(
    order: Mapping[str, Float[Tensor, "language layer unit"]], counts: Iterable[int]
) -> dict[str, Bool[Tensor, "language layer unit"]]:
    """The first units of each language's ranking over all layers and bases, as masks; a smaller number gives a subset.

    Args:
        order: Basis -> values that rank the units, see `order_of`; only finite ones are taken.
        counts: Number of units per language; a language with fewer finite values gets all of them.

    Returns:
        Basis -> mask. Ties go to the lower layer, then the earlier basis, then the lower unit.
    """
    whole = torch.cat([values.double() for values in order.values()], dim=-1)
    mask = torch.zeros_like(whole, dtype=torch.bool)
    for place, count in enumerate(counts):
        mask[place].view(-1)[best_first(whole[place])[:count]] = True
    return dict(zip(order, mask.split([values.shape[-1] for values in order.values()], dim=-1), strict=True))


def highest_each(scores: NeuronScores, basis: str, count: int) -> NeuronSet:
    """The `count` highest scores per language over all layers; ties go to the lower layer, then the lower unit."""
    masks = best_units({basis: scores.values[basis]}, [count] * len(scores.languages))
    return NeuronSet(scores.languages, masks, scores.method)


def highest_share(scores: NeuronScores, basis: str, rate: float) -> NeuronSet:
    """The highest scores per language: a share of all units, divided evenly among the languages and rounded."""
    values = scores.values[basis]
    return highest_each(scores, basis, count_of(rate, values[0].numel(), len(values)))


def entropy(values: Float[Tensor, "language layer unit"]) -> Float[Tensor, "layer unit"]:
    """Entropy (nats) of non-negative values normalised over languages; 0 log 0 = 0, and 0 where all are 0."""
    values = values.sort(0).values  # the order of the languages must not change the last bit
    shares = values / values.sum(0)
    return -torch.special.xlogy(shares, shares).nan_to_num(0.0).sum(0).round(decimals=DECIMALS)


def score_by_entropy(
    statistics: Statistics,
    values: Float[Tensor, "language layer unit"],
    filter_share: float,
    bar_share: float,
    method: str,
) -> NeuronScores:
    """`ln K - entropy` where a unit passes the pooled filter, -inf for languages below the bar."""
    check_languages(statistics.languages)
    passes = (values > order_statistic(values, filter_share)).any(0)
    above_bar = values > order_statistic(values, bar_share)
    specificity = math.log(len(values)) - entropy(values)
    ranking = specificity.where(passes, -torch.inf)
    scores = ranking.expand_as(values).where(above_bar, -torch.inf)
    return NeuronScores(statistics.languages, {"mlp": scores}, method, {"mlp": ranking})


def select_lowest_entropy(scores: NeuronScores, rate: float, at_least: int) -> NeuronSet:
    """The share `rate` of all units with the lowest entropy; a unit belongs to each language with a finite score."""
    ranking, belongs = scores.rank("mlp"), scores.values["mlp"].isfinite().flatten(1)
    order = best_first(ranking)
    count = asked = round(rate * ranking.numel()) if at_least else count_of(rate, ranking.numel())
    if at_least:
        reached = belongs[:, order].cumsum(1)
        eligible = dict(zip(scores.languages, belongs[:, order].sum(1).tolist(), strict=True))
        if min(eligible.values()) < at_least:
            raise DoesNotApply(
                f"cannot give every language at_least={at_least} neurons: those that pass the filter and the bar "
                f"are {eligible}. Lower at_least, or filter_share and bar_share."
            )
        count = max(count, int((reached < at_least).sum(1).max()) + 1)
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    mask = (belongs & chosen).view(scores.values["mlp"].shape)
    notes = {"asked": asked, "chosen": int(chosen.sum()), "rate": int(chosen.sum()) / ranking.numel()}
    return NeuronSet(scores.languages, {"mlp": mask}, scores.method, notes)
