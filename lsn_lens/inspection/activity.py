"""A unit's scores under every method of a run, and how active it is in each language."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import t
from torch import Tensor

from lsn_lens.controls.resampling import check_shards
from lsn_lens.controls.support import firing_interval
from lsn_lens.methods.base import Method, order_of, scores_of, units_of
from lsn_lens.methods.catalogue import METHODS, named
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import Run, check_run
from lsn_lens.runs.shards import TOKENS

RANDOM = "random"  # a method whose scores mean nothing
FIRES = "mlp_pre.positive"


@dataclass(frozen=True)
class Scored:
    """A run's scores under several methods.

    Attributes:
        methods: Name -> the scores, the values that rank units (higher first), and the set found.
        left_out: Name -> why a method of the package has no scores.
    """

    methods: Mapping[str, tuple[NeuronScores, Mapping[str, Tensor], NeuronSet]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def without(self, basis: str) -> dict[str, str]:
        """The methods that have no scores of a basis, and why."""
        others = {name: list(scores.values) for name, (scores, _, _) in self.methods.items()}
        said = {name: f"scores {', '.join(bases)}" for name, bases in others.items() if basis not in bases}
        return said | dict(self.left_out)

    def of(self, basis: str, layer: int, unit: int) -> pd.DataFrame:
        """One row per method and language: `method`, `language`, `score`, `rank`, `of`, `rank_overall`, `found`.

        `rank` counts from 1 among the units of the basis, equal ones alike; NaN for a unit that cannot belong to the
        language. `of` is the number of units that can. `rank_overall` is that of the unit for all languages at once
        (`NeuronScores.rank`). `found` says whether the method's set has the unit.
        """
        rows = []
        for name, (scores, order, found) in self.methods.items():
            if basis not in scores.values:
                continue
            overall, _ = _rank(scores.rank(basis), layer, unit)
            for place, language in enumerate(scores.languages):
                rank, of = _rank(order[basis][place], layer, unit)
                inside = bool(found.masks[basis][place, layer, unit]) if basis in found.masks else False
                rows.append(
                    (name, language, float(scores.values[basis][place, layer, unit]), rank, of, overall, inside)
                )
        return pd.DataFrame(rows, columns=["method", "language", "score", "rank", "of", "rank_overall", "found"])


def scored_by(run: Run, methods: Any = None) -> Scored:
    """Scores of a run under the methods given, or all methods whose statistics the run has.

    Raises:
        KeyError: The run lacks a statistic of a method that was given.
        DoesNotApply: A method that was given does not apply to the run's text.
    """
    check_run(run)
    wanted = named([name for name in METHODS if name != RANDOM] if methods is None else methods)
    kept: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, method in wanted.items():
        if methods is None and (lacking := run.lacks(method)):
            left_out[name] = run.why_not(name) or f"the run did not collect {', '.join(lacking)}"
            continue
        try:
            kept[name] = _one(method, run)
        except DoesNotApply as error:
            if methods is not None:
                raise
            left_out[name] = str(error)
    return Scored(kept, left_out)


def _one(method: Method, run: Run) -> tuple[NeuronScores, Mapping[str, Tensor], NeuronSet]:
    scores = scores_of(method, run.statistics)
    return scores, order_of(method, scores), units_of(method, scores)


def _rank(values: Float[Tensor, "layer unit"], layer: int, unit: int) -> tuple[float, int]:
    """A unit's rank from the highest value, NaN without a finite value; and the number of units that have one."""
    own, ranked = values[layer, unit], values[values.isfinite()]
    return (1.0 + int((ranked > own).sum()) if bool(own.isfinite()) else math.nan), len(ranked)


class Activity:
    """How active units are in each language of a run, with intervals over the run's shards."""

    def __init__(self, run: Run, level: float = 0.95):
        self.run, self.level = run, level
        self.few_shards = ""
        try:
            check_shards(run)
        except ValueError as error:
            self.few_shards = str(error)
        self.fires: tuple[Tensor, Tensor] | None = None
        if FIRES in run.statistics.sums and not self.few_shards:
            self.fires = firing_interval(run, level=level)

    def of(self, basis: str, layer: int, unit: int) -> pd.DataFrame:
        """One row per measure and language: `measure`, `language`, `value`, `low`, `high`.

        Measures: "firing rate" (share of tokens with act(gate) > 0; basis "mlp") and "mean" (of the value that an
        intervention changes), each if the run has it. Intervals take shards of text as independent; NaN with too few.
        """
        statistics = self.run.statistics
        parts = []
        if basis == "mlp" and FIRES in statistics.sums:
            values = statistics.probability("mlp_pre")[:, layer, unit]
            nothing = torch.full_like(values, math.nan)
            low, high = (nothing, nothing) if self.fires is None else (x[:, layer, unit] for x in self.fires)
            parts.append(self._rows("firing rate", values, low, high))
        key = f"{WRITE_SITE[basis]}.sum"
        if key in statistics.sums:
            values = statistics.mean(WRITE_SITE[basis])[:, layer, unit].double()
            half = torch.tensor([self._half(label, key, layer, unit) for label in self.run.languages])
            parts.append(self._rows("mean", values, values - half, values + half))
        columns = ["measure", "language", "value", "low", "high"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def _rows(self, measure: str, *values: Float[Tensor, "language"]) -> pd.DataFrame:
        columns = dict(zip(("value", "low", "high"), (each.double().numpy() for each in values), strict=True))
        return pd.DataFrame({"measure": measure, "language": list(self.run.languages), **columns})

    def _half(self, language: str, key: str, layer: int, unit: int) -> float:
        """Half the width of the interval of a mean: Student's, from the spread of the shards."""
        if self.few_shards:
            return math.nan
        parts = [(float(part[key][layer, unit]), int(part[TOKENS][layer])) for part in self.run.parts(language)]
        sums, tokens = np.array(parts, dtype=float).T
        number = len(parts)
        off = sums - sums.sum() / tokens.sum() * tokens
        error = math.sqrt(float((off**2).sum()) * number / (number - 1)) / tokens.sum()
        return float(t.ppf((1 + self.level) / 2, number - 1)) * error
