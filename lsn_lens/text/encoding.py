"""Encode documents in pieces that leave the token ids unchanged: memory does not grow with the longest document."""

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PIECE = 1 << 17  # characters encoded at once: a tokenizer takes about 150 bytes per character
OVERLAP = 2048  # characters that two neighbouring pieces share; their tokens must agree in its middle half
TOGETHER = 256  # documents encoded at once

Spans = list[tuple[int, int]]
Piece = tuple[str, list[int], Spans | None]


def encoded(
    documents: Iterable[str], tokenizer: Any, *, with_offsets: bool = False
) -> Iterator[tuple[str, Iterator[Piece]]]:
    """Each document with its pieces, which follow each other without a gap and are encoded lazily.

    A piece is its text, its ids and, `with_offsets` and if the tokenizer can tell, the characters of each id.
    """
    with_offsets = with_offsets and getattr(tokenizer, "is_fast", False)
    waiting: list[str] = []
    for text in documents:
        if waiting and (len(waiting) == TOGETHER or sum(map(len, waiting)) + len(text) > PIECE):
            yield from _together(waiting, tokenizer, with_offsets)
            waiting = []
        if len(text) > PIECE:
            yield text, _pieces(text, tokenizer)
        else:
            waiting.append(text)
    if waiting:
        yield from _together(waiting, tokenizer, with_offsets)


def _together(texts: list[str], tokenizer: Any, with_offsets: bool) -> Iterator[tuple[str, Iterator[Piece]]]:
    given = {"return_offsets_mapping": True} if with_offsets else {}
    made = tokenizer(texts, add_special_tokens=False, **given)
    offsets = made["offset_mapping"] if with_offsets else [None] * len(texts)
    for text, ids, spans in zip(texts, made["input_ids"], offsets, strict=True):
        yield text, iter([(text, ids, spans)])


@dataclass(frozen=True)
class _Window:
    """The tokens of a stretch of text: ids, and the characters of the whole text at which each begins and ends."""

    first: int
    last: int
    ids: list[int]
    spans: list[tuple[int, int]]

    def between(self, first: int, last: int) -> slice:
        """The tokens that begin between two characters."""
        return slice(*(bisect_left(self.spans, place, key=lambda span: span[0]) for place in (first, last)))

    def of(self, begin: int, tokens: slice) -> tuple[list[int], Spans]:
        """Ids of some tokens, and their characters counted from `begin`."""
        return self.ids[tokens], [(first - begin, last - begin) for first, last in self.spans[tokens]]


def _window(text: str, first: int, last: int, tokenizer: Any) -> _Window:
    made = tokenizer(text[first:last], add_special_tokens=False, return_offsets_mapping=True)
    spans = [(first + begin, first + end) for begin, end in made["offset_mapping"]]
    return _Window(first, min(last, len(text)), made["input_ids"], spans)


def _pieces(text: str, tokenizer: Any) -> Iterator[Piece]:
    """A long document's pieces, cut where the text before and the text after encode their overlap alike.

    Where the two encodings differ (a tokenizer that looks far, a very long run of one letter), the piece grows to the
    next candidate cut, at most to the end of the text.
    """
    if not getattr(tokenizer, "is_fast", False):  # without offsets no cut can be checked
        warnings.warn(
            f"a document of {len(text):,} characters is encoded whole, which takes much memory: "
            f"{type(tokenizer).__name__} cannot tell where its tokens begin. Cut it, or use a fast tokenizer.",
            stacklevel=2,
        )
        yield text, tokenizer([text], add_special_tokens=False)["input_ids"][0], None
        return
    begin, size = 0, PIECE
    window = _window(text, 0, size, tokenizer)
    while window.last < len(text):
        following = _window(text, window.last - OVERLAP, window.last + PIECE, tokenizer)
        place = _agreed(window, following)
        if place is None:
            size *= 2
            window = _window(text, window.first, window.first + size, tokenizer)
            continue
        yield text[begin:place], *window.of(begin, window.between(begin, place))
        begin, window, size = place, following, PIECE
    yield text[begin:], *window.of(begin, window.between(begin, len(text)) if begin else slice(None))


def _agreed(left: _Window, right: _Window) -> int | None:
    """The character near the middle of the overlap at which both encodings agree; None where they differ."""
    first, last = right.first + OVERLAP // 4, left.last - OVERLAP // 4
    mine, theirs = (
        list(zip(each.ids[part], each.spans[part], strict=True))
        for each in (left, right)
        for part in [each.between(first, last)]
    )
    ordered = all(a[0] <= b[0] for each in (left, right) for a, b in pairwise(each.spans))
    starts = [span[0] for _, span in mine if span[0] >= (first + last) // 2]
    return starts[0] if mine == theirs and ordered and starts else None
