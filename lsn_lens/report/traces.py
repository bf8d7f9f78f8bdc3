"""The marks of a figure as plotly's traces and axes."""

import html
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lsn_lens.report.marks import Bars, Dots, Heatmap, Line, Mark
from lsn_lens.report.palette import INTERVAL


def plain(label: object) -> str:
    """A label escaped for plotly, which reads some html in texts."""
    return html.escape(str(label), quote=False).replace("\n", "<br>")


def traces(mark: Mark) -> list[Any]:
    """The traces of a mark: the band around a curve is one of its own."""
    around = [_band(mark, mark.band)] if isinstance(mark, Line) and mark.band is not None else []
    return [*around, TRACES[type(mark)](mark)]


def horizontal(mark: Mark) -> dict[str, Any]:
    """Plotly's horizontal axis."""
    if not isinstance(mark, Line) or mark.scale == "names":
        return {"type": "category"}
    if mark.scale == "numbers":
        return {"type": "linear"}
    return {"type": "log", "tickvals": mark.places, "ticktext": [*map(plain, mark.values.index)]}


def _heatmap(mark: Heatmap) -> go.Heatmap:
    scale = [[place / (len(mark.colours) - 1), colour] for place, colour in enumerate(mark.colours)]
    bar_title = {"text": "<br>".join(map(plain, mark.label.split("<br>"))), "side": "right", "font": {"size": 12}}
    return go.Heatmap(
        z=mark.values.to_numpy(dtype=float), x=[*map(plain, mark.values.columns)], y=[*map(plain, mark.values.index)],
        zmin=mark.limits[0], zmax=mark.limits[1], colorscale=scale, text=mark.texts(), texttemplate="%{text}", xgap=2,
        ygap=2, colorbar={"title": bar_title, "outlinewidth": 0, "thickness": 14},
        hovertemplate="%{y} → %{x}<br>%{z:.5g}<extra></extra>", hoverongaps=False,
    )  # fmt: skip


def _series(mark: Bars | Dots | Line) -> dict[str, Any]:
    name = {"name": plain(mark.label), "showlegend": bool(mark.label)}
    hover = "%{x}: %{y:.5g}<extra>%{fullData.name}</extra>"
    return {"x": [*map(plain, mark.values.index)], "y": mark.values, "hovertemplate": hover, **name}


def _bars(mark: Bars) -> go.Bar:
    series = _series(mark)
    if mark.interval is not None:
        low, high = (mark.interval[name].to_numpy(dtype=float) for name in ("low", "high"))
        values = mark.values.to_numpy(dtype=float)
        series["error_y"] = {"type": "data", "array": high - values, "arrayminus": values - low, "color": INTERVAL,
                             "thickness": 1.5, "width": 4}  # fmt: skip
        series["customdata"] = [
            f" ({a:.5g} to {b:.5g})" if math.isfinite(a + b) else "" for a, b in zip(low, high, strict=True)
        ]
        series["hovertemplate"] = "%{x}: %{y:.5g}%{customdata}<extra>%{fullData.name}</extra>"
    return go.Bar(**series, marker={"color": mark.colour})


def _dots(mark: Dots) -> go.Scatter:
    marker = {"color": mark.colour, "size": 8, "line": {"color": "white", "width": 1}}
    return go.Scatter(**_series(mark), mode="markers", marker=marker)


def _line(mark: Line) -> go.Scatter:
    plain_line = mark.dashed or mark.scale == "numbers"
    mode, dash = "lines" if plain_line else "lines+markers", "dash" if mark.dashed else "solid"
    style = {"color": mark.colour, "width": 2, "dash": dash}
    series = _series(mark) | ({"x": mark.places} if mark.scale != "names" else {})
    return go.Scatter(**series, mode=mode, line=style, marker={"size": 5})


def _band(mark: Line, band: pd.DataFrame) -> go.Scatter:
    """The outline of a band: the upper edge forwards, the lower edge backwards."""
    names = [*mark.places] if mark.scale != "names" else [*map(plain, mark.values.index)]
    return go.Scatter(
        x=[*names, *reversed(names)], y=[*band["high"], *reversed(list(band["low"]))], fill="toself", mode="none",
        fillcolor=mark.colour, opacity=0.2, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


TRACES: dict[type, Callable[[Any], Any]] = {Heatmap: _heatmap, Bars: _bars, Dots: _dots, Line: _line}
