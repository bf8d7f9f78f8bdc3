"""The sections of a comparison's report."""

import re
from typing import Any

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.equal_size import ENOUGH
from lsn_lens.comparison.figures import curve_charts, effect_charts, first_figure, size_charts
from lsn_lens.comparison.ranked import kind_of
from lsn_lens.comparison.tables import Tables
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.perplexity import as_matrix
from lsn_lens.report import plots
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Section
from lsn_lens.report.sections.parts import of, slug

PASSES = (
    "A language passes under two conditions. (1) Ablating its units raises its loss more than ablating matched random "
    f"sets does: q, the p-value corrected for all methods and languages, is at most {verdict.LEVEL:g}. (2) Its loss "
    "increase, and the distance to the largest other-language loss increase, are above 0 by their 95 % intervals over "
    "documents, in nats per token and in bits per byte."
)


def ranking_section(comparison: Tables, note: str) -> Section:
    """All methods at a glance."""
    left_out = {"What was left out": comparison.skipped} if len(comparison.skipped) else {}
    every, numbers = doubts.in_words(comparison.warnings, doubts.EVERY), comparison.ranking.drop(columns="bases")
    remarks = [*([f"For all methods: {every}."] if every else []), UNITS_ARE, *([note] if note else [])]
    if "effects" not in comparison:
        return Section("Methods side by side", tuple(remarks), {"Main numbers": numbers, **left_out})
    sized = effect_charts(comparison.curves, comparison.equal_size) if "equal_size" in comparison else {}
    return Section(
        "Methods side by side",
        (
            f"{PASSES} pass, low and high: the 95 % interval of this number over documents, against the same random "
            "sets. in-language hurt most: the number of languages that their own units hurt most as measured, in nats "
            "and in bits, with the same interval.",
            ORDER,
            *remarks,
        ),
        {"Main numbers; loss increases in nats per token, means over languages": numbers, **left_out},
        {"methods": next(iter(sized.values()), None) or first_figure(comparison)},
    )


ORDER = (
    "Methods come in the order of their effect at equal size on one kind of unit (compared on): the next section has "
    "all kinds. The other columns are of each method's own set: larger sets have larger effects and pass more easily, "
    "so these numbers do not rank methods."
)
UNITS_ARE = (
    "units: distinct units; one of several languages counts once. memberships: one of several languages counts once "
    "per language."
)
MEMBERSHIPS = {"units": Column("memberships")}
HOW_TO_READ = Section(
    "How to read this",
    (
        "A unit is one number that the model computes at each token: a neuron of an MLP layer, or one output of "
        "another projection, or one dimension of the residual stream. A method looks at what units do on text of each "
        "language, and assigns units to languages. Then the units of one language at a time are ablated, and the "
        "model's loss is measured on hold-out text of all languages.",
        "Ablated means: set to their mean over the other languages (the table names the action where it is another). "
        "The loss is the mean negative log-probability of a token, in nats. A loss increase of 0.1 means that tokens "
        "become 10 % less probable on average. Tokens differ between languages, so the tables also show bits per byte.",
        "Ablating the units of a language should hurt that language: the matrix has a red diagonal and is pale "
        "elsewhere. The control is random units: as many in each layer and, where known, about as active in the "
        "language. A loss increase that random units reach, too, is no evidence about the language. A small model or "
        "little text makes all numbers noisy; the warnings say where.",
    ),
)
TEXT_VIEW = (
    "The two highest scoring neurons of each language, by the first method of the ranking on MLP neurons, on the first "
    "hold-out document of every language (in the demo text: the same sentence). Point at a neuron's name to see where "
    "it fires, click to keep it. The darker the token, the higher act(gate); values below 0 (not firing) are white."
)


def size_section(comparison: Tables) -> Section:
    """Who leads at equal size, within each kind of unit."""
    equal, curves = comparison.equal_size, comparison.curves
    return Section(
        "At equal size",
        (
            "Each method ranks the units of a language; its first units are ablated, as many as those of every other "
            "method on the same kind of unit. The number of a method is the mean, over these sizes (by the logarithm "
            "of the number of units) and over languages, of the in-language minus the largest other-language loss "
            "increase: the area under its curve, divided by the range. Measured on the text of the random sets.",
            f"A point is a language and a size. Methods with at least {ENOUGH:.0%} of the points are ranked, on the "
            "points that all of them have; others are compared with the first one on the points that both have. "
            "minus the first: with an interval that holds for all pairs of methods together. A method leads if all of "
            "these intervals exclude 0. Intervals are of other documents of the same languages. The largest of several "
            "noisy increases is too high on average, so the difference to it is too low, more so for noisier methods: "
            "intervals reach as far as this can matter.",
        ),
        {f"{kind_of(bases)}, largest first": of(equal, bases=bases).drop(columns="bases")
         for bases in dict.fromkeys(equal["bases"])},
        {**size_charts(curves, equal), **dict([*effect_charts(curves, equal).items()][1:])},  # the first is above
    )  # fmt: skip


def effects_section(comparison: Tables) -> Section:
    """Which languages the ablation hurts, and how much."""
    return Section(
        "What ablation does",
        (
            "Loss increases on hold-out text, means over languages. Effect: in total and per unit; larger sets have "
            "less per unit, so this does not make sets comparable. Specificity: the in-language loss increase against "
            "the largest other-language loss increase.",
        ),
        {"Effect": comparison.effects, "Specificity": comparison.specificity},
        columns={**MEMBERSHIPS, "worst_other_rise": Column("largest other-language loss increase", "nats")},
    )


def control_section(comparison: Tables) -> Section:
    """In-language loss increases against matched random sets."""
    seeds: Any = comparison.control_by_language["seeds"]
    more = f", {seeds.max()} where none of {seeds.min()} reaches the loss increase" if seeds.max() > seeds.min() else ""
    return Section(
        "Against random units",
        (
            f"For each method and language, {seeds.min()} random sets{more}. A random set has as many units in each "
            "layer and basis, none of them the language's own and, where the run knows activities, about as active in "
            "the language (column matched, under each method). It is ablated in the same way and measured on the same "
            "text (the first tokens of the hold-out part). Found units are often the most active of all, so random "
            "units may be less active: activity and random activity are the means of both.",
            "p: the share of sets, including the method's own, with at least this loss increase. above random: the "
            "share of languages where q, the p corrected for all methods and languages (Benjamini-Hochberg; methods "
            "with the same set count once), is at "
            f"most {verdict.LEVEL:g}. z: the distance of the loss increase from the mean of the random sets, in their "
            "standard deviations. Here p and z are means over languages; a method's section has those of each.",
        ),
        {"Most languages above their random sets first": comparison.control},
        columns=MEMBERSHIPS,
    )


def agreement_section(comparison: Tables) -> Section:
    """Do methods find the same units?"""
    table = comparison.agreement
    return Section(
        "Who agrees with whom",
        (
            "Two methods are compared at equal size: of the larger set only the units with the best scores count. "
            "Chance-corrected: 1 for equal sets, about 0 for two random sets of the same layers. Methods on different "
            "kinds of units cannot be compared: their cells are empty.",
        ),
        {"Pairs of methods, best agreement first": of(table, note="").drop(columns="note")},
        {"agreement": plots.agreement(table, list(comparison.ranking["method"]))},
    )


def sizes_section(comparison: Tables) -> Section:
    """The number of units of each language."""
    return Section(
        "How many units",
        ("Units of each language. A unit of two languages counts for both, and once in the column units.",),
        {"Fewest languages below 10 units first": comparison.sizes},
    )


def cost_section(comparison: Tables) -> Section:
    """The time and storage of each method."""
    forward = comparison.cost.attrs["forward"]
    return Section(
        "What it costs",
        (
            "Seconds for a method's own statistics while collecting, and for scoring and selecting. The model's "
            f"forward passes took {forward:.1f} seconds and count for no method, its backward passes for methods with "
            "gradients. Statistics of several methods count for each of them. Bytes: in the run's folder.",
        ),
        {"Cheapest first": comparison.cost},
    )


def method_section(name: str, comparison: Tables) -> Section:
    """One method: loss increases by language, the control, and the layers of the units."""
    found, end = comparison.found[name], slug(name)
    losses = of(comparison.losses, set=name) if "losses" in comparison else pd.DataFrame()
    warnings = "; ".join(
        f"{row['warning']}{' (' + row['languages'] + ')' if row['languages'] else ''}"
        for row in of(comparison.warnings, method=name).to_dict("records")
    )
    tables, figures, text = (
        {},
        {},
        [f"{_in_words(found.method)}.", f"Warnings: {warnings}." if warnings else "No warnings."],
    )
    if len(losses):
        action = losses["action"].iloc[0]
        rows, control = (
            of(frame, method=name).drop(columns=["method", "action"])
            for frame in (comparison.effects_by_language, comparison.control_by_language)
        )
        control = control.drop(columns=["units", "seeds"]).rename(columns={"own_rise": "own_rise_short_text"})
        nats, bits = (rows[[name for name in rows if _is_of(str(name), unit)]] for unit in UNITS)
        tables[f"Units set to: {action}. Loss increases in nats per token"] = nats
        tables["The same in bits per byte"] = bits
        tables["Against random units, on the shorter text"] = control
        matrix = as_matrix(losses)
        figures[f"change-{end}"] = plots.change_matrix(matrix, f"{name}: loss increase, units set to: {action}")
        points = of(comparison.control_points, method=name)
        title = f"{name} against random units, on the shorter text"
        figures[f"control-{end}"] = plots.control(of(comparison.control_by_language, method=name), points, title)
    if "curves" in comparison:
        rows = of(comparison.curves, method=name)
        order = ["language", "bases", *(name for name in rows if name not in ("language", "bases", "method", "action"))]
        tables["At equal size, language by language"] = rows[order]
        figures |= curve_charts(rows)
    figures[f"layers-{end}"] = plots.layer_counts(found.layer_counts(), f"{name}: units per layer and language")
    figures[f"overlap-{end}"] = plots.overlap(found.jaccard(), f"{name}: units that languages share")
    return Section(f"Method: {name}", tuple(text), tables, figures, folded=True)


def _in_words(method: str) -> str:
    """A method as it prints, without Python's marks: "Lape: rate 0.01, at least 10"."""
    name, _, settings = method.partition("(")
    settings = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", settings.removesuffix(")"))
    for mark, words in (("=", " "), ("'", ""), ("_", " "), ("True", "yes"), ("False", "no"), ("None", "none")):
        settings = settings.replace(mark, words)
    return f"{name}: {settings}" if settings else name


SAID = ["own_rise_perplexity", "own_rise_per_neuron", "own_rise_bits_per_byte_per_neuron", "ratio", "own_rank",
        "own_rank_bits_per_byte", "mean_other_rise_bits_per_byte", "p", "q"]  # fmt: skip  # in other tables


UNITS = ("nats", "bits")


def _is_of(column: str, unit: str) -> bool:
    """Whether the table in this unit, nats or bits, has a column; the nats table also has all columns without unit."""
    if column in SAID or column.endswith("_relative"):
        return False
    return ("bits_per_byte" in column) == (unit == "bits") or (unit == "bits" and column == "language")
