"""The inputs of a model's layers on real text, by token."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.scripts import script_of
from lsn_lens.text.tokens import separator_id

ROWS = 16  # documents at once


@dataclass(frozen=True, eq=False)
class Text:
    """Documents as token ids, each behind the separator and cut to the context.

    Attributes:
        languages: Labels.
        rows: Per document the index of its language, and its ids.
        first: 1 where every document begins with a separator, which is left out of all that is measured; else 0.
    """

    languages: tuple[str, ...]
    rows: Sequence[tuple[int, list[int]]]
    first: int

    def batches(self) -> Iterator[tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Int[Tensor, "row"]]]:
        """Ids padded on the right, which of them count, and the rows' languages; long documents apart from short."""
        order = sorted(self.rows, key=lambda row: len(row[1]))
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            length = max(len(ids) for _, ids in some)
            ids = torch.zeros(len(some), length, dtype=torch.long)
            keep = torch.zeros(len(some), length, dtype=torch.bool)
            for place, (_, row) in enumerate(some):
                ids[place, : len(row)] = torch.tensor(row)
                keep[place, : len(row)] = True
            yield ids, keep, torch.tensor([language for language, _ in some])

    def of(self, language: int) -> "Text":
        """The documents of one language."""
        return Text(self.languages, [row for row in self.rows if row[0] == language], self.first)

    def head(self, tokens: int) -> "Text":
        """The first documents of each language with at least `tokens` tokens."""
        totals: Counter[int] = Counter()
        kept = []
        for language, ids in self.rows:
            if totals[language] < tokens:
                kept.append((language, ids))
                totals[language] += len(ids)
        return Text(self.languages, kept, self.first)


def read_text(tokenizer: Any, corpora: Mapping[str, LanguageCorpus], part: str, tokens: int, context: int) -> Text:
    """Text with about `tokens` tokens per language.

    Raises:
        ValueError: A language with less than a tenth of `tokens`.
    """
    start = (
        separator_id(tokenizer, "bos")
        if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None
        else None
    )
    front = [] if start is None else [start]
    rows: list[tuple[int, list[int]]] = []
    for place, (label, corpus) in enumerate(corpora.items()):
        total = 0
        for document in getattr(corpus, part):
            ids = tokenizer(document, add_special_tokens=False)["input_ids"][: context - len(front)]
            if len(ids) < 2:
                continue
            rows.append((place, front + ids))
            total += len(ids)
            if total >= tokens:
                break
        if total < tokens / 10:
            raise ValueError(
                f"{label}: {total} tokens of {part}, {tokens} are asked for. Give more text or ask for less."
            )
    return Text(tuple(corpora), rows, len(front))


@dataclass(frozen=True, eq=False)
class Inputs:
    """The input of each layer's MLP (or attention), and facts about each token.

    Attributes:
        layers: For each layer `[token d_model]`.
        language: The index of each token's language.
        ids: The tokens.
    """

    layers: Sequence[Float[Tensor, "token d_model"]]
    language: Int[Tensor, "token"]
    ids: Int[Tensor, "token"]


@torch.no_grad()
def inputs_of(hf_model: Any, projections: Sequence[str], text: Text) -> Inputs:
    """Run a Hugging Face model and keep the inputs of the named projections, one name per layer."""
    seen: list[Tensor] = [torch.empty(0)] * len(projections)

    def keep_input(layer: int) -> Any:
        def hook(module: Any, given: Any) -> None:
            seen[layer] = given[0]

        return hook

    handles = [
        hf_model.get_submodule(name).register_forward_pre_hook(keep_input(layer))
        for layer, name in enumerate(projections)
    ]
    parts: list[list[Tensor]] = [[] for _ in projections]
    labels, tokens = [], []
    try:
        for ids, keep, languages in text.batches():
            hf_model.base_model(ids, attention_mask=keep.long(), use_cache=False)
            counted = keep & (torch.arange(keep.shape[1]) >= text.first)
            for layer, acts in enumerate(seen):
                parts[layer].append(acts.reshape(*keep.shape, -1)[counted].float())
            labels.append(languages[:, None].expand_as(keep)[counted])
            tokens.append(ids[counted])
    finally:
        for handle in handles:
            handle.remove()
    return Inputs([torch.cat(each) for each in parts], torch.cat(labels), torch.cat(tokens))


def token_scripts(tokenizer: Any, vocabulary: int) -> list[str | None]:
    """The one script of each token's letters; None for tokens without letters, of several scripts, or of parts."""
    texts = tokenizer.batch_decode([[token] for token in range(min(len(tokenizer), vocabulary))])
    found = [{each for each in map(script_of, text) if each} if "\ufffd" not in text else set() for text in texts]
    scripts: list[str | None] = [each.pop() if len(each) == 1 else None for each in found]
    return scripts + [None] * (vocabulary - len(scripts))
