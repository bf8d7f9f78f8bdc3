"""Small figures in what a notebook shows: inline svg without script, legible on light and dark pages."""

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

BLUE, ORANGE = "#3182bd", "#e6820e"  # on white and on black; told apart by the colour-blind too
LETTER, LINE, WIDTH = 6.5, 16, 320  # pixels: a letter, a row, and the longest bar or all cells
LEAST, MOST = 5, 22  # width of a cell


def bars(values: Mapping[str, Any], words: str) -> str:
    """Horizontal bars, blue above and orange below 0; "n/a" for NaN and None, no figure without any number.

    Args:
        values: Name -> number.
        words: What the numbers are, read aloud and shown below.
    """
    numbers = {name: math.nan if pd.isna(value) else float(value) for name, value in values.items()}
    sizes = [value for value in numbers.values() if math.isfinite(value)]
    if not sizes:
        return ""
    low, high = min([0.0, *sizes]), max([0.0, *sizes])
    scale, left = WIDTH / ((high - low) or 1.0), _left(numbers)
    zero = left - low * scale
    parts = []
    for place, (name, value) in enumerate(numbers.items()):
        parts.append(_name(name, left, place))
        if math.isfinite(value):
            reach = value * scale
            where = f'x="{min(zero, zero + reach):.1f}" width="{max(abs(reach), 0.5):.1f}"'
            parts.append(_box(where, place, BLUE if value >= 0 else ORANGE, 1.0, f"{name}: {value:,.4g}"))
            parts.append(_text(f"{value:,.4g}", left + WIDTH + 6, place, "start"))
        else:
            parts.append(_text("n/a", left + WIDTH + 6, place, "start"))
    return _svg(parts, left + WIDTH + 70, len(numbers), words)


def cells(table: pd.DataFrame, words: str) -> str:
    """Cells, the stronger in colour the larger; rows and columns are those of the table, numbers from 0."""
    highest = float(table.to_numpy(dtype=float).max(initial=0.0)) or 1.0
    size = min(MOST, max(LEAST, WIDTH // max(1, table.shape[1])))
    left, parts = _left(table.index), []
    for place, (name, row) in enumerate(table.iterrows()):
        parts.append(_name(str(name), left, place))
        for column, (label, value) in enumerate(row.items()):
            where = f'x="{left + column * size}" width="{size - 1}"'
            share = 0.06 + 0.94 * float(value) / highest
            parts.append(_box(where, place, BLUE, share, f"{name}, {table.columns.name or ''} {label}: {value:,.4g}"))
    return _svg(parts, left + size * table.shape[1] + 4, len(table), words)


def _left(names: Iterable[object]) -> float:
    """Room for the names; Chinese, Japanese and Korean letters are twice as wide."""
    return 12 + LETTER * max((sum(1 + (ord(char) > 0x2E80) for char in str(name)) for name in names), default=0)


def _name(name: str, left: float, place: int) -> str:
    return _text(name, left - 6, place, "end")


def _text(text: str, x: float, place: int, anchor: str) -> str:
    where = f'x="{x:.1f}" y="{place * LINE + 12}" text-anchor="{anchor}"'
    return f'<text {where} fill="currentColor" font-size="11">{html.escape(text)}</text>'


def _box(where: str, place: int, colour: str, opacity: float, words: str) -> str:
    shape = f'{where} y="{place * LINE + 2}" height="{LINE - 3}" fill="{colour}" fill-opacity="{opacity:.2f}"'
    return f"<rect {shape}><title>{html.escape(words)}</title></rect>"


def _svg(parts: list[str], width: float, rows: int, words: str) -> str:
    told = html.escape(words)
    shape = f'viewBox="0 0 {width:.0f} {rows * LINE + 4}" width="{width:.0f}" style="max-width: 100%"'
    drawn = f'<svg xmlns="http://www.w3.org/2000/svg" {shape} role="img" aria-label="{told}">{"".join(parts)}</svg>'
    return f'<div style="margin: .4em 0">{drawn}<div style="font-size: 85%; opacity: .75">{told}</div></div>'
