"""A source of text that can be read again: one entry per record, the same each time."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsn_lens.text.readers import BROKEN_TEXT, HAS_NUL, SAMPLE, Unreadable, refuse_broken

BROKEN_SHARE = 0.01  # share of records that are not UTF-8; above it, the remaining records would be a biased sample


@dataclass
class Records:
    """A text source that can be read repeatedly: one entry per record, None for an unusable record.

    Every reading must give the same records in the same order, since a record's position decides its part. One hash
    per record is kept, and later readings are compared with these hashes.

    Attributes:
        name: The name of the source.
        read: Starts a new reading.
        is_finite: Whether the source can be read to its end before use; a stream cannot.
        in_memory: Whether the records are in memory, so that reading costs nothing.
        skipped: Reason -> number of records left out at the latest reading.
    """

    name: str
    read: Callable[[], Iterable[Any]] = field(repr=False)
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
        """Each record with a hash of its text; the hash is 0 for an unusable record.

        Raises:
            ValueError: An earlier reading gave other records, or too many records are not UTF-8.
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
        """Whether the source has been read to its end."""
        return self._is_whole

    def hashes(self) -> Sequence[int]:
        """The hashes of all records; reads the source to its end unless that was done before."""
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
            f"{self.name} gave {what} as record {position} when it was read again. A record's position decides "
            "whether it is held out, so the source must give the same records in the same order each time: "
            "fix its order (or its seed), or give its texts as a list."
        )

    def check(self) -> None:
        """Refuse a source with too many records that are not UTF-8 among those of the latest reading."""
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
