"""The parts of a comparison's report: what each shows and says."""

from typing import Any

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.figures import first_figure
from lsn_lens.comparison.tables import Tables
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.perplexity import as_matrix
from lsn_lens.report import plots
from lsn_lens.report.page import Section
from lsn_lens.report.sections.parts import of, slug

PASSES = (
    "A language passes if ablating its own units hurts it more than random sets like them do (q, the p-value corrected "
    f"for all methods and languages, at most {verdict.LEVEL:g}), and surely more than any other language: the "
    "intervals over documents of its rise and of the difference exclude 0, in nats per token and in bits per byte."
)


def ranking_section(comparison: Tables, note: str) -> Section:
    """All methods at a glance."""
    left_out = {"What was left out": comparison.skipped} if len(comparison.skipped) else {}
    every = doubts.in_words(comparison.warnings, doubts.EVERY)
    numbers, words = comparison.ranking.drop(columns="warnings"), comparison.ranking.loc[:, ["method", "warnings"]]
    remarks = [*([f"For all methods: {every}."] if every else []), UNITS_ARE, *([note] if note else [])]
    if "effects" not in comparison:
        return Section("Methods side by side", tuple(remarks), {"Main numbers": numbers, WORDS: words, **left_out})
    return Section(
        "Methods side by side",
        (
            f"{PASSES} Beside the number of languages that pass stands between which numbers it would lie on other "
            "documents of the same kind (95 %, against the same random sets), and for how many languages the own one "
            "is hurt most as measured, in both units, with the same interval.",
            "Those that pass for most languages come first, among equals those hurt most for more, then as they were "
            "named; how large an effect is does not count, since larger sets have larger effects.",
            *remarks,
        ),
        {"Main numbers; rises of the loss in nats per token, means over languages": numbers, WORDS: words, **left_out},
        {"methods": first_figure(comparison)},
    )


WORDS = "Why not to trust them"
UNITS_ARE = (
    "Units are different ones here; in tables of effects they are memberships, where a unit of two languages counts "
    "twice."
)
HOW_TO_READ = Section(
    "How to read this",
    (
        "A unit is one number that the model computes at each token: a neuron of an MLP layer, or one output of "
        "another projection, or one dimension of the residual stream. A method looks at what units do on text of each "
        "language, and says which belong to which. Then the units of one language at a time are ablated, and the "
        "model's loss is measured on held-out text of all languages.",
        "Ablated means: set to their mean over the other languages (the table names the action where it is another). "
        "The loss is the mean negative log-probability of a token, in nats. A rise of 0.1 means that tokens become "
        "10 % less probable on average. Tokens differ between languages, so bits per byte stand beside it.",
        "Units that belong to a language should hurt that language: a matrix with a red diagonal, pale elsewhere. "
        "Random units, as many in each layer and, where that is known, about as active in the language, are the "
        "control: a rise that they reach as well says nothing about the language. A small model or little text makes "
        "all numbers noisy; warnings in words say where.",
    ),
)
TEXT_VIEW = (
    "The two highest scoring neurons of each language, by the best method on MLP neurons, on the first held-out "
    "document of every language (in the demo text: the same sentence). Point at a neuron's name to see where it fires, "
    "click to keep it. The darker a token, the higher act(gate); values below 0, where the neuron does not fire, are "
    "white."
)


def effects_section(comparison: Tables) -> Section:
    """Does it hurt, and whom?"""
    equal = comparison.equal_size
    return Section(
        "What ablation does",
        (
            "Rises of the loss on held-out text, means over languages: in total and for each neuron, which is lower in "
            "larger sets and so does not make them comparable. Then the own language against the other one that is "
            "hurt most.",
            *([EQUAL] if len(equal) else []),
        ),
        {
            "Effect": comparison.effects,
            "Specificity": comparison.specificity,
            **({"At equal size, largest difference first": equal} if len(equal) else {}),
        },
    )


EQUAL = (
    "At equal size: of each language, the best units of each method by its own scores, as many for all methods on the "
    "same kind of unit as the smallest set of 10 or more has (units: mean of a language), on the text that random sets "
    "are measured on. Methods with fewer units in a language are left out of it."
)


def control_section(comparison: Tables) -> Section:
    """Against matched random sets."""
    seeds: Any = comparison.control_by_language["seeds"]
    more = f", {seeds.max()} where none of {seeds.min()} reaches the rise" if seeds.max() > seeds.min() else ""
    return Section(
        "Against random units",
        (
            f"For each method and language, {seeds.min()} random sets{more}, with as many units in each layer and "
            "basis, none of them the language's own, where the run knows it also about as active in the language "
            "(column matched, under each method), ablated in the same way and measured on the same text (the first "
            "tokens of the held-out part). Units that a method finds are often the most active of all, so that random "
            "ones do not quite reach them: activity and random activity are the means of both.",
            "p: the share of sets, the method's own among them, whose rise is as large or larger; above random: the "
            f"share of the languages where p, corrected for all methods and languages (q, Benjamini-Hochberg), is at "
            f"most {verdict.LEVEL:g}; z: how many standard deviations of the random sets the rise lies above their "
            "mean.",
        ),
        {"Most languages above their random sets first": comparison.control},
    )


def agreement_section(comparison: Tables) -> Section:
    """Do methods find the same units?"""
    table = comparison.agreement
    return Section(
        "Who agrees with whom",
        (
            "Two methods at equal size: of the larger set, the units with the best scores. Chance-corrected: 1 for "
            "equal sets, about 0 for what two random sets with the same layers share. Methods on different kinds of "
            "units cannot be compared and are left empty.",
        ),
        {"Pairs of methods, best agreement first": of(table, note="").drop(columns="note")},
        {"agreement": plots.agreement(table, list(comparison.ranking["method"]))},
    )


def sizes_section(comparison: Tables) -> Section:
    """How many units."""
    return Section(
        "How many units",
        ("Units of each language; a unit of two languages counts for both, and once under units.",),
        {"Fewest languages below 10 units first": comparison.sizes},
    )


def cost_section(comparison: Tables) -> Section:
    """What each method takes."""
    forward = comparison.cost.attrs["forward"]
    return Section(
        "What it costs",
        (
            f"Seconds that a method's own statistics took while collecting, and those for scoring and selecting; the "
            f"model's forward passes took {forward:.1f} seconds and count for none, its backward passes for those with "
            "gradients. What several methods need is counted for each. Bytes: of the run's folder.",
        ),
        {"Cheapest first": comparison.cost},
    )


def method_section(name: str, comparison: Tables) -> Section:
    """One method: who is hurt, against the control, and where the units are."""
    found, end = comparison.found[name], slug(name)
    losses = of(comparison.losses, set=name) if "losses" in comparison else pd.DataFrame()
    warnings = "; ".join(
        f"{row['warning']}{' (' + row['languages'] + ')' if row['languages'] else ''}"
        for row in of(comparison.warnings, method=name).to_dict("records")
    )
    tables, figures, text = {}, {}, [f"{found.method}.", f"Warnings: {warnings}." if warnings else "No warnings."]
    if len(losses):
        action = losses["action"].iloc[0]
        rows, control = (
            of(frame, method=name).drop(columns=["method", "action"])
            for frame in (comparison.effects_by_language, comparison.control_by_language)
        )
        control = control.drop(columns=["units", "seeds"]).rename(columns={"own_rise": "own_rise_short_text"})
        nats, bits = (rows[[name for name in rows if _is_of(str(name), unit)]] for unit in UNITS)
        tables[f"Set to: {action}. Rises of the loss in nats per token"] = nats
        tables["The same in bits per byte"] = bits
        tables["Against random units, on the shorter text"] = control
        matrix = as_matrix(losses)
        figures[f"change-{end}"] = plots.change_matrix(matrix, f"{name}: change of the loss, units set to: {action}")
        points = of(comparison.control_points, method=name)
        title = f"{name} against random units, on the shorter text"
        figures[f"control-{end}"] = plots.control(of(comparison.control_by_language, method=name), points, title)
    figures[f"layers-{end}"] = plots.layer_counts(found.layer_counts(), f"{name}: units per layer and language")
    figures[f"overlap-{end}"] = plots.overlap(found.jaccard(), f"{name}: units that languages share")
    return Section(f"Method: {name}", tuple(text), tables, figures)


SAID = ["own_rise_perplexity", "own_rise_per_neuron", "own_rise_bits_per_byte_per_neuron", "ratio", "own_rank",
        "own_rank_bits_per_byte", "mean_other_rise_bits_per_byte", "p", "q"]  # fmt: skip  # in other tables


UNITS = ("nats", "bits")


def _is_of(column: str, unit: str) -> bool:
    """Whether a column belongs into the table of a unit; those of neither stand in the first, relative ones nowhere."""
    if column in SAID or column.endswith("_relative"):
        return False
    return ("bits_per_byte" in column) == (unit == "bits") or (unit == "bits" and column == "language")
