"""Tokenize documents to disk.

The tokens of each language are written once to a flat file: counts and budgets are then known before the first
forward pass, and memory does not grow with the text.
"""

import contextlib
import errno
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.labels import check_label
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.encoding import encoded
from lsn_lens.text.oddities import Oddities, warn_of
from lsn_lens.text.token_bytes import TokenBytes


@dataclass(frozen=True)
class Tokens:
    """One language's tokens on disk: the ids of all documents, and the end of each document.

    Attributes:
        language: The language's label.
        path: The file with the ids.
        ends: The position after the last token of each document.
        n_bytes: Bytes of the encoded text.
        sha256: A hash of the documents.
        skipped: Number of records left out, by reason.
        noticed: Irregularities of the text: number of documents that are "repeated", not in Unicode's composed form
            ("not NFC"), have lost characters ("U+FFFD") or, where nothing could be held out, are "also in the other
            part"; number of "control" and "unknown" tokens.
        is_cut: Whether the last document was cut because `max_tokens` was reached.
        bytes_path: The file with the bytes of text per token (`token_bytes`), if they were counted.
        front: The id of the token in front of each packed block; None for blocks without one.
        places: The record of the source that each document was, from 0.
    """

    language: str
    path: Path
    ends: Int[np.ndarray, "document"]
    n_bytes: int
    sha256: str
    skipped: Mapping[str, int] = field(default_factory=dict)
    noticed: Mapping[str, int] = field(default_factory=dict)
    is_cut: bool = False
    bytes_path: Path | None = None
    front: int | None = None
    places: Sequence[int] = ()

    @property
    def n_tokens(self) -> int:
        """Number of tokens, separators included."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, first: int, last: int) -> Int[Tensor, "token"]:
        """Ids `first` to `last`, read from the file."""
        return _read(self.path, first, last)

    def read_byte_counts(self, first: int, last: int) -> Int[Tensor, "token"] | None:
        """Bytes of text per token, for the tokens `first` to `last`; None if bytes were not counted."""
        return None if self.bytes_path is None else _read(self.bytes_path, first, last)

    def document_of(self, position: int) -> int:
        """The index of the document that holds the token at this position."""
        return int(np.searchsorted(self.ends, position, side="right"))


def _read(path: Path, first: int, last: int) -> Int[Tensor, "token"]:
    numbers = np.fromfile(path, dtype=np.int32, count=last - first, offset=4 * first)
    return torch.from_numpy(numbers.astype(np.int64))


def separator_id(tokenizer: Any, separator: str) -> int | None:
    """The id of the token in front of each document; None for "none".

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


def front_id(tokenizer: Any, separator: str, bos: bool | None) -> int | None:
    """The id of the token in front of each packed block, as `Layout.bos` says; None for blocks without one."""
    if bos is None:
        own = tokenizer.bos_token_id
        bos = (
            separator == "bos"
            and own is not None
            and tokenizer(["x"], add_special_tokens=True)["input_ids"][0][:1] == [own]
        )
    return separator_id(tokenizer, "bos") if bos else None


def tokenize(
    language: str,
    documents: Iterable[str],
    tokenizer: Any,
    folder: Path,
    *,
    separator: str = "bos",
    bos: bool | None = None,
    max_tokens: int | None = None,
    d_vocab: int | None = None,
    count_bytes: bool = False,
    progress: bool = True,
) -> Tokens:
    """Write a language's tokens, and with `count_bytes` their bytes, to files in `folder`, a few documents at a time.

    A document that is much longer than `max_tokens` is not read to its end.

    Raises:
        ValueError: No text, an unusable label, or a token id that the model lacks.
        OSError: The disk is full.
    """
    check_label(language)
    start, front = separator_id(tokenizer, separator), front_id(tokenizer, separator, bos)
    ends, kept = array("q"), array("q")  # of the documents that have tokens: where they end, and which they are
    total, n_bytes, digest, is_cut = 0, 0, hashlib.sha256(), False
    odd, counter = Oddities(tokenizer), TokenBytes(tokenizer) if count_bytes else None
    path = folder / f"{len(list(folder.glob('*.tokens')))}.tokens"
    bar = tqdm(desc=f"tokens {language}", unit="tok", unit_scale=True, leave=False, disable=not progress)
    bytes_path = path.with_suffix(".bytes") if count_bytes else None
    beside = contextlib.nullcontext() if bytes_path is None else _written(bytes_path, language)
    with bar, _written(path, language) as file, beside as bytes_file:
        for number, (text, pieces) in enumerate(encoded(documents, tokenizer, with_offsets=count_bytes)):
            before, left = total, len(text)
            for part, ids, offsets in pieces:
                ahead = [] if start is None or left < len(text) else [start]
                row = np.array(ahead + ids, dtype=np.int32)
                _check_ids(row, d_vocab, language)
                file.write(row.tobytes())
                if counter is not None and bytes_file is not None:
                    counts = np.append(np.zeros(len(ahead), dtype=np.int32), counter.of(part, ids, offsets))
                    bytes_file.write(counts.astype(np.int32).tobytes())
                odd.see(ids)
                total, n_bytes, left = total + len(row), n_bytes + len(part.encode()), left - len(part)
                bar.update(len(row))
                if max_tokens is not None and total >= max_tokens:
                    break
            if total == before:
                odd.without_tokens += 1
                continue
            odd.read(text)
            whole = text.encode()
            digest.update(len(whole).to_bytes(8, "little") + whole)
            ends.append(total)
            kept.append(number)
            is_cut = left > 0
            if max_tokens is not None and total >= max_tokens:
                break
    noticed = _noticed(language, documents, odd, total, len(ends))
    numbers = np.array(ends, dtype=np.int64), n_bytes, digest.hexdigest()
    return Tokens(language, path, *numbers, *noticed, is_cut, bytes_path, front, _places(documents, kept))


def _places(documents: Iterable[str], kept: Sequence[int]) -> Sequence[int]:
    """The records in their source that some of the documents were."""
    records = getattr(documents, "places", None)
    return kept if records is None else array("q", (records[number] for number in kept))


def check_aligned(places: Mapping[str, Sequence[int]]) -> None:
    """Refuse documents that are parallel in their sources, but of which some languages lack some.

    Args:
        places: By language, the record that each document was; as many documents as all languages have are compared.

    Raises:
        DoesNotApply: Document i is another record in one language than in another.
    """
    for number, each in enumerate(zip(*places.values(), strict=False)):
        if len(set(each)) > 1:
            raise DoesNotApply(
                f"document {number} is not the same record in every language: {dict(zip(places, each, strict=True))} "
                "(from 0). Records that cannot be used, or repeated ones, were left out in some languages alone, and "
                "the documents behind them moved up. Document i must be the same text in each language: leave such "
                "records out in every language, or give check_parallel=False if the documents are parallel anyway."
            )


def _noticed(
    language: str, documents: Any, odd: Oddities, total: int, n_documents: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Number of records left out, by reason, and the irregularities of the text; warns about both.

    Raises:
        ValueError: All documents are empty.
    """
    getattr(documents, "check", lambda: None)()  # an unfinished reading has not checked itself
    skipped = Counter(getattr(documents, "skipped", {})) + Counter({"no tokens": odd.without_tokens})
    if not n_documents:
        left_out = f" Records left out: {dict(skipped)}." if skipped else ""
        raise ValueError(
            f"{language}: no text. The source has no readable, non-empty document for this part.{left_out}"
        )
    noticed = odd.counts | {"repeated": getattr(documents, "repeated", 0)}
    shared = getattr(documents, "shared", 0)
    noticed |= {"also in the other part": shared} if shared else {}
    warn_of(language, noticed, skipped, total, n_documents)
    return dict(skipped), noticed


def _check_ids(row: np.ndarray, d_vocab: int | None, language: str) -> None:
    if d_vocab is not None and len(row) and int(row.max()) >= d_vocab:
        raise ValueError(
            f"{language}: the tokenizer gives id {int(row.max())}, but the model knows {d_vocab} tokens. "
            "Tokenizer and model do not belong together."
        )


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
