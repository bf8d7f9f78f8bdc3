"""Sharing Matters: neurons that the same content activates in all languages, in some, in one, or in none."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import highest_share
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import DocumentValues
from lsn_lens.statistics.sums import Statistics

TYPES = ("all-shared", "partial-shared", "specific", "non-activated")
PRODUCT = DocumentValues("mlp_post", "last")  # the factor of a row of the down projection
CHOICES = {"active": ("gate", "product", "abs"), "position": ("last", "any")}
LEAST_CORRELATION = 0.3  # between lengths in two languages; the demo's short sentences have 0.32 to 0.6, news 0.9
LEVEL = 0.01  # significance level, for all languages together, of the tests for and against parallel text
SHIFTS = (-3, -2, -1, 1, 2, 3)  # tested numbers of missing or extra lines


def members(count: Int[Tensor, "item unit"], languages: int) -> Bool[Tensor, "type item unit"]:
    """Mask of each neuron's type (`TYPES`) per item, by the number of languages in which the neuron is active."""
    return torch.stack([count == languages, (count > 1) & (count < languages), count == 1, count == 0])


def check_lengths(each: Mapping[str, Int[np.ndarray, "document"]]) -> None:
    """Refuse items whose numbers of tokens contradict parallel text.

    Long items are long in every language if they are translations. A language is refused if the rank correlation of
    its lengths with the others' mean rank is significantly below that of translations with `LEAST_CORRELATION` between
    two languages; or if it is not significantly above 0, but becomes so when its items are shifted by up to three
    positions. Both tests use Fisher's z at `LEVEL` for all languages (and shifts) together. With few items, both
    tests can fail to decide; a warning then says so. A language whose items all have the same length is not tested.

    Raises:
        DoesNotApply: The items are not parallel.
    """
    lengths = pd.DataFrame(dict(each))
    lengths = lengths.loc[:, lengths.nunique() > 1]
    if lengths.shape[1] < 2 or len(lengths) <= max(SHIFTS) + 3:
        return
    others = lengths.shape[1] - 1
    least = LEAST_CORRELATION * math.sqrt(others / (1 + (others - 1) * LEAST_CORRELATION))  # for a mean over all others
    sure, very_sure = (NormalDist().inv_cdf(1 - LEVEL / (others + 1) / tries) for tries in (1, len(SHIFTS)))
    apart, unsure = dict[str, float | str](), list[str]()
    for label in map(str, lengths):
        value, error = _together(lengths, label)
        moved = {shift: _together(lengths, label, shift) for shift in SHIFTS} if value <= sure * error else {}
        shift = max(moved, key=lambda place: moved[place][0], default=0)
        if shift and moved[shift][0] - max(value, 0) > very_sure * moved[shift][1]:
            apart[label] = f"{math.tanh(value):.2f}, but {math.tanh(moved[shift][0]):.2f} if moved by {shift}"
        elif value + sure * error < math.atanh(least):
            apart[label] = round(math.tanh(value), 2)
        elif value <= sure * error:
            unsure.append(label)
    if apart:
        raise DoesNotApply(
            f"the {len(lengths)} items do not look parallel: long items of translated text are long in every "
            f"language, but the rank correlation of lengths with the other languages is {apart} (expected about "
            f"{least:.2f} or more). Document i must be the same text in each language: check that no line is missing "
            "or out of order, or give check_parallel=False if the items are parallel anyway."
        )
    if unsure:
        warnings.warn(
            f"{len(lengths)} items are too few, or their lengths too similar, to tell whether those of {unsure} are "
            "parallel to the others. Document i must be the same text in each language.",
            stacklevel=3,
        )


def _together(lengths: pd.DataFrame, label: str, shift: int = 0) -> tuple[float, float]:
    """Fisher's z of the rank correlation with the others' mean rank, after a shift of the items; and its error."""
    own: Any = lengths[label].shift(shift)
    others: Any = lengths.drop(columns=label).rank().mean(axis=1)
    value = own.rank().corr(others.where(own.notna()).rank())
    return math.atanh(min(max(value, -0.999999), 0.999999)), math.sqrt(1.06 / (len(lengths) - abs(shift) - 3))


@dataclass(frozen=True)
class Sharing:
    """Neurons that are active in one language only, for the same content in all languages.

    Document i of every language is item i. In one item, a neuron is all-shared when it is active in all languages,
    partial-shared when in several, specific when in one, non-activated when in none. Its score for a language is the
    share of items in which it is specific to that language.

    Attributes:
        rate: Share of all neurons, divided evenly among the languages and rounded; only neurons that are specific
            to the language in some item.
        active: The value compared with the threshold: "gate" act(gate), "product" the input m of the down projection,
            "abs" |m|. Without a gate, the first two are the same.
        threshold: A neuron is active if its value is strictly above this.
        position: "last": at the last token. "any": at any token but the leading BOS token.
        check_parallel: Refuse items whose lengths contradict parallel text, see `check_lengths`.

    Source: Wang et al. 2024 (arXiv 2406.09265) and the released notebooks: the four types, strictly above 0, at the
    last token. They are types of a neuron in an item; scores and selection are ours. The notebooks read BLOOMZ only,
    which has no gate; the default for gated models is ours, as in LAPE.
    """

    paired: ClassVar[bool] = True

    rate: float = 0.01
    active: Literal["gate", "product", "abs"] = "gate"
    threshold: float | int = 0.0
    position: Literal["last", "any"] = "last"
    check_parallel: bool = True

    def __post_init__(self) -> None:
        check_shares(rate=self.rate)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {choices}.")
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold}: expected a number, 0 or more.")
        if self.active == "abs" and self.position == "any":
            raise ValueError(
                'active="abs" does not work with position="any": a run keeps the largest value over the tokens of a '
                'document, not the largest absolute value. Use active="product", or position="last".'
            )

    @property
    def need(self) -> DocumentValues:
        """The document values that decide whether a neuron is active."""
        site = "mlp_act" if self.active == "gate" else "mlp_post"
        return DocumentValues(site, "last") if self.position == "last" else DocumentValues(site, "maximum", True)

    def statistics(self) -> tuple[DocumentValues, ...]:
        """Document values: those that decide activity, and m at the last token for the contributions."""
        return tuple(dict.fromkeys((self.need, PRODUCT)))

    def check(self, statistics: Statistics) -> None:
        """Refuse text that cannot be compared item by item.

        Raises:
            DoesNotApply: Fewer than two languages, different numbers of documents, or items that do not look parallel.
        """
        lengths = statistics.documents("length", 0)
        self.check_text({label: lengths[label][:, 0].long().numpy() for label in statistics.languages})

    def check_text(self, lengths: Mapping[str, Int[np.ndarray, "document"]]) -> None:
        """Refuse text that cannot be compared item by item, by the lengths (tokens) of each language's documents.

        Raises:
            DoesNotApply: Different numbers of documents, or items that do not look parallel.
        """
        check_languages(tuple(lengths))
        items = {label: len(each) for label, each in lengths.items()}
        if len(set(items.values())) > 1:
            raise DoesNotApply(
                f"sharing compares the same item in every language, but the numbers of documents differ: {items}. "
                "Give parallel text: document i must be the same text in every language, and none may be missing."
            )
        if self.check_parallel:
            check_lengths(lengths)

    def fires(self, statistics: Statistics, layer: int) -> Bool[Tensor, "language item unit"]:
        """Mask of the active neurons of a layer, in the order of `Statistics.languages`."""
        values = statistics.documents(self.need.key, layer)
        ordered = (values[label].abs() if self.active == "abs" else values[label] for label in statistics.languages)
        return torch.stack([each > self.threshold for each in ordered])

    def score(self, statistics: Statistics) -> NeuronScores:
        """The share of items in which a neuron is specific to a language; -inf if there are none."""
        self.check(statistics)
        layers = []
        for layer in range(statistics.tokens.shape[1]):
            fires = self.fires(statistics, layer)
            alone = fires & (fires.sum(0) == 1)
            layers.append(alone.float().sum(1).double() / alone.shape[1])
        share = torch.stack(layers, dim=1)
        return NeuronScores(statistics.languages, {"mlp": share.where(share > 0, -torch.inf)}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest scores per language over all layers, the same number each; neurons may have several languages."""
        return highest_share(scores, "mlp", self.rate)
