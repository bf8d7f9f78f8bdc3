"""The effect of ablating each method's units: every table that needs a model."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from lsn_lens.bars import step
from lsn_lens.comparison.trust import twins, with_twins
from lsn_lens.controls import causal
from lsn_lens.controls.intervals import certainty
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.interventions.words import Choice
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics


def effect_tables(
    text: HeldOut,
    short: HeldOut,
    found: Mapping[str, NeuronSet],
    actions: Mapping[str, Choice],
    draws: tuple[int, int],
    statistics: Statistics,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Effects on all hold-out text, random sets on the short text; identical sets are measured once.

    Args:
        text: All hold-out text.
        short: The first tokens of `text`.
        found: Each method's set.
        actions: The action on each method's units.
        draws: Random sets per method and language, and further ones where none of the first reaches the loss increase.
        statistics: Of the run.
        progress: Show progress bars.

    Returns:
        The tables of a `Comparison` that need a model, by name.
    """
    first = twins(found, actions)
    once = {name: action for name, action in actions.items() if first[name] == name}
    step("ablations")
    measured = causal.measure_effects(text, found, once, progress)
    control, points = (
        with_twins(table, "method", first)
        for table in causal.measure_controls(short, found, once, draws[0], statistics, more=draws[1], progress=progress)
    )
    control.attrs["tests"] = int(control.loc[control["method"].isin(list(once)), "p"].notna().sum())
    table = with_twins(measured.table, "set", first)
    table.attrs = measured.table.attrs
    copies = {name: [key for key in measured.rises if key[0] == first[name]] for name in first}
    rises = {(name, off, on): measured.rises[key, off, on] for name in copies for key, off, on in copies[name]}
    sure = certainty(text, replace(measured, rises=rises))
    by_language = causal.effects_by_language(table, sure.table, control)
    return {
        "effects": causal.effects_table(by_language, sure),
        "effects_by_language": by_language,
        "specificity": causal.specificity_table(by_language),
        "control": causal.control_table(control),
        "control_by_language": control,
        "control_points": points,
        "losses": table,
    }
