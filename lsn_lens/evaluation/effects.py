"""What a `perplexity_table` says: one row a method and language, its random controls, and where to doubt it."""

import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

FEW_NEURONS = 10
CONTROL = re.compile(r"(?P<method>.*) random (?P<seed>\d+)")
RISES = {
    "own_rise": "nll_change",
    "own_rise_bits_per_byte": "bits_per_byte_change",
    "own_rise_perplexity": "perplexity_change",
}


def control_name(method: str, seed: int) -> str:
    """What the set of a method's random control is called in a table: `"lape random 0"`."""
    return f"{method} random {seed}"


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each action, method and language, from the rows of several named sets.

    Args:
        table: From `perplexity_table`, with each method's set and any number of random controls named by
            `control_name`. Methods need all languages evaluated; for controls the own language is enough.

    Returns:
        Columns `action`, `method`, `language`, `neurons`; `own_rise` (nats a token), `own_rise_bits_per_byte`,
        `own_rise_perplexity`; `worst_other` (the other language hurt most), `worst_other_rise`,
        `mean_other_rise`; `random_mean` and `random_max` (the controls' own rise), `random_seeds`,
        `share_above_random` (share of the controls that the own rise exceeds), and `warning`: in words,
        why not to trust the row, "" if nothing speaks against it.

    Raises:
        ValueError: No method in the table, or one that lacks a language.
    """
    rows = _named(table)
    found = rows.loc[rows["seed"].isna()]
    if found.empty:
        raise ValueError(f"the table has no set but controls: {sorted(table['set'].unique())}.")
    random = control_points(table)
    keys = found[["action", "method", "intervened"]].drop_duplicates().itertuples(index=False, name=None)
    summary = pd.DataFrame(
        [_language_row(action, method, language, found, random) for action, method, language in keys]
    )
    return summary.assign(warning=[_warning(row) for row in summary.to_dict("records")])


def own_is_hurt_most(summary: pd.DataFrame) -> pd.Series:
    """For each row of `summarise`, whether the own language is hurt, and more than any other."""
    own = summary.loc[:, "own_rise"]
    return (own > 0) & (own > summary["worst_other_rise"])


def control_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rises behind `random_mean`, one row for each action, method, language and control.

    Returns:
        Columns `action`, `method`, `language`, `seed`, `own_rise` (nats a token).
    """
    rows = _named(table)
    is_own = rows["seed"].notna() & rows["intervened"].eq(rows["evaluated"])
    columns = {
        "action": "action",
        "method": "method",
        "intervened": "language",
        "seed": "seed",
        "nll_change": "own_rise",
    }
    return rows.loc[is_own, list(columns)].set_axis(list(columns.values()), axis=1).reset_index(drop=True)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with an intervention, and columns `method` and `seed` (missing where the set is no control)."""
    rows = table.loc[table["action"].ne("none")]
    parts = [CONTROL.fullmatch(name) for name in rows["set"]]
    methods = [part["method"] if part else name for part, name in zip(parts, rows["set"], strict=True)]
    seeds = [int(part["seed"]) if part else None for part in parts]
    return rows.assign(method=methods, seed=pd.array(seeds, dtype="Int64"))


def _language_row(
    action: str, method: str, language: str, found: pd.DataFrame, random: pd.DataFrame
) -> dict[str, object]:
    same = found["action"].eq(action) & found["method"].eq(method) & found["intervened"].eq(language)
    is_own = found["evaluated"].eq(language)
    own, others = found.loc[same & is_own], found.loc[same & ~is_own]
    if len(own) != 1 or others.empty:
        raise ValueError(
            f"set {method!r}, {language!r}: expected one row for it and one for each other language, got "
            f"{list(found.loc[same, 'evaluated'])}. Measure with evaluate='all', and give each set a name of its own."
        )
    drawn = random["action"].eq(action) & random["method"].eq(method) & random["language"].eq(language)
    controls = random.loc[drawn, "own_rise"]
    rise = own.iloc[0]
    worst = others.sort_values(by="nll_change", ascending=False, na_position="first", kind="stable").iloc[0]
    return {
        "action": action,
        "method": method,
        "language": language,
        "neurons": int(rise["neurons"]),
        **{name: float(rise[column]) for name, column in RISES.items()},
        "worst_other": worst["evaluated"],
        "worst_other_rise": float(worst["nll_change"]),
        "mean_other_rise": float(np.mean(others["nll_change"])),
        "random_mean": float(controls.mean()),
        "random_max": float(controls.max()),
        "random_seeds": len(controls),
        "share_above_random": float((controls < rise["nll_change"]).mean()),
    }


def _warning(row: Mapping[Hashable, Any]) -> str:
    if not row["neurons"]:
        return "no neurons"
    own, worst = row["own_rise"], row["worst_other_rise"]
    reasons = {
        "the loss is not finite": not (math.isfinite(own) and math.isfinite(worst)),
        f"fewer than {FEW_NEURONS} neurons": row["neurons"] < FEW_NEURONS,
        "not above every random control": own <= row["random_max"],
        f"{row['worst_other']} is hurt more": own <= worst,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)
