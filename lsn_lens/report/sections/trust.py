"""The page of a report that says how far its methods can be trusted."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.comparing import Comparison
from lsn_lens.report.charts import Chart
from lsn_lens.report.marks import Bars, Dots
from lsn_lens.report.page import Section
from lsn_lens.report.plots import HURT, OTHER, RANDOM
from lsn_lens.report.sections.parts import of, slug

TITLE = "How far to trust this"
HOW = {
    "stability": (
        "Other text of the same kind: shards of documents are drawn with replacement and each method is asked again. "
        "stable share: units that 95 % of these replicates choose too; the Jaccard overlap with the replicates' sets "
        "is beyond chance: 1 for the same set, 0 for random units of the same layers."
    ),
    "leave one out": (
        "Another set of languages: each language is left out in turn; the overlap of the others' sets with what they "
        "were (leave one out jaccard, beyond chance)."
    ),
    "nulls": (
        "Shuffled labels: the labels of shards are permuted across languages, so that there is nothing to find. Many "
        "rules choose as many units there, so scores count too. null p: how often permuted labels give as many units, "
        "or units that score as far out on average (the smaller share, doubled); beyond null: share of the set's units "
        "at which their language stands out from every other language, more than any does at any unit when the labels "
        "of the two are permuted. What is told from shuffled labels is a difference between texts, not yet a unit of a "
        "language."
    ),
    "survival": (
        "Changed text: units are found again on text in plain Latin letters, on words in random order, and without the "
        "languages of other scripts. Survival: share of the set that is found again, over the languages that the "
        "change tests. The ceiling is what other text of the same kind gives (for scripts: taking as many languages "
        "of the same script away). Units that hang on the order of words can be a language's all the same: no warning "
        "comes from that."
    ),
    "ablations": (
        "Other ablations: zero, means, other text's values, half. How many languages are hurt most by the ablation of "
        "their own units, in nats per token and in bits per byte: under every kind, and under some; and how many are "
        "hurt more by them than by each of a few random sets of as many units in each layer, under every kind (above "
        "random every kind; with two random sets a third of random units would be, under one kind)."
    ),
    "off target": (
        "Off target: the rise of the loss on numbers, arithmetic and code (neutral rise: that of the three which rises "
        "most, mean over the languages whose units are changed; nats a token), and of repetition in what the model "
        "writes (share of its character sequences that came before), beside those of random units."
    ),
}
TABLES = {  # caption -> columns of the table of all checks, in tables that fit a page
    "Other text of the same kind, and one language left out": (
        "stable_share", "bootstrap_jaccard", "replicates", "leave_one_out_jaccard",
    ),
    "Shuffled labels": ("units", "null_units", "null_low", "null_high", "null_p", "beyond_null", "permutations"),
    "Changed text": tuple(
        f"{text}_{what}" for text in ("romanised", "shuffled_words", "same_script") for what in ("survival", "ceiling")
    ),
    "Other ablations: numbers of languages": ("hurt_most_every_kind", "hurt_most_some_kind", "above_random_every_kind"),
    "Off target": ("neutral_rise", "random_neutral_rise", "repetition_rise", "random_repetition_rise"),
}  # fmt: skip
OPTIONS = {
    "draws of the text": ("stability",),
    "shuffled labels": ("nulls",),
    "changed text": ("survival",),
    "kinds of ablation": ("ablations",),
    "side effects off target": ("off target",),
}


def trust_section(comparison: Comparison) -> Section:
    """All checks that were done, what they warn of, and what was not done."""
    table, checks = comparison.trust, comparison.checks
    if table is None:
        return Section(TITLE, ("Nothing was checked beyond the effects above. Give compare trust=Checks(...).",))
    methods = list(comparison.ranking["method"])
    done = [words for check, words in HOW.items() if check in checks]
    not_done = [words for words, names in OPTIONS.items() if not set(names) & set(checks)]
    missing = [f"Not checked for any method: {', '.join(not_done)}."] if not_done else []
    reasons = checks["not done"]
    remarks = {"What could not be done": reasons} if len(reasons) else {}
    return Section(
        TITLE,
        (
            "Effects say that units matter. This says whether they would be found again, whether as much is found "
            "where there is nothing to find, and what else could explain them. Warnings come at thresholds that are "
            "conventions of this report, not laws.",
            *done,
            *missing,
        ),
        {
            **main_numbers(table.set_index("method").loc[methods]),
            "What it says, in words": verdicts(comparison),
            **remarks,
        },
        figures(checks, methods),
    )


def main_numbers(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The main numbers of the checks that were done, in several tables; methods without any are left out."""
    parts = {caption: table[[name for name in names if name in table]] for caption, names in TABLES.items()}
    return {caption: part.dropna(how="all").reset_index() for caption, part in parts.items() if len(part.columns)}


def verdicts(comparison: Comparison) -> pd.DataFrame:
    """One row a method: what the checks warn of."""
    methods = list(comparison.ranking["method"])
    table = doubts.check_warnings(comparison.checks, methods)
    checked = {name for check, each in comparison.checks.items() if check in HOW for name in each["method"]}
    silent = {name: "no warning from these checks" if name in checked else "not checked" for name in methods}
    left: Any = comparison.checks["not done"].groupby("method")["check"].agg(", ".join)
    words = [
        (doubts.in_words(table, name) or silent[name]) + (f"; not done: {left[name]}" if name in left else "")
        for name in methods
    ]
    return pd.DataFrame({"method": methods, "checks": words})


def figures(checks: Mapping[str, pd.DataFrame], methods: list[str]) -> dict[str, Chart]:
    """Units on true and permuted labels, and what survives changed text."""
    charts = {}
    if "nulls" in checks:
        charts["trust-nulls"] = null_chart(checks["nulls"].set_index("method").reindex(methods).dropna(how="all"))
    survived = checks.get("survival", pd.DataFrame({"control": []}))
    for control in dict.fromkeys(survived["control"]):
        table = of(survived, control=control, note="")
        tested = table.loc[table["before"].gt(0)]
        if len(tested):
            charts[f"trust-{slug(control)}"] = survival_chart(tested, control, methods)
    return charts


def null_chart(nulls: pd.DataFrame) -> Chart:
    """Units found on the true labels, beside permuted ones."""
    columns: Mapping[str, Any] = {str(name): nulls[name] for name in nulls}
    ends: Any = pd.concat([columns["null_low"], columns["null_high"]])
    marks = (
        Bars(columns["units"], "true labels", HURT),
        Bars(columns["null_units"], "permuted labels, mean", OTHER),
        Dots(ends, "permuted labels, fewest and most", RANDOM),
    )
    return Chart(
        "Units found on true and on permuted labels", "method", "different units", marks,
        "A method that finds as many units on permuted labels says nothing by their number; see null p for the scores.",
    )  # fmt: skip


def survival_chart(tested: pd.DataFrame, control: str, methods: list[str]) -> Chart:
    """Share of the sets found again, beside the ceiling, means over the languages tested."""
    groups: Any = tested.groupby("method")
    means = groups[["survival", "ceiling", "chance"]].mean().reindex(methods).dropna(how="all")
    marks = (
        Bars(means["survival"], "found again", HURT),
        Bars(means["ceiling"], "ceiling", OTHER),
        Bars(means["chance"], "chance", RANDOM),
    )
    languages = ", ".join(dict.fromkeys(tested["language"]))
    return Chart(
        f"What survives: {control}", "method", "share of the units", marks, f"Means over {languages}."
    )  # fmt: skip
