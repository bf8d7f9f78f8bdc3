"""The report of the translation study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import origin_section, text_section
from lsn_lens.studies.study import Study

Tables = Mapping[str, pd.DataFrame]
SHOWN = ("accuracy", "bleu", "accuracy_bleu", "chrf")
HOW_TO_READ = (
    "The prompt asks for a translation and does not name the language. none: the prompt alone. examples: translated "
    "sentences in front. average_precision: the target's units forced to their medians. random: as many random units.",
    "accuracy: share of texts identified as the target. bleu and chrf: against the reference, all texts as one corpus. "
    "accuracy_bleu: accuracy times the mean BLEU of the texts in the target. A high accuracy with a BLEU near 0: text "
    "in the language that is no translation. Intervals: 95 %, over sentences.",
)


def page(study: Study, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, config = study.tables, study.settings
    targets = list(dict.fromkeys(tables["translation"]["target"]))
    return Report(
        "Translation: does it say the same in the target?",
        f"{origin['model']['name']}, from {config['source']} to {', '.join(targets)}, {origin['started'][:10]}",
        lead(tables),
        {"sentences": str(config["sentences"]), "examples": str(config["shots"]), "targets": str(len(targets))},
        (
            Section("Ways, side by side", ("Means over targets.",), {"Means": means(tables)}),
            Section("How to read this", HOW_TO_READ),
            Section("By target", (), {"Every way and target": tables["translation"]}),
            Section("Translations", (), {"The first of each way and target": samples(tables)}),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def means(tables: Tables) -> pd.DataFrame:
    """Means over targets: one row per way, the largest `accuracy_bleu` first; BLEU in the target 0 where none is."""
    groups: Any = tables["translation"].groupby(["steering", "random", "dose"], sort=False)
    frame = groups[list(SHOWN)].mean().reset_index()
    return frame.sort_values("accuracy_bleu", ascending=False, kind="stable", ignore_index=True)


def lead(tables: Tables) -> str:
    """The main finding: each way by its accuracy and its accuracy times BLEU, forced units at their best count."""
    table = means(tables)
    words = []
    for name, is_random, says in (
        ("average_precision", False, "With the target's units forced"),
        ("average_precision", True, "with random units"),
        ("none", False, "with the prompt alone"), ("examples", False, "with examples in the prompt"),
    ):  # fmt: skip
        rows = table.loc[table["steering"].eq(name) & table["random"].eq(is_random)]
        if rows.empty:
            continue
        row: Any = rows.iloc[0]
        words.append(f"{says} {row['accuracy']:.0%} of the texts are in the target, accuracy times BLEU "
                     f"{row['accuracy_bleu']:.1f}")  # fmt: skip
    return "; ".join(words) + ". Of several counts the one with the largest accuracy times BLEU."


def samples(tables: Tables) -> pd.DataFrame:
    """The translation of the first sentence, by way and target."""
    texts: Any = tables["texts"]
    first = texts.loc[texts["prompt"].eq(texts["prompt"].iloc[0])]
    return first[["steering", "dose", "seed", "target", "language", "text"]].reset_index(drop=True)
