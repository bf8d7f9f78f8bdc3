"""One rule for all verdicts: which language is hurt most, p-values against random sets, and warnings.

NaN is never skipped: another language with a NaN loss counts as hurt most, a random set with NaN as reaching the loss
increase, and an in-language loss increase that is not finite passes nothing.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

LEVEL = 0.05  # of a p-value against random sets, and of an interval that excludes 0
RANDOM_SETS = 39  # by default: the smallest p is then 1/40, half of LEVEL
FEW_NEURONS = 10
COLLAPSE = 3.0  # nats: the loss increase from which on the model is broken rather than changed
UNITS = {"": "nll_change", "_bits_per_byte": "bits_per_byte_change"}  # ending of a column -> column of a loss table
# relative to the unchanged loss nats and bits are equal: their ratio is fixed for a language's text
SCALES = {**UNITS, "_relative": "nll_relative_change"}
NO_NEURONS = "no neurons"
FEW = f"fewer than {FEW_NEURONS} neurons"
NOT_FINITE = "the loss is not finite"


def p_value(rise: float, drawn: Iterable[float]) -> float:
    """The p-value against random sets: (1 + sets with at least this loss increase) / (1 + all sets), in (0, 1].

    Ties and random sets with NaN count as reaching it. 1 if the loss increase is not finite.

    Source: Phipson and Smyth 2010 (arXiv 1603.05766), the p-value of a Monte Carlo test.
    """
    values = np.asarray(list(drawn), dtype=float)
    as_much = ~(values < rise) if math.isfinite(rise) else np.ones(len(values), dtype=bool)
    return (1 + int(as_much.sum())) / (1 + len(values))


def adjusted(p_values: Iterable[float]) -> Float[np.ndarray, "test"]:
    """Benjamini and Hochberg's adjusted p-values; NaN is no test: it stays NaN and does not count.

    Among the tests at or below a level, the expected share of false ones is at most that level, if tests are
    independent or positively dependent.

    Source: Benjamini and Hochberg 1995.
    """
    values = np.asarray(list(p_values), dtype=float)
    tested = ~np.isnan(values)
    if tested.any():
        values[tested] = false_discovery_control(values[tested], method="bh")
    return values


def fewest_to_pass(tests: int, seeds: int) -> int:
    """The number of tests that must exceed all of their random sets for any adjusted p-value to reach `LEVEL`."""
    return math.ceil(tests / ((1 + seeds) * LEVEL) - 1e-9)


def own_and_others(by_language: Mapping[str, float], own: str) -> dict[str, Any]:
    """In-language and other-language loss increases under one intervention.

    Returns:
        `own_rise`; `worst_other` (a language with NaN before all others), `worst_other_rise`, `mean_other_rise` (NaN if
        one is NaN), and `own_rank` (1: no other language has as large an increase; ties and NaN count against it).

    Raises:
        ValueError: The language is missing, or no other language is there.
    """
    others = {label: rise for label, rise in by_language.items() if label != own}
    if own not in by_language or not others:
        raise ValueError(
            f"rises of {list(by_language)}: expected that of {own!r}, whose units are changed, and those of others. "
            "Measure with evaluate='all'."
        )
    rise = by_language[own]
    worst = max(others, key=lambda label: math.inf if math.isnan(others[label]) else others[label])
    return {
        "own_rise": float(rise),
        "worst_other": worst,
        "worst_other_rise": float(others[worst]),
        "mean_other_rise": float(np.mean(list(others.values()))),
        "own_rank": 1 + sum(not rise > each for each in others.values()),
    }


def is_hurt_most(own: float, worst: float) -> bool:
    """Whether the in-language loss increase is positive and the largest; False if one is not finite."""
    return bool(math.isfinite(own) and own > 0 and own > worst)


def rises(changes: pd.DataFrame, own: str, random: pd.DataFrame | None = None) -> dict[str, Any]:
    """The loss increases of one intervention: in-language, other-language, and under random sets.

    Args:
        changes: Rows of a loss table, one per language (`evaluated`).
        own: The language whose units are changed.
        random: Rows of random sets, evaluated on the own language.

    Returns:
        The keys of `own_and_others` in nats per token, with `_bits_per_byte` in bits per byte (tokens differ between
        languages), and with `_relative` as a share of the unchanged loss; each scale can have another `worst_other`.
        `hurt_most_in` ("both", "nats", "bits", "neither": the units in which the own language is hurt most),
        `own_hurt_most` (in both). With random sets, the keys of `beside_random`: the rank among these sets is equal in
        all scales.

    Errors are those of `own_and_others`.
    """
    values: dict[str, Any] = {}
    for ending, column in SCALES.items():
        row = own_and_others(dict(zip(changes["evaluated"], changes[column], strict=True)), own)
        values |= {f"{key}{ending}": value for key, value in row.items()}
    most = [is_hurt_most(values[f"own_rise{ending}"], values[f"worst_other_rise{ending}"]) for ending in UNITS]
    values |= {"hurt_most_in": hurt_most_in(*most), "own_hurt_most": all(most)}
    if random is not None:
        values |= beside_random(values["own_rise"], random["nll_change"], int(changes["units"].iloc[0]))
    return values


def beside_random(rise: float, drawn: Iterable[float], units: int) -> dict[str, Any]:
    """A loss increase compared with those of random sets; one NaN makes the mean NaN.

    Args:
        rise: Loss increase under the set.
        drawn: Loss increase under each random set.
        units: Number of units of the set.

    Returns:
        `random_mean`, `random_sd`, `z` (NaN if the random sets do not differ), `p` (`p_value`, in (0, 1]; NaN without
        units, which is no test), `seeds` (number of random sets).
    """
    values = np.asarray(list(drawn), dtype=float)
    mean = float(np.mean(values)) if len(values) else math.nan
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {
        "random_mean": mean,
        "random_sd": deviation,
        "z": (rise - mean) / deviation if deviation > 0 else math.nan,
        "p": p_value(rise, values) if units else math.nan,
        "seeds": len(values),
    }


def hurt_most_in(nats: bool, bits: bool) -> str:
    """The units of loss in which it holds: "both", "nats", "bits" or "neither"."""
    return {(True, True): "both", (True, False): "nats", (False, True): "bits", (False, False): "neither"}[nats, bits]


def few_neurons(units: int) -> bool:
    """Whether there are units, but so few that one may decide."""
    return 0 < units < FEW_NEURONS


def doubts(row: Mapping[Any, Any]) -> list[str]:
    """The warnings about a row, from those `REASONS` whose columns it has."""
    if not row["units"]:
        return [NO_NEURONS]
    return [words for words, needed, holds in REASONS if all(name in row for name in needed) and holds(row)]


def _unfinished(row: Mapping[Any, Any]) -> bool:
    return not (math.isfinite(row["own_rise"]) and math.isfinite(row["worst_other_rise"]))


def _like_random(row: Mapping[Any, Any], name: str) -> bool:
    """By `q`, which is corrected for many tests; by `p` only where the row has no `q`."""
    return bool(row.get("seeds", 1)) and not row[name] <= LEVEL and (name == "q" or "q" not in row)


# warning, columns that it needs, condition
REASONS = (
    (NOT_FINITE, ("own_rise", "worst_other_rise"), _unfinished),
    (FEW, ("units",), lambda row: few_neurons(row["units"])),
    ("no random sets", ("seeds",), lambda row: not row["seeds"]),
    *(
        (f"not shown to hurt more than random sets ({name} above {LEVEL:g})", (name,), partial(_like_random, name=name))
        for name in ("q", "p")
    ),
    (
        "not hurt, or another language hurt as much or more",
        ("hurt_most_in",),
        lambda row: row["hurt_most_in"] == "neither",
    ),
    (
        "hurt most in nats per token alone: in bits per byte another language is",
        ("hurt_most_in",),
        lambda row: row["hurt_most_in"] == "nats",
    ),
    (
        "hurt most in bits per byte alone: in nats per token another language is",
        ("hurt_most_in",),
        lambda row: row["hurt_most_in"] == "bits",
    ),
    (
        "hurt most, but other documents may say otherwise: the interval of the difference holds 0",
        ("own_hurt_most", "surely_hurt_most", "hurt_most_share"),
        lambda row: row["own_hurt_most"] and not row["surely_hurt_most"] and not math.isnan(row["hurt_most_share"]),
    ),
    (
        "too few documents to say how sure: measure more text",
        ("hurt_most_share",),
        lambda row: math.isnan(row["hurt_most_share"]),
    ),
)


def by_reason(rows: Iterable[Mapping[Any, Any]]) -> dict[str, list[str]]:
    """Each warning of `doubts` with its languages."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for words in doubts(row):
            found.setdefault(words, []).append(row["language"])
    return {words: found[words] for words in (NO_NEURONS, *(words for words, _, _ in REASONS)) if words in found}
