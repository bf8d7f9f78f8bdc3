"""Warnings about numbers that are not to be trusted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.comparison.overlaps import mean_jaccard
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.verdict import COLLAPSE
from lsn_lens.neurons.sets import NeuronSet

FEW_TOKENS = 2000
UNEQUAL = 1.1  # ratio of units per language from which on set sizes count as different
ALIKE = 0.5  # mean Jaccard from which on the languages' sets count as nearly the same
EVERY = "every method"
NO_RANKING = "numbers at own size do not rank methods"

Doubts = Iterable[tuple[str, list[str]]]
Row = tuple[str, str, list[str]]


def warnings_table(
    found: Mapping[str, NeuronSet],
    losses: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    control: pd.DataFrame | None = None,
    vocabulary: int | None = None,
    checked: Sequence[Row] = (),
) -> pd.DataFrame:
    """One row per method and warning: `method`, `warning`, `languages` ("" for no particular one).

    Args:
        found: Each method's set.
        losses: The table "losses" of `effect_tables`.
        effects: From `effects_by_language`, with the verdicts.
        control: From `measure_controls`; its `attrs["tests"]` says how many tests were corrected for, if not all rows.
        vocabulary: Tokens of the model: ln of it is the loss of a uniform guess.
        checked: From `trust.doubts_of`.
    """
    rows = [(name, *each) for name, neurons in found.items() for each in _of_set(neurons)]
    rows += [(EVERY, *each) for each in _of_sizes(found)]
    if losses is not None and effects is not None and control is not None and vocabulary is not None:
        uniform = math.log(vocabulary)
        rows += [(EVERY, *each) for each in _of_measurement(losses, control, uniform)]
        zeroed = len(set(effects["action"])) > 1
        for name, neurons in found.items():
            mine = effects.loc[effects["method"].eq(name)]
            changed = losses.loc[losses["set"].eq(name)]
            if mine.empty:
                rows.append((name, f"no effect was measured: no intervention writes to {', '.join(neurons.masks)}", []))
                continue
            if zeroed and set(mine["action"]) == {"zero"}:
                rows.append((name, "set to zero, other methods' units to a mean: the run lacks means of its units", []))
            rows += [(name, *each) for each in [*_of_losses(changed, uniform), *_of_effects(mine)]]
    return table_of([*rows, *checked], list(found))


def table_of(rows: Sequence[Row], methods: list[str]) -> pd.DataFrame:
    """Warnings (method, words, languages) as a table, methods in the order given."""
    order = {name: place for place, name in enumerate((EVERY, *methods))}
    kept = [(name, warning, ", ".join(dict.fromkeys(labels))) for name, warning, labels in rows]
    frame = pd.DataFrame(sorted(kept, key=lambda row: order[row[0]]), columns=["method", "warning", "languages"])
    return frame.astype("str")


def in_words(warnings: pd.DataFrame, method: str) -> str:
    """A method's warnings in one line."""
    rows = warnings.loc[warnings["method"].eq(method)].to_dict("records")
    return "; ".join(row["warning"] + (f" ({row['languages']})" if row["languages"] else "") for row in rows)


def _of_set(neurons: NeuronSet) -> Doubts:
    counts: dict[str, int] = neurons.counts().to_dict()
    none = [label for label, count in counts.items() if not count]
    if none:
        yield verdict.NO_NEURONS, none
    few = [label for label, count in counts.items() if verdict.few_neurons(count)]
    if few:
        yield verdict.FEW, few
    alike = mean_jaccard(neurons)
    if alike > ALIKE:
        yield f"not specific: the languages' sets are nearly the same (mean Jaccard {alike:.2f})", []


def _of_sizes(found: Mapping[str, NeuronSet]) -> Doubts:
    """Effects depend on set size and kind of unit: where these differ, effects at own size do not rank methods."""
    kinds: dict[str, dict[str, float]] = {}
    for name, each in found.items():
        kinds.setdefault(", ".join(sorted(each.masks)), {})[name] = float(np.mean(each.counts().to_numpy()))
    for kind, sizes in kinds.items():
        least, most = min(sizes.values()), max(sizes.values())
        if most > UNEQUAL * least:
            yield f"sets of different sizes ({kind}: {least:.3g} to {most:.3g} units per language): {NO_RANKING}", []
    if len(kinds) > 1:
        yield f"sets of different kinds of unit: {NO_RANKING}", []


def _of_measurement(losses: pd.DataFrame, control: pd.DataFrame, uniform: float) -> Doubts:
    used: dict[str, int] = {label: each["tokens_used"] for label, each in losses.attrs["text"]["languages"].items()}
    few = [label for label, tokens in used.items() if tokens < FEW_TOKENS]
    if few:
        yield f"effects were measured on fewer than {FEW_TOKENS:,} tokens", few
    yield from _of_random_sets(control)
    clean = losses.loc[losses["action"].eq("none")]
    lost = _labels(clean, clean["nll"] > uniform)
    if lost:
        yield "the unchanged model predicts no better than a uniform guess", lost


def _of_random_sets(control: pd.DataFrame) -> Doubts:
    """Too few random sets for any p-value, or for the correction."""
    p, q, seeds = (control[name].to_numpy(dtype=float) for name in ("p", "q", "seeds"))
    most, tests = int(seeds.max()), control.attrs.get("tests", int((~np.isnan(p)).sum()))
    if most + 1 < 1 / verdict.LEVEL:
        yield f"only {most} random sets: no p-value reaches {verdict.LEVEL:g}", []
    elif (p <= verdict.LEVEL).any() and not (q <= verdict.LEVEL).any():
        yield (
            f"corrected for {tests} tests, none is beyond random sets: with {most} of them it takes "
            f"{verdict.fewest_to_pass(tests, most)} languages above all of theirs. Give more random sets",
            [],
        )


def _of_losses(changed: pd.DataFrame, uniform: float) -> Doubts:
    lost = (changed["nll"] > uniform) & (changed["nll"] - changed["nll_change"] <= uniform)
    where = _labels(changed, lost | (changed["nll_change"] > COLLAPSE))
    if where:
        yield f"collapse: worse than a uniform guess, or a rise of more than {COLLAPSE:g} nats", where


def _of_effects(effects: pd.DataFrame) -> Doubts:
    """The warnings of `verdict.doubts` except the number of neurons, which concerns the set."""
    reasons = verdict.by_reason(effects.loc[effects["units"] > 0].to_dict("records"))
    yield from ((words, where) for words, where in reasons.items() if words != verdict.FEW)


def _labels(rows: pd.DataFrame, holds: Any) -> list[str]:
    return list(rows.loc[holds, "evaluated"])
