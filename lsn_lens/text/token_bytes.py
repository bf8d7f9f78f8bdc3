"""How many bytes of a text each of its tokens stands for, so that the tokens of a document sum to its length in UTF-8.

Where the tokens spell the text (byte-level tokenizers, sentencepiece without a normaliser at work), each has the bytes
that it spells, also where it is a part of a character. Elsewhere the offsets of a fast tokenizer say which characters
a token comes from; characters that no token comes from (spaces, and marks that a normaliser drops) are given to a
token beside them.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int

UNKNOWN = -1  # of a token whose bytes cannot be told
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte that sentencepiece has no piece for
SPACE = "▁"  # what sentencepiece writes for it

Offsets = Sequence[tuple[int, int]]
Sizes = Int[np.ndarray, "token"]


class TokenBytes:
    """Counts the bytes of one tokenizer's tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.has_offsets = bool(getattr(tokenizer, "is_fast", False))
        self._is_byte_level = is_byte_level(tokenizer)
        self._added = {each: str(token) for each, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._spelled: dict[int, bytes] = {}

    def spelled(self, token: int) -> bytes:
        """What a token spells, as far as its name in the vocabulary tells."""
        if token not in self._spelled:
            self._spelled[token] = self._spell(token)
        return self._spelled[token]

    def _spell(self, token: int) -> bytes:
        name = self.tokenizer.convert_ids_to_tokens(int(token))
        if isinstance(name, bytes):  # as tiktoken's are
            return name
        name = str(name or "")
        if self._is_byte_level:
            letters = _byte_letters()
            is_literal = token in self._added or any(letter not in letters for letter in name)
            return name.encode() if is_literal else bytes(letters[letter] for letter in name)
        byte = BYTE.fullmatch(name)
        return bytes.fromhex(byte[1]) if byte else name.replace(SPACE, " ").encode()

    def of(self, text: str, ids: Sequence[int], offsets: Offsets | None) -> Sizes:
        """Bytes of each token of a text, which sum to those of the text.

        Args:
            text: What was tokenized.
            ids: Its tokens, without any in front that the text has not.
            offsets: From the fast tokenizer, first and last character of each token; None if it is not fast.

        Returns:
            `UNKNOWN` for all tokens where they do not spell the text and there are no offsets.
        """
        pieces = [self.spelled(token) for token in ids]
        whole, joined = text.encode(), b"".join(pieces)
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int32)
        if joined == whole or not len(ids):
            return sizes
        if joined == b" " + whole:  # the tokenizer's own, in front
            sizes[sizes.nonzero()[0][0]] -= 1
            return sizes
        if offsets is None:
            return np.full(len(ids), UNKNOWN, dtype=np.int32)
        return _by_offsets(text, offsets, sizes)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary names tokens by letters that stand for one byte each, as GPT-2's does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"


@cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones as they are, the others in their order from code point 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _by_offsets(text: str, offsets: Offsets, spelled: Sizes) -> Sizes:
    """From the end of the token before to its own end; tokens of the same characters share these as they spell."""
    first, last = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    ends, following = np.maximum.accumulate(last).tolist(), [*first[1:].tolist(), len(text)]
    # of what no token comes from, what a normaliser drops goes to the token before, spaces and the rest to the next
    reach = np.array([_dropped(text, end, until) for end, until in zip(ends, following, strict=True)])
    reach = np.maximum.accumulate(np.minimum(reach, len(text)))
    reach[-1] = len(text)
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    lengths = 1 + (points[:, None] > np.array([0x7F, 0x7FF, 0xFFFF])).sum(1)
    edges = np.append(0, lengths.cumsum())[np.append(0, reach)]
    same = np.append(False, (first[1:] == first[:-1]) & (last[1:] == last[:-1]))
    group = (~same).cumsum() - 1
    return _shared(edges, group, spelled).astype(np.int32)


def _dropped(text: str, end: int, until: int) -> int:
    while end < until and not text[end].isspace():
        end += 1
    return end


def _shared(edges: Int[np.ndarray, "edge"], group: Sizes, spelled: Sizes) -> Sizes:
    """Bytes between edges, within each group of tokens in proportion to what they spell, in whole numbers."""
    weights = np.maximum(spelled.astype(np.int64), 1)
    up_to = weights.cumsum()
    starts = np.append(True, group[1:] != group[:-1]).nonzero()[0]
    ends = np.append(starts[1:], len(group))
    before, total = np.append(0, up_to)[starts], up_to[ends - 1] - np.append(0, up_to)[starts]
    low, high = edges[starts], edges[ends]
    cut = low[group] + (high - low)[group] * (up_to - before[group]) // total[group]
    return np.diff(np.append(0, cut))
