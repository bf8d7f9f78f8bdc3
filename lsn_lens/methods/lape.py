"""LAPE: neurons whose probability to fire is concentrated on few languages; and LAVE, its variant on mean values."""

from dataclasses import dataclass

from lsn_lens.methods.base import check_at_least, check_shares
from lsn_lens.methods.selection import score_by_entropy, select_lowest_entropy
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class Lape:
    """Language activation probability entropy.

    With P the share of a language's tokens on which act(gate) > 0, a neuron's score is the entropy of its P
    normalised over languages. Neurons must exceed the pooled `filter_share` order statistic of P in some
    language; the share `rate` of all neurons with the lowest entropy is chosen; a chosen neuron belongs to every
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
        """`ln K - LAPE`: 0 for a neuron that fires equally often in all K languages, ln K if it fires in only one."""
        probability = statistics.probability("mlp_pre")
        return score_by_entropy(statistics, probability, self.filter_share, self.bar_share, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest entropies over all layers; a neuron may belong to several languages."""
        return select_lowest_entropy(scores, self.rate, self.at_least)


@dataclass(frozen=True)
class Lave:
    """Language activation value entropy: LAPE on mean activations act(gate) in place of probabilities.

    Attributes:
        rate: Share of all neurons to choose.
        filter_share: Order statistic of the means that a neuron must exceed in some language.
        bar_share: Order statistic of the means that a language must exceed to own a neuron.
        at_least: Raise the rate until every language has this many neurons; 0 keeps the rate.

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
        """Sums of act(gate), for the mean activations."""
        return (Statistic("mlp_act", "sum"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """`ln K` minus the entropy of the mean activations."""
        means = statistics.mean("mlp_act").clamp_min(0)
        return score_by_entropy(statistics, means, self.filter_share, self.bar_share, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest entropies over all layers; a neuron may belong to several languages."""
        return select_lowest_entropy(scores, self.rate, self.at_least)
