"""The report of the steering study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.generation.steering.deactivation import fallback_matrix
from lsn_lens.generation.steering.tables import beats
from lsn_lens.generation.steering.ways import NONE, NOTHING
from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section
from lsn_lens.studies.study import Study

Tables = Mapping[str, pd.DataFrame]
DIRECTIONS = ("diffmean", "language_dimensions")  # in the residual stream; other ways use neurons or words
WORDS = ("prompt",)
VERBS = {1: "do better than", 0: "are level with", -1: "lose to"}
CUT = 110  # characters per sample shown
HOW_TO_READ = (
    "Share: the share of texts identified as the target language, with a Wilson 95 % interval. The other columns give "
    "the share without steering and with random units (or a random direction of the same length) under the same "
    "change. Clear: the share is above both by Fisher's exact test (95 %), each pair by itself: "
    "no correction is made for their number. Three texts against three never suffice.",
    "The share alone can mislead: single words or broken text can fool the identifier. Check the other columns, too: "
    "repetition; the loss of the text under the unchanged model (text nll; compare with texts without steering); the "
    "loss increase on real text of the target (should be negative) and of other languages (should not be positive); "
    "and the samples below.",
    "Strengths and counts were chosen on texts without a prompt; the tables show other texts.",
)


def page(study: Study, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    config, tables = study.settings, study.tables
    languages = list(dict.fromkeys(tables["steering"]["target"]))
    return Report(
        "Steering: which language does it write?",
        f"{origin['model']['name']}, {len(languages)} languages ({', '.join(languages)}), {origin['started'][:10]}",
        lead(tables),
        facts(tables),
        (
            summary_section(tables),
            Section("How to read this", HOW_TO_READ),
            targets_section(tables),
            meaning_section(tables),
            doses_section(tables),
            deactivation_section(tables),
            samples_section(tables, config["shown"]),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def lead(tables: Tables) -> str:
    """The main finding: steering by neurons, beside the direction and the prompt."""
    rows = {row["steering"]: row for row in tables["summary"].to_dict("records")}
    neurons = best_neurons(tables)
    row = rows[neurons]
    words = [
        f"Of all sets of neurons, {neurons} steers best: on average {row['share']:.0%} of the texts are in the target "
        f"language (without steering {row['none_share']:.0%}, random units {row['random_share']:.0%}); clearly for "
        f"{row['clear']} of {row['pairs']} pairs of source and target."
    ]
    if row["warning"]:
        words.append(f"But: {row['warning']}.")
    for other in (*DIRECTIONS, *WORDS):
        if other in rows:
            words.append(f"They {VERBS[beats(row, rows[other])]} {other} ({rows[other]['share']:.0%}).")
    return " ".join(words)


def facts(tables: Tables) -> dict[str, str]:
    """The main numbers, for the top of the page."""
    neurons = best_neurons(tables)
    table = of(tables["steering"], steering=neurons)
    nothing: Any = table.loc[table["source"].eq(NOTHING)]
    prompted: Any = table.loc[table["source"].ne(NOTHING)]
    stay: Any = of(tables["deactivation"], method=best_deactivation(tables))
    return {
        f"languages clearly raised from nothing ({neurons})": f"{int(nothing['clear'].sum())} of {len(nothing)}",
        f"mean share from nothing ({neurons})": f"{nothing['share'].mean():.0%}",
        f"mean share after a prompt in another language ({neurons})": f"{prompted['share'].mean():.0%}",
        f"languages clearly left when switched off ({best_deactivation(tables)})": (
            f"{int(stay['clear'].sum())} of {len(stay)}"
        ),
    }


def best_neurons(tables: Tables) -> str:
    """The steering by neurons with the largest share."""
    names = [each for each in tables["summary"]["steering"] if each not in (*DIRECTIONS, *WORDS)]
    return str(names[0])


def best_deactivation(tables: Tables) -> str:
    """The method whose units, switched off, leave the smallest share in the language."""
    shares: Any = tables["deactivation"].groupby("method", sort=False)["share"].mean()
    return str(shares.idxmin())


def summary_section(tables: Tables) -> Section:
    """All ways to steer in one table."""
    return Section(
        "Ways to steer, side by side",
        ("Means over all pairs of source and target; source nothing means no prompt. Largest share first.",),
        {"Each way at its chosen strength or count": tables["summary"]},
    )


def targets_section(tables: Tables) -> Section:
    """Shares by target, without and with prompts."""
    table = tables["steering"]
    order = list(tables["summary"]["steering"])
    figures = {}
    for name, title, part in (
        ("from-nothing", "Texts without a prompt", table.loc[table["source"].eq(NOTHING)]),
        ("after-prompts", "Texts after a prompt in another language", table.loc[table["source"].ne(NOTHING)]),
    ):
        shares: Any = part.pivot_table(index="steering", columns="target", values="share", sort=False)
        none: Any = part.groupby("target", sort=False)["none_share"].mean()
        matrix = pd.concat([shares.reindex(order), none.to_frame("no steering").T])
        figures[name] = plots.share_map(matrix, title, x="target language", y="")
    pairs = of(table, steering=best_neurons(tables))
    matrix = pairs.pivot(index="source", columns="target", values="share")
    targets = list(dict.fromkeys(table["target"]))
    matrix = matrix.reindex(index=[*(each for each in targets if each in matrix.index), NOTHING], columns=targets)
    title = f"{best_neurons(tables)}: share of texts in the target language"
    figures["pairs"] = plots.share_map(matrix, title, x="target language", y="language of the prompt")
    return Section(
        "By target", ("Share of texts in the target language.",), {"Every source and target": table}, figures
    )


def meaning_section(tables: Tables) -> Section:
    """How much of the unsteered text is left, and words of other scripts."""
    return Section(
        "What the texts say",
        (
            "Texts after prompts against the text without steering on the same prompt: chrF and BLEU of sacrebleu, "
            "with 95 % intervals over prompts. 100: the text is the unsteered one. A text in another language has a "
            "low value even where it says the same: both tell how much is left of the words, not of the meaning. Word "
            "pass rate: texts without a word in a script that the target is not written in.",
        ),
        {"Against the text without steering": tables["meaning"]},
    )


def doses_section(tables: Tables) -> Section:
    """Strength and response, one figure per way to steer."""
    doses = tables["doses"]
    names = list(dict.fromkeys(doses["steering"]))
    figures = {f"dose-{slug(name)}": plots.dose_curve(of(doses, steering=name), name) for name in names}
    return Section(
        "Strength and response",
        (
            "Texts without a prompt, all targets together. For average_precision the dose is the count of units per "
            "language, for all other ways a strength. The tables above use the dose with the largest share among those "
            "whose texts are at most 1 nat per token less probable than texts without steering.",
        ),
        {"Doses": doses},
        figures,
    )


def deactivation_section(tables: Tables) -> Section:
    """Whether the model leaves a language whose units are off, and for which language."""
    texts, method = tables["texts-deactivation"], best_deactivation(tables)
    mine = of(texts, method=method)
    parts = {
        method: mine.loc[mine["seed"].isna()],
        f"random units like {method}": mine.loc[mine["seed"].notna()],
        "no intervention": of(texts, method=NONE),
    }
    figures = {
        f"fallback-{slug(name)}": plots.share_map(
            fallback_matrix(part),
            f"{name}: language of the continuation",
            x="",
            y="language of the prompt, switched off",
        )
        for name, part in parts.items()
    }
    return Section(
        "Switched off: which language appears instead?",
        (
            "The model continues prompts in a language while the language's units are set to zero. Rows: language of "
            "the prompt; columns: language of the continuation (und: not identified). Clear: the share that stays is "
            "below that without intervention and that with random units by Fisher's exact test (95 %).",
        ),
        {"Texts that stay in the prompt's language": tables["deactivation"]},
        figures,
    )


def samples_section(tables: Tables, shown: int) -> Section:
    """Sample texts of each way to steer."""
    texts, name = tables["texts"], best_neurons(tables)
    real = texts.loc[texts["steering"].eq(name) & texts["seed"].isna()]
    samples = {}
    for language in dict.fromkeys(tables["steering"]["target"]):
        mine = real.loc[real["target"].eq(language)]
        mine = mine.sort_values("source", key=lambda column: column.ne(NOTHING), kind="stable").head(shown)
        words = [" ".join(each.split())[:CUT] for each in mine["text"]]
        columns = {"source": mine["source"], "identified": mine["language"], "text": words}
        samples[f"Steered to {language} by {name}"] = pd.DataFrame(columns)
    return Section("Samples", (f"The first {shown} texts of each target, cut to {CUT} characters.",), samples)
