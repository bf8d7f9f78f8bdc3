"""What a check is, and what it looks at."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from lsn_lens.controls.resampling import load_shards
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.interventions.words import Choice
from lsn_lens.methods.base import Method
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.report.columns import Column, Kind
from lsn_lens.runs.run import Run

Doubts = Iterable[tuple[str, list[str]]]


@dataclass(frozen=True)
class Check:
    """One check of a method's reliability. Options, tables, warnings and the report are made from its fields.

    Attributes:
        name: The check's name; with "_" for spaces, the name of its table in a `Comparison`.
        run: From a `Subject` to a table. Raises `DoesNotApply` where the check does not apply; the reason is kept in
            the table "not_done". No other error is caught.
        asks: How often `run` is called. "method": once per method that found its set itself, unless `without_draws`
            names the method. "methods": once with all such methods; the table has a column `method`. "units": once per
            set of units and action, also for given sets; methods with the same set and action share the rows.
        needs_model: Whether it runs the model. "units" implies an action on the units.
        option: The field of `Checks` that asks for the check; "" for a check in `Checks.extra`, which is always done.
        summary: From the table of all methods to its main numbers: `method` as the index, one row per method. A number
            whose name another check has, and which `columns` does not list, gets the table's name in front.
        columns: How the main numbers are written; names that other checks have are refused before anything runs.
        ranked: Main numbers that the ranking shows, too.
        doubts: From one method's rows to warnings: the text and its languages (none: no particular one).
        about: What the check looks at, in a few words, for the list of checks that were not done.
        says: How to read its numbers, for the report.
        caption: Caption of its main numbers in the report; checks with the same caption share a table.
        figures: From the table to the report's figures, by the names of their files.
    """

    name: str
    run: Callable[["Subject"], pd.DataFrame]
    asks: Literal["method", "methods", "units"] = "method"
    needs_model: bool = False
    option: str = ""
    summary: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    ranked: tuple[str, ...] = ()
    doubts: Callable[[pd.DataFrame], Doubts] | None = None
    about: str = ""
    says: str = ""
    caption: str = ""
    figures: Callable[[pd.DataFrame], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if not self.name or self.asks not in ("method", "methods", "units"):
            raise ValueError(
                f'name={self.name!r}, asks={self.asks!r}: expected a name, and "method", "methods" or "units".'
            )

    @property
    def table(self) -> str:
        """The name of its table in a `Comparison`."""
        return self.name.replace(" ", "_")


@dataclass(frozen=True, eq=False)
class Subject:
    """What a check looks at.

    Attributes:
        run: The run with the methods' statistics.
        methods: Methods by name: one or all, see `Check.asks`.
        found: The methods' sets.
        options: The `Checks` that were asked for.
        model: The run's model; `model`, `corpora` and `text` are None where `compare` got no model.
        corpora: The run's text.
        text: The hold-out text with the unchanged model's losses.
        actions: The action on each method's units; methods without an action cannot be ablated.
        progress: Show progress bars.
        not_done: What did not apply, see `attempt`.
        shared: See `once`.
    """

    run: Run
    methods: Mapping[str, Method]
    found: Mapping[str, NeuronSet]
    options: Any
    model: Any = None
    corpora: Any = None
    text: HeldOut | None = None
    actions: Mapping[str, Choice] = field(default_factory=dict)
    progress: bool = False
    not_done: list[dict[str, str]] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> "Subject":
        """The same subject with some of the methods."""
        kept = {name: self.methods[name] for name in names}
        return replace(self, methods=kept, found={name: self.found[name] for name in kept})

    @property
    def name(self) -> str:
        """The name of the one method."""
        (name,) = self.methods
        return name

    @property
    def method(self) -> Method:
        """The one method of this subject."""
        return self.methods[self.name]

    @property
    def units(self) -> NeuronSet:
        """The set of the one method."""
        return self.found[self.name]

    @property
    def action(self) -> Choice:
        """The action on the one method's units."""
        return self.actions[self.name]

    @cached_property
    def shards(self) -> Run:
        """The run with the methods' statistics in memory, for draws of it."""
        return load_shards(self.run, list(self.methods.values()))

    @property
    def paired(self) -> bool:
        """Whether draws for the one method keep parallel text parallel."""
        return self.options.paired or bool(getattr(self.method, "paired", False))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that several methods share, made at the first request."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Note what does not apply, with the reason, and continue; every other error is raised."""
        try:
            yield
        except DoesNotApply as error:
            rows = [{"method": name, "check": part, "reason": str(error)} for name in self.methods]
            self.not_done.extend(rows)


def columns_of(kind: Kind, *names: str) -> dict[str, Column]:
    """Columns by name, all with one number format."""
    return dict.fromkeys(names, Column(kind=kind))


def where(rows: pd.DataFrame, holds: Any) -> list[str]:
    """The languages of the rows where `holds` is true."""
    return list(rows.loc[holds, "language"])
