"""What a study gives back: its tables, and what it takes to know where they come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.neurons import NeuronSet


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """What a study measured; a mapping-like view of its tables, `study["summary"]`.

    Attributes:
        tables: By name; each study's function says what they hold.
        settings: What was asked for, as plain data.
        used: `model` and `text` that units were found on, as in a run's `settings`.
        measured: The held-out text that was measured on.
        found: The sets of units, by name.
        started: When the study began.
    """

    section: ClassVar[str]  # the module of lsn_lens.report.sections that writes its page
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

    def report(self, folder: Path | str, **origin: Any) -> Path:
        """Write report.html, report.md, provenance.json, tables/, figures/ and neurons/ into a folder.

        Args:
            folder: Made where it is not there.
            origin: `settings` and `started` that stand in the provenance in place of the study's own.

        Returns:
            The path of report.html.
        """
        return import_module("lsn_lens.report.experiment").save(self, folder, **origin)  # pages know studies


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as data that JSON can hold."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
