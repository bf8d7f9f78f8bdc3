"""A library-independent figure, drawn by matplotlib (png, svg, pdf) or plotly (html)."""

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.text import Text

from lsn_lens.report.axes import draw
from lsn_lens.report.fonts import lettering
from lsn_lens.report.marks import (
    MOST_WRITTEN_CELLS,
    Bars,
    Dots,
    Heatmap,
    Line,
    Mark,
    labels_of,
    reach_of,
    relabelled,
    with_values_cut_off,
)
from lsn_lens.report.traces import horizontal, plain, traces

__all__ = ["MOST_WRITTEN_CELLS", "Bars", "Chart", "Dots", "Heatmap", "Line", "Mark", "fragment", "save"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
IMAGES = (".png", ".svg", ".pdf")
PLOTLY_OPTIONS = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
TALLEST_LABEL = 36  # letters of the vertical axis in one line


@dataclass(frozen=True)
class Chart:
    """A figure for either library. A notebook shows it as an image; `.plotly()` is interactive.

    Attributes:
        title: Title of the figure.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        marks: One `Heatmap`, or `Bars`, `Dots` and `Line`s over the same categories.
        caption: How to read the figure.
        x_ticks: Place -> text, instead of categories or numbers; categories are at 0, 1, ...
        y_ticks: The same of the vertical axis.
    """

    title: str
    x: str
    y: str
    marks: tuple[Mark, ...]
    caption: str = ""
    x_ticks: Mapping[float | int, str] = field(default_factory=dict)
    y_ticks: Mapping[float | int, str] = field(default_factory=dict)

    @property
    def least_width(self) -> int:
        """Pixels below which the figure cannot be read: a page lets it scroll."""
        values = self.marks[0].values
        return min(1200, 260 + 48 * values.shape[1]) if isinstance(values, pd.DataFrame) else 560

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
        yield from (*self.x_ticks.values(), *self.y_ticks.values())
        for mark in self.marks:
            yield from labels_of(mark)

    def _relabelled(self, name: Callable[[object], str]) -> "Chart":
        marks = tuple(relabelled(mark, name) for mark in self.marks)
        ticks = {f"{axis}_ticks": {place: name(text) for place, text in getattr(self, f"{axis}_ticks").items()}
                 for axis in "xy"}  # fmt: skip
        return replace(self, title=name(self.title), x=name(self.x), y=name(self.y), marks=marks, **ticks)

    def _drawn(self) -> Figure:
        figure = Figure(figsize=self._inches(), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        draw(axes, self._named_marks())
        if self.x_ticks:
            axes.set_xticks([*self.x_ticks], [*self.x_ticks.values()], rotation=0, ha="center")
        if self.y_ticks:
            axes.set_yticks([*self.y_ticks], [*self.y_ticks.values()])
        above = 20 if isinstance(self.marks[0], Bars | Dots) else 6  # points: room for the legend
        axes.set_title(self.title, fontsize=11, loc="left", pad=above)
        axes.set_xlabel(self.x, fontsize=9)
        axes.set_ylabel("\n".join(textwrap.wrap(self.y, TALLEST_LABEL)), fontsize=9)
        axes.tick_params(labelsize=9, length=0)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue]
        return figure

    def plotly(self) -> go.Figure:
        """A plotly figure with transparent background."""
        figure = go.Figure([trace for mark in self._named_marks() for trace in traces(mark)])
        is_map, has_curves = (isinstance(self.marks[0], kind) for kind in (Heatmap, Line))
        legend = {} if has_curves else {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
        figure.update_layout(
            template="none", barmode="group", bargap=0.35, height=round(self._inches()[1] * 100),
            title={"text": plain(self.title), "x": 0, "y": 0.98, "yanchor": "top", "font": {"size": 15}},
            font={"family": FONT, "size": 13, "color": "#333"},
            margin={"l": 20, "r": 20, "t": 50 if is_map or has_curves else 80, "b": 20},
            modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#9aa1aa", "activecolor": "#62676f"},
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", showlegend=not is_map, legend=legend,
        )  # fmt: skip
        axis = {"automargin": True, "showgrid": False, "zeroline": False, "ticks": ""}
        figure.update_xaxes(**axis, **horizontal(self.marks[0]), title={"text": plain(self.x), "standoff": 12})
        lines = {"showgrid": True, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": True}
        lines["zerolinecolor"] = "rgba(128,128,128,0.8)"
        axis |= {"type": "category", "autorange": "reversed"} if is_map else lines
        words = "<br>".join(map(plain, textwrap.wrap(self.y, TALLEST_LABEL)))
        figure.update_yaxes(**axis, title={"text": words, "standoff": 12})
        if (ends := reach_of(self.marks)) is not None:
            figure.update_yaxes(range=list(ends))
        if self.x_ticks:
            figure.update_xaxes(**_ticks(self.x_ticks), range=[min(self.x_ticks) - 0.5, max(self.x_ticks) + 0.5])
        if self.y_ticks:
            figure.update_yaxes(**_ticks(self.y_ticks))
        return figure

    def _named_marks(self) -> tuple[Mark, ...]:
        """The marks, with the values of bars that are cut off in the names of their categories."""
        ends = reach_of(self.marks)
        return self.marks if ends is None else with_values_cut_off(self.marks, ends)

    @property
    def told(self) -> str:
        """The caption, with a word on bars that are cut off."""
        cut = "What is beyond the axis is cut off; its values are below the names."
        return self.caption if reach_of(self.marks) is None else f"{self.caption} {cut}".strip()

    def _inches(self) -> tuple[float, float]:
        first = self.marks[0].values
        if isinstance(first, pd.DataFrame):
            rows, columns = first.shape
            return min(14.0, 3.2 + 0.62 * columns), min(14.0, 1.8 + 0.4 * rows)
        if isinstance(self.marks[0], Line):
            places = 6 if self.marks[0].scale == "numbers" else len(first)
            return min(14.0, 5.0 + 0.3 * max(places, len(self.x_ticks))), 4.4
        width = 4.0 + 0.55 * first.index.nunique() * len(self.marks) ** 0.5
        return min(14.0, width), 4.0 + 0.25 * len(self.y_ticks)

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
    """A chart without its title as an html fragment, for a page that loads plotly.js and has titles as texts."""
    figure = chart.plotly().update_layout(title=None)
    figure.update_layout(margin={"t": 20 if isinstance(chart.marks[0], Heatmap | Line) else 50})
    return figure.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name, config=PLOTLY_OPTIONS
    )


def _ticks(given: Mapping[float | int, str]) -> dict[str, Any]:
    return {"tickmode": "array", "tickvals": [*given], "ticktext": [*map(plain, given.values())]}
