"""The report of a comparison: its sections, and the folder that it is written into."""

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens.comparison.equal_size import ALONE, LEADS
from lsn_lens.comparison.grid import grid_section
from lsn_lens.comparison.ranked import kind_of
from lsn_lens.comparison.sections import (
    HOW_TO_READ,
    TEXT_VIEW,
    agreement_section,
    control_section,
    cost_section,
    effects_section,
    method_section,
    ranking_section,
    size_section,
    sizes_section,
)
from lsn_lens.comparison.tables import TRUST, Tables
from lsn_lens.comparison.trust_page import columns_of_checks, trust_section
from lsn_lens.files import write_bytes
from lsn_lens.report.columns import Column, span
from lsn_lens.report.page import Report, Section, provenance, save_tables, write_report
from lsn_lens.report.sections.parts import of, origin_section, text_section
from lsn_lens.report.text_view import activations_on_text, neuron_on_text

SHOWN_TEXT = 160  # characters of a document in the view of neurons on text
COLUMNS: Mapping[str, Column] = {
    "own_minus_worst_other": Column("in-language minus worst other", "nats"),
    "own_rise_short_text": Column("in-language loss increase", "nats"),
    "own_rise_per_neuron": Column("per unit"),
    "own_rise_bits_per_byte_per_neuron": Column("in bits/byte per unit"),
    "shown": Column("languages that pass"),
    "shown_low": Column("pass, low", "count"),
    "shown_high": Column("high", "count"),
    "own_hurt_most_low": Column("hurt most, low", "count"),
    "own_hurt_most_high": Column("high", "count"),
    "area": Column("mean over sizes: in-language minus worst other", "nats"),
    "area_low": Column("low", "nats"),
    "area_high": Column("high", "nats"),
    "own_area": Column("in-language", "nats"),
    "random_area": Column("in-language, random units", "nats"),
    "minus_leader": Column("minus the first", "nats"),
    "minus_leader_low": Column("low", "nats"),
    "minus_leader_high": Column("high", "nats"),
    "random_low": Column("random, least", "nats"),
    "random_high": Column("random, most", "nats"),
    "units": Column("units"),
}


def write(
    comparison: Tables,
    folder: Path | str,
    settings: Mapping[str, Any],
    started: datetime,
    note: str,
    more: Sequence[Section],
    png: bool,
) -> Path:
    """Write the report and all tables, see `Comparison.report`; return the path of report.html."""
    folder, text = Path(folder), comparison.run.to_frame().reset_index()
    files = _files(comparison.found)
    sets = {f"neurons-{files[name]}": each.to_frame() for name, each in comparison.found.items()}
    save_tables({**comparison, **sets, "text": text}, folder / "tables")
    for name, each in comparison.found.items():
        each.save(folder / "neurons" / f"{files[name]}.safetensors")
    measured = comparison.losses.attrs["text"] if "losses" in comparison else {}
    origin = provenance(comparison.run.settings, measured, settings, started)
    write_bytes(folder / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False, default=str).encode())
    return write_report(comparison_report(comparison, text, origin, note, more), folder, png=png)


def _files(methods: Iterable[str]) -> dict[str, str]:
    """Methods' names as different file names; a method object is named by its `repr`."""
    names: dict[str, str] = {}
    for method in methods:
        name = re.sub(r"[^\w.=,()-]+", "-", method)
        taken = sum(each.casefold() == name.casefold() for each in names.values())
        names[method] = f"{name}-{len(names)}" if taken else name
    return names


def comparison_report(
    comparison: Tables, text: pd.DataFrame, origin: Mapping[str, Any], note: str = "", more: Sequence[Section] = ()
) -> Report:
    """The whole report, methods in the order of the ranking.

    Args:
        comparison: From `compare`. Without a model, the sections on effects are left out.
        text: From `Run.to_frame`.
        origin: From `provenance`.
        note: A paragraph on the sizes of the sets.
        more: Further sections.
    """
    languages, has_effects = list(origin["corpus"]["languages"]), "effects" in comparison
    view = neurons_on_text(comparison)
    sections = (
        *([grid_section(comparison)] if has_effects else []),
        ranking_section(comparison, note),
        HOW_TO_READ,
        *([size_section(comparison)] if "equal_size" in comparison else []),
        *((effects_section(comparison), control_section(comparison)) if has_effects else ()),
        *([trust_section(comparison)] if TRUST in comparison else []),
        agreement_section(comparison),
        sizes_section(comparison),
        cost_section(comparison),
        *(method_section(name, comparison) for name in comparison.ranking["method"]),
        *more,
        *([Section("Neurons on text", (TEXT_VIEW,), view=view)] if view else []),
        text_section(text, origin),
        origin_section(origin),
    )
    columns = {**COLUMNS, **columns_of_checks(comparison)}
    return Report(
        "Language-specific neurons",
        f"{origin['model']['name']}, {len(languages)} languages ({', '.join(languages)}), {origin['started'][:10]}",
        lead(comparison.ranking.to_dict("records")[0], comparison.tables.get("equal_size"))
        if has_effects else NOT_RANKED,
        facts(comparison),
        tuple(replace(each, columns={**columns, **each.columns}) for each in sections),
    )  # fmt: skip


NOT_RANKED = "No effect was measured, as no model was given. Methods are not ranked; the tables show what they find."


def neurons_on_text(comparison: Tables) -> str:
    """Where each language's highest scoring neurons fire in the first hold-out document of every language."""
    best = next((name for name in comparison.ranking["method"] if set(comparison.found[name].masks) == {"mlp"}), None)
    if best is None or not len(comparison.found[best]) or comparison.model is None or comparison.corpora is None:
        return ""
    scores, found = comparison.scores[best], comparison.found[best]
    keys = ["language", "basis", "layer", "unit"]
    ranked = scores.to_frame().merge(found.to_frame(), on=keys).sort_values("score", ascending=False, kind="stable")
    neurons = ranked.groupby("language", sort=False).head(2)
    neurons = neurons.set_index("language").loc[[each for each in found.languages if each in set(neurons["language"])]]
    texts = {label: next(iter(each.hold_out))[:SHOWN_TEXT] for label, each in comparison.corpora.items()}
    return neuron_on_text(activations_on_text(comparison.model, texts, neurons.reset_index()))


def lead(row: Mapping[Hashable, Any], equal_size: pd.DataFrame | None = None) -> str:
    """Who leads at equal size on each kind of unit; and what the first method passes at its own size; in words."""
    interval = _interval(row, "shown")
    own = (
        f"With its own {row['units']:,} units, {row['method']} passes for {row['shown']} of {row['languages']} "
        f"languages{interval and f' ({interval})'}."
    )
    weak = ["A weak result: no more than half of the languages."] * (2 * row["shown"] <= row["languages"])
    return " ".join([*([] if equal_size is None else leaders(equal_size)), own, *weak])


def leaders(equal_size: pd.DataFrame) -> list[str]:
    """One sentence: on each kind of unit who leads, or that nobody does, with the number and its interval."""
    said = []
    for bases in dict.fromkeys(equal_size["bases"]):
        first = of(equal_size, bases=bases).to_dict("records")[0]
        name, place, low, high = first["method"], first["place"], first["area_low"], first["area_high"]
        if pd.isna(first["area"]):
            said.append(f"on {kind_of(bases)} no method has enough units")
            continue
        who = {LEADS: f"{name} leads", ALONE: f"{name} is alone"}.get(
            place, f"no method leads, {name} has the largest effect, {place.removeprefix('first, ')}"
        )
        sure = "too few documents for an interval" if pd.isna(low) else f"95 % interval {low:+z.2g} to {high:+z.2g}"
        weak = ", not distinguishable from 0" if low <= 0 else ""
        said.append(f"on {kind_of(bases)} {who}: {first['area']:+z.2g} ({sure}{weak})")
    return [f"At equal size, in-language minus worst other loss increase, nats per token: {'; '.join(said)}."]


def _interval(row: Mapping[Hashable, Any], name: str) -> str:
    """The 95 % interval of a count of languages, over documents."""
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    if low == high == row[name]:
        return "the same on other documents"
    return "" if pd.isna(low) else f"on other documents {span(f'{low:.0f}', f'{high:.0f}')}"


def facts(comparison: Tables) -> dict[str, str]:
    """The main numbers, for the top of the page."""
    ranking = comparison.ranking
    row = ranking.to_dict("records")[0]
    left_out = {"methods left out": str(comparison.skipped["bases"].eq("").sum())}
    if "shown" not in ranking:
        units = ranking["units"]
        return {
            "methods": str(len(ranking)),
            "different units": span(f"{units.min():,}", f"{units.max():,}"),
            **left_out,
        }
    equal = comparison.tables.get("equal_size", pd.DataFrame(columns=["bases", "place", "method"]))
    counts = {f"leads on {kind_of(row['bases'])}": row["method"] for row in of(equal, place=LEADS).to_dict("records")}
    for name, words in (("shown", "languages that pass"), ("own_hurt_most", "languages hurt most, as measured")):
        about = ", ".join(filter(None, (row["method"], _interval(row, name))))
        counts[f"{words} ({about})"] = f"{row[name]} of {row['languages']}"
    return {
        **counts,
        f"mean in-language loss increase, nats per token ({row['method']}; {row['own_minus_worst_other']:+z.2g} more "
        "than that of the other language hurt most)": f"{row['own_rise']:+z.2g}",
        "methods that pass for most languages": f"{sum(2 * ranking['shown'] > ranking['languages'])} of {len(ranking)}",
        "methods that pass for none": str(sum(ranking["shown"] == 0)),
        **left_out,
    }
