"""Reports: a folder with report.html (opens offline, with the plotly.js beside it), report.md and provenance."""

import html
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lsn_lens.files import write_bytes
from lsn_lens.report.charts import Chart, fragment, save
from lsn_lens.report.columns import Column
from lsn_lens.report.tables import page_script, shown_table
from lsn_lens.text.plan import corpus_hash

PLOTLY_FILE = "plotly.min.js"
PACKAGES = ("lsn-lens", "torch", "transformers", "transformer-lens", "numpy", "pandas")


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        title: The heading.
        text: Paragraphs.
        tables: Caption -> table.
        figures: File name without ending -> figure.
        code: Commands, shown verbatim.
        view: Ready html, for example from `neuron_on_text`; not in report.md.
        data: Plain data, shown as folded JSON.
        hovers: Caption of a table -> a table of the same shape with what each cell says when pointed at.
        folded: Show the heading alone until it is opened.
        columns: Formats of table columns by name; other columns follow `columns.COMMON`.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Chart] = field(default_factory=dict)
    code: str = ""
    view: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    hovers: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    folded: bool = False
    columns: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A report: title, main finding in one or two sentences, main numbers, and sections."""

    title: str
    subtitle: str
    lead: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]


def write_report(report: Report, folder: Path | str, *, png: bool = False) -> Path:
    """Write report.html with plotly.min.js beside it, and report.md; returns the path of report.html.

    report.html needs no network, only the script in its folder. All texts, labels and cells are escaped.

    Args:
        report: What to write.
        folder: Output folder; it is created if missing.
        png: Also draw every figure into figures/, a quarter of a second each; report.md then shows them.
    """
    folder = Path(folder)
    for section in report.sections if png else ():
        for name, chart in section.figures.items():
            save(chart, folder / "figures" / f"{name}.png")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "fragment": lambda chart, name: Markup(fragment(chart, name)),
        "shown": shown_table,
        "script": page_script(),
        "raw": Markup,
        "json": lambda data: json.dumps(data, indent=1, ensure_ascii=False, default=str),
    }
    page = environment.get_template("template.html").render(report=report, plotly=PLOTLY_FILE)
    write_bytes(folder / PLOTLY_FILE, get_plotlyjs().encode())
    write_bytes(folder / "report.md", _markdown(report, png).encode())
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def provenance(
    used: Mapping[str, Any], measured: Mapping[str, Any], settings: Mapping[str, Any], started: datetime
) -> dict[str, Any]:
    """The origin of a result, as plain data: model, text, settings, versions, time.

    Args:
        used: The settings of the run, or a mapping with `model` (from `structure.describe`) and `text`.
        measured: The text of the loss measurements, from `perplexity_table`'s `attrs["text"]`.
        settings: Settings of the experiment.
        started: Start time, with a time zone.
    """
    text = used["text"]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "model": dict(used["model"]),
        "corpus": {"sha256": corpus_hash(text), **text},
        "hold_out": {"sha256": corpus_hash(measured), **measured} if measured else {},
        "seed": settings.get("seed"),
        "settings": dict(settings),
        "command": [Path(sys.executable).name, *sys.argv],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path | str) -> None:
    """Write each table as parquet and csv."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def _git_commit() -> str | None:
    """The commit of the package's git checkout; None without a checkout."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "labels.py")  # an installed package may lie in someone else's checkout
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _markdown(report: Report, png: bool) -> str:
    lines = [f"# {_line(report.title)}", _line(report.subtitle), f"**{_line(report.lead)}**"]
    lines += ["\n".join(f"- {_line(name)}: {_line(value)}" for name, value in report.facts.items())]
    for section in report.sections:
        lines += [f"## {_line(section.title)}", *map(_line, section.text)]
        for name, chart in section.figures.items():
            title = _line(chart.title)
            lines += [f"![{title}](figures/{name}.png)" if png else f"Figure in report.html: {title}."]
        for caption, frame in section.tables.items():
            table = shown_table(caption, frame, section.columns)
            rows = [[*(cell.text for cell in row.cells), *([row.remark] if table.remark else [])] for row in table.rows]
            cells = pd.DataFrame(
                [[_cell(each) for each in row] for row in rows], columns=[*map(_cell, table.all_headings)]
            )
            lines += [_line(table.caption), cells.to_markdown(index=False, disable_numparse=True)]
        lines += [f"```\n{section.code}\n```"] if section.code else []
        lines += [f"```json\n{json.dumps(section.data, indent=1, default=str)}\n```"] if section.data else []
    return "\n\n".join(lines) + "\n"


def _line(text: str) -> str:
    return html.escape(" ".join(str(text).split()), quote=False)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
