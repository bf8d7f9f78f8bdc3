"""DiffMean: the direction of the residual stream from the other languages' mean to a language's, layer by layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import highest_share
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics

Directions = Float[Tensor, "language layer unit"]


def directions(statistics: Statistics) -> Directions:
    """Mean residual stream of each language minus the mean of the other languages' means, after every layer."""
    check_languages(statistics.languages)
    means = statistics.mean("resid_post")
    return means - torch.stack([statistics.pooled_mean("resid_post", without=each) for each in statistics.languages])


@dataclass(frozen=True)
class DiffMean:
    """Difference of means in the residual stream.

    The method itself is a direction, `directions(statistics)`, for steering. To compare it with detectors of units, a
    dimension's score is |difference| over the dimension's standard deviation within languages; each language gets the
    same number of dimensions, those with its highest scores.

    Attributes:
        rate: Share of all residual dimensions of all layers, divided evenly among the languages and rounded.

    Source: arXiv 2601.08331 and its released code (the direction: target minus source; here the source is the mean
    of all other languages). Scores of single dimensions are ours.
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        check_shares(rate=self.rate)

    def statistics(self) -> tuple[Statistic, ...]:
        """Sums and squares of the residual stream after every layer."""
        return (Statistic("resid_post", "sum"), Statistic("resid_post", "squares"))

    def score(self, statistics: Statistics) -> NeuronScores:
        """`|difference| / standard deviation`; -inf where one of them is 0."""
        means, tokens = statistics.mean("resid_post"), statistics.tokens[..., None].double()
        within = (statistics.get("resid_post.squares") / tokens - means.square()).clamp_min(0)
        deviation = within.sort(0).values.mean(0).sqrt()  # sorted: the order of the languages must not matter
        size = directions(statistics).abs()
        scores = (size / deviation.clamp_min(1e-12)).where((size > 0) & (deviation > 0), -torch.inf)
        return NeuronScores(statistics.languages, {"resid": scores}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest scores of each language over all layers, the same number per language."""
        return highest_share(scores, "resid", self.rate)
