"""The report of the sharing study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, text_section
from lsn_lens.report.type_plots import type_curves, type_effects, type_map, type_strengths

Tables = Mapping[str, pd.DataFrame]
ALL, SHARED = "(all)", "all-shared"
COLUMNS = {
    "mean": Column("share of neurons", "share"),
    "sum_share": Column("of the sum of C", "share"),
    "contribution": Column("of all contribution", "share"),
    "control_contribution": Column("the control's", "share"),
    "control_of_type": Column("control of the type", "share"),
    "units": Column("neurons per item", "count"),
    "change": Column(kind="nats"),
    "low": Column(kind="nats"),
    "high": Column(kind="nats"),
    "control_change": Column("control, mean", "nats"),
    "control_least": Column("least", "nats"),
    "control_most": Column("most", "nats"),
    "excess": Column("change minus control", "nats"),
    "excess_low": Column("low", "nats"),
    "excess_high": Column("high", "nats"),
    "change_bits_per_byte": Column("in bits/byte", "change"),
    "excess_bits_per_byte": Column("minus control, bits/byte", "change"),
    "accuracy": Column("accuracy, unchanged", "share"),
}
HOW_TO_READ = (
    "A neuron's type belongs to one item (a text in all languages): all-shared, if it is active in all languages at "
    "the last token, partial-shared, if in several, specific, if in one, non-activated, if in none. In each item its "
    "own neurons of a type are set to zero, or multiplied, at all tokens of all languages.",
    "Controls, for the same item: 'number', as many random neurons of other types in each layer; 'contribution', each "
    "neuron replaced by one of another type with a similar contribution |m| times the norm of its row, as far as there "
    "are any (compare the two shares of contribution); 'other item', the neurons that have the type in the next item. "
    "Where a type fills more than half of a layer, controls have neurons of the type too, as the table says.",
    "Intervals hold at 95 %, over items. Changes of losses are in nats per token, of accuracy in shares of items.",
    "The types of a text are read at its last token, and its loss is measured at all of its tokens. In the task, types "
    "are read from the prompt alone.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, languages = study.tables, list(study.tables["text"]["language"])
    return Report(
        "What shared neurons do",
        f"{origin['model']['name']}, {study.settings['items']} items in {len(languages)} languages "
        f"({', '.join(languages)}), {origin['started'][:10]}",
        lead(tables),
        {
            f"loss increase without {row['type']} neurons / their match": (
                f"{row['change']:+.3f} / {row['control_change']:+.3f} nats"
            )
            for row in of(tables["off"], control="contribution", language=ALL, neurons="whole type").to_dict("records")
        },
        (
            Section("Claims of the paper", (), {"As tested": tables["claims"]}, columns=COLUMNS),
            Section("How to read this", HOW_TO_READ),
            profile_section(tables),
            *effect_sections(tables),
            *sibling_sections(tables),
            text_section(tables["text"], origin),
            origin_section(origin),
        ),
    )


def lead(tables: Tables) -> str:
    """The main finding in words, also if negative."""
    off = of(tables["off"], control="contribution", language=ALL, neurons="whole type")
    row = of(off, type=SHARED).iloc[0]
    worst = off.loc[off["change"].idxmax(), "type"]
    verdicts = tables["claims"].groupby("verdict", sort=False).size().to_dict()
    counts = ", ".join(f"{name} {verdicts.get(name, 0)}" for name in ("held", "did not hold", "undecided"))
    return (
        f"Without its all-shared neurons ({row['units']:.0f} per item, {row['contribution']:.0%} of the contribution) "
        f"an item's loss changes by {row['change']:+.3f} nats per token, against {row['control_change']:+.3f} without "
        f"as many others of similar contribution (difference {row['excess_low']:+.3f} to {row['excess_high']:+.3f}); "
        f"the {worst} neurons cost most. Of {len(tables['claims'])} tests of the paper's claims: {counts}."
    )


def profile_section(tables: Tables) -> Section:
    """Profiles by type, language and layer."""
    active = tables["activity"].pivot(index="language", columns="layer", values="mean")
    names = list(tables["contribution"]["type"].unique())
    figures = {"types": type_curves(tables["profile"])}
    figures["activity"] = plots.share_map(active, "Active neurons", "layer", "language", "share of neurons")
    figures |= {f"contribution-{name}": type_map(tables["contribution"], name, title=f"{name}: share of the "
                "contribution") for name in names}  # fmt: skip
    return Section("Profiles", (), {"Types by layer": tables["profile"]}, figures, columns=COLUMNS)


def effect_sections(tables: Tables) -> tuple[Section, ...]:
    """Neurons off and raised, on losses and on the task."""
    off, raised = of(tables["off"], language=ALL), of(tables["raised"], language=ALL)
    task, lifted = of(tables["task-off"], language=ALL), of(tables["task-raised"], language=ALL)
    drop = ["language", "action"]
    right = "change of accuracy"
    return (
        Section(
            "Neurons off: losses", (),
            {f"{name}, all languages": rows.drop(columns=[*drop, "neurons"]) for name, rows in off.groupby(
                "neurons", sort=False)} | {"By language, against contribution": of(tables["off"].drop(
                    columns="action"), control="contribution")},
            {f"off-{place}": type_effects(rows, f"Off, by type: {name}") for place, (name, rows) in enumerate(
                off.groupby("neurons", sort=False))},
            columns=COLUMNS,
        ),
        Section("All-shared neurons raised: losses", (), {"All languages": raised.drop(columns="language")},
                {"raised": type_strengths(raised)}, columns=COLUMNS),
        Section("Neurons off: the task", ("Choose the ending of a document.",), {"All languages": task.drop(
            columns=drop)}, {"task-off": type_effects(task, "Off, by type: the task", right)}, columns=COLUMNS),
        Section("All-shared neurons raised: the task", (), {"All languages": lifted.drop(columns="language")},
                {"task-raised": type_strengths(lifted, "Raised: the task", right)}, columns=COLUMNS),
    )  # fmt: skip


def sibling_sections(tables: Tables) -> tuple[Section, ...]:
    """The sibling model, where there is one."""
    if "siblings" not in tables:
        return ()
    words = (
        "Typical type: a neuron's most frequent type over half of the items. Between: the model and its sibling agree, "
        "each on one half. Ceiling: one model agrees with itself on two halves. Only what lies beyond is a change.",
    )
    shown = {
        "Agreement": tables["agreement"],
        "Profiles": tables["siblings"],
        "From type to type": tables["transitions"],
    }
    return (Section("The sibling", words, shown, columns=COLUMNS | {"change": Column(kind="change")}),)
