# ruff: noqa: RUF001
"""Numbers and words of answers, as languages write them."""

import random
from fractions import Fraction

import pytest

from lsn_lens.generation.tasks.generated import (
    evaluate_generated,
    last_number,
    normalised,
    published_number,
    token_f1,
    units,
)
from lsn_lens.generation.tasks.items import Item
from lsn_lens.generation.tasks.numerals import alike, has_decimal_comma, numbers

# language -> groups, decimal mark, digits
WAYS = {
    "en": (",", ".", "0123456789"), "zh-Hans": (",", ".", "0123456789"), "ja": ("，", "．", "０１２３４５６７８９"),
    "de": (".", ",", "0123456789"), "es": (".", ",", "0123456789"), "id": (".", ",", "0123456789"),
    "vi": (".", ",", "0123456789"), "nl": (".", ",", "0123456789"), "tr": (".", ",", "0123456789"),
    "fr": ("\u202f", ",", "0123456789"), "ru": ("\u00a0", ",", "0123456789"), "pl": (" ", ",", "0123456789"),
    "sv": ("\u2009", ",", "0123456789"), "de-CH": ("’", ".", "0123456789"), "es-MX": (",", ".", "0123456789"),
    "en-ZA": ("\u00a0", ",", "0123456789"), "deu_Latn": (".", ",", "0123456789"), "it_CH": ("'", ".", "0123456789"),
    "ar": ("٬", "٫", "٠١٢٣٤٥٦٧٨٩"), "fa": ("٬", "٫", "۰۱۲۳۴۵۶۷۸۹"), "bn": (",", ".", "০১২৩৪৫৬৭৮৯"),
    "hi": (",", ".", "०१२३४५६७८९"), "ar-MA": (".", ",", "0123456789"), "te": (",", ".", "౦౧౨౩౪౫౬౭౮౯"),
}  # fmt: skip


def spelled(value, group, mark, digits, indian=False):
    """A number with three decimals or fewer in a language's way, by hand."""
    whole, _, part = f"{abs(value):.3f}".rstrip("0").rstrip(".").partition(".")
    pieces, rest = [whole[-3:]], whole[:-3]
    while rest:
        size = 2 if indian else 3
        pieces.insert(0, rest[-size:])
        rest = rest[:-size]
    text = group.join(pieces) + (mark + part if part else "")
    return ("−" if value < 0 else "") + "".join(digits[int(c)] if c in "0123456789" else c for c in text)


@pytest.mark.parametrize("language", WAYS)
def test_what_a_language_writes_is_read_back(language):
    rng, way = random.Random(0), WAYS[language]
    values = [0, 7, -5, 999, 1000, 1250, -1250, 0.25, 3.5, 1250.5, 12345678, -987654.375, 1000000]
    values += [rng.randrange(-(10**8), 10**8) / rng.choice([1, 1, 10, 100, 1000]) for _ in range(200)]
    for value in values:
        text = spelled(value, *way)
        assert last_number(f"A 3 = ({text}).", language) == value, text
        (number,) = numbers(alike(text), language)
        assert number.value == Fraction(str(value)) and number.written == f"{value:.3f}".rstrip("0").rstrip(".")


@pytest.mark.parametrize("language", ["hi", "bn", "te", "en"])
def test_groups_as_in_india(language):
    for value in (125000, 12345678, 1234567.5, 100000, -9876543210):
        assert last_number(spelled(value, *WAYS[language], indian=True), language) == value


def test_decimal_marks_and_grouping_are_those_of_cldr():
    babel = pytest.importorskip("babel.numbers")
    known = """ar az be bg bn bs ca cs da de de-CH el en en-IN en-ZA es es-MX et eu fa fi fr fr-CH gl gu he hi hr hu hy
    id is it it-CH ja ka kk kn ko ky lt lv mk ml mr ms nb nl nn pa pl pt pt-PT ro ru si sk sl sq sr sv sw ta te th tr
    uk ur uz vi zh zu am my ne ps tk"""
    for language in known.split():
        locale = language.replace("-", "_")
        mark = babel.get_decimal_symbol(locale)
        assert mark in ".,٫" and has_decimal_comma(language) == (mark == ","), language
        for value in (1250, -1250.5, 0.125, 12345678.25, 999, 1000, 123456):
            for system in ("latn", "default"):
                text = babel.format_decimal(value, locale=locale, numbering_system=system)
                assert last_number(text, language) == value, (language, text)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Die Antwort ist 1.250.", "de", 1250), ("The answer is 1.250.", "en", 1.25), ("1.250", "", 1.25),
        ("La réponse est 1 250.", "fr", 1250), ("La réponse est 1 250.", "", 1250), ("3,5", "de", 3.5),
        ("3,5", "", 3.5),
        ("3.5", "de", 3.5), ("1,250", "en", 1250), ("1,250", "fr", 1.25), ("0,250", "en", 0.25), ("0.250", "de", 0.25),
        ("1234.567", "de", 1234.567), ("1234,567", "en", 1234.567), ("1.234.567", "en", 1234567),
        ("1,234,567", "de", 1234567), ("1.250,50", "en", 1250.5), ("1,250.50", "de", 1250.5), ("1 250,50", "", 1250.5),
        ("1,2,3", "en", 3), ("am 1.5.2024", "de", 2024), ("2020 100", "fr", 100), ("3, 5", "de", 5), ("1 2", "", 2),
        ("\u22125", "", -5), ("\uff0d５", "", -5), ("(-5)", "", -5), ("x=-5", "", -5), ("-$1,000.50", "en", -1000.5),
        ("$-5", "", -5), ("5-3", "", 3), ("COVID-19", "", 19), ("3–5", "de", 5), ("a)-7", "", 7), ("- 5 apples", "", 5),
        ("\u200e-5", "ar", -5), ("٣،٥", "ar", 3.5), ("3/4", "", 0.75), ("2½", "", 2.5), ("about ½", "", 0.5),
        ("-2½", "", -2.5), ("3/4/2024", "en", 2024), ("5/0", "", 0), ("10²", "", 10), ("H₂O", "", None),
        ("3万5千", "ja", 35000), ("约1万2500元", "zh", 12500), ("2.5億", "ja", 250000000), ("5만", "ko", 50000),
        ("3千克", "zh", 3), ("1 250 000", "", 1250000), ("12,34", "en", 12.34), ("5 100", "fr", 5100),
        ("none", "", None),
        ("#### 5 #### 8 or 9", "", 9), ("90071992547409931", "", 90071992547409931), ("it is 3.99", "", 3.99),
    ],
)  # fmt: skip
def test_numbers_by_hand(text, language, expected):
    found = last_number(text, language)
    assert found == expected and type(found) is type(expected)


def test_no_digit_is_lost_and_spans_are_true():
    rng = random.Random(1)
    for _ in range(3000):
        text = alike("".join(rng.choice("0123456789....,,,  '-/٬٫½万a") for _ in range(rng.randrange(12))))
        for language in ("", "de"):
            found, place = list(numbers(text, language)), 0
            for number in found:
                assert place <= number.start < number.end <= len(text)
                assert not any(c.isdecimal() for c in text[place : number.start])
                place = number.end
            assert not any(c.isdecimal() for c in text[place:])


@pytest.mark.parametrize(
    ("language", "answer", "right", "wrong"),
    [
        ("de", "1250", ["1.250", "1250", "1.250,00", "1 250"], ["1,250", "-1250", "250", "1"]),
        ("en", "1250", ["1,250", "1250.00", "$1,250"], ["1.250", "125"]),
        ("fr", "3.5", ["3,5", "3.5", "3,50"], ["35", "3", "5", "-3,5"]),
        ("sw", "-5", ["\u22125", "-5"], ["5"]),
        ("zh", "12500", ["12,500", "1.25万", "１２５００"], ["1.25", "2500"]),
    ],
)
def test_answers_are_right_by_value(language, answer, right, wrong):
    item = Item("", (answer,), (), language, "0")
    for text, correct in [(each, True) for each in right] + [(each, False) for each in wrong]:
        table = evaluate_generated([f"= {text}"], [item], "last_number")
        assert table["correct"][0] == correct, text


def test_the_published_protocol_is_kept_by_its_name():
    read = [published_number(text) for text in ("1.250", "1 250", "3,5", "\u22125", "1,250.9", "x-3", "none")]
    assert read == [1, 250, 35, 5, 1250, -3, None]
    table = evaluate_generated(["1.250"], [Item("", ("1250",), (), "de", "0")], "last_number_as_published")
    assert table["read"][0] == 1 and not table["correct"][0]


# words


SAME = [
    ("3.5", "3,5", "de"), ("1.250 kg", "1250 kg", "de"), ("1 250 €", "1250 €", "fr"), ("1,000", "1000", "en"),
    ("٥٠", "50", "ar"), ("\u22125", "-5", ""), ("10：30", "10:30", "ja"), ("½", "1/2", ""), ("(5)", "5.", ""),
    ("10–12", "10-12", ""), ("COVID-19", "covid 19".replace(" ", ""), ""), ("Ｐａｒｉｓ！", "paris", ""),
    ("İSTANBUL", "istanbul", "tr"), ("ISPARTA", "ısparta", "tr"), ("İstanbul", "istanbul", ""), ("IRAK", "ırak", "az"),
    ("STRASSE", "Straße", "de"), ("GROẞ", "groß", "de"), ("ΟΔΟΣ", "οδος", "el"), ("Οδός", "οδόσ", "el"),
    ("PARIS", "paris", "en"), ("I\u0307zmir", "izmir", "tr"), ("e\u0301t\u00e9", "été", "fr"), ("3万", "30000", "zh"),
    ("ភ្នំ\u200bពេញ", "ភ្នំពេញ", "km"), ("ရန်\u200bကုန်", "ရန်ကုန်", "my"), ("Donau\u00addampf", "Donaudampf", "de"),
    ("\ufeff12 km", "12 km", ""), ("a\u2060b", "ab", ""),
]  # fmt: skip
DIFFERENT = [
    ("5", "-5", ""), ("5", "\u22125", ""), ("3.5", "35", ""), ("3,5", "35", "de"), ("1/2", "12", ""),
    ("10:30", "1030", ""),
    ("1.250", "1250", "en"), ("10-12", "1012", ""), ("1.5.2024", "152024", "de"), ("10²", "102", ""), ("2½", "212", ""),
    ("1,2,3", "123", ""), ("ISPARTA", "isparta", "tr"), ("ırak", "irak", ""), ("2½", "21/2", ""), ("-$5", "$5", ""),
    ("می\u200cخواهم", "میخواهم", "fa"), ("क्\u200dष", "क्ष", "hi"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "language"), SAME)
def test_equal_answers(one, other, language):
    assert normalised(one, language) == normalised(other, language)
    table = evaluate_generated([one], [Item("", (other,), (), language, "0")], "exact_match")
    assert table["correct"][0] and token_f1(one, other, language) == 1


@pytest.mark.parametrize(("one", "other", "language"), DIFFERENT)
def test_answers_that_differ(one, other, language):
    assert normalised(one, language) != normalised(other, language)
    assert not evaluate_generated([one], [Item("", (other,), (), language, "0")], "exact_match")["correct"][0]
    assert token_f1(one, other, language) < 1


def test_normalising_twice_changes_nothing():
    rng = random.Random(2)
    for language in ("", "de", "tr", "ja"):
        for _ in range(400):
            text = "".join(rng.choice("0123456789.,:/- '−٫½²万aIİßςΣé’（）$％") for _ in range(rng.randrange(10)))
            once = normalised(text, language)
            assert once == " ".join(once.split()) and units(text, language) == once.replace("万", " 万 ").split()


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        ("5千3百", "ja", 5300), ("2千5百万", "ja", 25_000_000), ("5千万", "ja", 50_000_000),
        ("5천만 원", "ko", 50_000_000),
        ("第3亿5千万", "zh", 350_000_000), ("3百", "", 300), ("2.5百万", "zh", 2_500_000), ("3千克", "zh", 3),
        ("정답은 3만 5천원", "ko", 35_000), ("12억 3456만 7898", "ko", 1_234_567_898), ("-3万5千", "zh", -35_000),
        ("is 2 1/2", "en", 2.5), ("3 3/4 cups", "en", 3.75), ("In 2023 1/2", "en", 0.5), ("-½", "", -0.5),
        (".5", "", 0.5), ("-.5", "", -0.5), (",5", "de", 0.5), (",5", "en", 5), ("...5", "en", 5),
        ("1e5", "", 100_000), ("3.14e-2", "", 0.0314), ("2e étage", "fr", 2),
    ],
)  # fmt: skip
def test_units_side_by_side_mixed_fractions_leading_points_and_exponents(text, language, value):
    assert float(last_number(text, language)) == pytest.approx(value)


@pytest.mark.parametrize(("one", "other"), [("3.14e-2", "3.14e2"), (".5", "5"), ("-.5", ".5"), ("2 1/2", "2")])
def test_other_numbers_are_other_answers(one, other):
    assert normalised(one) != normalised(other)
