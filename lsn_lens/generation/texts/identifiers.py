"""Language identifiers that name a run's languages, and abstain for other or unclear languages."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.generation.texts.languages import MEMBERS, script_shares, scripts_of
from lsn_lens.generation.texts.strings import count_letters
from lsn_lens.labels import label_list

Guess = tuple[str, float]
Identify = Callable[[Sequence[str]], list[Guess]]  # label and confidence in [0, 1] for each text
Chances = dict[str, float]  # by language code, sum 1
Backend = tuple[
    list[str], Callable[[list[str]], Callable[[str], Chances]]
]  # known codes; codes to compare -> probabilities

UND = "und"  # BCP 47 for a language that could not be determined
THRESHOLD = 0.2
LETTERS = 5
MOSTLY = 0.5  # of the letters


@dataclass(frozen=True)
class Identifier:
    """An `Identify` with the rules for abstaining; made by `identifier`."""

    languages: tuple[str, ...]
    codes: Mapping[str, str]  # the identifier's code -> label
    chances: Callable[[str], Chances]  # of every compared language, for one text
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
        shares = script_shares(text)
        ours = frozenset[str]().union(*map(scripts_of, self.languages))
        if sum(share for script, share in shares.items() if script in ours) <= MOSTLY:
            return UND, 0.0
        chances = self.chances(text)
        if max(chances.values()) <= (1 + 1e-6) / len(chances):  # no evidence: all have 1/k
            return UND, max(chances.values())
        chances = _with_members(chances, self.codes)
        code = max(self.codes, key=chances.__getitem__)
        label, confidence = self.codes[code], chances[code]
        another = confidence < max(chances.values()) or not scripts_of(label) & shares.keys()
        return (UND if another or confidence < self.threshold else label), min(max(float(confidence), 0.0), 1.0)


def identifier(
    languages: Iterable[str],
    name: str = "py3langid",
    *,
    threshold: float | int = THRESHOLD,
    letters: int = LETTERS,
    ruled_out: Iterable[str] = (),
) -> Identifier:
    """A language identifier that names a run's languages, and abstains for every other language.

    A text is compared with all languages that the identifier knows. It is named only if the best language is one of the
    run's.

    Args:
        languages: The run's labels: language codes, also with script or region ("zh-Hans" is asked for as "zh"). What
            comes back are the labels as given.
        name: One of `IDENTIFIERS`: "py3langid", or "lingua" (an extra to install).
        threshold: Smallest confidence, in [0, 1], with which a language is named. Confidences are the identifier's,
            normalised over all languages that it knows.
        letters: Minimum number of letters (`str.isalpha`) of a text. Texts without letters are never identified.
        ruled_out: Codes of languages that no text can be in, for example ["ms"] where Indonesian is expected and Malay
            is not: they are not compared, and their texts would be named as similar languages.

    Returns:
        A function from texts to (label, confidence). "und" stands for: too few letters, or half of them or more in
        scripts that none of the run's languages is written in (confidence 0 for both); another language is more
        probable than the run's; too low a confidence; or no language more probable than another. The members of a
        macrolanguage of the run (`MEMBERS`) count as it, unless they are languages of the run too.

    Raises:
        KeyError: A name or language that is not known.
        ValueError: Fewer than two languages, two labels with one code, a threshold outside [0, 1], a ruled-out language
            of the run.
        ImportError: An identifier that is not installed.
    """
    if name not in IDENTIFIERS:
        raise KeyError(
            f"no identifier {name!r}; there are {list(IDENTIFIERS)}. Any function of texts works in its place."
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected a confidence in [0, 1].")
    labels, excluded = tuple(label_list(languages)), tuple(label_list(ruled_out))
    if len(labels) < 2:
        raise ValueError(f"languages={list(labels)}: expected two or more, as the identifier chooses among them.")
    known, weigh = IDENTIFIERS[name]()
    codes = _codes(labels, known, name)
    out = _codes(excluded, known, name)
    if set(out) & set(codes):
        raise ValueError(f"ruled_out={list(excluded)}: {[codes[c] for c in out if c in codes]} are languages to name.")
    return Identifier(labels, codes, weigh([code for code in known if code not in out]), threshold, letters)


def _with_members(chances: Chances, named: Iterable[str]) -> Chances:
    """Members of a macrolanguage among the named languages count as it, unless they are named themselves."""
    chances = dict(chances)
    for code in set(named) & set(MEMBERS):
        for member in set(MEMBERS[code]) - set(named):
            chances[code] += chances.pop(member, 0.0)
    return chances


def identifier_accuracy(
    texts: Mapping[str, Iterable[str]], identify: Identify, cuts: Sequence[int | None] = (20, 50, 100, None)
) -> pd.DataFrame:
    """The accuracy of an identifier on texts of known language, cut to their first characters.

    Args:
        texts: Language -> texts, for example `{label: corpus.hold_out for label, corpus in corpora.items()}`.
        identify: The identifier to test.
        cuts: Characters to keep; texts that are shorter are left out of that row. None: all texts, whole.

    Returns:
        One row per language and cut: `language`, `characters` (missing for whole texts), `n` texts, and the shares that
        were `correct`, `wrong` and `und`, in [0, 1].
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

    def weigh(codes: list[str]) -> Callable[[str], Chances]:
        model.set_languages(codes)
        return lambda text: dict(model.rank(text))

    return model.labels, weigh


def _lingua() -> Backend:
    try:
        from lingua import Language, LanguageDetectorBuilder  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("the identifier 'lingua' is an extra: pip install 'lsn-lens[lingua]'.") from error
    known = {each.iso_code_639_1.name.lower(): each for each in Language.all()}

    def weigh(codes: list[str]) -> Callable[[str], Chances]:
        detector = LanguageDetectorBuilder.from_languages(*(known[code] for code in codes)).build()

        def chances(text: str) -> Chances:
            values = detector.compute_language_confidence_values(text)
            return {each.language.iso_code_639_1.name.lower(): each.value for each in values}

        return chances

    return sorted(known), weigh


IDENTIFIERS: dict[str, Callable[[], Backend]] = {"py3langid": _py3langid, "lingua": _lingua}
