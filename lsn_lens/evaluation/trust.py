"""Why not to trust a method's numbers, in words."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.evaluation.causal import PERCENTILE
from lsn_lens.evaluation.effects import FEW_NEURONS
from lsn_lens.neurons import NeuronSet

FEW_SEEDS = 20
FEW_TOKENS = 2000
ALIKE = 0.5  # mean Jaccard of the languages' sets from which on they are nearly the same
COLLAPSE = 3.0  # nats: the rise of a loss from which on the model is broken rather than changed
EVERY = "every method"

Doubts = Iterable[tuple[str, list[str]]]


def warnings_table(
    found: Mapping[str, NeuronSet],
    losses: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    control: pd.DataFrame | None = None,
    vocabulary: int | None = None,
) -> pd.DataFrame:
    """One row a method and warning: `method`, `warning`, `languages` (which it holds for; "" for no particular one).

    Args:
        found: Each method's set.
        losses: From `measure_losses`.
        effects: From `effects_by_language`.
        control: From `measure_controls`.
        vocabulary: Tokens of the model: ln of it is the loss of a uniform guess.
    """
    rows = [(name, *each) for name, neurons in found.items() for each in _of_set(neurons)]
    if losses is not None and effects is not None and control is not None and vocabulary is not None:
        uniform = math.log(vocabulary)
        rows += [(EVERY, *each) for each in _of_measurement(losses, control, uniform)]
        zeroed = len(set(effects["action"])) > 1
        for name, neurons in found.items():
            mine, beside = (frame.loc[frame["method"].eq(name)] for frame in (effects, control))
            changed = losses.loc[losses["set"].eq(name)]
            if mine.empty:
                rows.append((name, f"no effect was measured: no intervention writes to {', '.join(neurons.masks)}", []))
                continue
            if zeroed and set(mine["action"]) == {"zero"}:
                rows.append((name, "set to zero, other methods' units to a mean: the run lacks means of its units", []))
            rows += [(name, *each) for each in [*_of_losses(changed, uniform), *_of_effects(mine, beside)]]
    order = {name: place for place, name in enumerate((EVERY, *found))}
    kept = [(name, warning, ", ".join(dict.fromkeys(labels))) for name, warning, labels in rows]
    frame = pd.DataFrame(sorted(kept, key=lambda row: order[row[0]]), columns=["method", "warning", "languages"])
    return frame.astype("str")


def in_words(warnings: pd.DataFrame, method: str) -> str:
    """A method's warnings in one line."""
    rows = warnings.loc[warnings["method"].eq(method)].to_dict("records")
    return "; ".join(row["warning"] + (f" ({row['languages']})" if row["languages"] else "") for row in rows)


def mean_jaccard(neurons: NeuronSet) -> float:
    """Mean overlap of two languages' sets; NaN where no two have units."""
    table = neurons.jaccard()
    pairs = [float(table.loc[a, b]) for a, b in combinations(neurons.languages, 2)]  # type: ignore[arg-type]
    return float(pd.Series(pairs, dtype=float).mean())


def _of_set(neurons: NeuronSet) -> Doubts:
    counts: dict[str, int] = neurons.counts().to_dict()
    none = [label for label, count in counts.items() if not count]
    if none:
        yield "no neurons", none
    few = [label for label, count in counts.items() if 0 < count < FEW_NEURONS]
    if few:
        yield f"fewer than {FEW_NEURONS} neurons", few
    alike = mean_jaccard(neurons)
    if alike > ALIKE:
        yield f"not specific: the languages' sets are nearly the same (mean Jaccard {alike:.2f})", []


def _of_measurement(losses: pd.DataFrame, control: pd.DataFrame, uniform: float) -> Doubts:
    used: dict[str, int] = {label: each["tokens_used"] for label, each in losses.attrs["text"]["languages"].items()}
    few = [label for label, tokens in used.items() if tokens < FEW_TOKENS]
    if few:
        yield f"effects were measured on fewer than {FEW_TOKENS:,} tokens", few
    seeds = min(control["seeds"])
    if seeds < FEW_SEEDS:
        yield f"only {seeds} random sets: percentiles are coarse", []
    clean = losses.loc[losses["action"].eq("none")]
    lost = _labels(clean, clean["nll"] > uniform)
    if lost:
        yield "the unchanged model predicts no better than a uniform guess", lost


def _of_losses(changed: pd.DataFrame, uniform: float) -> Doubts:
    infinite = _labels(changed, ~np.isfinite(changed["nll_change"]))
    if infinite:
        yield "the loss is not finite", infinite
    lost = (changed["nll"] > uniform) & (changed["nll"] - changed["nll_change"] <= uniform)
    where = _labels(changed, lost | (changed["nll_change"] > COLLAPSE))
    if where:
        yield f"collapse: worse than a uniform guess, or a rise of more than {COLLAPSE:g} nats", where


def _of_effects(effects: pd.DataFrame, control: pd.DataFrame) -> Doubts:
    below = _labels(control, (control["neurons"] > 0) & (control["percentile"] < PERCENTILE), "language")
    if below:
        yield f"not above {PERCENTILE} % of the random sets", below
    elsewhere = _labels(effects, (effects["neurons"] > 0) & ~effects["own_hurt_most"], "language")
    if elsewhere:
        yield "not hurt, or another language hurt more", elsewhere


def _labels(rows: pd.DataFrame, holds: Any, column: str = "evaluated") -> list[str]:
    return list(rows.loc[holds, column])
