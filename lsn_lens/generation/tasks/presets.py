"""Known multilingual tasks as items, by their Hub id."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lsn_lens.generation.tasks.items import Item
from lsn_lens.labels import label_list

Row = Mapping[str, Any]

QUESTION = {
    # "question" and "answer", as they stand in front of one
    "ar": ("السؤال", "الإجابة"), "bn": ("প্রশ্ন", "উত্তর"), "de": ("Frage", "Antwort"), "el": ("Ερώτηση", "Απάντηση"),
    "en": ("Question", "Answer"), "es": ("Pregunta", "Respuesta"), "fr": ("Question", "Réponse"),
    "hi": ("प्रश्न", "उत्तर"), "ja": ("問題", "答え"), "ro": ("Întrebare", "Răspuns"), "ru": ("Вопрос", "Ответ"),
    "sw": ("Swali", "Jibu"), "te": ("ప్రశ్న", "సమాధానం"), "th": ("คำถาม", "คำตอบ"), "tr": ("Soru", "Cevap"),
    "vi": ("Câu hỏi", "Trả lời"), "zh": ("问题", "回答"),
}  # fmt: skip
STEPS = {
    # "answer step by step", in the languages of MGSM
    "bn": "ধাপে ধাপে উত্তর", "de": "Antwort Schritt für Schritt", "en": "Answer step by step",
    "es": "Respuesta paso a paso", "fr": "Réponse étape par étape", "ja": "段階的な答え",
    "ru": "Ответ шаг за шагом", "sw": "Jibu hatua kwa hatua", "te": "దశలవారీ సమాధానం", "th": "คำตอบทีละขั้นตอน",
    "zh": "逐步回答",
}  # fmt: skip
FLORES = {
    "ar": "arb_Arab", "bg": "bul_Cyrl", "bn": "ben_Beng", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn",
    "es": "spa_Latn", "fr": "fra_Latn", "hi": "hin_Deva", "id": "ind_Latn", "it": "ita_Latn", "ja": "jpn_Jpan",
    "ko": "kor_Hang", "nl": "nld_Latn", "pl": "pol_Latn", "pt": "por_Latn", "ro": "ron_Latn", "ru": "rus_Cyrl",
    "sw": "swh_Latn", "te": "tel_Telu", "th": "tha_Thai", "tr": "tur_Latn", "ur": "urd_Arab", "vi": "vie_Latn",
    "zh": "zho_Hans", "zh-Hans": "zho_Hans", "zh-Hant": "zho_Hant",
}  # fmt: skip
BBC = {
    "ar": "arabic", "bn": "bengali", "en": "english", "es": "spanish", "fr": "french", "hi": "hindi",
    "id": "indonesian", "ja": "japanese", "ko": "korean", "pt": "portuguese", "ru": "russian", "sw": "swahili",
    "te": "telugu", "th": "thai", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "vi": "vietnamese",
    "zh": "chinese_simplified", "zh-Hans": "chinese_simplified", "zh-Hant": "chinese_traditional",
}  # fmt: skip
VERDICTS = ("true", "inconclusive", "false")  # of entailment, neutral, contradiction


@dataclass(frozen=True)
class Task:
    """A data set on the Hub.

    Attributes:
        hub: Its id.
        split: The part with public answers.
        convert: A row and the language's label to the fields of an `Item`; None for a row that cannot be asked.
        measure: "choices" for `evaluate_items`, or the metric for `evaluate_generated`.
        config: Name of a language's configuration.
        codes: Label of a language -> `code` in `config`, where it is not the label itself.
        revision: Branch to read.
        files: Where a configuration's files are on a branch that does not describe them.
        column: The field with a row's language, where one configuration has the rows of all.
        skipped: What rows that cannot be asked have, in words.
    """

    hub: str
    split: str
    convert: Callable[[Row, str], dict[str, Any] | None]
    measure: Literal["choices", "last_number", "token_f1", "rouge_l"]
    config: str = "{code}"
    codes: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    files: str | None = None
    column: str | None = None
    skipped: str = "an empty answer or choice"


def load_task(
    name: str,
    languages: Iterable[str],
    *,
    limit: int | None = None,
    source: str | Path | None = None,
    revision: str | None = None,
) -> list[Item]:
    """Items of a known task, through `datasets.load_dataset`.

    Args:
        name: One of `TASKS`.
        languages: Labels such as "en", "fr"; a data set's own codes work too.
        limit: Maximum number of rows per language, from the beginning.
        source: Another Hub id or a local folder with the same configurations and fields.
        revision: Another branch, tag or commit.

    Returns:
        The items, language after language. Rows with an empty answer or choice are left out; a warning says how many.

    Raises:
        KeyError: An unknown task.
        ValueError: A data set that cannot be read this way, rows of another shape, no language, or one that the task
            has no prompt in.
        ConnectionError: The Hub cannot be reached.
    """
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; the tasks are {list(TASKS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1.")
    wanted = label_list(languages)
    if not wanted:
        raise ValueError("no languages: say which, for example ['en', 'fr'].")
    task, items = TASKS[name], []
    for language in wanted:
        rows = rows_of(task, name, language, source, revision)
        count = len(rows) if limit is None else min(limit, len(rows))
        found = [_convert(task, name, language, rows[place], place) for place in range(count)]
        kept = [item for item in found if item is not None]
        if len(kept) < count:
            warnings.warn(f"{name}, {language}: {count - len(kept)} of {count} rows have {task.skipped}.", stacklevel=2)
        items += kept
    return items


def rows_of(task: Task, name: str, language: str, source: str | Path | None, revision: str | None) -> Any:
    """The rows of one language, from the Hub or a local folder."""
    from datasets import load_dataset  # slow to import, and needed here only

    code = task.codes.get(language, language)
    config = task.config.format(code=code)
    where = str(source or task.hub)
    if task.files is not None and revision is None:
        part: dict[str, Any] = {"data_files": {task.split: task.files.format(config=config, split=task.split)}}
    else:
        part = {"name": config}
    if not Path(where).is_dir():
        part["revision"] = revision or task.revision
    try:
        rows = load_dataset(where, split=task.split, **part)
    except ConnectionError as error:
        raise ConnectionError(
            f"task {name!r} needs {where} ({config}) from the Hugging Face Hub, which cannot be reached. Offline, pass "
            "a local folder of the same shape as source=..., or use load_items."
        ) from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise ValueError(
            f"task {name!r}, {language}: {where} ({config}, split {task.split!r}) cannot be loaded: {error} "
            "Is the language's code right? A copy elsewhere is read with source=... or revision=..."
        ) from error
    if task.column is None:
        return rows
    mine = rows.filter(lambda each: each == code, input_columns=task.column)
    if not len(mine):
        raise ValueError(f"task {name!r}: {where} has no rows in {code!r}, only in {sorted(rows.unique(task.column))}.")
    return mine


def _convert(task: Task, name: str, language: str, row: Row, place: int) -> Item | None:
    where = f"{name}, {language}, row {place}"
    try:
        made = task.convert(row, language)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{where}: not of the expected shape ({type(error).__name__}: {error}): {dict(row)}"
        ) from error
    if made is None:
        return None
    given = {"id": str(place), **made}
    if not all(text.strip() for text in (*given["answers"], *given.get("choices", ()))):
        return None
    try:
        return Item(**given, language=language)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _words(words: Mapping[str, Any], language: str) -> Any:
    label = language.partition("-")[0]
    if label not in words:
        raise ValueError(f"no prompt in {language!r}; there are some in {list(words)}. Make items of your own.")
    return words[label]


def _mgsm(row: Row, language: str) -> dict[str, Any]:
    question, steps = _words(QUESTION, language)[0], _words(STEPS, language)
    return {
        "prompt": f"{question}: {_text(row['question'])}\n{steps}:",
        "answers": (str(int(row["answer_number"])),),
    }


def _xquad(row: Row, language: str) -> dict[str, Any]:
    question, answer = _words(QUESTION, language)
    return {
        "prompt": f"{_text(row['context'])}\n\n{question}: {_text(row['question'])}\n{answer}:\n",
        "answers": tuple(row["answers"]["text"]),
        "id": row["id"],
    }


def _xnli(row: Row, language: str) -> dict[str, Any]:
    choices = tuple(f" {verdict}" for verdict in VERDICTS)
    asked = ", ".join(f'"{verdict}"' for verdict in VERDICTS)
    return {
        "prompt": f'Known: {_text(row["premise"])}\nOf {asked}, the claim "{_text(row["hypothesis"])}" is',
        "choices": choices,
        "answers": (_at(choices, row["label"]),),
    }


def _paws_x(row: Row, language: str) -> dict[str, Any] | None:
    first, second = _text(row["sentence1"]), _text(row["sentence2"])
    if row["label"] == -1 or not first.strip() or not second.strip():
        return None
    return {
        "prompt": f"First: {first}\nSecond: {second}\nDo both say the same, yes or no? Answer:",
        "choices": (" no", " yes"),
        "answers": (_at((" no", " yes"), row["label"]),),
        "id": str(row["id"]),
    }


def _m_lama(row: Row, language: str) -> dict[str, Any] | None:
    before, _, after = _text(row["template"]).partition("[Y]")
    front = before.rstrip()
    if "[X]" not in front or any(map(str.isalnum, after)):
        return None
    return {
        "prompt": front.replace("[X]", _text(row["sub_label"])),
        "answers": (before[len(front) :] + _text(row["obj_label"]),),
        "id": f"{row['predicate_id']} {row['sub_uri']} {row['obj_uri']}",
    }


def _belebele(row: Row, language: str) -> dict[str, Any]:
    choices = tuple(_text(row[f"mc_answer{number}"]) for number in (1, 2, 3, 4))
    return {
        "prompt": f"{_text(row['flores_passage'])}\n\n{_text(row['question'])}\n",
        "choices": choices,
        "answers": (_at(choices, int(row["correct_answer_num"]) - 1),),
    }


def _xcsqa(row: Row, language: str) -> dict[str, Any]:
    choices, key = row["question"]["choices"], row["answerKey"]
    texts = tuple(_text(text) for text in choices["text"])
    return {
        "prompt": f"{_text(row['question']['stem'])}\n",
        "choices": texts,
        "answers": (_at(texts, choices["label"].index(key) if key in choices["label"] else -1),),
        "id": row["id"],
    }


def _xlsum(row: Row, language: str) -> dict[str, Any]:
    return {"prompt": f"{_text(row['text'])}\n\nTL;DR:", "answers": (_text(row["summary"]),), "id": row["id"]}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _at(texts: Sequence[str], place: int) -> str:
    if not 0 <= place < len(texts):
        raise IndexError(f"the answer is none of {len(texts)} choices")
    return texts[place]


# the Hub's own copy as parquet, of data sets that are a loading script
EXPORTED: dict[str, Any] = {"revision": "refs/convert/parquet", "files": "{config}/{split}/*.parquet"}
TASKS: dict[str, Task] = {
    "mgsm": Task("juletxara/mgsm", "test", _mgsm, "last_number", **EXPORTED),
    "xquad": Task("google/xquad", "validation", _xquad, "token_f1", config="xquad.{code}"),
    "xnli": Task("facebook/xnli", "test", _xnli, "choices"),
    "paws_x": Task(
        "google-research-datasets/paws-x", "test", _paws_x, "choices", skipped="an empty sentence or no label"
    ),
    "m_lama": Task(
        "cis-lmu/m_lama",
        "test",
        _m_lama,
        "choices",
        config="all",
        column="language",
        **EXPORTED,
        skipped="a template whose gap is not at its end, or an empty answer",
    ),
    "belebele": Task("facebook/belebele", "test", _belebele, "choices", codes=FLORES),
    "xcsqa": Task("INK-USC/xcsr", "validation", _xcsqa, "choices", config="X-CSQA-{code}", codes={"ja": "jap"}),
    "xlsum": Task("csebuetnlp/xlsum", "test", _xlsum, "rouge_l", codes=BBC, **EXPORTED),
}
