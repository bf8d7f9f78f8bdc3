"""Sharing Matters: which neurons the same content uses in all languages, in some, in one, or in none."""

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
PRODUCT = DocumentValues("mlp_post", "last")  # what multiplies a row of the down projection
CHOICES = {"active": ("gate", "product", "abs"), "position": ("last", "any")}
LEAST_CORRELATION = 0.3  # of lengths in two languages; the demo's short sentences have 0.32 to 0.6, news 0.9
LEVEL = 0.01  # of all languages together, at which parallel text is refused, or text that is not is taken as such
SHIFTS = (-3, -2, -1, 1, 2, 3)  # lines missing or too many that are looked for


def members(count: Int[Tensor, "item unit"], languages: int) -> Bool[Tensor, "type item unit"]:
    """Which neurons have which of `TYPES` in which item, by the number of languages they are active in."""
    return torch.stack([count == languages, (count > 1) & (count < languages), count == 1, count == 0])


def check_lengths(each: Mapping[str, Int[np.ndarray, "document"]]) -> None:
    """Refuse items whose numbers of tokens contradict that they say the same in every language.

    Of translations, the long ones are long in every language. A language is refused where the rank correlation of
    its lengths with the others' mean rank is significantly below what translations with `LEAST_CORRELATION` between two
    languages would have; or where it is not significantly above 0, but is once its items are moved by up to three
    places. Both by Fisher's z, at `LEVEL` for all languages (and places) together. Few items can contradict little:
    where they neither contradict nor agree, a warning says that it cannot be told. A language whose lengths are all the
    same is not judged.

    Raises:
        DoesNotApply: The items are not parallel.
    """
    lengths = pd.DataFrame(dict(each))
    lengths = lengths.loc[:, lengths.nunique() > 1]
    if lengths.shape[1] < 2 or len(lengths) <= max(SHIFTS) + 3:
        return
    others = lengths.shape[1] - 1
    least = LEAST_CORRELATION * math.sqrt(others / (1 + (others - 1) * LEAST_CORRELATION))  # of a mean of so many
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
            f"the {len(lengths)} items do not look parallel: between translations the long ones are long in every "
            f"language, but the rank correlation of lengths with the other languages is {apart} (expected about "
            f"{least:.2f} or more). Document i must be the same text in each language: check that no line is missing "
            "or out of order, or give check_parallel=False if the items are parallel all the same."
        )
    if unsure:
        warnings.warn(
            f"{len(lengths)} items are too few, or their lengths too much alike, to tell whether those of {unsure} are "
            "parallel to the others. Document i must be the same text in each language.",
            stacklevel=3,
        )


def _together(lengths: pd.DataFrame, label: str, shift: int = 0) -> tuple[float, float]:
    """Fisher's z of the rank correlation with the others' mean rank, once moved by so many places; its error."""
    own: Any = lengths[label].shift(shift)
    others: Any = lengths.drop(columns=label).rank().mean(axis=1)
    value = own.rank().corr(others.where(own.notna()).rank())
    return math.atanh(min(max(value, -0.999999), 0.999999)), math.sqrt(1.06 / (len(lengths) - abs(shift) - 3))


@dataclass(frozen=True)
class Sharing:
    """Neurons that are active in one language only, when all languages say the same.

    Document i of every language is item i. In one item, a neuron is all-shared when it is active in all languages,
    partial-shared when in several, specific when in one, non-activated when in none. Its score for a language is the
    share of items in which it is specific to that language.

    Attributes:
        rate: Share of all neurons, divided evenly among the languages and rounded; only neurons that are specific
            to the language in some item.
        active: What must exceed the threshold: "gate" act(gate), "product" the input m of the down projection, "abs"
            its size |m|. Without a gate, the first two are the same.
        threshold: The comparison is strict.
        position: "last": at the last token. "any": at any token but the separator in front.
        check_parallel: Refuse items whose lengths do not go together between languages.

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
                'active="abs" with position="any" cannot be had: of the tokens of a document the largest value is '
                'kept, not the largest size. Use active="product", or position="last".'
            )

    @property
    def need(self) -> DocumentValues:
        """The values that decide whether a neuron is active."""
        site = "mlp_act" if self.active == "gate" else "mlp_post"
        return DocumentValues(site, "last") if self.position == "last" else DocumentValues(site, "maximum", True)

    def statistics(self) -> tuple[DocumentValues, ...]:
        """Values of single documents: what decides, and m at the last token for the contributions."""
        return tuple(dict.fromkeys((self.need, PRODUCT)))

    def check(self, statistics: Statistics) -> None:
        """Refuse text that cannot be compared item by item.

        Raises:
            DoesNotApply: Fewer than two languages, different numbers of documents, or items that do not look parallel.
        """
        lengths = statistics.documents("length", 0)
        self.check_text({label: lengths[label][:, 0].long().numpy() for label in statistics.languages})

    def check_text(self, lengths: Mapping[str, Int[np.ndarray, "document"]]) -> None:
        """The same from the numbers of tokens of each language's documents.

        Raises:
            DoesNotApply: As `check`.
        """
        check_languages(tuple(lengths))
        items = {label: len(each) for label, each in lengths.items()}
        if len(set(items.values())) > 1:
            raise DoesNotApply(
                f"sharing compares the same item in every language, but the numbers of documents differ: {items}. "
                "Give parallel text: document i of each language a translation of the same, none left out."
            )
        if self.check_parallel:
            check_lengths(lengths)

    def fires(self, statistics: Statistics, layer: int) -> Bool[Tensor, "language item unit"]:
        """Which neurons of a layer are active, in the order of `statistics.languages`."""
        values = statistics.documents(self.need.key, layer)
        ordered = (values[label].abs() if self.active == "abs" else values[label] for label in statistics.languages)
        return torch.stack([each > self.threshold for each in ordered])

    def score(self, statistics: Statistics) -> NeuronScores:
        """The share of items in which a neuron is specific to a language; -inf where it never is."""
        self.check(statistics)
        layers = []
        for layer in range(statistics.tokens.shape[1]):
            fires = self.fires(statistics, layer)
            layers.append((fires & (fires.sum(0) == 1)).double().mean(1))
        share = torch.stack(layers, dim=1)
        return NeuronScores(statistics.languages, {"mlp": share.where(share > 0, -torch.inf)}, repr(self))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """Each language's highest scores over all layers, as many for each; a neuron may belong to several."""
        return highest_share(scores, "mlp", self.rate)
