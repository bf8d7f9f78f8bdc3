"""The report of the fine-tuning study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.applications.finetuning.tables import LORA, RANDOM
from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section

HOW_TO_READ = (
    "The claim (Zhao et al. 2024, arXiv 2402.18815, abstract): training only a language's neurons on a few hundred "
    "documents improves the model in that language. The paper measures tasks; this report measures the loss on "
    "hold-out text, in nats per token. Negative numbers are better.",
    "Each kind is trained on the same documents. Methods: the first neurons of each, as many for all. random: neurons "
    "of the same layers, as active in the language as those of {first}, one draw per seed. lora: adapters of the MLPs "
    "with about as many parameters. full: all weights. Each kind has its own learning rate, chosen on text that is not "
    "reported.",
    "Intervals are Student's, at 95 %, over {seeds} seeds, which change the documents' order, the documents where "
    "fewer are trained on than there are, the random neurons and LoRA. The intervals do not cover another choice of "
    "hold-out text. Differences to random neurons are seed by seed, with intervals that hold for all kinds together.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, config = study.tables, study.settings
    summary, against = tables["summary"], tables["against_random"]
    first = next(iter(study.found))
    how = [line.format(first=first, seeds=config["seeds"]) for line in HOW_TO_READ]
    units = study.found[first].counts().iloc[0]
    rates = (
        (Section("Learning rates", ("The language's loss after a short training, on text for this choice.",),
                 {"Losses": tables["rates"]}),)
        if len(tables["rates"]) else ()
    )  # fmt: skip
    return Report(
        "Fine-tuning of neurons",
        f"{origin['model']['name']}, {units} neurons of each method, {origin['started'][:10]}",
        lead(summary, against),
        {
            f"{row['trained']}, {row['documents']} documents, {row['kind']}: loss change": f"{row['own']:+.3f}"
            for row in summary.to_dict("records")
        },
        (
            *(_section(*key, summary, against) for key in _keys(summary)),
            Section("How to read this", tuple(how)),
            *rates,
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )  # fmt: skip


def _keys(summary: pd.DataFrame) -> list[tuple[str, int]]:
    return [*dict.fromkeys(zip(summary["trained"], summary["documents"], strict=True))]


def lead(summary: pd.DataFrame, against: pd.DataFrame) -> str:
    """The main finding in words, also if negative."""
    return " ".join(_words(*key, summary, against) for key in _keys(summary))


def _words(language: str, documents: int, summary: pd.DataFrame, against: pd.DataFrame) -> str:
    rows = _rows(summary, language, documents).set_index("kind")
    apart = _rows(against, language, documents).set_index("kind")
    best = str(rows["own"].idxmin())
    told = f"{language}, {documents} documents: {best} improves {language} most ({_with(rows.loc[best], 'own')})"
    methods = [str(kind) for kind in apart.index if kind not in (LORA, "full")]
    better = [kind for kind in methods if apart.loc[kind, "own_high"] < 0]
    worse = [kind for kind in methods if apart.loc[kind, "own_low"] > 0]
    unclear = [kind for kind in methods if kind not in (*better, *worse)]
    parts = [
        f"{', '.join(kinds)} {words} matched random neurons ({_with(rows.loc[RANDOM], 'own')})"
        for kinds, words in ((better, "better than"), (unclear, "not told from"), (worse, "worse than"))
        if kinds
    ]
    spared = str(rows["others"].idxmin())
    return f"{told}; {'; '.join(parts)}; other languages lose least by {spared} ({_with(rows.loc[spared], 'others')})."


def _with(row: Any, name: str) -> str:
    return f"{row[name]:+.3f}, {row[f'{name}_low']:+.3f} to {row[f'{name}_high']:+.3f}"


def _rows(table: pd.DataFrame, language: str, documents: int) -> pd.DataFrame:
    return of(table, trained=language).loc[lambda rows: rows["documents"].eq(documents)]


def _section(language: str, documents: int, summary: pd.DataFrame, against: pd.DataFrame) -> Section:
    """One language and number of documents: changes, and differences to random neurons."""
    rows = _rows(summary, language, documents)
    return Section(
        f"{language}, {documents} documents",
        ("Changes of the loss in nats per token, means over seeds; negative: better.",),
        {"Changes": rows, "Minus random neurons, seed by seed": _rows(against, language, documents)},
        {f"change-{slug(language)}-{documents}": plots.training_changes(rows, f"Trained on {language}")},
    )
