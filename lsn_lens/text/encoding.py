"""Documents to token ids, in pieces that do not change the ids: memory does not grow with the longest document."""

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PIECE = 1 << 17  # characters that are encoded at once: a tokenizer takes about 150 bytes for each
OVERLAP = 2048  # characters that two neighbouring pieces encode both; in its middle half they must agree
TOGETHER = 256  # documents that are encoded at once

Spans = list[tuple[int, int]]
Piece = tuple[str, list[int], Spans | None]


def encoded(
    documents: Iterable[str], tokenizer: Any, *, with_offsets: bool = False
) -> Iterator[tuple[str, Iterator[Piece]]]:
    """Each document with its pieces, one after the other without a gap, made when asked for.

    A piece is its text, its ids and, where asked for and the tokenizer can tell, the characters of each.
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
    """The tokens of a stretch of a text: ids, and the characters that each begins and ends at in the whole text."""

    first: int
    last: int
    ids: list[int]
    spans: list[tuple[int, int]]

    def between(self, first: int, last: int) -> slice:
        """The tokens that begin in a stretch."""
        return slice(*(bisect_left(self.spans, place, key=lambda span: span[0]) for place in (first, last)))

    def of(self, begin: int, tokens: slice) -> tuple[list[int], Spans]:
        """Ids and characters of some tokens, counted from a place."""
        return self.ids[tokens], [(first - begin, last - begin) for first, last in self.spans[tokens]]


def _window(text: str, first: int, last: int, tokenizer: Any) -> _Window:
    made = tokenizer(text[first:last], add_special_tokens=False, return_offsets_mapping=True)
    spans = [(first + begin, first + end) for begin, end in made["offset_mapping"]]
    return _Window(first, min(last, len(text)), made["input_ids"], spans)


def _pieces(text: str, tokenizer: Any) -> Iterator[Piece]:
    """A long document's pieces, cut where what comes before and what comes after encode the same overlap alike.

    Where they do not (a tokenizer that looks far, a very long run of one letter), the piece grows and the next
    place is tried, at last the end of the text.
    """
    if not getattr(tokenizer, "is_fast", False):  # it cannot tell where its tokens begin, so no cut could be checked
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
    """The character in the middle of the overlap where one can be left for the other; None where they disagree."""
    first, last = right.first + OVERLAP // 4, left.last - OVERLAP // 4
    mine, theirs = (
        list(zip(each.ids[part], each.spans[part], strict=True))
        for each in (left, right)
        for part in [each.between(first, last)]
    )
    ordered = all(a[0] <= b[0] for each in (left, right) for a, b in pairwise(each.spans))
    starts = [span[0] for _, span in mine if span[0] >= (first + last) // 2]
    return starts[0] if mine == theirs and ordered and starts else None
