"""Intervals on effects: a bootstrap over hold-out documents, with the same draws for every method."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

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
        percentile intervals at 95 %, of as many draws as the language with the fewest documents has.

    Source: Efron and Tibshirani 1993; intervals as `bootstrap.percentile_interval`.
    """
    documents = {label: len(tokens) for label, tokens in measured.tokens.items()}
    fewest, rates = min(documents.values()), text.bits_per_nat
    enough = fewest >= FEW_DOCUMENTS
    drawn = _replicates(measured, seed) if enough else {}
    rows, most, surely = [], {}, {}
    for method, language in dict.fromkeys((method, off) for method, off, _ in measured.rises):
        others = [on for name, off, on in measured.rises if (name, off) == (method, language) and on != language]
        row: dict[str, Any] = {"method": method, "language": language}
        holds = [np.full(REPLICATES, enough), np.full(REPLICATES, enough)]
        for ending in UNITS if enough else ():
            rises = {on: drawn[method, language, on] * (rates[on] if ending else 1) for on in (language, *others)}
            own = rises[language]
            apart = own - np.max([rises[on] for on in others], axis=0)  # NaN where one is
            for name, values in (("own_rise", own), ("difference", apart)):
                low, high = _interval(values, fewest)
                row |= {f"{name}{ending}_low": low, f"{name}{ending}_high": high}
                margin = _point(measured, method, language, others, name, rates if ending else {}) - low
                holds = [holds[0] & (values > 0), holds[1] & (values - margin > 0)]
        most[method, language], surely[method, language] = holds
        bounds = [row[f"{name}{ending}_low"] for name in ("own_rise", "difference") for ending in UNITS if enough]
        row["hurt_most_share"] = float(holds[0].mean()) if enough else float("nan")
        row["surely_hurt_most"] = bool(bounds) and all(bound > 0 for bound in bounds)
        rows.append(row | {"documents": documents[language]})
    return Certainty(pd.DataFrame(rows), most, surely, fewest)


def _replicates(measured: Measured, seed: int) -> dict[tuple[str, str, str], Float[np.ndarray, "replicate"]]:
    """Loss increases per token of drawn documents; the draws depend only on the language and the seed."""
    weights = {}
    for place, (label, tokens) in enumerate(measured.tokens.items()):
        count = len(tokens)
        draws = np.random.default_rng([seed, place]).multinomial(count, np.full(count, 1 / count), size=REPLICATES)
        weights[label] = draws.astype(float)
    totals = {label: weights[label] @ tokens for label, tokens in measured.tokens.items()}
    return {key: (weights[key[2]] @ rises) / totals[key[2]] for key, rises in measured.rises.items()}


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
