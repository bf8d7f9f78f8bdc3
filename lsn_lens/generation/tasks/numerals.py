"""Numbers as languages write them: 1.250,5 in German, 1,250.5 in English, 1 250,5 in French, ١٬٢٥٠٫٥ in Arabic."""
# ruff: noqa: RUF001

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

# languages with a decimal comma, by their codes of two and of three letters (CLDR 46; of ba, fur, nds, oc, os, scn and
# wa it says nothing: as their neighbours write); all others have a decimal point
COMMA_CODES = """
af ast az ba be bg br bs ca crh cs cv da de dsb el eo es et eu ff fi fo fr fur fy gl hr hsb ht hu hy ia id is it jv
ka kab kea kk kl ku ky lb lij lld ln lo lt lv mk nb nds nl nn no nr oc os pl ps pt rn ro ru rw sah sc scn se shi sk
sl smn sq sr ss su sv tg tk tr ts tt tzm uk uz ve vec vi wa wo zgh afr aze bak bel bul bre bos cat ces cze dan deu
ger ell gre epo spa est eus baq fin fao fra fre fry glg hrv hat hun hye arm ind isl ice ita jav kat geo kaz kur kir
ltz lao lit lav mkd mac nob nld dut nno nor oci pol por ron rum rus slk slo slv sqi alb srp sun swe tgk tuk tur tat
ukr uzb uzn vie
"""
COMMA = frozenset(COMMA_CODES.split())
# regions whose convention differs from that of their language elsewhere
POINT_REGIONS_CODES = """
de-ch de-li it-ch es-419 es-br es-bz es-cu es-do es-gt es-hn es-mx es-ni es-pa es-pe es-pr es-sv es-us
"""
POINT_REGIONS = frozenset(POINT_REGIONS_CODES.split())
COMMA_REGIONS_CODES = """
ar-dz ar-lb ar-ly ar-ma ar-mr ar-tn en-at en-be en-cz en-de en-dk en-es en-fi en-fr en-hu en-id en-it en-nl en-no
en-pl en-pt en-ro en-se en-si en-sk en-za ms-bn ms-id qu-bo sw-cd
"""
COMMA_REGIONS = frozenset(COMMA_REGIONS_CODES.split())

ALIKE = {
    **dict.fromkeys("،，﹐", ","), **dict.fromkeys("．﹒", "."), **dict.fromkeys("’ʼ＇‘", "'"),
    **dict.fromkeys("\u202f\u2009\u2007", "\u00a0"), **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2013", "-"),
    **dict.fromkeys("⁄／∕", "/"), "：": ":", **dict.fromkeys("\u200e\u200f\u061c", ""),
}  # fmt: skip
UNITS = {
    **dict.fromkeys("百백", 10**2), **dict.fromkeys("千천", 10**3),
    **dict.fromkeys("万萬만", 10**4), **dict.fromkeys("億亿억", 10**8),
    **dict.fromkeys("兆조", 10**12),
}  # fmt: skip
UNIT = re.compile("[千百](?![克米瓦卡赫焦帕伏])|[백천万萬만億亿억兆조]")  # 千克 is a kilogram
MYRIAD = 10**4  # units from here on count all that stands before them, and a space may follow
PARTS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
NUMBER = re.compile(  # a sign follows no letter, digit or closing bracket: 5-3 and COVID-19 have none
    rf"(?P<sign>(?<![\w)\]}}%])-[$€£¥₹₩₽₫₺₴₪฿]?(?=[.,]?\d|[{PARTS}]))?"
    r"(?:(?P<fraction>(?<![/.,\d])\d+/\d+(?![/\d]|[.,]\d))"
    r"|(?P<tail>(?<![\w.,])[.,]\d+(?![.,]?\d))"
    rf"|(?P<body>\d+(?:[.,٫٬']\d+|[ \u00a0]\d+(?!\d*/\d))*)(?P<part>[{PARTS}])?"
    rf"(?:[eE](?P<power>[-+]?\d{{1,3}})(?![\w.]))?|(?P<only>[{PARTS}]))"
)
GROUPED = re.compile(
    r"(?P<front>[1-9]\d{0,2}(?:(?P<mark>[.,٬' \u00a0])\d{3})(?:(?P=mark)\d{3})*|[1-9]\d?(?:,\d\d)+,\d{3})"
    r"(?:(?!(?P=mark))[.,٫](?P<tail>\d+))?"
)
PLAIN = re.compile(r"(?P<front>\d+)(?:[.,٫](?P<tail>\d+))?")


class Number(NamedTuple):
    """A number in a text.

    Attributes:
        start: Index of its first character.
        end: Index after its last character.
        written: In plain digits with a decimal point, without marks between groups; zeros at the end stay.
        value: Its value.
    """

    start: int
    end: int
    written: str
    value: Fraction


def alike(text: str) -> str:
    """Digits, marks, signs and spaces of numbers, of which Unicode has several, made one; no marks of direction."""
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else ALIKE.get(c, c) for c in text)


def has_decimal_comma(language: str) -> bool:
    """Whether numbers in a language, by its label ("de", "de-CH", "deu_Latn"), have a decimal comma."""
    code, *rest = language.lower().replace("_", "-").split("-")
    named = {f"{code}-{each}" for each in rest}
    return bool(named & COMMA_REGIONS) or (code in COMMA and not named & POINT_REGIONS)


def numbers(text: str, language: str = "") -> Iterator[Number]:
    """The numbers of a text that `alike` was applied to, in order.

    Marks say what they are wherever they can. Several equal ones between groups of three digits (with commas also of
    two, as in 12,34,567) divide groups; of two kinds the last is the decimal mark; so is a single one, if it is not
    followed by exactly three digits or not preceded by one to three that begin with no zero. What is left, such as
    1.250 and 1,250, goes by the language: with a decimal comma these are 1250 and 1.25, else, and without a known
    language, 1.25 and 1250. Apostrophes and spaces divide groups of three digits. Other marks, as in dates and lists,
    divide numbers. 3/4, 2 1/2 and 2½ are fractions, .5 is a half, 1e-5 has an exponent; 3万5千 is 35000, 2千5百万 is
    25000000.
    """
    last, waiting = None, list(_each(text, has_decimal_comma(language)))
    while waiting:
        number, waiting = _with_units(text, waiting) if UNIT.match(text, waiting[0].end) else (waiting[0], waiting[1:])
        if last is not None and (mixed := _mixed(text, last, number)):
            last = mixed
            continue
        if last is not None:
            yield last
        last = number
    if last is not None:
        yield last


def _with_units(text: str, found: list[Number]) -> tuple[Number, list[Number]]:
    """The number that the first one and those that follow it make with their units, and those that are left."""
    first, end, place = found[0], found[0].end, 0
    whole, group, pending = Fraction(0), Fraction(0), abs(first.value)  # of all, below the next myriad, without a unit
    smallest = 0
    while True:
        while unit := UNIT.match(text, end):
            size, end = UNITS[unit[0]], unit.end()
            if size < MYRIAD:
                group, pending = group + pending * size, Fraction(0)
            else:
                whole, group, pending = whole + (group + pending) * size, Fraction(0), Fraction(0)
            smallest = size
        place += 1
        gap = text[end : found[place].start] if place < len(found) else None
        joined = gap == "" or (gap in (" ", "\u00a0") and smallest >= MYRIAD)
        if pending or not joined or not 0 <= found[place].value < smallest:
            break
        pending, end = found[place].value, found[place].end
    value = whole + group + pending
    return _sized(first.start, end, -value if first.written.startswith("-") else value), found[place:]


def _mixed(text: str, whole: Number, part: Number) -> Number | None:
    """2 1/2: a whole number of up to three digits, a space, and a fraction below 1."""
    is_whole = whole.written.lstrip("-").isdecimal() and len(whole.written.lstrip("-")) <= 3
    if not is_whole or text[whole.end : part.start] != " " or "/" not in part.written or not 0 < part.value < 1:
        return None
    value = abs(whole.value) + part.value
    sign = -1 if whole.written.startswith("-") else 1
    return Number(whole.start, part.end, f"{whole.written} {part.written}", sign * value)


def _each(text: str, comma: bool) -> Iterator[Number]:
    for match in NUMBER.finditer(text):
        sign = -1 if match["sign"] else 1
        front = "-" if match["sign"] else ""
        if match["fraction"] and int(match["fraction"].partition("/")[2]):
            yield Number(*match.span(), front + match["fraction"], sign * Fraction(match["fraction"]))
        elif match["tail"]:
            half = match["tail"][0] == "." or comma  # what a comma ends elsewhere is no number
            value = Fraction(f"0.{match['tail'][1:]}") if half else Fraction(match["tail"][1:])
            written = f"{front}0.{match['tail'][1:]}" if half else front + match["tail"][1:]
            yield Number(*match.span(), written, sign * value)
        elif match["power"]:
            digits = _plain(match["body"], comma)
            value = Fraction(digits) * Fraction(10) ** int(match["power"]) if digits else Fraction(0)
            yield _sized(*match.span(), sign * value)
        elif match["only"]:
            part = _part(match["only"])
            yield Number(*match.span(), f"{front}{part}", sign * part)
        else:
            at = match.start("fraction" if match["fraction"] else "body")
            pieces = list(_pieces(match["fraction"] or match["body"], at, comma))
            for place, (start, end, written) in enumerate(pieces):
                first, part = place == 0, match["part"] if place == len(pieces) - 1 else None
                value = (Fraction(written) + (_part(part) if part else 0)) * (sign if first else 1)
                spelled = (front if first else "") + written + (f" {_part(part)}" if part else "")
                yield Number(match.start() if first else start, end + bool(part), spelled, value)


def _pieces(body: str, at: int, comma: bool) -> Iterator[tuple[int, int, str]]:
    """Where a number is in what digits and marks make together, and its plain digits; or where several are."""
    written = _plain(body, comma)
    if written is not None:
        yield at, at + len(body), written
        return
    for finer in re.finditer(r"[^ \u00a0]+" if re.search(r"[ \u00a0]", body) else r"\d+", body):
        yield from _pieces(finer[0], at + finer.start(), comma)


def _plain(body: str, comma: bool) -> str | None:
    """A number's digits with a decimal point; None where it is not one number."""
    found = GROUPED.fullmatch(body)
    if found:
        unclear = re.fullmatch(r"\d+[.,]\d+", body)
        if not unclear or (found["mark"] == ".") == comma:
            return re.sub(r"\D", "", found["front"]) + (f".{found['tail']}" if found["tail"] else "")
    found = PLAIN.fullmatch(body)
    return found and found["front"] + (f".{found['tail']}" if found["tail"] else "")


def _part(character: str) -> Fraction:
    return Fraction(unicodedata.numeric(character)).limit_denominator(10)


def _sized(start: int, end: int, value: Fraction) -> Number:
    return Number(start, end, str(value.numerator) if value.denominator == 1 else str(float(value)), value)
