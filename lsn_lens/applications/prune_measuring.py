"""What pruning costs: losses of hold-out text under plans, parameters kept, and comparisons of plans with intervals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.analysis.experts import only_experts
from lsn_lens.applications.prune import kept_experts
from lsn_lens.controls.intervals import document_draws, drawn_rises, spread
from lsn_lens.evaluation.baseline import HeldOut, Measured, held_out
from lsn_lens.evaluation.jobs import Evaluate, jobs_of
from lsn_lens.interventions.actions import zero
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import n_parameters
from lsn_lens.neurons.identity import check_same_model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.experts import ExpertAssignment
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

RISES = ("rise", "rise_low", "rise_high")
LOSSES = ("nll", "perplexity", "bits_per_byte", "bits_per_byte_change", "tokens", "bytes")


@dataclass(frozen=True, eq=False)
class PruneLosses:
    """The result of `prune_losses`.

    Attributes:
        table: One row per plan, `language` (whose plan it is) and `evaluated` language, see `prune_losses`.
        measured: The measurements, by document.
        bits_per_nat: By language, bits per byte of one nat per token.
        seed: Seed of the intervals.
    """

    table: pd.DataFrame
    measured: Measured = field(repr=False)
    bits_per_nat: Mapping[str, float] = field(repr=False)
    seed: int = 0

    def against(self, plan: str, others: Iterable[str]) -> pd.DataFrame:
        """Each language's plan against the mean of other plans for this language, as random controls.

        Args:
            plan: Name of the plan.
            others: Names of the plans to compare with.

        Returns:
            One row per language of the plan, measured on the language's own text: `plan`, `language`, `rise` (loss
            increase, nats per token), `others_rise` (mean of the others), `others_least`, `others_most`, `gain`
            (others' mean minus the plan's: above 0, the plan costs less), `gain_low`, `gain_high` (95 % over documents;
            NaN with fewer than 5), `gain_bits_per_byte`, `better_than` and `others` (how many of the others cost more,
            and of how many).

        Raises:
            KeyError: A plan that was not measured on the language's own text.
        """
        names = list(others)
        pairs = {off: [(name, off, off) for name in names] for off in self._languages(plan)}
        return self._compared(plan, pairs)

    def against_languages(self, plan: str) -> pd.DataFrame:
        """Each language's plan against the same plan made for the other languages, as `against`."""
        every = self._languages(plan)
        return self._compared(plan, {on: [(plan, off, on) for off in every if off != on] for on in every})

    def _languages(self, plan: str) -> list[str]:
        return list(dict.fromkeys(off for name, off, _ in self.measured.rises if name == plan))

    def _compared(self, plan: str, pairs: Mapping[str, list[tuple[str, str, str]]]) -> pd.DataFrame:
        draws = document_draws(self.measured.tokens, self.seed)
        drawn, rows = drawn_rises(self.measured, draws), []
        for on, rest in pairs.items():
            own = (plan, on, on)
            if missing := [key for key in (own, *rest) if key not in drawn]:
                raise KeyError(f"not measured: {missing}, as (plan, its language, evaluated language).")
            rise, values = self._rise(own), np.array([self._rise(key) for key in rest])
            gain = float(values.mean() - rise)
            apart = np.mean([drawn[key] for key in rest], axis=0) - drawn[own]
            low, high = spread(apart, {on: draws[on]}).interval(gain)
            rows.append(
                {"plan": plan, "language": on, "rise": rise, "others_rise": float(values.mean()),
                 "others_least": float(values.min()), "others_most": float(values.max()), "gain": gain,
                 "gain_low": low, "gain_high": high, "gain_bits_per_byte": gain * self.bits_per_nat[on],
                 "better_than": int((values > rise).sum()), "others": len(rest)}
            )  # fmt: skip
        return pd.DataFrame(rows)

    def matrix(self, plan: str, measure: str = "rise") -> pd.DataFrame:
        """A column of the table as a matrix: rows = the language whose plan it is, columns = evaluated language."""
        rows = self.table.loc[self.table["plan"].eq(plan)]
        matrix = rows.pivot(index="language", columns="evaluated", values=measure)
        return matrix.loc[list(dict.fromkeys(rows["language"])), list(dict.fromkeys(rows["evaluated"]))]

    def _rise(self, key: tuple[str, str, str]) -> float:
        return float(self.measured.rises[key].sum() / self.measured.tokens[key[2]].sum())


def prune_losses(
    model: Model,
    corpora: Any,
    sets: Mapping[str, NeuronSet] | NeuronSet,
    *,
    evaluate: Evaluate | Mapping[str, Evaluate] = "all",
    layout: Layout | None = None,
    text: HeldOut | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PruneLosses:
    """Measure every language's `hold_out` text with the neurons of each plan at zero.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        sets: Plans by name, from `prune_plan` and `random_experts`; one plan is called "plan".
        evaluate: The languages to measure, as for `perplexity_table`; or that for each plan by its name.
        layout: How text becomes batches; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        seed: Seed of the intervals.
        progress: Show a progress bar.

    Returns:
        Its table has the columns `plan`, `language`, `evaluated`, `neurons` (removed), `kept_neurons` and
        `kept_parameters` (shares of the MLPs' neurons and of the whole model), `nll` (nats per token), `perplexity`,
        `bits_per_byte`, `rise` (increase of `nll`), `rise_low` and `rise_high` (95 %, over documents; NaN with fewer
        than 5), `bits_per_byte_change`, `tokens`, `bytes`. The first rows, of the plan "none", are the whole model.

    Raises:
        ValueError: A plan of another model, a plan without neurons, or as `perplexity_table`.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    named = {"plan": sets} if isinstance(sets, NeuronSet) else dict(sets)
    empty = [name for name, each in named.items() if not bool(each.counts().all())]
    if empty:
        raise ValueError(f"the plans {empty} have a language without neurons to remove: give a higher rate.")
    choice: Any = evaluate if isinstance(evaluate, Mapping) else dict.fromkeys(named, evaluate)
    width = cache(partial(structure.site_width, model))  # a probe of the model: once for all plans
    jobs = [x for name, each in named.items() for x in jobs_of(model, corpora, {name: each}, zero, choice[name], width)]
    text = held_out(model, corpora, layout, text=text, progress=progress)
    measured = text.measure_jobs(jobs, progress=progress)
    shares = {(name, language): kept for name, each in named.items() for language, kept in _kept(model, each).items()}
    sure, rows = _rises(measured, seed), []
    for row in measured.table.to_dict("records"):
        key = (row["set"], row["intervened"], row["evaluated"])
        kept = shares.get(key[:2], (1.0, 1.0))
        rows.append(
            {"plan": row["set"] or "none", "language": row["intervened"], "evaluated": row["evaluated"],
             "neurons": row["units"], "kept_neurons": kept[0], "kept_parameters": kept[1],
             **sure.get(key, dict.fromkeys(RISES, 0.0)), **{name: row[name] for name in LOSSES}}
        )  # fmt: skip
    return PruneLosses(pd.DataFrame(rows), measured, text.bits_per_nat, seed)


def sparse_losses(
    model: Model,
    corpora: Any,
    sets: Mapping[str, NeuronSet],
    experts: ExpertAssignment,
    share: float,
    *,
    layout: Layout | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> PruneLosses:
    """Sparse activation: each token keeps its best experts out of those that a plan leaves to its language.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        sets: Plans by name, whose remaining experts are the pools; the plan "all experts" is added.
        experts: The experts of the plans.
        share: Share of all experts that a token keeps, see `only_experts`.
        layout: How text becomes batches; packed blocks by default.
        seed: Seed of the intervals.
        progress: Show progress bars.
        options: Further options of `only_experts`, as selection="cross_layer".

    Returns:
        As `prune_losses`, each language on its own text; `neurons` and the shares kept are those of the pool.

    Raises:
        ValueError: A plan of another model, or as `only_experts`.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    check_same_model(model, [(f"the plan {name!r}", each.origin) for name, each in sets.items()])
    languages = list(dict.fromkeys(label for each in sets.values() for label in each.languages if label in corpora))
    rises, tokens, rows, rates = {}, {}, [], {}
    for language in languages:
        own = {language: corpora[language]}
        whole = held_out(model, own, layout, progress=progress)
        tokens |= whole.tokens
        rates |= whole.bits_per_nat
        for name in ("all experts", *sets):
            among = kept_experts(sets[name], language, experts) if name in sets else None
            with only_experts(model, experts, share, among=among, **options):
                masked = held_out(model, own, layout, progress=progress)
            rises[name, language, language] = masked.clean[language] - whole.clean[language]
            pool = 1.0 if among is None else float(among.float().mean())
            rows.append({"plan": name, "language": language, "evaluated": language, "kept_neurons": pool,
                         "active_neurons": share, **_losses(masked)})  # fmt: skip
    measured = Measured(pd.DataFrame(rows), rises, tokens)
    sure = _rises(measured, seed)
    frame = pd.DataFrame([row | sure[row["plan"], row["language"], row["evaluated"]] for row in rows])
    return PruneLosses(frame, measured, rates, seed)


def _rises(measured: Measured, seed: int) -> dict[tuple[str, str, str], dict[str, float]]:
    """Of each plan, its language and an evaluated language: `RISES`, over documents."""
    draws, found = document_draws(measured.tokens, seed), {}
    for key, drawn in drawn_rises(measured, draws).items():
        rise = float(measured.rises[key].sum() / measured.tokens[key[2]].sum())
        low, high = spread(drawn, {key[2]: draws[key[2]]}).interval(rise)
        found[key] = dict(zip(RISES, (rise, low, high), strict=True))
    return found


def _losses(text: HeldOut) -> dict[str, Any]:
    row = text.unchanged.iloc[0]
    return {name: row[name] for name in ("nll", "perplexity", "bits_per_byte", "tokens", "bytes")}


def _kept(model: Model, plan: NeuronSet) -> dict[str, tuple[float, float]]:
    """By language, the shares of the MLPs' neurons and of the model's parameters that stay."""
    mlp, units = model.blocks[0].mlp, plan.masks["mlp"]
    matrices = 3 if structure.is_gated(model) else 2
    has_bias = mlp.b_in is not None and bool(mlp.b_in.any())
    each, total = matrices * mlp.W_out.shape[1] + has_bias, n_parameters(model)
    gone = zip(plan.languages, units.sum((1, 2)).tolist(), strict=True)
    return {language: (1 - count / units[0].numel(), 1 - count * each / total) for language, count in gone}
