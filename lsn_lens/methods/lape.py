"""LAPE: neurons whose probability to fire is concentrated on few languages; and LAVE, its sibling on mean values."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import best_first, check_at_least, check_languages, check_shares, order_statistic
from lsn_lens.neurons import NeuronScores, NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics

DECIMALS = 12  # entropies equal to this many decimals are ties: beyond it there is rounding error only


def entropy(values: Float[Tensor, "language layer unit"]) -> Float[Tensor, "layer unit"]:
    """Entropy (nats) of non-negative values normalised over languages; 0 log 0 = 0, and 0 where all are 0."""
    values = values.sort(0).values  # the order of the languages must not show in the last bit
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
    """The best `rate` of all units; each belongs to every language where its score is finite."""
    ranking, belongs = scores.rank("mlp"), scores.values["mlp"].isfinite().flatten(1)
    order = best_first(ranking)
    count = asked = round(rate * ranking.numel())
    if at_least:
        reached = belongs[:, order].cumsum(1)
        eligible = dict(zip(scores.languages, belongs[:, order].sum(1).tolist(), strict=True))
        if min(eligible.values()) < at_least:
            raise DoesNotApply(
                f"at_least={at_least} neurons a language cannot be had; those that pass the filter and the bar "
                f"are {eligible}. Ask for fewer, or lower filter_share and bar_share."
            )
        count = max(count, int((reached < at_least).sum(1).max()) + 1)
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    mask = (belongs & chosen).view(scores.values["mlp"].shape)
    notes = {"asked": asked, "chosen": int(chosen.sum()), "rate": int(chosen.sum()) / ranking.numel()}
    return NeuronSet(scores.languages, {"mlp": mask}, scores.method, notes)


@dataclass(frozen=True)
class Lape:
    """Language activation probability entropy.

    With P the share of a language's tokens on which act(gate) > 0, a neuron's score is the entropy of its P
    normalised over languages. Neurons must exceed the pooled `filter_share` order statistic of P in some
    language; the `rate` of all neurons with the lowest entropy are chosen; a chosen neuron belongs to every
    language whose P exceeds the pooled `bar_share` order statistic.

    Attributes:
        rate: Share of all neurons to choose.
        filter_share: Order statistic of P that a neuron must exceed in some language.
        bar_share: Order statistic of P that a language must exceed to own a neuron.
        at_least: Raise the rate until every language has this many neurons; 0 keeps the paper's rule.

    Source: Tang et al. 2024 (ACL, arXiv 2402.16438), with the released `identify.py`. We differ where fewer
    neurons pass the filter than the rate asks for: those that did not pass are never chosen.
    """

    rate: float = 0.01
    filter_share: float = 0.95
    bar_share: float = 0.95
    at_least: int = 0

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, filter_share=self.filter_share, bar_share=self.bar_share)
        check_at_least(self.at_least)

    def statistics(self) -> tuple[Statistic, ...]:
        """Counts of `mlp_pre > 0`, which is act(gate) > 0 for SiLU, GELU and ReLU."""
        return (Statistic("mlp_pre", "positive"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """`ln K - LAPE`: 0 for a neuron that fires alike in all K languages, ln K for one that fires in one."""
        probability = statistics.probability("mlp_pre")
        return score_by_entropy(statistics, probability, self.filter_share, self.bar_share, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest entropies over all layers; a neuron may belong to several languages."""
        return select_lowest_entropy(scores, self.rate, self.at_least)


@dataclass(frozen=True)
class Lave:
    """Language activation value entropy: LAPE on mean activations act(gate) in place of probabilities.

    Attributes: as `Lape`.

    Source: ours, a comparison for LAPE; negative means count as 0.
    """

    rate: float = 0.01
    filter_share: float = 0.95
    bar_share: float = 0.95
    at_least: int = 0

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, filter_share=self.filter_share, bar_share=self.bar_share)
        check_at_least(self.at_least)

    def statistics(self) -> tuple[Statistic, ...]:
        """Sums of act(gate)."""
        return (Statistic("mlp_act", "sum"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """`ln K` minus the entropy of the mean activations."""
        means = statistics.mean("mlp_act").clamp_min(0)
        return score_by_entropy(statistics, means, self.filter_share, self.bar_share, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """As LAPE."""
        return select_lowest_entropy(scores, self.rate, self.at_least)
