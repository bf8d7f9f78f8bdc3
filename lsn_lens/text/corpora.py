"""Sources of text: the embedded text, folders of files, `datasets` objects, Hub presets."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens import sketches
from lsn_lens.labels import check_label, label_list
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.readers import FORMS, PACKED, check_column, form_of, read_files
from lsn_lens.text.records import Records

DEMO_TEXT = Path(__file__).parents[1] / "demo" / "text"

ENDINGS = f"{', '.join(FORMS)} (all but .parquet also packed: {', '.join(PACKED)})"
ACCEPTED = (
    "Expected 'demo', a folder, a preset, a mapping of language to texts, as {'en': [...], 'fr': [...]}, or a table "
    "(DataFrame or Dataset) with the columns of language_column= and column=."
)
LIKE_A_LABEL = re.compile(r"[A-Za-z]{2}([-_][A-Za-z0-9]{2,8})*|[a-z]{3}([-_][A-Za-z0-9]{2,8})+")
THREE = re.compile(r"[a-z]{3}")  # a code of ISO 639-3, or any short word

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


class Corpora(dict[str, LanguageCorpus]):
    """A dictionary from language to corpus, shown as a figure and a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = {label: each.summary() for label, each in self.items()}
        counted = {label: row["find"] for label, row in rows.items()}
        table = pd.DataFrame.from_dict(rows, orient="index").fillna("not counted").to_html()
        return sketches.bars(counted, "documents to find units with") + table


def load_corpora(
    source: Any,
    languages: Iterable[str] | None = None,
    *,
    hold_out: float = 1 / 3,
    column: str = "text",
    language_column: str = "language",
    files: str = "*",
) -> Corpora:
    """Load text for several languages.

    Args:
        source: `"demo"` (the embedded text); a folder of `<language>.txt`, `.jsonl`, `.ndjson`, `.json`, `.csv`,
            `.tsv` or `.parquet` files (upper case too; all but `.parquet` also compressed as `.gz`, `.bz2`, `.xz` or
            `.zst`; the language is the name's part before the first dot; several files of one language are read in
            turn), or of two such folders `find` and `hold-out`; a preset name ("wikipedia", "fineweb2",
            "c4": streamed from the Hub); a mapping of language to a list or pandas Series of texts, a file, or a
            `datasets` Dataset or IterableDataset; or one long table, a pandas DataFrame or a Dataset, with a column
            for the language and one for the text.
        languages: One or more languages, in the order wanted; by default all languages of the source.
        hold_out: Share of the documents kept for the hold-out part, in [0, 1). Not used where the source has both
            parts already.
        column: The field with the text, in JSON, tables and data sets.
        language_column: The column of a long table with the language of each text.
        files: Glob pattern that picks files of a folder, for example `"*.train.jsonl.gz"`.

    Returns:
        Language label -> `LanguageCorpus`, in the order asked for; by default, for a long table, of first appearance.

    Raises:
        KeyError: A language that the source lacks.
        ValueError: An unusable source, share, label or column; a folder with files that look like text of a language
            but cannot be read.
        ConnectionError: A preset whose data set cannot be reached.
    """
    if not 0 <= hold_out < 1:
        raise ValueError(f"hold_out={hold_out}: expected a share in [0, 1).")
    wanted = None if languages is None else label_list(languages)
    if isinstance(source, Mapping):
        if hasattr(source, "column_names"):
            raise ValueError(
                f"the source has the splits {list(source)}: give each language one split, as in "
                "load_corpora({'en': data['train']}); where the splits are languages, load_corpora(dict(data))."
            )
        if loose := [label for label, value in source.items() if isinstance(value, Set)]:
            raise ValueError(f"the texts of {loose} are a set, which has no order: give lists.")
        if any(isinstance(value, LanguageCorpus) for value in source.values()):
            raise ValueError(
                "the source is corpora already: use it as it is. For some languages: {'fr': corpora['fr'], ...}."
            )
        records = {label: _as_records(label, value, column) for label, value in source.items()}
        return _split(_pick(records, wanted, "the mapping"), hold_out)
    if hasattr(source, "columns") or hasattr(source, "column_names"):
        return _split(_pick(_long_table(source, language_column, column, wanted), wanted, "the table"), hold_out)
    if not isinstance(source, str | Path):
        raise ValueError(f"the source is a {type(source).__name__}. {ACCEPTED}")
    if str(source) in PRESETS:
        return _split(_preset(str(source), wanted, column), hold_out)
    folder = DEMO_TEXT if source == "demo" else Path(source)
    if not folder.is_dir():
        raise ValueError(
            f"{str(source)!r} is neither a folder nor one of 'demo', {', '.join(map(repr, PRESETS))}. {ACCEPTED}"
        )
    find, held = folder / "find", folder / "hold-out"
    if find.is_dir() and held.is_dir():
        first, second = (_pick(_folder(part, column, files, wanted), wanted, str(source)) for part in (find, held))
        if set(first) != set(second):
            raise ValueError(f"{find} and {held} hold different languages: {sorted(first)} and {sorted(second)}.")
        return Corpora(
            (label, LanguageCorpus(label, Documents(each), Documents(second[label], other=each)))
            for label, each in first.items()
        )
    return _split(_pick(_folder(folder, column, files, wanted), wanted, str(folder)), hold_out)


def as_corpora(given: Any, **options: Any) -> dict[str, LanguageCorpus]:
    """Return corpora unchanged, or pass any other source and the options to `load_corpora`.

    Raises:
        ValueError: A source that `load_corpora` refuses.
    """
    if isinstance(given, Mapping) and given and all(isinstance(each, LanguageCorpus) for each in given.values()):
        return dict(given)
    return load_corpora(given, **options)


def _split(records: dict[str, Records], fraction: float) -> Corpora:
    return Corpora(
        (label, LanguageCorpus(label, Documents(each, fraction), Documents(each, fraction, held_out=True)))
        for label, each in records.items()
    )


def _pick(records: dict[str, Records], wanted: list[str] | None, where: str) -> dict[str, Records]:
    missing = [label for label in wanted or [] if label not in records]
    if missing:
        raise KeyError(f"{where} has no text for {missing}; it has {list(records)}.")
    chosen = records if wanted is None else {label: records[label] for label in wanted}
    return {check_label(label): each for label, each in chosen.items()}


def _folder(folder: Path, column: str, files: str, wanted: list[str] | None) -> dict[str, Records]:
    paths: dict[str, list[Path]] = {}
    try:
        found = sorted(folder.glob(files))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"files={files!r} is not a pattern for names inside {folder}: {error}.") from error
    unread: list[Path] = []
    for path in (path for path in found if not path.name.startswith(".")):
        if path.is_file() and form_of(path):
            paths.setdefault(path.name.split(".")[0], []).append(path)
        else:
            unread.append(path)
    _refuse_unread(unread, {*paths, *(wanted or [])}, wanted)
    if not paths:
        raise ValueError(f"{folder} has no files {files!r} ending in {ENDINGS}.")
    return {label: _file_records(each, column) for label, each in paths.items()}


def _refuse_unread(unread: list[Path], labels: set[str], wanted: list[str] | None) -> None:
    """Refuse files and folders that look like text of a language but would be ignored."""
    lost, by_three = [], any(map(THREE.fullmatch, labels))
    for path in unread:
        label = path.name.split(".")[0]
        looks = bool(LIKE_A_LABEL.fullmatch(label) or (by_three and THREE.fullmatch(label)))
        like = label in labels or (wanted is None and looks)
        if like and (path.is_file() or path.name == label):
            lost.append(path.name)
    if lost:
        raise ValueError(
            f"{unread[0].parent}: {lost} look like text of a language, but cannot be read. Readable files end in "
            f"{ENDINGS}. Convert these files, move them away, or choose the files to read, for example "
            'files="*.jsonl".'
        )


def _file_records(paths: list[Path], column: str) -> Records:
    name = f"{paths[0].absolute().parent.name}/{'+'.join(path.name for path in paths)}"
    return Records(name, partial(read_files, paths, column), is_finite=True)


def _read_dataset(dataset: Iterable[dict[str, Any]], column: str, name: str) -> Iterator[Any]:
    for row in dataset:
        check_column(column, list(row), name)
        yield row[column]


def _dataset_records(name: str, dataset: Any, column: str) -> Records:
    return Records(name, partial(_read_dataset, dataset, column, name), is_finite=hasattr(dataset, "__len__"))


def _long_table(table: Any, language_column: str, column: str, wanted: list[str] | None) -> dict[str, Records]:
    """Texts of a DataFrame or a Dataset, grouped by their language."""
    columns = list(table.column_names if hasattr(table, "column_names") else table.columns)
    check_column(language_column, columns, "the table", "the language of each text", "language_column")
    check_column(column, columns, "the table")
    if not hasattr(table, "__len__"):
        raise ValueError("the table is a stream: give each language a stream of its own, as {'en': data.filter(...)}.")
    if column == language_column:
        raise ValueError(f"column={column!r} is also language_column: name the column with the text, of {columns}.")
    odd = [row for row, label in enumerate(table[language_column]) if not isinstance(label, str)]
    if odd and wanted is None:
        raise ValueError(
            f"rows {odd[:5]} of the table (from 0; {len(odd)} in all) have no label in {language_column!r}: leave them "
            f"out, as by table.dropna(subset=[{language_column!r}]), or name the languages."
        )
    texts: dict[str, list[Any]] = {}
    for label, text in zip(table[language_column], table[column], strict=True):
        texts.setdefault(label, []).append(text)
    return {label: _as_records(label, each, column) for label, each in texts.items()}


def _as_records(label: str, value: Any, column: str) -> Records:
    if isinstance(value, str | Path):
        path = Path(value)
        if not (form_of(path) and path.is_file()):
            raise ValueError(f"{label}: {str(value)[:100]!r} is not a file ending in {ENDINGS}. Texts go in a list.")
        return _file_records([path], column)
    if hasattr(value, "column_names"):
        if isinstance(value, Mapping):
            raise ValueError(f"{label}: pass one split of the data set, one of {list(value)}.")
        check_column(column, value.column_names or list(next(iter(value), {column: ""})), label)
        return _dataset_records(f"datasets:{getattr(value, 'builder_name', None) or label}", value, column)
    if hasattr(value, "columns"):
        check_column(column, list(value.columns), label)
        value = value[column]
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
        return Records(f"texts:{label}", partial(iter, tuple(value)), is_finite=True, in_memory=True)
    raise ValueError(f"{label}: expected a list of texts, a file or a data set, got {type(value).__name__}.")


def _preset(name: str, wanted: list[str] | None, column: str) -> dict[str, Records]:
    if not wanted:
        raise ValueError(f"preset {name!r}: name the languages, for example languages=['en', 'fr'].")
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


__all__ = ["DEMO_TEXT", "PRESETS", "Documents", "LanguageCorpus", "Records", "load_corpora"]
