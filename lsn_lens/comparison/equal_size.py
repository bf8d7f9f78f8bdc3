"""Methods at equal size: one number per method, the area under its curve, and who leads."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lsn_lens.comparison.curves import Curves
from lsn_lens.controls.intervals import spread, tail_of_all_pairs

ENOUGH = 0.5  # share of the points asked for from which on a method is ranked
LEADS, FIRST, ALONE = "leads", "first, not distinguishable from", "no other method with as many units"
BEHIND, AHEAD, UNCLEAR = "behind the leader", "ahead of the leader", "not distinguishable from the leader"
NO_POINTS, NO_INTERVAL = "too few units to compare", "too few documents to tell from the leader"
COLUMNS = [
    "bases", "method", "place", "area", "area_low", "area_high", "own_area", "random_area", "minus_leader",
    "minus_leader_low", "minus_leader_high", "units", "points_compared", "points", "points_asked", "fewest_available",
]  # fmt: skip

Point = tuple[str, int]  # a language and a number of units


def weights_of(points: Iterable[Point]) -> dict[Point, float]:
    """The weight of each point in the area under a curve: trapezoids over the logarithm of the number of units.

    A language's weights are divided by its range, a single point weighs all; languages weigh the same. The sum is 1.
    """
    by_language: dict[str, list[int]] = {}
    for language, units in sorted(points):
        by_language.setdefault(language, []).append(units)
    weights = {}
    for language, units in by_language.items():
        places = np.log(units)
        steps = np.diff(places)
        parts = np.append(steps, 0) / 2 + np.insert(steps, 0, 0) / 2 if len(units) > 1 else np.ones(1)
        share = parts / parts.sum() / len(by_language)
        weights |= {(language, number): float(each) for number, each in zip(units, share, strict=True)}
    return weights


def size_tables(curves: Curves) -> dict[str, pd.DataFrame]:
    """The tables "curves" and "equal_size" of a `Comparison`."""
    return {"curves": curves.table, "equal_size": equal_size_table(curves)}


def equal_size_table(curves: Curves) -> pd.DataFrame:
    """One row per kind of unit and method, the largest area first, see `Comparison.equal_size`.

    A point is a language and a number of units. A method is ranked if it has half of its kind's points. All ranked
    methods are compared on the points that all of them have; any other method is compared with the leader on the points
    that both have. A language that a ranked method lacks so counts for none.
    """
    rows = [row for bases in curves.sizes for row in _of_kind(curves, bases)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_kind(curves: Curves, bases: str) -> list[dict[str, Any]]:
    had = {method: each for (method, kind), each in curves.had.items() if kind == bases}
    table = curves.table.loc[curves.table["bases"].eq(bases)]
    points: dict[str, set[Point]] = {name: set(zip(*mine, strict=True)) for name in had
                                     for mine in [_columns(table.loc[table["method"].eq(name)])]}  # fmt: skip
    asked = {(language, units) for each in had.values() for language in each for units in curves.sizes[bases]}
    many = [name for name in had if points[name] and len(points[name]) >= ENOUGH * len(asked)]
    shared = set.intersection(*(points[name] for name in many)) if many else set()
    areas = {name: area_of(curves, name, bases, shared) for name in many if shared}
    order = sorted(areas, key=lambda name: -areas[name].apart if math.isfinite(areas[name].apart) else math.inf)
    tail = tail_of_all_pairs(np.stack([each.drawn for each in areas.values()])) if areas else math.nan
    leader, rows = next(iter(order), None), []
    for name in [*order, *(name for name in had if name not in areas)]:
        both = shared if name in areas else points[name] & points[leader] if leader else set()
        row: dict[str, Any] = {"bases": bases, "method": name, "area": math.nan}
        if name in areas:
            low, high = spread(areas[name].drawn, curves.draws).interval(areas[name].apart)
            row |= {"area": areas[name].apart, "area_low": low, "area_high": high + areas[name].excess}
            row |= {"own_area": areas[name].own, "random_area": areas[name].random}
        if leader and both and name != leader:
            pair = (name, leader)
            one, other = (areas[each] if name in areas else area_of(curves, each, bases, both) for each in pair)
            row |= _beside(curves, one, other, tail)
        sizes = ", ".join(map(str, sorted({units for _, units in both})))
        counts = {"points_compared": len(both), "points": len(points[name]), "points_asked": len(asked)}
        rows.append({**row, "units": sizes, **counts, "fewest_available": min(had[name].values())})
    return [{**row, "place": _place(row, rows, order)} for row in rows]


def _columns(rows: pd.DataFrame) -> tuple[list[str], list[int]]:
    return list(rows["language"]), list(rows["units"])


@dataclass(frozen=True, eq=False)
class Area:
    """The areas under a method's curves, divided by the range: weighted means over points, nats per token.

    Attributes:
        apart: Of the in-language minus the largest other-language loss increase.
        own: Of the in-language loss increase.
        random: Of that of random sets.
        drawn: `apart` on drawn documents.
        excess: The most by which `apart` is too low on average.
    """

    apart: float
    own: float
    random: float
    drawn: Float[np.ndarray, "replicate"]
    excess: float


def area_of(curves: Curves, method: str, bases: str, points: Iterable[Point]) -> Area:
    """A method's areas over some points that it has."""
    weights = weights_of(points)
    table = curves.table.loc[curves.table["method"].eq(method) & curves.table["bases"].eq(bases)]
    rows, shares = table.set_index(["language", "units"]).loc[[*weights]], np.array([*weights.values()])
    apart, own, random = (
        float(shares @ rows[name].to_numpy(float)) for name in ("difference", "own_rise", "random_mean")
    )
    cells = [(method, bases, *point) for point in weights]
    drawn, excess = (np.stack([each[cell] for cell in cells]) for each in (curves.drawn, curves.excess))
    return Area(apart, own, random, shares @ drawn, float(shares @ excess))


def _beside(curves: Curves, one: Area, leader: Area, tail: float) -> dict[str, float]:
    """The distance to the leader, with an interval that holds for all pairs of methods together.

    Both areas are too low on average, the noisier one more, so the interval has room for either to be higher.
    """
    apart = one.apart - leader.apart
    low, high = spread(one.drawn - leader.drawn, curves.draws).interval(apart, tail)
    return {
        "minus_leader": apart, "minus_leader_low": low - leader.excess, "minus_leader_high": high + one.excess,
    }  # fmt: skip


def _place(row: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], order: list[str]) -> str:
    """In words: whether the method leads, is behind, or cannot be told from the leader."""
    if not row["points_compared"]:
        return NO_POINTS
    if row["method"] == order[0]:
        equal = [each["method"] for each in rows if each["method"] in order[1:] and _beyond(each) != BEHIND]
        return ALONE if len(order) == 1 else f"{FIRST} {', '.join(equal)}" if equal else LEADS
    beyond = _beyond(row)
    return beyond if row["method"] in order else f"{beyond} at {row['points_compared']} of {row['points_asked']} points"


def _beyond(row: Mapping[str, Any]) -> str:
    if math.isnan(row["minus_leader_low"]):
        return NO_INTERVAL
    return BEHIND if row["minus_leader_high"] < 0 else AHEAD if row["minus_leader_low"] > 0 else UNCLEAR
