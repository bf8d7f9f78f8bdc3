"""The report of the growth study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section, slug

Tables = Mapping[str, pd.DataFrame]
COLUMNS = {
    "share": Column(kind="share"), "output_share": Column(kind="share"), "unigram_share": Column(kind="share"),
    "coverage": Column(kind="share"), "survival": Column(kind="share"), "chance": Column(kind="share"),
    "rise": Column("loss increase", "nats"), "share_from_loss": Column("share, from the loss", "share"),
    "working_share": Column("working-language share", "share"), "own_share": Column(kind="share"),
    "any": Column("any stage", "share"), "translation": Column(kind="share"), "transition": Column(kind="share"),
    "stabilisation": Column(kind="share"),
}  # fmt: skip


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables, grown = study.tables, study.growth
    return Report(
        "Growth over training",
        f"{len(grown.checkpoints)} checkpoints ({grown.checkpoints[0]} to {grown.checkpoints[-1]}), dominant "
        f"language {grown.dominant}, {origin['started'][:10]}",
        lead(study),
        {},
        (
            losses_section(tables),
            stages_section(tables),
            units_section(tables, grown.reference, grown.checkpoints[-1]),
            survival_section(tables["survival"]),
            working_section(tables["working"]),
            dependence_section(tables["dependence"], grown.dominant),
            plan_section(tables),
            origin_section(origin),
        ),
    )


def lead(study: Any) -> str:
    """The main finding in words, also if negative."""
    said = []
    for language, rows in study["stages"].groupby("language", sort=False):
        seen = list(rows.loc[rows["observed"].astype(bool), "stage"])
        missing = [each for each in rows["stage"] if each not in seen]
        whys = list(rows["why"].unique())
        rest = f", {', '.join(missing)} not observed. " if missing else ". "
        said.append(
            (
                f"{language}: no stage observed ({whys[0].removeprefix('not observed: ')}). "
                if len(whys) == 1  # too few checkpoints for any
                else f"{language}: {', '.join(seen) or 'no stage'} observed{rest}"
            )
            + decline_words(of(study["declines"], language=str(language)))
        )
    return " ".join(said)


def decline_words(rows: pd.DataFrame) -> str:
    """Whether a language's units become fewer after the switch, by all references."""
    counts = "; ".join(
        f"{row['first']:.0f} to {row['last']:.0f} by the thresholds of {row['reference']}"
        for row in rows.to_dict("records")
    )
    if "declines" not in rows:
        return f"Units {counts}; without intervals nothing can be said of a decline."
    every, some = bool(rows["declines"].all()), bool(rows["declines"].any())
    words = (
        "The decline of its units appears by both references" if every
        else "A decline of its units appears by one reference only, which is no evidence: a reference finds most units "
        "at itself" if some
        else "The decline of its units does not appear"
    )  # fmt: skip
    return f"{words} ({counts})."


def losses_section(tables: Tables) -> Section:
    """Losses by language."""
    losses = tables["losses"]
    return Section(
        "Losses",
        ("On hold-out text, in nats per token and bits per byte.",),
        {"Losses": losses},
        {
            "losses": plots.checkpoint_curves(losses, "nll", "Loss of each language", "nats per token"),
            "bits": plots.checkpoint_curves(losses, "bits_per_byte", "Loss of each language", "bits per byte"),
        },
    )


def stages_section(tables: Tables) -> Section:
    """Stages, and how often noise shows them."""
    shown = {"Stages since the switch": tables["stages"]}
    if "false-stages" in tables:
        shown["Share of curves without stages in which the rule finds some"] = tables["false-stages"]
    return Section(
        "Stages",
        (
            "Score: minus the loss. Translation is its rise, transition a decline while the share of the own system "
            "rises, stabilisation a flat end of both. Changes count above what white noise of the curve's own size "
            "reaches in 5 % of curves, and above 5 % of the curve's range. Neighbouring checkpoints of a training "
            "are correlated, so that correlated noise and random walks say more about errors than white noise.",
        ),
        shown,
        columns=COLUMNS if "false-stages" in shown else {},
    )


def units_section(tables: Tables, reference: str, last: str) -> Section:
    """Units by frozen and by relative thresholds."""
    band = ("frozen_low", "frozen_high") if "frozen_low" in tables["units"] else None
    pairs = ((reference, tables["units"]), (last, tables["units-late"]))
    return Section(
        "Units by language",
        (
            f"frozen: neurons that pass the thresholds of {reference}, and those of {last}. fixed_share: neurons by "
            "each checkpoint's own thresholds, whose total is constant by construction. A reference finds most units "
            "at itself, since units change; so a decline is one only if both references show it. declines: the 95 % "
            "intervals (over draws of the text, for one training) lie apart.",
        ),
        {"First checkpoint after the switch, and last": tables["declines"], **{f"By {k}": v for k, v in pairs}},
        {
            **{
                f"units-{slug(name)}": plots.checkpoint_curves(
                    table, "frozen", f"Units by the thresholds of {name}", "neurons", band=band
                )
                for name, table in pairs
            },
            "units-relative": plots.checkpoint_curves(
                tables["units"], "fixed_share", "Units by each checkpoint's own thresholds", "neurons"
            ),
        },
    )


def survival_section(table: pd.DataFrame) -> Section:
    """Units from one checkpoint to the next."""
    return Section(
        "Units from one checkpoint to the next",
        ("survival: share of a checkpoint's units that the next one has too. chance: of random units in each layer.",),
        {"Survival": table},
        {
            f"survival-{name}": plots.checkpoint_curves(
                rows, "survival", f"Survival to the next checkpoint, {name} thresholds", "share", reference="chance"
            )
            for name, rows in table.groupby("thresholds", sort=False)
        },
        columns=COLUMNS,
    )


def working_section(table: pd.DataFrame) -> Section:
    """The working language."""
    own = table.loc[table["text"].eq(table["language"])]
    return Section(
        "Working language",
        (
            "share: of the identified tokens among the most probable ones, those of the language, mean over the layers "
            "between embedding and output. coverage: share of these tokens that is identified. unigram_share: of "
            "random tokens.",
        ),
        {"Working-language shares": table},
        {
            "working": plots.checkpoint_curves(
                own, "share", "Share of the text's own language", "share", reference="unigram_share"
            )
        },
        columns=COLUMNS,
    )


def dependence_section(table: pd.DataFrame, dominant: str) -> Section:
    """Dependence on the dominant language's units."""
    return Section(
        "Dependence on the dominant language",
        (
            f"Loss increase of each language while the units of {dominant} (by each checkpoint's own thresholds) are "
            "zero, beside random units as many in each layer and as active. p: share of random sets that reach it.",
        ),
        {"Loss increases": table},
        {
            "dependence": plots.checkpoint_curves(
                table,
                "rise",
                f"Loss increase without the units of {dominant}",
                "nats per token",
                by="evaluated",
                reference="random_mean",
            )
        },
        columns=COLUMNS,
    )


def plan_section(tables: Tables) -> Section:
    """The corpus plan and its calibration."""
    shown = {
        "Calibration": tables["calibration"],
        **({"Shares": tables["shares"]} if "shares" in tables else {}),
        **({"Plan": tables["plan"]} if "plan" in tables else {}),
    }
    return Section(
        "Corpus plan",
        (
            "The share of the own system is read from the loss by a linear rule, and the tokens from the share. The "
            "calibration says how well this share agrees with the working-language share that was measured. "
            "Checkpoints of one training depend on each other, so it has no interval; changes_pearson compares the "
            "changes from one checkpoint to the next, without the common trend. Where the best checkpoint is the one "
            "with the lowest loss, the own share is 1 and there is no plan: give best checkpoints by scores on tasks.",
        ),
        shown,
        columns=COLUMNS,
    )
