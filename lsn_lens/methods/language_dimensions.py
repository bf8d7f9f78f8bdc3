"""Language dimensions: the residual dimensions in which a language's mean lies furthest from the others'."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.methods.base import check_languages
from lsn_lens.methods.selection import count_of, highest_each
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import DocumentValues, Need, Statistic
from lsn_lens.statistics.sums import Statistics

Variant = Literal["output", "released"]
INPUT, LAST = DocumentValues("resid_pre", "mean"), DocumentValues("resid_mid", "mean")


def stream_means(statistics: Statistics, layer: int, variant: Variant = "output") -> Float[Tensor, "language unit"]:
    """Mean residual stream of each language at one layer.

    Args:
        statistics: Statistics of a run with "language_dimensions" in the same variant.
        layer: The layer, from 0.
        variant: "output": the layer's output, mean over tokens. "released": the layer's input (for the last layer, its
            MLP's input), mean over sentences of the mean over a sentence's tokens.
    """
    if variant == "output":
        return statistics.mean("resid_post")[:, layer]
    need = LAST if layer == statistics.tokens.shape[1] - 1 else INPUT
    rows = statistics.documents(need.key, layer)
    return torch.stack([rows[label].double().mean(0) for label in statistics.languages])


@dataclass(frozen=True)
class LanguageDimensions:
    """The dimensions of one layer's residual stream with the largest |difference of means|.

    Attributes:
        count: Dimensions per language: a number, or a share of the model's width.
        layer: The layer whose output is compared; negative numbers count from the last.
        mode: "parallel": the language's mean against the anchor's at `layer`. "monolingual": the language's mean at
            `anchor_layer` against its own at `layer`.
        anchor: The language to compare with, which then gets no dimensions; None: the mean of the others.
        anchor_layer: The layer to compare with in the mode "monolingual".
        exclude: Dimensions to leave out, such as known outliers.
        variant: "output": the residual stream after a layer, means over tokens. "released": the released code's
            tensors, see `stream_means`; for runs of single documents, on models whose blocks run attention and MLP
            one after the other.

    Source: arXiv 2510.07213 and its released code, which is
    `LanguageDimensions(count=400, anchor="en", variant="released")`, or with `mode="monolingual", anchor_layer=19`, on
    50 sentences. Its "last layer" is the residual stream before the last MLP, its layer i the input of block i. Ours:
    the default variant, which chooses 31 to 36 of 40 dimensions alike on the embedded model (20 to 27 in the
    monolingual mode, where `anchor_layer=18` is their layer 19); a share of the width, which carries over to other
    widths; and no anchor, so that all languages are treated alike.
    """

    count: float | int = 0.1
    layer: int = -1
    mode: Literal["parallel", "monolingual"] = "parallel"
    anchor: str | None = None
    anchor_layer: int | None = None
    exclude: tuple[int, ...] = ()
    variant: Variant = "output"

    def __post_init__(self) -> None:
        whole = isinstance(self.count, int) and self.count >= 1
        if not whole and not (isinstance(self.count, float) and 0 < self.count <= 1):
            raise ValueError(f"count={self.count!r}: expected a whole number of 1 or more, or a share in (0, 1].")
        if self.mode not in ("parallel", "monolingual"):
            raise ValueError(f"mode={self.mode!r}: expected 'parallel' or 'monolingual'.")
        if (self.mode == "monolingual") != (self.anchor_layer is not None):
            raise ValueError("anchor_layer is needed for the mode 'monolingual', and for no other mode.")
        if self.variant not in ("output", "released"):
            raise ValueError(f"variant={self.variant!r}: expected 'output' or 'released'.")

    def statistics(self) -> tuple[Need, ...]:
        """Sums of the residual stream after every layer, or means of single documents for "released"."""
        return (Statistic("resid_post", "sum"),) if self.variant == "output" else (INPUT, LAST)

    def check_model(self, layers: int, width: int) -> None:
        """Refuse a layer, or a dimension to leave out, that the model lacks."""
        for layer in (self.layer, self.anchor_layer):
            self._place(0 if layer is None else layer, layers)
        self._excluded(width)

    def score(self, statistics: Statistics) -> NeuronScores:
        """|difference of means| in the chosen layer; -inf in other layers and where it is 0."""
        check_languages(statistics.languages)
        layers = statistics.tokens.shape[1]
        layer = self._place(self.layer, layers)
        size = self._difference(statistics, layer, layers).abs()
        size[:, list(self._excluded(size.shape[1]))] = 0
        scores = torch.full((len(size), layers, size.shape[1]), -torch.inf, dtype=torch.float64)
        scores[:, layer] = size.where(size > 0, -torch.inf)
        return NeuronScores(statistics.languages, {"resid": scores}, repr(self))

    def _difference(self, statistics: Statistics, layer: int, layers: int) -> Float[Tensor, "language unit"]:
        means = stream_means(statistics, layer, self.variant)
        if self.anchor_layer is not None:
            return stream_means(statistics, self._place(self.anchor_layer, layers), self.variant) - means
        if self.anchor is None:
            others = [torch.cat([means[:place], means[place + 1 :]]).mean(0) for place in range(len(means))]
            return means - torch.stack(others)
        if self.anchor not in statistics.languages:
            raise KeyError(f"no language {self.anchor!r}; the languages are {list(statistics.languages)}.")
        return means[statistics.languages.index(self.anchor)] - means

    def _place(self, layer: int, layers: int) -> int:
        if not -layers <= layer < layers:
            raise ValueError(f"layer {layer}: the model has the layers 0 to {layers - 1}.")
        return layer % layers

    def _excluded(self, width: int) -> tuple[int, ...]:
        beyond = [each for each in self.exclude if not 0 <= each < width]
        if beyond:
            raise ValueError(f"exclude={beyond}: the residual stream has the dimensions 0 to {width - 1}.")
        return self.exclude

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest scores of each language in the compared layer."""
        width = scores.values["resid"].shape[2]
        count = self.count if isinstance(self.count, int) else count_of(self.count, width)
        return highest_each(scores, "resid", count)
