"""How far to trust each method: other draws of the text, shuffled labels, another spelling, other ablations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsn_lens.bars import tqdm
from lsn_lens.controls.ablations import ablation_sensitivity
from lsn_lens.controls.changed_text import CONTROLS, Control
from lsn_lens.controls.neutral import measured_neutral, off_target
from lsn_lens.controls.redetection import same_script_survival, survival
from lsn_lens.controls.resampling import load_shards
from lsn_lens.controls.significance import LEVEL, permutation_test
from lsn_lens.controls.stability import bootstrap, leave_one_out, stability_table
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import Choice
from lsn_lens.methods.base import Method
from lsn_lens.methods.sharing import Sharing
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.run import Run
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

OF_SET = ("ablations", "off target")  # checks of units and of what is done to them, whoever found them
FEWEST = 39  # permutations below which a p-value of two statistics cannot reach 0.05

Corpora = Mapping[str, LanguageCorpus]
Details = dict[str, pd.DataFrame]
Measures = Mapping[str, Callable[[], pd.DataFrame]]


@dataclass(frozen=True)
class Checks:
    """What `compare` does to see how far each method can be trusted. The last three run the model.

    Attributes:
        replicates: Of the bootstrap, beside which each language is left out in turn; 0 leaves both out.
        permutations: Of labels; 0 leaves them out.
        without_draws: Names of methods that are not asked again on draws of the run: "average_precision" takes seconds
            for each, others a tenth of one.
        paired: Draw the same shards in all languages and permute labels within a place only, for parallel text. The
            method "sharing" is always drawn so.
        changed_text: Find units again on romanised text and on shuffled words, a pass over the text each, and, from the
            run alone, without other scripts.
        ablations: Every kind of ablation.
        off_target: Numbers, arithmetic, code, and what the model writes.
        seeds: Random sets beside the last two.
    """

    replicates: int = 200
    permutations: int = 99
    without_draws: tuple[str, ...] = ()
    paired: bool = False
    changed_text: bool = False
    ablations: bool = False
    off_target: bool = False
    seeds: int = 2

    def __post_init__(self) -> None:
        if self.replicates < 0 or self.replicates == 1:
            raise ValueError(f"replicates={self.replicates}: expected 2 or more, or 0 for none.")
        if self.permutations < 0 or 0 < self.permutations < FEWEST:
            raise ValueError(
                f"permutations={self.permutations}: expected {FEWEST} or more, below which no p-value reaches {LEVEL}, "
                "or 0 for none."
            )
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected 1 random set or more.")

    @property
    def of_draws(self) -> tuple[str, ...]:
        """Those that ask a method again on draws of the run."""
        return ("leave one out", "stability") * bool(self.replicates) + ("nulls",) * bool(self.permutations)

    @property
    def with_model(self) -> bool:
        """Whether any of them runs the model."""
        return self.changed_text or self.of_set

    @property
    def of_set(self) -> bool:
        """Whether any of them changes units."""
        return self.ablations or self.off_target


def measure(
    run: Run,
    methods: Mapping[str, Method],
    found: Mapping[str, NeuronSet],
    checks: Checks,
    *,
    given: Mapping[str, NeuronSet] | None = None,
    model: Model | None = None,
    corpora: Corpora | None = None,
    actions: Mapping[str, Choice] | None = None,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> Details:
    """All checks of all methods; what does not apply is in the table "not done", with the reason.

    Args:
        run: Of the methods' statistics.
        methods: By name.
        found: Their sets.
        checks: Which.
        given: Sets that the methods did not find themselves, so that only checks of a set apply.
        model: For those that run it.
        corpora: The run's text.
        actions: What to do to each method's units; methods without one are not ablated.
        layout: How held-out text becomes batches.
        text: What `held_out` made of the model and corpora, where it is at hand; instead of a layout.
        progress: Show progress bars.

    Returns:
        Tables by name, those of the checks that were done, with a column `method`: "stability" as `stability_table`,
        "leave one out" as `leave_one_out`, "nulls" (`units`, `null_units`, `null_low`, `null_high` on permuted labels,
        `mean_score`, `null_score`, the mean over permutations that find any, `null_p` as `PermutationTest.set_p_value`,
        `beyond_null`, the share of its units at which their language stands out, max-T, `permutations`), "survival" as
        `survival` and `same_script_survival`, "ablations" as `ablation_sensitivity`, "off target" as `off_target`; and
        "not done" (`method`, `check`, `reason`).
    """
    if model is not None:
        check_model(model)
    parts: dict[str, list[pd.DataFrame]] = {}
    not_done: list[dict[str, str]] = []
    unchecked = {
        name: replace(method, check_parallel=False) if isinstance(method, Sharing) else method
        for name, method in methods.items()
        if name not in (given or {})
    }
    first = twins(found, actions or {})
    measured: dict[str, Any] = {}
    if model is not None and corpora is not None and checks.of_set:
        measured["text"] = held_out(model, corpora, layout, text=text, progress=progress)
        measured["neutral"] = measured_neutral(model, progress=progress) if checks.off_target else None
    for name in tqdm(methods, desc="how far to trust", disable=not progress):
        todo: dict[str, Callable[[], pd.DataFrame]] = {}
        if name in unchecked:
            drawn = name not in checks.without_draws
            if drawn:
                todo |= _of_run(load_shards(run, [unchecked[name]]), unchecked[name], checks)
            else:
                reason = "not asked for, as scoring this method takes long (without_draws)"
                not_done += [{"method": name, "check": check, "reason": reason} for check in checks.of_draws]
        else:
            not_done.append({"method": name, "check": "draws and changed text", "reason": "the set was given"})
        if checks.of_set and name not in first:
            reason = f"no intervention writes to {', '.join(found[name].masks)}"
            not_done.append({"method": name, "check": "ablations and off target", "reason": reason})
        if model is not None and corpora is not None and first.get(name) == name:
            todo |= _of_set(model, corpora, run, found[name], (actions or {})[name], measured, checks)
        for check, act in todo.items():
            with _noting(not_done, [name], check):
                parts.setdefault(check, []).append(act().assign(method=name))
    if model is not None and corpora is not None and checks.changed_text and unchecked:
        parts["survival"] = _changed_text(model, corpora, run, unchecked, not_done, progress)
    not_done += [
        {**row, "method": name}
        for row in list(not_done) if row["check"] in OF_SET
        for name in first if first[name] == row["method"] != name
    ]  # fmt: skip
    tables = {check: _first(pd.concat(each, ignore_index=True)) for check, each in parts.items() if each}
    tables |= {check: with_twins(tables[check], "method", first) for check in OF_SET if check in tables}
    return tables | {"not done": pd.DataFrame(not_done, columns=["method", "check", "reason"])}


def twins(found: Mapping[str, NeuronSet], actions: Mapping[str, Choice]) -> dict[str, str]:
    """Each method that has an action, with the first one of the same units and action: measured once for all."""
    firsts: dict[str, str] = {}
    for name in actions:
        alike = (each for each in dict.fromkeys(firsts.values()) if actions[each] is actions[name])
        firsts[name] = next((each for each in alike if _same(found[each], found[name])), name)
    return firsts


def with_twins(table: pd.DataFrame, column: str, firsts: Mapping[str, str]) -> pd.DataFrame:
    """Rows of the methods that were measured, copied for their twins; in the order of the methods, others in front."""
    copies = [table.loc[table[column].eq(first)].assign(**{column: name}) for name, first in firsts.items()]
    others = table.loc[~table[column].isin(list(firsts))]
    return pd.concat([others, *copies], ignore_index=True)


def _same(one: NeuronSet, other: NeuronSet) -> bool:
    alike = one.languages == other.languages and one.masks.keys() == other.masks.keys()
    return alike and all(torch.equal(mask, other.masks[basis]) for basis, mask in one.masks.items())


@contextmanager
def _noting(not_done: list[dict[str, str]], methods: Iterable[str], check: str) -> Iterator[None]:
    try:
        yield
    except DoesNotApply as error:  # and nothing else: a fault must not read as a check that was not asked for
        not_done += [{"method": name, "check": check, "reason": str(error)} for name in methods]


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[:, ["method", *table.columns.drop("method")]]


def _of_run(run: Run, method: Method, checks: Checks) -> Measures:
    paired = checks.paired or isinstance(method, Sharing)
    every: Measures = {
        "leave one out": lambda: leave_one_out(run, method, progress=False),
        "stability": lambda: _stability(run, method, checks, paired),
        "nulls": lambda: _nulls(run, method, checks, paired),
    }
    return {check: every[check] for check in checks.of_draws}


def _stability(run: Run, method: Method, checks: Checks, paired: bool) -> pd.DataFrame:
    replicates = checks.replicates
    table = stability_table(bootstrap(run, method, replicates=replicates, paired=paired, progress=False))
    return table.assign(replicates=replicates)


def _nulls(run: Run, method: Method, checks: Checks, paired: bool) -> pd.DataFrame:
    test = permutation_test(run, method, permutations=checks.permutations, paired=paired, progress=False)
    totals, finite = test.totals.double(), test.means[test.means.isfinite()]
    beyond, members = test.found & test.beyond_null(), int(test.found.counts().sum())
    row: dict[str, Any] = {
        "units": len(test.found),
        "null_units": float(totals.mean()),
        "null_low": int(totals.min()),
        "null_high": int(totals.max()),
        "mean_score": test.mean_score() if members else np.nan,
        "null_score": float(finite.mean()) if len(finite) else np.nan,
        "null_p": test.set_p_value(),
        "beyond_null": int(beyond.counts().sum()) / members if members else np.nan,
        "permutations": checks.permutations,
    }
    return pd.DataFrame([row])


def _of_set(
    model: Model, corpora: Corpora, run: Run, found: NeuronSet, action: Choice, measured: Mapping[str, Any],
    checks: Checks,
) -> Measures:  # fmt: skip
    measures: dict[str, Callable[[], pd.DataFrame]] = {}
    options: dict[str, Any] = {"seeds": checks.seeds, "text": measured.get("text"), "progress": False}
    if checks.ablations:
        measures["ablations"] = lambda: ablation_sensitivity(model, corpora, run, found, **options)
    if checks.off_target:
        beside = {"statistics": run.statistics, "neutral": measured["neutral"], **options}
        measures["off target"] = lambda: off_target(model, corpora, found, action, **beside).table
    return measures


def _changed_text(
    model: Model,
    corpora: Corpora,
    run: Run,
    methods: Mapping[str, Method],
    not_done: list[dict[str, str]],
    progress: bool,
) -> list[pd.DataFrame]:
    usable: dict[str, Control] = {}
    for name, control in CONTROLS.items():  # text is read later: this only asks whether it can be changed
        with _noting(not_done, methods, name):
            control(corpora)
            usable[name] = control
    tables = []
    with _noting(not_done, methods, "same script"):
        tables.append(same_script_survival(run, corpora, methods))
    with _noting(not_done, methods, "changed text"):
        tables.append(survival(model, corpora, methods, usable, run=run, progress=progress))
    return tables
