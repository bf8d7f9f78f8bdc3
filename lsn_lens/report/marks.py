"""The marks of a figure: coloured cells, bars, points, curves."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

MOST_WRITTEN_CELLS = 24  # columns; with more, numbers do not fit into the cells


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A matrix as coloured cells; `label` names the colours, NaN stays empty."""

    values: pd.DataFrame
    limits: tuple[float, float]
    colours: tuple[str, ...]
    label: str
    form: str

    def texts(self) -> list[list[str]]:
        """The texts of the cells."""
        fits = self.values.shape[1] <= MOST_WRITTEN_CELLS
        return [
            [format(value, self.form) if fits and math.isfinite(value) else "" for value in row]
            for row in self.values.to_numpy(dtype=float)
        ]


@dataclass(frozen=True, eq=False)
class Bars:
    """One bar per category; several `Bars` of a chart are drawn side by side."""

    values: pd.Series
    label: str
    colour: str


@dataclass(frozen=True, eq=False)
class Dots:
    """Any number of points per category: the index of `values` repeats."""

    values: pd.Series
    label: str
    colour: str


@dataclass(frozen=True, eq=False)
class Line:
    """A curve over categories, in their order; NaN leaves a gap. A dashed curve is a reference.

    `band` has the columns `low` and `high`, drawn around it. With `log`, the categories are numbers above 0 on a
    logarithmic axis, for all curves of a chart.
    """

    values: pd.Series
    label: str
    colour: str
    dashed: bool = False
    band: pd.DataFrame | None = None
    log: bool = False

    @property
    def places(self) -> np.ndarray:
        """Where the categories lie on the axis."""
        count = len(self.values)
        return np.array([float(each) for each in self.values.index]) if self.log else np.arange(count)


Mark = Heatmap | Bars | Dots | Line


def labels_of(mark: Mark) -> Iterator[str]:
    """The names of a mark and of its categories."""
    yield mark.label
    yield from map(str, mark.values.index)
    yield from map(str, mark.values.columns if isinstance(mark, Heatmap) else ())


def relabelled(mark: Mark, name: Callable[[object], str]) -> Mark:
    """A copy of a mark with other names for itself and its categories."""
    values = mark.values.set_axis([*map(name, mark.values.index)], axis=0)
    if isinstance(mark, Heatmap):
        values = values.set_axis([*map(name, mark.values.columns)], axis=1)
    return replace(mark, values=values, label=name(mark.label))
