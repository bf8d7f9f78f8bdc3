"""Language-independent measures of a text: amount and repetition."""

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

REPEATED = 10  # characters of the n-grams that `repetition` counts
# beginnings of the Unicode names of letters in scripts without spaces
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def count_letters(text: str) -> int:
    """The number of letters of any script."""
    return sum(map(str.isalpha, text))


def count_tokens(line: str) -> int:
    """Words with a letter in them; where words are not spaced (Chinese, Japanese, Thai ...), letters."""
    total = 0
    for word in line.split():
        letters = [char for char in word if char.isalpha()]
        unspaced = sum(unicodedata.name(char, "").startswith(UNSPACED) for char in letters)
        total += unspaced or bool(letters)
    return total


def lines_of(text: str) -> list[str]:
    """The lines with anything on them."""
    return [line for line in text.splitlines() if line.strip()]


def distinct(texts: Iterable[Any], n: int) -> float:
    """Different n-grams of a group of texts, over all its n-grams: 1 where none comes twice.

    Args:
        texts: Strings, whose units are characters (in every language, so that scripts without spaces need no rule of
            their own), or sequences of token ids, whose units are tokens.
        n: Units of an n-gram. None reaches from one text into the next.

    Returns:
        A share in (0, 1]; NaN where no text has n units. It falls as a group gets more text, and differs between
        scripts and tokenizers: compare groups of one language with about as much text.

    Source: distinct-n of Li et al. 2016, over tokens of the generated text. Characters as units are ours.
    """
    if n < 1:
        raise ValueError(f"n={n}: expected 1 or more units.")
    seen: set[Any] = set()
    total = 0
    for text in texts:
        grams = _ngrams(text, n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else math.nan


def repetition(text: str, n: int = REPEATED) -> float:
    """Share of a text's character n-grams that came before in it: 0 without, towards 1 in a loop.

    Characters, so that it needs no words. NaN for texts shorter than n. The definition is ours.
    """
    return 1 - distinct([text], n)


def longest_run(text: str) -> int:
    """Characters of the longest stretch in which something follows itself at once: 9 in "so ha ha ha.".

    The repeated part can have any length and must occur at least twice in full; else 0. The definition is ours.
    """
    chars = np.array([ord(char) for char in text])
    longest = 0
    for period in range(1, len(chars) // 2 + 1):
        same = chars[period:] == chars[:-period]
        if same.sum() < period:  # too few for one whole repetition
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
        run = int((edges[1::2] - edges[::2]).max())
        if run >= period:
            longest = max(longest, run + period)
    return longest


def _ngrams(text: Any, n: int) -> list[Any]:
    if isinstance(text, str):
        return [text[start : start + n] for start in range(len(text) - n + 1)]
    units = text.tolist() if hasattr(text, "tolist") else text
    return [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
