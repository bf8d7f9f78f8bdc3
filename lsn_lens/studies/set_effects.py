"""The effect of switching off any set of units, beside matched random sets."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.controls.causal import effects_by_language, measure_controls, measure_effects
from lsn_lens.controls.intervals import certainty
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.evaluation.verdict import doubts
from lsn_lens.interventions.words import Choice
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics


def set_effects(
    text: HeldOut, named: Mapping[str, NeuronSet], action: Choice, seeds: int, statistics: Statistics,
    *, progress: bool = True,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Losses under each set, their intervals, and the matched random sets.

    Returns:
        The tables "effects", "random", "random_points" and "losses" of `AuditStudy`.
    """
    actions: dict[str, Any] = dict.fromkeys(named, action)
    measured = measure_effects(text, named, actions, progress)
    sure = certainty(text, measured)
    control, points = measure_controls(text, named, actions, seeds, statistics, progress=progress)
    effects = effects_by_language(measured.table, sure.table, control)
    below = {
        key: float((each["own_rise"] < rise).mean())
        for key, rise in effects.set_index(["method", "language"])["own_rise"].items()
        for each in [points.loc[points["method"].eq(key[0]) & points["language"].eq(key[1])]]  # type: ignore[index]
    }
    effects["percentile"] = [below[key] for key in zip(effects["method"], effects["language"], strict=True)]
    effects["seeds"] = seeds
    effects["warnings"] = ["; ".join(doubts(row)) for row in effects.to_dict("records")]
    tables = {"effects": effects, "random": control, "random_points": points}
    renamed = {name: each.rename(columns={"method": "set"}) for name, each in tables.items()}
    return {**renamed, "losses": measured.table}
