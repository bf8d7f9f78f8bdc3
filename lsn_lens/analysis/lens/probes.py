"""Which language's word for the same concept each layer predicts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.analysis.lens.layers import check_lens, logit_lens
from lsn_lens.bars import tqdm
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.plan import row_ranges
from lsn_lens.text.prompts import prompt_ids

DEMO_PROBES = Path(__file__).parents[2] / "demo" / "probes.jsonl"
ROWS = 16  # prompts at once


@dataclass(frozen=True)
class WordProbe:
    """Prompts that end just before a word, and that word in several languages.

    Attributes:
        prompts: Language of the prompt -> prompt, without a space at its end.
        words: Language -> word.
        concept: Name of the concept.
    """

    prompts: Mapping[str, str]
    words: Mapping[str, str]
    concept: str = ""


def read_probes(path: Path | str = "demo") -> list[WordProbe]:
    """Read probes from a jsonl file, one object per line.

    `{"concept": "water", "prompts": {"fr": "Il boit de l'"}, "words": {"fr": "eau", "en": "water"}}`

    Args:
        path: The file; "demo" for twelve concepts in the embedded model's eight languages.

    Raises:
        ValueError: A malformed line.
    """
    source = DEMO_PROBES if str(path) == "demo" else Path(path)
    probes = []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            probe = WordProbe(dict(row["prompts"]), dict(row["words"]), str(row.get("concept", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{source}, line {number}: expected an object with prompts and words, each by language "
                f"({type(error).__name__}: {error})."
            ) from error
        _check(probe, f"{source}, line {number}")
        probes.append(probe)
    return probes


def _check(probe: WordProbe, where: str) -> None:
    texts = [*probe.prompts.values(), *probe.words.values()]
    if not probe.prompts or len(probe.words) < 2 or not all(isinstance(each, str) and each.strip() for each in texts):
        raise ValueError(f"{where}: expected at least one prompt and words in two languages, none of them empty.")
    if any(prompt != prompt.rstrip() for prompt in probe.prompts.values()):  # the space belongs to the word's token
        raise ValueError(f"{where}: a prompt ends with a space; expected it to end with its last word.")


@dataclass(frozen=True)
class _Row:
    """One prompt as tokens, and each language's first tokens."""

    text: str
    concept: str
    ids: list[int]
    first: dict[str, list[int]]


def first_tokens(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """First tokens of a word after a prompt: with and without a space in front, tokenised after the prompt.

    Of the two variants the token that spells more of the word counts, or both tokens if equal. A variant has no first
    token if the tokenizer joins it with the prompt's end, or if it begins with a token of spaces only.
    """
    front = _encode(tokenizer, prompt)
    spelled: dict[int, int] = {}
    for variant in (word, f" {word}"):
        ids = _encode(tokenizer, prompt + variant)
        if len(ids) > len(front) and ids[: len(front)] == front:
            token = ids[len(front)]
            spelled[token] = len(tokenizer.decode([token]).strip())
    longest = max(spelled.values(), default=0)
    return [token for token, letters in spelled.items() if letters == longest > 0]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def word_probes(
    model: Model,
    probes: Iterable[WordProbe],
    *,
    top_k: int = 10,
    norm: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare the words of two languages for the same concept by layer, at the position where the word is due.

    A word counts by its first token, see `first_tokens`; `attrs["first_tokens"]` lists these tokens, since a token that
    begins many words is weak evidence. A pair of languages whose words share a first token after a prompt is left out
    for this prompt, counted, and named in `attrs["excluded"]`. Runs under the hooks on the model.

    Args:
        model: A HookedTransformer or TransformerBridge.
        probes: From `read_probes`, or made by hand.
        top_k: A prompt counts for `share` in a layer if one of the two words is among the top k tokens.
        norm: See `logit_lens`.
        progress: Show a progress bar.

    Returns:
        One row per prompt language (`text`), `layer` (0 the embedding, the last the model's output) and ordered pair
        `language`, `other`: `log_odds`, the mean over prompts of the first word's log-probability minus the second's,
        in nats; `kept`, the share of prompts in which one of the two is among the top k; `share`, in how many of these
        the first is the more probable (NaN where none is kept); `probes`, the prompts that were compared, and
        `excluded`, those that could not be.

    Raises:
        ValueError: No probe, a malformed one, a prompt beyond the model's context, no pair that can be compared, or a
            model that the lens cannot read.

    Source: Zhai et al. 2024 (Babel Tower Hypothesis) look for identifiers such as `strlen` and `len` at intermediate
    layers. How they aggregate is not known to us: the filter, the log-odds and the table are ours.
    """
    check_model(model)
    rows, excluded, pairs = _prepare(model, list(probes))
    if not pairs:
        raise ValueError(f"no two words have different first tokens: {excluded[:3]}")
    if not 1 <= top_k <= structure.vocabulary_size(model):
        raise ValueError(
            f"top_k={top_k}: expected 1 to {structure.vocabulary_size(model)}, the size of the vocabulary."
        )
    check_lens(model)
    languages = list(dict.fromkeys(language for row in rows for language in row.first))
    measured = []
    with tqdm(total=len(rows), desc="word probes", unit="prompt", disable=not progress) as bar:
        for places in row_ranges([len(row.ids) for row in rows], ROWS, structure.position_border(model)):
            some = [rows[place] for place in places]
            measured.append(_measure(model, some, languages, top_k, norm))
            bar.update(len(some))
    table = _table(rows, languages, pairs, excluded, torch.cat(measured).numpy())
    spell = model.tokenizer.decode
    spelled = [
        {"concept": row.concept, "text": row.text, "language": language, "tokens": [*map(spell, ids)]}
        for row in rows
        for language, ids in row.first.items()
    ]
    table.attrs |= {"excluded": excluded, "first_tokens": spelled, "top_k": top_k, "norm": norm}
    return table


def _prepare(
    model: Model, probes: Sequence[WordProbe]
) -> tuple[list[_Row], list[dict[str, str]], dict[tuple[str, str, str], list[int]]]:
    """Prompts as tokens; pairs left out and why; (text, language, other) -> the prompts that compare them."""
    if not probes:
        raise ValueError("no probes: expected at least one.")
    tokenizer = model.tokenizer
    rows: list[_Row] = []
    excluded: list[dict[str, str]] = []
    pairs: dict[tuple[str, str, str], list[int]] = {}
    for number, probe in enumerate(probes):
        _check(probe, f"probe {number}")
        for text, prompt in probe.prompts.items():
            ids = prompt_ids(tokenizer, prompt)
            if len(ids) > model.cfg.n_ctx:
                raise ValueError(
                    f"probe {number}, {text}: {len(ids)} tokens, the model's context is {model.cfg.n_ctx}."
                )
            first = {language: first_tokens(tokenizer, prompt, word) for language, word in probe.words.items()}
            for language, other in combinations(sorted(first), 2):
                reason = _why_not(first[language], first[other])
                if reason:
                    names = {"concept": probe.concept, "text": text, "language": language, "other": other}
                    excluded.append({**names, "reason": reason})
                else:
                    pairs.setdefault((text, language, other), []).append(len(rows))
            rows.append(_Row(text, probe.concept, ids, first))
    return rows, excluded, pairs


def _why_not(one: list[int], two: list[int]) -> str:
    if not one or not two:
        return "a word has no first token of its own: the tokenizer joins it with the end of the prompt"
    return "the same first token" if set(one) & set(two) else ""


def _measure(
    model: Model, rows: Sequence[_Row], languages: list[str], top_k: int, norm: bool
) -> Float[Tensor, "prompt layer language 2"]:
    """Log-probability of each language's word, and whether it is among the top k; NaN and 0 where there is no word."""
    device = structure.device_of(model)
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)], mask[place, : len(row.ids)] = torch.tensor(row.ids), 1

    def read(logits: Tensor) -> Tensor:
        found = torch.full((len(rows), len(languages), 2), torch.nan)
        log_probability = logits[:, 0].float().log_softmax(-1).cpu()
        top = log_probability.topk(top_k, dim=-1).indices.tolist()
        for place, row in enumerate(rows):
            for column, language in enumerate(languages):
                tokens = row.first.get(language)
                if tokens:
                    found[place, column, 0] = log_probability[place, tokens].logsumexp(0)
                    found[place, column, 1] = bool(set(tokens) & set(top[place]))
        return found

    last = mask.sum(1) - 1
    padded = None if bool(mask.all()) else mask.to(device)
    return torch.stack(logit_lens(model, ids.to(device), padded, norm=norm, at=last.to(device), reduce=read), 1)


def _table(
    rows: list[_Row],
    languages: list[str],
    pairs: dict[tuple[str, str, str], list[int]],
    excluded: list[dict[str, str]],
    measured: Float[np.ndarray, "prompt layer language 2"],
) -> pd.DataFrame:
    frames = []
    for text in dict.fromkeys(row.text for row in rows):
        left_out = [(each["language"], each["other"]) for each in excluded if each["text"] == text]
        compared = [(language, other) for (where, language, other) in pairs if where == text]
        for pair in dict.fromkeys([*compared, *left_out]):
            chosen = pairs.get((text, *pair), [])
            for language, other in (pair, pair[::-1]):
                a, b = (measured[chosen][:, :, languages.index(each)] for each in (language, other))
                difference, kept = a[..., 0] - b[..., 0], (a[..., 1] + b[..., 1]) > 0
                with np.errstate(invalid="ignore"):
                    columns = {
                        "log_odds": difference.sum(0) / len(chosen) if chosen else np.nan,
                        "share": ((difference > 0) & kept).sum(0) / kept.sum(0),
                        "kept": kept.sum(0) / np.float64(len(chosen)),
                    }
                frame = pd.DataFrame({"layer": np.arange(measured.shape[1]), **columns})
                names = {"text": text, "language": language, "other": other}
                counts = {"probes": len(chosen), "excluded": left_out.count(pair)}
                frames.append(frame.assign(**names, **counts))
    order = ["text", "layer", "language", "other", "log_odds", "share", "kept", "probes", "excluded"]
    return pd.concat(frames, ignore_index=True).reindex(columns=order)
