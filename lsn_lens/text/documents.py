"""Split records into two parts of documents: `find` to detect units, `hold_out` to measure effects."""

import warnings
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import islice
from typing import Any, overload

from lsn_lens import sketches
from lsn_lens.text.records import Records
from lsn_lens.text.scripts import script_of

SHOWN = 60  # characters shown of a text
SAMPLED = 20  # texts whose letters a notebook shows by script
IN_BOTH, REPEATED, KEPT = "also in the other part", "repeated", "kept, also in the other part"


@dataclass(frozen=True)
class Documents:
    """The documents of one part of a source, in order; iterate as often as you like.

    Record `i` is held out when `floor((i + 1) * fraction) > floor(i * fraction)`: evenly spread,
    independent of the content, so the parts of parallel files stay aligned.

    No text is in both parts, and no text is twice in the hold-out part: it leaves out repeated texts and texts that
    the find part has too. The find part keeps its repetitions and counts them. A stream cannot be searched
    beforehand: there, a text belongs to the part in which it appears first. If every hold-out text is also a find
    text, nothing can be held out: all texts are kept, with a warning.

    Attributes:
        records: The source.
        fraction: Share of records held out, where one source gives both parts.
        held_out: Whether this is the hold-out part.
        other: The source of the find part, where the two parts are two sources.
    """

    records: Records
    fraction: float = 0.0
    held_out: bool = False
    other: Records | None = None
    _left_out: Counter[str] = field(default_factory=Counter, init=False, compare=False, repr=False)
    _places: Any = field(default_factory=lambda: array("q"), init=False, compare=False, repr=False)

    def __iter__(self) -> Iterator[str]:
        measured = self.held_out or self.other is not None
        find = self._find_hashes() if measured else set[int]()
        held = set[int]()
        self._left_out.clear()
        del self._places[:]
        if find and self._has_no_text_but(find):
            warnings.warn(
                f"{self.records.name}: every hold-out text is also a text to find units with, so nothing is "
                "held out. All are kept, and effects are measured on the text that units were found on. Give more, "
                "different texts.",
                stacklevel=2,
            )
            for place, text in enumerate(self.records):
                if text and self._is_mine(place):
                    self._left_out[KEPT] += 1
                    self._places.append(place)
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
                self._places.append(position)
                yield text

    def __len__(self) -> int:
        """Number of documents; the source is read to its end unless that was done before.

        Raises:
            TypeError: The source is a stream.
        """
        if not self.records.is_finite:
            raise TypeError(f"{self.records.name} is a stream: its number of documents is unknown.")
        mine = [number for place, number in enumerate(self.records.hashes()) if number and self._is_mine(place)]
        fresh = set(mine) - self._find_hashes() if self.held_out or self.other is not None else set()
        return len(fresh) or len(mine)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The document with this index (negative: from the end), or those of a slice; reads no further than needed."""
        if isinstance(place, slice):
            ahead = place.stop is not None and min(place.start or 0, place.stop, place.step or 1) >= 0
            texts = self if ahead or len(self) else ()  # len refuses a stream
            return [*islice(texts, place.start, place.stop, place.step)] if ahead else [*texts][place]
        wanted = place if place >= 0 else place + len(self)
        for number, text in enumerate(self):
            if number == wanted:
                return text
        raise IndexError(f"there is no document {place} in {self.records.name}.")

    def __repr__(self) -> str:
        part = "hold_out" if self.held_out or self.other is not None else "find"
        return f"Documents({part} of {self.records.name}{f': {len(self):,}' if self.is_counted else ''})"

    def _is_mine(self, position: int) -> bool:
        return self._is_held_out(position) == self.held_out

    def _has_no_text_but(self, find: set[int]) -> bool:
        """Whether this hold-out part has no text that the find part lacks."""
        if not self.records.is_finite:
            return False
        mine = {number for place, number in enumerate(self.records.hashes()) if number and self._is_mine(place)}
        return bool(mine) and mine <= find

    def _is_held_out(self, position: int) -> bool:
        return int((position + 1) * self.fraction) > int(position * self.fraction)

    def _find_hashes(self) -> set[int]:
        """Hashes of the find part's texts; empty for a stream."""
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
        """Whether `len` works without reading files."""
        return all(x.is_finite and (x.in_memory or x.was_read) for x in (self.records, self.other or self.records))

    def check(self) -> None:
        """Refuse a source of which more than a little was not UTF-8 at the latest reading, as far as it went."""
        self.records.check()

    @property
    def places(self) -> Sequence[int]:
        """The record that each document of the latest reading was, from 0, as far as that reading went."""
        return self._places

    @property
    def repeated(self) -> int:
        """Documents kept at the latest reading that repeat another document of this part."""
        return 0 if self.held_out or self.other is not None else self._left_out[REPEATED]

    @property
    def shared(self) -> int:
        """Documents kept at the latest reading that are in the find part too."""
        return self._left_out[KEPT]

    @property
    def skipped(self) -> dict[str, int]:
        """Records left out at the latest reading of the source, by reason."""
        mine = {IN_BOTH: self._left_out[IN_BOTH], REPEATED: self._left_out[REPEATED] - self.repeated}
        return dict(self.records.skipped) | {reason: count for reason, count in mine.items() if count}


@dataclass(frozen=True)
class LanguageCorpus:
    """One language's text in two parts: `find` to detect units, `hold_out` to measure effects."""

    language: str
    find: Documents
    hold_out: Documents

    @property
    def source(self) -> str:
        """The name of the text's source."""
        return self.find.records.name

    def summary(self) -> dict[str, Any]:
        """The source, the number of documents per part (None: unknown without reading), and the first text."""
        parts = {"find": self.find, "hold_out": self.hold_out}
        counts = {name: len(each) if each.is_counted else None for name, each in parts.items()}
        first = next(iter(self._first_texts(1)), "")
        return {"source": self.source, **counts, "first": first if len(first) <= SHOWN else f"{first[:SHOWN]}..."}

    def __repr__(self) -> str:
        told = self.summary()
        held = "" if told["hold_out"] is None else f", {told['hold_out']} held out"
        count = "" if told["find"] is None else f": {told['find']} documents{held}"
        first = f", {told['first']!r}" if told["first"] else ""
        return f"LanguageCorpus({self.language!r} from {self.source}{count}{first})"

    def _repr_html_(self) -> str:
        """Documents of each part, as far as counted, and the scripts of the first texts; a stream is not read."""
        told, texts = self.summary(), self._first_texts(SAMPLED)
        letters = Counter(script for text in texts for script in map(script_of, text) if script)
        shares = {script.capitalize(): count / letters.total() for script, count in letters.most_common()}
        counts = sketches.bars({name: told[name] for name in ("find", "hold_out")}, "documents of each part")
        read = f"{len(texts)} texts" if len(texts) > 1 else "text"
        scripts = sketches.bars(shares, f"share of the letters by script, in the first {read} of the source")
        head = f"<p><b>LanguageCorpus</b> {escape(self.language)} from {escape(self.source)}</p>"
        return f"{head}{counts or '<p>documents not counted</p>'}{scripts}<p>{escape(told['first'])}</p>"

    def _first_texts(self, count: int) -> list[str]:
        """The first usable texts of the source; none of a stream, which may be far away."""
        records = replace(self.find.records, skipped=Counter())  # a copy: the latest reading's reasons are kept
        return [*islice((text for text in records if text), count)] if records.is_finite else []
