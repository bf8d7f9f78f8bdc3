"""Texts that say the same in every language: FLORES+ and the questions of CLaS-Bench."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsn_lens.files import whole_number
from lsn_lens.generation.tasks.presets import FLORES, Task, rows_of
from lsn_lens.labels import label_list

CHINESE = {"zh": "cmn_Hans", "zh-Hans": "cmn_Hans", "zh-Hant": "cmn_Hant"}


@dataclass(frozen=True)
class ParallelSet:
    """Where the rows are, and the field that is the same for the same text in another language (None: the line)."""

    rows: Task
    id: str | None


def load_parallel(
    name: str,
    languages: Iterable[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    source: str | Path | None = None,
    revision: str | None = None,
) -> dict[str, list[str]]:
    """Parallel texts: what is at one place says the same in every language.

    Args:
        name: "flores_plus" (sentences, by `id`), or "clas" (questions: a folder of `<language>.txt`, one per line).
        languages: Labels such as "en", "fr"; a data set's own codes work too.
        split: Of FLORES+: "dev" (default) or "devtest".
        limit: Maximum number of texts, from the beginning.
        source: A local folder with the same configurations and fields, or another Hub id. "clas" needs one.
        revision: Another branch, tag or commit.

    Returns:
        Language -> texts, those that every language has, in the order of the first language.

    Raises:
        KeyError: An unknown name.
        ValueError: No source, data that cannot be read this way, an id twice, languages without a common text, or
            other numbers of questions.
        ConnectionError: The Hub cannot be reached.
    """
    if name not in PARALLEL:
        raise KeyError(f"no parallel texts {name!r}; there are {list(PARALLEL)}.")
    found, wanted = PARALLEL[name], label_list(languages)
    if source is None and not found.rows.hub:
        raise ValueError(f"{name!r} is read from a local folder only: give it as source=.")
    if not wanted:
        raise ValueError("no languages: say which, for example ['en', 'fr'].")
    task = found.rows if split is None else replace(found.rows, split=split)
    texts = {each: _by_id(rows_of(task, name, each, source, revision), found.id, f"{name}, {each}") for each in wanted}
    counts = {each: len(some) for each, some in texts.items()}
    if found.id is None and len(set(counts.values())) > 1:
        raise ValueError(f"{name}: {counts} texts: lines belong together by their number, so expected as many in each.")
    common = [key for key in texts[wanted[0]] if all(key in some for some in texts.values())]
    if not common:
        raise ValueError(f"{name}: {wanted} have no text in common.")
    last = len(common) if limit is None else whole_number(limit, "limit", least=1)
    return {each: [some[key] for key in common[:last]] for each, some in texts.items()}


def _by_id(rows: Iterable[Any], id: str | None, where: str) -> dict[Any, str]:
    texts: dict[Any, str] = {}
    for place, row in enumerate(rows):
        if not isinstance(row.get("text"), str) or (id is not None and id not in row):
            raise ValueError(f"{where}, row {place}: not of the expected shape, without {id or ''} text: {dict(row)}")
        key = len(texts) if id is None else row[id]  # a line's number without empty ones
        if key in texts:
            raise ValueError(f"{where}, row {place}: {id} {key!r} is there already.")
        if row["text"].strip():
            texts[key] = row["text"].strip()
    return texts


def _as_it_is(row: Mapping[str, Any], language: str) -> dict[str, Any]:
    return dict(row)


PARALLEL = {
    "flores_plus": ParallelSet(
        Task("openlanguagedata/flores_plus", "dev", _as_it_is, "choices", codes=FLORES | CHINESE), "id"
    ),
    "clas": ParallelSet(Task("", "test", _as_it_is, "choices", files="{config}.txt"), None),
}
