"""What of a batch is scored: which tokens, their loss, and the bytes of text that they stand for."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.text.plan import Batch, Plan
from lsn_lens.text.token_bytes import UNKNOWN


@dataclass(frozen=True)
class Loss:
    """Of the tokens of one language that were scored: nats, their number, and the bytes of text they stand for."""

    nats: float = 0.0
    tokens: int = 0
    n_bytes: float = 0.0

    def measures(self) -> dict[str, float]:
        """`nll` per token, `perplexity` and `bits_per_byte`; NaN where nothing was scored, or bytes are not known."""
        nll = self.nats / self.tokens if self.tokens else math.nan
        bits = self.nats / self.n_bytes / math.log(2) if self.n_bytes else math.nan
        return {"nll": nll, "perplexity": perplexity_of(nll), "bits_per_byte": bits}


def scored_tokens(batch: Batch, separator: int | None) -> Bool[Tensor, "batch target"]:
    """Which tokens but the first of each row are scored: those that count and are no separator."""
    scored = batch.keep[:, 1:]
    return scored if separator is None else scored & (batch.ids[:, 1:] != separator)


def scored_bytes(batch: Batch, scored: Bool[Tensor, "batch target"]) -> Float[Tensor, "batch"]:
    """Bytes that the scored tokens of each row stand for; NaN where a token's are not known."""
    if batch.byte_counts is None:
        raise ValueError("the batch's tokens were written without their bytes: tokenize with count_bytes=True.")
    counts = batch.byte_counts[:, 1:].double()
    return counts.where(counts != UNKNOWN, math.nan).where(scored, 0.0).sum(1)


def nothing_scored(label: str, plan: Plan) -> str:
    """Says of a language that none of its tokens was scored, and why."""
    return (
        f"{label}: no token is scored, so its losses are NaN: its {plan.rows[label]} {plan.layout.kind} of at most "
        f"{plan.length} tokens have none but a first token, with nothing before it to be predicted from, and "
        'separators. Give longer documents, a larger length, or separator="bos".'
    )


def unknown_bytes(tokenizer: Any, labels: list[str]) -> str:
    """Says that bytes of tokens are not known, and why."""
    return (
        f"bits per byte are NaN for {labels}: {type(tokenizer).__name__} is a slow tokenizer, without offsets, whose "
        "tokens do not spell the text, so it is not known which bytes the scored tokens stand for. Load a fast one."
    )


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each token; row by row, so that a large vocabulary needs room for one row's probabilities only."""
    rows = [
        torch.nn.functional.cross_entropy(a.float(), b, reduction="none") for a, b in zip(logits, targets, strict=True)
    ]
    return torch.stack(rows)


def perplexity_of(nll: float) -> float:
    """exp(nll); infinite where a broken model's loss is beyond what a float can hold."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
