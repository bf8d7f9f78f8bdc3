"""Random units: the control for every method."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import Method
from lsn_lens.methods.lape import Lape
from lsn_lens.neurons.draws import generator_of
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Need
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class Random:
    """Random units, with the number per language and layer that another method finds.

    Attributes:
        like: The method to match.
        seed: Seed of the draw.

    Source: the random baseline of Tang et al. 2024 (the same number of neurons per language); matching layers is ours.
    """

    like: Method = field(default_factory=Lape)
    seed: int = 0

    def statistics(self) -> tuple[Need, ...]:
        """The needs of the matched method."""
        return self.like.statistics()

    def score(self, statistics: Statistics) -> NeuronScores:
        """The matched method's scores, since random units have no scores."""
        return replace(self.like.score(statistics), method=repr(self))

    def order(self, scores: NeuronScores) -> dict[str, Float[Tensor, "language layer unit"]]:
        """A random order of all units of the matched method's bases, whatever their layers."""
        return {
            basis: torch.stack(
                [torch.rand(each.shape[1:], generator=generator_of(self.seed, "order", language, basis))
                 for language in scores.languages]
            )
            for basis, each in scores.values.items()
        }  # fmt: skip

    def select(self, scores: NeuronScores) -> NeuronSet:
        """A draw with the counts of the matched method's selection."""
        return replace(self.like.select(scores).random_like(self.seed), method=repr(self))
