"""Test items: a prompt, right answers, and choices if any."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Item:
    """A question: multiple choice with `choices`, else a cloze item or a question to answer freely.

    Attributes:
        prompt: The text that the model reads.
        answers: Right answers: one of the choices, or without choices one or several texts.
        choices: Texts that follow the prompt directly: a space between them must be part of the prompt or the choice.
        language: For results by language.
        id: The same for the same question in another language.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    language: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if not all((*self.answers, *self.choices)):
            raise ValueError("an answer or a choice is empty.")
        if not self.answers:
            raise ValueError("no answer.")
        if len(self.choices) == 1:
            raise ValueError(f"one choice only, {self.choices[0]!r}: expected at least two, or none for a cloze item.")
        wrong = [text for text in self.answers if self.choices and text not in self.choices]
        if wrong:
            raise ValueError(f"the answer {wrong[0]!r} is not one of the choices {list(self.choices)}.")

    @property
    def name(self) -> str:
        """The item's name in error messages."""
        return f"item {self.id!r}" + (f" ({self.language})" if self.language else "")


def load_items(source: str | Path | Iterable[Mapping[str, Any]]) -> list[Item]:
    """Read items from a file, or from a list of dicts.

    Args:
        source: A `.jsonl` or `.jsonl.gz` file with one JSON object per line, or dicts, with the fields `prompt`;
            `choices` (a list; none for cloze items); `answer` (a choice's text, or its number counted from 0; the text
            of a cloze item) or for cloze items `answers` (several texts that are all right); `language` and `id` (by
            default the number in the source, counted from 0).

    Returns:
        All items, in order.

    Raises:
        ValueError: A file that cannot be read, an item that cannot be used (no line is skipped), or no item at all.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not (path.is_file() and path.name.endswith(SUFFIXES)):
            raise ValueError(f"{str(path)[:200]!r} is not a file ending in {' or '.join(SUFFIXES)}.")
        name, records = str(path), _read(path)
    else:
        name, records = "items", ((f"items[{place}]", record) for place, record in enumerate(source))
    items: list[Item] = []
    seen: dict[tuple[str, str], str] = {}
    for where, record in records:
        try:
            item = _item(record, len(items))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        key = (item.language, item.id)
        if key in seen:
            raise ValueError(f"{where}: {item.name} is there already, in {seen[key]}. Give each its own id.")
        seen[key] = where
        items.append(item)
    if not items:
        raise ValueError(f"{name}: no items.")
    return items


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or an empty line
                    raise ValueError(f"{where}: not a JSON object in UTF-8 ({error}).") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}). Write or fetch it again.") from error


def _item(record: Any, place: int) -> Item:
    known = [*(field.name for field in fields(Item)), "answer"]
    if not isinstance(record, Mapping):
        raise ValueError(f"{type(record).__name__} instead of an object with the fields {known}.")
    unknown = [name for name in record if name not in known]
    if unknown:
        raise ValueError(f"unknown fields {unknown}; the fields are {known}.")
    given = dict(record)
    if ("answer" in given) == ("answers" in given):
        raise ValueError("expected either 'answer' or 'answers'.")
    given["id"] = str(given.get("id", place))
    for name in ("prompt", "language"):
        if not isinstance(given.setdefault(name, None if name == "prompt" else ""), str):
            raise ValueError(f"{name!r} is {given[name]!r}: expected text.")
    choices = _texts("choices", given.pop("choices")) if "choices" in given else ()
    answers = given.pop("answers") if "answers" in given else [_answer(given.pop("answer"), choices)]
    return Item(**given, answers=_texts("answers", answers), choices=choices)


def _texts(name: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} are {texts!r}: expected texts, at least one.")
    return tuple(texts)


def _answer(answer: Any, choices: Sequence[str]) -> Any:
    if not choices or not isinstance(answer, int) or isinstance(answer, bool):
        return answer
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} is not the number of one of {len(choices)} choices, counted from 0.")
    return choices[answer]
