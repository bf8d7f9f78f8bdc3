"""The report of steering: what each section shows and says."""

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
DIRECTIONS = ("diffmean", "language_dimensions")  # in the residual stream; the others are neurons, or words
WORDS = ("prompt",)
VERBS = {1: "do better than", 0: "are level with", -1: "lose to"}
CUT = 110  # characters of a sample that are shown
HOW_TO_READ = (
    "Share: of the texts, how many are identified as the target language, with a Wilson 95 % interval. Beside it the "
    "share without any steering, and with random units (or a random direction of the same length) treated alike. "
    "Clear: the interval lies above both.",
    "A share alone misleads: the identifier can be fooled by single words and by broken text. So look at the other "
    "columns too: repetition; the loss of the text under the unchanged model (text nll; compare it with texts "
    "without steering); what steering does to the loss on real text of the target (it should fall) and of other "
    "languages (it should not rise); and at the samples below.",
    "Doses were chosen on texts from nothing; the tables are of other samples, and of texts with prompts.",
)


def page(study: Study, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    config, tables = origin["settings"], study.tables
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
            doses_section(tables),
            deactivation_section(tables),
            samples_section(tables, config["shown"]),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def lead(tables: Tables) -> str:
    """What came out: neurons, beside the direction and the prompt."""
    rows = {row["steering"]: row for row in tables["summary"].to_dict("records")}
    neurons = best_neurons(tables)
    row = rows[neurons]
    words = [
        f"Of all neurons, those of {neurons} steer best: on average {row['share']:.0%} of the texts are in the target "
        f"language (without steering {row['none_share']:.0%}, random units {row['random_share']:.0%}); "
        f"clearly for {row['clear']} of {row['pairs']} pairs of source and target."
    ]
    if row["warning"]:
        words.append(f"But: {row['warning']}.")
    for other in (*DIRECTIONS, *WORDS):
        if other in rows:
            words.append(f"They {VERBS[beats(row, rows[other])]} {other} ({rows[other]['share']:.0%}).")
    return " ".join(words)


def facts(tables: Tables) -> dict[str, str]:
    """The numbers in short."""
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
    """All ways to steer at a glance."""
    return Section(
        "Ways to steer, side by side",
        ("Means over all pairs of source and target; the source can be nothing. Largest share first.",),
        {"Each way at its chosen dose": tables["summary"]},
    )


def targets_section(tables: Tables) -> Section:
    """Shares by target, from nothing and after prompts."""
    table = tables["steering"]
    order = list(tables["summary"]["steering"])
    figures = {}
    for name, title, part in (
        ("from-nothing", "Texts from nothing", table.loc[table["source"].eq(NOTHING)]),
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
        "By target", ("How many texts are in the target language.",), {"Every source and target": table}, figures
    )


def doses_section(tables: Tables) -> Section:
    """Dose and response, one figure for each way to steer."""
    doses = tables["doses"]
    names = list(dict.fromkeys(doses["steering"]))
    figures = {f"dose-{slug(name)}": plots.dose_curve(of(doses, steering=name), name) for name in names}
    return Section(
        "Dose and response",
        (
            "Texts from nothing, all targets together. Doses of average_precision are units of a language, all others "
            "are strengths. The dose that is used above has the largest share among those whose texts are at most 1 "
            "nat per token less probable than texts without steering.",
        ),
        {"Doses": doses},
        figures,
    )


def deactivation_section(tables: Tables) -> Section:
    """Does the model leave a language whose units are off, and for which?"""
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
            "Prompts in a language are continued while its units are set to zero. Rows: the prompt's language; "
            "columns: the language of what follows; und: none could be named. Clear: fewer stay than without "
            "intervention and than with random units, beyond the interval.",
        ),
        {"Texts that stay in the prompt's language": tables["deactivation"]},
        figures,
    )


def samples_section(tables: Tables, shown: int) -> Section:
    """Texts, so that a reader can judge."""
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
