"""Tokens of a vocabulary that belong to exactly one language, and the errors of these labels."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.scripts import script_of
from lsn_lens.text.tokens import Tokens, tokenize

NOBODY = "none"  # tokens that belong to no single language
SCRIPT_SHARE = 0.01  # share of a language's letters below which a script does not count as the language's


@dataclass(frozen=True, eq=False)
class TokenLanguages:
    """The language of each token id, from `token_languages`.

    Attributes:
        languages: Labels.
        labels: Per token id the index in `languages`, -1 for a token of no single language.
        by_script: The labels that come from the token's script alone.
        counts: Occurrences of each token in each language's `find` text.
        held_out: Occurrences in the `hold_out` text, which the labels were not made from.
        scripts: A row for each script of the text: the share of each language's letters, and the `owner`.
        text: The text that the labels come from, as plain data.
    """

    languages: tuple[str, ...]
    labels: Int[Tensor, "vocabulary"]
    by_script: Bool[Tensor, "vocabulary"]
    counts: Int[Tensor, "language vocabulary"]
    held_out: Int[Tensor, "language vocabulary"]
    scripts: pd.DataFrame
    text: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def indicator(self) -> Float[Tensor, "vocabulary language"]:
        """1 where the token belongs to the language."""
        return (self.labels[:, None] == torch.arange(len(self.languages))).float()

    def identified(self, counts: Int[Tensor, "text vocabulary"]) -> Float[Tensor, "text label"]:
        """Share of counted tokens that are identified as each language; "none" last."""
        own = counts.double() @ self.indicator.double()
        total = counts.sum(1, keepdim=True).double()
        return torch.cat([own, total - own.sum(1, keepdim=True)], 1) / total

    def confusion(self) -> pd.DataFrame:
        """The bias of the labels: shares of labels in the real tokens of each language's `hold_out` text.

        Rows = language of the text, columns = label, "none" last. Without bias all labelled tokens are on the diagonal,
        with the same share in every language.
        """
        shares = self.identified(self.held_out)
        return pd.DataFrame(shares.numpy(), pd.Index(self.languages, name="text"), [*self.languages, NOBODY])

    def coverage(self) -> pd.DataFrame:
        """The share of tokens with an identified language.

        Returns:
            One row per language: `tokens` (ids with its label), `tokens_by_script` (of these), `vocabulary` (their
            share of all ids); of real tokens of its `hold_out` text the share labelled as itself (`own`), as another
            language (`other`) and not at all (`none`); `precision`, the share of text tokens labelled as this language
            that come from its text, each text counting the same.
        """
        shares = self.identified(self.held_out)
        rows = []
        for place, language in enumerate(self.languages):
            mine = self.labels == place
            own, all_texts = float(shares[place, place]), float(shares[:, place].sum())
            rows.append(
                {
                    "language": language,
                    "tokens": int(mine.sum()),
                    "tokens_by_script": int((mine & self.by_script).sum()),
                    "vocabulary": float(mine.double().mean()),
                    "own": own,
                    "other": float(shares[place, :-1].sum()) - own,
                    "none": float(shares[place, -1]),
                    "precision": own / all_texts if all_texts else float("nan"),
                }
            )
        return pd.DataFrame(rows)

    def chance(self) -> pd.DataFrame:
        """Each language's share in the identified tokens of random text.

        Returns:
            One row per language: `vocabulary_share` for tokens drawn evenly from the vocabulary, `unigram_share` for
            tokens drawn from the `find` text of all languages, each language counting the same.
        """
        even = self.indicator.sum(0).double()
        drawn = self.identified(self.counts)[:, :-1].mean(0)
        shares = {"vocabulary_share": even / even.sum(), "unigram_share": drawn / drawn.sum()}
        return pd.DataFrame({"language": self.languages, **{name: each.numpy() for name, each in shares.items()}})


def token_languages(
    tokenizer: Any,
    corpora: Any,
    *,
    by: Literal["both", "text", "script"] = "both",
    at_least: int = 3,
    ratio: int | float = 10,
    vocabulary: int | None = None,
    max_tokens: int | None = None,
    progress: bool = True,
) -> TokenLanguages:
    """Label the tokens that belong to exactly one language of the corpora.

    By text: a token belongs to a language if it occurs in its `find` text at least `at_least` times, at a rate
    (occurrences per token of text) of at least `ratio` times that in any other language. By script: a token with
    letters of a script that only one language is written in, by the same ratio of its share of the letters; Han gives
    no label if both Chinese and Japanese are there. "both" uses the text first, then the script. Special tokens have no
    language; parts of characters only by text.

    Args:
        tokenizer: The model's tokenizer.
        corpora: The languages to separate; labels come from `find`, their errors from `hold_out`.
        by: Evidence for a label: text, script or both.
        at_least: Occurrences that a label by text needs.
        ratio: How many times as frequent as in any other language; more than 1.
        vocabulary: Token ids that the model has; the tokenizer's own number by default.
        max_tokens: Cap for each language.
        progress: Show a progress bar.

    Raises:
        ValueError: Fewer than two languages, settings out of range, text without documents, no token of any language.

    Source: definition ours. Zhao et al. 2024 ask a language identifier about each token, which knows little of so short
    a text; here the labels come from the text, and their errors are measured.
    """
    corpora = as_corpora(corpora)
    if len(corpora) < 2:
        raise ValueError(f"expected at least two languages to tell apart, got {list(corpora)}.")
    if by not in ("both", "text", "script"):
        raise ValueError(f"by={by!r}: expected 'both', 'text' or 'script'.")
    if at_least < 1 or not ratio > 1:
        raise ValueError(f"at_least={at_least}, ratio={ratio}: expected at least 1, and more than 1.")
    size = len(tokenizer) if vocabulary is None else vocabulary
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        parts = {
            part: {
                label: tokenize(
                    label, getattr(corpus, part), tokenizer, Path(folder), separator="none", max_tokens=max_tokens,
                    d_vocab=size, progress=progress,
                )
                for label, corpus in corpora.items()
            }
            for part in ("find", "hold_out")
        }  # fmt: skip
        counts, held_out = (torch.stack([_count(each, size) for each in part.values()]) for part in parts.values())
    special = torch.tensor(tokenizer.all_special_ids, dtype=torch.long)
    spelled, scripts = _by_script(tokenizer, counts, tuple(corpora), ratio, special)
    text = exclusive(counts, at_least, ratio) if by != "script" else torch.full((size,), -1)
    by_script = (text < 0) & (spelled >= 0) if by != "text" else torch.zeros(size, dtype=torch.bool)
    labels = torch.where(by_script, spelled, text)
    labels[special] = -1
    if not bool((labels >= 0).any()):
        raise ValueError(f"no token belongs to one of {list(corpora)} alone: more text, or a lower ratio or at_least.")
    return TokenLanguages(
        tuple(corpora), labels, by_script, counts, held_out, scripts,
        {"by": by, "at_least": at_least, "ratio": ratio, "languages": {k: _said(v) for k, v in parts["find"].items()}},
    )  # fmt: skip


def exclusive(
    counts: Int[Tensor, "language item"], at_least: int | Float[Tensor, "language"], ratio: int | float
) -> Int[Tensor, "item"]:
    """The only language that an item belongs to, by its counts; -1 if there is none."""
    rates = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    best = rates.argmax(0)
    highest, second = rates.topk(2, dim=0).values
    needed = torch.as_tensor(at_least, dtype=torch.double).expand(len(counts))[best]
    enough = counts.gather(0, best[None])[0] >= needed.clamp(min=1)
    return torch.where(enough & (highest >= ratio * second), best, -1)


def _by_script(
    tokenizer: Any, counts: Tensor, languages: tuple[str, ...], ratio: int | float, special: Tensor
) -> tuple[Int[Tensor, "vocabulary"], pd.DataFrame]:
    """Labels of tokens by the scripts of their letters, and the table of scripts."""
    skipped = set(special.tolist())
    # each id by itself: a part of a character becomes U+FFFD, which is no letter
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), counts.shape[1]))])
    found = [
        (token, script, times)
        for token, text in enumerate(texts)
        if token not in skipped
        for script, times in Counter(filter(None, map(script_of, text))).items()
    ]
    names = list(dict.fromkeys(script for _, script, _ in found))
    token, times = (torch.tensor([row[i] for row in found], dtype=torch.long) for i in (0, 2))
    script = torch.tensor([names.index(each) for _, each, _ in found], dtype=torch.long)
    letters = torch.zeros(len(languages), len(names), dtype=torch.long).index_add(1, script, counts[:, token] * times)
    owner = exclusive(letters, SCRIPT_SHARE * letters.sum(1).double(), ratio)
    has = torch.zeros(counts.shape[1], len(languages) + 1, dtype=torch.bool)
    has[token, owner[script]] = True  # -1 falls into the last column
    labels = torch.where(has[:, :-1].sum(1) == 1, has[:, :-1].int().argmax(1), -1)
    shares = (letters / letters.sum(1, keepdim=True).clamp(min=1)).T
    table = pd.DataFrame(shares.numpy(), columns=list(languages))
    table.insert(0, "script", names)
    table.insert(1, "owner", [languages[i] if i >= 0 else NOBODY for i in owner.tolist()])
    return labels, table.loc[letters.sum(0).numpy() > 0].reset_index(drop=True)


def _count(tokens: Tokens, size: int, step: int = 2**20) -> Int[Tensor, "vocabulary"]:
    total = torch.zeros(size, dtype=torch.long)
    for first in range(0, tokens.n_tokens, step):
        total += torch.bincount(tokens.read(first, min(first + step, tokens.n_tokens)), minlength=size)
    return total


def _said(tokens: Tokens) -> dict[str, Any]:
    return {
        "tokens": tokens.n_tokens, "documents": len(tokens.ends), "bytes": tokens.n_bytes,
        "skipped": dict(tokens.skipped), "sha256": tokens.sha256,
    }  # fmt: skip
