"""The report of the text dependence study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug

KEYS = ["method", "found_on", "measured_on", "language"]
RISES = ["own_rise", "worst_other_rise", "mean_other_rise", "random_mean"]


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables = study.tables
    return Report(
        "How far the neurons depend on the text",
        f"{origin['model']['name']}, units by {', '.join(study.found)}, {origin['started'][:10]}",
        lead(tables),
        {},
        (
            amounts_section(tables["amounts"]),
            *([spelling_section(tables["spelling"])] if "spelling" in tables else []),
            *([domains_section(tables["domains"])] if "domains" in tables else []),
            *([losses_section(tables["domain_losses"])] if "domain_losses" in tables else []),
            origin_section(origin),
        ),
    )


def lead(tables: Mapping[str, pd.DataFrame]) -> str:
    """The main finding in words, of the first method."""
    amounts = tables["amounts"]
    name = amounts["method"].iloc[0]
    own: Any = of(amounts, method=name)
    means = own.groupby("amount")["jaccard"].mean().dropna()
    said = [f"{value:.2f} on {amount:,} tokens per language" for amount, value in means.items()]
    found = f"Two samples of text give {name} sets with a Jaccard index of " + (", ".join(said) or "unknown size") + "."
    if "spelling" in tables:
        rows = of(tables["spelling"], method=name)
        rows = rows.loc[rows["note"].eq("")]
        kept: Any = rows.groupby("control", sort=False)[["survival", "ceiling"]].mean()
        each = [
            f"{row['survival']:.0%} with {control} (ceiling {row['ceiling']:.0%})" for control, row in kept.iterrows()
        ]
        found += f" Of a set's units, these are found again: {', '.join(each)}."
    if "domains" in tables:
        rows = of(tables["domains"], method=name)
        same = rows["found_on"].eq(rows["again_on"])
        found += (
            f" Sets of two domains have a Jaccard index of {rows.loc[~same, 'jaccard'].mean():.2f}, those of two "
            f"halves of one domain {rows.loc[same, 'jaccard'].mean():.2f}."
        )
    return found


def amounts_section(table: Any) -> Section:
    """Overlap of sets by amount of text."""
    return Section(
        "How much text it takes",
        (
            "Disjoint samples of the text, each with about the same number of tokens per language. jaccard: units that "
            "two samples both give, over units that either gives, mean over pairs of neighbouring samples; missing "
            "where there is one sample only. expected_jaccard: of random sets with as many units in each layer. "
            "shared_with_all: share of a sample's units that the whole text gives too; the sample is part of it.",
        ),
        {"Sets of disjoint samples": table},
        {
            f"amounts-{slug(str(name))}": plots.share_map(
                rows.pivot(index="language", columns="amount", values="jaccard").loc[rows["language"].unique()],
                f"{name}: Jaccard index of two samples", "tokens per language", "language", "Jaccard index",
            )
            for name, rows in table.groupby("method", sort=False)
        },
    )  # fmt: skip


def spelling_section(table: pd.DataFrame) -> Section:
    """Survival on changed text."""
    return Section(
        "Another spelling",
        (
            "All text in plain Latin letters (romanised), or the words of each document in random order. survival: "
            "share of a language's units that are found again on the changed text. ceiling: the same for two halves of "
            "the text, a low ceiling, since each half has half the text. chance: as many random units in each layer. "
            "Rows with a note test nothing.",
        ),
        {"Share of the units found again": table},
    )


def domains_section(table: pd.DataFrame) -> Section:
    """Overlap of sets of two domains."""
    return Section(
        "Another domain",
        (
            "Units found on the first half of one domain's text, and again on the first half of another's. Where "
            "both are the same domain, its two halves: what the same kind of text gives again.",
        ),
        {"Sets by domain": table},
    )


def losses_section(table: Any) -> Section:
    """Losses on one domain under sets of another."""
    means = table.groupby(KEYS[:3], sort=False)[RISES]
    return Section(
        "Losses on another domain",
        (
            "Loss increases (nats per token) on hold-out text of one domain while units found on another are set to "
            "their mean over the other languages; random sets have as many units in each layer, as active in the "
            "language.",
        ),
        {
            "Means over languages": means.mean().reset_index(),
            "By language": table[[*KEYS, "units", "worst_other", *RISES, "random_sd", "seeds"]],
        },
    )
