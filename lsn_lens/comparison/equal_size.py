"""Methods at equal size: the best units of each method, the same number for all methods."""

from collections.abc import Mapping

import pandas as pd

from lsn_lens.comparison.overlaps import strongest_set
from lsn_lens.controls.causal import effects_by_language, measure_effects, specificity_table
from lsn_lens.controls.intervals import certainty
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.evaluation.verdict import FEW_NEURONS
from lsn_lens.interventions.words import Choice
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet

COLUMNS = ["method", "bases", "units"]


def equal_sizes(found: Mapping[str, NeuronSet], scores: Mapping[str, NeuronScores]) -> dict[str, NeuronSet]:
    """The best units of each method; per language, the same number for all methods on the same kind of unit.

    The number is that of the smallest set with 10 or more units in the language; a method with fewer gets no units in
    that language. Methods without another method to compare with are left out.
    """
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, each in found.items():
        kinds.setdefault(tuple(sorted(each.masks)), []).append(name)
    cut = {}
    for names in kinds.values():
        counts = pd.DataFrame({name: found[name].counts() for name in names})
        enough = counts.where(counts >= FEW_NEURONS)
        enough = enough.loc[enough.notna().sum(axis=1) > 1]
        for name in names:
            mine: dict[str, int] = enough.min(axis=1)[enough[name].notna()].astype(int).to_dict()
            if len(names) > 1 and mine:
                cut[name] = strongest_set(found[name], scores[name], mine)
    return cut


def measure_equal_size(
    text: HeldOut,
    found: Mapping[str, NeuronSet],
    scores: Mapping[str, NeuronScores],
    actions: Mapping[str, Choice],
    progress: bool = True,
) -> pd.DataFrame:
    """Effects of `equal_sizes`, one row per method, see `Comparison.equal_size`; largest difference first."""
    cut = equal_sizes({name: found[name] for name in actions}, scores)
    if not cut:
        return pd.DataFrame(columns=COLUMNS)
    measured = measure_effects(text, cut, {name: actions[name] for name in cut}, progress)
    rows = effects_by_language(measured.table, certainty(text, measured).table)
    table = specificity_table(rows.loc[rows["units"].gt(0)])
    table.insert(1, "bases", [", ".join(found[name].masks) for name in table["method"]])
    table.insert(2, "units", table.pop("units") / table["languages"])
    return table.sort_values(["bases", "difference"], ascending=[True, False], kind="stable", ignore_index=True)
