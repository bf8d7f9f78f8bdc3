"""What neurons of each type do: losses and answers with them off, or raised, beside controls of the same number."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from lsn_lens.analysis.sharing import DEFAULT
from lsn_lens.applications.item_types import check_types, type_sets
from lsn_lens.applications.type_log import ALL, TypeEffects, TypeLog, trial_key
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.jobs import jobs_of
from lsn_lens.generation.tasks.items import Item
from lsn_lens.generation.tasks.scoring import evaluate_items
from lsn_lens.interventions.actions import Action, scale, zero
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.interventions.words import check_action
from lsn_lens.labels import check_apart
from lsn_lens.methods.sharing import TYPES, Sharing
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.plan import Layout
from lsn_lens.text.records import Records

DEACTIVATED: Mapping[str, Action] = {"zero": zero}


def strengths(factors: Iterable[float | int]) -> dict[str, Action]:
    """Actions that multiply neurons by factors: above 1 they raise, below 1 they lower.

    Raises:
        ValueError: No factors, or one that is not a finite number.
    """
    given = list(factors)
    if not given or not all(math.isfinite(each) for each in given):
        raise ValueError(f"factors={given}: expected one or more finite numbers, as (1.1, 1.5, 2.0).")
    return {each.name: each for each in map(scale, given)}


def type_losses(
    model: Model,
    corpora: Any,
    *,
    actions: Mapping[str, Action] = DEACTIVATED,
    types: Iterable[str] = TYPES,
    method: Sharing = DEFAULT,
    share: float | None = None,
    items: int | None = None,
    seeds: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> TypeEffects:
    """Change an item's neurons of each type in every language of this item, and measure its loss.

    The types are read at the last token, and the neurons are changed at all tokens: what is measured is which of the
    neurons that end up as a type the text depends on, not a prediction from earlier text. The control "other item" has
    the types of another item instead.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Parallel text, as for `type_sets`.
        actions: Actions by name: deactivation by default, or `strengths(...)`.
        types: Some of the four types.
        method: Defines which neurons are active.
        share: At most this share of each layer's neurons per type; None takes whole types.
        items: The first items only.
        seeds: Random sets per item, type and control.
        seed: Seed of draws and intervals.
        progress: Show progress bars.

    Returns:
        Its table has `action`, `type`, `control` (see `TypeSets.trials`), `language`, `units` (mean number per item),
        `contribution` (share of the sum of all contributions), `control_contribution`, `control_of_type` (share of the
        control's neurons that have the type in this item), `change` (loss increase, nats per token), `low`, `high`
        (95 %, over items), `control_change` (mean of the seeds), `control_least`, `control_most`, `excess` (change
        minus that of the control), `excess_low`, `excess_high`, `change_bits_per_byte`, `excess_bits_per_byte`,
        `items`, `seeds`. Fewer than 5 items give no interval.

    Raises:
        ValueError: As `type_sets`; no actions, or no seed.
        DoesNotApply: Text that is not parallel.

    Source: the question is that of Wang et al. 2024 (arXiv 2406.09265); their protocol could not be read, so sets,
    controls and intervals are ours.
    """
    check_model(model)
    check_trials(actions, seeds, types, share)
    kept = type_sets(
        model, corpora, types=types, method=method, share=share, items=items, seed=seed, progress=progress
    )  # fmt: skip
    log = TypeLog(kept, seeds)
    for place, trials in log.items(progress):
        own = {label: _alone(label, each[place]) for label, each in kept.text.items()}
        text = held_out(model, own, Layout("documents", equal=False), progress=False)
        log.weigh(text.tokens, {label: each.n_bytes for label, each in text.scored.items()})
        jobs = [
            job
            for name, action in actions.items()
            for job in jobs_of(model, own, {trial_key(name, trial): trial.sets for trial in trials}, action)
        ]
        log.add(text.measure_jobs(jobs, progress=False).rises)
    return log.effects(actions, seed)


def type_accuracy(
    model: Model,
    items: Iterable[Item],
    *,
    actions: Mapping[str, Action] = DEACTIVATED,
    types: Iterable[str] = TYPES,
    method: Sharing = DEFAULT,
    share: float | None = None,
    seeds: int = 3,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> TypeEffects:
    """Change the neurons of each type of a task's prompt in every language, and measure the share of right answers.

    Items with the same `id` in all languages are one item. The types are read at the last token of the prompts, so no
    answer has a part in them.

    Args:
        model: A HookedTransformer or TransformerBridge.
        items: Parallel items: the same ids in every language, from `load_task`, `load_items` or `ending_items`.
        actions: As for `type_losses`.
        types: As for `type_losses`.
        method: Defines which neurons are active.
        share: As for `type_losses`.
        seeds: Random sets per item, type and control.
        seed: Seed of draws and intervals.
        progress: Show progress bars.
        options: Options of `evaluate_items`, as normalise="bytes".

    Returns:
        As `type_losses`, with `change` the change of accuracy (below 0: fewer right answers), and `accuracy` without
        change; no bits per byte.

    Raises:
        ValueError: As `type_losses`, or `evaluate_items`.
        DoesNotApply: Items that are not parallel.
    """
    check_model(model)
    check_trials(actions, seeds, types, share)
    by_item = parallel_items(items)
    languages = [each.language for each in by_item[0]]
    check_apart(languages, [ALL])
    prompts = {label: [each[place].prompt for each in by_item] for place, label in enumerate(languages)}
    before = evaluate_items(model, [one for each in by_item for one in each], progress=progress, **options)
    right = before["correct"].to_numpy(dtype=float).reshape(len(by_item), -1)
    kept = type_sets(model, prompts, types=types, method=method, share=share, seed=seed, progress=progress)
    log, width = TypeLog(kept, seeds), cache(partial(structure.site_width, model))
    for place, trials in log.items(progress):
        log.weigh({label: np.ones(1) for label in languages})
        for name, action in actions.items():
            for trial in trials:
                for label, found in trial.sets:
                    now = right[place]
                    if len(found):
                        with model.hooks(fwd_hooks=intervention_hooks(model, found, action, width)):
                            table = evaluate_items(model, by_item[place], progress=False, **options)
                        now = table["correct"].to_numpy(dtype=float)
                    moved = zip(languages, now - right[place], strict=True)
                    log.add({(trial_key(name, trial), label, on): np.array([each]) for on, each in moved})
    means: Any = {**dict(zip(languages, right.mean(0), strict=True)), ALL: right.mean()}
    effects = log.effects(actions, seed)
    return TypeEffects(effects.table.assign(accuracy=effects.table["language"].map(means)), effects.measured)


def parallel_items(items: Iterable[Item]) -> list[list[Item]]:
    """Items by their id, each with one item per language, in the same order of languages.

    Raises:
        DoesNotApply: An id that a language lacks or has twice, or one language only.
    """
    every = list(items)
    languages = list(dict.fromkeys(each.language for each in every))
    groups: dict[str, dict[str, Item]] = defaultdict(dict)
    for each in every:
        groups[each.id][each.language] = each
    lacking = [name for name, group in groups.items() if len(group) < len(languages)]
    if lacking or len(languages) < 2 or len(every) != len(groups) * len(languages):
        raise DoesNotApply(
            f"the items are not parallel: expected each id once in each of {languages} (two languages or more); "
            f"{len(lacking)} of {len(groups)} ids lack a language, as {lacking[:3]}."
        )
    return [[group[label] for label in languages] for group in groups.values()]


def check_trials(actions: Mapping[str, Action], seeds: int, types: Iterable[str], share: float | None) -> None:
    """Refuse, before anything runs, what cannot be tried.

    Raises:
        ValueError: No actions or something else, no seed, an unknown type, or a share outside (0, 1].
    """
    check_types(types, share)
    if not actions or seeds < 1:
        raise ValueError(f"{len(actions)} actions and {seeds} seeds: expected one or more of each.")
    for each in actions.values():
        check_action(each)


def _alone(label: str, document: str) -> LanguageCorpus:
    """A corpus whose hold-out part is one document."""
    records = Records(f"an item of {label}", [document].__iter__, is_finite=True, in_memory=True)
    return LanguageCorpus(label, Documents(records), Documents(records, 1.0, held_out=True))
