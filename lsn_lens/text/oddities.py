"""Count irregularities of a language's text and warn about them."""

import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

NOTICED = 0.01  # share of documents or tokens above which an irregularity is warned about


class Oddities:
    """Counts irregularities of one language's text."""

    def __init__(self, tokenizer: Any):
        unknown = getattr(tokenizer, "unk_token_id", None)
        control = {*getattr(tokenizer, "all_special_ids", ())}
        added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        control |= {index for index, token in added.items() if token.special}
        if unknown in (getattr(tokenizer, f"{each}_token_id", None) for each in ("bos", "eos", "pad")):
            unknown = None  # a tokenizer that knows every byte may name another token here
        self.control = np.array(sorted(control - {unknown}), dtype=np.int64)
        self.unknown = -1 if unknown is None else unknown
        self.without_tokens = 0
        self.counts = dict.fromkeys(("control", "unknown", "not NFC", "U+FFFD"), 0)

    def see(self, ids: list[int]) -> None:
        """Count the tokens of a piece of text, without the leading BOS token."""
        row = np.array(ids, dtype=np.int64)
        self.counts["control"] += int(np.isin(row, self.control).sum())
        self.counts["unknown"] += int((row == self.unknown).sum())

    def read(self, text: str) -> None:
        """A document."""
        self.counts["not NFC"] += not unicodedata.is_normalized("NFC", text)
        self.counts["U+FFFD"] += "\ufffd" in text


def warn_of(language: str, noticed: Mapping[str, int], skipped: Mapping[str, int], tokens: int, documents: int) -> None:
    """Warn about irregularities of a language's text that are above their threshold."""
    lost = {reason: count for reason, count in skipped.items() if reason != "empty"}
    share = {key: noticed[key] / documents for key in ("repeated", "not NFC", "U+FFFD")}
    words = {
        f"records were left out, by reason: {lost} ({documents} documents are used).": bool(lost),
        f"{noticed['control']} control tokens, such as <s>, are spelled out in the text and are read as such. "
        "Remove them from the text if they are not intended.": noticed["control"] > 0,
        f"{noticed['unknown'] / tokens:.1%} of the tokens are unknown to the tokenizer: the model cannot read this "
        "text.": noticed["unknown"] > NOTICED * tokens,
        f"{noticed['repeated']} of {documents} documents are repetitions.": share["repeated"] > NOTICED,
        f"{noticed['not NFC']} of {documents} documents are not in Unicode's composed form, in which tokenizers are "
        "trained: they take more tokens. unicodedata.normalize('NFC', text) composes.": share["not NFC"] > NOTICED,
        f"{noticed['U+FFFD']} of {documents} documents have U+FFFD, which replaces letters lost when text was read "
        "in a wrong encoding.": share["U+FFFD"] > NOTICED,
    }
    for text in (text for text, is_so in words.items() if is_so):
        warnings.warn(f"{language}: {text}", stacklevel=3)
