"""The main numbers of each method; methods that pass for most languages come first."""

from collections.abc import Iterable, Mapping

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.overlaps import mean_agreement

COUNTS = ["shown", "shown_low", "shown_high", "own_hurt_most", "own_hurt_most_low", "own_hurt_most_high"]


def ranking(tables: Mapping[str, pd.DataFrame], warnings: pd.DataFrame, checked: Iterable[str] = ()) -> pd.DataFrame:
    """One row per method with the main number of each table. See `Comparison.ranking`.

    The order is by `shown`, then by `own_hurt_most`, then as the methods were named; never by effect size, which
    depends on the number of units. `checked` names the columns of the table "trust" to show.
    """
    sizes, cost = tables["sizes"].set_index("method"), tables["cost"].set_index("method")
    frame = pd.DataFrame(index=sizes.index)
    order: list[str] = []
    if "effects" in tables:
        frame[COUNTS] = tables["effects"].set_index("method")[COUNTS]
        order = ["shown", "own_hurt_most"]
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
    frame = frame.sort_values(order, ascending=False, kind="stable") if order else frame
    return frame.reset_index()
