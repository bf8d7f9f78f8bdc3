"""What written answers are worth: numbers, extracted spans, summaries."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lsn_lens.evaluation.tasks.items import Item

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
UNSPACED = re.compile(  # scripts that put no spaces between words: each character is a unit
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Metric:
    """`read` takes what counts out of a text, `compare` gives a share in [0, 1] for the text and one right answer.

    `exact`: nothing between right and wrong.
    """

    read: Callable[[str], object]
    compare: Callable[[str, str], float]
    exact: bool


def evaluate_generated(
    texts: Iterable[str] | Callable[[list[str]], Iterable[str]],
    items: Iterable[Item],
    metric: Literal["last_number", "exact_match", "token_f1", "rouge_l"],
) -> pd.DataFrame:
    """Compare what a model wrote with the answers of items.

    Args:
        texts: One text for each item, in order, or a function that makes them from the items' prompts.
        items: Of several answers, the one that the text compares best with counts.
        metric: "last_number": the number read by `last_number` equals the answer's; "exact_match": equal after
            `normalised`; "token_f1": F1 of the units of both, as in SQuAD; "rouge_l": F1 of their longest common
            subsequence. Units are those of `units`.

    Returns:
        One row an item: `language`, `id`, `text`, `read` (what the metric looked at), `score` in [0, 1], and for the
        first two metrics `correct`, so that `accuracy` and `accuracy_change` take the table.

    Raises:
        ValueError: Another number of texts than items, a text that is not text, an answer without a number for
            "last_number", or an unknown metric.

    Source: "last_number" follows the protocol for MGSM of Zhao et al. 2024 (arXiv 2402.18815), released code: the
    last number after `####`, or of the text; commas dropped, cut to a whole number. A text without a number is read
    as None and wrong; there it counts as -1.
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
        lacking = [answer for answer in item.answers if metric == "last_number" and last_number(answer) is None]
        if lacking:
            raise ValueError(f"{item.name}: the answer {lacking[0]!r} has no number.")
        value = max(chosen.compare(text, answer) for answer in item.answers)
        row = {"language": item.language, "id": item.id, "text": text, "read": chosen.read(text), "score": value}
        rows.append({**row, "correct": value == 1.0} if chosen.exact else row)
    read = pd.Series([row["read"] for row in rows], dtype=object)  # None stays None, and a number whole
    return pd.DataFrame(rows).assign(read=read)


def last_number(text: str) -> int | None:
    """The last number of a text, cut to a whole number; None without one."""
    numbers = NUMBER.findall(text)  # one after `####` is the last of the text too
    return int(numbers[-1].replace(",", "").partition(".")[0]) if numbers else None


def normalised(text: str) -> str:
    """Lower case, compatibility forms made one (NFKC), without punctuation, one space between words.

    Articles stay, unlike in SQuAD's script, which knows English only.
    """
    kept = (c for c in unicodedata.normalize("NFKC", text).lower() if not unicodedata.category(c).startswith("P"))
    return " ".join("".join(kept).split())


def units(text: str) -> list[str]:
    """Words of the normalised text; in scripts without spaces (Han, kana, Thai, Lao, Khmer, Burmese) characters."""
    return UNSPACED.sub(r" \g<0> ", normalised(text)).split()


def token_f1(text: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the units, counted with repeats."""
    first, second = units(text), units(answer)
    return _f1((Counter(first) & Counter(second)).total(), len(first), len(second))


def rouge_l(text: str, answer: str) -> float:
    """F1 of the longest common subsequence of the units (Lin 2004, with beta = 1, no stemming)."""
    first, second = units(text), units(answer)
    lengths = [0] * (len(second) + 1)
    for each in first:
        before = lengths
        lengths = [0]
        for place, other in enumerate(second):
            lengths.append(before[place] + 1 if each == other else max(before[place + 1], lengths[place]))
    return _f1(lengths[-1], len(first), len(second))


def _f1(common: int, first: int, second: int) -> float:
    """Without units on either side both say nothing: equal."""
    return 2 * common / (first + second) if first + second else 1.0


def _equal(read: Callable[[str], object]) -> Metric:
    return Metric(read, lambda text, answer: float(read(text) == read(answer)), exact=True)


METRICS: dict[str, Metric] = {
    "last_number": _equal(last_number),
    "exact_match": _equal(normalised),
    "token_f1": Metric(normalised, token_f1, exact=False),
    "rouge_l": Metric(normalised, rouge_l, exact=False),
}
