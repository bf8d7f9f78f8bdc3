"""What the measurements of an audit say about a set, in words."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from torch import Tensor

from lsn_lens.controls.matched import activity, activity_measure
from lsn_lens.evaluation import verdict
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.sums import Statistics

SURVIVES = 0.5  # share of the ceiling below which a set does not survive
MOST = 0.5  # share of the effect that outliers alone have, from which on they carry it
Row = Mapping[str, Any]

# verdict, condition on a row of `claims`, words; the first that holds counts
VERDICTS: tuple[tuple[str, Callable[[Row], bool], str], ...] = (
    ("no units", lambda row: not row["languages"], "The set has no units: there is nothing to test."),
    (
        "specific", lambda row: row["pass"] == row["languages"],
        "Holds: without its units, each of the {languages} languages is hurt more than by random units, and more than "
        "any other language.",
    ),
    (
        "specific in part", lambda row: row["pass"] > 0,
        "Holds in part: {pass} of {languages} languages ({passing}) are hurt more than by random units, and more than "
        "any other language.",
    ),
    (
        "needed, too little text to tell whether specific", lambda row: row["unsure"] > 0,
        "Needed: {above_random} of {languages} languages are hurt more than by random units. Too little text to tell "
        "whether more than every other language: {unsure} of them have too few documents for an interval.",
    ),
    (
        "needed, not specific", lambda row: row["above_random"] > 0,
        "Needed, but not language-specific: {above_random} of {languages} languages are hurt more than by random "
        "units, but none of them surely more than every other language.",
    ),
    (
        "hurts, not shown beyond random units", lambda row: row["surely"] == row["languages"],
        "Not shown: each of the {languages} languages is surely hurt most without its own units, but none is shown to "
        "be hurt more than by random units. Either the effect is not of these units, or the random units are needed "
        "too, as in a small layer.",
    ),
    (
        "no effect shown", lambda row: math.isnan(row["responds"]),
        "Nothing shown: no language is shown to be hurt more than by random units; activity was not measured.",
    ),
    (
        "responds, no effect shown", lambda row: row["p_responds"] <= verdict.LEVEL,
        "Responds, without a shown effect: {responds:.0%} of the units are most active in their own language (chance "
        "{chance:.0%}, p = {p_responds:.2g}), yet no language is shown to be hurt more than by random units (mean loss "
        "increase {own_rise:+.3g} nats per token).",
    ),
    (
        "nothing shown", lambda row: True,
        "Nothing shown: no language is shown to be hurt more than by random units, nor are surely more of the units "
        "most active in their own language ({responds:.0%}) than by chance ({chance:.0%}, p = {p_responds:.2g}).",
    ),
)  # fmt: skip


def responses(statistics: Statistics, name: str, found: NeuronSet) -> pd.DataFrame:
    """How many units of each language are most active in this language.

    Returns:
        One row per language: `set`, `language`, `units`, `most_active` (units whose activity, see `controls.activity`,
        is higher in this language than in every other; not those that are active in none), `share`, `chance` (the same
        share of all units of the set's layers, each layer as often as the set has units there), `activity` and
        `other_activity` (means over the units, in the language and in all others; NaN for bases of different measures),
        and `measure`. Without units, both shares are NaN.

    Raises:
        DoesNotApply: The run has no activity of a basis.
    """
    measures = {basis: activity_measure(statistics, basis) for basis in found.masks}
    if lacking := [basis for basis, measure in measures.items() if measure is None]:
        raise DoesNotApply(f"the run has neither squares, firing counts nor sums of {lacking}.")
    values = activity(statistics, found.masks)
    highest = {basis: _alone_highest(each) for basis, each in values.items()}
    rows = []
    for place, label in enumerate(found.languages):
        own = list(statistics.languages).index(label)
        units = {basis: values[basis][:, mask[place]] for basis, mask in found.masks.items()}
        count = sum(each.shape[1] for each in units.values())
        most = sum(int(highest[basis][own][mask[place]].sum()) for basis, mask in found.masks.items())
        expected = sum(
            float((mask[place].sum(-1) * highest[basis][own].double().mean(-1)).sum())
            for basis, mask in found.masks.items()
        )
        alike = count and len(set(measures.values())) == 1
        sums: Any = sum(each.sum(1) for each in units.values()) if alike else None
        inside = float("nan") if sums is None else float(sums[own]) / count
        others = float("nan") if sums is None else float(sums.sum() - sums[own]) / count / (len(sums) - 1)
        rows.append({
            "set": name, "language": label, "units": count, "most_active": most,
            "share": most / count if count else math.nan, "chance": expected / count if count else math.nan,
            "activity": inside, "other_activity": others,
            "measure": ", ".join(sorted(map(str, set(measures.values())))),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _alone_highest(values: Float[Tensor, "language layer unit"]) -> Bool[Tensor, "language layer unit"]:
    """Where a language's value exceeds all others; nowhere among equal ones, as of a unit that is never active."""
    first, second = values.topk(2, dim=0).values
    return (values == first) & (first > second)


def claims(effects: pd.DataFrame, responding: pd.DataFrame) -> pd.DataFrame:
    """One row per set: what holds, in words.

    Args:
        effects: The table "effects" of an audit.
        responding: The table "activity" of an audit.

    Returns:
        `set`, `languages` (with units), `units` (memberships), `pass`, `passing` (their labels), `above_random`,
        `unsure` (of these, languages with too few documents for the interval of the difference to every other),
        `surely` (languages that are surely hurt most), `own_rise` (mean, nats per token), `responds` (share of
        units that are most active in their own language), `chance` (of as many units of the same layers), `p_responds`
        (binomial test), `verdict`, `words`.
    """
    rows = []
    groups: Any = effects.groupby("set", sort=False)
    for name, every in groups:
        mine = every.loc[every["units"].gt(0)]
        active: Any = responding.loc[responding["set"].eq(name)] if len(responding) else responding
        total, most = (int(active[key].sum()) if len(active) else 0 for key in ("units", "most_active"))
        chance = float((active["units"] * active["chance"]).sum()) / total if total else math.nan
        row: dict[str, Any] = {
            "set": name, "languages": len(mine), "units": int(mine["units"].sum()), "pass": int(mine["passes"].sum()),
            "passing": ", ".join(mine.loc[mine["passes"], "language"]),
            "above_random": int(mine["above_random"].sum()),
            "unsure": int((mine["above_random"] & mine["hurt_most_share"].isna()).sum()),
            "surely": int(mine["surely_hurt_most"].sum()),
            "own_rise": float(mine["own_rise"].mean()),
            "responds": most / total if total else float("nan"), "chance": chance,
            "p_responds": float(binomtest(most, total, chance, alternative="greater").pvalue) if total else 1.0,
        }  # fmt: skip
        found, _, words = next(each for each in VERDICTS if each[1](row))
        rows.append(row | {"verdict": found, "words": words.format(**row)})
    return pd.DataFrame(rows)


def caveats(tables: Mapping[str, pd.DataFrame], name: str) -> Iterator[str]:
    """Sentences on what limits or widens the verdict on one set, from an audit's other tables."""
    effects = tables["effects"].loc[lambda each: each["set"].eq(name)]
    for words, labels in verdict.by_reason(effects.to_dict("records")).items():
        yield f"{', '.join(labels)}: {words}."
    if "survival" in tables:
        tested = tables["survival"].loc[lambda x: x["set"].eq(name) & x["note"].eq("") & x["before"].gt(0)]
        for control, rows in tested.groupby("control", sort=False):
            lost = rows.loc[rows["survival"] < SURVIVES * rows["ceiling"], "language"]
            if len(lost):
                yield f"{', '.join(lost)}: the method finds few of the units again on {control} text."
    if "outliers" in tables:
        loud = tables["outliers"].loc[lambda x: x["set"].eq(name) & x["outliers"].gt(0)]
        carried = loud.loc[
            loud["own_rise"].gt(0) & (loud["own_rise_of_outliers"] > MOST * loud["own_rise"]), "language"
        ]
        if len(carried):
            yield f"{', '.join(carried)}: a few outlier units alone have more than half of the effect."
    if "off_target" in tables:
        broken = tables["off_target"].loc[lambda x: x["set"].eq(name) & x["collapse"].ne("")]
        for row in broken.to_dict("records"):
            yield f"{row['language']}: the model breaks on {row['collapse']}."
    if "domains" in tables:
        rows = tables["domains"].loc[lambda x: x["set"].eq(name)]
        lost = rows.loc[~rows["own_hurt_most"] & rows["units"].gt(0)]
        for domain, labels in lost.groupby("domain", sort=False)["language"]:
            yield f"{', '.join(labels)}: not hurt most in the domain {domain}."
    for row in tables["skipped"].loc[lambda x: x["set"].isin([name, "all"])].to_dict("records"):
        yield f"Not tested: {row['check']}, as {row['reason']}"
