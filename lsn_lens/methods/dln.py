"""DLN: neurons whose activation distributions in some languages hardly overlap with those in the others."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import DECIMALS, order_statistic
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Histogram, Need, Statistic
from lsn_lens.statistics.sums import Statistics

Overlaps = Float[Tensor, "unit language language"]


@dataclass(frozen=True)
class Dln:
    """Distribution-aware language neurons.

    The overlap of two languages at a neuron is the sum over bins of the smaller share. The neuron's cost is the
    largest overlap between two groups of languages, minimised over all divisions into two groups: this is the weakest
    edge of the maximum spanning tree, so no enumeration is needed. Neurons are chosen whose cost is at most the
    pooled `share` order statistic of all overlaps; a neuron belongs to the smaller group, or between groups of equal
    size to the group with the higher mean activation.

    Attributes:
        share: Order statistic of all pairs' overlaps that the cost must not exceed.
        bins: Number of bins of the histogram, besides its two tails.
        spread: Reach of the bins on either side of the mean, in standard deviations.
        floor: Lower limit of the bins; None: only `spread` limits them.

    Source: "Distribution-aware language neurons" (arXiv 2609.10993), released code: histograms of act(gate), 400 bins
    and two tails, 3 standard deviations but not below -0.4 (SiLU does not fall below -0.28), 1 %, which is
    `Dln(bins=400, spread=3.0, floor=-0.4)`. Our defaults have fewer bins, since an overlap measured on few tokens falls
    with the number of bins and is then not comparable between sizes of text; and 4 standard deviations on both sides
    for every activation function. We place a neuron's bins before the run, by the first tokens of each language; the
    released code uses all of the text.
    """

    share: float = 0.01
    bins: int = 64
    spread: float = 4.0
    floor: float | None = None

    def __post_init__(self) -> None:
        check_shares(share=self.share)
        if self.bins < 1 or not self.spread > 0:
            raise ValueError(f"bins={self.bins}, spread={self.spread}: expected at least one bin, and a width above 0.")

    def statistics(self) -> tuple[Need, ...]:
        """Histograms of act(gate), and sums for the means."""
        return (self._histogram(), Statistic("mlp_act", "sum"))

    def _histogram(self) -> Histogram:
        return Histogram("mlp_act", self.bins, self.spread, self.floor)

    def score(self, statistics: Statistics) -> NeuronScores:
        """1 - cost for languages of the neuron's group, -inf for others."""
        check_languages(statistics.languages)
        counts, means = statistics.get(self._histogram().key), statistics.mean("mlp_act")
        layers = [overlaps(counts[:, layer]) for layer in range(counts.shape[1])]
        pairs = torch.ones(len(counts), len(counts), dtype=torch.bool).triu(1)
        largest = order_statistic(torch.stack([each[:, pairs] for each in layers]), self.share)
        costs = [weakest_link(each) for each in layers]
        groups = [smallest_group(*each) for each in zip(layers, costs, means.unbind(1), strict=True)]
        cost, group = torch.stack(costs), torch.stack([each.T for each in groups], dim=1)
        chosen = group & (cost <= largest) & (cost < 1)
        scores = (1 - cost).expand_as(chosen).where(chosen, -torch.inf)
        return NeuronScores(statistics.languages, {"mlp": scores}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """All neurons with a finite score; `notes` counts neurons of one language and of several."""
        mask = scores.values["mlp"].isfinite()
        owners = mask.sum(0)
        notes = {"single language": int((owners == 1).sum()), "several languages": int((owners > 1).sum())}
        return replace(NeuronSet(scores.languages, {"mlp": mask}, scores.method), notes=notes)


def overlaps(counts: Tensor) -> Overlaps:
    """Sum over bins of the smaller share, from counts `[language unit bin]`; in 64 bits, symmetric."""
    shares = counts.double() / counts.sum(-1, keepdim=True)
    one, other = torch.triu_indices(len(shares), len(shares))
    pairs = [torch.minimum(shares[a], shares[b]).sum(-1) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    whole = shares.new_empty(shares.shape[1], len(shares), len(shares))
    whole[:, one, other] = whole[:, other, one] = torch.stack(pairs, dim=1).round(decimals=DECIMALS)
    return whole


def weakest_link(similarity: Overlaps) -> Float[Tensor, "unit"]:
    """The smallest edge of each unit's maximum spanning tree, by Prim's algorithm for all units at once."""
    units, languages, _ = similarity.shape
    every = torch.arange(units)
    outside = torch.ones(units, languages, dtype=torch.bool)
    outside[:, 0] = False
    reach, weakest = similarity[:, 0].clone(), torch.full((units,), math.inf, dtype=similarity.dtype)
    for _ in range(languages - 1):
        edge, nearest = reach.where(outside, -math.inf).max(1)
        weakest = torch.minimum(weakest, edge)
        outside[every, nearest] = False
        reach = torch.maximum(reach, similarity[every, nearest])
    return weakest


def smallest_group(
    similarity: Overlaps, cost: Float[Tensor, "unit"], means: Float[Tensor, "language unit"]
) -> Bool[Tensor, "unit language"]:
    """The smallest group that no overlap above the cost connects to others; ties go to the higher mean."""
    languages = similarity.shape[1]
    together = (similarity > cost[:, None, None]) | torch.eye(languages, dtype=torch.bool)
    for middle in range(languages):  # Warshall: linked by way of this language
        together = together | (together[:, :, middle, None] & together[:, middle, None])
    sizes = together.sum(2)
    level = (torch.einsum("uab,bu->ua", together.double(), means) / sizes).round(decimals=DECIMALS)
    best = (sizes.double() == sizes.amin(1, keepdim=True)) & (sizes < languages)
    highest = level.where(best, -math.inf)
    owner = best & (highest == highest.amax(1, keepdim=True))
    first = owner.double().argmax(1)
    return together[torch.arange(len(together)), first] & best.any(1, keepdim=True)
