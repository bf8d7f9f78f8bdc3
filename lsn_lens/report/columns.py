"""How a report writes the columns of its tables: headings and number formats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "change", "nats", "share", "rate", "p", "count"]
FORMS: Mapping[str, str] = {"share": ".0%", "rate": ".2%", "p": ".3f", "count": ".0f"}  # others: by their size


@dataclass(frozen=True)
class Column:
    """The heading and number format of a column.

    Attributes:
        heading: Replaces the column's name.
        kind: "number": three significant digits of the column's largest; "change": the same with a sign; "nats": a
            change with as many decimals as all such columns of the table; "share" and "rate": per cent, without and
            with decimals; "p": three decimals; "count": whole, also where some are missing.
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
    "own_hurt_most": Column("in-language hurt most"),
    "hurt_most_in": Column("hurt most in"),
    "hurt_most_share": Column("of replicates", "share"),
    "surely_hurt_most": Column("surely"),
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
