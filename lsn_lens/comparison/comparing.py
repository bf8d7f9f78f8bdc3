"""All methods side by side on one run: one table for each question."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from lsn_lens.bars import in_steps, step, steps
from lsn_lens.comparison import doubts
from lsn_lens.comparison.checking import Subject
from lsn_lens.comparison.checks import CHECKS, Checks, asked
from lsn_lens.comparison.curves import RANDOM_CURVES, measure_curves
from lsn_lens.comparison.equal_size import size_tables
from lsn_lens.comparison.losses import effect_tables
from lsn_lens.comparison.order import ranking
from lsn_lens.comparison.overlaps import agreement, average_agreement
from lsn_lens.comparison.ranked import SIZES, check_sizes, rankings
from lsn_lens.comparison.result import Comparison
from lsn_lens.comparison.sizes import cost_table, layers_table, sizes_table
from lsn_lens.comparison.tables import TAKEN, TRUST
from lsn_lens.comparison.trust import doubts_of, measure, trust_table
from lsn_lens.controls import causal
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.effects import CONTROL
from lsn_lens.evaluation.jobs import jobs_of
from lsn_lens.interventions.words import Choice, action_of
from lsn_lens.methods.base import Method, scores_of, units_of
from lsn_lens.methods.catalogue import METHODS, Methods, named
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply, check_kind, listing_parameters, reasons_told
from lsn_lens.runs.run import Run, check_run
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

LEFT_OUT = ("random",)  # the control of every method


@in_steps
@listing_parameters
def compare(
    run: Run,
    methods: Methods | None = None,
    *,
    model: Model | None = None,
    corpora: Any = None,
    action: Choice | None = None,
    seeds: int = verdict.RANDOM_SETS,
    more_seeds: int | None = None,
    control_tokens: int = 128,
    sizes: Sequence[float | int] | None = SIZES,
    size_seeds: int = RANDOM_CURVES,
    layout: Layout | None = None,
    progress: bool = True,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    found: Mapping[str, NeuronSet] | None = None,
    trust: Checks | bool | None = None,
) -> Comparison:
    """Compare methods on one run: their agreement, the effect of their units, and their cost.

    A language passes (`shown` in the ranking) under two conditions. (1) Ablating its units raises its loss more than
    ablating matched random sets does, by a p-value corrected for all methods and languages. (2) Its loss increase and
    the distance to the largest other-language loss increase are above 0 by their bootstrap intervals over documents, in
    nats per token and in bits per byte. Larger sets pass more easily, so this number does not rank methods. Methods are
    ranked at equal size, within each kind of unit: by the area under the curve of the in-language minus the largest
    other-language loss increase over the number of units (table `equal_size`). Without a model there are no effects and
    no ranking.

    Args:
        run: From `collect` or `load_run`.
        methods: Names of `METHODS`, method objects, or a mapping from names of your own to either. By default all but
            "random" whose statistics the run has; `skipped` lists the others with the reason.
        model: The run's model, for the effects of ablation; with `corpora`.
        corpora: Corpora whose hold-out text is measured; from `load_corpora`, or what it takes.
        action: The action on the units, a function from the ablated language to an action, or "zero", "mean" or "other
            mean". By default the other languages' mean where the run has the means of all bases of a set, else zero.
        seeds: Random sets per method and language. 39 sets give p-values down to 1/40; with fewer than 19 none reaches
            0.05.
        more_seeds: Further random sets for each language whose loss increase none of the first reaches, since the
            correction for many methods and languages needs smaller p-values. By default 2 * seeds + 2: with 39, down to
            1/120.
        control_tokens: About how many tokens per language random sets and sets of equal size are measured on.
        sizes: Units per language at which methods are compared: shares (float) of all units of a kind, or numbers
            (int). None: not at all.
        size_seeds: Random sets per method, language and size, for the curves.
        layout: How hold-out text becomes batches; packed blocks by default.
        progress: Show progress bars.
        parameters: Hyper-parameters by the name of the method.
        found: Sets by method name, used in place of the sets that these methods select.
        trust: The reliability checks, for example `Checks()`, which is what True means: from the run alone, seconds per
            method for most. By default nothing is checked.

    Raises:
        TypeError: An unknown parameter; the message lists the known ones.
        KeyError: An unknown method, or a method named in `methods` whose statistics the run lacks.
        ValueError: No usable method, a model without corpora or corpora without a model, fewer than two seeds, wrong
            sizes, parameters or sets for methods that are not compared, checks that need a model without a model, or
            checks with the name of another table.
    """
    check_run(run)
    check_kind("found", found, Mapping | None, "sets by method name, as {'lape': found}")
    check_kind("parameters", parameters, Mapping | None, "hyper-parameters by method name, as {'lape': {'rate': 0.02}}")
    started, options = datetime.now(UTC), Checks() if trust is True else trust or None
    action = None if action is None else action_of(action, run.statistics)
    corpora = None if corpora is None else as_corpora(corpora)
    at = check_sizes(sizes, size_seeds)
    _refuse(model, corpora, seeds, more_seeds, options)
    chosen, skipped = _methods(run, methods, parameters or {}, found or {})
    scores, sets, seconds = _detect(run, chosen, found or {}, skipped, strict=methods is not None)
    used = {name: chosen[name] for name in sets}
    tables = {
        "agreement_by_language": (by_language := agreement(sets, scores)),
        "agreement": average_agreement(by_language),
        "sizes": sizes_table(sets),
        "layers": layers_table(sets),
        "cost": cost_table(run, used, seconds),
        "skipped": _skipped(run, used, skipped),
    }
    subject = Subject(run, used, sets, options or Checks(), progress=progress)
    if model is not None and corpora is not None:
        actions = causal.choose_actions(run.statistics, sets, action)
        if not actions:
            raise ValueError(f"no intervention writes to the bases of {list(sets)}: leave out the model.")
        for name in actions:  # what cannot be done is said before anything is measured
            jobs_of(model, corpora, {name: sets[name]}, actions[name])
        last = ["equal size"] * bool(at) + ["how far to trust"] * bool(options)
        steps(["hold-out text", "ablations", *map(causal.step_of, actions), *last])
        step("hold-out text")
        text = held_out(model, corpora, layout, progress=progress)
        short = held_out(model, corpora, causal.short_layout(model, layout, control_tokens), progress=progress)
        subject = replace(subject, model=model, corpora=corpora, text=text, actions=actions)
        draws = (seeds, 2 * (seeds + 1) if more_seeds is None else more_seeds)
        tables |= effect_tables(text, short, sets, actions, draws, run.statistics, progress)
        if at:
            ranked = rankings(used, scores, found or {})
            tables |= size_tables(measure_curves(short, ranked, at, action, size_seeds, run.statistics, progress))
    step("how far to trust")
    tables, rows = _judged(tables, subject, options, found or {}), (*CHECKS, *subject.options.extra)
    return Comparison(tables, sets, scores, run, model, corpora, rows, started)


def _refuse(
    model: Model | None,
    corpora: Mapping[str, LanguageCorpus] | None,
    seeds: int,
    more_seeds: int | None,
    options: Any,
) -> None:
    """Refuse what cannot work, before anything runs."""
    if model is not None:
        check_model(model)
    if (model is None) != (corpora is None):
        raise ValueError("effects take both a model and corpora; give both, or neither.")
    if seeds < 2 or (more_seeds or 0) < 0:
        raise ValueError(
            f"seeds={seeds}, more_seeds={more_seeds}: expected at least 2 random sets, and no fewer than 0."
        )
    if options is None:
        return
    if not isinstance(options, Checks):
        raise ValueError(f"trust={options!r}: expected lsn.Checks(...), True for its defaults, or None.")
    rows = asked(options)
    taken = [row.name for row in rows if row.table in TAKEN]
    if taken:
        raise ValueError(f"checks are called {taken}, as tables of every comparison are; give them other names.")
    slow = [row.name for row in rows if row.needs_model or row.asks == "units"]
    if model is None and slow:
        raise ValueError(f"the checks {slow} run the model: give a model and corpora, or leave these checks out.")


def _judged(
    tables: dict[str, pd.DataFrame], subject: Subject, options: Checks | None, given: Iterable[str]
) -> dict[str, pd.DataFrame]:
    """The tables with those of the checks, the warnings and the ranking, which comes first."""
    names, rows = list(subject.found), () if options is None else asked(options)
    checked = {} if options is None else measure(subject, given)
    if options is not None:
        tables[TRUST] = trust_table(checked, names, rows)
    warnings = doubts.warnings_table(
        subject.found, tables.get("losses"), tables.get("effects_by_language"), tables.get("control_by_language"),
        None if subject.model is None else structure.vocabulary_size(subject.model), doubts_of(checked, names, rows),
    )  # fmt: skip
    order = ranking(tables, warnings, [name for row in rows for name in row.ranked])
    return {"ranking": order, **tables, "warnings": warnings, **checked}


def _methods(
    run: Run,
    methods: Methods | None,
    parameters: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, NeuronSet],
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods to compare, and why others are left out."""
    chosen = named([name for name in METHODS if name not in LEFT_OUT] if methods is None else methods, parameters)
    strange = [name for name in {**parameters, **found} if name not in chosen]
    if strange:
        raise ValueError(f"parameters or sets for {strange}, but the methods are {list(chosen)}.")
    controls = [name for name in chosen if CONTROL.fullmatch(name)]
    if controls:
        raise ValueError(f"the names {controls} are those of random sets; give others.")
    lacking = {name: run.lacks(method) for name, method in chosen.items()}
    reasons = {name: run.why_not(name) or f"the run did not collect {keys}" for name, keys in lacking.items() if keys}
    if reasons and methods is not None:
        raise KeyError(f"{reasons_told(reasons)}. Collect again with these methods, or leave them out.")
    return {name: method for name, method in chosen.items() if name not in reasons}, reasons


def _skipped(run: Run, methods: Mapping[str, Method], skipped: Mapping[str, str]) -> pd.DataFrame:
    """Methods left out, and the bases of other methods that the model does not have."""
    rows = [(name, "", why) for name, why in skipped.items()]
    for name, method in methods.items():
        left_out = run.left_out(method)
        for why in dict.fromkeys(left_out.values()):
            rows.append((name, ", ".join(basis for basis, each in left_out.items() if each == why), why))
    return pd.DataFrame(rows, columns=["method", "bases", "reason"])


def _detect(
    run: Run, methods: Mapping[str, Method], given: Mapping[str, NeuronSet], skipped: dict[str, str], *, strict: bool
) -> tuple[dict[str, NeuronScores], dict[str, NeuronSet], dict[str, float]]:
    """Scores, sets and their seconds; a method that was not named in `methods` may refuse the run."""
    scores: dict[str, NeuronScores] = {}
    sets: dict[str, NeuronSet] = {}
    seconds: dict[str, float] = {}
    statistics = run.statistics
    for name, method in methods.items():
        started = time.perf_counter()
        try:
            score = scores_of(method, statistics)
            sets[name] = _fitting(given[name], score, name) if name in given else units_of(method, score)
        except DoesNotApply as error:
            if strict:
                raise
            skipped[name] = str(error)
            continue
        scores[name], seconds[name] = score, time.perf_counter() - started
    if not sets:
        raise ValueError(
            f"no method can be used on this run: {reasons_told(skipped)}. Collect with the methods to compare."
        )
    return scores, sets, seconds


def _fitting(given: NeuronSet, scores: NeuronScores, name: str) -> NeuronSet:
    shapes = [{basis: tuple(each.shape[1:]) for basis, each in part.items()} for part in (given.masks, scores.values)]
    if set(given.languages) != set(scores.languages) or not shapes[0].items() <= shapes[1].items():
        raise ValueError(
            f"the set given for {name!r} has the languages {list(given.languages)} and [layer, unit] {shapes[0]}; "
            f"its scores have {list(scores.languages)} and {shapes[1]}."
        )
    return given
