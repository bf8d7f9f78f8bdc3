"""All checks of all methods: their tables, one table of main numbers, and their warnings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from lsn_lens.bars import tqdm
from lsn_lens.comparison.checking import Check, Subject
from lsn_lens.comparison.checks import CHECKS, asked
from lsn_lens.interventions.words import Choice
from lsn_lens.methods.base import Method
from lsn_lens.model.entry import check_model
from lsn_lens.neurons.sets import NeuronSet

NOT_DONE = "not_done"

Tables = dict[str, pd.DataFrame]


def measure(subject: Subject, given: Iterable[str] = ()) -> Tables:
    """Run all checks that `subject.options` chooses, for all methods.

    Args:
        subject: All methods, the run, the model and the options.
        given: Methods whose sets were given, not found: only checks of units apply.

    Returns:
        The tables of the checks that were done, by `Check.table`, with a column `method`: "stability" as
        `stability_table`, "leave_one_out" as `leave_one_out`, "nulls" (`units`, different ones, `null_units`,
        `null_low`, `null_high` on permuted labels, `mean_score`, `null_score`, the mean over permutations that find
        any, `null_p` as `PermutationTest.set_p_value`, `beyond_null`, the share of the set's memberships whose language
        stands out, max-T, `permutations`), "survival" as `survival` and `same_script_survival`, "ablations" as
        `ablation_sensitivity`, "off_target" as `off_target`; and "not_done" (`method`, `check`, `reason`).
    """
    if subject.model is not None:
        check_model(subject.model)
    rows, first, given = asked(subject.options), twins(subject.found, subject.actions), set(given)
    subject = replace(
        subject, methods={name: for_draws(method) for name, method in subject.methods.items()}, not_done=[]
    )
    parts: dict[str, list[pd.DataFrame]] = {row.table: [] for row in rows}
    for row, looked_at, alike in _jobs(rows, subject, given, first):
        with alike.attempt(row.name):
            table = row.run(looked_at)
            parts[row.table].append(table if row.asks == "methods" else table.assign(method=looked_at.name))
    whole = {name: pd.concat(each, ignore_index=True) for name, each in parts.items() if each}
    tables = {name: _first(table) for name, table in whole.items() if len(table)}
    shared = [row.table for row in rows if row.asks == "units" and row.table in tables]
    tables |= {name: with_twins(tables[name], "method", first) for name in shared}
    return tables | {NOT_DONE: pd.DataFrame(subject.not_done, columns=["method", "check", "reason"])}


def _jobs(
    rows: Sequence[Check], subject: Subject, given: set[str], first: Mapping[str, str]
) -> Iterator[tuple[Check, Subject, Subject]]:
    """Each check to run, its subject, and the methods that the result is about."""
    for name in tqdm(subject.methods, desc="how far to trust", disable=not subject.progress):
        one = subject.of([name])
        for row in rows:
            reason = _why_not(row, one, name in given, first)
            if reason:
                subject.not_done.append({"method": name, "check": row.name, "reason": reason})
            elif row.asks == "method":
                yield row, one, one
            elif row.asks == "units" and first[name] == name:
                yield row, one, subject.of(each for each in first if first[each] == name)
    own = subject.of(name for name in subject.methods if name not in given)
    for row in rows:
        if row.asks == "methods" and own.methods:
            yield row, own, own


def _why_not(row: Check, one: Subject, was_given: bool, first: Mapping[str, str]) -> str:
    """The reason why a check of one method is not run; "" for a check that is run."""
    if row.asks == "units":
        return "" if one.name in first else f"no intervention writes to {', '.join(one.units.masks)}"
    if was_given:
        return "the set was given"
    slow = row.asks == "method" and one.name in one.options.without_draws
    return "not asked for, as scoring this method takes long (without_draws)" if slow else ""


def for_draws(method: Method) -> Method:
    """A method for draws of a run; whether the text is parallel was checked on the run itself."""
    parallel: Any = method if getattr(method, "check_parallel", False) else None
    return method if parallel is None else replace(parallel, check_parallel=False)


def twins(found: Mapping[str, NeuronSet], actions: Mapping[str, Choice]) -> dict[str, str]:
    """Each method that has an action, with the first method of the same units and action: one is measured."""
    firsts: dict[str, str] = {}
    for name in actions:
        alike = (each for each in dict.fromkeys(firsts.values()) if actions[each] is actions[name])
        firsts[name] = next((each for each in alike if _same(found[each], found[name])), name)
    return firsts


def with_twins(table: pd.DataFrame, column: str, firsts: Mapping[str, str]) -> pd.DataFrame:
    """Rows of the measured methods, copied for methods with the same set; in the order of the methods, others first."""
    copies = [table.loc[table[column].eq(first)].assign(**{column: name}) for name, first in firsts.items()]
    others = table.loc[~table[column].isin(list(firsts))]
    return pd.concat([others, *copies], ignore_index=True)


def _same(one: NeuronSet, other: NeuronSet) -> bool:
    alike = one.languages == other.languages and one.masks.keys() == other.masks.keys()
    return alike and all(torch.equal(mask, other.masks[basis]) for basis, mask in one.masks.items())


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[:, ["method", *table.columns.drop("method")]]


def trust_table(tables: Mapping[str, pd.DataFrame], methods: list[str], rows: Sequence[Check] = CHECKS) -> pd.DataFrame:
    """One row per method with the main numbers of the checks that were done.

    Args:
        tables: From `measure`.
        methods: The methods, in the order of the rows.
        rows: All checks.

    Returns:
        `method`, and bootstrap: `stable_share` of the sets' units (95 % of the replicates choose them too),
        `bootstrap_jaccard` (overlap with the replicates' sets beyond chance), `replicates`; one language left out:
        `leave_one_out_jaccard`, the same with the sets that the other languages then have; permuted labels: `units`
        (different ones) on the true ones, `null_units` found there on average, `null_low`, `null_high`, `null_p` (the
        p-value of number of units and mean score), `beyond_null` (share of memberships whose language differs from
        every other more than at any unit there), `permutations`; changed text: `survival` and its `ceiling` after
        `romanised_`, `shuffled_words_` and `same_script_`, means over the languages that the change tests; ablations:
        `hurt_most_every_kind`, `hurt_most_some_kind`, and `above_random_every_kind` (the in-language loss increase is
        above that of all n random sets: by chance in 1 of n + 1 cases), numbers of languages; off target:
        `neutral_rise` (the largest loss increase of numbers, arithmetic and code; nats per token, mean over languages),
        `repetition_rise`, and both for random units (`random_`); `not_done`: the checks that were not done, with the
        reason.
    """
    frame = main_numbers(tables, methods, rows)
    by_reason: dict[str, dict[str, list[str]]] = {name: {} for name in methods}
    for row in tables[NOT_DONE].to_dict("records"):
        by_reason[row["method"]].setdefault(row["reason"], []).append(row["check"])
    frame[NOT_DONE] = [
        "; ".join(f"{', '.join(checks)}: {reason}" for reason, checks in by_reason[name].items()) for name in methods
    ]
    return frame.reset_index()


def main_numbers(tables: Mapping[str, pd.DataFrame], methods: list[str], rows: Sequence[Check]) -> pd.DataFrame:
    """The summaries of the checks that were done side by side, one row per method, the index."""
    frame = pd.DataFrame(index=pd.Index(methods, name="method"))
    for row in rows:
        if row.summary and row.table in tables:
            numbers = row.summary(tables[row.table])
            taken = {name: f"{row.table}_{name}" for name in numbers if name in {*frame, "method", NOT_DONE}}
            frame = frame.join(numbers.rename(columns=taken))
            whole = [name for name, each in row.columns.items() if each.kind == "count" and name in frame]
            frame[whole] = frame[whole].astype("Int64")
    return frame


def doubts_of(
    tables: Mapping[str, pd.DataFrame], methods: list[str], rows: Sequence[Check] = CHECKS
) -> list[tuple[str, str, list[str]]]:
    """The warnings of the checks: method, text, and languages."""
    return [
        (name, *each)
        for row in rows if row.doubts and row.table in tables
        for name in methods
        for each in row.doubts(tables[row.table].loc[tables[row.table]["method"].eq(name)])
    ]  # fmt: skip
