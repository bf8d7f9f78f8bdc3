"""The effect of single units on each language, beside random units as active."""

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsn_lens.controls.matched import activity, activity_measure, matched_draws
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, Measured
from lsn_lens.evaluation.by_document import FEW_DOCUMENTS, rise_intervals
from lsn_lens.evaluation.jobs import NONE
from lsn_lens.interventions.words import Choice
from lsn_lens.model import structure
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.sums import Statistics

OWN = "neuron"
REDRAWN = 4  # draws for each random unit wanted, as several draws can give the same unit


@dataclass(frozen=True)
class Effect:
    """The effect of one unit.

    Attributes:
        table: One row per language: `language`, `rise` of the loss (nats per token) while the unit is changed, its
            interval `low` and `high` over documents (NaN with fewer than 5), `random_mean`, `random_low` and
            `random_high` (the least and the largest of the random units), `p` against the random units, and `q`, its
            correction for the languages.
        language: The language in which the unit is most active, and the random units are matched.
        matched: What the random units share with the unit, in words.
        active: Activity of the unit and mean activity of the random units in that language.
        random: Number of random units.
    """

    table: pd.DataFrame
    language: str
    matched: str
    active: tuple[float, float]
    random: int


def effect_of(
    held: HeldOut, statistics: Statistics, unit: tuple[str, int, int], action: Choice, random: int,
    replicates: int = 1000, progress: bool = True,
) -> Effect:  # fmt: skip
    """Change one unit on hold-out text, and random units of its layer, as active, one at a time.

    Args:
        held: Hold-out text; all its languages are measured.
        statistics: Of a run of the same model, for activities.
        unit: `(basis, layer, unit)`.
        action: The action on the unit, or a function from the language to one.
        random: Number of random units.
        replicates: Draws of documents for the intervals.
        progress: Show a progress bar.
    """
    basis, layer, number = unit
    language = most_active_in(statistics, unit)
    mask = torch.zeros(
        1, held.model.cfg.n_layers, structure.site_width(held.model, WRITE_SITE[basis]), dtype=torch.bool
    )
    mask[0, layer, number] = True
    own = NeuronSet((language,), {basis: mask}, f"unit {number} of layer {layer}")
    drawn, matched, active = _alike(own, statistics, unit, random)
    sets = {OWN: own, **{f"{OWN} random {place}": each for place, each in enumerate(drawn)}}
    measured = held.measure(sets, action, progress=progress)
    table = measured.table.loc[measured.table["action"].ne(NONE)]
    frame = pd.DataFrame([_row(table, measured, language, label, replicates) for label in held.clean])
    return Effect(frame.assign(q=verdict.adjusted(frame["p"])), language, matched, active, len(drawn))


def _alike(
    own: NeuronSet, statistics: Statistics, unit: tuple[str, int, int], random: int
) -> tuple[list[NeuronSet], str, tuple[float, float]]:
    """Different random units, fewer where fewer are alike; what they share with the unit; and the activities."""
    basis, layer, number = unit
    knows = activity_measure(statistics, basis) is not None
    draws = matched_draws(own, REDRAWN * random, statistics if knows else None)
    different: dict[int, NeuronSet] = {}
    for each in draws.sets.values():
        different.setdefault(int(each.masks[basis][0, layer].nonzero()[0]), each)
    chosen = dict(islice(different.items(), random))
    if not knows:
        return [*chosen.values()], draws.matched, (math.nan, math.nan)
    values = activity(statistics, [basis], own.languages)[basis][0, layer]
    return [*chosen.values()], draws.matched, (float(values[number]), float(values[list(chosen)].mean()))


def most_active_in(statistics: Statistics, unit: tuple[str, int, int]) -> str:
    """The language in which a unit is most active; the first language where the run does not say."""
    basis, layer, number = unit
    if activity_measure(statistics, basis) is None:
        return statistics.languages[0]
    return statistics.languages[int(activity(statistics, [basis])[basis][:, layer, number].argmax())]


def _row(table: pd.DataFrame, measured: Measured, own: str, label: str, replicates: int) -> dict[str, Any]:
    """One language's loss increase, its interval, and those of the random units."""
    here = table.loc[table["evaluated"].eq(label)]
    is_own = here["set"].eq(OWN)
    rise, drawn = float(here.loc[is_own, "nll_change"].iloc[0]), here.loc[~is_own, "nll_change"].to_numpy(dtype=float)
    low, high = _interval(measured.rises[OWN, own, label], measured.tokens[label], label, replicates)
    return {
        "language": label, "rise": rise, "low": low, "high": high, "random_mean": float(drawn.mean()),
        "random_low": float(drawn.min()), "random_high": float(drawn.max()), "p": verdict.p_value(rise, drawn),
    }  # fmt: skip


def _interval(rises: Any, tokens: Any, label: str, replicates: int) -> tuple[float, float]:
    if len(tokens) < FEW_DOCUMENTS:
        return math.nan, math.nan
    clean = pd.DataFrame({"language": label, "document": range(len(tokens)), "tokens": tokens, "loss": 0.0})
    row = rise_intervals(clean, clean.assign(loss=np.asarray(rises)), replicates=replicates).iloc[0]
    return float(row["low"]), float(row["high"])
