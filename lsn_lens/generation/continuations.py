"""Log-probabilities of continuations of a prompt, for items and for the evaluation harness."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lsn_lens.bars import tqdm
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.model.unembedding import token_losses
from lsn_lens.text.plan import row_ranges
from lsn_lens.text.prompts import front


@dataclass(frozen=True)
class Pair:
    """Token ids to condition on, and token ids to score. Errors use `name`."""

    context: Sequence[int]
    continuation: Sequence[int]
    name: str = ""


@dataclass(frozen=True)
class Score:
    """The score of one continuation.

    Attributes:
        log_probability: Sum over the continuation's tokens, in nats.
        greedy: Whether each token is the most probable one after the tokens before it.
        first: The most probable token after the context, whether or not the continuation begins with it.
    """

    log_probability: float
    greedy: bool
    first: int


def encode(tokenizer: Any, prompt: str, texts: Sequence[str], *, separator: str = "bos", name: str = "") -> list[Pair]:
    """Tokenise a prompt together with its continuations, and find where the continuations begin.

    A prompt that already spells the separator, as chat templates do, gets no second separator. The context is the
    longest common prefix, in tokens, of the prompt alone and the prompt with each text. All later tokens are scored. So
    texts of one prompt are always compared after the same tokens; a space at the end of a prompt that becomes part of
    the next token is scored with this token in each text.

    Raises:
        ValueError: Nothing to condition on, or a text without tokens.
    """
    alone, *wholes = tokenizer([prompt, *(prompt + text for text in texts)], add_special_tokens=False)["input_ids"]
    first = front(tokenizer, alone, separator)
    shared = min(_common(alone, whole) for whole in wholes)
    if not first and not shared:
        raise ValueError(
            f"{name}: no token to condition on. Give a longer prompt, or a separator that the text begins with."
        )
    empty = [text for text, whole in zip(texts, wholes, strict=True) if len(whole) <= shared]
    if empty:
        raise ValueError(f"{name}: {empty[0]!r} adds no token to the prompt, so it has no probability of its own.")
    return [Pair([*first, *whole[:shared]], whole[shared:], name) for whole in wholes]


def fit(pairs: Sequence[Pair], length: int, *, truncate: bool = False, keep: int = 0) -> tuple[list[Pair], int]:
    """Fit all pairs of a prompt into a context of `length` tokens; the last token of a text is not read.

    Args:
        pairs: Pairs with the same context.
        length: Length of the model's context.
        truncate: Drop tokens from the left of the prompt, the same for all pairs, where it is too long.
        keep: Number of first tokens to keep (the separator).

    Returns:
        The pairs, and the number of dropped tokens.

    Raises:
        ValueError: The pairs do not fit without `truncate`, or truncation leaves nothing to condition on.
    """
    longest = max(len(pair.context) + len(pair.continuation) for pair in pairs) - 1
    over = max(0, longest - length)
    context, name = pairs[0].context, pairs[0].name
    if not over:
        return list(pairs), 0
    if not truncate:
        raise ValueError(
            f"{name}: prompt and text have {longest + 1} tokens, the context has {length}. Shorten the prompt, or set "
            "truncate=True to drop its beginning."
        )
    kept = [*context[:keep], *context[keep + over :]]
    if over > len(context) - keep or not kept:
        raise ValueError(f"{name}: the text alone has more tokens than the context of {length}.")
    return [replace(pair, context=kept) for pair in pairs], over


@torch.no_grad()
def score(model: Model, pairs: Sequence[Pair], *, batch_size: int = 16, progress: bool = True) -> list[Score]:
    """Log-probabilities of continuations, teacher forced, in batches padded on the right, under the hooks in place.

    Raises:
        FloatingPointError: NaN or infinite logits, as an intervention may make.
        ValueError: A batch size below 1.
    """
    check_model(model)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1.")
    read = [len(pair.context) + len(pair.continuation) - 1 for pair in pairs]  # the last token is only predicted
    order = sorted(range(len(pairs)), key=lambda i: -read[i])
    ranges = row_ranges([read[place] for place in order], batch_size, structure.position_border(model))
    scores: dict[int, Score] = {}
    with tqdm(total=len(pairs), desc="continuations", disable=not progress) as bar:
        for some in ranges:
            places = order[some.start : some.stop]
            scores.update(zip(places, _scores(model, [pairs[place] for place in places]), strict=True))
            bar.update(len(places))
    return [scores[place] for place in range(len(pairs))]


def _scores(model: Model, pairs: list[Pair]) -> list[Score]:
    rows = [[*pair.context, *pair.continuation[:-1]] for pair in pairs]
    longest = max(len(row) for row in rows)
    device = structure.device_of(model)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    places = torch.arange(longest, device=device)
    contexts = torch.tensor([len(pair.context) for pair in pairs], device=device)[:, None]
    wanted = torch.tensor([each for pair in pairs for each in pair.continuation], device=device)
    best, top = torch.zeros_like(wanted), torch.full(wanted.shape, -torch.inf, device=device)
    finite = torch.ones_like(wanted, dtype=torch.bool)

    def look(tokens: slice, first: int, logits: torch.Tensor) -> None:
        high, at = logits.float().max(-1)
        best[tokens] = torch.where(high > top[tokens], at + first, best[tokens])
        top[tokens] = torch.maximum(high, top[tokens])
        finite[tokens] &= logits.isfinite().all(-1)

    losses = token_losses(model, ids, mask, (places >= contexts - 1) & mask.bool(), wanted, look)
    sizes = [len(pair.continuation) for pair in pairs]
    parts = zip(losses.split(sizes), (best == wanted).split(sizes), best.split(sizes), finite.split(sizes), strict=True)
    return [_score(pair, *part) for pair, part in zip(pairs, parts, strict=True)]


def _score(pair: Pair, losses: torch.Tensor, right: torch.Tensor, best: torch.Tensor, finite: torch.Tensor) -> Score:
    if not bool(finite.all()):
        raise FloatingPointError(f"{pair.name}: the model gives NaN or infinite logits.")
    return Score(-float(losses.sum()), bool(right.all()), int(best[0]))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))  # noqa: B905
