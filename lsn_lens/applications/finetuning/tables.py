"""Tables of several trainings: means over seeds, and differences to random units."""

from typing import Any

import pandas as pd

from lsn_lens.evaluation.bootstrap import mean_interval

RANDOM, LORA = "random", "lora"
KEYS = ["trained", "documents", "kind"]


def _by_seed(losses: pd.DataFrame) -> pd.DataFrame:
    """One row per training: the mean change of each kind of text, and the largest of another language."""
    keys = ["trained", "documents", "kind", "parameters", "learning_rate", "seed"]
    means = losses.pivot_table(index=keys, columns="text", values="change", aggfunc="mean", sort=False)
    means = means.rename(columns={"other": "others"})
    other = losses.loc[losses["text"].eq("other")]
    return means.assign(worst=other.groupby(keys, sort=False)["change"].max()).reset_index()


def summary_of(losses: pd.DataFrame) -> pd.DataFrame:
    """One row per language, kind and number of documents: mean changes and intervals, see `FinetuningStudy`."""
    by_seed = _by_seed(losses)
    rows = []
    for key, each in by_seed.groupby(KEYS, sort=False):
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))  # type: ignore[arg-type]
        row |= {"parameters": round(each["parameters"].mean()), "learning_rate": each["learning_rate"].iloc[0]}
        row |= {"seeds": len(each)}
        for name in ("own", "others", "worst", "neutral"):
            values = mean_interval(each[name].to_numpy(float))
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def against_random(losses: pd.DataFrame) -> pd.DataFrame:
    """The same rows without random units: differences to random units, seed by seed, see `FinetuningStudy`."""
    by_seed = _by_seed(losses).set_index(["trained", "documents", "seed"])
    random = by_seed.loc[by_seed["kind"].eq(RANDOM)]
    others = by_seed.loc[by_seed["kind"].ne(RANDOM)]
    level = 1 - 0.05 / max(1, others.groupby(KEYS, sort=False).ngroups)
    rows = []
    for key, each in others.groupby(KEYS, sort=False):
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))  # type: ignore[arg-type]
        for name in ("own", "others"):
            values = mean_interval(each[name].to_numpy(float) - random.loc[each.index, name].to_numpy(float), level)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        rows.append({**row, "seeds": len(each)})
    return pd.DataFrame(rows)
