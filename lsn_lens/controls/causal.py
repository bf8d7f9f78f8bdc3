"""The effect of ablating each method's units, on all languages and beside random units."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from lsn_lens.bars import step
from lsn_lens.controls.intervals import Certainty
from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation import effects, verdict
from lsn_lens.evaluation.baseline import HeldOut, Measured
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.values import other_mean_ablation
from lsn_lens.interventions.words import Choice
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.plan import Layout, layout_of

# columns without a value for a language without units
PARTIAL = ("own_rise_per_neuron", "own_rise_bits_per_byte_per_neuron", "z", "p", "activity", "random_activity")
BLOCK = 128  # maximum tokens per block of the short text for random sets


def choose_actions(statistics: Statistics, found: Mapping[str, NeuronSet], action: Choice | None) -> dict[str, Choice]:
    """The action on each method's units: `action`, or the other languages' mean where the run has it, else zero.

    Methods with a basis that no intervention can write to are left out.
    """
    other_mean = other_mean_ablation(statistics)
    known = other_mean(statistics.languages[0]).values
    bases = set(known) if isinstance(known, Mapping) else set()
    writable = {name: set(each.masks) for name, each in found.items() if set(each.masks) <= set(WRITE_SITE)}
    return {name: action or (other_mean if each <= bases else zero) for name, each in writable.items()}


def short_layout(model: Model, layout: Layout | None, tokens: int) -> Layout:
    """The short text: about `tokens` tokens per language, in blocks of at most 128, or in whole documents."""
    layout = layout_of(layout, Layout())
    block = min(layout.length or model.cfg.n_ctx, tokens, BLOCK)
    return replace(layout, max_tokens=tokens, length=layout.length if layout.kind == "documents" else block)


def measure_effects(
    text: HeldOut, found: Mapping[str, NeuronSet], actions: Mapping[str, Choice], progress: bool
) -> Measured:
    """The losses of all languages under each method's units of each language, each method with its own action."""
    groups: dict[int, dict[str, NeuronSet]] = {}
    for name, action in actions.items():
        groups.setdefault(id(action), {})[name] = found[name]
    parts = [text.measure(sets, actions[next(iter(sets))], progress=progress) for sets in groups.values()]
    table = pd.concat([parts[0].table, *(_changed(part.table) for part in parts[1:])], ignore_index=True)
    table.attrs = parts[0].table.attrs
    rises = {key: each for part in parts for key, each in part.rises.items()}
    return Measured(table, rises, text.tokens)


def _changed(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["action"].ne("none")]


def measure_controls(
    text: HeldOut,
    found: Mapping[str, NeuronSet],
    actions: Mapping[str, Choice],
    seeds: int,
    statistics: Statistics | None = None,
    *,
    more: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """In-language loss increases of each method's sets and of matched random sets, on the same text.

    With a run's `statistics`, random units are about as active in the language as the units they replace, see
    `controls.matched_draws`.

    Args:
        text: The text to measure on.
        found: Each method's set.
        actions: The action on each method's units.
        seeds: Random sets for each method and language.
        statistics: Of the run.
        more: Further random sets for a language whose loss increase none of the first reaches. The p-value keeps its
            level: it is either that of the first sets, then at least 2 / (seeds + 1), or that of all sets, as if all
            were always measured. (Besag and Clifford 1991 stop earlier yet.)
        progress: Show a progress bar.

    Returns:
        One row per method and language, see `Comparison.control_by_language`; and the loss increase of each random set,
        see `Comparison.control_points`.
    """
    rows, drawn = [], []
    for name, action in actions.items():  # one method at a time: random sets of a large model take room
        step(step_of(name))
        draws = matched_draws(found[name], seeds, statistics)
        table = text.measure({name: found[name]}, action, evaluate="own", progress=progress).table
        own = table.loc[table["set"].eq(name)].to_dict("records")
        points = _points(text, name, draws.sets, action, progress)
        beyond = [row["intervened"] for row in own if row["units"] and _is_beyond(row, points)]
        if beyond and more:
            further = matched_draws(found[name][beyond], more, statistics, first=seeds)
            points = pd.concat([points, _points(text, name, further.sets, action, progress)], ignore_index=True)
        drawn.append(points)
        for row in own:
            language = row["intervened"]
            active = dict(zip(("activity", "random_activity"), draws.active[language], strict=True))
            beside = points.loc[points["language"].eq(language), "own_rise"]
            rows.append(_against_random(name, row, beside) | active | {"matched": draws.matched})
    frame = pd.DataFrame(rows)
    frame.insert(list(frame).index("p") + 1, "q", verdict.adjusted(frame["p"]))
    return frame, pd.concat(drawn, ignore_index=True)


def step_of(method: str) -> str:
    """The name of the step that measures a method's random sets."""
    return f"random controls for {method}"


def _points(text: HeldOut, name: str, sets: Mapping[int, NeuronSet], action: Choice, progress: bool) -> pd.DataFrame:
    named = {effects.control_name(name, seed): each for seed, each in sets.items()}
    return effects.control_points(text.measure(named, action, evaluate="own", progress=progress).table)


def _is_beyond(row: Mapping[Any, Any], points: pd.DataFrame) -> bool:
    drawn = points.loc[points["language"].eq(row["intervened"]), "own_rise"]
    return verdict.p_value(float(row["nll_change"]), drawn) * (1 + len(drawn)) < 1.5


def _against_random(name: str, row: Mapping[Any, Any], drawn: pd.Series) -> dict[str, object]:
    rise = float(row["nll_change"])
    return {
        "method": name,
        "language": row["intervened"],
        "action": row["action"],
        "units": row["units"],
        "own_rise": rise,
        **verdict.beside_random(rise, drawn, row["units"]),
    }


def control_table(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row per method from `measure_controls`, most languages above their random sets first."""
    above = by_language["q"] <= verdict.LEVEL
    groups: Any = by_language.assign(above=above).groupby("method", sort=False)
    frame = means_of(groups, ["own_rise", "random_mean", "random_sd", "z", "p", "activity", "random_activity"])
    frame.insert(0, "action", groups["action"].first())
    frame.insert(1, "units", groups["units"].sum())
    frame.insert(2, "languages", groups["language"].count())
    frame.insert(3, "share_above_random", groups["above"].mean())
    return frame.reset_index().sort_values("share_above_random", ascending=False, kind="stable", ignore_index=True)


def effects_by_language(losses: pd.DataFrame, sure: pd.DataFrame, control: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per method and language, see `Comparison.effects_by_language`.

    Args:
        losses: From `measure_effects`.
        sure: The table of `certainty`.
        control: From `measure_controls`; adds `p`, `q`, `above_random` and `passes`.
    """
    frame = effects.summarise(losses)
    units = frame["units"].where(frame["units"] > 0)
    for ending in verdict.UNITS:
        frame[f"own_rise{ending}_per_neuron"] = frame[f"own_rise{ending}"] / units
        frame[f"difference{ending}"] = frame[f"own_rise{ending}"] - frame[f"worst_other_rise{ending}"]
    frame["ratio"] = (frame["own_rise"] / frame["worst_other_rise"]).where(frame["worst_other_rise"] > 0)
    keys = ["method", "language"]
    frame = frame.merge(sure, on=keys, how="left", validate="one_to_one")
    if control is None:
        return frame
    frame = frame.merge(control[[*keys, "p", "q"]], on=keys, how="left", validate="one_to_one")
    frame["above_random"] = frame["q"] <= verdict.LEVEL
    frame["passes"] = frame["above_random"] & frame["surely_hurt_most"]
    return frame


def effects_table(by_language: pd.DataFrame, sure: Certainty) -> pd.DataFrame:
    """One row per method: languages that pass and languages hurt most, each with an interval; mean loss increases."""
    rises = ["own_rise", "own_rise_per_neuron", "own_rise_bits_per_byte", "own_rise_bits_per_byte_per_neuron"]
    frame = _methods(by_language, rises)
    place = list(frame).index("languages") + 1
    counts = []
    for name in frame["method"]:
        mine = by_language.loc[by_language["method"].eq(name)]
        above = [(name, label) for label in mine.loc[mine["above_random"], "language"]]
        every = [(name, label) for label in mine["language"]]
        shown, hurt = sure.interval_of_count(above, surely=True), sure.interval_of_count(every, surely=False)
        counts.append((int(mine["passes"].sum()), *shown, int(mine["own_hurt_most"].sum()), *hurt))
    names = ("shown", "shown_low", "shown_high", "own_hurt_most", "own_hurt_most_low", "own_hurt_most_high")
    values = pd.DataFrame(counts, columns=list(names))
    frame = frame.drop(columns="own_hurt_most")
    for offset, name in enumerate(names):
        frame.insert(place + offset, name, values[name])
    order = ["shown", "own_hurt_most"]
    return frame.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def specificity_table(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row per method: in-language and largest other-language loss increase, and their difference, means."""
    means = ["own_rise", "worst_other_rise", "mean_other_rise", "difference", "difference_bits_per_byte"]
    frame = _methods(by_language, means)
    worst = frame["worst_other_rise"]
    frame["ratio"] = (frame["own_rise"] / worst).where(worst > 0)
    return frame


def means_of(groups: Any, columns: list[str]) -> pd.DataFrame:
    """Means over languages; one NaN makes the mean NaN. Languages without a value are left out."""
    return pd.concat({each: groups[each].agg(lambda x: x.mean(skipna=x.name in PARTIAL)) for each in columns}, axis=1)


def _methods(by_language: pd.DataFrame, means: list[str]) -> pd.DataFrame:
    """Means and counts per method, sorted by counts of languages, not by effect size."""
    groups: Any = by_language.groupby("method", sort=False)
    parts = [
        groups["action"].first(),
        groups["units"].sum(),
        groups["language"].count().rename("languages"),
        groups["own_hurt_most"].sum(),
        means_of(groups, means),
    ]
    frame = pd.concat(parts, axis=1).reset_index()
    return frame.sort_values("own_hurt_most", ascending=False, kind="stable", ignore_index=True)
