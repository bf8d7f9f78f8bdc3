"""Entropy-lambda: neurons by normalised entropy minus firing strength, sorted into specific, related and general."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import DECIMALS, best_first, count_of, entropy, order_statistic
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics

SEARCH = (0.0, 100.0)  # range of the search for the balance
PRECISION = 1e-3


@dataclass(frozen=True)
class EntropyLambda:
    """Specific, related and general neurons by entropy and firing strength.

    With p the share of a language's tokens on which act(gate) > 0, a neuron's value is the entropy of its p over
    ln K, minus `balance` times its largest p over the mean of 1, 1/2, ..., 1/K. The share `rate` of all neurons with
    the lowest values is chosen; a language owns a neuron if its p exceeds the pooled `bar_share` order statistic.

    Attributes:
        rate: Share of all neurons to choose.
        bar_share: Order statistic of p that a language must exceed to own a neuron.
        balance: The paper's lambda. None: the largest value in [0, 100], by bisection to 0.001, for which no chosen
            neuron is owned by all languages; 0 if there is no such value.

    Source: arXiv 2505.21505, as its released code has it. The code subtracts the counts of a prompt's fixed prefix;
    plain text has no prefix. Where the search ends, and the order of ties, are ours.
    """

    rate: float = 0.01
    bar_share: float = 0.95
    balance: float | None = None

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, bar_share=self.bar_share)
        if self.balance is not None and not self.balance >= 0:
            raise ValueError(f"balance={self.balance}: expected 0 or more, or None to search for it.")

    def statistics(self) -> tuple[Statistic, ...]:
        """Counts of `mlp_pre > 0`."""
        return (Statistic("mlp_pre", "positive"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """The negated value for languages that own the neuron; -inf for others and for neurons that never fire."""
        check_languages(statistics.languages)
        p = statistics.probability("mlp_pre")
        fires = (p > 0).any(0)
        owned = (p > order_statistic(p, self.bar_share)) & fires
        parts = parts_of(p)
        balance = self._search(parts, owned, fires) if self.balance is None else self.balance
        ranking = (-value(*parts, balance)).where(fires, -torch.inf)
        scores = ranking.expand_as(p).where(owned, -torch.inf)
        return NeuronScores(statistics.languages, {"mlp": scores}, repr(self), {"mlp": ranking})

    def _search(
        self,
        parts: tuple[Tensor, Tensor],
        owned: Bool[Tensor, "language layer unit"],
        fires: Bool[Tensor, "layer unit"],
    ) -> float:
        """The largest balance without a chosen neuron that all languages own, by bisection."""

        def has_general(balance: float) -> bool:
            chosen = self._chosen((-value(*parts, balance)).where(fires, -torch.inf))
            return bool((owned.all(0) & chosen).any())

        low, high = SEARCH
        if not has_general(high):
            return high
        if has_general(low):
            return low
        while high - low > PRECISION:
            middle = (low + high) / 2
            low, high = (low, middle) if has_general(middle) else (middle, high)
        return low

    def _chosen(self, ranking: Float[Tensor, "layer unit"]) -> Bool[Tensor, "layer unit"]:
        chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
        chosen[best_first(ranking)[: count_of(self.rate, ranking.numel())]] = True
        return chosen.view(ranking.shape)

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest values over all layers; `notes` counts the classes."""
        mask = scores.values["mlp"].isfinite() & self._chosen(scores.rank("mlp"))
        found = NeuronSet(scores.languages, {"mlp": mask}, scores.method)
        notes = {name: int(each.sum()) for name, each in classes(found).items()}
        return NeuronSet(scores.languages, {"mlp": mask}, scores.method, notes)


def parts_of(
    p: Float[Tensor, "language layer unit"],
) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
    """The entropy over languages and the largest p, both normalised."""
    harmonic = sum(1 / place for place in range(1, len(p) + 1)) / len(p)
    return entropy(p) / torch.log(torch.tensor(float(len(p)))), p.amax(0) / harmonic


def value(spread: Tensor, peak: Tensor, balance: float | int) -> Float[Tensor, "layer unit"]:
    """The entropy minus `balance` times the largest p; low for neurons of few languages."""
    return (spread - balance * peak).round(decimals=DECIMALS)


def classes(found: NeuronSet) -> dict[str, Bool[Tensor, "layer unit"]]:
    """Masks of the neurons of one language ("specific"), of several ("related") and of all ("general")."""
    owners = found.masks["mlp"].sum(0)
    return {
        "specific": owners == 1,
        "related": (owners > 1) & (owners < len(found.languages)),
        "general": owners == len(found.languages),
    }
