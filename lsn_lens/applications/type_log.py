"""Changes under the sets of every item, added up to a table with intervals over items."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.applications.item_types import OWN, Trial, TypeSets
from lsn_lens.bars import tqdm
from lsn_lens.controls.intervals import document_draws, drawn_rises, spread
from lsn_lens.evaluation.baseline import Measured

ALL = "(all)"  # the row of all languages together


@dataclass(frozen=True, eq=False)
class TypeEffects:
    """The result of `type_losses` and `type_accuracy`.

    Attributes:
        table: One row per action, type, control and language; the language "(all)" has all together.
        measured: The changes by item: key `(action/control/seed, type, language)`.
    """

    table: pd.DataFrame
    measured: Measured = field(repr=False)


class TypeLog:
    """Changes by item, which grow item by item."""

    def __init__(self, kept: TypeSets, seeds: int) -> None:
        self.kept, self.seeds = kept, seeds
        self.rises: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
        self.tokens: dict[str, list[np.ndarray]] = defaultdict(list)
        self.n_bytes: dict[str, float] = defaultdict(float)
        self.sets: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)

    def items(self, progress: bool) -> Iterator[tuple[int, list[Trial]]]:
        """Each item with its trials, whose sets are noted."""
        for place in tqdm(range(len(self.kept.sets)), desc="items", disable=not progress):
            trials = self.kept.trials(place, self.seeds)
            for trial in trials:
                for name, row in self.kept.described(place, trial.sets).items():
                    self.sets[trial.control, name].append(row)
            yield place, trials

    def weigh(self, tokens: Mapping[str, np.ndarray], n_bytes: Mapping[str, np.ndarray] | None = None) -> None:
        """Add an item's scored tokens; all languages together count as one more language."""
        for label, each in {**tokens, ALL: sum(tokens.values())}.items():
            self.tokens[label].append(np.asarray(each))
        for label, each in (n_bytes or {}).items():
            self.n_bytes[label] += float(each.sum())
            self.n_bytes[ALL] += float(each.sum())

    def add(self, rises: Mapping[tuple[str, str, str], np.ndarray]) -> None:
        """Add an item's changes."""
        together: dict[tuple[str, str, str], Any] = defaultdict(float)
        for (name, type_, label), each in rises.items():
            self.rises[name, type_, label].append(each)
            together[name, type_, ALL] += each
        for key, each in together.items():
            self.rises[key].append(np.asarray(each))

    def effects(self, actions: Iterable[str], seed: int) -> TypeEffects:
        """The table, with intervals over items."""
        joined = {key: np.concatenate(each) for key, each in self.rises.items()}
        measured = Measured(pd.DataFrame(), joined, {key: np.concatenate(each) for key, each in self.tokens.items()})
        draws = document_draws(measured.tokens, seed)
        drawn, rows = drawn_rises(measured, draws), []
        kinds = list(dict.fromkeys((control, name) for control, name in self.sets if control != OWN))
        for action in actions:
            for control, name in kinds:
                seeds = [key for key in joined if key[0].startswith(f"{action}/{control}/") and key[1] == name]
                for label in measured.tokens:
                    own, others = (_own(action), name, label), [key for key in seeds if key[2] == label]
                    row = compared(measured, drawn, draws, own, others)
                    rows.append({"action": action, "type": name, "control": control, "language": label,
                                 **self._described(control, name), **row, **self._bits(label, row),
                                 "items": len(measured.tokens[label]), "seeds": len(others)})  # fmt: skip
        return TypeEffects(pd.DataFrame(rows), measured)

    def _described(self, control: str, name: str) -> dict[str, float]:
        own, other = (pd.DataFrame(self.sets[each, name]).mean().to_dict() for each in (OWN, control))
        return {"units": float(own["units"]), "contribution": float(own["contribution"]),
                "control_contribution": float(other["contribution"]),
                "control_of_type": float(other["of_type"])}  # fmt: skip

    def _bits(self, label: str, row: Mapping[str, float]) -> dict[str, float]:
        if not self.n_bytes:
            return {}
        rate = sum(float(each.sum()) for each in self.tokens[label]) / self.n_bytes[label] / math.log(2)
        return {f"{name}_bits_per_byte": row[name] * rate for name in ("change", "excess")}


def compared(
    measured: Measured,
    drawn: Mapping[tuple[str, str, str], np.ndarray],
    draws: Mapping[str, np.ndarray],
    own: tuple[str, str, str],
    others: Sequence[tuple[str, str, str]],
) -> dict[str, float]:
    """A change, its controls', and their difference, with intervals over items drawn together for both."""
    weights, total = {own[2]: draws[own[2]]}, measured.tokens[own[2]].sum()
    change, values = (
        float(measured.rises[own].sum() / total),
        np.array([measured.rises[key].sum() / total for key in others]),
    )
    excess = change - float(values.mean())
    low, high = spread(drawn[own], weights).interval(change)
    bounds = spread(drawn[own] - np.mean([drawn[key] for key in others], axis=0), weights).interval(excess)
    return {"change": change, "low": low, "high": high, "control_change": float(values.mean()),
            "control_least": float(values.min()), "control_most": float(values.max()),
            "excess": excess, "excess_low": bounds[0], "excess_high": bounds[1]}  # fmt: skip


def trial_key(action: str, trial: Trial) -> str:
    """The name of a trial in `TypeEffects.measured`."""
    return f"{action}/{trial.control}/{trial.seed}"


def _own(action: str) -> str:
    return f"{action}/{OWN}/0"
