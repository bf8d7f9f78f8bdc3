"""Documents to tokens to a deterministic plan of batches, cut into shards.

The tokens of each language go to a flat file once, so that counts and budgets are known before the
first forward pass and memory does not grow with the text. A shard is a run of batches of one language.
"""

import contextlib
import errno
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from lsn_lens.token_bytes import TokenBytes

PAPER_FIND_TOKENS = 99_999_744  # a language, to find neurons (LAPE, released code)
PAPER_EVALUATION_TOKENS = 1_048_576  # a language, to measure perplexity (LAPE, released code)


@dataclass(frozen=True)
class Layout:
    """How text becomes batches.

    Attributes:
        kind: "blocks": the documents of a language follow each other in one stream, cut into whole
            blocks of equal length, the rest dropped, no padding (as LAPE does). "documents": one row a
            document, padded on the right; pads are not counted.
        length: Tokens of a block, or the most that a document may have. By default the model's context
            for documents; for blocks too, halved down to 128 while that gives fewer blocks than `shards`.
        separator: What each document begins with: the tokenizer's "bos" (its "eos" where it has none), "eos",
            or "none" (LAPE's released scripts add nothing). Blocks get nothing in front.
        max_tokens: Cap for each language, for example `PAPER_FIND_TOKENS`; None takes all. Blocks stay within it;
            documents are taken whole, until one reaches it.
        equal: The same number of tokens (blocks) or documents for each language: what the smallest has.
        batch_tokens: About how many tokens go through the model at once.
        shards: Parts that each language's batches are cut into, where the text allows: what a resumed run
            keeps, what processes share, what a bootstrap draws from.
    """

    kind: Literal["blocks", "documents"] = "blocks"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    equal: bool = True
    batch_tokens: int = 4096
    shards: int = 16

    def __post_init__(self) -> None:
        for name, choices in (("kind", ("blocks", "documents")), ("separator", ("bos", "eos", "none"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {choices}.")
        for name in ("length", "max_tokens", "batch_tokens", "shards"):
            value = getattr(self, name)
            if value is None and name in ("length", "max_tokens"):
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1.")


@dataclass(frozen=True)
class Tokens:
    """One language's tokens on disk: ids one after the other, and where each document ends.

    `bytes_path`, where they were counted, is a file of the bytes of text that each token stands for (`token_bytes`).
    """

    language: str
    path: Path
    ends: Int[np.ndarray, "document"]
    n_bytes: int
    sha256: str
    skipped: Mapping[str, int] = field(default_factory=dict)
    bytes_path: Path | None = None

    @property
    def n_tokens(self) -> int:
        """All tokens, separators included."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, first: int, last: int) -> Int[Tensor, "token"]:
        """Ids `first` to `last`, read from the file."""
        return _read(self.path, first, last)

    def read_byte_counts(self, first: int, last: int) -> Int[Tensor, "token"] | None:
        """Bytes of text that the tokens `first` to `last` stand for; None where they were not counted."""
        return None if self.bytes_path is None else _read(self.bytes_path, first, last)

    def document_of(self, position: int) -> int:
        """The document that a token of the stream belongs to."""
        return int(np.searchsorted(self.ends, position, side="right"))


def _read(path: Path, first: int, last: int) -> Int[Tensor, "token"]:
    numbers = np.fromfile(path, dtype=np.int32, count=last - first, offset=4 * first)
    return torch.from_numpy(numbers.astype(np.int64))


def separator_id(tokenizer: Any, separator: str) -> int | None:
    """The id that a document begins with; None for "none".

    Raises:
        ValueError: The tokenizer has no such token.
    """
    if separator == "none":
        return None
    ids = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    chosen = ids["eos"] if ids[separator] is None else ids[separator]
    if chosen is None:
        raise ValueError(f"the tokenizer has no {separator!r} token; use separator='none'.")
    return chosen


def tokenize(
    language: str,
    documents: Iterable[str],
    tokenizer: Any,
    folder: Path,
    *,
    separator: str = "bos",
    max_tokens: int | None = None,
    d_vocab: int | None = None,
    count_bytes: bool = False,
    progress: bool = True,
) -> Tokens:
    """Write a language's tokens to a file in `folder`, a few documents at a time; `count_bytes` of each, too.

    Raises:
        ValueError: No text, or a token id that the model does not have.
        OSError: The disk is full.
    """
    start = separator_id(tokenizer, separator)
    front = [] if start is None else [start]
    ends, total, n_bytes, digest, without_tokens = array("q"), 0, 0, hashlib.sha256(), 0
    path = folder / f"{len(list(folder.glob('*.tokens')))}.tokens"
    bytes_path = path.with_suffix(".bytes") if count_bytes else None
    counts = contextlib.nullcontext() if bytes_path is None else _written(bytes_path, language)
    bar = tqdm(desc=f"tokens {language}", unit="tok", unit_scale=True, leave=False, disable=not progress)
    with bar, _written(path, language) as file, counts as beside:
        for text, ids, numbers in _encoded(documents, tokenizer, count_bytes):
            row = np.array(front + ids, dtype=np.int32)
            if not len(row):
                without_tokens += 1
                continue
            if d_vocab is not None and int(row.max()) >= d_vocab:
                raise ValueError(
                    f"{language}: the tokenizer gives id {int(row.max())}, but the model knows {d_vocab} tokens. "
                    "Tokenizer and model do not belong together."
                )
            file.write(row.tobytes())
            if beside is not None:
                beside.write(np.append(np.zeros(len(front), dtype=np.int32), numbers).astype(np.int32).tobytes())
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
            total, n_bytes = total + len(row), n_bytes + len(encoded)
            ends.append(total)
            bar.update(len(row))
            if max_tokens is not None and total >= max_tokens:
                break
    skipped = Counter(getattr(documents, "skipped", {})) + Counter({"no tokens": without_tokens})
    if not ends:
        left_out = f" Records left out: {dict(skipped)}." if skipped else ""
        raise ValueError(
            f"{language}: no text. The source has no readable, non-empty document for this part.{left_out}"
        )
    places = np.array(ends, dtype=np.int64)
    return Tokens(language, path, places, n_bytes, digest.hexdigest(), dict(skipped), bytes_path)


def _encoded(documents: Iterable[str], tokenizer: Any, count_bytes: bool) -> Iterator[tuple[str, list[int], Any]]:
    """Each document, its tokens and, where asked for, the bytes that each of these stands for."""
    stream = iter(documents)
    counter = TokenBytes(tokenizer) if count_bytes else None
    given = {"return_offsets_mapping": True} if counter is not None and counter.has_offsets else {}
    while texts := list(islice(stream, 256)):
        encoded = tokenizer(texts, add_special_tokens=False, **given)
        every = encoded["offset_mapping"] if given else [None] * len(texts)
        for text, ids, offsets in zip(texts, encoded["input_ids"], every, strict=True):
            yield text, ids, () if counter is None else counter.of(text, ids, offsets)


@contextlib.contextmanager
def _written(path: Path, language: str) -> Iterator[BinaryIO]:
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} while writing the tokens of {language}. Make room, or set TMPDIR to a folder with room",
            str(path),
        ) from error


@dataclass(frozen=True)
class Shard:
    """Rows `first` to `last` (blocks or documents) of one language."""

    language: str
    index: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """For files: `fr-00003`."""
        return f"{self.language}-{self.index:05d}"


@dataclass(frozen=True)
class Batch:
    """Token ids, which of them count, where the rows come from, and the bytes that tokens stand for where counted."""

    ids: Int[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    language: str
    rows: range
    padded: bool
    byte_counts: Int[Tensor, "batch pos"] | None = None


class Plan:
    """Which batches there are, in which shards: a function of the tokens and the layout alone."""

    def __init__(self, tokens: Mapping[str, Tokens], layout: Layout, context: int):
        self.tokens, self.layout = dict(tokens), layout
        self.length = self._length(context)
        available = {label: self._rows(each) for label, each in self.tokens.items()}
        rows = dict.fromkeys(available, min(available.values())) if layout.equal else available
        self.batch_rows = max(1, layout.batch_tokens // self.length)
        self.shards = []
        for label, count in rows.items():
            pieces = min(layout.shards, count)
            edges = [count * piece // pieces for piece in range(pieces + 1)]
            self.shards += [Shard(label, i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
        self.rows = rows

    def _length(self, context: int) -> int:
        length = self.layout.length or context
        if length > context:
            raise ValueError(f"length={length} is beyond the model's context of {context} tokens.")
        if self.layout.kind == "documents":
            sizes = {label: np.diff(each.ends, prepend=0) for label, each in self.tokens.items()}
            label, longest = max(sizes.items(), key=lambda item: item[1].max())
            if longest.max() > length:
                raise ValueError(
                    f"{label}: document {longest.argmax()} has {longest.max()} tokens, more than {length}. "
                    'Cut the documents, or use the layout "blocks".'
                )
            return int(longest.max())
        if self.layout.length is None:
            smallest = min(each.n_tokens for each in self.tokens.values())
            while length > 128 and smallest // length < self.layout.shards:
                length = max(128, length // 2)
        return length

    def _rows(self, tokens: Tokens) -> int:
        if self.layout.kind == "documents":
            return len(tokens.ends)
        rows = min(tokens.n_tokens, self.layout.max_tokens or tokens.n_tokens) // self.length
        if not rows:
            raise ValueError(
                f"{tokens.language}: {tokens.n_tokens} tokens are less than one block of {self.length}. "
                'Give more text, a smaller length, or use the layout "documents".'
            )
        return rows

    def batches(self, shard: Shard) -> Iterator[Batch]:
        """The batches of a shard, in order."""
        for first in range(shard.first, shard.last, self.batch_rows):
            rows = range(first, min(first + self.batch_rows, shard.last))
            yield self._blocks(shard, rows) if self.layout.kind == "blocks" else self._documents(shard, rows)

    def _blocks(self, shard: Shard, rows: range) -> Batch:
        tokens, first, last = self.tokens[shard.language], rows[0] * self.length, (rows[-1] + 1) * self.length
        ids = tokens.read(first, last).view(len(rows), self.length)
        counts = tokens.read_byte_counts(first, last)
        counts = None if counts is None else counts.view_as(ids)
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool), shard.language, rows, False, counts)

    def _documents(self, shard: Shard, rows: range) -> Batch:
        tokens = self.tokens[shard.language]
        edges = [int(tokens.ends[row - 1]) if row else 0 for row in range(rows[0], rows[-1] + 2)]
        sizes = torch.tensor(np.diff(edges))
        keep = torch.arange(int(sizes.max()))[None] < sizes[:, None]
        ids = torch.zeros(keep.shape, dtype=torch.int64)
        ids[keep] = tokens.read(edges[0], edges[-1])
        counts = tokens.read_byte_counts(edges[0], edges[-1])
        counts = None if counts is None else torch.zeros_like(ids).masked_scatter(keep, counts)
        return Batch(ids, keep, shard.language, rows, not bool(keep.all()), counts)

    def tokens_of(self, shard: Shard) -> int:
        """Tokens that count in a shard."""
        if self.layout.kind == "blocks":
            return (shard.last - shard.first) * self.length
        ends = self.tokens[shard.language].ends
        return int(ends[shard.last - 1] - (ends[shard.first - 1] if shard.first else 0))

    def place(self, language: str, row: int) -> str:
        """Says which documents a row holds."""
        if self.layout.kind == "documents":
            return f"document {row}"
        tokens = self.tokens[language]
        first, last = (tokens.document_of(position) for position in (row * self.length, (row + 1) * self.length - 1))
        return f"documents {first} to {last}" if last > first else f"document {first}"

    def describe(self) -> dict[str, Any]:
        """The plan's settings and the text it is made from, as plain data."""
        return {
            "layout": {**asdict(self.layout), "length": self.length},
            "languages": {
                label: {
                    "tokens_used": sum(self.tokens_of(shard) for shard in self.shards if shard.language == label),
                    "tokens": each.n_tokens,
                    "documents": len(each.ends),
                    "bytes": each.n_bytes,
                    "skipped": dict(each.skipped),
                    "sha256": each.sha256,
                }
                for label, each in self.tokens.items()
            },
        }


def corpus_hash(description: Mapping[str, Any]) -> str:
    """One hash for the text of a plan (from `Plan.describe`)."""
    hashes = {label: each["sha256"] for label, each in description["languages"].items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
