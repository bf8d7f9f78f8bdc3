"""The marks of a figure: coloured cells, bars, points, curves."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

MOST_WRITTEN_CELLS = 24  # columns; with more, numbers do not fit into the cells
FAR = 4.0  # times the upper quartile of all sizes, from which on a bar is cut off so that it does not hide the others
ROOM = 2.0  # times the upper quartile, where the axis then ends


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A matrix as coloured cells; `label` names the colours, NaN stays empty."""

    values: pd.DataFrame
    limits: tuple[float, float]
    colours: tuple[str, ...]
    label: str
    form: str

    def texts(self) -> list[list[str]]:
        """The texts of the cells: zero only where the value is zero."""
        fits = self.values.shape[1] <= MOST_WRITTEN_CELLS
        return [
            [self._text(value) if fits and math.isfinite(value) else "" for value in row]
            for row in self.values.to_numpy(dtype=float)
        ]

    def _text(self, value: float) -> str:
        text, sign = format(value, self.form), "+" if self.form.startswith("+") else ""
        if text.strip("+-0.%"):
            return text
        return f"{value:{sign}.1g}" if value else "0"


@dataclass(frozen=True, eq=False)
class Bars:
    """One bar per category; several `Bars` of a chart are drawn side by side.

    `interval` has the columns `low` and `high`, one row per bar, drawn as error bars; NaN leaves one out.
    """

    values: pd.Series
    label: str
    colour: str
    interval: pd.DataFrame | None = None


@dataclass(frozen=True, eq=False)
class Dots:
    """Any number of points per category: the index of `values` repeats."""

    values: pd.Series
    label: str
    colour: str


@dataclass(frozen=True, eq=False)
class Line:
    """A curve over categories, in their order; NaN leaves a gap. A dashed curve is a reference.

    `band` has the columns `low` and `high`, drawn around it. With the scale "log", the categories are numbers above 0
    on a logarithmic axis, with "numbers" any numbers on a linear one, for all curves of a chart.
    """

    values: pd.Series
    label: str
    colour: str
    dashed: bool = False
    band: pd.DataFrame | None = None
    scale: Literal["names", "log", "numbers"] = "names"

    @property
    def places(self) -> np.ndarray:
        """Where the categories lie on the axis."""
        count = len(self.values)
        names = self.scale == "names"
        return np.arange(count) if names else np.array([float(each) for each in self.values.index])


Mark = Heatmap | Bars | Dots | Line


def interval_of(rows: pd.DataFrame, low: str, high: str) -> pd.DataFrame | None:
    """Two columns as the interval of bars; None where the table lacks them, or has no number in them."""
    if not {low, high} <= set(rows) or not rows[[low, high]].notna().to_numpy().any():
        return None
    return pd.DataFrame({"low": rows[low], "high": rows[high]})


def values_of(mark: Mark) -> np.ndarray:
    """The values `[category 1]`, of bars with intervals also both ends `[category 3]`."""
    interval = mark.interval if isinstance(mark, Bars) else None
    columns = [mark.values, *([] if interval is None else [interval["low"], interval["high"]])]
    return np.stack([np.asarray(each, dtype=float) for each in columns], axis=1)


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


def reach_of(marks: tuple[Mark, ...]) -> tuple[float, float] | None:
    """Where the vertical axis of bars and dots ends, if single categories are so large that they would hide the others.

    A category is as large as its largest bar, end of an interval, or dot: many small dots do not make bars large.
    """
    if not isinstance(marks[0], Bars):
        return None
    labels = [label for mark in marks for label in mark.values.index]
    rows = [each for mark in marks for each in values_of(mark)]
    largest: dict[object, float] = {}
    for label, row in zip(labels, rows, strict=True):
        for value in row[np.isfinite(row)]:
            largest[label] = max(largest.get(label, 0.0), abs(float(value)))
    values = np.concatenate([row[np.isfinite(row)] for row in rows])
    sizes = np.array(list(largest.values()))
    quartile = float(np.quantile(sizes, 0.75)) if len(sizes) else 0.0
    if quartile <= 0 or sizes.max() <= FAR * quartile:
        return None
    low, high = np.clip([min(0.0, values.min()), max(0.0, values.max())], -ROOM * quartile, ROOM * quartile)
    return float(low) * 1.05, float(high) * 1.05


def with_values_cut_off(marks: tuple[Mark, ...], ends: tuple[float, float]) -> tuple[Mark, ...]:
    """The marks with what an axis cuts off written below the name of the category."""
    cut: dict[str, list[str]] = {}
    for mark in marks:
        for label, (value, *interval) in zip(mark.values.index, values_of(mark), strict=True):
            beyond = [each for each in (value, *interval) if math.isfinite(each) and not ends[0] <= each <= ends[1]]
            if beyond:
                arrow = "\N{UPWARDS ARROW}" if beyond[0] > 0 else "\N{DOWNWARDS ARROW}"
                sure = f" ({interval[0]:.3g} to {interval[1]:.3g})" if np.isfinite(interval).any() else ""
                text = arrow if isinstance(mark, Dots) else f"{arrow}{value:.3g}{sure}"
                cut.setdefault(str(label), []).append(text)
    names = {label: f"{label}\n{' '.join(dict.fromkeys(texts))}" for label, texts in cut.items()}
    return tuple(relabelled(mark, lambda label: names.get(str(label), str(label))) for mark in marks)
