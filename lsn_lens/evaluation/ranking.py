"""The main number of every question about a method, best method first."""

from collections.abc import Mapping

import pandas as pd

from lsn_lens.evaluation import causal, trust
from lsn_lens.evaluation.agreement import mean_agreement


def ranking(tables: Mapping[str, pd.DataFrame], warnings: pd.DataFrame) -> pd.DataFrame:
    """One row a method from the tables of a comparison: what to read first. See `Comparison.ranking`."""
    sizes, cost = tables["sizes"].set_index("method"), tables["cost"].set_index("method")
    frame = pd.DataFrame(index=sizes.index)
    order: list[str] = []
    if "effects" in tables:
        by_language = tables["effects_by_language"].merge(tables["control_by_language"], on=["method", "language"])
        passed = by_language["own_hurt_most"] & by_language["percentile"].ge(causal.PERCENTILE)
        frame["shown"] = passed.groupby(by_language["method"]).sum()
        order = ["shown", "own_minus_worst_other"]
    frame["languages"] = len(tables["layers"].columns) - 2
    frame["units"] = sizes["units"]
    if "effects" in tables:
        frame["own_rise"] = tables["effects"].set_index("method")["own_rise"]
        frame["own_minus_worst_other"] = tables["specificity"].set_index("method")["difference"]
        frame["percentile"] = tables["control"].set_index("method")["percentile"]
    if "trust" in tables:
        shown = [name for name in trust.SHOWN if name in tables["trust"]]
        frame[shown] = tables["trust"].set_index("method")[shown]
    frame["agreement"] = mean_agreement(tables["agreement"])
    frame["seconds"] = cost["seconds"]
    frame["warnings"] = [trust.in_words(warnings, str(name)) for name in frame.index]
    frame = frame.sort_values(order, ascending=False, kind="stable") if order else frame
    return frame.reset_index()
