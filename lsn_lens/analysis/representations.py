"""Similarity of sentences across languages by layer, and dominance, by our definitions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lsn_lens.bars import tqdm
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.tokens import separator_id

BATCH_TOKENS = 4096  # tokens per forward pass
KEYS = ("layer", "language", "other")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of parallel sentences along the residual stream.

    Layer 0 is the input of the first block (the embeddings), layer 1 the output of that block, and so on.

    Attributes:
        languages: Labels of the first axis.
        values: float32 in main memory: 4 bytes x languages x sentences x (layers + 1) x d_model.
        pooling: "mean" over tokens or "last" token.
        left_out: Numbers of the sentences (from 0) that were too long in some language.
    """

    languages: tuple[str, ...]
    values: Float[Tensor, "language sentence layer d_model"]
    pooling: str
    left_out: tuple[int, ...] = ()

    def __repr__(self) -> str:
        languages, sentences, layers, width = self.values.shape
        megabytes = self.values.numel() * self.values.element_size() / 2**20
        return (
            f"Embeddings({languages} languages, {sentences} sentences ({len(self.left_out)} left out), "
            f"{layers} layers, d_model {width}, {self.pooling}, {megabytes:,.1f} MiB)"
        )


@torch.no_grad()
def sentence_embeddings(
    model: Model,
    sentences: Mapping[str, Sequence[str]],
    pooling: Literal["mean", "last"] = "mean",
    *,
    separator: Literal["bos", "eos", "none"] = "bos",
    skip_long: bool = False,
    progress: bool = True,
) -> Embeddings:
    """The residual stream of parallel sentences at every layer, under the interventions in force.

    Args:
        model: A HookedTransformer or TransformerBridge.
        sentences: Language -> sentences; the n-th of each language are translations of each other.
        pooling: The "mean" over the sentence's tokens, or its "last" token. The separator is not pooled.
        separator: Token before each sentence: "bos" ("eos" for tokenizers without BOS), "eos" or "none".
        skip_long: Leave out a sentence in every language if it exceeds the model's context in some language.
        progress: Show a progress bar.

    Raises:
        ValueError: Different numbers of sentences, a sentence without tokens, or a sentence that is too long.

    Source: mean residual stream over tokens; the definition is ours.
    """
    check_model(model)
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling={pooling!r}: expected 'mean' or 'last'.")
    counts = {label: len(texts) for label, texts in sentences.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"parallel sentences: expected the same number, above 0, in each language, got {counts}.")
    start = separator_id(model.tokenizer, separator)
    front = [] if start is None else [start]
    ids = {label: _ids(model, label, texts, front) for label, texts in sentences.items()}
    left_out = _too_long(ids, model.cfg.n_ctx, skip_long)
    kept = [number for number in range(max(counts.values())) if number not in set(left_out)]
    shape = (len(ids), len(kept), model.cfg.n_layers + 1, model.cfg.d_model)
    values = torch.empty(shape)
    needed = [_hook_name(layer) for layer in range(shape[2])]
    lean = forward.lean_where_exact(model, needed)
    with lean, tqdm(total=len(ids) * len(kept), desc="embeddings", unit="sentence", disable=not progress) as bar:
        for place, rows in enumerate(ids.values()):
            for chosen in _batches([len(rows[number]) for number in kept], structure.position_border(model)):
                values[place, chosen] = _pooled(model, [rows[kept[i]] for i in chosen], len(front), pooling)
                bar.update(len(chosen))
    return Embeddings(tuple(ids), values, pooling, left_out)


def _ids(model: Model, label: str, texts: Sequence[str], front: list[int]) -> list[list[int]]:
    rows = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    empty = [number for number, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"{label}: sentence {empty[0]} (from 0) has no tokens. Leave it out in every language.")
    return [front + row for row in rows]


def _batches(lengths: Sequence[int], border: int | None) -> Iterator[list[int]]:
    """Batches of sentence numbers, the longest first, those beyond the border apart."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        longest = lengths[order[-1]]
        least = border + 1 if border is not None and longest > border else 0
        chosen = [place for place in order[-max(1, BATCH_TOKENS // longest) :] if lengths[place] >= least]
        yield chosen
        del order[-len(chosen) :]


def _too_long(ids: Mapping[str, list[list[int]]], context: int, skip: bool) -> tuple[int, ...]:
    longest = [max(map(len, rows)) for rows in zip(*ids.values(), strict=True)]
    found = tuple(number for number, length in enumerate(longest) if length > context)
    if found and (not skip or len(found) == len(longest)):
        raise ValueError(
            f"{len(found)} of {len(longest)} sentences have more than the model's {context} tokens in some language, "
            f"sentence {found[0]} (from 0) up to {longest[found[0]]}. Shorten them, or give skip_long=True to leave "
            "such sentences out in every language."
        )
    return found


def _pooled(model: Model, rows: list[list[int]], front: int, pooling: str) -> Float[Tensor, "batch layer d_model"]:
    """One forward pass; padding is on the right."""
    device, layers = structure.device_of(model), model.cfg.n_layers + 1
    lengths = torch.tensor([len(row) for row in rows])
    position = torch.arange(int(lengths.max()))[None]
    mask = position < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    weights = mask & ((position >= front) if pooling == "mean" else (position == lengths[:, None] - 1))
    weights = (weights / weights.sum(1, keepdim=True)).to(device)
    pooled = torch.empty(len(rows), layers, model.cfg.d_model)

    def keep(layer: int) -> tuple[str, Any]:
        def hook(acts: Tensor, hook: Any) -> None:
            pooled[:, layer] = torch.einsum("bpd,bp->bd", acts.float(), weights).cpu()

        return _hook_name(layer), hook

    with model.hooks(fwd_hooks=[keep(layer) for layer in range(layers)]):
        forward.hidden_states(model, ids.to(device), mask.long().to(device))
    return pooled


def _hook_name(layer: int) -> str:
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


def pair_similarity(embeddings: Embeddings) -> pd.DataFrame:
    """Similarity of the sentences of two languages at every layer.

    Returns:
        One row per layer and pair: `layer`, `language`, `other`; `similarity`, the mean cosine of a sentence and its
        translation; `control`, the mean cosine of a sentence and the translations of all others, since in most models
        any two vectors point the same way; `above_control`, the difference; `retrieval`, the share of sentences whose
        most similar sentence of the other language is the translation, both directions averaged (chance is 1 /
        sentences; a tie counts as a miss).

    Raises:
        ValueError: Fewer than two languages or two sentences.

    Source: the definitions are ours.
    """
    _check(embeddings)
    count = embeddings.values.shape[1]
    rows = []
    for layer in range(embeddings.values.shape[2]):
        units = normalize(embeddings.values[:, :, layer], dim=-1)
        for first, second in combinations(range(len(units)), 2):
            cosines = units[first] @ units[second].T
            same = cosines.diagonal()
            others = cosines - 4 * torch.eye(count)  # below every cosine
            hits = [(same > others.amax(dim)).double().mean() for dim in (0, 1)]
            rows.append(
                {
                    "layer": layer,
                    "language": embeddings.languages[first],
                    "other": embeddings.languages[second],
                    **_against_control(units[first], units[second], "similarity"),
                    "retrieval": float(sum(hits) / 2),
                }
            )
    return pd.DataFrame(rows)


def language_similarity(embeddings: Embeddings) -> pd.DataFrame:
    """The means of `pair_similarity` over all pairs of languages: one row per layer."""
    pairs = pair_similarity(embeddings).drop(columns=["language", "other"])
    return pd.DataFrame(pairs.groupby("layer", as_index=False).mean())


def language_dominance(embeddings: Embeddings) -> pd.DataFrame:
    """Similarity of other languages' sentences to a language's sentences after a shift of the mean.

    A sentence of language c, minus the mean of c, plus the mean of t, is compared with its translation into t.

    Returns:
        One row per layer and language t: `layer`, `language`; `dominance`, the mean cosine over all c and sentences;
        `control`, the same against all other sentences of t; `above_control`, the difference.

    Raises:
        ValueError: Fewer than two languages or two sentences.

    Source: the definition is ours, after the idea of a shift between language means.
    """
    _check(embeddings)
    rows = []
    for layer in range(embeddings.values.shape[2]):
        values = embeddings.values[:, :, layer]
        means = values.mean(1, keepdim=True)
        for target, language in enumerate(embeddings.languages):
            own = normalize(values[target], dim=-1)
            each = [
                _against_control(normalize(values[c] - means[c] + means[target], dim=-1), own, "dominance")
                for c in range(len(values))
                if c != target
            ]
            rows.append({"layer": layer, "language": language, **pd.DataFrame(each).mean()})
    return pd.DataFrame(rows)


def similarity_change(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two tables of one function above in one table, for example without and with an intervention.

    Returns:
        Each measure with `_before`, `_after` and `_change`.

    Raises:
        ValueError: Tables of different layers, languages or measures.
    """
    keys = [name for name in KEYS if name in before]
    left, right = before.set_index(keys), after.reindex(columns=before.columns).set_index(keys)
    if list(after.columns) != list(before.columns) or not left.index.equals(right.index):
        raise ValueError(
            f"the tables are not of the same kind, layers and languages: {len(before)} rows with "
            f"{list(before.columns)} and {len(after)} rows with {list(after.columns)}."
        )
    columns = {}
    for measure in left:
        columns[f"{measure}_before"], columns[f"{measure}_after"] = left[measure], right[measure]
        columns[f"{measure}_change"] = right[measure] - left[measure]
    return pd.DataFrame(columns).reset_index()


def _check(embeddings: Embeddings) -> None:
    languages, sentences = embeddings.values.shape[:2]
    if languages < 2 or sentences < 2:
        raise ValueError(
            f"{languages} languages and {sentences} sentences: a comparison with a control needs at least 2 of each."
        )


def _against_control(
    first: Float[Tensor, "sentence d_model"], second: Float[Tensor, "sentence d_model"], name: str
) -> dict[str, float]:
    """Mean cosine of the same sentence, of different sentences, and the difference; the vectors have length 1."""
    same, count = (first * second).sum(-1).double(), len(first)
    all_pairs = float((first.double().sum(0) * second.double().sum(0)).sum())
    control = (all_pairs - float(same.sum())) / (count * (count - 1))
    return {name: float(same.mean()), "control": control, "above_control": float(same.mean()) - control}
