"""A folder that answers a question: report.html (one file, opens offline), report.md, figures and provenance."""

import html
import json
import platform
import subprocess
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lsn_lens.files import write_bytes
from lsn_lens.report.charts import Chart, fragment, save
from lsn_lens.report.plots import digits
from lsn_lens.text.plan import corpus_hash

PACKAGES = ("lsn-lens", "torch", "transformers", "transformer-lens", "numpy", "pandas")
HEADINGS = {
    "own_rise": "own rise", "own_rise_bits_per_byte": "in bits/byte", "own_rise_perplexity": "in perplexity",
    "own_rise_per_neuron": "per unit", "own_rise_bits_per_byte_per_neuron": "in bits/byte per unit",
    "own_minus_worst_other": "own minus worst other", "difference": "own minus worst other",
    "own_rise_short_text": "own rise", "worst_other": "other hurt most", "worst_other_rise": "its rise",
    "mean_other_rise": "mean rise of others", "random_mean": "random, mean", "random_sd": "random, sd",
    "own_hurt_most": "own hurt most", "own_hurt_most_low": "hurt most, low", "own_hurt_most_high": "high",
    "hurt_most_in": "hurt most in", "hurt_most_share": "of replicates", "surely_hurt_most": "surely",
    "share_above_random": "above random", "shown": "languages that pass",
    "shown_low": "pass, low", "shown_high": "high", "own_rise_low": "own rise, low", "own_rise_high": "high",
    "difference_low": "difference, low", "difference_high": "high",
}  # fmt: skip
NATS = (
    "own_rise", "own_minus_worst_other", "difference", "own_rise_short_text", "worst_other_rise", "mean_other_rise",
    "random_mean", "random_sd", "own_rise_low", "own_rise_high", "difference_low", "difference_high",
)  # fmt: skip
FOUND_AGAIN = [
    f"{text}_{what}" for text in ("romanised", "shuffled_words", "same_script") for what in ("survival", "ceiling")
]
SHARES = {
    "rate": ".2%",
    **dict.fromkeys(("p", "q", "p_own", "q_own", "p_minus_english", "q_minus_english"), ".3f"),
    **dict.fromkeys(("shown_low", "shown_high", "own_hurt_most_low", "own_hurt_most_high"), ".0f"),
    **dict.fromkeys(("share_above_random", "hurt_most_share", "stable_share", "beyond_null", *FOUND_AGAIN), ".0%"),
}


@dataclass(frozen=True)
class Section:
    """One heading of a report.

    Attributes:
        title: The heading.
        text: Paragraphs.
        tables: Caption -> table.
        figures: File name without ending -> figure.
        code: Commands, shown as they are.
        view: Ready html that is shown as it is, for example from `neuron_on_text`; not in report.md.
        data: Plain data, folded away as JSON.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Chart] = field(default_factory=dict)
    code: str = ""
    view: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A title, what was found in one or two sentences, its numbers in short, and the sections."""

    title: str
    subtitle: str
    lead: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]


def write_report(report: Report, folder: Path | str) -> Path:
    """Write report.html, report.md and figures/ (png and html); returns the path of report.html.

    report.html asks nothing of the network: styles, plotly.js and figures are inside. All texts, labels and cells
    are escaped.
    """
    folder = Path(folder)
    for section in report.sections:
        for name, chart in section.figures.items():
            save(chart, folder / "figures" / f"{name}.png")
            save(chart, folder / "figures" / f"{name}.html", script="beside")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "fragment": lambda chart, name: Markup(fragment(chart, name)),
        "table_cells": table_cells,
        "kinds": lambda frame: [_kind(name, frame[name]) for name in frame.columns],
        "raw": Markup,
        "json": lambda data: json.dumps(data, indent=1, ensure_ascii=False, default=str),
    }
    page = environment.get_template("template.html").render(report=report, plotly=Markup(get_plotlyjs()))
    write_bytes(folder / "report.md", _markdown(report).encode())
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def provenance(
    used: Mapping[str, Any], measured: Mapping[str, Any], settings: Mapping[str, Any], started: datetime
) -> dict[str, Any]:
    """What it takes to know where a result came from, as plain data.

    Args:
        used: The settings of the run, or as there `model` (from `structure.describe`) and `text`.
        measured: The text that losses were measured on, from `perplexity_table`'s `attrs["text"]`.
        settings: Of the experiment.
        started: When it began, with a time zone.
    """
    text = used["text"]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "model": dict(used["model"]),
        "corpus": {"sha256": corpus_hash(text), **text},
        "hold_out": {"sha256": corpus_hash(measured), **measured},
        "seed": settings.get("seed"),
        "settings": dict(settings),
        "command": [Path(sys.executable).name, *sys.argv],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path | str) -> None:
    """Each table as parquet and csv."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def _git_commit() -> str | None:
    """The commit of the checkout that the package is run from; None where it is none."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "run.py")  # an installed package may lie in someone else's checkout
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def table_cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text: about three significant digits of a column's largest number, "n/a" for missing.

    Columns in nats per token have the same number of digits, so that they can be compared.
    """
    headings = [HEADINGS.get(str(name), str(name).replace("_", " ")) for name in frame.columns]
    largest = _largest(frame[[name for name in frame.columns if name in NATS]])
    columns = [_column_cells(str(name), frame.loc[:, name], largest) for name in frame.columns]
    return headings, [list(cells) for cells in zip(*columns, strict=True)]


def _kind(name: Hashable, values: pd.Series) -> str:
    """The style of a column: numbers stand to the right, warnings are coloured."""
    if pd.api.types.is_numeric_dtype(values):
        return "number"
    return "warning" if name in ("warning", "warnings", "note") else "word"


def _column_cells(name: str, values: pd.Series, largest: float) -> list[str]:
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return ["" if value is None else str(value) for value in values]
    if pd.api.types.is_integer_dtype(values):
        form = ",d"
    elif name in SHARES:
        form = SHARES[name]
    else:
        sign = "+z" if name in NATS or name.endswith(("_rise", "_rise_bits_per_byte", "_rise_perplexity")) else ","
        form = f"{sign}.{_decimals(largest if name in NATS else _largest(values))}f"
    return ["n/a" if pd.isna(value) else format(value, form) for value in values]


def _largest(values: Any) -> float:
    """The largest finite size in a column or table; 0 where there is none."""
    sizes = np.abs(np.asarray(values, dtype=float)).ravel()
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _decimals(largest: float) -> int:
    """About three significant digits of the largest number, and one decimal at least."""
    return max(1, digits(largest) + 1) if largest > 0 else 1


def _markdown(report: Report) -> str:
    lines = [f"# {_line(report.title)}", _line(report.subtitle), f"**{_line(report.lead)}**"]
    lines += ["\n".join(f"- {_line(name)}: {_line(value)}" for name, value in report.facts.items())]
    for section in report.sections:
        lines += [f"## {_line(section.title)}", *map(_line, section.text)]
        lines += [f"![{_line(chart.title)}](figures/{name}.png)" for name, chart in section.figures.items()]
        for caption, frame in section.tables.items():
            headings, rows = table_cells(frame)
            cells = pd.DataFrame([[_cell(each) for each in row] for row in rows], columns=[_cell(h) for h in headings])
            lines += [_line(caption), cells.to_markdown(index=False, disable_numparse=True)]
        lines += [f"```\n{section.code}\n```"] if section.code else []
        lines += [f"```json\n{json.dumps(section.data, indent=1, default=str)}\n```"] if section.data else []
    return "\n\n".join(lines) + "\n"


def _line(text: str) -> str:
    return html.escape(" ".join(str(text).split()), quote=False)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
