"""The page of an audit."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from lsn_lens.evaluation import verdict
from lsn_lens.report import plots
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section
from lsn_lens.studies.claims import caveats

Tables = Mapping[str, pd.DataFrame]
EFFECTS = (  # without intervals where a language has too few documents
    "language", "units", "own_rise", "own_rise_low", "own_rise_high", "worst_other", "worst_other_rise",
    "mean_other_rise", "difference_low", "percentile", "p", "q", "passes", "warnings",
)  # fmt: skip
OFF_TARGET = (
    "language", "own_rise", "mean_other_rise", "random_mean_other_rise", "numbers_rise", "arithmetic_rise", "code_rise",
    "repetition_before", "repetition_after", "repetition_random", "collapse",
)  # fmt: skip
DOMAINS = ("domain", "language", "units", "own_rise", "worst_other", "worst_other_rise", "own_rank", "own_hurt_most")
COLUMNS = {
    "percentile": Column("random sets below", "share"),
    "passes": Column("passes"),
    "share": Column("most active in own", "share"),
    "chance": Column(kind="share"),
    "survival": Column(kind="share"),
    "ceiling": Column(kind="share"),
    "changed": Column("documents changed", "share"),
    "found_again": Column("of the set, found here", "share"),
    "responds": Column("most active in own", "share"),
    "unsure": Column("of these, without an interval"),
}
HOW_TO_READ = (
    "Each language's units are set to {action} while the loss of all languages is measured on hold-out text. Loss "
    "increases are in nats per token. A language passes if its own loss increase exceeds that of {seeds} random sets "
    "(q at most {level:g}: Benjamini and Hochberg's correction over all rows of the page) and surely exceeds every "
    "other language's, in nats and in bits per byte (95 % intervals, from a bootstrap over documents).",
    "Random sets have as many units in each layer, none of them the language's own. They share with the set: "
    "{matched}. With {tests} tests and {seeds} random sets, {fewest} rows must exceed all of their random sets for any "
    "row to pass.",
    "Active is not needed: units can be most active in a language without any effect on its loss. No effect shown is "
    "not proof of none: more text, and more random sets, can show smaller effects.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole page, with `origin` from `provenance`."""
    tables = study.tables
    claims = tables["claims"].to_dict("records")
    languages = list(tables["text"]["language"])
    lead = " ".join(row["words"] if len(claims) == 1 else f"{row['set']}: {row['words']}" for row in claims)
    return Report(
        "Audit of language-specific units",
        f"{origin['model']['name']}, {len(claims)} set{'s' * (len(claims) > 1)}, text of {', '.join(languages)}, "
        f"{origin['started'][:10]}",
        lead,
        {str(row["set"]): f"{row['verdict']} ({row['units']} units)" for row in claims},
        (
            Section(
                "What holds",
                tables={"One row per set": tables["claims"].drop(columns=["words", "passing"])},
                columns=COLUMNS,
            ),
            how_section(study),
            *(section for row in claims for section in set_sections(str(row["set"]), row, tables)),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def how_section(study: Any) -> Section:
    """How the numbers were made."""
    tests, seeds = int(study.tables["random"]["units"].gt(0).sum()), study.settings["seeds"]
    words = {
        "action": {"zero": "zero", "mean": "their mean over all languages", "other mean": "the other languages' mean"}[
            study.settings["action"]
        ],
        "seeds": seeds, "level": verdict.LEVEL, "tests": tests, "fewest": verdict.fewest_to_pass(tests, seeds),
        "matched": "; ".join(study.tables["random"]["matched"].unique()),
    }  # fmt: skip
    return Section("How to read this", tuple(line.format(**words) for line in HOW_TO_READ))


def set_sections(name: str, claim: Mapping[Any, Any], tables: Tables) -> Iterator[Section]:
    """What was measured of one set."""
    mine: dict[str, Any] = {key: of(table, set=name) for key, table in tables.items() if "set" in table}
    effects, losses = mine["effects"], mine["losses"]
    matrix = losses.pivot(index="intervened", columns="evaluated", values="nll_change").reindex(
        index=list(effects["language"])
    )
    figures = {
        f"{slug(name)}-matrix": plots.change_matrix(matrix, f"{name}: loss increase"),
        f"{slug(name)}-random": plots.control(effects, mine["random_points"], f"{name}: own language and random units"),
    }
    shown = {"Loss increase by language": effects[[each for each in EFFECTS if each in effects]]}
    yield Section(name, (claim["words"], *caveats(tables, name)), shown, figures, columns=COLUMNS)
    more = {
        "Activity: units that are most active in their own language": ("activity", None),
        "Side effects, beside random units": ("off_target", OFF_TARGET),
        "Outliers: the effect without and of units far above their layer's median": ("outliers", None),
        "Changed text: units that the method finds again": ("survival", None),
        "Other domains": ("domains", DOMAINS),
    }
    found = {
        caption: mine[key][[each for each in columns or mine[key].columns if each != "set" and each in mine[key]]]
        for caption, (key, columns) in more.items() if key in mine and len(mine[key])
    }  # fmt: skip
    yield Section(f"{name}: further checks", (), found, columns=COLUMNS)
