"""Excerpts of texts with a unit's values: the strongest of each language and a random sample; parts merge."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens.files import write_bytes

KIND, SCHEMA = "top texts", 1
KINDS = ("top", "random")

Unit = tuple[str, int, int]  # basis, layer, unit
Excerpts = Mapping[Unit, Mapping[str, tuple["Excerpt", ...]]]


@dataclass(frozen=True)
class Excerpt:
    """Some tokens of a row of text (a document or a block), with a unit's values.

    Attributes:
        row: Number of the row in the language's text.
        peak: The unit's value of largest size in the whole row, with its sign.
        first: Place of the first token in the row.
        ids: Tokens.
        values: The unit's value at each token; 0 at separators, which do not count.
    """

    row: int
    peak: float
    first: int
    ids: tuple[int, ...]
    values: tuple[float, ...]


def strength(excerpt: Excerpt) -> tuple[float, int]:
    """The key that sorts excerpts of one language: the strongest row first, of equals the earlier."""
    return -abs(excerpt.peak), excerpt.row


ORDER: Mapping[str, Any] = {"top": strength, "random": lambda each: each.row}


@dataclass(frozen=True)
class TopTexts:
    """The texts on which units are strongest, and random texts, of each language; from `top_texts`.

    Attributes:
        top: Unit `(basis, layer, unit)` -> language -> excerpts around the strongest token, strongest row first.
        random: The same for rows drawn at random, which are the same for all units, around a random token.
        settings: Model, text and options.
        shards: Names of the parts of the text that were read.
    """

    top: Excerpts
    random: Excerpts
    settings: Mapping[str, Any] = field(repr=False)
    shards: tuple[str, ...] = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether the whole text was read."""
        return len(self.shards) == self.settings["shards"]

    def to_frame(self) -> pd.DataFrame:
        """One row per excerpt: basis, layer, unit, kind ("top", "random"), language, rank (from 1), row, peak."""
        rows = [
            (*unit, kind, language, rank, each.row, each.peak)
            for kind in KINDS
            for unit, languages in getattr(self, kind).items()
            for language, some in languages.items()
            for rank, each in enumerate(some, 1)
        ]
        return pd.DataFrame(rows, columns=["basis", "layer", "unit", "kind", "language", "rank", "row", "peak"])

    def save(self, path: Path | str) -> Path:
        """Write one JSON file; returns its path."""
        kinds = {
            kind: [[*unit, {label: [asdict(each) for each in some] for label, some in languages.items()}]
                   for unit, languages in getattr(self, kind).items()]
            for kind in KINDS
        }  # fmt: skip
        content = {"kind": KIND, "schema": SCHEMA, "settings": self.settings, "shards": self.shards, **kinds}
        write_bytes(Path(path), json.dumps(content).encode())
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> "TopTexts":
        """Read a file that `save` wrote.

        Raises:
            ValueError: Another file.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged, or no file of TopTexts.save ({error}).") from error
        known = (stored.get("kind"), stored.get("schema")) if isinstance(stored, dict) else None
        if known != (KIND, SCHEMA):
            raise ValueError(f"{path} holds {known}, expected {(KIND, SCHEMA)}: a file of TopTexts.save.")
        kinds = {
            kind: {
                (basis, layer, unit): {label: tuple(map(_excerpt, some)) for label, some in languages.items()}
                for basis, layer, unit, languages in stored[kind]
            }
            for kind in KINDS
        }
        return cls(kinds["top"], kinds["random"], stored["settings"], tuple(stored["shards"]))


def merge_texts(parts: Iterable[TopTexts]) -> TopTexts:
    """Combine the results of several parts of one text; the order of the parts does not matter.

    Args:
        parts: From `top_texts` with different parts of one text, also from several processes.

    Raises:
        ValueError: No parts, parts of different texts, models, units or options, or a shard that was read twice.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("nothing to merge: expected at least one part.")
    first, shards = parts[0], [name for each in parts for name in each.shards]
    for each in parts[1:]:
        odd = [key for key in first.settings if each.settings.get(key) != first.settings[key]]
        if odd or list(each.top) != list(first.top):
            raise ValueError(f"parts differ in {', '.join(odd) or 'their units'}: call top_texts with equal arguments.")
    if len(set(shards)) < len(shards):
        twice = sorted({name for name in shards if shards.count(name) > 1})
        raise ValueError(f"{len(twice)} shards are in several parts ({twice[0]} ...): give each part once.")
    most = {"top": first.settings["top"], "random": None}
    kinds = {
        kind: {
            unit: {
                label: tuple(sorted(_joined(parts, kind, unit, label), key=ORDER[kind])[: most[kind]])
                for label in first.settings["languages"]
            }
            for unit in first.top
        }
        for kind in KINDS
    }
    return TopTexts(kinds["top"], kinds["random"], first.settings, tuple(sorted(shards)))


def _joined(parts: Iterable[TopTexts], kind: str, unit: Unit, label: str) -> list[Excerpt]:
    return [excerpt for each in parts for excerpt in getattr(each, kind)[unit][label]]


def _excerpt(stored: Mapping[str, Any]) -> Excerpt:
    return Excerpt(**{**stored, "ids": tuple(stored["ids"]), "values": tuple(stored["values"])})
