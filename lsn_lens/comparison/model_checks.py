"""Checks that run the model: on changed text, under every kind of ablation, and on text of no language."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.comparison.checking import Check, Doubts, Subject, columns_of, where
from lsn_lens.controls.ablations import ablation_sensitivity
from lsn_lens.controls.changed_text import CONTROLS
from lsn_lens.controls.neutral import measured_neutral, off_target
from lsn_lens.controls.redetection import same_script_survival, survival
from lsn_lens.evaluation.verdict import COLLAPSE

SURVIVES = 0.5  # share of the ceiling below which a set does not survive
LOST = {
    "romanised": "does not survive romanisation",
    "same script": "does not survive without the languages of other scripts",
}
NEUTRAL = ("numbers", "arithmetic", "code")
CHANGED = ("romanised", "shuffled_words", "same_script")  # as columns begin


def _survival(subject: Subject) -> pd.DataFrame:
    model, corpora, run, methods = subject.model, subject.corpora, subject.run, subject.methods
    usable, tables = {}, []
    for name, control in CONTROLS.items():  # text is read later: this only tests whether it can be changed
        with subject.attempt(name):
            control(corpora)
            usable[name] = control
    with subject.attempt("same script"):
        tables.append(same_script_survival(run, corpora, methods))
    with subject.attempt("changed text"):
        tables.append(survival(model, corpora, methods, usable, run=run, progress=subject.progress))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _surviving(table: pd.DataFrame) -> pd.DataFrame:
    tested: Any = table.loc[table["note"].eq("") & table["before"].gt(0)].groupby(["control", "method"])
    means = tested[["survival", "ceiling"]].mean()
    parts = [
        means.xs(control).add_prefix(f"{str(control).replace(' ', '_')}_")
        for control in dict.fromkeys(means.index.get_level_values("control"))
    ]
    return pd.concat(parts, axis=1) if parts else pd.DataFrame()


def _lost(table: pd.DataFrame) -> Doubts:
    gone = table["note"].eq("") & (table["survival"] < SURVIVES * table["ceiling"])
    for control, words in LOST.items():
        if languages := where(table, gone & table["control"].eq(control)):
            yield words, languages


def _survival_figures(table: pd.DataFrame) -> Mapping[str, Any]:
    from lsn_lens.comparison.figures import survival_charts

    return survival_charts(table)


SURVIVAL = Check(
    "survival",
    _survival,
    asks="methods",
    needs_model=True,
    option="changed_text",
    summary=_surviving,
    columns=columns_of("share", *(f"{text}_{what}" for text in CHANGED for what in ("survival", "ceiling"))),
    ranked=("romanised_survival",),
    doubts=_lost,
    about="changed text",
    caption="Changed text",
    says=(
        "Changed text: units are found again on text in plain Latin letters, on words in random order, and without the "
        "languages of other scripts. Survival: the share of the set that is found again, mean over the languages that "
        "the change tests. The ceiling is the survival on other text of the same kind (for scripts: without as many "
        "languages of the same script). Units that depend on word order can be language-specific: no warning."
    ),
    figures=_survival_figures,
)


def _ablations(subject: Subject) -> pd.DataFrame:
    beside: Any = {"seeds": subject.options.seeds, "text": subject.text, "progress": False}
    return ablation_sensitivity(subject.model, subject.corpora, subject.run, subject.units, **beside)


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    above = table["p"] * (1 + table["seeds"]) <= 1 + 1e-9  # no random set does as much
    groups: Any = table.assign(above=above).groupby(["method", "language"])
    names = ["hurt_most_every_kind", "above_random_every_kind"]
    every = groups[["own_hurt_most", "above"]].all().set_axis(names, axis=1)
    some = groups["own_hurt_most"].any().rename("hurt_most_some_kind")
    kinds: Any = pd.concat([every, some], axis=1).groupby("method")
    return kinds.sum()


def _one_kind(table: pd.DataFrame) -> Doubts:
    kinds = len(set(table["ablation"]))
    most = table.loc[table["own_hurt_most"]]
    alone = most.loc[~most["language"].duplicated(keep=False)] if kinds > 1 else most.iloc[:0]
    for kind in dict.fromkeys(alone["ablation"]):
        yield (
            f"hurt most only under one of {kinds} kinds of ablation: {kind}",
            where(alone, alone["ablation"].eq(kind)),
        )


ABLATIONS = Check(
    "ablations",
    _ablations,
    asks="units",
    needs_model=True,
    option="ablations",
    summary=_kinds,
    columns=columns_of("count", "hurt_most_every_kind", "hurt_most_some_kind", "above_random_every_kind"),
    doubts=_one_kind,
    about="kinds of ablation",
    caption="Other ablations: numbers of languages",
    says=(
        "Other ablations: zero, means, other text's values, half. The columns count languages: those hurt most by "
        "ablating their own units, in nats per token and in bits per byte, under every kind and under some kinds; and "
        "those hurt more by their own units than by each of a few random sets of as many units in each layer, under "
        "every kind (above random every kind; with two random sets a third of random units would be, under one kind)."
    ),
)


def _off_target(subject: Subject) -> pd.DataFrame:
    model = subject.model
    neutral = subject.once("neutral text", lambda: measured_neutral(model, progress=subject.progress))
    beside: Any = {"seeds": subject.options.seeds, "text": subject.text, "neutral": neutral, "progress": False}
    measured = off_target(
        model, subject.corpora, subject.units, subject.action, statistics=subject.run.statistics, **beside
    )
    return measured.table


def _elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    means = groups.mean(numeric_only=True)  # before the worst is taken: the largest of noisy numbers is mostly noise
    parts = {
        "neutral_rise": means[[f"{kind}_rise" for kind in NEUTRAL]].max(axis=1),
        "random_neutral_rise": means[[f"random_{kind}_rise" for kind in NEUTRAL]].max(axis=1),
        "repetition_rise": means["repetition_after"] - means["repetition_before"],
        "random_repetition_rise": means["repetition_random"] - means["repetition_before"],
    }
    return pd.DataFrame(parts)


def _hurt_elsewhere(table: pd.DataFrame) -> Doubts:
    worst = table[[f"{kind}_rise" for kind in NEUTRAL]].max(axis=1)
    if hurt := where(table, (table["units"] > 0) & ~(worst <= 0) & ~(table["own_rise"] > worst)):
        yield "numbers, arithmetic or code are hurt as much as the own language", hurt
    if broken := where(table, table["collapse"].ne("")):
        yield f"collapse off target: a text's loss rises by more than {COLLAPSE:g} nats", broken


OFF_TARGET = Check(
    "off target",
    _off_target,
    asks="units",
    needs_model=True,
    option="off_target",
    summary=_elsewhere,
    doubts=_hurt_elsewhere,
    about="side effects off target",
    caption="Off target",
    says=(
        "Off target: the loss increase on numbers, arithmetic and code (neutral: the largest of the three, mean over "
        "the languages whose units are changed; nats per token), and the increase of repetition in generated text "
        "(share of character sequences that occurred before), each beside the increase under random units."
    ),
)
