"""The result of a study: its tables and their origin."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.files import write_bytes
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report, provenance, save_tables, write_report


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """The result of a study, with its tables as items: `study["summary"]`.

    Attributes:
        tables: Tables by name, described by each study's class.
        settings: Settings, as plain data.
        used: `model` and `text` for finding units, as in a run's `settings`.
        measured: The hold-out text of the measurements.
        found: The sets of units, by name.
        started: Start time of the study.
    """

    page: ClassVar[Callable[..., Report]]  # writes the page, from the study and its provenance
    tables: Mapping[str, pd.DataFrame] = field(repr=False)
    settings: Mapping[str, Any]
    used: Mapping[str, Any] = field(repr=False)
    measured: Mapping[str, Any] = field(repr=False)
    found: Mapping[str, NeuronSet] = field(default_factory=dict, repr=False)
    started: datetime

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise KeyError(f"no table {name!r}; there are {list(self.tables)}.")
        return self.tables[name]

    def report(
        self,
        folder: Path | str,
        *,
        settings: Mapping[str, Any] | None = None,
        started: datetime | None = None,
        png: bool = False,
    ) -> Path:
        """Write report.html, report.md, provenance.json, tables/ and neurons/ into a folder.

        Args:
            folder: Output folder; it is created if missing.
            settings: Replace the study's settings in the provenance.
            started: Replaces the start time in the provenance.
            png: Also draw every figure into figures/.

        Returns:
            The path of report.html.
        """
        folder = Path(folder)
        save_tables(self.tables, folder / "tables")
        for name, found in self.found.items():
            found.save(folder / "neurons" / f"{name}.safetensors")
        origin = provenance(self.used, self.measured, settings or self.settings, started or self.started)
        write_bytes(folder / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
        return write_report(type(self).page(self, origin), folder, png=png)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as data that JSON can hold."""

    def told(value: Any) -> Any:
        return tuple(map(told, value)) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

    return {name: told(value) for name, value in asdict(settings).items()}
