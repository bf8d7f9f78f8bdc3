"""The report of the working language study."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import origin_section


def last_layer(table: pd.DataFrame) -> int:
    """The last layer of a table."""
    return int(table["layer"].to_numpy().max())


def by_layer(table: pd.DataFrame, value: str, rows: str = "text") -> pd.DataFrame:
    """A matrix: rows in their order, columns = layers, means where several values meet."""
    matrix = table.pivot_table(index=rows, columns="layer", values=value, sort=False, dropna=False)
    return matrix.loc[table[rows].unique(), sorted(matrix.columns)]


def own(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each text's own language."""
    return table.loc[table["text"].eq(table["language"])]


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    languages, layers, tables = study.labels.languages, study["layers"], study.tables
    asked = study.settings["pivot"]
    pivot = asked if asked in languages else languages[0]
    last = last_layer(layers)
    middle, top_k = last // 2, layers.attrs["top_k"]
    means: Any = own(layers).groupby("layer").mean(numeric_only=True)
    share, told, chance = means["share"], means["coverage"], means.at[last, "unigram_share"]
    named: Any = by_layer(layers, "share", rows="language")
    most = str(named[middle].idxmax())
    lead = (
        f"Of the tokens with an identified language, {share[middle]:.0%} are in the text's language in the middle "
        f"(layer {middle} of {last}) and {share[last]:.0%} at the output; random tokens would give {chance:.0%}. Over "
        f"all texts, layer {middle} names {most} most often, with a share of {named.at[most, middle]:.0%} (even: "
        f"{1 / len(languages):.0%}). Only {told[middle]:.0%} of layer {middle}'s top {top_k} tokens have an identified "
        f"language, {told[last]:.0%} at the output."
    )
    facts = {
        "own language, embedding": f"{share[0]:.0%}",
        f"own language, layer {middle}": f"{share[middle]:.0%}",
        "own language, output": f"{share[last]:.0%}",
        "own language, random tokens": f"{chance:.0%}",
        "identified top tokens, output": f"{told[last]:.0%}",
    }
    return Report(
        "Working language",
        f"{origin['model']['name']}, {len(languages)} languages ({', '.join(languages)}), {origin['started'][:10]}",
        lead,
        facts,
        (
            overview(study, pivot, named, most),
            curves(study),
            bias(study),
            *([words_section(tables["words"], pivot)] if "words" in tables else []),
            *([switched_section(tables["switched"])] if "switched" in tables else []),
            provenance_section(origin),
        ),
    )


def overview(study: Any, pivot: str, named: pd.DataFrame, most: str) -> Section:
    """All languages in one section."""
    layers = study["layers"]
    pivots = layers.loc[layers["language"].eq(pivot)]
    return Section(
        "In which language the layers predict",
        (
            "The residual stream after each layer is read as if the model ended there (logit lens). At each position "
            "of hold-out text, those of the most probable tokens count that belong to exactly one language. Shares are "
            "taken over these tokens of a document, then averaged over documents. Layer 0 is the embedding, "
            "read like all other layers; the last layer is the model's output.",
            "A lens names some languages more often than others, whatever the text. The third figure shows this bias: "
            f"an even lens would give {1 / len(named):.2f} everywhere, as each language has the same share of the "
            f"texts. A language that stands out there, such as {most}, stands out in every other figure, too; that is "
            "no evidence that the model works in this language.",
        ),
        {"Share of the text's own language, and shares of random tokens": own(layers).drop(columns="language")},
        {
            "own": plots.language_map(by_layer(own(layers), "share"), "Share of the text's own language"),
            "pivot": plots.language_map(by_layer(pivots, "share"), f"Share of {pivot}"),
            "named": plots.language_map(named, "Share of each language, mean over all texts", rows="language named"),
            "coverage": plots.language_map(
                by_layer(own(layers), "coverage"), "Share of top tokens with an identified language"
            ),
            "probability": plots.language_map(
                by_layer(own(layers), "probability"), "Probability of the text's own language", "probability"
            ),
        },
    )


def curves(study: Any) -> Section:
    """One figure per language of the text."""
    layers = study["layers"]
    return Section(
        "Language by language",
        ("Each figure is text of one language.",),
        figures={f"curve-{text}": plots.language_curves(layers, text) for text in layers["text"].unique()},
    )


def bias(study: Any) -> Section:
    """The errors of the language labels."""
    settings = study.labels.text
    return Section(
        "How biased the identification is",
        (
            f"A token belongs to a language whose text has it at least {settings['at_least']} times and "
            f"{settings['ratio']:g} times as often as any other (by {settings['by']}). Where languages share a script "
            "and words, few tokens belong to one alone, and a language with many such tokens is named more often. "
            "All errors are measured on hold-out text, which the labels were not made from.",
            "own: share of the real tokens of a language's text that are identified as this language; other: as "
            "another language; none: not identified. precision: of the text tokens identified as this language, the "
            "share from its text. Two languages can be compared only if their own and precision are similar.",
        ),
        {
            "What is identified": study["coverage"],
            "Real tokens of each text, identified as": study["confusion"],
            "Shares of random tokens, from the vocabulary and from the text": study["chance"],
            "Scripts: share of each language's letters": study["scripts"],
        },
    )


def words_section(words: pd.DataFrame, pivot: str) -> Section:
    """Which language's word is more probable."""
    mine = own(words).loc[lambda table: table["other"].eq(pivot)]
    last = mine.loc[mine["layer"].eq(last_layer(words))].drop(columns=["language", "layer"])
    caption = (
        f"Mean over prompts of log p(word in the prompt's language) minus log p({pivot} word), by first tokens. Red: "
        f"the prompt's own language is more probable; blue: {pivot}."
    )
    left_out = len(words.attrs["excluded"])
    return Section(
        "Parallel words",
        (
            "Prompts end just before a word; its translations compete. kept: share of prompts where one of the two "
            f"words is among the {words.attrs['top_k']} most probable tokens. share: of these, the share where the "
            "word in the prompt's own language is more probable. Pairs of words left out because they have the same "
            f"first token, over all languages: {left_out}. If kept is small, log-odds compare improbable tokens.",
        ),
        {f"At the output, against {pivot}": last},
        {"words": plots.log_odds_map(by_layer(mine, "log_odds"), f"Own word against the {pivot} word", caption)},
    )


def switched_section(switched: pd.DataFrame) -> Section:
    """The shares while each language's units are zero."""
    change = switched.assign(change=switched["share_after"] - switched["share_before"])
    figures = {
        f"switched-{units}": plots.change_matrix(
            by_layer(change.loc[change["units"].eq(units)], "change"),
            f"Change of the own language's share, {units} units zero", "share",
        )
        for units in change["units"].unique()
    }  # fmt: skip
    figures = {name: replace(chart, x="layer (0: embedding)", caption=CHANGE) for name, chart in figures.items()}
    return Section(
        "With each language's units switched off",
        ("Shares on each language's own text while its units, or as many random units in each layer, are zero.",),
        {"Share and probability of the text's own language": switched},
        figures,
    )


CHANGE = "Each cell: change of the share of the text's own language when the row's units are zero. Red: an increase."


def provenance_section(origin: Mapping[str, Any]) -> Section:
    """Model, text and versions of the report."""
    section = origin_section(origin)
    where = "Tables are in tables/ (parquet and csv)."
    return replace(section, text=(*section.text[:-1], where))
