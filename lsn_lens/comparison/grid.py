"""The report's grid: one cell per language and method, from nothing shown to a language that passes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.comparison.tables import Tables
from lsn_lens.report.columns import Column, in_words, written
from lsn_lens.report.page import Section

# (hurt most, above random) of a language that does not pass -> its mark
MARKS = {(True, True): "◕", (True, False): "◑", (False, True): "◔", (False, False): "○"}
CAPTION = "In-language loss increase of each method's own set, nats per token"
READ = (
    "● the language passes, by the two conditions below; ◕ its own units hurt it most and more than random units, but "
    "not surely; ◑ they hurt it most, not shown to be more than random units do; ◔ more than random units, but another "
    "language is hurt as much or more; ○ neither is shown. Point at a cell for its numbers. Choose a language at the "
    "top of the page to follow it through all tables."
)


def grid_section(comparison: Tables) -> Section:
    """One row per language, one column per method, methods in the order of the ranking."""
    rows = comparison.effects_by_language.merge(
        comparison.control_by_language[["method", "language", "random_mean"]], on=["method", "language"]
    )
    cells = rows.assign(cell=[cell(row) for row in rows.to_dict("records")],
                        hover=[hover(row) for row in rows.to_dict("records")])  # fmt: skip
    names = [name for name in comparison.ranking["method"] if name in set(rows["method"])]
    tables: dict[str, Any] = {
        value: cells.pivot(index="language", columns="method", values=value)
        .reindex(index=list(dict.fromkeys(rows["language"])), columns=names)
        .rename_axis(columns=None)
        .reset_index()
        for value in ("cell", "hover")
    }
    return Section(
        "Language by language", (READ,), {CAPTION: tables["cell"]}, hovers={CAPTION: tables["hover"]},
        columns={name: Column(name) for name in names},
    )  # fmt: skip


def cell(row: Mapping[Any, Any]) -> str:
    """The mark and the in-language loss increase; "no units" where there are none."""
    if not row["units"]:
        return "○ no units"
    mark = "●" if row["passes"] else MARKS[bool(row["own_hurt_most"]), bool(row["above_random"])]
    return f"{mark} {row['own_rise']:+z.2g}"


def hover(row: Mapping[Any, Any]) -> str:
    """The numbers behind a cell."""
    if not row["units"]:
        return f"{row['method']}, {row['language']}: no units"
    numbers = {
        "in-language": _between(row, "own_rise"),
        f"other hurt most ({row['worst_other']})": written(row["worst_other_rise"], "nats"),
        "random units, mean": written(row["random_mean"], "nats"),
        "q": written(row["q"], "p"),
        "units": f"{row['units']:,}",
        "passes": in_words(bool(row["passes"])),
    }
    return f"{row['method']}, {row['language']}: {'; '.join(f'{name} {text}' for name, text in numbers.items())}"


def _between(row: Mapping[Any, Any], name: str) -> str:
    low, high = (row.get(f"{name}_{end}", float("nan")) for end in ("low", "high"))
    sure = "" if pd.isna(low) else f" ({written(low, 'nats')} to {written(high, 'nats')})"
    return f"{written(row[name], 'nats')}{sure}"
