"""Make a deterministic plan of batches from tokens, cut into shards: consecutive batches of one language."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lsn_lens.files import whole_number
from lsn_lens.refusal import DoesNotApply, check_kind
from lsn_lens.text.blocks import cut
from lsn_lens.text.tokens import Tokens

PAPER_FIND_TOKENS = 99_999_744  # per language, to find neurons (LAPE, released code)
PAPER_EVALUATION_TOKENS = 1_048_576  # per language, to measure perplexity (LAPE, released code)
LONGEST_ROW = 2048  # tokens per row at most, unless `length` is given: logits and attention grow with the row
KINDS = ("blocks", "documents", "auto")


def layout_of(given: Any, default: "Layout") -> "Layout":
    """The layout given, or for None the default; what is no layout is refused."""
    check_kind("layout", given, Layout | None, 'a layout, as lsn.Layout(kind="documents", length=128)')
    return default if given is None else given


@dataclass(frozen=True)
class Layout:
    """How text is cut into batches.

    Attributes:
        kind: "blocks": the documents of a language are joined into one stream and cut into blocks of equal length;
            the rest is dropped, without padding (as LAPE does). "documents": one row per document, padded on the
            right; pads are not counted. "auto": "documents" if every document of every language fits `length`,
            else "blocks".
        length: Tokens per block, or the maximum per document. By default the model's context, at most
            2,048; for blocks also at most `batch_tokens`, halved down to 128 while there are fewer blocks than
            `shards`. The same on every device.
        separator: The token in front of each document: the tokenizer's "bos" (its "eos" if it has no BOS), "eos",
            or "none" (LAPE's released scripts add nothing).
        max_tokens: Maximum tokens per language, for example `PAPER_FIND_TOKENS`; None takes all. Blocks stay within
            it; documents are taken whole, until one reaches it.
        equal: Take the same number of tokens (blocks) or documents per language: that of the smallest language.
        batch_tokens: Tokens per forward pass, approximately: as many rows as fit, at least one.
        shards: Number of parts per language, where the text allows. Shards are the unit of a resumed run, of
            sharing between processes, and of the bootstrap.
        bos: Whether each block begins with the BOS, a block within a document too; `length` includes it. Like a
            separator it counts as a token in statistics, and is never scored. None: if the tokenizer begins each text
            with its BOS by itself (as those of Gemma and Llama do), unless `separator` is another. Rows that are
            documents begin with the separator.
    """

    kind: Literal["blocks", "documents", "auto"] = "blocks"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    equal: bool = True
    batch_tokens: int = 4096
    shards: int = 16
    bos: bool | None = None

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("separator", ("bos", "eos", "none"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {choices}.")
        if not (self.bos is None or isinstance(self.bos, bool)):
            raise ValueError(f"bos={self.bos!r}: expected True, False or None.")
        if self.bos and self.separator != "bos" and self.kind != "blocks":
            raise ValueError(
                f"bos=True with separator={self.separator!r}: a document begins with its separator alone. Use "
                'separator="bos", or kind="blocks".'
            )
        for name in ("length", "max_tokens", "batch_tokens", "shards"):
            value = getattr(self, name)
            if value is None and name in ("length", "max_tokens"):
                continue
            object.__setattr__(self, name, whole_number(value, name, least=1))


def row_limit(layout: Layout, context: int | None) -> int:
    """The maximum tokens per row: `length`, or a default that does not depend on the text or the device.

    Raises:
        ValueError: A length beyond the model's context.
    """
    known = context if context is not None and context > 0 else None  # None or 0: no limit, or none named
    if layout.length is None:
        usual = LONGEST_ROW if known is None else min(known, LONGEST_ROW)
        return min(usual, layout.batch_tokens) if layout.kind == "blocks" else usual
    if known is not None and layout.length > known:
        raise ValueError(f"length={layout.length} is beyond the model's context of {known} tokens.")
    return layout.length


def tokens_at_once(layout: Layout, context: int | None) -> int:
    """The maximum tokens per forward pass, pads included, in a plan of this layout."""
    row = row_limit(layout, context)
    if layout.kind == "blocks" and layout.length is not None:
        return max(layout.batch_tokens // row, 1) * row
    return max(layout.batch_tokens, row)  # rows may turn out shorter


@dataclass(frozen=True)
class Shard:
    """Rows `first` to `last` (blocks or documents) of one language."""

    language: str
    index: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """The shard's name in files, such as `fr-00003`."""
        return f"{self.language}-{self.index:05d}"


@dataclass(frozen=True)
class Batch:
    """Token ids, the mask of tokens that count, the origin of the rows, and bytes per token where counted."""

    ids: Int[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    language: str
    rows: range
    padded: bool
    byte_counts: Int[Tensor, "batch pos"] | None = None


def row_ranges(sizes: Sequence[int] | np.ndarray, most: int, border: int | None = None) -> Iterator[range]:
    """Ranges of up to `most` consecutive rows; rows of up to `border` tokens are never together with longer rows."""
    beyond = np.asarray(sizes) > (np.inf if border is None else border)
    turns = (np.flatnonzero(np.diff(beyond)) + 1).tolist()
    for first, last in pairwise([0, *turns, len(beyond)]):
        yield from (range(start, min(start + most, last)) for start in range(first, last, most))


class Plan:
    """The batches and shards of a run: a function of the tokens, the layout and the model alone.

    Args:
        tokens: From `tokenize`, by language.
        layout: How tokens become rows; "auto" is decided here, and the attribute `layout` has the decision.
        context: The model's context; None or 0 for a model without a limit.
        at_once: Tokens per forward pass, fewer than `layout.batch_tokens`. It changes the batches, never a row.
        border: Longer rows are batched separately; see `structure.position_border`.
    """

    def __init__(
        self,
        tokens: Mapping[str, Tokens],
        layout: Layout,
        context: int | None,
        at_once: int | None = None,
        border: int | None = None,
    ):
        self.tokens, self.context, self.border = dict(tokens), context, border
        self.too_long = self._too_long(row_limit(layout, context))
        if layout.kind == "auto":
            layout = replace(layout, kind="blocks" if self.too_long else "documents")
        front = next(iter(self.tokens.values())).front if layout.kind == "blocks" else None
        self.layout = replace(layout, bos=front is not None if layout.kind == "blocks" else None)
        self.length = self._block() if layout.kind == "blocks" else self._longest()
        blocks = self.tokens if layout.kind == "blocks" else {}
        self.blocks = {label: cut(each, self.length, layout.max_tokens) for label, each in blocks.items()}
        available = {label: self._rows(each) for label, each in self.tokens.items()}
        rows = dict.fromkeys(available, min(available.values())) if layout.equal else available
        self.batch_rows = max(1, min(layout.batch_tokens, at_once or layout.batch_tokens) // self.length)
        self.shards = []
        for label, count in rows.items():
            pieces = min(layout.shards, count)
            edges = [count * piece // pieces for piece in range(pieces + 1)]
            self.shards += [Shard(label, i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
        self.rows = rows

    @cached_property
    def _sizes(self) -> dict[str, np.ndarray]:
        return {label: np.diff(each.ends, prepend=0) for label, each in self.tokens.items()}

    def _too_long(self, limit: int) -> str:
        """Why documents cannot be rows of their own; empty where they can."""
        label, sizes = max(self._sizes.items(), key=lambda item: item[1].max())
        if sizes.max() > limit:
            return f"{label}: document {sizes.argmax()} has {sizes.max()} tokens, more than {limit}."
        for label, each in self.tokens.items():
            if each.is_cut:
                return f"{label}: document {len(each.ends) - 1} is so long that max_tokens was reached within it."
        return ""

    def _longest(self) -> int:
        if self.too_long:
            more = "" if self.layout.length is not None else f"{self._more()} "
            raise ValueError(f'{self.too_long} Cut the documents, or use the layout "blocks". {more}'.strip())
        return int(max(each.max() for each in self._sizes.values()))

    def _more(self) -> str:
        """How to allow longer documents, where the model can read them."""
        limit = row_limit(self.layout, self.context)
        if self.context is not None and 0 < self.context <= limit:
            return ""
        context = f", up to its context of {self.context}" if self.context else ""
        return f"The model can read more than {limit} tokens at once: set Layout(length=...){context}."

    def _block(self) -> int:
        length, layout = row_limit(self.layout, self.context), self.layout
        if layout.length is None:
            smallest = min(self._usable(each) for each in self.tokens.values())
            while length > 128 and smallest // length < layout.shards:
                length = max(128, length // 2)
        return length

    def _usable(self, tokens: Tokens) -> int:
        return min(tokens.n_tokens, self.layout.max_tokens or tokens.n_tokens)

    def _rows(self, tokens: Tokens) -> int:
        if self.layout.kind == "documents":
            return len(tokens.ends)
        rows = len(self.blocks[tokens.language].fronted)
        if not rows:
            raise DoesNotApply(
                f"{tokens.language}: {self._usable(tokens)} tokens are less than one block of {self.length}. "
                'Give more text, a smaller length, or use the layout "documents".'
            )
        return rows

    def batches(self, shard: Shard) -> Iterator[Batch]:
        """The batches of a shard, in order."""
        if self.layout.kind == "blocks":
            sizes, make = np.full(shard.last - shard.first, self.length), self._blocks
        else:
            sizes, make = self._sizes[shard.language][shard.first : shard.last], self._documents
        for rows in row_ranges(sizes, self.batch_rows, self.border):
            yield make(shard, range(shard.first + rows.start, shard.first + rows.stop))

    def _blocks(self, shard: Shard, rows: range) -> Batch:
        ids, counts = self.blocks[shard.language].read(rows)
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
        """Tokens that count in a shard, the BOS in front of blocks included."""
        if self.layout.kind == "blocks":
            return (shard.last - shard.first) * self.length
        ends = self.tokens[shard.language].ends
        return int(ends[shard.last - 1] - (ends[shard.first - 1] if shard.first else 0))

    def place(self, language: str, row: int) -> str:
        """The documents of a row, as text."""
        if self.layout.kind == "documents":
            return f"document {row}"
        first, last = self.blocks[language].documents(row)
        return f"documents {first} to {last}" if last > first else f"document {first}"

    def describe(self) -> dict[str, Any]:
        """The plan's settings and the text it is made from, as plain data."""
        is_split = self.layout.kind == "documents" and self.border is not None and self.border < self.length
        return {
            **({"border": self.border} if is_split else {}),
            "layout": {**asdict(self.layout), "length": self.length},
            "languages": {
                label: {
                    "tokens_used": sum(self.tokens_of(shard) for shard in self.shards if shard.language == label),
                    "tokens": each.n_tokens,
                    "documents": len(each.ends),
                    "bytes": each.n_bytes,
                    "skipped": dict(each.skipped),
                    "noticed": dict(each.noticed),
                    "sha256": each.sha256,
                }
                for label, each in self.tokens.items()
            },
        }


def corpus_hash(description: Mapping[str, Any]) -> str:
    """One hash of the text of a plan, from `Plan.describe`."""
    hashes = {label: each["sha256"] for label, each in description["languages"].items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
