"""What a `perplexity_table` says: one row a method and language, one row a method, and where to doubt it."""

import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

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
    found = rows[rows["seed"].isna()]
    if found.empty:
        raise ValueError(f"the table has no set but controls: {sorted(table['set'].unique())}.")
    controls = rows[rows["seed"].notna() & (rows["intervened"] == rows["evaluated"])]
    groups = found.groupby(["action", "method", "intervened"], sort=False)
    summary = pd.DataFrame([_language_row(key, each, controls) for key, each in groups])
    return summary.assign(warning=[_warning(row) for row in summary.to_dict("records")])


def overall(summary: pd.DataFrame) -> pd.DataFrame:
    """One row for each action and method, best first, from what `summarise` returns.

    Best is the method whose own language is hurt most for the most languages; then the one whose mean own rise
    is furthest above both its mean rise elsewhere and its random control's.

    Returns:
        Columns `action`, `method`, `neurons` (summed over languages: a neuron of two counts twice), `languages`,
        `own_hurt_most` (how many of them), `above_all_random` (how many exceed every control), `mean_own_rise`,
        `mean_other_rise`, `random_mean` (nats a token), `own_over_random` (a ratio; NaN where the random mean is
        not above 0, which `note` says), `note`.
    """
    groups = summary.groupby(["action", "method"], sort=False)
    frame = pd.DataFrame([_method_row(key, each) for key, each in groups])
    margin = frame["mean_own_rise"] - frame[["mean_other_rise", "random_mean"]].max(axis=1)
    order = frame.assign(margin=margin).sort_values(["own_hurt_most", "margin"], ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def own_is_hurt_most(summary: pd.DataFrame) -> pd.Series:
    """For each row of `summarise`, whether the own language is hurt, and more than any other."""
    return (summary["own_rise"] > 0) & (summary["own_rise"] > summary["worst_other_rise"])


def doubts(row: pd.Series) -> list[str]:
    """Why a row of `overall` is a weak result, in words; empty where it is not."""
    few = row["own_hurt_most"] * 2 <= row["languages"]
    reasons = {
        f"for only {row['own_hurt_most']} of {row['languages']} languages is the own language hurt most": few,
        "switching the neurons off does not raise the loss of their own language": row["mean_own_rise"] <= 0,
        "other languages are hurt as much on average": row["mean_own_rise"] <= row["mean_other_rise"],
        "random neurons hurt as much": row["mean_own_rise"] <= row["random_mean"],
        "no random control was measured": pd.isna(row["random_mean"]),
        f"only {row['above_all_random']} of {row['languages']} languages exceed every random control": (
            row["above_all_random"] * 2 <= row["languages"] and not pd.isna(row["random_mean"])
        ),
    }
    return [reason for reason, holds in reasons.items() if holds]


def control_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rises behind `random_mean`, one row for each action, method, language and control.

    Returns:
        Columns `action`, `method`, `language`, `seed`, `own_rise` (nats a token).
    """
    rows = _named(table)
    own = rows[rows["seed"].notna() & (rows["intervened"] == rows["evaluated"])]
    points = own.rename(columns={"intervened": "language", "nll_change": "own_rise"})
    return points[["action", "method", "language", "seed", "own_rise"]].reset_index(drop=True)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with an intervention, and columns `method` and `seed` (missing where the set is no control)."""
    rows = table[table["action"] != "none"]
    parts = [CONTROL.fullmatch(name) for name in rows["set"]]
    methods = [part["method"] if part else name for part, name in zip(parts, rows["set"], strict=True)]
    seeds = [int(part["seed"]) if part else None for part in parts]
    return rows.assign(method=methods, seed=pd.array(seeds, dtype="Int64"))


def _language_row(key: tuple[str, str, str], rows: pd.DataFrame, controls: pd.DataFrame) -> dict[str, object]:
    action, method, language = key
    own, others = rows[rows["evaluated"] == language], rows[rows["evaluated"] != language]
    if len(own) != 1 or others.empty:
        raise ValueError(
            f"set {method!r}, {language!r}: expected one row for it and one for each other language, got "
            f"{list(rows['evaluated'])}. Measure methods with evaluate='all', and give each set its own name."
        )
    same = (controls["action"] == action) & (controls["method"] == method) & (controls["intervened"] == language)
    random = controls.loc[same, "nll_change"]
    rise = own.iloc[0]
    worst = others.sort_values("nll_change", ascending=False, na_position="first", kind="stable").iloc[0]
    return {
        "action": action,
        "method": method,
        "language": language,
        "neurons": int(rise["neurons"]),
        **{name: float(rise[column]) for name, column in RISES.items()},
        "worst_other": worst["evaluated"],
        "worst_other_rise": float(worst["nll_change"]),
        "mean_other_rise": float(others["nll_change"].mean()),
        "random_mean": float(random.mean()),
        "random_max": float(random.max()),
        "random_seeds": len(random),
        "share_above_random": float((rise["nll_change"] > random).mean()),
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


def _method_row(key: tuple[str, str], rows: pd.DataFrame) -> dict[str, object]:
    own, random = float(rows["own_rise"].mean()), float(rows["random_mean"].mean())
    return {
        "action": key[0],
        "method": key[1],
        "neurons": int(rows["neurons"].sum()),
        "languages": len(rows),
        "own_hurt_most": int(own_is_hurt_most(rows).sum()),
        "above_all_random": int((rows["own_rise"] > rows["random_max"]).sum()),
        "mean_own_rise": own,
        "mean_other_rise": float(rows["mean_other_rise"].mean()),
        "random_mean": random,
        "own_over_random": own / random if random > 0 else float("nan"),
        "note": "random <= 0" if random <= 0 else "",
    }
