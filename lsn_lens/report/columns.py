"""How a report writes the columns of its tables: headings, numbers, values in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["number", "change", "nats", "share", "rate", "p", "count"]
# kind -> format, what is written for less than its last digit, and for nearly one; others follow the size of the number
FORMS: Mapping[str, tuple[str, str, str]] = {
    "share": (".0%", "<1%", ">99%"), "rate": (".2%", "<0.01%", ">99.99%"), "p": (".3f", "<0.001", ">0.999"),
    "count": (".0f", "<1", "1"),
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """The heading and number format of a column.

    Attributes:
        heading: Replaces the column's name.
        kind: "number": three significant digits; "change" and "nats": the same with a sign; "share" and "rate": per
            cent, without and with decimals; "p": three decimals; "count": whole, also where some are missing.
    """

    heading: str = ""
    kind: Kind = "number"


# columns of `evaluation.verdict` and the controls, in tables of several rooms
COMMON: Mapping[str, Column] = {
    "own_rise": Column("in-language loss increase", "nats"),
    "own_rise_bits_per_byte": Column("in bits/byte", "change"),
    "own_rise_perplexity": Column("in perplexity", "change"),
    "own_rise_low": Column("in-language, low", "nats"),
    "own_rise_high": Column("high", "nats"),
    "worst_other": Column("other hurt most"),
    "worst_other_rise": Column("its loss increase", "nats"),
    "mean_other_rise": Column("mean other-language loss increase", "nats"),
    "difference": Column("in-language minus worst other", "nats"),
    "difference_low": Column("difference, low", "nats"),
    "difference_high": Column("high", "nats"),
    "own_rise_bits_per_byte_low": Column("in bits/byte, low", "change"),
    "own_rise_bits_per_byte_high": Column("high", "change"),
    "worst_other_bits_per_byte": Column("other hurt most, bits/byte"),
    "worst_other_rise_bits_per_byte": Column("largest other, bits/byte", "change"),
    "mean_other_rise_bits_per_byte": Column("mean other, bits/byte", "change"),
    "difference_bits_per_byte": Column("in-language minus worst other, bits/byte", "change"),
    "difference_bits_per_byte_low": Column("difference in bits/byte, low", "change"),
    "difference_bits_per_byte_high": Column("high", "change"),
    "own_hurt_most": Column("in-language hurt most"),
    "hurt_most_in": Column("hurt most in"),
    "hurt_most_share": Column("hurt most, of replicates", "share"),
    "surely_hurt_most": Column("surely hurt most"),
    "random_mean": Column("random, mean", "nats"),
    "random_sd": Column("random, sd", "nats"),
    "share_above_random": Column("above random", "share"),
    "rate": Column(kind="rate"),
}
SIGNED = ("_rise", "_rise_bits_per_byte", "_rise_perplexity")


def column_of(name: str, columns: Mapping[str, Column]) -> Column:
    """The format of a column: from `columns`, else from `COMMON`, else from the beginning or end of its name."""
    known = columns.get(name) or COMMON.get(name)
    if known is None:
        is_p = name in ("p", "q") or name.startswith(("p_", "q_"))
        known = Column(kind="p" if is_p else "change" if name.endswith(SIGNED) else "number")
    return Column(known.heading or name.replace("_", " "), known.kind)


def written(value: Any, kind: Kind = "number") -> str:
    """A number as text: never zero where the number is not, nor a whole share where it is less."""
    if kind in FORMS:
        form, least, most = FORMS[kind]
        text = format(value, form)
        if 0.5 < value < 1 and text == format(1, form):
            return most
        return least if value > 0 and not text.strip("0.%") else text
    sign = "," if kind == "number" else "+"
    size = abs(value)
    if size == 0 or not math.isfinite(size):
        return f"{value:g}" if size else "0"
    if size < 1e-3:
        return format(value, f"{sign.strip(',')}.2g")
    return format(value, f"{sign}.{max(1, 2 - math.floor(math.log10(size)))}f")


def span(low: str, high: str) -> str:
    """A range in words: "2 to 5", or "2" where both ends are written alike."""
    return low if low == high else f"{low} to {high}"


def in_words(value: Any) -> str:
    """A value without Python's marks: "yes", "a 1, b 2", "58 of 192" for two whole numbers, "0.5"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {in_words(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        part_and_whole = len(value) == 2 and all(isinstance(each, int) for each in value)
        return (" of " if part_and_whole else ", ").join(map(in_words, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
