"""A library-independent figure, drawn by matplotlib (png, svg, pdf) or plotly (html)."""

import html
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from lsn_lens.report.fonts import lettering
from lsn_lens.report.marks import MOST_WRITTEN_CELLS, Bars, Dots, Heatmap, Line, Mark, labels_of, relabelled

__all__ = ["MOST_WRITTEN_CELLS", "Bars", "Chart", "Dots", "Heatmap", "Line", "Mark", "fragment", "save"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
IMAGES = (".png", ".svg", ".pdf")
PLOTLY_OPTIONS = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
LETTER = 0.08  # inches that a letter of a tick label takes, at 9 points


@dataclass(frozen=True)
class Chart:
    """A figure for either library. A notebook shows it as an image; `.plotly()` is interactive.

    Attributes:
        title: Title of the figure.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        marks: One `Heatmap`, or `Bars`, `Dots` and `Line`s over the same categories.
        caption: How to read the figure.
    """

    title: str
    x: str
    y: str
    marks: tuple[Mark, ...]
    caption: str = ""

    def save(self, path: Path | str, script: Literal["inside", "beside"] = "inside") -> Path:
        """Write the figure, see `save`."""
        return save(self, path, script)

    def matplotlib(self) -> Figure:
        """A matplotlib figure, outside of pyplot."""
        letters = lettering(self._labels())
        with matplotlib.rc_context({"font.family": list(letters.families)}):
            return self._relabelled(letters.of)._drawn()

    def _labels(self) -> Iterator[str]:
        """All texts of the figure except numbers in cells and on axes."""
        yield from (self.title, self.x, self.y)
        for mark in self.marks:
            yield from labels_of(mark)

    def _relabelled(self, name: Callable[[object], str]) -> "Chart":
        marks = tuple(relabelled(mark, name) for mark in self.marks)
        return replace(self, title=name(self.title), x=name(self.x), y=name(self.y), marks=marks)

    def _drawn(self) -> Figure:
        figure = Figure(figsize=self._inches(), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        bars = [mark for mark in self.marks if isinstance(mark, Bars)]
        handles = [MATPLOTLIB[type(mark)](axes, mark, bars) for mark in self.marks]
        if not isinstance(self.marks[0], Heatmap):
            _legend(axes, handles, self.marks)
        above = 20 if isinstance(self.marks[0], Bars | Dots) else 6  # points: room for the legend
        axes.set_title(self.title, fontsize=11, loc="left", pad=above)
        axes.set_xlabel(self.x, fontsize=9)
        axes.set_ylabel(self.y, fontsize=9)
        axes.tick_params(labelsize=9, length=0)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue]
        return figure

    def plotly(self) -> go.Figure:
        """A plotly figure with transparent background."""
        figure = go.Figure([trace for mark in self.marks for trace in _traces(mark)])
        is_map, has_curves = (isinstance(self.marks[0], kind) for kind in (Heatmap, Line))
        legend = {} if has_curves else {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
        figure.update_layout(
            template="none", barmode="group", bargap=0.35, height=round(self._inches()[1] * 100),
            title={"text": _plain(self.title), "x": 0, "y": 0.98, "yanchor": "top", "font": {"size": 15}},
            font={"family": FONT, "size": 13, "color": "#333"},
            margin={"l": 20, "r": 20, "t": 50 if is_map or has_curves else 80, "b": 20},
            modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#9aa1aa", "activecolor": "#62676f"},
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", showlegend=not is_map, legend=legend,
        )  # fmt: skip
        axis = {"automargin": True, "showgrid": False, "zeroline": False, "ticks": ""}
        figure.update_xaxes(**axis, **_scale(self.marks[0]), title={"text": _plain(self.x), "standoff": 12})
        lines = {"showgrid": True, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": True}
        lines["zerolinecolor"] = "rgba(128,128,128,0.8)"
        axis |= {"type": "category", "autorange": "reversed"} if is_map else lines
        return figure.update_yaxes(**axis, title={"text": _plain(self.y), "standoff": 12})

    def _inches(self) -> tuple[float, float]:
        first = self.marks[0].values
        if isinstance(first, pd.DataFrame):
            rows, columns = first.shape
            return min(14.0, 3.2 + 0.62 * columns), min(14.0, 1.8 + 0.4 * rows)
        if isinstance(self.marks[0], Line):
            return min(14.0, 5.0 + 0.3 * len(first)), 4.4
        return min(14.0, 4.0 + 0.55 * first.index.nunique() * len(self.marks) ** 0.5), 4.0

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.matplotlib().savefig(content, format="png")
        return content.getvalue()


def save(chart: Chart, path: Path | str, script: Literal["inside", "beside"] = "inside") -> Path:
    """Write a figure: .png, .svg and .pdf by matplotlib, .html by plotly; all open offline.

    Args:
        chart: The figure.
        path: Output file; its ending selects the format.
        script: For .html: plotly.js (5 MB) "inside" each file, or once "beside" all files of the folder.

    Raises:
        ValueError: An unknown file ending.
    """
    path = Path(path)
    if path.suffix not in (*IMAGES, ".html"):
        raise ValueError(f"{path.name}: figures end in {', '.join((*IMAGES, '.html'))}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in IMAGES:
        chart.matplotlib().savefig(path)
    else:
        source = "directory" if script == "beside" else True
        chart.plotly().write_html(path, include_plotlyjs=source, include_mathjax=False, config=PLOTLY_OPTIONS)
    return path


def fragment(chart: Chart, name: str) -> str:
    """A chart as an html fragment, for a page that loads plotly.js."""
    return chart.plotly().to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name, config=PLOTLY_OPTIONS
    )


def _plain(label: object) -> str:
    """Labels escaped for plotly, which reads some html in texts."""
    return html.escape(str(label), quote=False)


def _scale(mark: Mark) -> dict[str, Any]:
    """Plotly's horizontal axis."""
    if not isinstance(mark, Line) or not mark.log:
        return {"type": "category"}
    return {"type": "log", "tickvals": mark.places, "ticktext": [*map(_plain, mark.values.index)]}


def _columns(axes: Axes, labels: pd.Index, places: Any = None) -> None:
    """Names below an axis, slanted where neighbours would touch."""
    names = [*map(str, labels)]
    axes.set_xticks(range(len(names)) if places is None else places, names)
    width = 0.8 * axes.figure.get_figwidth()  # pyright: ignore[reportAttributeAccessIssue]
    if any(LETTER * (len(one) + len(other)) / 2 > width / len(names) for one, other in pairwise(names)):
        for tick in axes.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")


def _heatmap_axes(axes: Axes, mark: Heatmap, bars: list[Bars]) -> Any:
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


def _bars_axes(axes: Axes, mark: Bars, bars: list[Bars]) -> Any:
    width = 0.65 / len(bars)
    shift = (bars.index(mark) - (len(bars) - 1) / 2) * width
    drawn = axes.bar(np.arange(len(mark.values)) + shift, mark.values, width, color=mark.colour)
    _columns(axes, mark.values.index)
    _lines(axes)
    return drawn


def _dots_axes(axes: Axes, mark: Dots, bars: list[Bars]) -> Any:
    places = {name: place for place, name in enumerate(bars[0].values.index if bars else mark.values.index.unique())}
    at = [places[name] for name in mark.values.index]
    _lines(axes)
    return axes.scatter(at, mark.values, s=22, color=mark.colour, edgecolor="white", linewidth=0.6, zorder=3)


def _line_axes(axes: Axes, mark: Line, bars: list[Bars]) -> Any:
    places = mark.places
    if mark.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    style = "--" if mark.dashed else "o-"
    (drawn,) = axes.plot(places, mark.values, style, color=mark.colour, linewidth=1.6, markersize=3.5, label=mark.label)
    if mark.band is not None:
        axes.fill_between(places, mark.band["low"], mark.band["high"], color=mark.colour, alpha=0.2, linewidth=0)
    _columns(axes, mark.values.index, places)
    _lines(axes)
    return drawn


def _lines(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axhline(0, color="#888888", linewidth=0.8)


def _legend(axes: Axes, handles: list[Any], marks: tuple[Mark, ...]) -> None:
    """The legend: beside the axes for curves, which are many, and above for bars and dots."""
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderpad": 0}
    where: dict[str, Any] = beside if isinstance(marks[-1], Line) else above
    legend = axes.legend(handles, ["-"] * len(handles), fontsize=8, frameon=False, **where)
    for text, mark in zip(legend.get_texts(), marks, strict=True):
        text.set_text(mark.label)  # set now, since matplotlib hides labels that begin with "_"


def _heatmap_trace(mark: Heatmap) -> go.Heatmap:
    scale = [[place / (len(mark.colours) - 1), colour] for place, colour in enumerate(mark.colours)]
    bar_title = {"text": "<br>".join(map(_plain, mark.label.split("<br>"))), "side": "right", "font": {"size": 12}}
    return go.Heatmap(
        z=mark.values.to_numpy(dtype=float), x=[*map(_plain, mark.values.columns)], y=[*map(_plain, mark.values.index)],
        zmin=mark.limits[0], zmax=mark.limits[1], colorscale=scale, text=mark.texts(), texttemplate="%{text}", xgap=2,
        ygap=2, colorbar={"title": bar_title, "outlinewidth": 0, "thickness": 14},
        hovertemplate="%{y} → %{x}<br>%{z:.5g}<extra></extra>", hoverongaps=False,
    )  # fmt: skip


def _series(mark: Bars | Dots | Line) -> dict[str, Any]:
    hover = "%{x}: %{y:.5g}<extra>%{fullData.name}</extra>"
    return {
        "x": [*map(_plain, mark.values.index)],
        "y": mark.values,
        "name": _plain(mark.label),
        "hovertemplate": hover,
    }


def _bars_trace(mark: Bars) -> go.Bar:
    return go.Bar(**_series(mark), marker={"color": mark.colour})


def _dots_trace(mark: Dots) -> go.Scatter:
    marker = {"color": mark.colour, "size": 8, "line": {"color": "white", "width": 1}}
    return go.Scatter(**_series(mark), mode="markers", marker=marker)


def _line_trace(mark: Line) -> go.Scatter:
    mode, dash = ("lines", "dash") if mark.dashed else ("lines+markers", "solid")
    style = {"color": mark.colour, "width": 2, "dash": dash}
    series = _series(mark) | ({"x": mark.places} if mark.log else {})
    return go.Scatter(**series, mode=mode, line=style, marker={"size": 5})


def _traces(mark: Mark) -> list[Any]:
    around = [_band_trace(mark, mark.band)] if isinstance(mark, Line) and mark.band is not None else []
    return [*around, PLOTLY[type(mark)](mark)]


def _band_trace(mark: Line, band: pd.DataFrame) -> go.Scatter:
    """The outline of a band: the upper edge forwards, the lower edge backwards."""
    names = [*mark.places] if mark.log else [*map(_plain, mark.values.index)]
    return go.Scatter(
        x=[*names, *reversed(names)], y=[*band["high"], *reversed(list(band["low"]))], fill="toself", mode="none",
        fillcolor=mark.colour, opacity=0.2, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


MATPLOTLIB: dict[type, Callable[[Axes, Any, list[Bars]], Any]] = {
    Heatmap: _heatmap_axes, Bars: _bars_axes, Dots: _dots_axes, Line: _line_axes
}  # fmt: skip
PLOTLY: dict[type, Callable[[Any], Any]] = {
    Heatmap: _heatmap_trace, Bars: _bars_trace, Dots: _dots_trace, Line: _line_trace
}  # fmt: skip
