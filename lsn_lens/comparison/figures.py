"""Figures of a comparison."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report import plots
from lsn_lens.report.charts import Chart
from lsn_lens.report.marks import Bars, Dots
from lsn_lens.report.plots import HURT, OTHER, RANDOM
from lsn_lens.report.sections.parts import of, slug


def first_figure(tables: Mapping[str, pd.DataFrame]) -> Chart:
    """The first figure of a comparison, see `Comparison.plot`."""
    if "specificity" in tables:
        return plots.method_rises(tables["specificity"].merge(tables["control"][["method", "random_mean"]]))
    return plots.agreement(tables["agreement"], list(tables["ranking"]["method"]))


def null_chart(nulls: pd.DataFrame) -> Chart:
    """Units found on the true labels, beside permuted ones; one row per method, the index."""
    ends: Any = pd.concat([nulls.loc[:, "null_low"], nulls.loc[:, "null_high"]])
    marks = (
        Bars(nulls.loc[:, "units"], "true labels", HURT),
        Bars(nulls.loc[:, "null_units"], "permuted labels, mean", OTHER),
        Dots(ends, "permuted labels, fewest and most", RANDOM),
    )
    return Chart(
        "Units found on true and on permuted labels", "method", "different units", marks,
        "The number of units is no evidence where permuted labels give as many; null p also tests the scores.",
    )  # fmt: skip


def survival_charts(survived: pd.DataFrame) -> dict[str, Chart]:
    """The share of each set that is found again after one change of the text."""
    charts = {}
    for control in dict.fromkeys(survived["control"]):
        table = of(survived, control=control, note="")
        tested = table.loc[table["before"].gt(0)]
        if len(tested):
            charts[f"trust-{slug(control)}"] = _survival_chart(tested, control)
    return charts


def _survival_chart(tested: pd.DataFrame, control: str) -> Chart:
    """Share of the sets found again, beside the ceiling, means over the languages tested."""
    groups: Any = tested.groupby("method", sort=False)
    means = groups[["survival", "ceiling", "chance"]].mean()
    marks = (
        Bars(means["survival"], "found again", HURT),
        Bars(means["ceiling"], "ceiling", OTHER),
        Bars(means["chance"], "chance", RANDOM),
    )
    languages = ", ".join(dict.fromkeys(tested["language"]))
    return Chart(f"What survives: {control}", "method", "share of the units", marks, f"Means over {languages}.")
