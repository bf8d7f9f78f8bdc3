"""Whether a finding holds for every kind of ablation: zero, means, other text's values and half, in one table."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import zip_longest
from typing import Any

import pandas as pd

from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import jobs_of
from lsn_lens.interventions.actions import Action, scale, zero
from lsn_lens.interventions.values import mean_ablation, other_mean_ablation, resample
from lsn_lens.interventions.words import Choice
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import Run
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout


def kinds_of_ablation(
    model: Model,
    corpora: Any,
    run: Run,
    found: NeuronSet,
    *,
    tokens: int = 256,
    seed: int = 0,
) -> dict[str, Choice]:
    """The usual ablations, by name.

    "zero"; "mean" over all languages; "other mean", over the other languages; "resample": values of single tokens of
    the other languages' `find` text, taken in turn (`tokens` of them); "half": half of their value.

    Raises:
        DoesNotApply: The run has no means for a basis of the set.
        ValueError: The other languages' text has fewer than `tokens` tokens.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    other = other_mean_ablation(run.statistics)
    known = other(run.languages[0]).values
    lacking = [basis for basis in found.masks if basis not in (known if isinstance(known, Mapping) else {})]
    if lacking:
        raise DoesNotApply(
            f"the run has no means of {lacking} to set units to: collect with a method that needs these means, or give "
            "ablation_sensitivity the actions to compare."
        )

    @cache
    def other_tokens(language: str) -> Action:
        documents = _in_turn(corpus.find for label, corpus in corpora.items() if label != language)
        return resample(model, documents, list(found.masks), tokens=tokens, seed=seed, progress=False)

    return {
        "zero": zero,
        "mean": mean_ablation(run.statistics),
        "other mean": other,
        "resample": other_tokens,
        "half": scale(0.5),
    }


def ablation_sensitivity(
    model: Model,
    corpora: Any,
    run: Run,
    found: NeuronSet,
    *,
    actions: Mapping[str, Choice] | None = None,
    seeds: int = 5,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The effect of a set under several kinds of ablation, on all languages and beside the same random units.

    Args:
        model: The run's model.
        corpora: Corpora whose hold-out text is measured; "resample" draws from their `find` text.
        run: The run, for means and activities.
        found: The set to ablate.
        actions: Kinds of ablation by name; `kinds_of_ablation` by default.
        seeds: Random sets, matched as by `controls.matched_draws`; the same for each kind.
        layout: How hold-out text becomes batches; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show progress bars.

    Returns:
        One row per kind and language: `ablation`, `language`, `units` (different ones), the keys of `verdict.rises`
        (`p` is at least 1 / (seeds + 1)), and `matched` (what random sets share with the set).

    Raises:
        ValueError: No kinds, no seed, a set of one language on text of one, or as `kinds_of_ablation`.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    kinds = kinds_of_ablation(model, corpora, run, found) if actions is None else dict(actions)
    if not kinds or seeds < 1 or len(corpora) < 2:
        raise ValueError(
            f"{len(kinds)} kinds of ablation, {seeds} seeds, text of {list(corpora)}: expected one or more kinds and "
            "seeds, and text of two languages or more."
        )
    draws = matched_draws(found, seeds, run.statistics)
    jobs = {name: jobs_of(model, corpora, found, action) for name, action in kinds.items()}
    text = held_out(model, corpora, layout, text=text, progress=progress)
    drawn = {str(seed): each for seed, each in draws.sets.items()}
    rows = []
    for name, action in kinds.items():
        table = text.measure_jobs(jobs[name], progress=progress).table
        random = text.measure(drawn, action, evaluate="own", progress=progress).table
        for language, count in found.counts().items():
            mine, beside = (each.loc[each["intervened"].eq(language)] for each in (table, random))
            row = verdict.rises(mine, str(language), beside)
            rows.append({"ablation": name, "language": language, "units": count, **row, "matched": draws.matched})
    return pd.DataFrame(rows)


def _in_turn(sources: Iterable[Iterable[str]]) -> Iterator[str]:
    """The first document of each source, then the second of each, and so on."""
    for row in zip_longest(*sources):
        yield from (document for document in row if document is not None)
