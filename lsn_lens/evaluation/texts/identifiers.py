"""Which language is a text in? Identifiers restricted to a run's languages, that abstain where they cannot tell."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.evaluation.texts.strings import count_letters
from lsn_lens.labels import label_list

Guess = tuple[str, float]
Identify = Callable[[Sequence[str]], list[Guess]]  # label and confidence in [0, 1] for each text
Backend = tuple[list[str], Callable[[list[str]], Callable[[str], Guess]]]  # codes known; codes wanted -> guess

UND = "und"  # BCP 47 for a language that could not be determined
THRESHOLD = 0.8
LETTERS = 5


@dataclass(frozen=True)
class Identifier:
    """An `Identify` with the rules for abstaining; made by `identifier`."""

    languages: tuple[str, ...]
    guess: Callable[[str], Guess]  # most probable label and its probability, for one text
    threshold: float | int
    letters: int

    def __call__(self, texts: Sequence[str]) -> list[Guess]:
        """Label and confidence for each text; "und" where the identifier abstains."""
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, got one text, {texts[:40]!r}. Put it in a list.")
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Guess:
        if count_letters(text) < max(self.letters, 1):
            return UND, 0.0
        label, confidence = self.guess(text)
        knows_nothing = confidence <= (1 + 1e-6) / len(self.languages)  # the best of k has 1/k or more
        return (UND if knows_nothing or confidence < self.threshold else label), confidence


def identifier(
    languages: str | Iterable[str],
    name: str = "py3langid",
    *,
    threshold: float | int = THRESHOLD,
    letters: int = LETTERS,
) -> Identifier:
    """A language identifier that chooses among the languages of a run, or abstains.

    Args:
        languages: The run's labels: language codes, also with script or region ("zh-Hans" is asked for as "zh"). What
            comes back are the labels as given.
        name: One of `IDENTIFIERS`: "py3langid", or "lingua" (an extra to install).
        threshold: Smallest confidence, in [0, 1], with which a language is named. Confidences are those of the
            identifier, shared out among these languages only.
        letters: Fewest letters (`str.isalpha`) a text must have. Texts without letters are never identified.

    Returns:
        A function from texts to (label, confidence). "und" stands for: too few letters (confidence 0), too low a
        confidence, or no language more probable than another.

    Raises:
        KeyError: A name or language that is not known.
        ValueError: Fewer than two languages, two labels with one code, a threshold outside [0, 1].
        ImportError: An identifier that is not installed.
    """
    if name not in IDENTIFIERS:
        raise KeyError(
            f"no identifier {name!r}; there are {list(IDENTIFIERS)}. Any function of texts works in its place."
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected a confidence in [0, 1].")
    labels = tuple(label_list(languages))
    if len(labels) < 2:
        raise ValueError(f"languages={list(labels)}: expected two or more, as the identifier chooses among them.")
    known, restrict = IDENTIFIERS[name]()
    codes = _codes(labels, known, name)
    best = restrict(list(codes))

    def guess(text: str) -> Guess:
        code, confidence = best(text)
        return codes[code], min(max(float(confidence), 0.0), 1.0)

    return Identifier(labels, guess, threshold, letters)


def identifier_accuracy(
    texts: Mapping[str, Iterable[str]], identify: Identify, cuts: Sequence[int | None] = (20, 50, 100, None)
) -> pd.DataFrame:
    """How well an identifier does on texts whose language is known, cut to their first characters.

    Args:
        texts: Language -> texts, for example `{label: corpus.hold_out for label, corpus in corpora.items()}`.
        identify: What to test.
        cuts: Characters to keep; texts that are shorter are left out of that row. None: all texts, whole.

    Returns:
        One row for each language and cut: `language`, `characters` (missing for whole texts), `n` texts, and the shares
        that were `correct`, `wrong` and `und`, in [0, 1].
    """
    if not texts:
        raise ValueError("no texts: expected a mapping from language to texts in it.")
    rows = []
    for label, each in texts.items():
        whole = list(each)
        for cut in cuts:
            kept = whole if cut is None else [text[:cut] for text in whole if len(text) >= cut]
            found = np.array([language for language, _ in identify(kept)], dtype=object)
            shares = {"correct": found == label, "wrong": (found != label) & (found != UND), "und": found == UND}
            means = {name: float(hits.mean()) if len(kept) else np.nan for name, hits in shares.items()}
            rows.append({"language": label, "characters": cut, "n": len(kept), **means})
    return pd.DataFrame(rows).astype({"characters": "Int64"})


def _codes(labels: Sequence[str], known: list[str], name: str) -> dict[str, str]:
    """The identifier's code -> the run's label."""
    codes: dict[str, str] = {}
    unknown = []
    for label in labels:
        code = re.split("[-_]", label)[0].lower()
        if code not in known:
            unknown.append(label)
        elif code in codes:
            raise ValueError(
                f"{codes[code]!r} and {label!r} are both {code!r} to {name}, which cannot tell them apart. "
                "Identify one of them only, or pass a function of your own that can."
            )
        codes[code] = label
    if unknown:
        raise KeyError(
            f"{name} does not know {unknown}; it knows {', '.join(sorted(known))}. "
            "For other labels pass your own function from texts to (label, confidence) pairs instead."
        )
    return codes


@cache
def _py3langid_model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its module-global identifier stays untouched

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _py3langid() -> Backend:
    model = copy(_py3langid_model())  # restricting one leaves the other copies' tables alone

    def restrict(codes: list[str]) -> Callable[[str], Guess]:
        model.set_languages(codes)
        return model.classify

    return model.labels, restrict


def _lingua() -> Backend:
    try:
        from lingua import Language, LanguageDetectorBuilder  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("the identifier 'lingua' is an extra: pip install 'lsn-lens[lingua]'.") from error
    known = {each.iso_code_639_1.name.lower(): each for each in Language.all()}

    def restrict(codes: list[str]) -> Callable[[str], Guess]:
        detector = LanguageDetectorBuilder.from_languages(*(known[code] for code in codes)).build()

        def guess(text: str) -> Guess:
            best = detector.compute_language_confidence_values(text)[0]
            return best.language.iso_code_639_1.name.lower(), best.value

        return guess

    return sorted(known), restrict


IDENTIFIERS: dict[str, Callable[[], Backend]] = {"py3langid": _py3langid, "lingua": _lingua}
