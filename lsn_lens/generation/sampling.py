"""Sampling without or with prompts, batched and seeded, under the interventions in force."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as remember
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.files import whole_number
from lsn_lens.generation.stopping import Endings, endings
from lsn_lens.interventions.intervening import COLUMNS, Columns, Intervention, check_interventions, hooks_of, named
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.refusal import listing_parameters
from lsn_lens.text.prompts import as_chat, prompt_ids, texts_of

KOJIMA = {"samples": 100, "temperature": 0.8}  # unconditional, 64 tokens

Whole = int | np.integer
Number = float | int | np.integer | np.floating
Choose = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Row:
    """A text to generate: its first tokens and its own random numbers, one per token."""

    prompt: int
    sample: int
    ids: list[int]
    chances: Float[Tensor, "token"]


@listing_parameters
@torch.no_grad()
def generate(
    model: Model,
    prompts: Iterable[str] | None = None,
    *,
    samples: Whole | None = None,
    tokens: Whole = 64,
    temperature: Number | None = None,
    seed: Whole = 0,
    repetition_penalty: Number = 1.0,
    stop: Iterable[str] = (),
    separator: str = "bos",
    chat: bool | str = False,
    batch: Whole = 64,
    cache: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Continue prompts, or generate without a prompt.

    Hooks on the model fire at every token, so inside `with lsn.intervene(...)` the changed model generates. A sample
    depends only on the seed, its prompt and its number, not on the batch; all interventions get the same random
    numbers.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Texts to continue, in a list, tuple, array, Series or generator; None starts from the separator alone.
            A prompt that already begins with the separator (chat templates) gets no second separator.
        samples: Texts per prompt; by default 1, without prompts 100.
        tokens: Maximum number of new tokens; a text ends earlier at an end token of the tokenizer or of the model's
            generation configuration.
        temperature: 0 takes the most probable token; by default 0, without prompts 0.8. No top-k or top-p filter.
        seed: Seed of the samples.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that have occurred.
        stop: Strings before which a text ends; `ids`, and all values from them, include the string's tokens. A string
            that is one special token is an end token.
        separator: First token of a prompt: "bos" ("eos" for tokenizers without BOS), "eos" or "none".
        chat: True: each prompt is a user's turn in the tokenizer's chat template. A text: after this system prompt.
        batch: Texts at once.
        cache: Keep keys and values; False gives the same texts, slower. For models with other position codes for long
            texts ("longrope"), the cache is rebuilt at that length.
        progress: Show a progress bar.

    Returns:
        One row per text: `prompt` (its number), `sample`, `text` (the continuation, with its leading space), `ids` (the
        new tokens), `tokens`, `ended` (by an end token or a stop string), `log_probability` (mean of the chosen tokens,
        before temperature and penalty, in nats).

    Raises:
        TypeError: An unknown parameter; the message lists the known ones.
        ValueError: No prompts, a prompt that is not text, has unknown tokens or, with the new tokens, exceeds the
            context; or a setting out of range; `chat` without a prompt or without a template.
        FloatingPointError: NaN or infinity in the logits.

    Source: unconditional defaults as in the released code of Kojima et al. 2024: temperature 0.8, 64 tokens, 100 seeds,
    pure sampling.
    """
    check_model(model)
    unconditional = prompts is None
    samples = (KOJIMA["samples"] if unconditional else 1) if samples is None else samples
    temperature = (KOJIMA["temperature"] if unconditional else 0.0) if temperature is None else temperature
    prompts, stop = texts_of("prompts", [""] if prompts is None else prompts), texts_of("stop", stop)
    given = {"samples": samples, "tokens": tokens, "batch": batch}
    samples, tokens, batch = (whole_number(value, name, least=1) for name, value in given.items())
    if not prompts or "" in stop:
        raise ValueError("no prompts, or an empty stop string: give texts, and for nothing in front prompts=None.")
    if unconditional and chat is not False:
        raise ValueError(f"chat={chat!r} without prompts: a chat begins with a user's turn. Give prompts.")
    prompts, separator = as_chat(model.tokenizer, prompts, chat, separator)
    if not (0 <= temperature < math.inf and 0 < repetition_penalty < math.inf):
        raise ValueError(
            f"temperature={temperature}, repetition_penalty={repetition_penalty}: expected finite numbers, the first "
            "0 or more, the second more than 0."
        )
    rows, ends = _rows(model, prompts, samples, tokens, separator, int(seed)), endings(model, stop)
    choose = partial(_choose, temperature=float(temperature), penalty=float(repetition_penalty))
    border, texts = structure.position_border(model), []
    with tqdm(total=len(rows) * tokens, desc="generate", unit="tok", unit_scale=True, disable=not progress) as bar:
        for some in _batches(rows, batch, even=border is not None):
            ids, chances = _write(model, some, tokens, choose, ends.tokens, border, cache, bar)
            texts += [_text(*each, ends) for each in zip(some, ids.tolist(), chances.tolist(), strict=True)]
    return pd.DataFrame(sorted(texts, key=lambda row: (row["prompt"], row["sample"])))


def generate_each(
    model: Model,
    interventions: Sequence[Intervention],
    prompts: Iterable[str] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """`generate` without intervention ("none") and under each intervention; the first column is `intervention`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        interventions: `Intervention`s with different names.
        prompts: Texts to continue; None starts from the separator alone.
        progress: Show a progress bar.
        settings: Further arguments of `generate`: `samples`, `tokens`, `temperature`, `seed`, `repetition_penalty`,
            `stop`, `separator`, `chat`, `batch`, `cache`.

    Raises:
        TypeError: A setting that `generate` lacks; the message lists its parameters.
        ValueError: Not interventions, two of one name, or the errors of `generate`.
        FloatingPointError: NaN or infinity in the logits; the message names the intervention.

    Warns:
        UserWarning: An intervention has no units.
    """
    check_model(model)
    every = [Intervention("none"), *check_interventions(interventions)]
    prompts = None if prompts is None else texts_of("prompts", prompts)  # a generator is read once
    width = remember(partial(structure.site_width, model))
    frames = []
    for each in tqdm(every, desc="interventions", disable=not progress):
        with under(model, each, width):
            frame = generate(model, prompts, progress=False, **settings)
        frame.insert(0, "intervention", each.name)
        frame.insert(1, "units", len(each))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@contextlib.contextmanager
def under(model: Model, what: Intervention, width: Callable[[str], int], level: int = 4) -> Iterator[None]:
    """The model under an intervention, which errors name; warns of an intervention without units, `level` calls up."""
    hooks = hooks_of(model, what, width)
    if what.steps and not hooks:
        warnings.warn(f"{what.name!r} has no units: the model is unchanged.", stacklevel=level)
    with model.hooks(fwd_hooks=hooks), named(what):
        yield


def _rows(model: Model, prompts: list[str], samples: int, tokens: int, separator: str, seed: int) -> list[_Row]:
    known, rows = structure.vocabulary_size(model), []
    for number, prompt in enumerate(prompts):
        ids = prompt_ids(model.tokenizer, prompt, separator)
        if not ids:
            raise ValueError(f"prompt {number} is empty, and separator='none' puts nothing in front of it.")
        if max(ids) >= known:
            raise ValueError(f"prompt {number} has the token {max(ids)}; the model knows {known} only: {prompt[:60]!r}")
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


def _batches(rows: list[_Row], size: int, even: bool) -> Iterator[list[_Row]]:
    """Batches of texts; `even`: of equal length, for models where the longest text decides all position codes."""
    lengths = sorted({len(row.ids) for row in rows}) if even else [None]
    for length in lengths:
        some = [row for row in rows if length in (None, len(row.ids))]
        yield from (some[first : first + size] for first in range(0, len(some), size))


def _write(
    model: Model,
    rows: list[_Row],
    tokens: int,
    choose: Choose,
    ends: tuple[int, ...],
    border: int | None,
    cache: bool,
    bar: Any,
) -> tuple[Int[Tensor, "row token"], Float[Tensor, "row token"]]:
    """The new tokens of a batch and their log-probabilities; texts are padded with end tokens of log-probability 0."""
    device = structure.device_of(model)
    longest = max(len(row.ids) for row in rows)
    pads = torch.tensor([longest - len(row.ids) for row in rows], device=device)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
    mask = (torch.arange(longest, device=device) >= pads[:, None]).long()
    draws = torch.stack([row.chances for row in rows]).to(device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    kept, scores = None, []
    for number in range(tokens):
        anew = not cache or not number or ids.shape[1] - 1 == border  # what is kept has the codes of a shorter text
        first = 0 if anew else ids.shape[1] - 1
        with _columns(Columns(first, longest, pads)):
            if cache:
                logits, kept = forward.step(model, ids[:, first:], mask, None if anew else kept)
            else:
                logits = model(ids, attention_mask=mask, return_type="logits")
        last = logits[:, -1].float()
        if not bool(last.isfinite().all()):
            raise FloatingPointError(f"the logits for new token {number} are NaN or infinite. Is a strength too large?")
        chosen = choose(last, ids, mask, draws[:, number])
        score = last.log_softmax(-1).gather(1, chosen[:, None])[:, 0].masked_fill(ended, 0.0)
        chosen = chosen.masked_fill(ended, ends[0]) if ends else chosen
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        scores.append(score)
        ended |= torch.isin(chosen, torch.tensor(ends, dtype=chosen.dtype, device=device))
        bar.update(len(rows))
        if bool(ended.all()):
            bar.update(len(rows) * (tokens - number - 1))
            break
    return ids[:, longest:].cpu(), torch.stack(scores, dim=1).cpu()


@contextlib.contextmanager
def _columns(columns: Columns) -> Iterator[None]:
    """Give hooks the position of the forward pass in the text."""
    token = COLUMNS.set(columns)
    try:
        yield
    finally:
        COLUMNS.reset(token)


def _choose(
    logits: Float[Tensor, "row d_vocab"],
    ids: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"],
    draws: Float[Tensor, "row"],
    temperature: float,
    penalty: float,
) -> Int[Tensor, "row"]:
    """The most probable token, or a sample by a number in [0, 1).

    Inverse CDF over probabilities sorted from high to low, so that rounding in the tail moves no likely token.
    """
    if penalty != 1:
        seen = torch.zeros_like(logits).scatter_add_(1, ids, mask.to(logits.dtype)) > 0
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if bool(logits.isinf().any() | logits.isnan().any()):
            raise FloatingPointError(f"repetition_penalty={penalty} makes infinite logits: give one nearer to 1.")
    if temperature == 0:
        return logits.argmax(-1)
    below = logits.double() - logits.double().amax(-1, keepdim=True)  # 0 at the maximum: safe for every temperature
    probabilities, order = (below / temperature).softmax(-1).sort(descending=True, stable=True)
    ends = probabilities.cumsum(-1)
    place = torch.searchsorted(ends, draws[:, None] * ends[:, -1:], right=True).clamp_max(logits.shape[1] - 1)
    return order.gather(1, place)[:, 0]


def _text(row: _Row, ids: list[int], scores: list[float], ends: Endings) -> dict[str, Any]:
    text, kept, by_token, by_string = ends.apply(row.ids, ids)
    scored = scores[: len(kept) + by_token]  # that a text ends is a choice too
    return {
        "prompt": row.prompt,
        "sample": row.sample,
        "text": text,
        "ids": kept,
        "tokens": len(kept),
        "ended": by_token or by_string,
        "log_probability": sum(scored) / len(scored),
    }
