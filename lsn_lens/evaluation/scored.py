"""The scored tokens of a text, their bytes, and their loss by document."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.model import forward, resuming, structure, unembedding
from lsn_lens.model.structure import Model
from lsn_lens.text.plan import Batch, Layout, Plan
from lsn_lens.text.token_bytes import UNKNOWN
from lsn_lens.text.tokens import separator_id
from lsn_lens.workers import Report

AT_ONCE = 512  # tokens of a batch on a CPU, whose cache is small

Hooks = list[tuple[str, Any]]
PerDocument = Float[np.ndarray, "_"]  # one value for each document of a language, each language with its own number
Losses = dict[str, PerDocument]  # by language, nats summed over a document's scored tokens


@dataclass(frozen=True, eq=False)
class Scored:
    """The scored tokens of one language's text, in the documents that have a scored token.

    Attributes:
        documents: The positions of these documents in the text.
        tokens: Number of scored tokens of each document.
        n_bytes: Bytes of the scored tokens; NaN if the tokenizer does not give them.
        widest: Tokens of the largest batch, pads included.
    """

    documents: Int[np.ndarray, "_"]
    tokens: PerDocument
    n_bytes: PerDocument
    widest: int


def at_once(model: Model, layout: Layout, copies: int = 1) -> int:
    """Tokens of a forward pass; on a CPU those of so many copies of a small batch."""
    on_cpu = structure.device_of(model).type == "cpu"
    most = min(copies * AT_ONCE, layout.batch_tokens) if on_cpu else layout.batch_tokens
    return min(most, unembedding.tokens_at_once(model) or most)


def scored_tokens(batch: Batch, separator: int | None) -> Bool[Tensor, "batch target"]:
    """Which tokens after the first of each row are scored: those that count and are no separator."""
    scored = batch.keep[:, 1:]
    return scored if separator is None else scored & (batch.ids[:, 1:] != separator)


def scored_text(plan: Plan, separator: int | None) -> dict[str, Scored]:
    """The scored tokens of each language; no model is run."""
    text = {}
    for label, tokens in plan.tokens.items():
        totals, widest = torch.zeros(2, len(tokens.ends), dtype=torch.float64), 0
        for batch, documents in _read(plan, separator, [label]):
            if batch.byte_counts is None:
                raise ValueError("the tokens were written without their bytes: tokenize with count_bytes=True.")
            n_bytes, scored = batch.byte_counts[:, 1:].double(), documents >= 0
            values = torch.stack([scored.double(), n_bytes.where(n_bytes != UNKNOWN, math.nan)])
            totals.index_add_(1, documents[scored], values[:, scored])
            widest = max(widest, batch.ids.numel())
        counts, n_bytes = totals.numpy()
        kept = np.flatnonzero(counts)
        text[label] = Scored(kept, counts[kept], n_bytes[kept], widest)
    return text


def _read(plan: Plan, separator: int | None, labels: Collection[str]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch, with the document of each predicted token; -1 for tokens that are not scored."""
    for shard in plan.shards:
        for batch in plan.batches(shard) if shard.language in labels else ():
            if plan.layout.kind == "documents":
                documents = torch.tensor(list(batch.rows))[:, None].expand_as(batch.ids)
            else:  # in a packed block a token counts for its document
                positions = plan.blocks[batch.language].positions(batch.rows)
                documents = torch.searchsorted(torch.as_tensor(plan.tokens[batch.language].ends), positions, right=True)
            yield batch, documents[:, 1:].where(scored_tokens(batch, separator), -1)


def document_losses(
    model: Model, plan: Plan, known: Mapping[str, Scored], labels: Sequence[str],
    groups: Sequence[Sequence[Hooks]], report: Report,
) -> list[Losses]:  # fmt: skip
    """Loss of each document with a scored token, under each of several hooks."""
    start = separator_id(model.tokenizer, plan.layout.separator)
    every = document_sums(model, plan, start, labels, groups, report)
    return [{label: sums[known[label].documents] for label, sums in each.items()} for each in every]


@torch.no_grad()
def document_sums(
    model: Model,
    plan: Plan,
    separator: int | None,
    labels: Collection[str],
    groups: Sequence[Sequence[Hooks]],
    report: Report,
) -> list[Losses]:
    """Summed loss of every document under each of several hooks, in groups that share a forward pass.

    Each of a group's hooks acts on its own copy of a batch. Layers before a group's first hook run once per batch, for
    all groups, where that is less work.
    """
    device, copies, first = structure.device_of(model), sum(map(len, groups)), list(map(_first_layer, groups))
    sums = {label: torch.zeros(copies, len(plan.tokens[label].ends), dtype=torch.float64) for label in labels}
    skipped = sum(layer * len(each) for layer, each in zip(first, groups, strict=True))
    starts = set(first) if skipped > model.cfg.n_layers and resuming.can_resume(model) else set[int]()
    for batch, documents in _read(plan, separator, labels):
        ids, keep, scored = batch.ids.to(device), batch.keep.to(device), documents >= 0
        with resuming.recorded(model, starts) as outputs:
            if starts:
                forward.hidden_states(model, ids, keep.long() if batch.padded else None)
        found = []
        for layer, each in zip(first, groups, strict=True):
            rows = [many.repeat(len(each), 1) for many in (ids, keep.long(), scored.to(device))]
            with model.hooks(fwd_hooks=_side_by_side(each)), resuming.resumed(model, layer, outputs, len(each)):
                losses = unembedding.next_token_losses(model, rows[0], rows[1] if batch.padded else None, rows[2])
            found.append(losses.cpu().view(len(each), -1))
            report(len(each) * int(batch.keep.sum()))
        sums[batch.language].index_add_(1, documents[scored], torch.cat(found))
    return [{label: each[place].numpy() for label, each in sums.items()} for place in range(copies)]


def _first_layer(group: Sequence[Hooks]) -> int:
    return min(resuming.first_layer(name for name, _ in hooks) for hooks in group)


def _side_by_side(hooks: Sequence[Hooks]) -> Hooks:
    """One hook per site, which applies to each copy of the rows its own hooks."""
    names = dict.fromkeys(name for each in hooks for name, _ in each)
    return [(name, partial(_in_parts, [[f for at, f in each if at == name] for each in hooks])) for name in names]


def _in_parts(functions: Sequence[Sequence[Any]], acts: Tensor, hook: Any) -> Tensor:
    return torch.cat(
        [_applied(own, part, hook) for own, part in zip(functions, acts.chunk(len(functions)), strict=True)]
    )


def _applied(functions: Sequence[Any], acts: Tensor, hook: Any) -> Tensor:
    for function in functions:
        changed = function(acts, hook=hook)
        acts = acts if changed is None else changed
    return acts


def nothing_scored(label: str, plan: Plan) -> str:
    """Warn that no token of a language was scored, with the reason."""
    return (
        f"{label}: no token is scored, so its losses are NaN: its {plan.rows[label]} {plan.layout.kind} of at most "
        f"{plan.length} tokens have none but a first token, with nothing before it to be predicted from, and "
        'separators. Give longer documents, a larger length, or separator="bos".'
    )


def unknown_bytes(tokenizer: Any, labels: list[str]) -> str:
    """Warn that the bytes of tokens are unknown, with the reason."""
    return (
        f"bits per byte are NaN for {labels}: {type(tokenizer).__name__} is a slow tokenizer, without offsets, whose "
        "tokens do not spell the text, so it is not known which bytes the scored tokens stand for. Load a fast one."
    )


def measures(nll: float, bits_per_nat: float) -> dict[str, float]:
    """`nll` (nats per token), its `perplexity` (infinite beyond what a float can hold) and its `bits_per_byte`."""
    try:
        perplexity = math.exp(nll)
    except OverflowError:
        perplexity = math.inf
    return {"nll": nll, "perplexity": perplexity, "bits_per_byte": nll * bits_per_nat}
