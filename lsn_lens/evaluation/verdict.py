"""What numbers say, by one rule everywhere: who is hurt most, what random sets do as well, and why not to trust it.

NaN is never skipped: another language whose loss is no number counts as hurt most, a random set as one that rises as
much, and an own rise that is not finite passes nothing.
"""

import math
from collections.abc import Iterable, Mapping
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
# relative to the unchanged loss, nats and bits are the same: a language's text has so many bits for each nat
SCALES = {**UNITS, "_relative": "nll_relative_change"}
NO_NEURONS = "no neurons"
FEW = f"fewer than {FEW_NEURONS} neurons"
NOT_FINITE = "the loss is not finite"


def p_value(rise: float, drawn: Iterable[float]) -> float:
    """How often random sets do as much: (1 + those that rise as much or more) / (1 + all), in (0, 1].

    Ties and random sets whose rise is NaN count against. 1 where the rise is not finite.

    Source: Phipson and Smyth 2010 (arXiv 1603.05766), the p-value of a Monte Carlo test.
    """
    values = np.asarray(list(drawn), dtype=float)
    as_much = ~(values < rise) if math.isfinite(rise) else np.ones(len(values), dtype=bool)
    return (1 + int(as_much.sum())) / (1 + len(values))


def adjusted(p_values: Iterable[float]) -> Float[np.ndarray, "test"]:
    """Benjamini and Hochberg's adjusted p-values; NaN is no test: it stays NaN and counts for none.

    Those at or below a level have an expected share of false ones of at most that level, for tests that are independent
    or depend on each other positively.

    Source: Benjamini and Hochberg 1995.
    """
    values = np.asarray(list(p_values), dtype=float)
    tested = ~np.isnan(values)
    if tested.any():
        values[tested] = false_discovery_control(values[tested], method="bh")
    return values


def fewest_to_pass(tests: int, seeds: int) -> int:
    """How many of so many tests must be above all of their random sets for any adjusted p-value to reach `LEVEL`."""
    return math.ceil(tests / ((1 + seeds) * LEVEL) - 1e-9)


def own_and_others(by_language: Mapping[str, float], own: str) -> dict[str, Any]:
    """One language's rise beside the others', from the rises of all under one intervention.

    Returns:
        `own_rise`; `worst_other` (one whose rise is NaN before all others), `worst_other_rise`, `mean_other_rise` (NaN
        if one is), and `own_rank` (1: no language rises as much; ties and NaN count against it).

    Raises:
        ValueError: No rise of the language, or no other language.
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
    """Whether the own loss rises, and more than the worst other one; never where one is no finite number."""
    return bool(math.isfinite(own) and own > 0 and own > worst)


def rises(changes: pd.DataFrame, own: str, random: pd.DataFrame | None = None) -> dict[str, Any]:
    """What one intervention does to the losses: in-language, to the others, and beside random sets.

    Args:
        changes: Rows of a loss table, one for each language (`evaluated`).
        own: Whose units are changed.
        random: Rows of random sets, evaluated on the own language.

    Returns:
        What `own_and_others` says, in nats per token, with `_bits_per_byte` in bits per byte, as tokens differ between
        languages, and with `_relative` as a share of the unchanged loss; each can name another worst language.
        `hurt_most_in` ("both", "nats", "bits", "neither": in which the own language is hurt most), `own_hurt_most`
        (in both). With random sets, what `beside_random` says: the position among them is the same in all scales.

    Raises: as `own_and_others`.
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
    """A rise among those of random sets, one of which that is NaN makes the mean NaN.

    Args:
        rise: Under the set.
        drawn: Under each random set.
        units: How many the set has.

    Returns:
        `random_mean`, `random_sd`, `z` (NaN where the random sets do not differ), `p` (`p_value`, a fraction in (0, 1];
        NaN without units, which is no test), `seeds` (how many random sets).
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
    """In which of the two units."""
    return {(True, True): "both", (True, False): "nats", (False, True): "bits", (False, False): "neither"}[nats, bits]


def few_neurons(units: int) -> bool:
    """Some, but so few that one may decide."""
    return 0 < units < FEW_NEURONS


def doubts(row: Mapping[Any, Any]) -> list[str]:
    """Why not to trust a row, in words: as far as it has the columns that say so, see `REASONS`."""
    if not row["units"]:
        return [NO_NEURONS]
    return [words for words, needed, holds in REASONS if all(name in row for name in needed) and holds(row)]


def _unfinished(row: Mapping[Any, Any]) -> bool:
    return not (math.isfinite(row["own_rise"]) and math.isfinite(row["worst_other_rise"]))


# words, the columns they need, whether they hold
REASONS = (
    (NOT_FINITE, ("own_rise", "worst_other_rise"), _unfinished),
    (FEW, ("units",), lambda row: few_neurons(row["units"])),
    ("no random sets", ("seeds",), lambda row: not row["seeds"]),
    (
        f"no more than random sets do (p above {LEVEL:g})",
        ("p",),
        lambda row: row.get("seeds", 1) and not row.get("q", row["p"]) <= LEVEL,
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
    """The languages that each of the `doubts` holds for."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for words in doubts(row):
            found.setdefault(words, []).append(row["language"])
    return {words: found[words] for words in (NO_NEURONS, *(words for words, _, _ in REASONS)) if words in found}
