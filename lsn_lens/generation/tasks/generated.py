"""Scores of generated answers: numbers, extracted spans, summaries."""
# ruff: noqa: RUF001

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lsn_lens.generation.tasks.items import Item
from lsn_lens.generation.tasks.numerals import alike, numbers

PUBLISHED = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
DOTLESS = {"tr", "tur", "az", "aze", "crh", "tt"}  # languages with an i that has no dot
RAISED = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺")
# places where a line may break (Khmer, Burmese, Lao), a soft hyphen; joiners, which change letters, stay
INVISIBLE = frozenset("\u200b\u00ad\u2060\ufeff")
BETWEEN = frozenset(
    "-/:.,"
)  # marks that belong to what they stand between, where these are numbers: times, dates, ranges
UNSPACED = re.compile(  # scripts that put no spaces between words: each character is a unit
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Metric:
    """`read` extracts the answer from a text, `compare` gives a score in [0, 1] for the text and one right answer.

    Both get the language last. `exact`: the score is 0 or 1.
    """

    read: Callable[[str, str], object]
    compare: Callable[[str, str, str], float]
    exact: bool


def evaluate_generated(
    texts: Iterable[str] | Callable[[list[str]], Iterable[str]],
    items: Iterable[Item],
    metric: Literal["last_number", "last_number_as_published", "exact_match", "token_f1", "rouge_l"],
) -> pd.DataFrame:
    """Compare generated texts with the answers of items.

    Args:
        texts: One text for each item, in order, or a function that makes them from the items' prompts.
        items: Items; of several answers the best match counts.
        metric: "last_number": the number read by `last_number` equals the answer's, both read as the item's language
            writes them; "last_number_as_published": by `published_number`; "exact_match": equal after `normalised`;
            "token_f1": F1 of the units of both, as in SQuAD; "rouge_l": F1 of their longest common subsequence. See
            `units`.

    Returns:
        One row per item: `language`, `id`, `text`, `read` (the part that the metric used), `score` in [0, 1], and for
        the first three metrics `correct`, so that `accuracy` and `accuracy_change` take the table.

    Raises:
        ValueError: Another number of texts than items, a text that is not text, an answer without a number for
            the metrics that read one, or an unknown metric.

    Source: "last_number_as_published" follows the protocol for MGSM of Zhao et al. 2024 (arXiv 2402.18815), released
    code. It reads 1.250 as 1 and 1 250 as 250, so it finds fewer right answers in languages that write so;
    "last_number" is ours. A text without a number is read as None and wrong; there it counts as -1.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: expected one of {list(METRICS)}.")
    items = list(items)
    written = list(texts([item.prompt for item in items]) if callable(texts) else texts)
    if len(written) != len(items) or isinstance(texts, str):
        raise ValueError(f"{len(written)} texts for {len(items)} items: expected one for each.")
    chosen = METRICS[metric]
    rows = []
    for item, text in zip(items, written, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"{item.name}: expected a text, got {text!r}.")
        needs = metric.startswith("last_number")
        lacking = [answer for answer in item.answers if needs and chosen.read(answer, item.language) is None]
        if lacking:
            raise ValueError(f"{item.name}: the answer {lacking[0]!r} has no number.")
        value = max(chosen.compare(text, answer, item.language) for answer in item.answers)
        read = chosen.read(text, item.language)
        row = {"language": item.language, "id": item.id, "text": text, "read": read, "score": value}
        rows.append({**row, "correct": value == 1.0} if chosen.exact else row)
    whole = pd.Series([row["read"] for row in rows], dtype=object)  # keeps None and whole numbers
    return pd.DataFrame(rows).assign(read=whole)


def last_number(text: str, language: str = "") -> int | float | None:
    """The last number of a text, as its language writes numbers (see `numbers`); None without one."""
    found = [number.value for number in numbers(alike(text), language)]
    if not found:
        return None
    return int(found[-1]) if found[-1].denominator == 1 else float(found[-1])


def published_number(text: str, language: str = "") -> int | None:
    """The last number of a text, in every language with commas dropped, cut to a whole number; None without one."""
    found = PUBLISHED.findall(text)  # one after `####` is the last of the text too
    return int(found[-1].replace(",", "").partition(".")[0]) if found else None


def normalised(text: str, language: str = "") -> str:
    """Without case, punctuation and invisible marks, compatibility forms made one (NFKC), one space between words.

    Numbers are written in plain digits with their sign, decimal point or fraction; marks between numbers, as in 10:30,
    stay. Case is folded by language: i and I in Turkish and Azerbaijani are two letters. Articles stay, unlike in
    SQuAD's script, which knows English only.
    """
    text, kept, place = alike(text), "", 0
    for number in numbers(text, language):
        currency = "".join(c for c in text[number.start : number.end] if unicodedata.category(c) == "Sc")  # -$5
        front = text[place : number.start]
        joined = kept[-1:].isdecimal() and front in BETWEEN
        kept += (front if joined else _bare(front, language, kept)) + currency + number.written
        place = number.end
    return " ".join((kept + _bare(text[place:], language, kept)).split())


def _bare(text: str, language: str, before: str) -> str:
    """The text between numbers, without case and punctuation; a superscript after a number is not part of it."""
    power = "^" if before[-1:].isdecimal() and text[:1] in RAISED else ""
    kept = (c for c in _folded(text, language) if c not in INVISIBLE and not unicodedata.category(c).startswith("P"))
    return power + "".join(kept)


def _folded(text: str, language: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    if re.split("[-_]", language.lower())[0] in DOTLESS:
        text = text.replace("I", "ı")
    return unicodedata.normalize("NFKC", text.casefold().replace("i\u0307", "i"))


def units(text: str, language: str = "") -> list[str]:
    """Words of the normalised text; in scripts without spaces (Han, kana, Thai, Lao, Khmer, Burmese) characters."""
    return UNSPACED.sub(r" \g<0> ", normalised(text, language)).split()


def token_f1(text: str, answer: str, language: str = "") -> float:
    """Harmonic mean of precision and recall of the units, counted with repeats."""
    first, second = (units(each, language) for each in (text, answer))
    return _f1((Counter(first) & Counter(second)).total(), len(first), len(second))


def rouge_l(text: str, answer: str, language: str = "") -> float:
    """F1 of the longest common subsequence of the units (Lin 2004, with beta = 1, no stemming)."""
    first, second = (units(each, language) for each in (text, answer))
    lengths = [0] * (len(second) + 1)
    for each in first:
        before = lengths
        lengths = [0]
        for place, other in enumerate(second):
            lengths.append(before[place] + 1 if each == other else max(before[place + 1], lengths[place]))
    return _f1(lengths[-1], len(first), len(second))


def _f1(common: int, first: int, second: int) -> float:
    """Two texts without units are equal."""
    return 2 * common / (first + second) if first + second else 1.0


def _equal(read: Callable[[str, str], object]) -> Metric:
    return Metric(
        read, lambda text, answer, language: float(read(text, language) == read(answer, language)), exact=True
    )


METRICS: dict[str, Metric] = {
    "last_number": _equal(last_number),
    "last_number_as_published": _equal(published_number),
    "exact_match": _equal(normalised),
    "token_f1": Metric(normalised, token_f1, exact=False),
    "rouge_l": Metric(normalised, rouge_l, exact=False),
}
