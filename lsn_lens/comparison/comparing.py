"""All methods side by side on one run: one table for each question."""

import html
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd

from lsn_lens.comparison import checks, doubts, sizes
from lsn_lens.comparison.equal_size import measure_equal_size
from lsn_lens.comparison.order import ranking
from lsn_lens.comparison.overlaps import agreement, average_agreement
from lsn_lens.controls import causal
from lsn_lens.controls.intervals import certainty
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import Choice, HeldOut, held_out
from lsn_lens.evaluation.effects import CONTROL
from lsn_lens.interventions.words import action_of
from lsn_lens.methods.base import Method, scores_of, units_of
from lsn_lens.methods.catalogue import METHODS, Methods, named
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.run import Run
from lsn_lens.scores import NeuronScores
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

LEFT_OUT = ("random",)  # it is the control of every method


@dataclass(frozen=True, eq=False)
class Comparison:
    """One table for each question. Rises are in nats per token unless they say otherwise.

    No table is in the order of how large an effect is: effects follow how many units a set has, so that order would not
    be one of methods. `equal_size` has effects of as many units of each.

    Attributes:
        ranking: One row a method: the main number of each table, and the warnings in words. Read this first. `shown`:
            how many languages pass, which takes an own rise beyond that of random sets (`q` at most 0.05) and the own
            language surely hurt most; `shown_low`, `shown_high`: between which numbers it would be on other documents
            (95 %, against the same random sets). `own_hurt_most`: for how many languages the own one is hurt most as
            measured, in nats per token and in bits per byte, with the same interval. Most shown first.
        agreement: One row a pair of methods, averaged over languages; see `agreement.agreement` for the columns.
        agreement_by_language: The same, language by language.
        sizes: Units of each language, different units (`units`), their share of all units of the method's bases
            (`rate`), the mean Jaccard overlap of two languages' sets, and the set's notes. Methods with the fewest
            languages below 10 units come first.
        layers: Units in each layer (rows: method and layer) and language (columns).
        cost: Seconds in the pass (the method's own statistics; those that several methods need count for each, the
            model's forward pass, `attrs["forward"]`, for none, its backward pass for those with gradients), seconds
            for scoring and selecting, bytes of the run
            that hold its statistics, and whether these need gradients or single documents. Cheapest first.
        warnings: Why not to trust a number: `method`, `warning`, `languages`.
        skipped: Methods that were left out, and why; and of methods that were not, the kinds of units (`bases`) that
            the model could not give them. `bases` is empty where the method was left out.
        effects: What ablating a language's units does to it on all held-out text: the counts of the ranking, and means
            over languages in total and per neuron, those without units counting as 0 in total and not at all per
            neuron. A rise that is no number makes its mean none.
        effects_by_language: The same, language by language, with what `verdict.hurt` says of the others in nats and in
            bits, the intervals of `certainty.certainty` (of the own rise, of its `difference` to the worst other's,
            `hurt_most_share`, `surely_hurt_most`), and the verdict: `p` and `q` of `control_by_language`,
            `above_random`, `passes`.
        specificity: The rise of the own language against that of the worst other one: means over languages, their
            difference and ratio (NaN where the worst other does not rise).
        control: How a language's rise compares to that of random sets with as many units in each layer and, where the
            run has it, as active in that language (`matched` in `control_by_language`), on the first tokens of its
            held-out text: mean z, mean p, the share of languages above their random sets (`share_above_random`: q at
            most 0.05), and the mean `activity` of the units found and of random ones (`random_activity`).
        control_by_language: The same, language by language: `own_rise`, `random_mean`, `random_sd`, `z`, `p`
            (`verdict.p_value`: the share of sets, its own among them, that do as much; NaN without units), `q` (the
            same adjusted for all methods and languages of the table, Benjamini-Hochberg), `seeds`, `activity`,
            `random_activity` (see `controls.Draws.active`), `matched` (in words).
        control_points: The random sets' rises one by one.
        losses: What `perplexity_table` measures, for `effects` and `specificity`.
        equal_size: Effects of the best units of each method, as many for all on the same kind of unit (`units` of a
            language, mean), measured on the short text; the largest mean difference first. Empty where no two methods
            can be compared so.
        trust: One row a method, the main number of each check that was done; see `trust.trust_table`.
        checks: The tables behind it; see `checks.measure`.
        found: Each method's set.
        scores: Each method's scores.
    """

    ranking: pd.DataFrame
    agreement: pd.DataFrame
    agreement_by_language: pd.DataFrame
    sizes: pd.DataFrame
    layers: pd.DataFrame
    cost: pd.DataFrame
    warnings: pd.DataFrame
    skipped: pd.DataFrame
    effects: pd.DataFrame | None = None
    effects_by_language: pd.DataFrame | None = None
    specificity: pd.DataFrame | None = None
    control: pd.DataFrame | None = None
    control_by_language: pd.DataFrame | None = None
    control_points: pd.DataFrame | None = None
    losses: pd.DataFrame | None = None
    equal_size: pd.DataFrame | None = None
    trust: pd.DataFrame | None = None
    checks: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    found: Mapping[str, NeuronSet] = field(default_factory=dict, repr=False)
    scores: Mapping[str, NeuronScores] = field(default_factory=dict, repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that there are, by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        every |= {name.replace(" ", "_"): table for name, table in self.checks.items()}
        return {name: table for name, table in every.items() if isinstance(table, pd.DataFrame)}

    def _about(self) -> list[str]:
        absent = [each.name for each in fields(self) if getattr(self, each.name) is None and each.name != "trust"]
        lines = [f"tables: {', '.join(self.tables())}"]
        if absent:
            lines.append(f"not measured: {', '.join(absent)}. Give compare a model and corpora.")
        for row in self.skipped.to_dict("records"):
            lines.append(f"left out: {row['method']}{row['bases'] and ' on ' + row['bases']}, {row['reason']}")
        lines += [f"{doubts.EVERY}: {words}" for words in [doubts.in_words(self.warnings, doubts.EVERY)] if words]
        return lines

    def __repr__(self) -> str:
        table = self.ranking.to_string(index=False, float_format="{:.3g}".format, max_colwidth=60)
        return "\n".join([f"Comparison of {len(self.ranking)} methods", table, *self._about()])

    def _repr_html_(self) -> str:
        about = "".join(f"<p>{html.escape(line)}</p>" for line in self._about())
        table = self.ranking.to_html(index=False, float_format="{:.3g}".format)
        return f"<p><b>Comparison</b> of {len(self.ranking)} methods</p>{table}{about}"


def compare(
    run: Run,
    methods: Methods | None = None,
    *,
    model: Model | None = None,
    corpora: Mapping[str, LanguageCorpus] | None = None,
    action: Choice | None = None,
    seeds: int = verdict.RANDOM_SETS,
    more_seeds: int | None = None,
    control_tokens: int = 128,
    layout: Layout | None = None,
    progress: bool = True,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    found: Mapping[str, NeuronSet] | None = None,
    trust: checks.Checks | None = None,
) -> Comparison:
    """Put methods side by side on one run: where they agree, what their units do, and what it costs.

    A language passes (`shown` in the ranking) if ablating its own units hurts it more than random sets like them do,
    by a p-value that is corrected for all methods and languages, and surely more than any other language, in nats per
    token and in bits per byte: the bootstrap intervals over documents of its rise and of the difference exclude 0.
    Methods that pass for most languages come first; larger sets pass more easily, so the order is not one of methods
    where sizes differ. Without a model the ranking has no effects; methods with the fewest languages below 10 units
    come first.

    Args:
        run: From `collect` or `load_run`.
        methods: Names of `METHODS`, method objects, or either by names of your own. By default all but "random" whose
            statistics the run has; `skipped` lists the others with the reason.
        model: The run's model, for the effects of ablation; with `corpora`.
        corpora: Their held-out text is measured.
        action: What to do to the units, or a function from the ablated language to it; or "zero", "mean" or
            "other mean". By default the other languages' mean where the run has the means of all bases of a set, else
            zero.
        seeds: Random sets for each method and language. 39 give p-values down to 1/40; below 19 none reaches 0.05.
        more_seeds: Further ones for each language whose rise none of the first reaches: correcting for many methods
            and languages takes smaller p-values. By default twice as many and two: with 39, down to 1/120.
        control_tokens: About how many tokens of each language the random sets are measured on, and the sets of equal
            size.
        layout: How held-out text becomes batches; packed blocks by default.
        progress: Show progress bars.
        parameters: Hyper-parameters by the name of the method.
        found: Sets to use in place of what the methods of these names select.
        trust: How to check how far the methods can be trusted, for example `Checks()`: from the run alone, seconds
            a method for most. Without it, nothing is checked.

    Raises:
        KeyError: An unknown method, or one asked for by name whose statistics the run lacks.
        ValueError: No method that can be used, a model without corpora or the reverse, fewer than two seeds,
            parameters or sets for methods that are not compared, or checks that take a model without one.
    """
    if trust is not None and not isinstance(trust, checks.Checks):
        raise ValueError(f"trust={trust!r}: expected Checks(...) of lsn_lens.comparison.checks, or None.")
    action = None if action is None else action_of(action, run.statistics)
    if model is not None:
        check_model(model)
    if (model is None) != (corpora is None):
        raise ValueError("effects take both a model and corpora; give both, or neither.")
    if model is None and trust is not None and trust.with_model:
        raise ValueError(f"{trust} runs the model: give a model and corpora, or leave these checks out.")
    if seeds < 2 or (more_seeds or 0) < 0:
        raise ValueError(
            f"seeds={seeds}, more_seeds={more_seeds}: expected at least 2 random sets, and no fewer than 0."
        )
    chosen, skipped = _methods(run, methods, parameters or {}, found or {})
    scores, sets, seconds = _detect(run, chosen, found or {}, skipped, strict=methods is not None)
    by_language = agreement(sets, scores)
    tables = {
        "agreement": average_agreement(by_language),
        "agreement_by_language": by_language,
        "sizes": sizes.sizes_table(sets),
        "layers": sizes.layers_table(sets),
        "cost": sizes.cost_table(run, {name: chosen[name] for name in sets}, seconds),
        "skipped": _skipped(run, {name: chosen[name] for name in sets}, skipped),
    }
    actions: dict[str, Choice] = {}
    text: HeldOut | None = None
    if model is not None and corpora is not None:
        actions = causal.choose_actions(run.statistics, sets, action)
        if not actions:
            raise ValueError(f"no intervention writes to the bases of {list(sets)}: leave out the model.")
        text = held_out(model, corpora, layout, progress=progress)
        short = held_out(model, corpora, causal.short_layout(model, layout, control_tokens), progress=progress)
        draws = (seeds, 2 * (seeds + 1) if more_seeds is None else more_seeds)
        tables |= _effects(text, short, sets, scores, actions, draws, run.statistics, progress)
    checked: dict[str, pd.DataFrame] = {}
    if trust is not None:
        checked = checks.measure(
            run, {name: chosen[name] for name in sets}, sets, trust, given=found, model=model, corpora=corpora,
            actions=actions, text=text, progress=progress,
        )  # fmt: skip
        tables["trust"] = doubts.trust_table(checked, list(sets))
    warnings = doubts.warnings_table(
        sets, tables.get("losses"), tables.get("effects_by_language"), tables.get("control_by_language"),
        None if model is None else structure.vocabulary_size(model), checked,
    )  # fmt: skip
    order = ranking(tables, warnings)
    return Comparison(**tables, ranking=order, warnings=warnings, checks=checked, found=sets, scores=scores)


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
        raise KeyError(f"{reasons}. Collect again with these methods, or leave them out.")
    return {name: method for name, method in chosen.items() if name not in reasons}, reasons


def _skipped(run: Run, methods: Mapping[str, Method], skipped: Mapping[str, str]) -> pd.DataFrame:
    """Methods left out, and the bases of the others that the model could not give."""
    rows = [(name, "", why) for name, why in skipped.items()]
    for name, method in methods.items():
        left_out = run.left_out(method)
        for why in dict.fromkeys(left_out.values()):
            rows.append((name, ", ".join(basis for basis, each in left_out.items() if each == why), why))
    return pd.DataFrame(rows, columns=["method", "bases", "reason"])


def _detect(
    run: Run, methods: Mapping[str, Method], given: Mapping[str, NeuronSet], skipped: dict[str, str], *, strict: bool
) -> tuple[dict[str, NeuronScores], dict[str, NeuronSet], dict[str, float]]:
    """Scores, sets and the seconds they took; a method that was not asked for by name may refuse the run."""
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
        raise ValueError(f"no method can be used on this run: {skipped}. Collect with the methods to compare.")
    return scores, sets, seconds


def _fitting(given: NeuronSet, scores: NeuronScores, name: str) -> NeuronSet:
    shapes = [{basis: tuple(each.shape[1:]) for basis, each in part.items()} for part in (given.masks, scores.values)]
    if set(given.languages) != set(scores.languages) or not shapes[0].items() <= shapes[1].items():
        raise ValueError(
            f"the set given for {name!r} has the languages {list(given.languages)} and [layer, unit] {shapes[0]}; "
            f"its scores have {list(scores.languages)} and {shapes[1]}."
        )
    return given


def _effects(
    text: HeldOut,
    short: HeldOut,
    found: Mapping[str, NeuronSet],
    scores: Mapping[str, NeuronScores],
    actions: Mapping[str, Choice],
    draws: tuple[int, int],
    statistics: Statistics,
    progress: bool,
) -> dict[str, pd.DataFrame]:
    """Effects on the text, random and equally large sets on the short one; equal sets are measured once."""
    first = checks.twins(found, actions)
    once = {name: action for name, action in actions.items() if first[name] == name}
    measured = causal.measure_effects(text, found, once, progress)
    control, points = (
        checks.with_twins(table, "method", first)
        for table in causal.measure_controls(short, found, once, draws[0], statistics, more=draws[1], progress=progress)
    )
    control.attrs["tests"] = int(control.loc[control["method"].isin(list(once)), "p"].notna().sum())
    table = checks.with_twins(measured.table, "set", first)
    table.attrs = measured.table.attrs
    copies = {name: [key for key in measured.rises if key[0] == first[name]] for name in first}
    rises = {(name, off, on): measured.rises[key, off, on] for name in copies for key, off, on in copies[name]}
    sure = certainty(text, replace(measured, rises=rises))
    by_language = causal.effects_by_language(table, sure.table, control)
    return {
        "effects": causal.effects_table(by_language, sure),
        "effects_by_language": by_language,
        "specificity": causal.specificity_table(by_language),
        "control": causal.control_table(control),
        "control_by_language": control,
        "control_points": points,
        "losses": table,
        "equal_size": measure_equal_size(short, found, scores, once, progress),
    }
