"""Expert frequency: groups of neurons with similar weights, scored by how often a language's tokens select them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import count_of, highest_each
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.experts import ExpertAssignment, ExpertCounts
from lsn_lens.statistics.needs import Need, Statistic
from lsn_lens.statistics.sums import Statistics

Frequencies = Float[Tensor, "language layer expert"]


@dataclass(frozen=True)
class ExpertFrequency:
    """Activation frequency of fine-grained experts.

    The neurons of each layer are grouped into experts of equal size by their weights. A token selects the experts
    with the highest scores; an expert's frequency in a language is the share of tokens that select it. A language
    gets the neurons of the experts that are frequent in this language only.

    Attributes:
        size: Neurons per expert; with 1, each neuron is an expert.
        features: Clustered weights: rows of the "gate" projection, of "up", or both ("concat"), each at length 1.
        score_of: An expert's score at a token: sum of "l1" |h|, "pos" relu(act(gate)), "l2" h squared, or
            "contribution" |h| times the norm of the neuron's output weights; h is the down projection's input.
        selection: "per_layer": the highest `share` of each layer's experts; "cross_layer": of all layers' experts in
            one ranking; "threshold": the fewest experts that hold `share` of the layer's score.
        share: Share of experts, or of the score, see `selection`.
        relative: For "cross_layer": divide scores by the layer's mean at the token.
        skip_bos: Leave out the leading BOS token of each document.
        seed: Seed of the clustering.
        high: Share of a layer's experts that count as frequent in a language: those with the highest frequency.
        threshold: Frequency from which experts count as frequent, in place of `high`.
        rate: Share of all neurons, divided evenly among the languages and rounded up to whole experts.
        assignment: Experts found on a sibling, see `experts_of`, in place of clusters of this model's weights.

    Source: Liu et al. 2024, "Unraveling Babel" (EMNLP, arXiv 2402.16367), of which only the abstract and the names of
    its parts (expert construction after MoEfication, cross-layer expert selection) could be read. Balanced clusters of
    normalised weights and a fifth of the experts are MoEfication's. Scores for gated models, the rule for frequent
    experts, and sets of neurons from exclusive experts are ours.
    """

    size: int = 32
    features: Literal["gate", "up", "concat"] = "gate"
    score_of: Literal["l1", "pos", "l2", "contribution"] = "l1"
    selection: Literal["per_layer", "cross_layer", "threshold"] = "per_layer"
    share: float = 0.2
    relative: bool = False
    skip_bos: bool = True
    seed: int = 0
    high: float = 0.1
    threshold: float | None = None
    rate: float = 0.01
    assignment: ExpertAssignment | None = None

    def __post_init__(self) -> None:
        check_shares(share=self.share, high=self.high, rate=self.rate)
        if self.assignment is not None and self.assignment.size != self.size:
            raise ValueError(f"size={self.size}, but the assignment has experts of {self.assignment.size}: give that.")
        if self.threshold is not None:
            check_shares(threshold=self.threshold)

    def counts(self) -> ExpertCounts:
        """The need: the experts that each token selects, counted."""
        return ExpertCounts(
            self.size, self.features, self.score_of, self.selection, self.share, self.relative, self.skip_bos,
            self.seed, self.assignment,
        )  # fmt: skip

    def experts_of(self, statistics: Statistics) -> ExpertAssignment:
        """The experts of a run, to be saved, and used on a sibling: `ExpertFrequency(assignment=...)`."""
        return ExpertAssignment(statistics.constants[f"{self.counts().key}.assignment"], statistics.origin)

    def statistics(self) -> tuple[Need, ...]:
        """Counts of selections, and sums of squares, which identify neurons that never fire."""
        return (self.counts(), Statistic("mlp_post", "squares"))

    def frequency(self, statistics: Statistics) -> Frequencies:
        """Share of tokens that select each expert, in [0, 1]."""
        key = self.counts().key
        return statistics.get(f"{key}.selected").double() / statistics.get(f"{key}.counted")[..., None].double()

    def frequent(self, frequency: Frequencies) -> Bool[Tensor, "language layer expert"]:
        """High-frequency experts per language and layer; an expert that no token selects is never frequent."""
        if self.threshold is not None:
            return frequency >= self.threshold
        count = max(1, round(self.high * frequency.shape[2]))
        chosen = frequency.argsort(dim=2, descending=True, stable=True)[..., :count]
        return torch.zeros_like(frequency, dtype=torch.bool).scatter_(2, chosen, True) & (frequency > 0)

    def score(self, statistics: Statistics) -> NeuronScores:
        """In-language frequency of the neuron's expert minus its highest other-language one; -inf if not exclusive."""
        check_languages(statistics.languages)
        frequency = self.frequency(statistics)
        frequent = self.frequent(frequency)
        exclusive = frequent & (frequent.sum(0) == 1)
        every = range(len(frequency))
        others = [frequency[[i for i in every if i != place]].amax(0) for place in every]
        experts = (frequency - torch.stack(others)).where(exclusive, -torch.inf)
        assignment = self.experts_of(statistics).units
        units = experts.gather(2, assignment.expand(len(frequency), -1, -1))
        silent = (statistics.get("mlp_post.squares") == 0).all(0)
        return NeuronScores(statistics.languages, {"mlp": units.where(~silent, -torch.inf)}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """All neurons of the highest-scoring exclusive experts per language; `notes` counts exclusive experts."""
        values = scores.values["mlp"]
        budget = -(-count_of(self.rate, values[0].numel(), len(values)) // self.size)  # experts, rounded up
        exclusive = [round(int(each.isfinite().sum()) / self.size) for each in values]
        notes = {"asked": budget, "exclusive": dict(zip(scores.languages, exclusive, strict=True))}  # experts
        return replace(highest_each(scores, "mlp", budget * self.size), notes=notes)
