"""Loss on held-out text, with and without an intervention: who is hurt when a language's units go?"""

import contextlib
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch

from lsn_lens.bars import tqdm
from lsn_lens.evaluation.scored import Loss, nothing_scored, scored_bytes, scored_tokens, token_losses, unknown_bytes
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import Intervention, hooks_of, intervention_hooks
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons import NeuronSet
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.tokens import Tokens, separator_id, tokenize

Measure = Literal[
    "nll", "perplexity", "bits_per_byte", "nll_change", "perplexity_change", "bits_per_byte_change",
    "nll_relative_change", "perplexity_relative_change", "bits_per_byte_relative_change",
]  # fmt: skip
NONE = "none"  # the row without intervention


def perplexity_table(
    model: Model,
    corpora: Mapping[str, LanguageCorpus],
    sets: NeuronSet | Mapping[str, NeuronSet],
    action: Choice = zero,
    *,
    evaluate: Literal["all", "own"] | Callable[[str], Iterable[str]] = "all",
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language on its `hold_out` text while each language's units are changed.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on.
        sets: One set, or several by name: measured one after the other on the same text.
        action: What to do to the units, or a function from the intervened language to it; "zero" is a word for it.
        evaluate: Measure every language, only the one whose units are changed (for many random controls), or those
            that a function of it names.
        layout: How text becomes batches; packed blocks by default. Cap it at `PAPER_EVALUATION_TOKENS` as LAPE does.
        progress: Show a progress bar.

    Returns:
        One row for each set, intervened language ("none" first) and evaluated language: `set`, `action`,
        `intervened`, `evaluated`, `neurons`, `nll` (nats per token), `perplexity` (exp of it), `bits_per_byte` (of the
        bytes that the scored tokens stand for), for each its change against no intervention, `nll_change` and so on,
        and that change over the loss without intervention, `nll_relative_change` and so on; `tokens` and `bytes` that
        were scored. Separators are read, but predicting them is not scored, and neither is a block's first token.
        `attrs["text"]` describes the text.

    Raises:
        KeyError: A language to measure without text.
        ValueError: Something else than an action, or a language of the sets called "none".

    Warns:
        UserWarning: Nothing of a language was scored, so its losses are NaN; or the tokenizer does not tell which bytes
            its tokens stand for, so bits per byte are.

    Source: Tang et al. 2024, whose `ppl.py` prints the mean negative log-probability a token.
    """
    check_model(model)
    named = {"": sets} if isinstance(sets, NeuronSet) else dict(sets)
    jobs = [(name, each, language) for name, each in named.items() for language in each.languages]
    change = cache(partial(action_for, action))
    width = cache(partial(structure.site_width, model))
    for name, each, language in jobs:  # what cannot be done is said before anything is measured
        if language == NONE:
            raise ValueError(f"a language of the set {name!r} is called {NONE!r}, as the row without intervention is.")
        intervention_hooks(model, each[language], change(language), width)
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        plan = _plan(model, corpora, Path(folder), layout or Layout(), progress)
        choices: dict[str, Callable[[str], Iterable[str]]] = {"all": lambda _: plan.tokens, "own": lambda own: [own]}
        choose = choices[evaluate] if isinstance(evaluate, str) else evaluate
        shown = [list(choose(language)) for _, _, language in jobs]
        unknown = sorted({label for labels in shown for label in labels} - set(plan.tokens))
        if unknown:
            raise KeyError(f"no text for {unknown} to measure on; the corpora have {list(plan.tokens)}.")
        tokens: Counter[str] = Counter()
        for shard in plan.shards:
            tokens[shard.language] += plan.tokens_of(shard)
        total = tokens.total() + sum(tokens[label] for labels in shown for label in labels)
        is_exact = cache(partial(forward.lean_is_exact, model))
        with tqdm(total=total, desc="perplexity", unit="tok", unit_scale=True, disable=not progress) as bar:
            clean = _losses(model, plan, [], list(plan.tokens), bar, is_exact)
            _warn(model, plan, clean)
            frames = [_rows("", "none", NONE, 0, clean, clean)]
            for (name, each, language), labels in zip(jobs, shown, strict=True):
                what = change(language)
                hooks = intervention_hooks(model, each[language], what, width)
                losses = _losses(model, plan, hooks, labels, bar, is_exact)
                frames.append(_rows(name, what.name, language, len(each[language]), losses, clean))
    table = pd.concat(frames, ignore_index=True)
    table.attrs["text"] = plan.describe()
    return table


def loss_table(
    model: Model,
    corpora: Mapping[str, LanguageCorpus],
    interventions: Iterable[Intervention],
    *,
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language on its `hold_out` text under each intervention, one at a time.

    Args: as `perplexity_table`.

    Returns:
        One row for each intervention ("none" first) and evaluated language: `intervention`, `units`, `evaluated`, and
        losses and changes as in `perplexity_table`.

    Raises:
        ValueError: Two interventions of one name.
    """
    check_model(model)
    each = list(interventions)
    names = [NONE, *(what.name for what in each)]
    if len(set(names)) < len(names):
        raise ValueError(f"interventions need different names, and none the name {NONE!r}: {names[1:]}.")
    width = cache(partial(structure.site_width, model))
    for what in each:  # what cannot be done is said before anything is measured
        hooks_of(model, what, width)
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        plan = _plan(model, corpora, Path(folder), layout or Layout(), progress)
        is_exact = cache(partial(forward.lean_is_exact, model))
        total = (1 + len(each)) * sum(plan.tokens_of(shard) for shard in plan.shards)
        with tqdm(total=total, desc="perplexity", unit="tok", unit_scale=True, disable=not progress) as bar:
            clean = _losses(model, plan, [], list(plan.tokens), bar, is_exact)
            _warn(model, plan, clean)
            frames = [_rows(NONE, "", "", 0, clean, clean)]
            for what in each:
                losses = _losses(model, plan, hooks_of(model, what, width), list(plan.tokens), bar, is_exact)
                frames.append(_rows(what.name, "", "", len(what), losses, clean))
    table = pd.concat(frames, ignore_index=True).drop(columns=["action", "intervened"])
    table = table.rename(columns={"set": "intervention", "neurons": "units"})
    table.attrs["text"] = plan.describe()
    return table


def perplexity_matrix(
    model: Model,
    corpora: Mapping[str, LanguageCorpus],
    found: NeuronSet,
    action: Choice = zero,
    *,
    measure: Measure = "nll_change",
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One measure of `perplexity_table` as a matrix: rows = intervened language, columns = evaluated language.

    The rows start with "none" (no intervention). `attrs["table"]` holds all measures.

    Args: as `perplexity_table`; `measure` is one of its columns.

    Raises:
        ValueError: Another measure; and as `perplexity_table`.
    """
    check_model(model)
    _check_measure(measure)
    table = perplexity_table(model, corpora, found, action, layout=layout, progress=progress)
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


def _plan(model: Model, corpora: Mapping[str, LanguageCorpus], folder: Path, layout: Layout, progress: bool) -> Plan:
    tokens: dict[str, Tokens] = {
        label: tokenize(
            label, corpus.hold_out, model.tokenizer, folder, separator=layout.separator, max_tokens=layout.max_tokens,
            d_vocab=structure.vocabulary_size(model), count_bytes=True, progress=progress,
        )
        for label, corpus in corpora.items()
    }  # fmt: skip
    at_once = 512 if structure.device_of(model).type == "cpu" else None  # logits of more tokens leave the cache
    border = structure.position_border(model)
    return Plan(tokens, replace(layout, shards=1), context=model.cfg.n_ctx, at_once=at_once, border=border)


@torch.no_grad()
def _losses(
    model: Model,
    plan: Plan,
    hooks: list[tuple[str, Any]],
    labels: list[str],
    bar: Any,
    is_exact: Callable[[tuple[str, ...]], bool],
) -> dict[str, Loss]:
    """Summed negative log-probabilities (nats) of the languages named, and of how many tokens and bytes."""
    device = structure.device_of(model)
    separator = separator_id(model.tokenizer, plan.layout.separator)
    losses = dict.fromkeys(labels, Loss())
    names = tuple(name for name, _ in hooks)
    lean = forward.lean(model, names) if is_exact(names) else contextlib.nullcontext()
    with lean, model.hooks(fwd_hooks=hooks):
        for shard in (each for each in plan.shards if each.language in losses):
            for batch in plan.batches(shard):
                mask = batch.keep.to(device, torch.long) if batch.padded else None
                logits = forward.logits(model, batch.ids.to(device), mask)
                targets, scored = batch.ids[:, 1:].to(device), scored_tokens(batch, separator)
                nats = token_losses(logits[:, :-1], targets)[scored.to(device)].double().sum()
                old = losses[shard.language]
                losses[shard.language] = Loss(
                    old.nats + float(nats),
                    old.tokens + int(scored.sum()),
                    old.n_bytes + float(scored_bytes(batch, scored).sum()),
                )
                bar.update(int(batch.keep.sum()))
    return losses


def _warn(model: Model, plan: Plan, losses: Mapping[str, Loss]) -> None:
    for label, each in losses.items():
        if not each.tokens:
            warnings.warn(nothing_scored(label, plan), stacklevel=3)
    unknown = [label for label, each in losses.items() if math.isnan(each.n_bytes)]
    if unknown:
        warnings.warn(unknown_bytes(model.tokenizer, unknown), stacklevel=3)


def _rows(
    name: str, action: str, intervened: str, neurons: int, losses: Mapping[str, Loss], clean: Mapping[str, Loss]
) -> pd.DataFrame:
    rows = []
    for label, loss in losses.items():
        values, before = loss.measures(), clean[label].measures()
        changes = {key: values[key] - before[key] for key in values}
        relative = {key: changes[key] / before[key] if before[key] else math.nan for key in values}
        rows.append(
            {
                "set": name,
                "action": action,
                "intervened": intervened,
                "evaluated": label,
                "neurons": neurons,
                **values,
                **{f"{key}_change": change for key, change in changes.items()},
                **{f"{key}_relative_change": change for key, change in relative.items()},
                "tokens": loss.tokens,
                "bytes": loss.n_bytes,
            }
        )
    return pd.DataFrame(rows)
