"""What a `perplexity_table` says: one row a method and language, its random controls, and where to doubt it."""

import re

import numpy as np
import pandas as pd

from lsn_lens.evaluation import verdict

CONTROL = re.compile(r"(?P<method>.*) random (?P<seed>\d+)")


def control_name(method: str, seed: int) -> str:
    """What the set of a method's random control is called in a table: `"lape random 0"`."""
    return f"{method} random {seed}"


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each action, method and language, from the rows of several named sets.

    Args:
        table: From `perplexity_table`, with each method's set and any number of random controls named by
            `control_name`. Methods need all languages evaluated; for controls the own language is enough.

    Returns:
        Columns `action`, `method`, `language`, `neurons`; what `verdict.hurt` says: `own_rise` (nats per token),
        `worst_other` (the other language hurt most), `worst_other_rise`, `mean_other_rise`, `own_rank`, the same with
        `_bits_per_byte`, `hurt_most_in`, `own_hurt_most`; `own_rise_perplexity`; `random_mean` and `random_max` (the
        controls' own rise), `seeds` (how many), `p` (`verdict.p_value` of the own rise among them; NaN without
        neurons), and `warning`: in words, why not to trust the row, "" if nothing speaks against it.

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
    return summary.assign(warning=["; ".join(verdict.doubts(row)) for row in summary.to_dict("records")])


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
    same = found.loc[found["action"].eq(action) & found["method"].eq(method) & found["intervened"].eq(language)]
    if same["evaluated"].duplicated().any():
        raise ValueError(
            f"set {method!r}, {language!r}: got several rows for one language, {list(same['evaluated'])}. Give each "
            "set a name of its own."
        )
    row = verdict.hurt(same, language)
    own = same.loc[same["evaluated"].eq(language)].iloc[0]
    drawn = random["action"].eq(action) & random["method"].eq(method) & random["language"].eq(language)
    controls = random.loc[drawn, "own_rise"].to_numpy(dtype=float)
    return {
        "action": action,
        "method": method,
        "language": language,
        "neurons": int(own["neurons"]),
        **row,
        "own_rise_perplexity": float(own["perplexity_change"]),
        "random_mean": float(np.mean(controls)) if len(controls) else np.nan,
        "random_max": float(np.max(controls)) if len(controls) else np.nan,
        "seeds": len(controls),
        "p": verdict.p_value(row["own_rise"], controls) if own["neurons"] else np.nan,
    }
