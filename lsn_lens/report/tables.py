"""Tables of a report: cells as text, remarks below their rows, constant columns in the caption."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from lsn_lens.report.columns import Column, column_of, in_words, written

MISSING = "n/a"
REMARKS = ("warning", "warnings", "note", "notes")  # shown below their row, where there are enough columns above
STAYING = ("method", "language", "shown", "own_hurt_most", "passes", "place")  # who, and verdicts: also if constant
BESIDE = ("low", "high", "least", "most", "its loss increase", "per unit")  # of a neighbour
# verdicts of a cell, by its first character -> style
VERDICTS = {"●": "all", "◕": "most", "◑": "half", "◔": "little", "○": "none"}


def page_script() -> Markup:
    """The script of a page: sorts, filters and copies tables, redraws figures."""
    return Markup((Path(__file__).parent / "page.js").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Cell:
    """A cell: its text, its number in full (to sort by; "" where there is none), what it says when pointed at."""

    text: str
    number: str = ""
    hover: str = ""

    @property
    def verdict(self) -> str:
        """The style of a verdict; "" for other cells."""
        return VERDICTS.get(self.text[:1], "")


@dataclass(frozen=True)
class Row:
    """A row, its remark, and the language that it is about, if any."""

    cells: list[Cell]
    remark: str = ""
    language: str = ""


@dataclass(frozen=True)
class Shown:
    """A table as a page shows it.

    Attributes:
        caption: The caption, with the columns that are the same in every row.
        headings: Of the columns that are left.
        names: The names of these columns in the table, where headings may repeat ("low", "high").
        styles: "number" or "word", by column.
        rows: The rows.
        remark: Heading of the remarks; "" without any.
    """

    caption: str
    headings: list[str]
    names: list[str]
    styles: list[str]
    rows: list[Row]
    remark: str = ""

    @property
    def all_headings(self) -> list[str]:
        """The headings, that of the remarks last."""
        return [*self.headings, *([self.remark] if self.remark else [])]


def shown_table(
    caption: str,
    frame: pd.DataFrame,
    columns: Mapping[str, Column] | None = None,
    hovers: pd.DataFrame | None = None,
) -> Shown:
    """A table as a page shows it.

    Columns that are the same in every row are named in the caption, but for the first, names, verdicts and ends of
    intervals; columns without any number are named there too. Warnings and notes become remarks below their rows.

    Args:
        caption: The caption.
        frame: The table.
        columns: Formats by column name; see `columns.column_of` for other columns.
        hovers: What each cell says when pointed at, in the shape of the table.
    """
    headings, cells = table_cells(frame, columns)
    names, texts = [*map(str, frame.columns)], dict(enumerate(zip(*cells, strict=True)))
    remark = next((place for place, name in enumerate(names) if name in REMARKS and len(names) > 3), None)
    same = [place for place in range(1, len(names)) if _is_same(names[place], texts.get(place, ())) and place != remark]
    same = same if len(names) > 3 else []
    kept = [place for place in range(len(names)) if place not in same and place != remark]
    values: list[list[Any]] = frame.to_numpy(dtype=object).tolist()
    pointed: list[list[Any]] = values if hovers is None else hovers.to_numpy(dtype=object).tolist()
    styles = ["number" if _is_number(frame.iloc[:, place]) else "word" for place in range(len(names))]
    rows = []
    for given, row, above in zip(values, cells, pointed, strict=True):
        made = [
            Cell(row[place], _number(given[place], styles[place]), "" if hovers is None else str(above[place]))
            for place in kept
        ]
        language = row[names.index("language")] if "language" in names else ""
        rows.append(Row(made, "" if remark is None else row[remark], language))
    empty = [place for place in same if texts[place][0] == MISSING]
    told = "; ".join(f"{_heading(headings[at], names[at])} {texts[at][0]}" for at in same if at not in empty)
    unknown = ", ".join(names[place].replace("_", " ") for place in empty)
    more = [f"In every row: {told}."] * bool(told) + [f"Not known in any row: {unknown}."] * bool(unknown)
    return Shown(
        " ".join([f"{caption.rstrip('.')}.", *more]) if more else caption,
        [headings[place] for place in kept], [names[place] for place in kept], [styles[place] for place in kept], rows,
        "" if remark is None else headings[remark],
    )  # fmt: skip


def table_cells(frame: pd.DataFrame, columns: Mapping[str, Column] | None = None) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text: three significant digits, "n/a" for missing numbers.

    Args:
        frame: The table.
        columns: Formats by column name; see `columns.column_of` for other columns.
    """
    said = [column_of(str(name), columns or {}) for name in frame.columns]
    cells = [_column_cells(each, frame.iloc[:, place]) for place, each in enumerate(said)]
    return [each.heading for each in said], [list(row) for row in zip(*cells, strict=True)]


def _column_cells(column: Column, values: pd.Series) -> list[str]:
    if not _is_number(values):
        return [in_words(value) for value in values.tolist()]
    whole = pd.api.types.is_integer_dtype(values)
    return [MISSING if pd.isna(x) else format(x, ",d") if whole else written(x, column.kind) for x in values]


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _is_same(name: str, texts: tuple[str, ...]) -> bool:
    if len(texts) < 2 or len(set(texts)) > 1 or name in STAYING:
        return False
    return texts[0] == MISSING or not name.endswith(("_low", "_high"))


def _number(value: Any, style: str) -> str:
    return f"{value:.15g}" if style == "number" and not pd.isna(value) else ""


def _heading(heading: str, name: str) -> str:
    """What a column is called away from its neighbours."""
    return name.replace("_", " ") if heading in BESIDE else heading
