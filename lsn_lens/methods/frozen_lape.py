"""LAPE with thresholds that are frozen on one checkpoint and reused on others."""

from dataclasses import dataclass, replace

import torch

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import entropy, order_statistic, score_by_entropy, select_lowest_entropy
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class FrozenLape:
    """LAPE whose three thresholds can be numbers in place of shares.

    With `largest_entropy`, `filter_bar` and `bar` at None, this is `Lape`. `frozen(statistics)` returns the method
    with the thresholds that the shares give on a reference checkpoint. On another checkpoint, all neurons that pass
    are then chosen, so that the number can change; shares always choose the same number.

    Attributes:
        rate: Share of all neurons to choose, where `largest_entropy` is None.
        filter_share: Order statistic of P that gives `filter_bar`.
        bar_share: Order statistic of P that gives `bar`.
        largest_entropy: Nats; a neuron is chosen if its LAPE is at most this.
        filter_bar: A neuron must exceed this P in some language.
        bar: A language must exceed this P to own a neuron.

    Source: "Babel Tower Hypothesis" (arXiv 2412.07298), which finds its neurons as LAPE does and does not state its
    thresholds. Freezing them on one checkpoint is ours.
    """

    rate: float = 0.01
    filter_share: float = 0.95
    bar_share: float = 0.95
    largest_entropy: float | None = None
    filter_bar: float | None = None
    bar: float | None = None

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, filter_share=self.filter_share, bar_share=self.bar_share)
        given = [each is not None for each in (self.largest_entropy, self.filter_bar, self.bar)]
        if any(given) and not all(given):
            raise ValueError(
                f"{self!r}: give largest_entropy, filter_bar and bar together, best by frozen(run.statistics)."
            )

    def statistics(self) -> tuple[Statistic, ...]:
        """Counts of `mlp_pre > 0`, as for LAPE."""
        return (Statistic("mlp_pre", "positive"),)

    def frozen(self, statistics: Statistics) -> "FrozenLape":
        """This method with its thresholds on these statistics as numbers."""
        check_languages(statistics.languages)
        probability = statistics.probability("mlp_pre")
        shares = replace(self, largest_entropy=None, filter_bar=None, bar=None)
        chosen = shares.select(shares.score(statistics)).units("mlp")
        if not chosen.any():
            raise DoesNotApply(f"{self!r} finds no neuron on the reference: there is no threshold to freeze.")
        return replace(
            self,
            largest_entropy=float(entropy(probability)[chosen].max()),
            filter_bar=float(order_statistic(probability, self.filter_share)),
            bar=float(order_statistic(probability, self.bar_share)),
        )

    def score(self, statistics: Statistics) -> NeuronScores:
        """`ln K - LAPE` for languages above the bar, as in LAPE; -inf for neurons that fail a frozen threshold."""
        probability = statistics.probability("mlp_pre")
        if self.largest_entropy is None or self.filter_bar is None or self.bar is None:
            return score_by_entropy(statistics, probability, self.filter_share, self.bar_share, repr(self))
        check_languages(statistics.languages)
        lape = entropy(probability)
        passes = (probability > self.filter_bar).any(0) & (lape <= self.largest_entropy)
        ranking = (torch.log(torch.tensor(float(len(probability)))) - lape).where(passes, -torch.inf)
        scores = ranking.expand_as(probability).where(probability > self.bar, -torch.inf)
        return NeuronScores(statistics.languages, {"mlp": scores}, repr(self), {"mlp": ranking})

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest entropies at the rate; with frozen thresholds, all neurons that pass."""
        if self.largest_entropy is None:
            return select_lowest_entropy(scores, self.rate, at_least=0)
        mask = scores.values["mlp"].isfinite()
        notes = {"chosen": int(mask.any(0).sum()), "rate": float(mask.any(0).double().mean())}
        return NeuronSet(scores.languages, {"mlp": mask}, scores.method, notes)
