"""The report of the working language: what each section shows and says."""

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
    """What the layers say, and how far that can be trusted, with `origin` from `provenance`."""
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
        f"Of the tokens that can be told, {share[middle]:.0%} are of the text's own language in the middle (layer "
        f"{middle} of {last}), and {share[last]:.0%} at the output; random tokens would give {chance:.0%}. Whatever "
        f"the text, layer {middle} names {most} most often, in {named.at[most, middle]:.0%} of the cases where "
        f"{1 / len(languages):.0%} would be even. Only {told[middle]:.0%} of layer {middle}'s top {top_k} tokens can "
        f"be told at all, {told[last]:.0%} at the output."
    )
    facts = {
        "own language, embedding": f"{share[0]:.0%}",
        f"own language, layer {middle}": f"{share[middle]:.0%}",
        "own language, output": f"{share[last]:.0%}",
        "own language, random tokens": f"{chance:.0%}",
        "top tokens that can be told, output": f"{told[last]:.0%}",
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
    """All languages at a glance."""
    layers = study["layers"]
    pivots = layers.loc[layers["language"].eq(pivot)]
    return Section(
        "In which language the layers predict",
        (
            "The residual stream after each layer is read as if the model ended there (logit lens). At each position "
            "of hold-out text the most probable tokens are looked up: those that belong to one language alone count, "
            "the others are left out. Shares are means over positions, then over documents. Layer 0 is the embedding, "
            "measured as all others; the last layer is the model's own output.",
            "A lens names some languages more than others whatever the text. The third figure shows it: an even lens "
            f"would give {1 / len(named):.2f} everywhere, as each language has the same part of the texts. A language "
            f"that stands out there, such as {most}, stands out in every other figure too, and that alone is no "
            "evidence that the model works in it.",
        ),
        {"Share of the text's own language, and what else gives such shares": own(layers).drop(columns="language")},
        {
            "own": plots.language_map(by_layer(own(layers), "share"), "Share of the text's own language"),
            "pivot": plots.language_map(by_layer(pivots, "share"), f"Share of {pivot}"),
            "named": plots.language_map(named, "Share of each language, mean over all texts", rows="language named"),
            "coverage": plots.language_map(by_layer(own(layers), "coverage"), "Share of top tokens that can be told"),
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
    """How good the labels are."""
    settings = study.labels.text
    return Section(
        "How biased the identification is",
        (
            f"A token belongs to a language whose text has it at least {settings['at_least']} times and "
            f"{settings['ratio']:g} times as often as any other (by {settings['by']}). Where languages share a script "
            "and words, few tokens belong to one alone, and a language with many such tokens is named more often. "
            "Everything here is measured on hold-out text that the labels were not made from.",
            "own: share of real tokens of the language's text that are identified as it; other: as another language; "
            "none: not at all. precision: of the text tokens identified as this language, the share that come from its "
            "text. Two languages can be compared only as far as own and precision are alike.",
        ),
        {
            "What is identified": study["coverage"],
            "Real tokens of each text, identified as": study["confusion"],
            "What random tokens would give, of the vocabulary and of the text": study["chance"],
            "Scripts: share of each language's letters": study["scripts"],
        },
    )


def words_section(words: pd.DataFrame, pivot: str) -> Section:
    """Which language's word is ahead."""
    mine = own(words).loc[lambda table: table["other"].eq(pivot)]
    last = mine.loc[mine["layer"].eq(last_layer(words))].drop(columns=["language", "layer"])
    caption = (
        f"Mean over prompts of log p(word in the prompt's language) minus log p({pivot} word), by first tokens. Red: "
        f"the prompt's own language is ahead; blue: {pivot}."
    )
    left_out = len(words.attrs["excluded"])
    return Section(
        "Parallel words",
        (
            f"Prompts end just before a word; its translations compete. share: of the prompts in which one of the two "
            f"words is among the {words.attrs['top_k']} most probable tokens (kept), how often the prompt's own "
            "language is ahead. Pairs of words of all languages that were left out, as first tokens do not tell them "
            f"apart: {left_out}. Where kept is small, the model has neither word in mind, and log-odds compare two "
            "improbable tokens.",
        ),
        {f"At the output, against {pivot}": last},
        {"words": plots.log_odds_map(by_layer(mine, "log_odds"), f"Own word against the {pivot} word", caption)},
    )


def switched_section(switched: pd.DataFrame) -> Section:
    """The same under an intervention."""
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
        ("The same on each language's own text while its units are zero, beside as many random units in each layer.",),
        {"Share and probability of the text's own language": switched},
        figures,
    )


CHANGE = "Each cell: share of the text's own language with the row's units at zero, minus without. Red: a rise."


def provenance_section(origin: Mapping[str, Any]) -> Section:
    """Where it comes from."""
    section = origin_section(origin)
    where = "Tables are in tables/ (parquet and csv), figures in figures/."
    return replace(section, text=(*section.text[:-1], where))
