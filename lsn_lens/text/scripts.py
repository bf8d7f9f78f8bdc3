"""The script of a letter."""

import unicodedata
from functools import cache

HAN = ("CJK", "IDEOGRAPHIC")  # how Unicode's names of Han characters begin
NO_SCRIPTS = ("MODIFIER", "COMBINING", "FEMININE", "MASCULINE")  # how the names of letters without a script begin


@cache
def script_of(character: str) -> str | None:
    """The script of a letter by its Unicode name, such as "LATIN" or "HAN"; None for any other character.

    Full-width and other compatibility forms count as the letters that they stand for.
    """
    plain = unicodedata.normalize("NFKC", character)[:1] or character
    if unicodedata.category(plain)[0] not in "LM":
        return None
    first = unicodedata.name(plain, "").replace("-", " ").partition(" ")[0]
    if first in HAN:
        return "HAN"
    return None if first in NO_SCRIPTS or not first else first
