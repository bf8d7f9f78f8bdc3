"""Figures of a comparison."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.comparison.ranked import kind_of
from lsn_lens.report import plots
from lsn_lens.report.charts import Chart
from lsn_lens.report.marks import Bars, Dots, Line
from lsn_lens.report.palette import CURVES, DIVERGING, HURT, OTHER, RANDOM
from lsn_lens.report.sections.parts import of, slug
from lsn_lens.report.set_plots import complete, means_over

CURVE_COLUMNS = {
    "own_rise": ("own language", HURT),
    "worst_other_rise": ("the other language that is hurt most", DIVERGING[0]),
    "mean_other_rise": ("other languages, mean", OTHER),
}


def first_figure(tables: Mapping[str, pd.DataFrame]) -> Chart:
    """The first figure of a comparison, see `Comparison.plot`."""
    charts = size_charts(tables["curves"], tables["equal_size"]) if "equal_size" in tables else {}
    if charts:
        return next(iter(charts.values()))
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


def size_charts(curves: pd.DataFrame, equal_size: pd.DataFrame) -> dict[str, Chart]:
    """By kind of unit, one curve per ranked method: the in-language minus the largest other-language loss increase."""
    return {
        f"equal-size-{slug(bases)}": _size_chart(of(curves, bases=bases), bases, methods)
        for bases, methods in _ranked(equal_size).items()
    }


def effect_charts(curves: pd.DataFrame, equal_size: pd.DataFrame) -> dict[str, Chart]:
    """By kind of unit, the in-language loss increase of each ranked method, beside random units."""
    charts = {}
    for bases, methods in _ranked(equal_size).items():
        rows = pd.concat([of(curves, bases=bases, method=name) for name in methods])
        title = f"Effect by number of units: {kind_of(bases)}"
        charts[f"effect-{slug(bases)}"] = plots.size_curves(rows, title)
    return charts


def _ranked(equal_size: pd.DataFrame) -> dict[str, list[str]]:
    """Kind of unit -> ranked methods, the largest effect first; kinds without any are left out."""
    rows = equal_size.dropna(subset=["area"])
    return {bases: list(of(rows, bases=bases)["method"]) for bases in dict.fromkeys(rows["bases"])}


def _size_chart(curves: pd.DataFrame, bases: str, methods: list[str]) -> Chart:
    rows = complete(curves.loc[curves["method"].isin(methods)])
    means: Any = rows.groupby(["method", "units"])["difference"].mean()
    marks = tuple(
        Line(means[name], name, CURVES[place % len(CURVES)], dashed=place >= len(CURVES), scale="log")
        for place, name in enumerate(methods)
    )
    return Chart(
        f"At equal size: {kind_of(bases)}", "units per language", "in-language minus worst other, nats per token",
        marks, f"{means_over(rows)} Above 0: the language whose units are ablated is hurt most.",
    )  # fmt: skip


def curve_charts(curves: pd.DataFrame) -> dict[str, Chart]:
    """The curves of one method by kind of unit: in-language, other-language, and under random units."""
    charts = {}
    for bases in dict.fromkeys(curves["bases"]):
        rows = complete(of(curves, bases=bases))
        means: Any = rows.groupby("units")[[*CURVE_COLUMNS, "random_mean", "random_low", "random_high"]].mean()
        marks = [Line(means[name], label, colour, scale="log") for name, (label, colour) in CURVE_COLUMNS.items()]
        if means["random_mean"].notna().any():
            band = means[["random_low", "random_high"]].set_axis(["low", "high"], axis=1)
            marks.append(
                Line(means["random_mean"], "own language, random units", RANDOM, dashed=True, band=band, scale="log")
            )
        name = dict.fromkeys(curves["method"])
        charts[f"curve-{slug(' '.join(name))}-{slug(bases)}"] = Chart(
            f"{', '.join(name)}: effect by number of units, {kind_of(bases)}", "units per language",
            "loss increase, nats per token",
            tuple(marks), f"{means_over(rows)} Band: from the least to the most of the random sets.",
        )  # fmt: skip
    return charts
