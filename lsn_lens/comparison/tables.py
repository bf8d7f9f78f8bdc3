"""The results of a comparison: a mapping of named tables, which are also attributes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pandas as pd

from lsn_lens.comparison.checking import Check
from lsn_lens.comparison.checks import CHECKS
from lsn_lens.comparison.trust import NOT_DONE
from lsn_lens.model.structure import Model
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run
from lsn_lens.text.documents import LanguageCorpus

ALWAYS = (
    "ranking", "agreement", "agreement_by_language", "sizes", "layers", "cost", "warnings", "skipped",
)  # fmt: skip
OF_MODEL = (
    "effects", "effects_by_language", "specificity", "control", "control_by_language", "control_points", "losses",
)  # fmt: skip
OF_SIZES = ("curves", "equal_size")
TRUST = "trust"
ATTRIBUTES = (
    "found",
    "scores",
    "run",
    "model",
    "corpora",
    "checks",
    "started",
    "plot",
    "report",
    "keys",
    "items",
    "values",
    "get",
)
TAKEN = (*ALWAYS, *OF_MODEL, *OF_SIZES, TRUST, NOT_DONE, *ATTRIBUTES)  # names that a check must not have


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, eq=False, repr=False)
class Tables(Mapping[str, pd.DataFrame]):
    """Named tables with their sets, scores, run and model; see `Comparison`."""

    tables: Mapping[str, pd.DataFrame]
    found: Mapping[str, NeuronSet]
    scores: Mapping[str, NeuronScores]
    run: Run
    model: Model | None = None
    corpora: Mapping[str, LanguageCorpus] | None = None
    rows: tuple[Check, ...] = CHECKS
    started: datetime = field(default_factory=_now)

    def __eq__(self, other: object) -> bool:
        return self is other  # tables have no truth value to compare by

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise KeyError(self._absent(name))
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_") or name == "tables":
            raise AttributeError(name)
        if name not in self.tables:
            raise AttributeError(self._absent(name))
        return self.tables[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tables]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.tables)

    def _absent(self, name: str) -> str:
        """The error text for a name that is no table: why, and the names of all tables."""
        options = {row.table: f"{row.option}=..." for row in self.rows} | {TRUST: "", NOT_DONE: ""}
        why = "there is no such table"
        if name in OF_MODEL:
            why = "it was not measured: compare(run, ..., model=..., corpora=...) does"
        elif name in OF_SIZES:
            why = "it was not measured: compare(run, ..., model=..., corpora=..., sizes=...) does"
        elif name in options:
            why = f"it was not measured: compare(run, ..., trust=Checks({options[name]})) does, as far as it applies"
        return f"no table {name!r}: {why}. The tables are {list(self.tables)}."
