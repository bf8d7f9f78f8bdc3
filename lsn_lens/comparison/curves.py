"""The effect of each method's first units, by their number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd
from jaxtyping import Float

from lsn_lens.bars import step
from lsn_lens.comparison.ranked import Curve, Size, available, first_units, numbers_of
from lsn_lens.comparison.trust import twins
from lsn_lens.controls.causal import choose_actions, effects_by_language, measure_effects
from lsn_lens.controls.intervals import REPLICATES, certainty, document_draws, drawn_rises, excess_of_largest
from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation import effects
from lsn_lens.evaluation.baseline import HeldOut, Measured
from lsn_lens.interventions.words import Choice
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics

RANDOM_CURVES = 3  # random sets per method, language and size
CELL = ["method", "bases", "language", "units"]
COLUMNS = [
    *CELL, "action", "available", "own_rise", "own_rise_low", "own_rise_high", "worst_other", "worst_other_rise",
    "mean_other_rise", "difference", "difference_low", "difference_high", "random_mean", "random_low", "random_high",
    "own_rise_bits_per_byte", "worst_other_rise_bits_per_byte", "mean_other_rise_bits_per_byte",
    "difference_bits_per_byte",
]  # fmt: skip

Cell = tuple[str, str, str, int]  # method, bases, language, units


@dataclass(frozen=True, eq=False)
class Curves:
    """Effects by the number of units.

    Attributes:
        table: One row per method, kind of unit, language and number of units, see `Comparison.curves`.
        drawn: By row, the in-language minus the largest other-language loss increase, on drawn documents.
        excess: By row, the most by which this difference is too low on average, see `excess_of_largest`.
        draws: By language, how often each document was drawn.
        had: By method and kind of unit, the number of units that the method ranks, by language.
        sizes: By kind of unit, the numbers of units asked for.
    """

    table: pd.DataFrame
    drawn: Mapping[Cell, Float[np.ndarray, "replicate"]]
    excess: Mapping[Cell, float]
    draws: Mapping[str, Float[np.ndarray, "replicate _"]]
    had: Mapping[Curve, Mapping[str, int]]
    sizes: Mapping[str, Sequence[int]]


def measure_curves(
    text: HeldOut,
    ranked: Mapping[Curve, NeuronScores],
    sizes: Sequence[Size],
    action: Choice | None,
    seeds: int,
    statistics: Statistics,
    progress: bool = True,
) -> Curves:
    """The losses under each method's first units at each size; the same units are measured once.

    Args:
        text: The text to measure on.
        ranked: From `rankings`.
        sizes: Units per language, as numbers or as shares of all units of the kind.
        action: As in `choose_actions`.
        seeds: Random sets per method, language and size, measured in-language only.
        statistics: Of the run.
        progress: Show progress bars.
    """
    step("equal size")
    sets: dict[str, NeuronSet] = {}
    whose: dict[str, tuple[str, str, int]] = {}
    for (method, bases), ranking in ranked.items():
        for count in numbers_of(sizes, ranking):
            name, units = f"{method}, {bases}, {count}", first_units(ranking, count)
            if units is not None:
                sets[name], whose[name] = units, (method, bases, count)
    actions = choose_actions(statistics, sets, action)
    first = twins(sets, actions)
    once = {name: each for name, each in actions.items() if first[name] == name}
    measured = measure_effects(text, sets, once, progress) if once else Measured(text.unchanged, {}, text.tokens)
    draws, had = _draws(text), {key: available(each) for key, each in ranked.items()}
    rows = effects_by_language(measured.table, certainty(text, measured).table) if once else pd.DataFrame()
    if once and seeds:
        alike = [list(names) for _, names in groupby(once, key=lambda name: whose[name][:2])]
        band = _band(text, sets, once, alike, seeds, statistics, progress)
        rows = rows.merge(band, on=["method", "language"], how="left", validate="one_to_one")
    apart, parts, drawn, excess = apart_of(measured, draws), [], {}, {}
    for name, source in first.items():
        method, bases, count = whose[name]
        mine = rows.loc[rows["method"].eq(source)].assign(method=method, bases=bases)
        parts.append(mine.assign(available=[had[method, bases][label] for label in mine["language"]]))
        cells = {(method, bases, label, count): apart[source, label] for label in mine["language"]}
        drawn |= {cell: values for cell, (values, _) in cells.items()}
        excess |= {cell: bound for cell, (_, bound) in cells.items()}
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    numbers = {bases: numbers_of(sizes, each) for (_, bases), each in ranked.items()}
    return Curves(table.reindex(columns=COLUMNS), drawn, excess, draws, had, numbers)


def _band(
    text: HeldOut, sets: Mapping[str, NeuronSet], actions: Mapping[str, Choice], groups: Iterable[list[str]],
    seeds: int, statistics: Statistics, progress: bool,
) -> pd.DataFrame:  # fmt: skip
    """In-language loss increases of random sets like each set; a group at a time, as they take room."""
    points = []
    for names in groups:
        drawn = {name: matched_draws(sets[name], seeds, statistics).sets for name in names}
        named = {effects.control_name(name, seed): each for name in names for seed, each in drawn[name].items()}
        losses = text.measure(named, actions[names[0]], evaluate="own", progress=progress).table
        points.append(effects.control_points(losses))
    rises = pd.concat(points).groupby(["method", "language"])["own_rise"]
    return rises.agg(random_mean="mean", random_low="min", random_high="max").reset_index()


def _draws(text: HeldOut) -> Mapping[str, Float[np.ndarray, "replicate _"]]:
    """The documents drawn; none where a language has no scored token."""
    return document_draws(text.tokens) if all(map(len, text.tokens.values())) else {}


def apart_of(
    measured: Measured, draws: Mapping[str, Float[np.ndarray, "replicate _"]]
) -> dict[tuple[str, str], tuple[Float[np.ndarray, "replicate"], float]]:
    """By set and language, the in-language minus the largest other-language loss increase on drawn documents.

    With each, the most by which it is too low on average.
    """
    pairs = dict.fromkeys((name, off) for name, off, _ in measured.rises)
    if not draws:
        return dict.fromkeys(pairs, (np.full(REPLICATES, np.nan), np.nan))
    rises = drawn_rises(measured, draws)
    documents, found = {label: each.shape[1] for label, each in draws.items()}, {}
    for pair in pairs:
        others = {on: rises[(*pair, on)] for on in draws if on != pair[1]}
        apart = rises[(*pair, pair[1])] - np.max([*others.values()], axis=0)
        found[pair] = apart, excess_of_largest(others, documents)
    return found
