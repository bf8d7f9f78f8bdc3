"""The main numbers of each method, in the order of their effects at equal size within each kind of unit."""

from collections.abc import Iterable, Mapping

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.overlaps import mean_agreement

PLACES = {"compared_on": "bases", "place": "place", "area": "area", "area_low": "area_low", "area_high": "area_high"}
COUNTS = ["shown", "shown_low", "shown_high", "own_hurt_most", "own_hurt_most_low", "own_hurt_most_high"]


def ranking(tables: Mapping[str, pd.DataFrame], warnings: pd.DataFrame, checked: Iterable[str] = ()) -> pd.DataFrame:
    """One row per method with the main number of each table. See `Comparison.ranking`.

    The order is that of the table "equal_size", with each method at the kind of unit on which it has most points, the
    first of several; other methods last. Without this table, methods stay in the order in which they were named.
    `checked` names the columns of the table "trust" to show.
    """
    sizes, cost = tables["sizes"].set_index("method"), tables["cost"].set_index("method")
    frame = pd.DataFrame(index=sizes.index)
    if "equal_size" in tables:
        places = main_rows(tables["equal_size"])
        frame[[*PLACES]] = places.set_index("method")[[*PLACES.values()]]
        ranked = list(places["method"])
        frame = frame.loc[[*ranked, *(name for name in frame.index if name not in ranked)]]
    if "effects" in tables:
        frame[COUNTS] = tables["effects"].set_index("method")[COUNTS]
    frame["languages"] = len(tables["layers"].columns) - 2
    frame["bases"] = sizes["bases"]
    frame["units"] = sizes["units"]
    if "effects" in tables:
        specific = tables["specificity"].set_index("method")
        frame["own_rise"] = specific["own_rise"]
        frame["own_minus_worst_other"] = specific["difference"]
        frame["share_above_random"] = tables["control"].set_index("method")["share_above_random"]
    if "trust" in tables:
        shown = [name for name in checked if name in tables["trust"]]
        frame[shown] = tables["trust"].set_index("method")[shown]
    frame["agreement"] = mean_agreement(tables["agreement"])
    frame["seconds"] = cost["seconds"]
    frame["warnings"] = [doubts.in_words(warnings, str(name)) for name in frame.index]
    return frame.reset_index()


def main_rows(equal_size: pd.DataFrame) -> pd.DataFrame:
    """The row of each method on the kind of unit on which it has most points."""
    share = equal_size["points"] / equal_size["points_asked"]
    best = share.groupby(equal_size["method"], sort=False).idxmax()
    return equal_size.loc[sorted(best)]
