"""Changed text: the same text in Latin letters or with shuffled words; and the languages of each script."""

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import chain, groupby, islice, pairwise
from typing import Any

from anyascii import anyascii
from fontTools.unicodedata import script

from lsn_lens.generation.texts.strings import UNSPACED
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.records import Records

Corpora = Mapping[str, LanguageCorpus]
Control = Callable[[Corpora], Corpora]
JAPANESE = 0.1  # share of kana in a text's letters from which on its Chinese characters count as Japanese
FIRST = 1000  # documents per language for finding its script
TOGETHER = {"Hira": "Jpan", "Kana": "Jpan", "Hang": "Kore"}  # ISO 15924


def romanised(corpora: Any) -> dict[str, LanguageCorpus]:
    """All text in plain Latin letters (ASCII), by the library anyascii.

    Character by character, without a dictionary: Chinese by its most common reading, without tones; the Chinese
    characters of Japanese as if they were Chinese; Arabic and Hebrew without unwritten vowels. Accents and Vietnamese
    tone marks are removed. Characters without an ASCII form are left out.

    Raises:
        ValueError: All languages have the same script, so that romanising tests nothing.
    """
    corpora = as_corpora(corpora)
    scripts = same_script(corpora)
    if len(scripts) < 2:
        raise DoesNotApply(
            f"all languages, {list(corpora)}, have the same script, {list(scripts)}, so that romanised text would test "
            "nothing. Give languages of several scripts, or use shuffled_words."
        )
    return {label: _changed(each, "romanised", anyascii) for label, each in corpora.items()}


def shuffled_words(corpora: Any, seed: int = 0) -> dict[str, LanguageCorpus]:
    """The words of each document in random order: only the counts of words are kept.

    Where words are not spaced (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan), letters are shuffled. The order
    depends only on the document's text and the seed. Line breaks and double spaces become single spaces.
    """
    corpora = as_corpora(corpora)
    change = partial(_shuffle, seed=seed)
    return {label: _changed(each, f"words shuffled, seed {seed}", change) for label, each in corpora.items()}


def pieces(text: str) -> list[str]:
    """The parts that `shuffled_words` moves: words with punctuation, and letters of scripts without spaces."""
    return [piece for word in text.split() for piece in _cut(word)]


def same_script(corpora: Any) -> dict[str, tuple[str, ...]]:
    """The languages that share a script: ISO 15924 code to languages, in their order.

    A language's script is that of most letters in the first 1,000 documents of its `find` text. Hiragana, katakana and
    Chinese characters in the same text count as "Jpan", hangul as "Kore".

    Raises:
        ValueError: A language whose text has no letters.
    """
    corpora = as_corpora(corpora)
    groups: dict[str, list[str]] = {}
    for label, corpus in corpora.items():
        groups.setdefault(_script_of(label, corpus.find), []).append(label)
    return {name: tuple(labels) for name, labels in groups.items()}


CONTROLS: Mapping[str, Control] = {"romanised": romanised, "shuffled words": shuffled_words}


def _changed(corpus: LanguageCorpus, name: str, change: Callable[[str], str]) -> LanguageCorpus:
    def part(documents: Documents) -> Documents:
        source = documents.records
        altered = Records(
            f"{source.name}, {name}",
            lambda: (change(x) if isinstance(x, str) else x for x in source.read()),
            is_finite=source.is_finite,
        )
        return replace(documents, records=altered)

    return LanguageCorpus(corpus.language, part(corpus.find), part(corpus.hold_out))


def _shuffle(text: str, seed: int) -> str:
    parts = pieces(text)
    random.Random(f"{seed} {text}").shuffle(parts)
    joined = parts[:1]
    for last, part in pairwise(parts):
        apart = not (_is_unspaced(last[0]) or _is_unspaced(part[0])) or _is_mark(part[0])
        joined += [" ", part] if apart else [part]
    return "".join(joined)


def _cut(word: str) -> Iterator[str]:
    """Runs of spaced letters whole, others one by one, each with the marks that follow it."""
    clusters: list[str] = []
    for char in word:
        if clusters and _is_mark(char):
            clusters[-1] += char
        else:
            clusters.append(char)
    for unspaced, run in groupby(clusters, key=lambda cluster: _is_unspaced(cluster[0])):
        letters = list(run)
        yield from letters if unspaced else ["".join(letters)]


@cache
def _is_unspaced(char: str) -> bool:
    return char.isalpha() and unicodedata.name(char, "").startswith(UNSPACED)


@cache
def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def _script_of(label: str, documents: Iterable[str]) -> str:
    letters = Counter(chain.from_iterable(islice(iter(documents), FIRST)))
    counts: Counter[str] = Counter()
    for char, count in letters.items():
        if char.isalpha():
            counts[script(char)] += count
    total = counts.total()
    if not total:
        raise DoesNotApply(f"{label}: the text has no letters, so no script.")
    if (counts["Hira"] + counts["Kana"]) >= JAPANESE * total:
        counts["Hira"] += counts.pop("Hani", 0)
    merged: Counter[str] = Counter()
    for name, count in counts.items():
        merged[TOGETHER.get(name, name)] += count
    return merged.most_common(1)[0][0]
