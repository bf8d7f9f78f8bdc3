"""Loss on hold-out text, with and without an intervention."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import pandas as pd

from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import NONE, Evaluate, jobs_for, jobs_of
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import Intervention, check_interventions
from lsn_lens.interventions.words import Choice
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

Measure = Literal[
    "nll", "perplexity", "bits_per_byte", "nll_change", "perplexity_change", "bits_per_byte_change",
    "nll_relative_change", "perplexity_relative_change", "bits_per_byte_relative_change",
]  # fmt: skip


def perplexity_table(
    model: Model,
    corpora: Any,
    sets: NeuronSet | Mapping[str, NeuronSet],
    action: Choice = zero,
    *,
    evaluate: Evaluate = "all",
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language on its `hold_out` text while each language's units are changed.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        sets: One set, or several by name, measured on the same text.
        action: The action on the units, or a function from the intervened language to an action.
        evaluate: Measure all languages, only the intervened language (for many random controls), or the languages that
            a function of the intervened language returns.
        layout: How text becomes batches; packed blocks by default. LAPE's cap is `PAPER_EVALUATION_TOKENS`.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Returns:
        One row per set, intervened language ("none" first) and evaluated language: `set`, `action`, `intervened`,
        `evaluated`, `units` (different ones of the intervened language), `nll` (nats per token), `perplexity` (exp of
        `nll`), `bits_per_byte` (bytes of the scored tokens), for each its change against no intervention, `nll_change`
        and so on, and that change over the loss without intervention, `nll_relative_change` and so on; scored `tokens`
        and `bytes`. Separators and a block's first token are not scored. `attrs["text"]` describes the text.

    Raises:
        KeyError: A language to measure without text.
        ValueError: Not an action, or a language of the sets called "none".

    Warns:
        UserWarning: A language without scored tokens has NaN losses; a tokenizer that does not give the bytes of its
            tokens makes bits per byte NaN.

    Source: Tang et al. 2024, whose `ppl.py` prints the mean negative log-probability per token.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    jobs = jobs_of(model, corpora, sets, action, evaluate)
    return held_out(model, corpora, layout, text=text, progress=progress).measure_jobs(jobs, progress=progress).table


def loss_table(
    model: Model,
    corpora: Any,
    interventions: Iterable[Intervention],
    *,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language on its `hold_out` text under each intervention, one at a time.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        interventions: `Intervention`s with different names.
        layout: How text becomes batches; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Returns:
        One row per intervention ("none" first) and evaluated language: `intervention`, `units`, `evaluated`, and losses
        and changes as in `perplexity_table`.

    Raises:
        ValueError: Not interventions, or two of one name.
    """
    check_model(model)
    each = check_interventions(interventions)
    corpora = as_corpora(corpora)
    jobs = jobs_for(model, corpora, each)
    measured = held_out(model, corpora, layout, text=text, progress=progress).measure_jobs(jobs, progress=progress)
    table = measured.table.drop(columns=["action", "intervened"]).rename(columns={"set": "intervention"})
    table["intervention"] = table["intervention"].replace("", NONE)
    table.attrs = measured.table.attrs
    return table


def perplexity_matrix(
    model: Model,
    corpora: Any,
    found: NeuronSet,
    action: Choice = zero,
    *,
    measure: Measure = "nll_change",
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One measure of `perplexity_table` as a matrix: rows = intervened language, columns = evaluated language.

    The rows start with "none" (no intervention). `attrs["table"]` holds all measures.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        found: One set of units.
        action: The action on the units, or a function from the intervened language to an action.
        measure: A column of `perplexity_table`.
        layout: How text becomes batches; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Raises:
        ValueError: An unknown measure, several sets, or the errors of `perplexity_table`.
    """
    check_model(model)
    _check_measure(measure)
    if not isinstance(found, NeuronSet):
        raise ValueError(f"a matrix is of one NeuronSet, got a {type(found).__name__}: for several, perplexity_table.")
    table = perplexity_table(model, corpora, found, action, layout=layout, text=text, progress=progress)
    return as_matrix(table, measure)


def as_matrix(table: pd.DataFrame, measure: Measure = "nll_change") -> pd.DataFrame:
    """Rows = intervened, columns = evaluated, from the rows of one set and action."""
    _check_measure(measure)
    matrix = table.pivot(index="intervened", columns="evaluated", values=measure)
    matrix = matrix.loc[table["intervened"].unique(), table["evaluated"].unique()]
    matrix.attrs["table"] = table.to_dict("list")
    return matrix


def _check_measure(measure: str) -> None:
    if measure not in get_args(Measure):
        raise ValueError(f"measure={measure!r}: expected one of {list(get_args(Measure))}.")
