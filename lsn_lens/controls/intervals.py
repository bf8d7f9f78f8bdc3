"""Intervals on effects: a bootstrap over hold-out documents, with the same draws for every method."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import norm, t

from lsn_lens.evaluation.baseline import HeldOut, Measured
from lsn_lens.evaluation.bootstrap import percentile_interval
from lsn_lens.evaluation.by_document import FEW_DOCUMENTS
from lsn_lens.evaluation.verdict import UNITS

REPLICATES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Certainty:
    """The result of `certainty`.

    Attributes:
        table: One row per method and language, see `certainty`.
        hurt_most: By method and language, the replicates in which the own language is hurt most, in nats and in bits.
        surely: The replicates in which the in-language loss increase and its distance to the worst other exceed 0 by at
            least the distance from the estimate to its lower bound.
        documents: The smallest number of documents of a language.
    """

    table: pd.DataFrame
    hurt_most: Mapping[tuple[str, str], Bool[np.ndarray, "replicate"]]
    surely: Mapping[tuple[str, str], Bool[np.ndarray, "replicate"]]
    documents: int

    def interval_of_count(self, keys: Iterable[tuple[str, str]], *, surely: bool) -> tuple[float, float]:
        """The interval of the number of these methods' languages that are (surely) hurt most."""
        drawn = self.surely if surely else self.hurt_most
        if self.documents < FEW_DOCUMENTS:
            return float("nan"), float("nan")
        counts = sum((drawn[key].astype(float) for key in keys), np.zeros(REPLICATES))
        low, high = percentile_interval(np.asarray(counts), self.documents, CONFIDENCE)
        return float(low), float(high)


def certainty(text: HeldOut, measured: Measured, *, seed: int = 0) -> Certainty:
    """Intervals on loss increases, by drawing documents of each language with replacement.

    All losses of one document, with and without intervention and under all sets, are drawn together.

    Args:
        text: The text of the measurements.
        measured: All languages, under each set's units of each language.
        seed: Seed of the draws.

    Returns:
        Its table has one row per set (`method`) and `language`: `own_rise_low`, `own_rise_high` (nats per token),
        `difference_low`, `difference_high` (in-language loss increase minus the largest other-language one), both also
        with `_bits_per_byte`; `hurt_most_share` (share of replicates in which the in-language loss increase is positive
        and the largest, in nats and in bits), `surely_hurt_most` (all four lower bounds are above 0), `documents` (of
        the language itself). Missing, or False, if some language has fewer than 5 documents. Bounds are expanded
        percentile intervals at 95 %, of as many draws as the language with the fewest documents has. The measured
        difference is too low on average, so its upper bound is raised by `excess_of_largest`.

    Source: Efron and Tibshirani 1993; intervals as `bootstrap.percentile_interval`. The raised bound is ours.
    """
    documents = {label: len(tokens) for label, tokens in measured.tokens.items()}
    fewest, rates = min(documents.values()), text.bits_per_nat
    enough = fewest >= FEW_DOCUMENTS
    drawn = drawn_rises(measured, document_draws(measured.tokens, seed)) if enough else {}
    rows, most, surely = [], {}, {}
    for method, language in dict.fromkeys((method, off) for method, off, _ in measured.rises):
        others = [on for name, off, on in measured.rises if (name, off) == (method, language) and on != language]
        row: dict[str, Any] = {"method": method, "language": language}
        holds = [np.full(REPLICATES, enough), np.full(REPLICATES, enough)]
        for ending in UNITS if enough else ():
            rises = {on: drawn[method, language, on] * (rates[on] if ending else 1) for on in (language, *others)}
            own = rises[language]
            apart = own - np.max([rises[on] for on in others], axis=0)  # NaN where one is
            excess = excess_of_largest({on: rises[on] for on in others}, documents)
            for name, values, raised in (("own_rise", own, 0.0), ("difference", apart, excess)):
                low, high = _interval(values, fewest)
                row |= {f"{name}{ending}_low": low, f"{name}{ending}_high": high + raised}
                margin = _point(measured, method, language, others, name, rates if ending else {}) - low
                holds = [holds[0] & (values > 0), holds[1] & (values - margin > 0)]
        most[method, language], surely[method, language] = holds
        bounds = [row[f"{name}{ending}_low"] for name in ("own_rise", "difference") for ending in UNITS if enough]
        row["hurt_most_share"] = float(holds[0].mean()) if enough else float("nan")
        row["surely_hurt_most"] = bool(bounds) and all(bound > 0 for bound in bounds)
        rows.append(row | {"documents": documents[language]})
    return Certainty(pd.DataFrame(rows), most, surely, fewest)


def document_draws(
    tokens: Mapping[str, Float[np.ndarray, "_"]], seed: int = 0
) -> dict[str, Float[np.ndarray, "replicate _"]]:
    """How often each document of a language is drawn; depends only on the place of the language and on the seed."""
    weights = {}
    for place, (label, each) in enumerate(tokens.items()):
        count = len(each)
        draws = np.random.default_rng([seed, place]).multinomial(count, np.full(count, 1 / count), size=REPLICATES)
        weights[label] = draws.astype(float)
    return weights


def drawn_rises(
    measured: Measured, draws: Mapping[str, Float[np.ndarray, "replicate _"]]
) -> dict[tuple[str, str, str], Float[np.ndarray, "replicate"]]:
    """Loss increases per token of drawn documents."""
    totals = {label: draws[label] @ tokens for label, tokens in measured.tokens.items()}
    return {key: (draws[key[2]] @ rises) / totals[key[2]] for key, rises in measured.rises.items()}


def excess_of_largest(drawn: Mapping[str, Float[np.ndarray, "replicate"]], documents: Mapping[str, int]) -> float:
    """The most by which the largest of some languages' measured values is too high on average.

    The largest of noisy values is partly the largest noise. With means m and measured values x, max(x) is at most
    max(m) + max(x - m); so the bound is the mean of the largest deviation. It is reached where all means are equal.

    Args:
        drawn: Values on drawn documents, by language.
        documents: Number of documents, by language.

    Returns:
        The bound, 0 for a single language; NaN where a value is, and where a language has a single document.
    """
    if any(documents[label] < 2 for label in drawn):
        return math.nan
    scales = {label: math.sqrt(documents[label] / (documents[label] - 1)) for label in drawn}
    away = [(each - each.mean()) * scales[label] for label, each in drawn.items()]
    return float(np.max(away, axis=0).mean()) if len(away) > 1 else 0.0 * float(away[0].mean())


@dataclass(frozen=True)
class Spread:
    """How far a value varies with the documents that it was measured on.

    Attributes:
        error: Standard error.
        freedom: Degrees of freedom of the standard error.
    """

    error: float
    freedom: float

    def interval(self, value: float, tail: float = (1 - CONFIDENCE) / 2) -> tuple[float, float]:
        """Student's t interval with the probability `tail` beyond each end; NaN below 4 degrees of freedom."""
        if not self.freedom >= FEW_DOCUMENTS - 1:
            return math.nan, math.nan
        reach = self.error * float(t.isf(tail, self.freedom))
        return value - reach, value + reach


def spread(values: Float[np.ndarray, "replicate"], draws: Mapping[str, Float[np.ndarray, "replicate _"]]) -> Spread:
    """The spread of a value that depends on the documents of several languages.

    Each language adds its own variance: of n documents, with n - 1 degrees of freedom. Few documents in each of many
    languages so give a usable interval, unless one language alone decides.

    Args:
        values: The value on each replicate of `document_draws`.
        draws: The documents drawn, by language.

    Returns:
        The standard error (each language's variance times n / (n - 1), as a bootstrap divides by n) and its degrees of
        freedom; NaN for values that are not finite, and where a language has a single document.

    Source: Efron 2014 (variances from the covariance of replicates with the draws), Welch and Satterthwaite (degrees of
    freedom of a sum of variances).
    """
    away = values - values.mean()
    if not np.isfinite(away).all() or min(each.shape[1] for each in draws.values()) < 2:
        return Spread(math.nan, math.nan)
    variance, parts = float((away**2).mean()), []
    for each in draws.values():
        n, covariances = each.shape[1], (each - 1).T @ away / len(values)
        noise = (n - 1) * variance / len(values)  # of the squares, as replicates are finite
        parts.append((max(float((covariances**2).sum()) - noise, 0.0), n - 1))
    shares = [(each / sum(part for part, _ in parts), freedom) for each, freedom in parts if each]
    grown = [(share * (freedom + 1) / freedom, freedom) for share, freedom in shares]
    total = sum(each for each, _ in grown)
    freedom = total**2 / sum(each**2 / freedom for each, freedom in grown) if grown else math.inf
    return Spread(math.sqrt(variance * total), freedom)


def tail_of_all_pairs(values: Float[np.ndarray, "item replicate"]) -> float:
    """The probability to leave beyond each end, so that the intervals of all pairs' differences hold together.

    Source: the studentised maximum over all pairs (Tukey), from the replicates; 0.025 for a single pair.
    """
    largest = np.zeros(values.shape[1])
    pairs = list(combinations(values, 2))
    for one, other in pairs:
        away = (one - other) - (one - other).mean()
        size = float(away.std())
        largest = np.maximum(largest, np.abs(away) / size if size else 0.0)
    single = (1 - CONFIDENCE) / 2
    return min(single, float(norm.sf(np.quantile(largest, CONFIDENCE)))) if len(pairs) > 1 else single


def _interval(values: Float[np.ndarray, "replicate"], draws: int) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    low, high = percentile_interval(values, draws, CONFIDENCE)
    return float(low), float(high)


def _point(
    measured: Measured, method: str, language: str, others: list[str], name: str, rates: Mapping[str, float]
) -> float:
    """The in-language loss increase, or its distance to the worst other, on all documents."""

    def rise(on: str) -> float:
        return float(measured.rises[method, language, on].sum() / measured.tokens[on].sum()) * rates.get(on, 1.0)

    own = rise(language)
    return own if name == "own_rise" else own - float(np.max([rise(on) for on in others]))
