"""What switching each method's units off does, beside other languages and beside random units."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens import models
from lsn_lens.actions import other_mean_ablation
from lsn_lens.batches import Layout
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.entry import check_model
from lsn_lens.evaluation import effects
from lsn_lens.evaluation.controls import matched_draws
from lsn_lens.evaluation.perplexity import perplexity_table
from lsn_lens.interventions import Action, zero
from lsn_lens.neurons import NeuronSet
from lsn_lens.sites import WRITE_SITE
from lsn_lens.statistics import Statistics

Choice = Action | Callable[[str], Action]
PERCENTILE = 95  # of the random sets, that a set must reach


def choose_actions(statistics: Statistics, found: Mapping[str, NeuronSet], action: Choice | None) -> dict[str, Choice]:
    """What to do to each method's units: `action`, or other languages' mean where the run has it, else zero.

    Methods with units on a basis that no intervention can write to are left out.
    """
    other_mean = other_mean_ablation(statistics)
    known = other_mean(statistics.languages[0]).values
    bases = set(known) if isinstance(known, Mapping) else set()
    writable = {name: set(each.masks) for name, each in found.items() if set(each.masks) <= set(WRITE_SITE)}
    return {name: action or (other_mean if each <= bases else zero) for name, each in writable.items()}


def measure_losses(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    found: Mapping[str, NeuronSet],
    actions: Mapping[str, Choice],
    layout: Layout | None,
    progress: bool,
) -> pd.DataFrame:
    """`perplexity_table` of all methods on all languages, each method with its own action."""
    check_model(model)
    groups: dict[int, dict[str, NeuronSet]] = {}
    for name, action in actions.items():
        groups.setdefault(id(action), {})[name] = found[name]
    tables = [
        perplexity_table(model, corpora, sets, actions[next(iter(sets))], layout=layout, progress=progress)
        for sets in groups.values()
    ]
    table = pd.concat(tables, ignore_index=True).drop_duplicates(["set", "action", "intervened", "evaluated"])
    table.attrs = tables[0].attrs
    return table


def measure_controls(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    found: Mapping[str, NeuronSet],
    actions: Mapping[str, Choice],
    seeds: int,
    tokens: int,
    layout: Layout | None,
    progress: bool,
    statistics: Statistics | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rise of each language's loss, for each method's set and `seeds` random ones like it, on the same short text.

    With a run's `statistics`, units are drawn from the decile of activity of those that they stand for, where the run
    has the activity of all bases of a set; the column `matched` says what was matched.

    Returns:
        One row for each method and language, see `Comparison.control_by_language`; and the random sets' rises one by
        one, see `Comparison.control_points`.
    """
    check_model(model)
    layout = layout or Layout()
    short = replace(layout, max_tokens=tokens, length=layout.length and min(layout.length, tokens))
    rows, drawn = [], []
    for name, action in actions.items():  # one method at a time: random sets of a large model take room
        sets, matched = matched_draws(found[name], seeds, statistics)
        draws = {effects.control_name(name, seed): each for seed, each in sets.items()}
        table = perplexity_table(
            model, corpora, {name: found[name], **draws}, action, evaluate="own", layout=short, progress=progress
        )
        drawn.append(effects.control_points(table))
        points: Any = drawn[-1].groupby("language")["own_rise"]
        own = table.loc[table["set"].eq(name)]
        for row in own.to_dict("records"):
            rows.append(_against_random(name, row, points.get_group(row["intervened"])) | {"matched": matched})
    return pd.DataFrame(rows), pd.concat(drawn, ignore_index=True)


def _against_random(name: str, row: Mapping[Hashable, Any], drawn: pd.Series) -> dict[str, object]:
    rise, some = float(row["nll_change"]), bool(row["neurons"])
    mean, deviation = float(np.mean(drawn)), float(np.std(drawn, ddof=1))
    return {
        "method": name,
        "language": row["intervened"],
        "action": row["action"],
        "neurons": row["neurons"],
        "own_rise": rise,
        "random_mean": mean,
        "random_sd": deviation,
        "z": (rise - mean) / deviation if deviation > 0 else math.nan,
        "percentile": 100 * float((drawn < rise).mean()) if some else math.nan,
        "seeds": len(drawn),
    }


def control_table(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row a method from `measure_controls`, most languages above their random sets first."""
    groups: Any = by_language.assign(above=by_language["percentile"] >= PERCENTILE).groupby("method", sort=False)
    frame = groups[["own_rise", "random_mean", "random_sd", "z", "percentile"]].mean()
    frame.insert(0, "action", groups["action"].first())
    frame.insert(1, "languages", groups["language"].count())
    frame.insert(2, "share_above_95", groups["above"].mean())
    return frame.reset_index().sort_values(["share_above_95", "z"], ascending=False, kind="stable", ignore_index=True)


def effects_by_language(losses: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and language from `measure_losses`; see `Comparison.effects_by_language`."""
    summary = effects.summarise(losses)
    unlike = [name for name in summary if str(name).startswith(("random_", "share_above"))]
    frame = summary.drop(columns=[*unlike, "warning"])
    neurons = frame["neurons"].where(frame["neurons"] > 0)
    frame["own_rise_per_neuron"] = frame["own_rise"] / neurons
    frame["own_rise_bits_per_byte_per_neuron"] = frame["own_rise_bits_per_byte"] / neurons
    frame["difference"] = frame["own_rise"] - frame["worst_other_rise"]
    frame["ratio"] = (frame["own_rise"] / frame["worst_other_rise"]).where(frame["worst_other_rise"] > 0)
    frame["own_hurt_most"] = effects.own_is_hurt_most(frame)
    return frame


def effects_table(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row a method, strongest first: for how many languages the own one is hurt most, then the mean own rise."""
    rises = ["own_rise", "own_rise_per_neuron", "own_rise_bits_per_byte", "own_rise_bits_per_byte_per_neuron"]
    frame = _methods(by_language, rises, ["neurons"])
    return frame.sort_values(["own_hurt_most", "own_rise"], ascending=False, kind="stable", ignore_index=True)


def specificity_table(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row a method, most specific first: the mean difference between the own rise and the worst other's."""
    frame = _methods(by_language, ["own_rise", "worst_other_rise", "mean_other_rise", "difference"], [])
    worst = frame["worst_other_rise"]
    frame["ratio"] = (frame["own_rise"] / worst).where(worst > 0)
    return frame.sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def _methods(by_language: pd.DataFrame, means: list[str], totals: list[str]) -> pd.DataFrame:
    groups: Any = by_language.groupby("method", sort=False)
    parts = [
        groups["action"].first(),
        groups[totals].sum(),
        groups["language"].count().rename("languages"),
        groups["own_hurt_most"].sum(),
        groups[means].mean(),
    ]
    return pd.concat([part for part in parts if part.size], axis=1).reset_index()
