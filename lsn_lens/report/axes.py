"""The marks of a figure on matplotlib axes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import NullLocator

from lsn_lens.report.marks import Bars, Dots, Heatmap, Line, Mark, reach_of
from lsn_lens.report.palette import INTERVAL

LETTER = 0.08  # inches that a letter of a tick label takes, at 9 points


def draw(axes: Axes, marks: tuple[Mark, ...]) -> None:
    """Draw all marks, with their legend."""
    bars = [mark for mark in marks if isinstance(mark, Bars)]
    handles = [DRAWN[type(mark)](axes, mark, bars) for mark in marks]
    if not isinstance(marks[0], Heatmap):
        _legend(axes, [(handle, mark.label) for handle, mark in zip(handles, marks, strict=True) if mark.label], marks)
    if (ends := reach_of(marks)) is not None:
        axes.set_ylim(*ends)


def _columns(axes: Axes, labels: pd.Index, places: Any = None) -> None:
    """Names below an axis, slanted where neighbours would touch."""
    names = [*map(str, labels)]
    axes.set_xticks(range(len(names)) if places is None else places, names)
    width = 0.8 * axes.figure.get_figwidth()  # pyright: ignore[reportAttributeAccessIssue]
    letters = [max(map(len, name.split("\n"))) for name in names]
    if any(LETTER * (one + other) / 2 > width / len(names) for one, other in pairwise(letters)):
        for tick in axes.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")


def _heatmap(axes: Axes, mark: Heatmap, bars: list[Bars]) -> Any:
    low, high = mark.limits
    colours = LinearSegmentedColormap.from_list("", mark.colours).with_extremes(bad="none")
    image = axes.imshow(mark.values.to_numpy(dtype=float), cmap=colours, vmin=low, vmax=high, aspect="auto")
    _columns(axes, mark.values.columns)
    axes.set_yticks(range(mark.values.shape[0]), [*map(str, mark.values.index)])
    middle, reach = (low + high) / 2, (high - low) / 2
    for row, texts in enumerate(mark.texts()):
        for column, text in enumerate(texts):
            value = float(mark.values.iat[row, column])
            dark = abs(value - middle) > 0.72 * reach if low < 0 else value > low + 1.2 * reach
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#222")
    bar = axes.figure.colorbar(image, ax=axes, extend="both" if low < 0 else "neither", pad=0.02)
    bar.set_label(mark.label.replace("<br>", "\n"), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return image


def _bars(axes: Axes, mark: Bars, bars: list[Bars]) -> Any:
    width = 0.65 / len(bars)
    shift = (bars.index(mark) - (len(bars) - 1) / 2) * width
    places = np.arange(len(mark.values)) + shift
    drawn = axes.bar(places, mark.values, width, color=mark.colour)
    if mark.interval is not None:
        low, high = (mark.interval[name].to_numpy(dtype=float) for name in ("low", "high"))
        style = {"fmt": "none", "ecolor": INTERVAL, "elinewidth": 1.2, "capsize": 3}
        # around their middle: an interval need not hold the value
        axes.errorbar(places, (low + high) / 2, yerr=(high - low) / 2, **style)
    _columns(axes, mark.values.index)
    _lines(axes)
    return drawn


def _dots(axes: Axes, mark: Dots, bars: list[Bars]) -> Any:
    places = {name: place for place, name in enumerate(bars[0].values.index if bars else mark.values.index.unique())}
    at = [places[name] for name in mark.values.index]
    _lines(axes)
    return axes.scatter(at, mark.values, s=22, color=mark.colour, edgecolor="white", linewidth=0.6, zorder=3)


def _line(axes: Axes, mark: Line, bars: list[Bars]) -> Any:
    places = mark.places
    if mark.scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    style = "--" if mark.dashed else "-" if mark.scale == "numbers" else "o-"
    (drawn,) = axes.plot(places, mark.values, style, color=mark.colour, linewidth=1.6, markersize=3.5, label=mark.label)
    if mark.band is not None:
        axes.fill_between(places, mark.band["low"], mark.band["high"], color=mark.colour, alpha=0.2, linewidth=0)
    if mark.scale != "numbers":
        _columns(axes, mark.values.index, places)
    _lines(axes)
    return drawn


def _lines(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axhline(0, color="#888888", linewidth=0.8)


def _legend(axes: Axes, entries: list[tuple[Any, str]], marks: tuple[Mark, ...]) -> None:
    """The legend: beside the axes for curves, which are many, and above for bars and dots."""
    if not entries:
        return
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderpad": 0}
    where: dict[str, Any] = beside if isinstance(marks[-1], Line) else above
    legend = axes.legend([each for each, _ in entries], ["-"] * len(entries), fontsize=8, frameon=False, **where)
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(label)  # set now, since matplotlib hides labels that begin with "_"


DRAWN: dict[type, Callable[[Axes, Any, list[Bars]], Any]] = {
    Heatmap: _heatmap, Bars: _bars, Dots: _dots, Line: _line
}  # fmt: skip
