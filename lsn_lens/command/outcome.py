"""What a subcommand found: a short table for the terminal, one JSON object for a pipeline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
from tabulate import tabulate

from lsn_lens.report.columns import Column
from lsn_lens.report.tables import table_cells
from lsn_lens.studies.experiment import found_in

CELL, HEADING = 40, 14  # characters of a line of a cell, and of a heading, in the terminal


@dataclass(frozen=True)
class Outcome:
    """The result of a subcommand.

    Attributes:
        words: The main finding in a sentence.
        tables: Short tables by name.
        paths: What was written, by what it is.
        columns: Formats of table columns in the terminal.
    """

    words: str
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)

    def text(self) -> str:
        """The tables, the finding and the paths, as lines."""
        parts = [self._aligned(table) for table in self.tables.values() if len(table)]
        lines = [self.words, *(f"{name}: {path.resolve()}" for name, path in self.paths.items())]
        return "\n\n".join([*parts, "\n".join(lines)]) + "\n"

    def json(self, command: str) -> str:
        """One JSON object: `command`, `found` (the words), each table as a list of rows, and `paths`."""
        rows: dict[str, Any] = {}
        for name, each in self.tables.items():
            rows[name] = json.loads(each.to_json(orient="records", double_precision=15) or "[]")
        paths = {name: str(path.resolve()) for name, path in self.paths.items()}
        return json.dumps({"command": command, "found": self.words, **rows, "paths": paths}, ensure_ascii=False) + "\n"

    def _aligned(self, table: pd.DataFrame) -> str:
        headings, rows = table_cells(table, self.columns)
        words = [not pd.api.types.is_numeric_dtype(each) for each in table.dtypes]
        align = ["left" if each else "right" for each in words]
        lines = [["\n".join(wrap(each, CELL)) for each in row] for row in rows]
        titles = ["\n".join(wrap(each, HEADING)) for each in headings]
        return tabulate(lines, titles, "simple", colalign=align, disable_numparse=True)


def of_report(path: Path, tables: Mapping[str, Sequence[str]], columns: Mapping[str, Column] | None = None) -> Outcome:
    """The outcome of a report: its main finding, and these columns of its tables, as far as it has them."""
    shown = {}
    for name, wanted in tables.items():
        table = pd.read_parquet(path.parent / "tables" / f"{name}.parquet")
        shown[name] = table[[each for each in wanted if each in table]]
    return Outcome(found_in(path), shown, {"report": path, "tables": path.parent / "tables"}, columns or {})
