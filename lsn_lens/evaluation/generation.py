"""What a model writes: from nothing or from prompts, batched and seeded, under whatever intervention is in place."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as remember
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens import forward, models
from lsn_lens.bars import tqdm
from lsn_lens.batches import separator_id
from lsn_lens.interventions import COLUMNS, Columns, Intervention, hooks_of, named

KOJIMA = {"samples": 100, "temperature": 0.8}  # unconditional, 64 tokens


Choose = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Row:
    """A text to be written: what it begins with, and its own random numbers, one a token."""

    prompt: int
    sample: int
    ids: list[int]
    chances: Float[Tensor, "token"]


@torch.no_grad()
def generate(
    model: models.Model,
    prompts: Sequence[str] | None = None,
    *,
    samples: int | None = None,
    tokens: int = 64,
    temperature: float | int | None = None,
    seed: int = 0,
    repetition_penalty: float | int = 1.0,
    stop: Sequence[str] = (),
    separator: str = "bos",
    batch: int = 64,
    cache: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Continue prompts, or write from nothing.

    Hooks that are on the model fire at every token, so inside `with lsn.intervene(...)` this is what the changed model
    writes. A sample depends on the seed, its prompt and its number alone: not on the batch, nor on the other prompts;
    two interventions get the same random numbers.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Texts to continue; None writes from the separator alone.
        samples: Texts for each prompt; by default 1, from nothing 100.
        tokens: At most so many new ones; a text ends before at the tokenizer's end token.
        temperature: 0 takes the most probable token; by default 0, from nothing 0.8. No top-k or top-p filter.
        seed: Of the samples.
        repetition_penalty: Positive logits of tokens that have occurred are divided, negative ones multiplied by it.
        stop: Strings that a text ends before; `ids`, and what is computed from them, go up to the string's last token.
        separator: What a prompt begins with: "bos" (the "eos" of tokenizers without one), "eos" or "none".
        batch: Texts at once.
        cache: Keep keys and values; without it the same, slower.
        progress: Show a progress bar.

    Returns:
        One row a text: `prompt` (its number), `sample`, `text`, `ids` (the new tokens), `tokens`, `ended` (by the
        end token or a stop string), `log_probability` (mean of the chosen tokens, before temperature and penalty, in
        nats).

    Raises:
        ValueError: No prompts, one that with the new tokens exceeds the context, or an impossible setting.
        FloatingPointError: NaN or infinity in the logits.

    Source: unconditional defaults as in the released code of Kojima et al. 2024: temperature 0.8, 64 tokens, 100 seeds,
    pure sampling.
    """
    unconditional = prompts is None
    samples = (KOJIMA["samples"] if unconditional else 1) if samples is None else samples
    temperature = (KOJIMA["temperature"] if unconditional else 0.0) if temperature is None else temperature
    prompts = [""] if prompts is None else prompts
    _check(samples=samples, tokens=tokens, batch=batch)
    _check_texts(prompts=prompts, stop=stop)
    if not prompts or "" in stop:
        raise ValueError("no prompts, or an empty stop string: give texts, and for nothing in front prompts=None.")
    if not (0 <= temperature < math.inf and 0 < repetition_penalty < math.inf):
        raise ValueError(
            f"temperature={temperature}, repetition_penalty={repetition_penalty}: expected finite numbers, the first "
            "0 or more, the second more than 0."
        )
    rows = _rows(model, list(prompts), int(samples), tokens, separator, seed)
    choose = partial(_choose, temperature=float(temperature), penalty=float(repetition_penalty))
    texts = []
    with tqdm(total=len(rows) * tokens, desc="generate", unit="tok", unit_scale=True, disable=not progress) as bar:
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            ids, chances = _write(model, some, tokens, choose, cache, bar)
            texts += [_text(model, *each, stop) for each in zip(some, ids.tolist(), chances.tolist(), strict=True)]
    return pd.DataFrame(texts)


def generate_each(
    model: models.Model,
    interventions: Sequence[Intervention],
    prompts: Sequence[str] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """`generate` without intervention ("none") and under each one; a column `intervention` in front tells which.

    Args: as `generate`.

    Raises:
        ValueError: Two interventions of one name, or as `generate`.
        FloatingPointError: NaN or infinity in the logits; it names the intervention.

    Warns:
        UserWarning: An intervention has no units.
    """
    every = [Intervention("none"), *interventions]
    names = [each.name for each in every]
    if len(set(names)) < len(names):
        raise ValueError(f"interventions need different names, and none the name 'none': {names[1:]}.")
    width = remember(partial(models.site_width, model))
    frames = []
    for each in tqdm(every, desc="interventions", disable=not progress):
        hooks = hooks_of(model, each, width)
        if each.steps and not hooks:
            warnings.warn(f"{each.name!r} has no units: the model stays as it is.", stacklevel=2)
        with model.hooks(fwd_hooks=hooks), named(each):
            frame = generate(model, prompts, progress=False, **settings)
        frame.insert(0, "intervention", each.name)
        frame.insert(1, "units", len(each))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r}: expected a whole number of at least 1.")


def _check_texts(**texts: Sequence[str]) -> None:
    for name, each in texts.items():
        if isinstance(each, str):
            raise ValueError(f"{name}={each!r} is one string: give a list of strings.")


def _rows(model: models.Model, prompts: list[str], samples: int, tokens: int, separator: str, seed: int) -> list[_Row]:
    start = separator_id(model.tokenizer, separator)
    rows = []
    for number, prompt in enumerate(prompts):
        ids = ([] if start is None else [start]) + model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"prompt {number} is empty, and separator='none' puts nothing in front of it.")
        if len(ids) + tokens > model.cfg.n_ctx:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens; with {tokens} new ones it exceeds the model's context of "
                f"{model.cfg.n_ctx}. Shorten it or ask for fewer tokens: {prompt[:60]!r}"
            )
        for sample in range(samples):
            digest = hashlib.sha256(f"{seed} {sample} {prompt}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            rows.append(_Row(number, sample, ids, torch.rand(tokens, generator=generator, dtype=torch.float64)))
    return rows


def _write(
    model: models.Model, rows: list[_Row], tokens: int, choose: Choose, cache: bool, bar: Any
) -> tuple[Int[Tensor, "row token"], Float[Tensor, "row token"]]:
    """The new tokens of a batch and their log-probabilities; after an end token come more end tokens, of value 0."""
    device, end = models.device_of(model), model.tokenizer.eos_token_id
    longest = max(len(row.ids) for row in rows)
    pads = torch.tensor([longest - len(row.ids) for row in rows], device=device)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
    mask = (torch.arange(longest, device=device) >= pads[:, None]).long()
    draws = torch.stack([row.chances for row in rows]).to(device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    kept, scores = None, []
    for number in range(tokens):
        first = ids.shape[1] - 1 if cache and number else 0
        with _columns(model, Columns(first, longest, pads)):
            if cache:
                logits, kept = forward.step(model, ids[:, first:], mask, kept)
            else:
                logits = model(ids, attention_mask=mask, return_type="logits")
        last = logits[:, -1].float()
        if not bool(last.isfinite().all()):
            raise FloatingPointError(f"the logits for new token {number} are NaN or infinite. Is a strength too large?")
        chosen = choose(last, ids, mask, draws[:, number])
        score = last.log_softmax(-1).gather(1, chosen[:, None])[:, 0].masked_fill(ended, 0.0)
        chosen = chosen if end is None else chosen.masked_fill(ended, end)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        scores.append(score)
        ended |= chosen == (-1 if end is None else end)
        bar.update(len(rows))
        if bool(ended.all()):
            bar.update(len(rows) * (tokens - number - 1))
            break
    return ids[:, longest:].cpu(), torch.stack(scores, dim=1).cpu()


@contextlib.contextmanager
def _columns(model: models.Model, columns: Columns) -> Iterator[None]:
    """Tell hooks where the pass stands."""
    setattr(model, COLUMNS, columns)
    try:
        yield
    finally:
        delattr(model, COLUMNS)


def _choose(
    logits: Float[Tensor, "row d_vocab"],
    ids: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"],
    draws: Float[Tensor, "row"],
    temperature: float,
    penalty: float,
) -> Int[Tensor, "row"]:
    """The most probable token, or the one that a number in [0, 1) falls on.

    Probabilities are laid end to end, the highest first: so rounding in a long tail does not move the places before it.
    """
    if penalty != 1:
        seen = torch.zeros_like(logits).scatter_add_(1, ids, mask.to(logits.dtype)) > 0
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.double() / temperature).softmax(-1).sort(descending=True, stable=True)
    ends = probabilities.cumsum(-1)
    place = torch.searchsorted(ends, draws[:, None] * ends[:, -1:], right=True).clamp_max(logits.shape[1] - 1)
    return order.gather(1, place)[:, 0]


def _text(model: models.Model, row: _Row, ids: list[int], scores: list[float], stop: Sequence[str]) -> dict[str, Any]:
    end = model.tokenizer.eos_token_id
    ended = end in ids
    kept = ids[: ids.index(end)] if ended else ids
    decode = partial(model.tokenizer.decode, skip_special_tokens=True)
    text = decode(kept)
    if any(each in text for each in stop):  # the fewest tokens that hold a stop string
        kept = next(kept[:count] for count in range(len(kept) + 1) if any(x in decode(kept[:count]) for x in stop))
        text, ended = decode(kept), False
    places = [text.find(each) for each in stop if each in text]
    scored = scores[: len(kept) + ended]  # that a text ends is a choice too
    return {
        "prompt": row.prompt,
        "sample": row.sample,
        "text": text[: min(places)] if places else text,
        "ids": kept,
        "tokens": len(kept),
        "ended": ended or bool(places),
        "log_probability": sum(scored) / len(scored),
    }
