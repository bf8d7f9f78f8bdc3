"""Average precision: units whose mean over a sentence separates one language from all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.methods.base import check_languages, check_shares
from lsn_lens.methods.selection import DECIMALS, best_first, best_units, count_of
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import DocumentValues, Need, Statistic
from lsn_lens.statistics.sums import Statistics

BASES = ("q", "k", "v", "attn_out", "mlp_pre", "mlp_up", "mlp_out")  # sites and bases at once
VALUES = 1 << 22  # responses ranked at once, so that temporaries stay small
CONSTANT = 1e-6  # a spread below this share of the largest absolute value is the rounding of a mean


def average_precisions(responses: Sequence[Float[Tensor, "_ unit"]]) -> Float[Tensor, "language unit"]:
    """Average precision of each unit as a classifier of each language against all other languages.

    Args:
        responses: Responses per language, one row per sentence. Every language needs at least one sentence.

    Returns:
        In (0, 1]: the mean over the language's sentences of the share that the language has among all sentences
        whose response is at least as high. Equal responses so share one threshold; nothing is interpolated.
    """
    step = max(1, VALUES // sum(map(len, responses)))
    chunks = [
        _rank([each[:, first : first + step].T.contiguous() for each in responses])
        for first in range(0, responses[0].shape[1], step)
    ]
    return torch.cat(chunks, dim=1).round(decimals=DECIMALS)


def _rank(responses: Sequence[Float[Tensor, "unit _"]]) -> Float[Tensor, "language unit"]:
    everyone = torch.cat(list(responses), dim=1).sort().values
    precisions = []
    for each in responses:
        own = each.sort().values
        own_above, all_above = (among.shape[1] - torch.searchsorted(among, own) for among in (own, everyone))
        precisions.append((own_above.double() / all_above).mean(1))
    return torch.stack(precisions)


def average_precision_bounds(positives: int, sentences: int) -> tuple[float, float, float]:
    """Average precision of three rankings: positives last (the lowest), all tied, positives first (the highest).

    Args:
        positives: Number of sentences of the language.
        sentences: Number of sentences of all languages.
    """
    others = sentences - positives
    return sum(k / (others + k) for k in range(1, positives + 1)) / positives, positives / sentences, 1.0


def _need(basis: str, skip_bos: bool, optional: bool = False) -> DocumentValues:
    return DocumentValues(basis, "mean", skip_bos, optional)


def _was_collected(statistics: Statistics, need: DocumentValues) -> bool:
    try:
        statistics.documents(need.key, 0)
    except KeyError:
        return False
    return True


def bases_in(statistics: Statistics, bases: tuple[str, ...] | None, skip_bos: bool) -> list[str]:
    """The bases asked for, else the run's bases, else all bases, so that reading one reports what is missing."""
    if bases is not None:
        return [basis for basis in BASES if basis in bases]
    return [basis for basis in BASES if _was_collected(statistics, _need(basis, skip_bos))] or list(BASES)


def responses_of(statistics: Statistics, basis: str, layer: int, skip_bos: bool) -> list[Float[Tensor, "_ unit"]]:
    """Responses per language in one layer, one row per sentence, in the order of the languages."""
    read = statistics.documents(_need(basis, skip_bos).key, layer)
    empty = [label for label in statistics.languages if not len(read.get(label, ()))]
    if empty:
        raise DoesNotApply(f"no sentences of {empty}: give text for these languages, or leave them out.")
    return [read[label] for label in statistics.languages]


def _is_constant(responses: Sequence[Float[Tensor, "_ unit"]]) -> Bool[Tensor, "unit"]:
    low = torch.stack([each.amin(0) for each in responses]).amin(0)
    high = torch.stack([each.amax(0) for each in responses]).amax(0)
    return high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())


def positive_median(
    statistics: Statistics, bases: tuple[str, ...] | None = None, *, skip_bos: bool = False
) -> dict[str, Float[Tensor, "language layer unit"]]:
    """Median response over each language's sentences, as values for `lsn.set_to`.

    Args:
        statistics: Statistics of a run that was collected with "average_precision".
        bases: Some of `BASES`; None takes all bases of the run.
        skip_bos: Whether the run's responses leave out the leading BOS token, see `AveragePrecision`.

    Returns:
        Basis -> medians; `{basis: each[i] for basis, each in medians.items()}` are the i-th language's values.
        For an even number of sentences, the median is the mean of the two middle responses.

    Raises:
        KeyError: The run has no such responses.
        ValueError: A language without sentences.

    Source: Kojima et al. 2024 (NAACL, arXiv 2404.02431), released code, which sets a unit to this number at every
    position: a median over sentence means is applied to single tokens.
    """
    return {
        basis: torch.stack(
            [
                torch.stack([_median(each) for each in responses_of(statistics, basis, layer, skip_bos)])
                for layer in range(statistics.tokens.shape[1])
            ],
            dim=1,
        )
        for basis in bases_in(statistics, bases, skip_bos)
    }


def _median(values: Float[Tensor, "sentence unit"]) -> Float[Tensor, "unit"]:
    values = values.sort(0).values
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of a unit's mean over a sentence, as a classifier of one language against all others.

    Units are all outputs of all linear layers but the unembedding. For each language, the units with the highest
    average precision are chosen (high values mark the language), those with the lowest (low values do), or both halves.

    Attributes:
        side: "top", "bottom", or "both": half of the units highest, half lowest, an odd unit highest.
        rate: Share of all units to choose per language.
        count: Number of units to choose per language, in place of `rate`. The paper's main setting is 2000.
        skip_bos: Leave out the leading BOS token of each sentence. The paper counts it.
        bases: Some of "q", "k", "v", "attn_out", "mlp_pre", "mlp_up", "mlp_out". None takes all outputs that the
            model has; the model must have every named basis.

    Source: Kojima et al. 2024 (NAACL, arXiv 2404.02431), with the released code. The rate is ours, and so are the
    order of ties (lower layer, then the order of `bases` above, then lower unit) and that constant units are left out.
    """

    side: Literal["both", "top", "bottom"] = "both"
    rate: float = 0.01
    count: int | None = None
    skip_bos: bool = False
    bases: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_shares(rate=self.rate)
        if self.side not in ("both", "top", "bottom"):
            raise ValueError(f'side={self.side!r}: expected "both", "top" or "bottom".')
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}: expected a number of units, 1 or more, or None.")
        bases = self.bases
        if bases is not None and not (
            isinstance(bases, tuple) and bases and len(set(bases)) == len(bases) and set(bases) <= set(BASES)
        ):
            raise ValueError(f"bases={bases!r}: expected None, or a tuple with some of {BASES}, each once.")

    def statistics(self) -> tuple[Need, ...]:
        """Responses of single sentences, and sums for ablation to means."""
        optional = self.bases is None
        bases = [basis for basis in BASES if self.bases is None or basis in self.bases]
        return (
            *(_need(basis, self.skip_bos, optional) for basis in bases),
            *(Statistic(basis, "sum", optional) for basis in bases),
        )

    def score(self, statistics: Statistics) -> NeuronScores:
        """Average precision, for every `side`: 1 separates the language perfectly.

        A score far below the share of the language's sentences (the score of tied responses) means that *low* values
        mark the language. A constant unit has -inf.

        Raises:
            KeyError: The run has no such responses.
            ValueError: Fewer than two languages, or a language without sentences.
        """
        check_languages(statistics.languages)
        values = {}
        for basis in bases_in(statistics, self.bases, self.skip_bos):
            layers = []
            for layer in range(statistics.tokens.shape[1]):
                responses = responses_of(statistics, basis, layer, self.skip_bos)
                layers.append(average_precisions(responses).masked_fill(_is_constant(responses), -torch.inf))
            values[basis] = torch.stack(layers, dim=1)
        return NeuronScores(statistics.languages, values, repr(self))

    def order(self, scores: NeuronScores) -> dict[str, Float[Tensor, "language layer unit"]]:
        """The side's precisions, highest or lowest first; for "both", the highest and the lowest in turn."""
        bases = [basis for basis in BASES if basis in scores.values]
        precision = torch.cat([scores.values[basis] for basis in bases], dim=-1)
        ranks = torch.stack([_order(each, self.side) for each in precision])
        return dict(zip(bases, ranks.split([scores.values[each].shape[-1] for each in bases], dim=-1), strict=True))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The highest or lowest scores of each language over all layers and bases.

        `notes` counts, per language, the units left out whose precision equals that of the last unit chosen.
        """
        order = self.order(scores)
        total = sum(values[0].numel() for values in order.values())
        count = self.count if self.count is not None else count_of(self.rate, total)
        masks = best_units(order, [count] * len(scores.languages))
        precision, ranks, chosen = (
            torch.cat([each[basis] for basis in order], dim=-1) for each in (scores.values, order, masks)
        )
        ties = map(_ties, precision, ranks, chosen)
        notes = {"asked": count, "ties_left_out": dict(zip(scores.languages, ties, strict=True))}
        return NeuronSet(scores.languages, masks, scores.method, notes)


def _order(precision: Float[Tensor, "layer unit"], side: str) -> Float[Tensor, "layer unit"]:
    """The negated place of each unit: 0 for the first; "both" takes the first of the highest, of the lowest, and on."""
    places = torch.full((2, precision.numel()), torch.inf, dtype=torch.float64)
    for row, values in zip(places, (precision, (-precision).where(precision.isfinite(), -torch.inf)), strict=True):
        best = best_first(values)
        row[best] = torch.arange(len(best), dtype=torch.float64)
    top, bottom = places
    return -{"top": top, "bottom": bottom, "both": torch.minimum(2 * top, 2 * bottom + 1)}[side].view_as(precision)


def _ties(
    precision: Float[Tensor, "layer unit"], order: Float[Tensor, "layer unit"], chosen: Bool[Tensor, "layer unit"]
) -> int:
    """The number of units left out with the precision of one of the last two chosen (one of each side)."""
    last = order[chosen].sort().values[:2]
    cuts = precision[chosen & torch.isin(order, last)]
    return int((torch.isin(precision, cuts) & ~chosen).sum())
