"""The report of the multilingual workflow: what each section shows and says."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.stages import Stages
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section

Tables = Mapping[str, pd.DataFrame]
HOW_TO_READ = (
    "The claim (Zhao et al. 2024, arXiv 2402.18815, abstract): the first layers turn a question into something close "
    "to English, the middle ones solve it in English, with multilingual knowledge from the FFN, and the last ones "
    "produce the question's language. If it holds for this model and these units, then turning off a language's "
    "units in the first or last layers hurts that language and spares English.",
    "They measure the accuracy of tasks; this report measures the loss on hold-out text, where every token is both "
    "understood and generated, and nothing is solved. So it can speak for or against a language-specific "
    "beginning and end; it cannot test reasoning.",
    "A switch is one stage and one structure: attention (q, k, v, their output) or FFN (the MLP). Units turned off: "
    "set to {action}. Rises are changes of the loss in nats per token, on the language whose units are off (own), on "
    "{english}, and on all others. Own minus {english} is our definition of the difference that the paper reports: "
    "positive where the language loses more than {english} does. Any units specific to a language would do that; only "
    "others minus {english} above 0 says that {english} is hurt less than the other languages are.",
    "Random sets, as many units in each layer of each kind, are the control, for the rise and for the difference. "
    "Switches differ in how many units they hold: a larger rise of a larger switch says nothing about its layers.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, config, found = study.tables, origin["settings"], study.units
    summary = tables["summary"].to_dict("records")
    how = [line.format(action=config["ablation"], english=config["english"]) for line in HOW_TO_READ]
    return Report(
        "The multilingual workflow",
        f"{origin['model']['name']}, units by {config['method']}, {len(found.languages)} languages "
        f"({', '.join(found.languages)}), {origin['started'][:10]}",
        lead(summary, config["english"]),
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


def lead(summary: list[dict[Any, Any]], english: str) -> str:
    """What came out, in words, also where it is nothing."""
    six = [row for row in summary if row["switch"] != "all"]
    strong = [row for row in six if 2 * row["above_english"] > row["languages"]]
    if not strong:
        return (
            f"No workflow to be seen: no switch hurts the own language more than it hurts {english}, beyond what "
            "random sets do, for more than half of the languages."
        )
    names = ", ".join(
        f"{row['switch']} ({row['units']:.1f} units; own {row['own_rise']:+z.3f}, {english} "
        f"{row['english_rise']:+z.3f}, others {row['others_rise']:+z.3f})"
        for row in sorted(strong, key=lambda row: -row["own_minus_english_rise"])
    )
    spared = ", ".join(row["switch"] for row in strong if row["others_minus_english_rise"] > 0)
    return (
        f"The own language is hurt more than {english}, beyond what random sets do and for more than half of the "
        f"languages, by {names}. Any units specific to a language would do that. That {english} is apart from the rest "
        f"takes more: that it is hurt less than the other languages are, on average so for {spared or 'none of these'}."
    )


def summary_section(summary: pd.DataFrame, config: Mapping[str, Any]) -> Section:
    """All switches at a glance."""
    return Section(
        "Switches side by side",
        (
            f"Means over the languages but {config['english']}. above random: for how many languages the own rise is "
            f"beyond that of {config['seeds']} random sets (p corrected for all switches and languages, at most "
            f"{verdict.LEVEL:g}). above english: for how many the difference to {config['english']} is, and is "
            "positive.",
        ),
        {"Rises of the loss in nats per token": summary.drop(columns="note")},
        {"switches": plots.switch_rises(summary, config["english"])},
    )


def stages_section(stages: Stages, tables: Tables, found: NeuronSet, config: Mapping[str, Any]) -> Section:
    """Where the stages end and why, and where the units are."""
    counts = found.layer_counts()
    layers = stages.layers(len(counts))
    words = "; ".join(f"{name}: layers {each[0]} to {each[-1]}" for name, each in layers.items())
    if "stages" in tables:
        why = (
            "Searched on every second hold-out document; all else on this page is measured on the others. Criterion: "
            f"the largest sum of both stages' {config['criterion']}, with a layer left between them. A gap is own "
            f"minus {config['english']}, all units of the stage off. Rows with nearly the same number would do as "
            "well: the choice is no finding."
        )
    else:
        why = "The numbers of layers were given."
    shown = {"Candidates": tables["stages"]} if "stages" in tables else {}
    return Section("Where stages end", (f"{words}.", why), shown, {"layers": plots.layer_counts(counts)})


def switch_section(switch: str, tables: Tables, config: Mapping[str, Any]) -> Section:
    """One switch: who is hurt, against the control."""
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
        (f"{note}." if note else "Nothing in the numbers speaks against it.",),
        {f"Units set to {config['ablation']}; rises of the loss in nats per token": rows},
        {
            f"change-{end}": plots.change_matrix(matrix, f"{switch}: change of the loss"),
            f"control-{end}": plots.control(bars, points, f"{switch} against random units"),
        },
    )
