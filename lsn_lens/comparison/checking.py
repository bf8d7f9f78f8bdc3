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
    """One way to see how far a method can be trusted. Options, tables, warnings and the report are read from it.

    Attributes:
        name: Of the check. With "_" for spaces, the name of its table in a `Comparison`.
        run: From a `Subject` to a table. Raises `DoesNotApply` where the check cannot be had; the reason is kept in the
            table "not_done", and nothing else is caught.
        asks: How often `run` is called. "method": once per method that found its set itself, unless `without_draws`
            names the method. "methods": once with all such methods; the table has a column `method`. "units": once per
            set of units and action, also for sets that were given; methods with the same ones share the rows.
        needs_model: Whether it runs the model. "units" implies an action on the units.
        option: The field of `Checks` that asks for it; "" for one in `Checks.extra`, which is always done.
        summary: From the table of all methods to its main numbers: `method` as the index, one row per method.
        columns: How the main numbers are written.
        ranked: Main numbers that stand in the ranking, too.
        doubts: From one method's rows to warnings: words, and the languages that they hold for (none: no particular).
        about: What it looks at, in a few words, to say that it was not done.
        says: How to read it, for the report.
        caption: Of its main numbers in the report; checks with the same caption share a table.
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
        run: Of the methods' statistics.
        methods: By name: the one method, or all, see `Check.asks`.
        found: Their sets.
        options: The `Checks` that were asked for.
        model: The run's model; None where `compare` got none. So are the next two.
        corpora: The run's text.
        text: The held-out text, with the unchanged model's losses.
        actions: What to do to each method's units; methods without one cannot be ablated.
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
        """The same for some methods."""
        kept = {name: self.methods[name] for name in names}
        return replace(self, methods=kept, found={name: self.found[name] for name in kept})

    @property
    def name(self) -> str:
        """Of the one method."""
        (name,) = self.methods
        return name

    @property
    def method(self) -> Method:
        """The one method."""
        return self.methods[self.name]

    @property
    def units(self) -> NeuronSet:
        """The one method's set."""
        return self.found[self.name]

    @property
    def action(self) -> Choice:
        """What to do to the one method's units."""
        return self.actions[self.name]

    @cached_property
    def shards(self) -> Run:
        """The run with the methods' statistics in memory, for draws of it."""
        return load_shards(self.run, list(self.methods.values()))

    @property
    def paired(self) -> bool:
        """Whether the one method's draws take text of all languages together."""
        return self.options.paired or bool(getattr(self.method, "paired", False))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What checks of several methods share: made when it is first asked for."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Note what does not apply, and why, and go on; a fault is no such reason and is raised."""
        try:
            yield
        except DoesNotApply as error:
            rows = [{"method": name, "check": part, "reason": str(error)} for name in self.methods]
            self.not_done.extend(rows)


def columns_of(kind: Kind, *names: str) -> dict[str, Column]:
    """Columns of one kind."""
    return dict.fromkeys(names, Column(kind=kind))


def where(rows: pd.DataFrame, holds: Any) -> list[str]:
    """The languages of the rows for which it holds."""
    return list(rows.loc[holds, "language"])
