"""Pages and galleries as html: one folder that opens offline and asks nothing of any other place."""

import html
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from lsn_lens.files import write_bytes
from lsn_lens.inspection.pages import Content, Shown
from lsn_lens.report.columns import Column
from lsn_lens.report.tables import page_script, table_cells

SCRIPT, MARKER, KIND = "circuitsvis.js", "neuron_pages.json", "lsn_lens neuron pages"
TEMPLATES = Path(__file__).parent / "templates"
WIDTH, EDGE = 220, 8  # of a drawn interval
TITLES = {
    "activity": "Activity in each language", "effects": "Effect when it is changed",
    "scores": "Scores under each method",
    "writes": "Tokens that its output weights promote and suppress", "reads": "Tokens that its input weights read",
    "similar": "Most similar neurons",
}  # fmt: skip
KINDS = {
    "top": ("Texts on which it is strongest", "Rows of the text that units are found with, strongest first. Colour: "
            "blue above 0, orange below, one scale for all texts of the page; hover over a token for its value."),
    "random": ("Random texts", "Rows and places drawn at random, the same for every unit, on the same scale."),
}  # fmt: skip
COLUMNS: Mapping[str, Column] = {
    "rise": Column("loss increase", "nats"), "low": Column("low", "number"), "high": Column("high", "number"),
    "random_mean": Column("random, mean", "nats"), "random_low": Column("random, least", "nats"),
    "random_high": Column("random, largest", "nats"), "rank_overall": Column("rank for all languages", "count"),
    "rank": Column("rank", "count"), "loss increase": Column("loss increase", "nats"),
    "increase in next": Column("increase in next", "nats"),
}  # fmt: skip
EFFECTS = {**COLUMNS, "low": Column("low", "nats"), "high": Column("high", "nats")}


def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _read(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def circuitsvis_script() -> str:
    """The script of CircuitsVis that its package brings along."""
    spec = importlib.util.find_spec("circuitsvis")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("circuitsvis is not installed: pip install circuitsvis.")
    text = (Path(spec.origin).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return text.replace("</script>", "<\\/script>")  # it may stand inside a page


def fragment(page: Content) -> str:
    """A page's body, without style and scripts."""
    sections = [_section(page, name) for name in ("activity", "effects")]
    sections += [_texts(page, kind) for kind in KINDS]
    sections += [_section(page, name) for name in ("scores", "writes", "reads", "similar")]
    return _environment().get_template("neuron.html").render(page=page, sections=sections)


def inline(page: Content) -> str:
    """A page for a notebook, with style and scripts inside."""
    script = f"{circuitsvis_script()}\n{_read('draw.js')}"
    style = f"<style>{_read('style.css')}</style>"
    return f'{style}<div class="lsn">{fragment(page)}</div><script type="module">{script}</script>'


def check_folder(folder: Path | str) -> Path:
    """A folder that pages may be written to: new, empty, or one of these pages.

    Raises:
        FileExistsError: A file, or a folder with anything else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder for pages: give another place.")
    if folder.is_dir() and any(folder.iterdir()) and not _ours(folder):
        raise FileExistsError(
            f"{folder} is there already, and is no folder of neuron pages (it has no {MARKER}): give a new folder."
        )
    return folder


def _ours(folder: Path) -> list[str]:
    """The files of the pages that a folder has; none for another folder."""
    try:
        stored = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return stored["files"] if isinstance(stored, dict) and stored.get("kind") == KIND else []


def write_pages(folder: Path | str, pages: Sequence[Content], title: str, note: str) -> Path:
    """Write one page per unit, an index and the script; returns the path of the index.

    Pages that an earlier call wrote into the folder are replaced; other files in it stay.

    Raises:
        FileExistsError: The folder has something else.
        OSError: The disk is full.
    """
    folder = check_folder(folder)
    draw = Markup(f'<script src="{SCRIPT}"></script><script>{_read("draw.js")}</script>')
    back = Markup('<p class="soft"><a href="index.html">All units</a></p>')
    files = {page.file: _page(page.title, back + Markup(fragment(page)), draw) for page in pages}
    files["index.html"] = _page(title, Markup(_index(pages, title, note)), Markup(f"<script>{page_script()}</script>"))
    files[SCRIPT] = circuitsvis_script()
    old = set(_ours(folder)) - set(files)
    write_bytes(folder / MARKER, json.dumps({"kind": KIND, "files": sorted({*files, *old})}).encode())
    for name, content in files.items():
        write_bytes(folder / name, content.encode())
    for name in old:
        (folder / Path(name).name).unlink(missing_ok=True)
    write_bytes(folder / MARKER, json.dumps({"kind": KIND, "files": sorted(files)}).encode())
    return folder / "index.html"


def _page(title: str, body: Markup, scripts: Markup) -> str:
    template = _environment().get_template("page.html")
    return template.render(title=title, style=_read("style.css"), body=body, scripts=scripts)


def index_table(pages: Sequence[Content]) -> pd.DataFrame:
    """One row per page."""
    return pd.DataFrame([page.summary() for page in pages])


def _index(pages: Sequence[Content], title: str, note: str) -> str:
    table = index_table(pages)
    table.insert(0, "page", [f"{page.unit[0]} {page.unit[1]}.{page.unit[2]}" for page in pages])
    headings, cells = table_cells(table, COLUMNS)
    values = [["" if pd.isna(each) else each for each in row] for row in table.itertuples(index=False, name=None)]
    rows = []
    for page, some, numbers in zip(pages, cells, values, strict=True):
        found = {label for labels in page.found.values() for label in labels}
        rows.append({"file": page.file, "cells": some, "numbers": numbers, "languages": sorted(found)})
    gallery = {"title": title, "note": note, "model": pages[0].model}
    columns = [*zip(headings, table.columns, _styles(table), strict=True)]
    return _environment().get_template("index.html").render(gallery=gallery, columns=columns, rows=rows)


def _section(page: Content, name: str) -> dict[str, Any]:
    """A section with one table, or one for each measure, side or method."""
    section: dict[str, Any] = {"title": TITLES[name], "text": [*filter(None, [page.notes.get(name)])], "tables": {}}
    table = page.tables.get(name)
    if table is None or table.empty:
        return section
    by = next((each for each in ("measure", "side") if each in table), None)
    groups = {"": table} if by is None else dict(iter(table.groupby(by, sort=False)))
    for caption, some in groups.items():
        rows = some.drop(columns=[by] if by else [])
        headings, cells = table_cells(rows, EFFECTS if name == "effects" else COLUMNS)
        marks = _marks(rows, "rise" if name == "effects" else "value") if name in ("activity", "effects") else []
        section["tables"][caption] = {"headings": headings, "rows": cells, "styles": _styles(rows), "marks": marks}
    return section


def _styles(table: pd.DataFrame) -> list[str]:
    is_number = [pd.api.types.is_numeric_dtype(each) and not pd.api.types.is_bool_dtype(each) for each in table.dtypes]
    return ["number" if each else "" for each in is_number]


def _marks(rows: pd.DataFrame, value: str) -> list[dict[str, Any]]:
    """Places of the drawn values, intervals and bands of random units."""
    columns = [each for each in (value, "low", "high", "random_low", "random_high") if each in rows]
    ends = [0.0, *(float(each) for each in rows[columns].to_numpy(dtype=float).ravel() if math.isfinite(each))]
    low, reach = min(ends), (max(ends) - min(ends)) or 1.0

    def at(number: float) -> float:
        return round(EDGE + (number - low) / reach * (WIDTH - 2 * EDGE), 1) if math.isfinite(number) else EDGE

    marks = []
    for row in rows.to_dict("records"):
        band = [at(row["random_low"]), at(row["random_high"])] if "random_low" in row else []
        line = [at(row["low"]), at(row["high"])] if math.isfinite(row["low"]) else []
        marks.append({"zero": at(0.0), "dot": at(row[value]), "line": line, "band": band})
    return marks


def _texts(page: Content, kind: str) -> dict[str, Any]:
    title, text = KINDS[kind]
    limit = max((abs(value) for each in page.texts for value in each.values), default=0.0) or 1.0
    by_language = {label: [] for label in page.languages}
    for each in page.texts:
        if each.kind == kind:
            head = f"row {each.row}, strongest value {each.peak:.3g}"
            by_language[each.language].append({"head": head, "data": _data(each, limit)})
    ordered = sorted(by_language.items(), key=lambda pair: -_strongest(page, kind, pair[0]))
    return {"title": title, "text": [text, *filter(None, [page.notes.get("texts")])], "texts": ordered}


def _strongest(page: Content, kind: str, language: str) -> float:
    return max((abs(x.peak) for x in page.texts if (x.kind, x.language) == (kind, language)), default=0.0)


def _data(text: Shown, limit: float) -> str:
    """What CircuitsVis draws: tokens, values, and one colour scale."""
    tokens = [html.escape(each.replace("\n", " ")) for each in text.pieces]  # CircuitsVis reads html in tokens
    values = [float(f"{each:.4g}") for each in text.values]
    colours = {"positiveColor": "#0072b2", "negativeColor": "#d55e00"}  # told apart by the colour-blind too
    return json.dumps({"tokens": tokens, "values": values, "minValue": -limit, "maxValue": limit, **colours})
