"""The report of the workflow study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.stages import Stages
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report import plots
from lsn_lens.report.columns import span
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section

Tables = Mapping[str, pd.DataFrame]
HOW_TO_READ = (
    "The claim (Zhao et al. 2024, arXiv 2402.18815, abstract): the first layers turn a question into something close "
    "to English, the middle ones solve it in English, with multilingual knowledge from the FFN, and the last ones "
    "produce the question's language. If it holds for this model and these units, then turning off a language's "
    "units in the first or last layers hurts that language and spares English.",
    "The paper measures the accuracy of tasks. This report measures the loss on hold-out text, where the model "
    "understands and generates every token and solves no task. So it can support or contradict language-specific first "
    "and last stages; it cannot test reasoning.",
    "A switch is one stage and one structure: attention (q, k, v, their output) or FFN (the MLP). Units turned off: "
    "set to {action}. Rises are loss increases in nats per token, on the language whose units are off (own), on "
    "{english}, and on all others. Own minus {english} is our definition of the difference that the paper reports: "
    "positive where the language is hurt more than {english}. Any language-specific units have that effect; only "
    "others minus {english} above 0 shows that {english} is hurt less than the other languages.",
    "The control, for the loss increase and for the difference, is random sets with as many units in each layer of "
    "each kind. Switches have different numbers of units: a larger switch can have a larger loss increase in any "
    "layers.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, config, found = study.tables, study.settings, study.units
    summary = tables["summary"].to_dict("records")
    how = [line.format(action=config["ablation"], english=config["english"]) for line in HOW_TO_READ]
    return Report(
        "The multilingual workflow",
        f"{origin['model']['name']}, units by {config['method']}, {len(found.languages)} languages "
        f"({', '.join(found.languages)}), {origin['started'][:10]}",
        lead(summary, config["english"], config["seeds"]),
        {
            f"own minus {config['english']}, {row['switch']}, nats per token": f"{row['own_minus_english_rise']:+z.3f}"
            for row in summary
        },
        (
            summary_section(tables["summary"], config),
            Section("How to read this", tuple(how)),
            stages_section(study.stages, tables, found, config),
            *(switch_section(row["switch"], tables, config) for row in summary),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def lead(summary: list[dict[Any, Any]], english: str, seeds: int) -> str:
    """The main finding in words, also if negative, or if there are too few random sets for any."""
    if 1 / (1 + seeds) > verdict.LEVEL:
        return (
            f"Cannot tell: with {seeds} random sets no p-value reaches {verdict.LEVEL:g}. The loss increases "
            "are below; give 39 random sets (seeds) to compare them with random units."
        )
    six = [row for row in summary if row["switch"] != "all"]
    strong = [row for row in six if 2 * row["above_english"] > row["languages"]]
    if not strong:
        return (
            f"No sign of the workflow: no switch hurts the own language more than {english}, and more so than random "
            "sets, for more than half of the languages."
        )
    names = ", ".join(
        f"{row['switch']} ({row['units']:.1f} units; own {row['own_rise']:+z.3f}, {english} "
        f"{row['english_rise']:+z.3f}, others {row['others_rise']:+z.3f})"
        for row in sorted(strong, key=lambda row: -row["own_minus_english_rise"])
    )
    spared = ", ".join(row["switch"] for row in strong if row["others_minus_english_rise"] > 0)
    return (
        f"The own language is hurt more than {english}, and more so than by random sets, for more than half of the "
        f"languages, by {names}. Any language-specific units have that effect. A special role of {english} also needs "
        f"that {english} is hurt less than the other languages; on average this holds for {spared or 'none of these'}."
    )


def summary_section(summary: pd.DataFrame, config: Mapping[str, Any]) -> Section:
    """All switches in one table."""
    return Section(
        "Switches side by side",
        (
            f"Means over the languages but {config['english']}. above random: number of languages whose loss increase "
            f"is above that of {config['seeds']} random sets (p corrected for all switches and languages, at most "
            f"{verdict.LEVEL:g}). above english: the same for a positive difference to {config['english']}.",
        ),
        {"Loss increases in nats per token": summary.drop(columns="note")},
        {"switches": plots.switch_rises(summary, config["english"])},
    )


def stages_section(stages: Stages, tables: Tables, found: NeuronSet, config: Mapping[str, Any]) -> Section:
    """The layers of the stages, the reason for them, and the layers of the units."""
    counts = found.layer_counts()
    layers = stages.layers(len(counts))
    words = "; ".join(
        f"{name}: layer{'s' * (len(each) > 1)} {span(str(each[0]), str(each[-1]))}" for name, each in layers.items()
    )
    if "stages" in tables:
        why = (
            "The search used every second hold-out document; all other results are from the other documents. "
            f"Criterion: the largest sum of both stages' {config['criterion']}, with at least one layer between the "
            f"stages. gap: own minus {config['english']} with all units of the stage off. Rows with nearly the same "
            "number are equally good: the choice is no finding."
        )
    else:
        why = "The settings give the numbers of layers."
    shown = {"Candidates": tables["stages"]} if "stages" in tables else {}
    return Section("Where stages end", (f"{words}.", why), shown, {"layers": plots.layer_counts(counts)})


def switch_section(switch: str, tables: Tables, config: Mapping[str, Any]) -> Section:
    """One switch: loss increases by language, and the control."""
    grid, effects = (of(tables[name], switch=switch) for name in ("grid", "effects"))
    found = grid.loc[grid["seed"].isna()]
    note = of(tables["summary"], switch=switch)["note"].iloc[0]
    rows = effects.drop(columns=["switch", "seeds"])
    if not found["units"].any():
        return Section(f"Switch: {switch}", (f"{note}.",))
    matrix = found.pivot(index="deactivated", columns="evaluated", values="rise")
    matrix = matrix.loc[found["deactivated"].unique(), found["evaluated"].unique()]
    random = grid.loc[grid["seed"].notna() & grid["deactivated"].eq(grid["evaluated"])]
    bars = effects.rename(columns={"deactivated": "language"})
    points = random.rename(columns={"deactivated": "language", "rise": "own_rise"})
    end = slug(switch)
    return Section(
        f"Switch: {switch}",
        (f"{note}." if note else "No warning.",),
        {f"Units set to {config['ablation']}; loss increases in nats per token": rows},
        {
            f"change-{end}": plots.change_matrix(matrix, f"{switch}: loss increase"),
            f"control-{end}": plots.control(bars, points, f"{switch} against random units"),
        },
    )
