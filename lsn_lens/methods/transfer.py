"""Transfer neurons: MLP neurons whose write turns the last token's residual stream towards a language's centroid."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import highest_each, highest_share
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import DocumentValues, Need, Writes
from lsn_lens.statistics.sums import Statistics

WRITES = Writes()
UNITS, BEFORE = DocumentValues("mlp_post", "last"), DocumentValues("resid_mid", "last")


@dataclass(frozen=True)
class Transfer:
    """Neurons whose write a_j v_j raises the cosine of the stream with a centroid, at the last token of a document.

    The score is the mean over the language's documents of `cos(m + a_j v_j, c) - cos(m, c)`: m is the stream before
    the layer's MLP, c the centroid, the mean over documents of the stream after the layer. Only the neuron's own write
    is added to m, not those of its layer's other neurons.

    Attributes:
        kind: "type1": early layers, towards the centroid that languages share. "type2": late layers, towards the
            language's own centroid.
        rate: Share of all neurons of all layers, divided evenly among the languages and rounded.
        count: Number of neurons per language, in place of `rate`. The released code's default is 1000.
        border: Share of layers, rounded, that are early.
        anchor: For type 1. None: the shared centroid is the mean of all languages' centroids. A language: the mean of
            its centroid and the language's own, as in the released code, whose anchor is English.

    Source: "The Transfer Neurons Hypothesis" (EMNLP 2025, arXiv 2509.17030), by the released code: the score, the last
    token, layers 0 to 19 of 32 as early ones, 1000 neurons per language. Ours: the rate, no anchor, and that neurons
    with a score of 0 or below are never chosen. The text of the paper itself was not compared. In the released code
    the centroid of the last layer is behind the final norm, which its authors call unintended; here it is before.
    """

    kind: Literal["type1", "type2"] = "type2"
    rate: float = 0.01
    count: int | None = None
    border: float = 0.625
    anchor: str | None = None

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, border=self.border)
        if self.kind not in ("type1", "type2"):
            raise ValueError(f"kind={self.kind!r}: expected 'type1' or 'type2'.")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}: expected a number of neurons, 1 or more, or None.")
        if self.anchor is not None and self.kind == "type2":
            raise ValueError(f"anchor={self.anchor!r}: only type 1 has a shared centroid; give kind='type1'.")

    @property
    def paired(self) -> bool:
        """Whether a language's scores depend on the documents of the others."""
        return self.kind == "type1"

    def statistics(self) -> tuple[Need, ...]:
        """Per document a_j, m and `m . v_j` at the last token; sums of the stream after each layer."""
        return (UNITS, BEFORE, WRITES)

    def score(self, statistics: Statistics) -> NeuronScores:
        """The mean change of the cosine; -inf in other layers, and where it is 0 or below.

        Raises:
            KeyError: The run lacks the statistics, or the language `anchor`.
            DoesNotApply: Fewer than two languages or layers.
        """
        check_languages(statistics.languages)
        change = self.changes(statistics)
        scores = change.where(change > 0, -torch.inf)
        return NeuronScores(statistics.languages, {"mlp": scores}, repr(self))

    def changes(self, statistics: Statistics) -> Float[Tensor, "language layer unit"]:
        """The mean change of the cosine by each neuron, in [-2, 2]; 0 in layers of the other kind."""
        layers = statistics.tokens.shape[1]
        if layers < 2:
            raise DoesNotApply(f"{layers} layer: transfer neurons are of early or of late layers, so of two or more.")
        border = min(max(round(self.border * layers), 1), layers - 1)
        centroids, along = (self._shared(statistics, name) for name in ("stream", "along"))
        squares = statistics.constants[f"{WRITES.key}.squares"].double()
        change = torch.zeros_like(along)
        for layer in range(border) if self.kind == "type1" else range(border, layers):
            units, before, products = (statistics.documents(need.key, layer) for need in self.statistics())
            for place, label in enumerate(statistics.languages):
                each = cosine_changes(
                    units[label].double(), before[label].double(), products[label].double(),
                    centroids[place, layer], along[place, layer], squares[layer],
                )  # fmt: skip
                change[place, layer] = each.mean(0)
        return change

    def _shared(self, statistics: Statistics, name: str) -> Float[Tensor, "language layer n"]:
        """Each language's centroid, or its product with the writes, which follows in the same way."""
        means = statistics.get(f"{WRITES.key}.{name}") / torch.as_tensor(statistics.n_documents)[:, None, None].double()
        if self.kind == "type2":
            return means
        if self.anchor is None:
            return means.mean(0).expand_as(means)
        if self.anchor not in statistics.languages:
            raise KeyError(f"no language {self.anchor!r}; the languages are {list(statistics.languages)}.")
        return (means + means[statistics.languages.index(self.anchor)]) / 2

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest scores per language; ties go to the lower layer, then the lower unit."""
        if self.count is not None:
            return highest_each(scores, "mlp", self.count)
        return highest_share(scores, "mlp", self.rate)


def cosine_changes(
    units: Float[Tensor, "document unit"],
    before: Float[Tensor, "document d_model"],
    products: Float[Tensor, "document unit"],
    centroid: Float[Tensor, "d_model"],
    along: Float[Tensor, "unit"],
    squares: Float[Tensor, "unit"],
) -> Float[Tensor, "document unit"]:
    """`cos(m + a_j v_j, c) - cos(m, c)` from inner products alone.

    Args:
        units: a_j.
        before: m.
        products: `m . v_j`.
        centroid: c.
        along: `c . v_j`.
        squares: `v_j . v_j`.
    """
    dot, size = (before @ centroid)[:, None], before.square().sum(1)[:, None]
    moved = (size + 2 * units * products + units.square() * squares).clamp_min(1e-30)
    return ((dot + units * along) / moved.sqrt() - dot / size.sqrt()) / centroid.norm()
