"""Lists pages, draws figures from tables, writes notebooks, and keeps the site free of scripts from elsewhere."""

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsn_lens.methods.catalogue import METHODS

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm in the notebooks' kernel, where ipywidgets is missing
os.environ["TQDM_DISABLE"] = "1"  # no progress bars in the tutorials

# nbconvert's template brings a script that would fetch mermaid; there are no such diagrams here
MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>', re.DOTALL)
# a table, and behind it <!-- dots | title | axis | column of labels | column & column -->, or cells in place of dots
TABLE = re.compile(r"((?:^\|.*\n)+)\n<!-- (dots|cells) \|(.*)-->", re.M)
NUMBER = r"([+-]?\d[\d,]*(?:\.\d+)?)"
VALUE = re.compile(rf"{NUMBER}(?: ?%)?(?: \({NUMBER} to {NUMBER})?")
COLOURS = ("#3b4cc0", "#e07b39", "#7a7a7a")


def method_pages(docs: Path) -> list[str]:
    """The pages of `docs/methods`, each called by a method, in the order of `METHODS`."""
    stems = [path.stem for path in (docs / "methods").glob("*.md")]
    return [f"methods/{stem}.md" for stem in sorted(stems, key=list(METHODS).index)]


def on_config(config: Any) -> Any:
    """Called by mkdocs with the settings of the site."""
    for part in config.nav:
        if "Methods" in part:
            part["Methods"] = [*part["Methods"], *method_pages(Path(config.docs_dir))]
    return config


def _plain(cell: str) -> str:
    return re.sub(r"[*`]", "", cell).replace("\N{MINUS SIGN}", "-").strip()


def cells_of(table: str) -> pd.DataFrame:
    """The cells of a Markdown table, without marks of code and emphasis."""
    rows = [[_plain(cell) for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    width = len(rows[0])
    return pd.DataFrame([(row + [""] * width)[:width] for row in rows[2:]], columns=rows[0])


def values_of(cells: pd.Series) -> pd.DataFrame:
    """The first number of each cell, and its interval where it has one ("+0.1 (+0.0 to +0.2)"); NaN without number."""
    found = cells.str.extract(VALUE).replace(",", "", regex=True)
    return found.astype(float).set_axis(["value", "low", "high"], axis=1)


def _dots(axes: Axes, table: pd.DataFrame, by: str, columns: list[str]) -> None:
    """One row per label, one dot per column, with its interval."""
    for place, column in enumerate(columns):
        drawn = values_of(table[column])
        heights = [-row + 0.16 * ((len(columns) - 1) / 2 - place) for row in range(len(table))]
        axes.hlines(heights, drawn["low"], drawn["high"], COLOURS[place], linewidth=2, alpha=0.6)
        axes.plot(drawn["value"], heights, "o", color=COLOURS[place], markersize=5, label=column)
    axes.axvline(0, color="#999", linewidth=0.8)
    axes.set_yticks([-row for row in range(len(table))], table[by])
    axes.grid(axis="y", color="#ddd", linewidth=0.6)
    if len(columns) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(columns))


def _cells(axes: Axes, table: pd.DataFrame, by: str, columns: list[str]) -> None:
    """A matrix of shares, darker for more."""
    values = pd.DataFrame({column: values_of(table[column])["value"] for column in columns})
    axes.imshow(values, cmap="Blues", vmin=0, vmax=float(values.max(axis=None)) * 1.8, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(table)), table[by])
    for row, column in ((row, column) for row in range(len(table)) for column in range(len(columns))):
        axes.text(column, row, table[columns[column]].iloc[row], ha="center", va="center", fontsize=8)


def figure_of(match: re.Match[str]) -> str:
    """A table, and its figure as an image inside the page. A column that the table lacks is a KeyError."""
    table = cells_of(match[1])
    title, axis, by, chosen = (part.strip() for part in match[3].split("|"))
    columns = [each.strip() for each in chosen.split(" & ")]
    if by == "first two":  # a label of two columns, the first written once
        by = "label"
        table[by] = table.iloc[:, 0].replace("", None).ffill() + ": " + table.iloc[:, 1]
    table = table[values_of(table[columns[0]])["value"].notna()]
    if table.empty:
        raise ValueError(f"{title}: the column {columns[0]!r} has no numbers.")
    tall = 1.3 + (0.33 if match[2] == "cells" else 0.17 + 0.15 * len(columns)) * len(table)
    figure = Figure(figsize=(8, tall), layout="constrained")
    axes = figure.add_subplot()
    {"dots": _dots, "cells": _cells}[match[2]](axes, table, by, columns)
    axes.set_xlabel(axis, fontsize=9)
    axes.tick_params(labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    image = base64.b64encode(content.getvalue()).decode()
    return (
        f'{match[1]}\n<figure class="drawn" markdown="0"><img alt="{title}" src="data:image/svg+xml;base64,{image}">'
        f"<figcaption>{title}. Drawn from the table.</figcaption></figure>"
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the source of each page: figures of tables, links from CONTRIBUTING.md to pages."""
    return TABLE.sub(figure_of, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each finished page; a tutorial gets a link to its notebook."""
    if page.file.src_uri.startswith("tutorials/"):
        name = Path(page.file.src_uri).with_suffix(".ipynb").name
        output = output.replace(
            "</h1>", f'</h1><p><a href="{name}" download>Download this page as a notebook</a></p>', 1
        )
    return MERMAID.sub("", output)


def on_post_build(config: Any) -> None:
    """Called by mkdocs at the end: each tutorial as a notebook beside its page, without results."""
    import jupytext  # of the extra `docs`: tests read this file without it

    for path in sorted((Path(config.docs_dir) / "tutorials").glob("*.py")):
        target = Path(config.site_dir) / "tutorials" / f"{path.stem}.ipynb"
        jupytext.write(jupytext.read(path), target, fmt="ipynb")
