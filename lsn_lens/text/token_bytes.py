"""Bytes of text per token, so that the tokens of a document sum to its length in UTF-8.

Where the tokens spell the text (byte-level tokenizers, sentencepiece without an active normaliser), each token counts
the bytes that it spells, even a part of a character. Otherwise the offsets of a fast tokenizer tell the characters of
each token; characters of no token (spaces, and marks that a normaliser drops) count for a neighbouring token.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int

UNKNOWN = -1  # bytes of a token that cannot be determined
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte that sentencepiece has no piece for
SPACE = "▁"  # a space in sentencepiece vocabularies

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
        """The bytes that a token spells, by its name in the vocabulary."""
        if token not in self._spelled:
            self._spelled[token] = self._spell(token)
        return self._spelled[token]

    def _spell(self, token: int) -> bytes:
        name = self.tokenizer.convert_ids_to_tokens(int(token))
        if isinstance(name, bytes):  # as in tiktoken
            return name
        name = str(name or "")
        if self._is_byte_level:
            letters = _byte_letters()
            is_literal = token in self._added or any(letter not in letters for letter in name)
            return name.encode() if is_literal else bytes(letters[letter] for letter in name)
        byte = BYTE.fullmatch(name)
        return bytes.fromhex(byte[1]) if byte else name.replace(SPACE, " ").encode()

    def of(self, text: str, ids: Sequence[int], offsets: Offsets | None) -> Sizes:
        """Bytes of each token of a text; they sum to the bytes of the text.

        Args:
            text: The tokenized text.
            ids: Its tokens, without an added BOS token.
            offsets: First and last character of each token, from a fast tokenizer; None for a slow one.

        Returns:
            `UNKNOWN` for all tokens if they do not spell the text and there are no offsets.
        """
        pieces = [self.spelled(token) for token in ids]
        whole, joined = text.encode(), b"".join(pieces)
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int32)
        if joined == whole or not len(ids):
            return sizes
        if joined == b" " + whole:  # a leading space that the tokenizer adds
            sizes[sizes.nonzero()[0][0]] -= 1
            return sizes
        if offsets is None:
            return np.full(len(ids), UNKNOWN, dtype=np.int32)
        return _by_offsets(text, offsets, sizes)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether each letter of the vocabulary's token names is one byte, as in GPT-2."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"


@cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes unchanged, the others in order from code point 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _by_offsets(text: str, offsets: Offsets, spelled: Sizes) -> Sizes:
    """Bytes from the previous token's end to each token's end; tokens with the same characters share the bytes."""
    first, last = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    ends, following = np.maximum.accumulate(last).tolist(), [*first[1:].tolist(), len(text)]
    # of characters without a token, those that a normaliser drops go to the token before, all others to the next
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
    """Bytes between edges, split within each group of tokens in proportion to the bytes they spell, in integers."""
    weights = np.maximum(spelled.astype(np.int64), 1)
    up_to = weights.cumsum()
    starts = np.append(True, group[1:] != group[:-1]).nonzero()[0]
    ends = np.append(starts[1:], len(group))
    before, total = np.append(0, up_to)[starts], up_to[ends - 1] - np.append(0, up_to)[starts]
    low, high = edges[starts], edges[ends]
    cut = low[group] + (high - low)[group] * (up_to - before[group]) // total[group]
    return np.diff(np.append(0, cut))
