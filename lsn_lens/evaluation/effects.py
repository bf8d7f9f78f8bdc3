"""Summaries of a `perplexity_table`: one row per method and language, and the random controls."""

import re
from typing import Any

import pandas as pd

from lsn_lens.evaluation import verdict

CONTROL = re.compile(r"(?P<method>.*) random (?P<seed>\d+)")


def control_name(method: str, seed: int) -> str:
    """The name of a method's random control in a table: `"lape random 0"`."""
    return f"{method} random {seed}"


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row per action, method and language, from the rows of several named sets.

    Args:
        table: From `perplexity_table`, with each method's set and any number of random controls named by
            `control_name`. Methods need all languages evaluated; for controls the own language is enough.

    Returns:
        Columns `action`, `method`, `language`, `units` (different ones), those of `verdict.rises`, and
        `own_rise_perplexity`.

    Raises:
        ValueError: No method in the table, or a method without a language.
    """
    rows = _named(table)
    found = rows.loc[rows["seed"].isna()]
    if found.empty:
        raise ValueError(f"the table has no set but controls: {sorted(table['set'].unique())}.")
    groups: Any = found.groupby(["action", "method", "intervened"], sort=False)
    return pd.DataFrame([_language_row(action, method, language, same) for (action, method, language), same in groups])


def control_points(table: pd.DataFrame) -> pd.DataFrame:
    """In-language loss increases of the controls, one row per action, method, language and control.

    Returns:
        Columns `action`, `method`, `language`, `seed`, `own_rise` (nats per token).
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
    rows.attrs = {}  # what describes the text; pandas would copy it at every step
    parts = [CONTROL.fullmatch(name) for name in rows["set"]]
    methods = [part["method"] if part else name for part, name in zip(parts, rows["set"], strict=True)]
    seeds = [int(part["seed"]) if part else None for part in parts]
    return rows.assign(method=methods, seed=pd.array(seeds, dtype="Int64"))


def _language_row(action: str, method: str, language: str, same: pd.DataFrame) -> dict[str, Any]:
    if same["evaluated"].duplicated().any():
        raise ValueError(
            f"set {method!r}, {language!r}: got several rows for one language, {list(same['evaluated'])}. Give each "
            "set a name of its own."
        )
    row = verdict.rises(same, language)
    own = same.loc[same["evaluated"].eq(language)].iloc[0]
    head = {"action": action, "method": method, "language": language, "units": int(own["units"])}
    return head | row | {"own_rise_perplexity": float(own["perplexity_change"])}
