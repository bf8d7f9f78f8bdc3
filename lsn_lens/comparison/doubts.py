"""How far to trust a method: the main number of each check in one table, and why not to, in words."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.comparison.overlaps import mean_jaccard
from lsn_lens.controls.stability import STABLE
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.verdict import COLLAPSE
from lsn_lens.neurons import NeuronSet

FEW_TOKENS = 2000
UNEQUAL = 1.1  # times as many units a language from which on sets are called of different sizes
ALIKE = 0.5  # mean Jaccard of the languages' sets from which on they are nearly the same
EVERY = "every method"
UNSTABLE = 0.5  # share of a set that is stable, below which the set is not
NULL_LEVEL = 0.05  # p-value above which a set is not told from one on permuted labels
SURVIVES = 0.5  # share of its ceiling below which a set does not survive
SURVIVAL = {
    "romanised": "does not survive romanisation",
    "same script": "does not survive without the languages of other scripts",
}
NEUTRAL = ("numbers", "arithmetic", "code")
WHOLE = ("replicates", "units", "null_low", "null_high", "permutations", "hurt_most_every_kind", "hurt_most_some_kind",
         "above_random_every_kind")  # fmt: skip
SHOWN = ("stable_share", "null_units", "romanised_survival")  # columns of the ranking

NO_RANKING = "the order is not a ranking of methods"

Doubts = Iterable[tuple[str, list[str]]]
Row = tuple[str, str, list[str]]


def warnings_table(
    found: Mapping[str, NeuronSet],
    losses: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    control: pd.DataFrame | None = None,
    vocabulary: int | None = None,
    checks: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """One row a method and warning: `method`, `warning`, `languages` (which it holds for; "" for no particular one).

    Args:
        found: Each method's set.
        losses: From `measure_losses`.
        effects: From `effects_by_language`, with the verdicts.
        control: From `measure_controls`; its `attrs["tests"]` says how many tests were corrected for, if not all rows.
        vocabulary: Tokens of the model: ln of it is the loss of a uniform guess.
        checks: From `reliability.measure`.
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
    return _table([*rows, *_of_checks(checks or {}, list(found))], list(found))


def check_warnings(checks: Mapping[str, pd.DataFrame], methods: list[str]) -> pd.DataFrame:
    """The rows of `warnings_table` that come from `reliability.measure`, methods in the order given."""
    return _table(_of_checks(checks, methods), methods)


def _table(rows: list[Row], methods: list[str]) -> pd.DataFrame:
    order = {name: place for place, name in enumerate((EVERY, *methods))}
    kept = [(name, warning, ", ".join(dict.fromkeys(labels))) for name, warning, labels in rows]
    frame = pd.DataFrame(sorted(kept, key=lambda row: order[row[0]]), columns=["method", "warning", "languages"])
    return frame.astype("str")


def _of_checks(checks: Mapping[str, pd.DataFrame], methods: list[str]) -> list[Row]:
    return [
        (name, *each)
        for check, words in WORDS.items() if check in checks
        for name in methods
        for each in words(checks[check].loc[checks[check]["method"].eq(name)])
    ]  # fmt: skip


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
    """Effects follow size, and what a kind of unit does: an order of methods is no ranking where these differ."""
    kinds: dict[str, dict[str, float]] = {}
    for name, each in found.items():
        kinds.setdefault(", ".join(sorted(each.masks)), {})[name] = float(np.mean(each.counts().to_numpy()))
    for kind, sizes in kinds.items():
        least, most = min(sizes.values()), max(sizes.values())
        if most > UNEQUAL * least:
            yield f"sets of different sizes ({kind}: {least:.3g} to {most:.3g} units a language): {NO_RANKING}", []
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
    """What `verdict.doubts` says of the rows, but for the number of neurons, which is said of the set."""
    reasons = verdict.by_reason(effects.loc[effects["units"] > 0].to_dict("records"))
    yield from ((words, where) for words, where in reasons.items() if words != verdict.FEW)


def _labels(rows: pd.DataFrame, holds: Any, column: str = "evaluated") -> list[str]:
    return list(rows.loc[holds, column])


def _of_stability(table: pd.DataFrame) -> Doubts:
    unstable = _labels(table, table["stable_share"] < UNSTABLE, "language")
    if unstable:
        share, often = 100 * UNSTABLE, 100 * STABLE
        yield f"unstable: under {share:g} % of the units are selected in {often:g} % of bootstrap replicates", unstable


def _of_nulls(table: pd.DataFrame) -> Doubts:
    if np.any(table["null_p"].to_numpy() > NULL_LEVEL):
        yield "not distinguishable from shuffled labels", []


def _of_survival(table: pd.DataFrame) -> Doubts:
    gone = table["note"].eq("") & (table["survival"] < SURVIVES * table["ceiling"])
    for control, words in SURVIVAL.items():
        where = _labels(table, gone & table["control"].eq(control), "language")
        if where:
            yield words, where


def _of_ablations(table: pd.DataFrame) -> Doubts:
    kinds = len(set(table["ablation"]))
    most = table.loc[table["own_hurt_most"]]
    alone = most.loc[~most["language"].duplicated(keep=False)] if kinds > 1 else most.iloc[:0]
    for kind in dict.fromkeys(alone["ablation"]):
        yield (
            f"hurt most only under one of {kinds} kinds of ablation: {kind}",
            _labels(alone, alone["ablation"].eq(kind), "language"),
        )


def _of_off_target(table: pd.DataFrame) -> Doubts:
    worst = table[[f"{kind}_rise" for kind in NEUTRAL]].max(axis=1)
    where = _labels(table, (table["units"] > 0) & ~(worst <= 0) & ~(table["own_rise"] > worst), "language")
    if where:
        yield "numbers, arithmetic or code are hurt as much as the own language", where
    broken = _labels(table, table["collapse"].ne(""), "language")
    if broken:
        yield "collapse off target: a text's loss rises by more than 3 nats", broken


WORDS: Mapping[str, Callable[[pd.DataFrame], Doubts]] = {
    "stability": _of_stability,
    "nulls": _of_nulls,
    "survival": _of_survival,
    "ablations": _of_ablations,
    "off target": _of_off_target,
}


def trust_table(details: Mapping[str, pd.DataFrame], methods: list[str]) -> pd.DataFrame:
    """One row a method: the main number of each check that was done, in a column if any was.

    Args:
        details: From `reliability.measure`.
        methods: In which order.

    Returns:
        `method`, and
        bootstrap: `stable_share` of the sets' units (95 % of the replicates choose them too), `bootstrap_jaccard`
        (overlap with the replicates' sets beyond chance), `replicates`;
        one language left out: `leave_one_out_jaccard`, the same with the sets that the other languages then have;
        permuted labels: `units` on the true ones, `null_units` found there on average, `null_low`, `null_high`,
        `null_p` (do they give as many units, or scores as far out), `beyond_null` (share of the set's units at which
        their language stands out from every other, more than any does at any unit there), `permutations`;
        changed text: `survival` and its `ceiling` after `romanised_`, `shuffled_words_` and `same_script_`, means over
        the languages that the change tests;
        ablations: `hurt_most_every_kind`, `hurt_most_some_kind`, and `above_random_every_kind` (the own rise is above
        that of every random set: of n sets, in 1 of n + 1 cases by chance), numbers of languages;
        off target: `neutral_rise` (of numbers, arithmetic and code the one that rises most; nats a token, mean over
        languages), `repetition_rise`, and both of random units (`random_`);
        `not_done`: the checks that could not be done, and why.
    """
    frame = pd.DataFrame(index=pd.Index(methods, name="method"))
    for check, summarise in SUMMARIES.items():
        if check in details:
            frame = frame.join(summarise(details[check]))
    whole = [name for name in WHOLE if name in frame]
    frame[whole] = frame[whole].astype("Int64")
    reasons = details["not done"]
    frame["not_done"] = [
        "; ".join(f"{row['check']}: {row['reason']}" for row in reasons.to_dict("records") if row["method"] == name)
        for name in methods
    ]
    return frame.reset_index()


def _stable(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    sums = groups[["stable_units", "units"]].sum()
    share = (sums["stable_units"] / sums["units"]).rename("stable_share")
    means = groups["corrected_jaccard"].mean().rename("bootstrap_jaccard")
    return pd.concat([share, means, groups["replicates"].first()], axis=1)


def _leave_one_out(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    return groups["corrected_jaccard"].mean().rename("leave_one_out_jaccard").to_frame()


def _null_columns(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["units", "null_units", "null_low", "null_high", "null_p", "beyond_null", "permutations"]
    return table.set_index("method").loc[:, columns]


def _surviving(table: pd.DataFrame) -> pd.DataFrame:
    tested: Any = table.loc[table["note"].eq("") & table["before"].gt(0)].groupby(["control", "method"])
    means = tested[["survival", "ceiling"]].mean()
    parts = [
        means.xs(control).add_prefix(f"{str(control).replace(' ', '_')}_")
        for control in dict.fromkeys(means.index.get_level_values("control"))
    ]
    return pd.concat(parts, axis=1) if parts else pd.DataFrame()


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    above = table["p"] * (1 + table["seeds"]) <= 1 + 1e-9  # no random set does as much
    groups: Any = table.assign(above=above).groupby(["method", "language"])
    names = ["hurt_most_every_kind", "above_random_every_kind"]
    every = groups[["own_hurt_most", "above"]].all().set_axis(names, axis=1)
    some = groups["own_hurt_most"].any().rename("hurt_most_some_kind")
    kinds: Any = pd.concat([every, some], axis=1).groupby("method")
    return kinds.sum()


def _off_target(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    means = groups.mean(numeric_only=True)  # before the worst is taken: the largest of noisy numbers is mostly noise
    parts = {
        "neutral_rise": means[[f"{kind}_rise" for kind in NEUTRAL]].max(axis=1),
        "random_neutral_rise": means[[f"random_{kind}_rise" for kind in NEUTRAL]].max(axis=1),
        "repetition_rise": means["repetition_after"] - means["repetition_before"],
        "random_repetition_rise": means["repetition_random"] - means["repetition_before"],
    }
    return pd.DataFrame(parts)


SUMMARIES: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "stability": _stable,
    "leave one out": _leave_one_out,
    "nulls": _null_columns,
    "survival": _surviving,
    "ablations": _kinds,
    "off target": _off_target,
}
