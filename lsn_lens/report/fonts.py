"""Fonts for a figure's labels: installed fonts with the letters, or ASCII substitutes."""

import itertools
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from anyascii import anyascii
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from matplotlib import font_manager, ft2font

from lsn_lens.text.scripts import script_of

# scripts that need text shaping, which older matplotlib lacks
SHAPED_NAMES = """
ARABIC BALINESE BENGALI DEVANAGARI GUJARATI GURMUKHI HEBREW JAVANESE KANNADA KHMER LAO MALAYALAM MONGOLIAN MYANMAR
NKO ORIYA SINHALA SYRIAC TAMIL TELUGU THAANA THAI TIBETAN
"""
SHAPED = frozenset(SHAPED_NAMES.split())
# script -> Debian package and font; all other scripts are in the first package
PACKAGES = {
    **dict.fromkeys(("HAN", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"), ("fonts-noto-cjk", "Noto Sans CJK")),
    "symbols": ("fonts-symbola", "Symbola"),
}
PREFERRED = ("Noto Sans", "Noto", "Source Han Sans", "Symbola")  # beginnings of names; then alphabetically


@dataclass(frozen=True)
class Lettering:
    """Fonts and substitutes for labels.

    Attributes:
        families: Font names, matplotlib's default first.
        substitutes: Label -> its substitute, for labels that no font can draw.
    """

    families: tuple[str, ...]
    substitutes: Mapping[str, str]

    def of(self, label: object) -> str:
        """The text to draw for a label."""
        return self.substitutes.get(str(label), str(label))


def lettering(labels: Iterable[object]) -> Lettering:
    """Find fonts for labels.

    Letters that no installed font has are written in ASCII (by anyascii), and different labels stay different.

    Warns:
        UserWarning: Letters without a font; the warning names their scripts and a font for each.
    """
    texts = list(dict.fromkeys(map(str, labels)))
    families, wanted = _usual(), {char for text in texts for char in text if not _silent(char)}
    covered = set().union(*(_covered(path) for path in map(_upright().get, families) if path))
    missing = {char for char in wanted if ord(char) not in covered}
    drawn = {char for char in missing if _can_shape() or script_of(char) not in SHAPED}
    for name, characters in _others():
        found = {char for char in drawn if ord(char) in characters}
        if found:
            families, drawn, missing = [*families, name], drawn - found, missing - found
        if not drawn:
            break
    if not _can_shape():
        missing |= {char for char in wanted if script_of(char) in SHAPED}
    if missing:
        _warn(missing)
    return Lettering(tuple(families), _substitutes(texts, missing))


def _substitutes(texts: list[str], missing: set[str]) -> dict[str, str]:
    taken, found = {text for text in texts if not missing & set(text)}, {}
    for text in texts:
        if missing & set(text):
            plain = _in_ascii(text, missing)
            names = itertools.chain([plain], (f"{plain} ({number})" for number in itertools.count(2)))
            found[text] = next(name for name in names if name not in taken)
            taken.add(found[text])
    return found


def _in_ascii(text: str, missing: set[str]) -> str:
    """A text with every letter of the missing scripts in ASCII, so that no word mixes both."""
    scripts = {script_of(char) for char in missing} - {None}
    runs = itertools.groupby(text, lambda char: char in missing or script_of(char) in scripts)
    pieces = []
    for foreign, run in runs:
        piece = "".join(run)
        plain = anyascii(piece) if foreign else piece
        codes = [f"U+{ord(char):04X}" for char in piece if not _silent(char)]
        pieces.append(plain if plain.strip() or not codes else " ".join(codes))
    return "".join(pieces)


def _warn(missing: set[str]) -> None:
    scripts: dict[str, list[str]] = {}
    for char in sorted(missing):
        scripts.setdefault(script_of(char) or "symbols", []).append(char)
    told = []
    for script, characters in scripts.items():
        package, font = PACKAGES.get(script, ("fonts-noto-core", f"Noto Sans {script.title()}"))
        codes = ", ".join(f"U+{ord(char):04X}" for char in characters[:3])
        told.append(f"{script} ({codes}{', ...' if len(characters) > 3 else ''}): {font}, package {package}")
    shape = "" if _can_shape() else " Arabic, Hebrew and Indic scripts also need matplotlib 3.11, which shapes text."
    warnings.warn(
        "labels are drawn in ASCII where no installed font has their letters. To see them, install "
        f"{'; '.join(told)}.{shape} Figures saved as .html need none.",
        stacklevel=4,
    )  # fmt: skip


def _silent(char: str) -> bool:
    """Whether a character draws nothing: spaces, line feeds, joiners, variation selectors."""
    return char.isspace() or unicodedata.category(char) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(char, "")


def _can_shape() -> bool:
    return hasattr(ft2font, "__libraqm_version__")


def _usual() -> list[str]:
    """The font names that matplotlib is configured with."""
    return list(dict.fromkeys(
        font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[family]))).family_name
        for family in matplotlib.rcParams["font.family"]
    ))  # fmt: skip


@cache
def _installed(found: tuple[str, ...]) -> dict[str, str]:
    """Name -> file of upright fonts of normal weight; new fonts are registered with matplotlib."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in found:
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError, KeyError):  # damaged, or of a kind that matplotlib cannot read
                continue
    return _upright()


def _files() -> dict[str, str]:
    return _installed(tuple(sorted(font_manager.findSystemFonts())))


def _upright() -> dict[str, str]:
    """Name -> file of the upright fonts of normal weight: bold and oblique ones have fewer letters."""
    entries = [e for e in font_manager.fontManager.ttflist if e.style == "normal" and e.weight in (400, "normal")]
    return {entry.name: entry.fname for entry in reversed(entries)}


def _others() -> Iterable[tuple[str, frozenset[int]]]:
    """Fonts and their characters, preferred fonts first; each font file is read only when needed."""

    def rank(name: str) -> tuple[int, str]:
        return next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED)), name

    own = matplotlib.get_data_path()  # fonts for mathematics, with other glyphs at the code points of letters
    files = {name: path for name, path in _files().items() if not path.startswith(own)}
    return ((name, _covered(files[name])) for name in sorted(files, key=rank))


@cache
def _covered(path: str) -> frozenset[int]:
    """Code points that a font file has a glyph for."""
    try:
        if Path(path).suffix.lower() in (".ttc", ".otc"):
            with TTCollection(path, lazy=True) as fonts:
                return frozenset(fonts[0].getBestCmap() or ())
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (OSError, TTLibError, KeyError, AssertionError):  # no font for text
        return frozenset()
