"""Text to documents: the embedded text, folders of files, `datasets` objects, Hub presets."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

DEMO_TEXT = Path(__file__).parent / "demo" / "text"

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")

PRESETS: dict[str, tuple[str, str]] = {
    # name -> Hub data set, configuration with {code} for the data set's own language code
    "wikipedia": ("wikimedia/wikipedia", "20231101.{code}"),
    "fineweb2": ("HuggingFaceFW/fineweb-2", "{code}"),
    "c4": ("allenai/c4", "{code}"),
}
PRESET_CODES: dict[str, dict[str, str]] = {
    # BCP 47 label -> code, where the data set does not use the label itself
    "wikipedia": {"zh-Hans": "zh"},
    "fineweb2": {
        "ar": "arb_Arab", "de": "deu_Latn", "es": "spa_Latn", "fr": "fra_Latn", "hi": "hin_Deva",
        "id": "ind_Latn", "ja": "jpn_Jpan", "ru": "rus_Cyrl", "vi": "vie_Latn", "zh": "cmn_Hani",
        "zh-Hans": "cmn_Hani",
    },
    "c4": {"he": "iw", "zh-Hans": "zh"},
}  # fmt: skip


@dataclass(frozen=True)
class Unreadable:
    """Stands for a record that cannot be used, and says why."""

    reason: str


@dataclass
class Records:
    """A text source that can be read again and again: one entry a record, None where unusable.

    `skipped` counts, for the latest reading, why records were left out.
    """

    name: str
    read: Callable[[], Iterable[Any]]
    skipped: Counter[str] = field(default_factory=Counter, compare=False)

    def __iter__(self) -> Iterator[str | None]:
        self.skipped.clear()
        for record in self.read():
            reason = _why_not(record)
            if reason is not None:
                self.skipped[reason] += 1
            yield record if reason is None else None


def _why_not(record: Any) -> str | None:
    if isinstance(record, Unreadable):
        return record.reason
    if not isinstance(record, str):
        return f"not text but {type(record).__name__}"
    if not record.strip():
        return "empty"
    try:
        record.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return "not valid Unicode"
    return None


def _read_files(paths: list[Path], column: str) -> Iterator[Any]:
    """The records of one language's files, as a stream; a damaged file is an error, as its rest is unknown."""
    for path in paths:
        try:
            yield from _read_parquet(path, column) if path.suffix == ".parquet" else _read_lines(path, column)
        except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is damaged or cut off ({error}). Write or fetch it again.") from error


def _read_parquet(path: Path, column: str) -> Iterator[Any]:
    file = pyarrow.parquet.ParquetFile(path)
    _check_column(column, file.schema_arrow.names, str(path))
    for batch in file.iter_batches(columns=[column], batch_size=1024):
        yield from batch.column(0).to_pylist()


def _read_lines(path: Path, column: str) -> Iterator[Any]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
        for line in lines:
            yield _parse(line, None if path.suffix == ".txt" else column)


def _parse(line: bytes, column: str | None) -> Any:
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return Unreadable("not UTF-8")
    if column is None or not text.strip():
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable("not JSON")
    return record[column] if isinstance(record, dict) and column in record else Unreadable(f"no {column!r}")


def _read_dataset(dataset: Iterable[dict[str, Any]], column: str, name: str) -> Iterator[Any]:
    for row in dataset:
        _check_column(column, list(row), name)
        yield row[column]


def _check_column(column: str, columns: list[str], where: str) -> None:
    if column not in columns:
        raise ValueError(
            f"{where} has no column {column!r}; its columns are {columns}. "
            "Name the one with the text: load_corpora(..., column=...)."
        )


@dataclass(frozen=True)
class Documents:
    """The documents of one part of a source, in order; iterate as often as you like.

    Record `i` is held out when `floor((i + 1) * fraction) > floor(i * fraction)`: evenly spread,
    independent of the content, so the parts of parallel files stay aligned.
    """

    records: Records
    fraction: float = 0.0
    held_out: bool = False

    def __iter__(self) -> Iterator[str]:
        for position, text in enumerate(self.records):
            is_held_out = int((position + 1) * self.fraction) > int(position * self.fraction)
            if text is not None and is_held_out == self.held_out:
                yield text

    @property
    def skipped(self) -> dict[str, int]:
        """Records left out at the latest reading of the source, by reason."""
        return dict(self.records.skipped)


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

    def __repr__(self) -> str:
        return f"LanguageCorpus({self.language!r} from {self.source})"


def load_corpora(
    source: str | Path | Mapping[str, Any],
    languages: Iterable[str] | None = None,
    *,
    hold_out: float = 1 / 3,
    column: str = "text",
    files: str = "*",
) -> dict[str, LanguageCorpus]:
    """Load text for several languages.

    Args:
        source: `"demo"` (the embedded text); a folder of `<language>.txt`, `.jsonl`, `.jsonl.gz` or
            `.parquet` files (a name's part before the first dot is the language; several files of one
            language are read one after the other), or of two such folders `find` and `hold-out`; a
            preset name ("wikipedia", "fineweb2", "c4": streamed from the Hub); or a mapping of language to a
            list of texts, a file, or a `datasets` Dataset or IterableDataset.
        languages: Which languages, and in which order; all that the source has by default.
        hold_out: Share of the documents kept for measuring, in [0, 1). Not used where the source
            comes with the two parts.
        column: The field with the text, in jsonl, parquet and data sets.
        files: Glob pattern that picks files of a folder, for example `"*.train.jsonl.gz"`.

    Returns:
        Language label to `LanguageCorpus`, in the order asked for.

    Raises:
        KeyError: A language that the source lacks.
        ValueError: A source, a share or a column that cannot be used.
        ConnectionError: A preset that cannot be reached.
    """
    if not 0 <= hold_out < 1:
        raise ValueError(f"hold_out={hold_out}: expected a share in [0, 1).")
    wanted = None if languages is None else list(dict.fromkeys(languages))
    if isinstance(source, Mapping):
        if hasattr(source, "column_names"):
            raise ValueError(
                f"the source has the splits {list(source)}: give each language one split, as in "
                "load_corpora({'en': data['train']}); where the splits are languages, load_corpora(dict(data))."
            )
        records = {label: _as_records(label, value, column) for label, value in source.items()}
        return _split(_pick(records, wanted, "the mapping"), hold_out)
    if source in PRESETS:
        return _split(_preset(str(source), wanted, column), hold_out)
    folder = DEMO_TEXT if source == "demo" else Path(source)
    if not folder.is_dir():
        raise ValueError(
            f"{str(source)!r} is neither a folder nor one of 'demo', {', '.join(map(repr, PRESETS))}. "
            "A mapping of language to texts or data sets works too."
        )
    find, held = folder / "find", folder / "hold-out"
    if find.is_dir() and held.is_dir():
        first, second = (_pick(_folder(part, column, files), wanted, str(part)) for part in (find, held))
        if set(first) != set(second):
            raise ValueError(f"{find} and {held} hold different languages: {sorted(first)} and {sorted(second)}.")
        return {label: LanguageCorpus(label, Documents(first[label]), Documents(second[label])) for label in first}
    return _split(_pick(_folder(folder, column, files), wanted, str(folder)), hold_out)


def _split(records: dict[str, Records], fraction: float) -> dict[str, LanguageCorpus]:
    return {
        label: LanguageCorpus(label, Documents(each, fraction), Documents(each, fraction, held_out=True))
        for label, each in records.items()
    }


def _pick(records: dict[str, Records], wanted: list[str] | None, where: str) -> dict[str, Records]:
    missing = [label for label in wanted or [] if label not in records]
    if missing:
        raise KeyError(f"{where} has no text for {missing}; it has {list(records)}.")
    return records if wanted is None else {label: records[label] for label in wanted}


def _folder(folder: Path, column: str, files: str) -> dict[str, Records]:
    paths: dict[str, list[Path]] = {}
    try:
        found = sorted(folder.glob(files))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"files={files!r} is not a pattern for names inside {folder}: {error}.") from error
    for path in found:
        if path.is_file() and path.name.endswith(SUFFIXES) and not path.name.startswith("."):
            paths.setdefault(path.name.split(".")[0], []).append(path)
    if not paths:
        raise ValueError(f"{folder} has no files {files!r} ending in {', '.join(SUFFIXES)}.")
    return {label: _file_records(each, column) for label, each in paths.items()}


def _file_records(paths: list[Path], column: str) -> Records:
    name = f"{paths[0].absolute().parent.name}/{'+'.join(path.name for path in paths)}"
    return Records(name, partial(_read_files, paths, column))


def _dataset_records(name: str, dataset: Any, column: str) -> Records:
    return Records(name, partial(_read_dataset, dataset, column, name))


def _as_records(label: str, value: Any, column: str) -> Records:
    if isinstance(value, str | Path):
        path = Path(value)
        if not (path.name.endswith(SUFFIXES) and path.is_file()):
            raise ValueError(
                f"{label}: {str(value)[:100]!r} is not a file ending in {', '.join(SUFFIXES)}. Texts go in a list."
            )
        return _file_records([path], column)
    if hasattr(value, "column_names"):
        if isinstance(value, Mapping):
            raise ValueError(f"{label}: pass one split of the data set, one of {list(value)}.")
        return _dataset_records(f"datasets:{getattr(value, 'builder_name', None) or label}", value, column)
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes) and not hasattr(value, "columns"):
        return Records(f"texts:{label}", partial(iter, tuple(value)))
    raise ValueError(f"{label}: expected a list of texts, a file or a data set, got {type(value).__name__}.")


def _preset(name: str, wanted: list[str] | None, column: str) -> dict[str, Records]:
    if not wanted:
        raise ValueError(f"preset {name!r}: say which languages, for example languages=['en', 'fr'].")
    from datasets import load_dataset  # slow to import, and needed here only

    repository, configuration = PRESETS[name]
    records: dict[str, Records] = {}
    for label in wanted:
        config = configuration.format(code=PRESET_CODES[name].get(label, label))
        try:
            dataset = load_dataset(repository, config, split="train", streaming=True)
        except ConnectionError as error:
            raise ConnectionError(
                f"preset {name!r} needs {repository} ({config}) from the Hugging Face Hub, which cannot be reached. "
                "Offline, pass a folder of files or a mapping instead."
            ) from error
        records[label] = _dataset_records(f"{repository}/{config}", dataset, column)
    return records
