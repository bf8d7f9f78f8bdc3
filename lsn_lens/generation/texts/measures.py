"""Measures of generated texts: language, agreement with the target language, and quality."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.generation.groups import column_of, groups_of, names_of, share_of
from lsn_lens.generation.texts.identifiers import UND, Guess, Identify
from lsn_lens.generation.texts.strings import count_letters, count_tokens, distinct, lines_of, longest_run, repetition
from lsn_lens.labels import label_list

BAR, TOKENS = 0.3, 5  # of the Language Confusion Benchmark: a line's score, and its fewest tokens


def measure_texts(frame: pd.DataFrame, identify: Identify, second: Identify | None = None) -> pd.DataFrame:
    """Measure each text by itself.

    Args:
        frame: Has a column `text`; all its columns are kept.
        identify: Names each text's language: `identifier(languages)`, or a function of your own.
        second: Another one, to see where the two disagree.

    Returns:
        The frame and the columns `language` ("und" where the identifier abstains), `confidence` in [0, 1],
        `second_language` and `agree` (only with `second`; two abstentions agree), `letters`, `lines` (those with
        anything on them), `repetition` and `longest_run` (see these functions).

    Raises:
        KeyError: No column `text`.
        ValueError: No rows, rows without text, columns that would be overwritten.
    """
    texts = _texts(frame)
    found = _identified(identify, texts)
    new: dict[str, Any] = {"language": [label for label, _ in found], "confidence": [score for _, score in found]}
    if second is not None:
        new["second_language"] = [label for label, _ in _identified(second, texts)]
        new["agree"] = [one == other for one, other in zip(new["language"], new["second_language"], strict=True)]
    measures = {"letters": count_letters, "repetition": repetition, "longest_run": longest_run}
    new |= {name: [measure(text) for text in texts] for name, measure in measures.items()}
    new["lines"] = [len(lines_of(text)) for text in texts]
    taken = sorted(set(new) & set(frame.columns))
    if taken:
        raise ValueError(f"the frame has columns {taken} already, which measuring would overwrite. Rename them first.")
    measured = frame.assign(**new)
    measured.attrs["languages"] = _known(identify)
    return measured


def language_shares(
    measured: pd.DataFrame,
    by: str | Sequence[str] = (),
    languages: Iterable[str] | None = None,
    *,
    column: str = "language",
) -> pd.DataFrame:
    """The number and share of texts per group and language.

    Args:
        measured: From `measure_texts`.
        by: Columns that form groups; none for all texts together.
        languages: Languages to list, in this order, also where no text is in them. By default the identifier's.
        column: "language" or "second_language".

    Returns:
        One row per group and language, "und" last: the columns of `by`, `language`, `count`, `n` (texts of the group),
        `share` in [0, 1], and its 95 % interval `low`, `high` (Wilson's, for texts drawn independently).
    """
    found = column_of(measured, column)
    labels = _labels(measured, found, languages)
    rows = []
    for key, here in groups_of(measured, by, ["language", "count", "n", "share", "low", "high"]):
        for label in [*labels, UND]:
            count = int((found[here] == label).sum())
            rows.append({**key, "language": label, "count": count, "n": len(here), **share_of(count, len(here))})
    return pd.DataFrame(rows)


def pass_rates(
    measured: pd.DataFrame,
    target: str,
    identify: Identify,
    by: str | Sequence[str] = (),
    *,
    confidence: float | int = BAR,
    tokens: int = TOKENS,
) -> pd.DataFrame:
    """The share of texts in the target language, as a whole and line by line.

    A text or line passes if it is identified as the target with more than `confidence`. Pass `identifier(languages,
    threshold=0)`, so that this threshold decides; texts on which the identifier abstains fail.

    Args:
        measured: Has a column `text`, and the columns of `by`.
        target: A column with each text's target, or else one label for all.
        identify: Asked about whole texts and about lines.
        by: Columns that form groups; none for all texts together.
        confidence: What a text or line must exceed.
        tokens: Fewest tokens of a line that is judged: words with a letter, and where words are not spaced (Chinese,
            Japanese, Thai, Lao, Khmer, Burmese, Tibetan) letters.

    Returns:
        One row per group: the columns of `by`, `n` texts, `response_pass_rate` (texts that pass as a whole, of `n`),
        `judged` (texts with a line that is judged), `line_pass_rate` (texts whose judged lines all pass, of `judged`),
        `line_share` (mean over `judged` of the share of a text's judged lines that pass), `lines` and `short_lines`
        (judged, and too short to be; empty ones count as neither), and the Wilson 95 % intervals `response_low`,
        `response_high`, `line_low`, `line_high`. NaN where nothing could be judged.

    Raises:
        KeyError: A target that is neither a column nor a language of the identifier.

    Source: `line_pass_rate` and `line_share` are `lpr` and `acc` of the Language Confusion Benchmark's released code,
    with another identifier, and another way to count tokens (it removes punctuation, and cuts Chinese and Japanese
    into words). The response-level rate is ours.
    """
    texts = _texts(measured)
    pairs = [(row, line) for row, text in enumerate(texts) for line in lines_of(text)]
    judged = [(row, line) for row, line in pairs if count_tokens(line) >= tokens]
    whole = _identified(identify, texts)
    found = _identified(identify, [line for _, line in judged])
    wanted = _targets(measured, target, identify, {label for label, _ in whole + found})

    def passes(row: int, guess: Guess) -> bool:
        return guess[0] == wanted[row] and guess[1] > confidence

    good = np.array([passes(row, guess) for row, guess in enumerate(whole)])
    fine = [row for (row, _), guess in zip(judged, found, strict=True) if passes(row, guess)]
    lines, kept, fine = (np.bincount(np.array(each, dtype=int), minlength=len(texts)) for each in (
        [row for row, _ in pairs], [row for row, _ in judged], fine
    ))  # fmt: skip
    added = ["n", "judged", "lines", "short_lines"]
    rows = [
        {**key, **_rates(good[here], lines[here], kept[here], fine[here])}
        for key, here in groups_of(measured, by, added)
    ]
    return pd.DataFrame(rows)


def fallbacks(
    measured: pd.DataFrame, target: str, by: str | Sequence[str] = (), languages: Iterable[str] | None = None
) -> pd.DataFrame:
    """The languages that replace the target: those of texts that are not in it.

    Args:
        measured: From `measure_texts`.
        target: The column with each text's target.
        by: Columns that make groups; each is taken apart by target too.
        languages: Languages to list, in this order. By default the identifier's.

    Returns:
        One row per group, target and other language, "und" last: the columns of `by`, `target`, `language`, `count`,
        `n` (texts with this target), `missed` (those not in it), `share` (`count` of `missed`, in [0, 1]) and
        `fallback` (the most frequent of the others, "und" among them; of equals the first listed). `share` and
        `fallback` are missing where every text is in the target.
    """
    found, wanted = column_of(measured, "language"), column_of(measured, target)
    _check_targets(wanted)
    labels = _labels(measured, [*found, *wanted], languages)
    names = [name for name in names_of(by) if name != target]
    rows = []
    for key, here in groups_of(measured, [*names, target], ["language", "count", "missed", "share", "fallback"]):
        mine = key.pop(target)
        counts = {label: int((found[here] == label).sum()) for label in [*labels, UND] if label != mine}
        missed = sum(counts.values())
        same = {"n": len(here), "missed": missed}
        fallback = max(counts, key=lambda label: counts[label]) if missed else None
        for label, count in counts.items():
            share = count / missed if missed else math.nan
            row = {**key, "target": mine, "language": label, "count": count, **same, "share": share}
            rows.append(row | {"fallback": fallback})
    return pd.DataFrame(rows)


def text_summary(measured: pd.DataFrame, by: str | Sequence[str] = (), *, units: str = "text") -> pd.DataFrame:
    """One row per group with language shares and text quality.

    Args:
        measured: From `measure_texts`.
        by: Columns that form groups; none for all texts together.
        units: The column whose n-grams `distinct` counts: "text" for characters, or one with token ids.

    Returns:
        The columns of `by`, `n` texts, `share_<language>` for each language and `share_und`, means over the texts of
        `letters`, `lines`, `longest_run` and `repetition` (of the texts long enough to have one; `without_repetition`
        counts the others), `distinct_1`, `distinct_2` and `distinct_3`, and `agree` where there is a second identifier.
    """
    found, pieces = column_of(measured, "language"), column_of(measured, units)
    labels = _labels(measured, found, None)
    means = ["letters", "lines", "longest_run", "repetition", *(["agree"] if "agree" in measured else [])]
    columns = {name: column_of(measured, name).astype(float) for name in means}
    rows = []
    for key, here in groups_of(measured, by, ["n", *means]):
        shares = {f"share_{label}": float((found[here] == label).mean()) for label in [*labels, UND]}
        row = {**key, "n": len(here), **shares}
        row |= {name: float(pd.Series(values[here]).mean()) for name, values in columns.items()}
        row["without_repetition"] = int(np.isnan(columns["repetition"][here]).sum())
        rows.append(row | {f"distinct_{n}": distinct(pieces[here], n) for n in (1, 2, 3)})
    return pd.DataFrame(rows)


def _rates(good: np.ndarray, lines: np.ndarray, kept: np.ndarray, fine: np.ndarray) -> dict[str, Any]:
    """The row of one group, from each text's lines, judged lines and lines that pass."""
    some = kept > 0
    response = share_of(int(good.sum()), len(good))
    line = share_of(int((fine == kept)[some].sum()), int(some.sum()))
    return {
        "n": len(good),
        "response_pass_rate": response["share"],
        "judged": int(some.sum()),
        "line_pass_rate": line["share"],
        "line_share": float((fine[some] / kept[some]).mean()) if some.any() else math.nan,
        "lines": int(kept.sum()),
        "short_lines": int((lines - kept).sum()),
        **{f"response_{end}": response[end] for end in ("low", "high")},
        **{f"line_{end}": line[end] for end in ("low", "high")},
    }


def _identified(identify: Identify, texts: list[str]) -> list[Guess]:
    found = list(identify(texts)) if texts else []
    if len(found) != len(texts):
        raise ValueError(f"the identifier gave {len(found)} results for {len(texts)} texts: expected one for each.")
    return found


def _known(identify: Identify) -> list[str]:
    """The languages an identifier chooses from; none said for most functions of users."""
    languages: Iterable[str] = getattr(identify, "languages", ())
    return list(languages)


def _texts(frame: pd.DataFrame) -> list[str]:
    texts = column_of(frame, "text").tolist()
    wrong = sum(not isinstance(text, str) for text in texts)
    if wrong:
        raise ValueError(f"{wrong} of {len(texts)} rows have no text in the column 'text': drop them, or put '' there.")
    return texts


def _labels(measured: pd.DataFrame, seen: Sequence[Any] | np.ndarray, languages: Iterable[str] | None) -> list[str]:
    """Languages in their order; without one said or known, in the alphabet's."""
    wanted = measured.attrs.get("languages") if languages is None else label_list(languages)
    found = set(seen) - {UND}
    labels = [label for label in dict.fromkeys(wanted or sorted(found)) if label != UND]
    missing = sorted(found - set(labels))
    if missing:
        raise KeyError(
            f"{missing[:5]} are in the table, but not among the languages {labels}: shares would not add up. "
            "Name all in languages=."
        )
    return labels


def _check_targets(wanted: Iterable[Any]) -> None:
    without = sum(not isinstance(label, str) or label == UND for label in wanted)
    if without:
        raise ValueError(f"{without} texts have no language as their target: drop them, or say their target.")


def _targets(frame: pd.DataFrame, target: str, identify: Identify, seen: set[str]) -> list[str]:
    """Each text's target. Without known languages, a label must be one that the identifier gave to something here."""
    is_column = target in frame.columns
    wanted = column_of(frame, target).tolist() if is_column else [target] * len(frame)
    _check_targets(wanted)
    known = _known(identify) or (wanted if is_column else sorted(seen))
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        columns = list(frame.columns)
        what = f"in the column {target!r}" if is_column else f"and no column either; the columns are {columns}"
        raise KeyError(f"{unknown[:5]}: no language of the identifier, which knows {known} ({what}).")
    return wanted
