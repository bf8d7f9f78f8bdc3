"""Records to documents in two parts, one to find units with and one to measure with."""

import hashlib
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from lsn_lens.text.readers import BROKEN_TEXT, HAS_NUL, SAMPLE, Unreadable, refuse_broken

SHOWN = 60  # characters of a text
BROKEN_SHARE = 0.01  # of records that are not UTF-8, from which on what is left would be a biased sample
IN_BOTH, REPEATED, KEPT = "also in the other part", "repeated", "kept, also in the other part"


@dataclass
class Records:
    """A text source that can be read again and again: one entry a record, None where unusable.

    Every reading must give the same records in the same order, as parts are told by position: what was read is kept
    as one hash a record, and another reading is compared with it.

    Attributes:
        name: Where the text comes from.
        read: Begins a reading.
        is_finite: Whether it can be read to its end before it is used; a stream cannot.
        in_memory: Whether reading it costs nothing.
        skipped: For the latest reading, why records were left out, with how many.
    """

    name: str
    read: Callable[[], Iterable[Any]]
    is_finite: bool = False
    in_memory: bool = False
    skipped: Counter[str] = field(default_factory=Counter, compare=False)
    _hashes: Any = field(default_factory=lambda: array("Q"), init=False, compare=False, repr=False)
    _is_whole: bool = field(default=False, init=False, compare=False, repr=False)
    _broken: bytes = field(default=b"", init=False, compare=False, repr=False)
    _seen: int = field(default=0, init=False, compare=False, repr=False)

    def __iter__(self) -> Iterator[str | None]:
        for text, _ in self.hashed():
            yield text

    def hashed(self) -> Iterator[tuple[str | None, int]]:
        """Each record with a hash of its text, 0 where unusable.

        Raises:
            ValueError: Another reading gave something else, or too much is not UTF-8.
        """
        self.skipped.clear()
        self._broken, self._seen = b"", 0
        position = -1
        for position, record in enumerate(self.read()):
            reason = _why_not(record)
            self._seen += reason != "empty"
            if reason is not None:
                self.skipped[reason] += 1
                if reason in BROKEN_TEXT and len(self._broken) < SAMPLE:
                    self._broken += record.raw if isinstance(record, Unreadable) else record.encode()
            usable = record if reason is None and isinstance(record, str) else None
            number = 0 if usable is None else _hash(usable.strip())
            self._compare(position, number)
            yield usable, number
        if position + 1 < len(self._hashes):
            raise ValueError(self._other(position + 1, "nothing more"))
        self._is_whole = True
        self.check()

    @property
    def was_read(self) -> bool:
        """Whether it has been read to its end."""
        return self._is_whole

    def hashes(self) -> Sequence[int]:
        """All records' hashes, by a reading to the end unless there was one."""
        if not self._is_whole:
            for _ in self.hashed():
                pass
        return self._hashes

    def _compare(self, position: int, number: int) -> None:
        if position == len(self._hashes):
            self._hashes.append(number)
        elif self._hashes[position] != number:
            raise ValueError(self._other(position, "another text"))

    def _other(self, position: int, what: str) -> str:
        return (
            f"{self.name} gave {what} as record {position} when it was read again. The parts to find units with and to "
            "measure with are told by position, so the source must give the same records in the same order each time: "
            "fix its order (or its seed), or give its texts as a list."
        )

    def check(self) -> None:
        """Refuse a source of which more than a little was not UTF-8 at the latest reading, as far as it went."""
        broken = {reason: self.skipped[reason] for reason in BROKEN_TEXT if self.skipped[reason]}
        count = sum(broken.values())
        if count and (count == self._seen or (count > 1 and count > BROKEN_SHARE * self._seen)):
            refuse_broken(self.name, broken, self._seen, self._broken)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _why_not(record: Any) -> str | None:
    if isinstance(record, Unreadable):
        return record.reason
    if not isinstance(record, str):
        return f"not text but {type(record).__name__}"
    if not record.strip():
        return "empty"
    if "\0" in record:
        return HAS_NUL
    try:
        record.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return "not valid Unicode"
    return None


@dataclass(frozen=True)
class Documents:
    """The documents of one part of a source, in order; iterate as often as you like.

    Record `i` is held out when `floor((i + 1) * fraction) > floor(i * fraction)`: evenly spread,
    independent of the content, so the parts of parallel files stay aligned.

    No text is in both parts, and none is twice in the part to measure with: from that one are left out repeated
    texts, and those that the other part has too. The part to find with keeps its repetitions and counts them. A
    stream cannot be looked through beforehand: there a text belongs to the part that it comes up in first. Where all
    texts to measure with are also texts to find with, nothing can be held out: they are kept, with a warning.

    Attributes:
        records: The source.
        fraction: Share that is held out, where one source has both parts.
        held_out: Which of its two parts this is.
        other: The source of the part to find with, where the two parts are two sources.
    """

    records: Records
    fraction: float = 0.0
    held_out: bool = False
    other: Records | None = None
    _left_out: Counter[str] = field(default_factory=Counter, init=False, compare=False, repr=False)

    def __iter__(self) -> Iterator[str]:
        measured = self.held_out or self.other is not None
        find = self._find_hashes() if measured else set[int]()
        held = set[int]()
        self._left_out.clear()
        if find and self._has_no_text_but(find):
            warnings.warn(
                f"{self.records.name}: every text to measure with is also a text to find units with, so nothing is "
                "held out. All are kept, and effects are measured on the text that units were found on. Give more, "
                "different texts.",
                stacklevel=2,
            )
            for place, text in enumerate(self.records):
                if text and self._is_mine(place):
                    self._left_out[KEPT] += 1
                    yield text
            return
        for position, (text, number) in enumerate(self.records.hashed()):
            if text is None:
                continue
            mine, theirs = (held, find) if measured else (find, held)
            if not self._is_mine(position):
                if not self.records.is_finite and number not in mine:
                    theirs.add(number)
                continue
            reason = IN_BOTH if number in theirs else REPEATED if number in mine else ""
            mine.add(number)
            self._left_out[reason] += 1
            if not reason or (reason == REPEATED and not measured):
                yield text

    def __len__(self) -> int:
        """How many documents iterating gives; the source is read to its end unless it has been.

        Raises:
            TypeError: It is a stream.
        """
        if not self.records.is_finite:
            raise TypeError(f"{self.records.name} is a stream: how many documents it has is not known.")
        mine = [number for place, number in enumerate(self.records.hashes()) if number and self._is_mine(place)]
        fresh = set(mine) - self._find_hashes() if self.held_out or self.other is not None else set()
        return len(fresh) or len(mine)

    def __getitem__(self, place: int) -> str:
        """A document by its number from 0 (from the end, if negative), read up to there."""
        wanted = place if place >= 0 else place + len(self)
        for number, text in enumerate(self):
            if number == wanted:
                return text
        raise IndexError(f"there is no document {place} in {self.records.name}.")

    def _is_mine(self, position: int) -> bool:
        return self._is_held_out(position) == self.held_out

    def _has_no_text_but(self, find: set[int]) -> bool:
        """Whether this part, to measure with, has nothing that the part to find with has not."""
        if not self.records.is_finite:
            return False
        mine = {number for place, number in enumerate(self.records.hashes()) if number and self._is_mine(place)}
        return bool(mine) and mine <= find

    def _is_held_out(self, position: int) -> bool:
        return int((position + 1) * self.fraction) > int(position * self.fraction)

    def _find_hashes(self) -> set[int]:
        """What the part to find with holds, where its source has an end."""
        source = self.records if self.other is None else self.other
        if not source.is_finite:
            return set()
        return {
            number
            for position, number in enumerate(source.hashes())
            if number and (self.other is not None or not self._is_held_out(position))
        }

    @property
    def is_counted(self) -> bool:
        """Whether `len` needs no reading of files."""
        sources = [self.records, *([] if self.other is None else [self.other])]
        return all(each.in_memory or each.was_read for each in sources)

    def check(self) -> None:
        """Refuse a source of which more than a little was not UTF-8 at the latest reading, as far as it went."""
        self.records.check()

    @property
    def repeated(self) -> int:
        """Documents of this part that repeat another one of it, and were kept, at its latest reading."""
        return 0 if self.held_out or self.other is not None else self._left_out[REPEATED]

    @property
    def shared(self) -> int:
        """Documents of this part that the part to find with has too, and were kept, at its latest reading."""
        return self._left_out[KEPT]

    @property
    def skipped(self) -> dict[str, int]:
        """Records left out at the latest reading of the source, by reason."""
        mine = {IN_BOTH: self._left_out[IN_BOTH], REPEATED: self._left_out[REPEATED] - self.repeated}
        return dict(self.records.skipped) | {reason: count for reason, count in mine.items() if count}


@dataclass(frozen=True)
class LanguageCorpus:
    """One language's text, in two parts: `find` to detect units with, `hold_out` to measure with."""

    language: str
    find: Documents
    hold_out: Documents

    @property
    def source(self) -> str:
        """Where the text comes from."""
        return self.find.records.name

    def summary(self) -> dict[str, Any]:
        """Where it comes from, how many documents its parts have (None: not known without reading), the first text."""
        records, parts = self.find.records, {"find": self.find, "hold_out": self.hold_out}
        counts = {name: len(each) if each.is_counted else None for name, each in parts.items()}
        again = replace(records, skipped=Counter())  # so that what the latest reading said is kept
        first = next((text for text in again if text), "") if records.is_finite else ""
        return {"source": self.source, **counts, "first": first if len(first) <= SHOWN else f"{first[:SHOWN]}..."}

    def __repr__(self) -> str:
        told = self.summary()
        count = "" if told["find"] is None else f": {told['find']} documents, {told['hold_out']} held out"
        first = f", {told['first']!r}" if told["first"] else ""
        return f"LanguageCorpus({self.language!r} from {self.source}{count}{first})"


class Corpora(dict[str, LanguageCorpus]):
    """Corpora by language: a dictionary that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = {label: each.summary() for label, each in self.items()}
        return pd.DataFrame.from_dict(rows, orient="index").fillna("not counted").to_html()
