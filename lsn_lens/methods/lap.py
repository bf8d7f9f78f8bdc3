"""LAP: the neurons that fire most in a language, regardless of the others."""

from dataclasses import dataclass

import torch

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import highest_share
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class Lap:
    """Language activation probability alone.

    Each language gets the same number of neurons, those with the highest share of its tokens where act(gate) > 0.

    Attributes:
        rate: Share of all neurons, divided evenly among the languages and rounded.

    Source: ours, a simple comparison for LAPE from the same counts.
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        check_shares(rate=self.rate)

    def statistics(self) -> tuple[Statistic, ...]:
        """Counts of `mlp_pre > 0`."""
        return (Statistic("mlp_pre", "positive"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """The probability to fire; -inf for a neuron that never fires."""
        check_languages(statistics.languages)
        probability = statistics.probability("mlp_pre")
        return NeuronScores(statistics.languages, {"mlp": probability.where(probability > 0, -torch.inf)}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest scores per language over all layers, the same number each; neurons may have several languages."""
        return highest_share(scores, "mlp", self.rate)
