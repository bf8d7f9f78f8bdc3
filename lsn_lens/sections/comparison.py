"""The report of a comparison of methods: what each section shows and says."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from lsn_lens import plots
from lsn_lens.evaluation.compare import Comparison
from lsn_lens.evaluation.perplexity import as_matrix
from lsn_lens.report import Report, Section
from lsn_lens.sections.parts import of, origin_section, slug, text_section
from lsn_lens.sections.trust import trust_section


def comparison_report(
    comparison: Comparison, text: pd.DataFrame, view: str, rates: str, origin: Mapping[str, Any]
) -> Report:
    """The whole report, best method first.

    Args:
        comparison: From `compare`, with a model.
        text: From `Run.to_frame`.
        view: From `neuron_on_text`, for the best method with MLP neurons; "" for none.
        rates: How large the sets are and why, in words.
        origin: From `provenance`.
    """
    first = comparison.ranking.to_dict("records")[0]
    languages = list(origin["corpus"]["languages"])
    return Report(
        "Language-specific neurons",
        f"{origin['model']['name']}, {len(languages)} languages ({', '.join(languages)}), {origin['started'][:10]}",
        lead(first),
        facts(comparison),
        (
            ranking_section(comparison, rates),
            HOW_TO_READ,
            effects_section(comparison),
            control_section(comparison),
            *([trust_section(comparison)] if comparison.trust is not None else []),
            agreement_section(comparison),
            sizes_section(comparison),
            cost_section(comparison),
            *(method_section(name, comparison) for name in comparison.ranking["method"]),
            *([Section("Neurons on text", (TEXT_VIEW,), view=view)] if view else []),
            text_section(text, origin),
            origin_section(origin),
        ),
    )


def lead(row: Mapping[Hashable, Any]) -> str:
    """What the first row of a ranking says, in words, also where it says little."""
    found = (
        f"{row['method']} comes first. For {row['shown']} of {row['languages']} languages, ablating the units that it "
        "finds hurts that language more than any other, and more than 95 % of the random sets of as many units in the "
        f"same layers do. On average the loss of the own language changes by {row['own_rise']:+z.4f} nats a token, "
        f"that is {row['own_minus_worst_other']:+z.4f} next to the other language that is hurt most."
    )
    weak = 2 * row["shown"] <= row["languages"]
    return f"A weak result: no method passes both tests for more than half of the languages. {found}" if weak else found


def facts(comparison: Comparison) -> dict[str, str]:
    """The numbers in short."""
    ranking = comparison.ranking
    row = ranking.to_dict("records")[0]
    return {
        f"languages that pass both tests ({row['method']})": f"{row['shown']} of {row['languages']}",
        "mean own rise, nats a token": f"{row['own_rise']:+z.4f}",
        "methods that pass for most languages": f"{sum(2 * ranking['shown'] > ranking['languages'])} of {len(ranking)}",
        "methods that pass for none": str(sum(ranking["shown"] == 0)),
        "methods left out": str(comparison.skipped["bases"].eq("").sum()),
    }


def ranking_section(comparison: Comparison, rates: str) -> Section:
    """All methods at a glance."""
    left_out = {"What was left out": comparison.skipped} if len(comparison.skipped) else {}
    return Section(
        "Methods side by side",
        (
            "Best first. A language passes (shown) where ablating its own units hurts it more than any other "
            "language, and more than 95 % of the random sets do. Among equals, the order is that of the mean "
            "difference between the own rise and the worst other language's.",
            rates,
        ),
        {"Main numbers; rises of the loss in nats a token, means over languages": comparison.ranking, **left_out},
        {
            "methods": plots.method_rises(
                measured(comparison, "specificity").merge(measured(comparison, "control")[["method", "random_mean"]])
            )
        },
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
        "Random units, as many in each layer and about as active where that is known, are the control: a rise that "
        "they reach as well says nothing about the language. A small model or little text makes all numbers noisy; "
        "warnings in words say where.",
    ),
)
TEXT_VIEW = (
    "The two highest scoring neurons of each language, by the best method on MLP neurons, on the first held-out "
    "document of every language (in the demo text: the same sentence). Point at a neuron's name to see where it fires, "
    "click to keep it. The darker a token, the higher act(gate); values below 0, where the neuron does not fire, are "
    "white."
)


def effects_section(comparison: Comparison) -> Section:
    """Does it hurt, and whom?"""
    return Section(
        "What ablation does",
        (
            "Rises of the loss on held-out text, means over languages: in total, and for each neuron, which makes sets "
            "of different sizes comparable. Then the own language against the other one that is hurt most.",
        ),
        {
            "Effect, strongest first": measured(comparison, "effects"),
            "Specificity, highest first": measured(comparison, "specificity"),
        },
    )


def control_section(comparison: Comparison) -> Section:
    """Against matched random sets."""
    seeds = max(measured(comparison, "control_by_language")["seeds"].to_list())
    return Section(
        "Against random units",
        (
            f"For each method and language, {seeds} random sets with as many units in each layer and basis, where the "
            "run knows it also about as active (column matched, under each method), none of "
            "them the language's own, ablated in the same way and measured on the same text (the first tokens of the "
            "held-out part). percentile: share of the random sets with a smaller rise; z: how many of their standard "
            "deviations the rise lies above their mean.",
        ),
        {"Most languages above 95 % of their random sets first": measured(comparison, "control")},
    )


def agreement_section(comparison: Comparison) -> Section:
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


def sizes_section(comparison: Comparison) -> Section:
    """How many units."""
    return Section(
        "How many units",
        ("Units of each language; a unit of two languages counts for both, and once under units.",),
        {"Fewest languages below 10 units first": comparison.sizes},
    )


def cost_section(comparison: Comparison) -> Section:
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


def method_section(name: str, comparison: Comparison) -> Section:
    """One method: who is hurt, against the control, and where the units are."""
    found, end = comparison.found[name], slug(name)
    losses = of(measured(comparison, "losses"), set=name)
    warnings = "; ".join(
        f"{row['warning']}{' (' + row['languages'] + ')' if row['languages'] else ''}"
        for row in of(comparison.warnings, method=name).to_dict("records")
    )
    tables, figures, text = {}, {}, [f"{found.method}.", f"Warnings: {warnings}." if warnings else "No warnings."]
    if len(losses):
        action = losses["action"].iloc[0]
        rows, control = (
            of(frame, method=name).drop(columns=["method", "action"])
            for frame in (measured(comparison, "effects_by_language"), measured(comparison, "control_by_language"))
        )
        control = control.drop(columns=["neurons", "seeds"]).rename(columns={"own_rise": "own_rise_short_text"})
        tables[f"Set to: {action}. Rises of the loss in nats a token"] = rows.drop(columns=SAID)
        tables["Against random units, on the shorter text"] = control
        matrix = as_matrix(losses)
        figures[f"change-{end}"] = plots.change_matrix(matrix, f"{name}: change of the loss, units set to: {action}")
        points = of(measured(comparison, "control_points"), method=name)
        title = f"{name} against random units, on the shorter text"
        figures[f"control-{end}"] = plots.control(
            of(measured(comparison, "control_by_language"), method=name), points, title
        )
    figures[f"layers-{end}"] = plots.layer_counts(found.layer_counts(), f"{name}: units per layer and language")
    figures[f"overlap-{end}"] = plots.overlap(found.jaccard(), f"{name}: units that languages share")
    return Section(f"Method: {name}", tuple(text), tables, figures)


SAID = ["own_rise_perplexity", "own_rise_per_neuron", "own_rise_bits_per_byte_per_neuron", "ratio"]  # in other tables


def measured(comparison: Comparison, name: str) -> pd.DataFrame:
    """A table that takes a model.

    Raises:
        ValueError: The comparison was made without one.
    """
    table: pd.DataFrame | None = getattr(comparison, name)
    if table is None:
        raise ValueError("a report takes effects: compare(run, model=..., corpora=...).")
    return table
