"""Groups of rows, and shares with intervals."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact, norm


def column_of(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The values of a column of a table of texts."""
    if name not in frame.columns:
        raise KeyError(f"no column {name!r}; there are {list(frame.columns)}. `measure_texts` adds its own columns.")
    if frame.empty:
        raise ValueError("the frame has no rows: there are no texts to measure.")
    return np.asarray(frame[name], dtype=object)


def names_of(by: str | Sequence[str]) -> list[str]:
    """Column names from one or several."""
    return [by] if isinstance(by, str) else list(by)


def groups_of(
    frame: pd.DataFrame, by: str | Sequence[str], added: Sequence[str]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Key and row numbers of each group, in the order of first rows; missing keys form a group."""
    names = names_of(by)
    columns = {name: column_of(frame, name) for name in names}
    clash = sorted(set(names) & set(added))
    if clash:
        raise ValueError(f"by={names}: the result has its own columns {clash}. Rename yours first.")
    if not names:
        yield {}, np.arange(len(frame))
        return
    numbers = np.asarray(frame.groupby(names, sort=False, dropna=False, observed=True).ngroup())
    for number in range(numbers.max() + 1):
        here = np.flatnonzero(numbers == number)
        yield {name: column[here[0]] for name, column in columns.items()}, here


def share_of(count: int, n: int, level: float = 0.95) -> dict[str, float]:
    """`count` of `n` as `share`, and its Wilson interval, `low` and `high`; NaN for nothing of nothing."""
    if not n:
        return dict.fromkeys(("share", "low", "high"), math.nan)
    low, high = wilson(count / n, n, level)
    return {"share": count / n, "low": low, "high": high}


def wilson(share: float | int, n: float | int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `n` independent texts; `n` need not be whole.

    Source: Wilson 1927.
    """
    z = float(norm.ppf((1 + level) / 2))
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - reach) / (1 + z**2 / n)), min(1.0, (middle + reach) / (1 + z**2 / n))


def is_larger(count: int, n: int, other: int, m: int, level: float = 0.95) -> bool:
    """Whether `count` of `n` is surely a larger share than `other` of `m`: both may differ by chance.

    Source: Fisher's exact test, one-sided at half of 1 - level, so that a share is called larger or smaller than an
    equal one in at most 1 - level of all cases. At 0.95, four of four against none of four suffice; three of three
    against none of three do not.
    """
    test: Any = fisher_exact([[count, n - count], [other, m - other]], alternative="greater")
    return bool(test.pvalue <= (1 - level) / 2)


def share_difference(one: Mapping[Any, Any], two: Mapping[Any, Any]) -> tuple[float, float]:
    """95 % interval of a share minus another, from their `share`, `low` and `high`.

    Source: Newcombe 1998, method 10: from the two Wilson intervals.
    """
    difference = one["share"] - two["share"]
    return (
        difference - math.hypot(one["share"] - one["low"], two["high"] - two["share"]),
        difference + math.hypot(one["high"] - one["share"], two["share"] - two["low"]),
    )
