"""Read records from files: known endings, compression, and text that is not UTF-8."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

SAMPLE = 1 << 16  # bytes at the beginning of a file that tell UTF-16 and UTF-32
NUL_SHARE = 0.05  # of those bytes that are NUL in no UTF-8 text
BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, which begins alike
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
EAST = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1256", "cp1253")
ROWS = 1024  # rows of a Parquet table read at once
LARGEST = (1 << 31) - 1  # characters of a field of a table
NOT_UTF8, HAS_NUL = "not UTF-8", "NUL characters"
BROKEN_TEXT = (NOT_UTF8, HAS_NUL)  # reasons that point to another encoding


@dataclass(frozen=True)
class Unreadable:
    """An unusable record: the reason, and in `raw` the bytes that could not be decoded."""

    reason: str
    raw: bytes = b""


def _zstandard(path: Path, mode: str) -> Any:
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]


PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}


def form_of(path: Path) -> str | None:
    """The ending that decides how a file is read, without its compression's ending; None for an unknown ending."""
    names = path.name.lower().split(".")
    packed = f".{names[-1]}" in PACKED
    form = f".{names[-2 if packed else -1]}" if len(names) > 1 + packed else None
    return None if form not in FORMS or (packed and form == ".parquet") else form


def read_files(paths: list[Path], column: str) -> Iterator[Any]:
    """The records of one language's files, as a stream; a damaged file is an error, since its rest is unknown.

    Raises:
        ValueError: A file that is damaged, in another encoding, or without the column.
    """
    for path in paths:
        try:
            form = form_of(path)
            if form != ".parquet":
                _refuse_wide(path)
            yield from FORMS[form or ".txt"](path, column)
        except (EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is damaged or cut off ({error}). Write or fetch it again.") from error
        except OSError as error:
            if error.errno is not None:  # an error of the file system, not of the content
                raise
            raise ValueError(f"{path} is damaged or cut off ({error}). Write or fetch it again.") from error


def _opened(path: Path) -> Any:
    return PACKED.get(path.suffix.lower(), open)(path, "rb")


def _refuse_wide(path: Path) -> None:
    """Refuse UTF-16 and UTF-32, much of which decodes as UTF-8."""
    with _opened(path) as file:
        found = wide_encoding(file.read(SAMPLE))
    if found:
        raise ValueError(f"{path} is {found}, not UTF-8. {_remedy(found)}")


def wide_encoding(sample: bytes) -> str:
    """UTF-16 or UTF-32, by a byte order mark or by the positions of NUL bytes; empty for neither."""
    for mark, name in BOMS.items():
        if sample.startswith(mark):
            return name
    nuls = [sample[place::4].count(0) for place in range(4)]
    if sum(nuls) < max(NUL_SHARE * len(sample), 1):
        return ""
    most = 0.9 * (len(sample) // 4)  # UTF-32 has two bytes of each four that are next to always NUL, side by side
    if min(nuls[:2]) >= most or min(nuls[2:]) >= most:
        return "UTF-32-BE" if min(nuls[:2]) >= most else "UTF-32-LE"
    even, odd = nuls[0] + nuls[2], nuls[1] + nuls[3]
    if max(even, odd) < 4 * min(even, odd):
        return "binary data or an unknown encoding (NUL bytes)"
    return "UTF-16-BE" if even > odd else "UTF-16-LE"


def likely_encoding(sample: bytes) -> str:
    """A guess, as text, at the encoding of bytes that are not UTF-8."""
    wide = wide_encoding(sample)
    if wide:
        return wide
    if 0 in sample:
        return "UTF-16"
    if b"\x1b" in sample:
        return "ISO-2022-JP (or another encoding of seven bits)"
    high = [byte >= 0x80 for byte in sample]
    alone = sum(here and not after for here, after in zip(high, [*high[1:], False], strict=True))
    if alone > 0.7 * sum(high):  # single letters with accents between plain ones
        return "latin-1 or cp1252 (or another one-byte encoding of Latin letters)"
    wide_ones = () if len(sample) % 2 or b"\n" in sample else ("UTF-16-LE", "UTF-16-BE")
    fit = [name for name in (*wide_ones, *EAST) if _decodes(sample, name)]
    return f"one of {', '.join(fit)}" if fit else "a mixture, or no text"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        return bool(sample.decode(encoding))
    except UnicodeDecodeError:
        return False


def refuse_broken(name: str, broken: dict[str, int], seen: int, sample: bytes) -> None:
    """Refuse a source with too many records that are not UTF-8: the rest would be a biased sample."""
    raise ValueError(
        f"{name}: {sum(broken.values())} of {seen} records cannot be read as UTF-8 ({broken}); it looks like "
        f"{likely_encoding(sample)}. The rest alone would be a biased sample. {_remedy('')}"
    )


def _remedy(found: str) -> str:
    encoding = found.lower() if found.startswith("UTF") else "..."
    return (
        "Write it as UTF-8, for example by "
        f'Path(new).write_text(Path(old).read_text(encoding="{encoding}"), encoding="utf-8").'
    )


def _lines(path: Path, column: str, parse: Callable[[str, str], Any]) -> Iterator[Any]:
    # universal newlines, as of old Macs; latin-1 keeps every byte, so that each line can be judged by itself
    with _opened(path) as file, io.TextIOWrapper(file, "latin-1", newline=None) as lines:
        for line in lines:
            text = _cell(line)
            yield text if isinstance(text, Unreadable) or not text.strip() else parse(text, column)


def _decoded(raw: bytes) -> str | Unreadable:
    if 0 in raw:
        return Unreadable(HAS_NUL, raw)
    if b"\x1b$" in raw or b"\x1b(" in raw:  # ISO-2022 changes between alphabets so, all in ASCII
        return Unreadable(NOT_UTF8, raw)
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return Unreadable(NOT_UTF8, raw)


def _whole(text: str, column: str) -> str:
    return text


def _json_line(text: str, column: str) -> Any:
    try:
        return _field(json.loads(text), column)
    except (ValueError, RecursionError):
        return Unreadable("not JSON")


def _field(record: Any, column: str) -> Any:
    return record[column] if isinstance(record, dict) and column in record else Unreadable(f"no {column!r}")


def _json(path: Path, column: str) -> Iterator[Any]:
    """Records of a JSON list of texts or objects, or of a file with one object per line."""
    with _opened(path) as file:
        head = file.read(SAMPLE).removeprefix(codecs.BOM_UTF8).lstrip()
    first = _decoded(next(iter(head.splitlines()), b""))
    if not head.startswith(b"[") and not isinstance(_parsed(first), Unreadable):
        yield from _lines(path, column, _json_line)
        return
    with _opened(path) as file:
        whole = _decoded(file.read())
    if isinstance(whole, Unreadable):
        raise ValueError(f"{path} is not UTF-8; it looks like {likely_encoding(whole.raw)}. {_remedy('')}")
    records = _parsed(whole)
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: expected a list of objects or texts, or one object per line, got "
            f"{'what is not JSON' if isinstance(records, Unreadable) else type(records).__name__}."
        )
    yield from (each if isinstance(each, str) else _field(each, column) for each in records)


def _parsed(text: str | Unreadable) -> Any:
    try:
        return text if isinstance(text, Unreadable) else json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable("not JSON")


def _table(path: Path, column: str, separator: str) -> Iterator[Any]:
    csv.field_size_limit(LARGEST)
    # latin-1 keeps every byte, so that each cell can be judged by itself
    with _opened(path) as file, io.TextIOWrapper(file, "latin-1", newline="") as lines:
        rows = csv.reader(_without_bom(lines), delimiter=separator, strict=True)
        try:
            names = [_cell(name) for name in next(rows, [])]
            if not names:
                return
            check_column(column, map(str, names), str(path))
            place = names.index(column)
            for row in filter(None, rows):
                _check_row(row, len(names), separator, f"{path}, line {rows.line_num}")
                yield _cell(row[place]) if place < len(row) else Unreadable(f"no {column!r}")
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}. {_unquoted(separator)}") from error


def _without_bom(lines: Iterable[str]) -> Iterator[str]:
    each = iter(lines)
    yield next(each, "").removeprefix(codecs.BOM_UTF8.decode("latin-1"))
    yield from each


def _check_row(row: list[str], columns: int, separator: str, where: str) -> None:
    """Refuse a row that was cut at marks within a text, and one that holds the rows after it."""
    if any(row[columns:]):  # a separator at the end of each row is no field
        raise ValueError(f"{where}: {len(row)} fields, but the header has {columns}. {_unquoted(separator)}")
    if separator == "\t" and columns > 1:
        breaks = [cell.count("\n") for cell in row]
        if any(n and cell.count("\t") == n * (columns - 1) for n, cell in zip(breaks, row, strict=True)):
            raise ValueError(f"{where}: one field has the tabs of whole rows. {_unquoted(separator)}")


def _unquoted(separator: str) -> str:
    again = (
        "Where no field is quoted: pandas.read_csv(path, sep='\\t', quoting=3).to_csv(new, sep='\\t', index=False)."
        if separator == "\t" else "Or write the texts as .jsonl."
    )  # fmt: skip
    return (
        f"A field with {separator!r} or a line break in it must stand in quotation marks, and a mark within these be "
        f"doubled. {again}"
    )


def _cell(text: str) -> str | Unreadable:
    return _decoded(text.encode("latin-1"))


def _parquet(path: Path, column: str) -> Iterator[Any]:
    file = pyarrow.parquet.ParquetFile(path)
    check_column(column, file.schema_arrow.names, str(path))
    for batch in file.iter_batches(columns=[column], batch_size=ROWS):
        yield from batch.column(0).to_pylist()


def check_column(
    column: str, columns: Iterable[Any], where: str, what: str = "the text", option: str = "column"
) -> None:
    """Refuse a table without the column, or with several of it; the message lists the table's columns."""
    names = list(columns)
    if column not in names:
        raise ValueError(
            f"{where} has no column {column!r}; its columns are {names}. "
            f"Name the column with {what}: load_corpora(..., {option}=...)."
        )
    if names.count(column) > 1:
        raise ValueError(f"{where} has {names.count(column)} columns {column!r}: rename all but the one with {what}.")


_json_lines = partial(_lines, parse=_json_line)
FORMS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    ".txt": partial(_lines, parse=_whole),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_table, separator=","),
    ".tsv": partial(_table, separator="\t"),
    ".parquet": _parquet,
}
