"""The report of the pruning study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug, text_section

Tables = Mapping[str, pd.DataFrame]
GUIDED, RARE_FIRST = "frequency", "inverted frequency"
COLUMNS = {
    "rate": Column("removed", "share"),
    "kept_parameters": Column("parameters kept", "share"),
    "kept_neurons": Column("neurons kept", "share"),
    "rise": Column("loss increase", "nats"),
    "bits_per_byte_change": Column("in bits/byte", "change"),
    "gain_bits_per_byte": Column("gain in bits/byte", "change"),
    "others_rise": Column("of the others, mean", "nats"),
    "others_least": Column("least", "nats"),
    "others_most": Column("most", "nats"),
    "gain": Column("others minus plan", "nats"),
    "gain_low": Column("low", "nats"),
    "gain_high": Column("high", "nats"),
    "all_rise": Column("of all experts", "nats"),
    "all_gain_low": Column("all minus frequent, low", "nats"),
    "all_gain_high": Column("high", "nats"),
    "clearly_better": Column(kind="count"),
    "clearly_worse": Column(kind="count"),
}
HOW_TO_READ = (
    "Each plan sets the neurons of the removed experts to zero, for one language, and the loss is measured on hold-out "
    "text. Loss increases are in nats per token, beside bits per byte. At one rate all plans remove equally many "
    "neurons. Plans of neurons are compared with random neurons, all others with whole random experts, as many in each "
    "layer.",
    "Intervals hold at 95 %, from a bootstrap over documents, both plans on the same documents. They say how sure the "
    "difference is for these random plans; the least and the most of the random plans show how far these lie apart. "
    "Clearly better: the whole interval is above 0. Fewer than 5 documents give no interval, and so nothing clear.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, languages = study.tables, list(study.tables["text"]["language"])
    return Report(
        "Pruning by language frequency",
        f"{origin['model']['name']}, experts of {study.settings['size']} neurons, {len(languages)} languages "
        f"({', '.join(languages)}), {origin['started'][:10]}",
        lead(tables),
        {
            f"mean loss increase at {row['rate']:.0%}, frequency / random": (
                f"{row['rise']:+.3f} / {row['others_rise']:+.3f} nats"
            )
            for row in of(tables["summary"], plan=GUIDED).to_dict("records")
        },
        (
            summary_section(tables["summary"]),
            Section("How to read this", HOW_TO_READ),
            random_section(tables),
            layers_section(tables),
            languages_section(tables),
            sparse_section(tables["sparse"], study.settings),
            *sliced_sections(tables),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def lead(tables: Tables) -> str:
    """The main finding in words, also if negative."""
    summary = tables["summary"]
    guided, inverted = (of(summary, plan=name) for name in (GUIDED, RARE_FIRST))
    (better, worse, pairs), (_, most, of_most) = _clear(guided), _clear(inverted)
    last = guided.to_dict("records")[-1]
    best = summary.loc[summary.groupby("rate")["rise"].idxmin()].to_dict("records")
    cheapest = ", ".join(f"{row['plan']} at {row['rate']:.0%}" for row in best)
    return (
        f"Removing a language's rarest experts costs clearly less than removing random experts for {better} of {pairs} "
        f"pairs of language and rate, clearly more for {worse}; at {last['rate']:.0%} the loss rises by "
        f"{last['rise']:.2f} nats per token (random {last['others_rise']:.2f}). Removing the most frequent instead "
        f"costs clearly more than random for {most} of {of_most}. Cheapest: {cheapest}."
    )


def _clear(summary: pd.DataFrame) -> tuple[int, int, int]:
    """Clearly better, clearly worse, and of how many."""
    totals: Any = summary[["clearly_better", "clearly_worse", "languages"]].sum()
    return int(totals.iloc[0]), int(totals.iloc[1]), int(totals.iloc[2])


def summary_section(summary: pd.DataFrame) -> Section:
    """All plans in one table."""
    names = {GUIDED: "rarest experts", RARE_FIRST: "most frequent experts", "wanda": "lowest Wanda-like score",
             "random": "random experts"}  # fmt: skip
    return Section(
        "Plans side by side",
        ("Means over the languages; the others are the random plans.",),
        {"Each plan at each rate": summary},
        {"curves": plots.prune_curves(summary, names)},
        columns=COLUMNS,
    )


def random_section(tables: Tables) -> Section:
    """The plan by frequency, and by inverted frequency, language by language."""
    table = tables["against-random"]
    order = ["rate", *(name for name in table.columns if name not in ("rate", "plan"))]
    shown = {f"{name}, against random experts": of(table, plan=name).reindex(columns=order)
             for name in (GUIDED, RARE_FIRST)}  # fmt: skip
    return Section("Against random experts, by language", (), shown, columns=COLUMNS)


def layers_section(tables: Tables) -> Section:
    """Layer-varying against uniform rates."""
    if "layers" not in tables:
        return Section("Uniform or layer-varying?", ("No layer-varying plan could be made.",))
    table = tables["layers"]
    words = []
    for name, rows in table.groupby("plan", sort=False):
        better, worse = (int(each.to_numpy().sum()) for each in (rows["gain_low"].gt(0), rows["gain_high"].lt(0)))
        words.append(
            f"{name}: clearly better than uniform for {better} of {len(rows)} pairs of language and rate, clearly "
            f"worse for {worse}; on average {rows['gain'].mean():+.3f} nats."
        )
    shown = {"Uniform (the other) against layer-varying": table.drop(columns=["others_least", "others_most"])}
    if "left-out" in tables:
        shown["Left out"] = tables["left-out"]
    return Section("Uniform or layer-varying?", tuple(words), shown, columns=COLUMNS)


def languages_section(tables: Tables) -> Section:
    """The source x target matrices."""
    losses = of(tables["losses"], plan=GUIDED)
    figures = {}
    for rate, rows in losses.groupby("rate"):
        matrix = rows.pivot(index="language", columns="evaluated", values="rise")
        matrix = matrix.loc[rows["language"].unique(), rows["evaluated"].unique()]
        figures[f"matrix-{slug(f'{rate:g}')}"] = plots.change_matrix(matrix, f"{rate:.0%} removed: loss increase")
    return Section(
        "By another language's frequencies",
        ("Rows: the language whose rare experts are removed; columns: the language measured.",),
        {"Own frequencies against those of the other languages": tables["against-languages"].drop(columns="plan")},
        figures,
        columns=COLUMNS,
    )


def sparse_section(table: pd.DataFrame, settings: Mapping[str, Any]) -> Section:
    """Sparse activation."""
    return Section(
        "Sparse activation",
        (
            f"Each token keeps {settings['active']:.0%} of the experts: out of the language's "
            f"{1 - settings['pool']:.0%} most frequent, out of as many random ones (the others), and out of all. "
            "Experts are ranked within each layer, or over all layers.",
        ),
        {"Loss increases": table},
        columns=COLUMNS,
    )


def sliced_sections(tables: Tables) -> tuple[Section, ...]:
    """Size and speed of checkpoints, where they were cut."""
    if "sliced" not in tables:
        return ()
    words = "One language's neurons cut out of the checkpoint; ratios are sliced over original, low and high quartiles."
    return (Section("Cut out", (words,), {"Size and speed": tables["sliced"]}),)
