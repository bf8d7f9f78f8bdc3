"""Figures of neurons by type (Sharing Matters): tables to `Chart`s, as in `plots`."""

import pandas as pd

from lsn_lens.report.charts import Chart
from lsn_lens.report.marks import Bars, Dots, Heatmap, Line, interval_of
from lsn_lens.report.palette import CURVES, HURT, SEQUENTIAL

__all__ = ["type_curves", "type_effects", "type_map", "type_strengths"]


def type_curves(profile: pd.DataFrame, title: str = "Types of neurons by layer") -> Chart:
    """Curves of `analysis.profile`: the share of each type over the layers, unrelated items dashed."""
    marks = []
    for place, name in enumerate(profile["type"].unique()):
        rows, colour = profile.loc[profile["type"].eq(name)].set_index("layer"), CURVES[place % len(CURVES)]
        band = rows[["minimum", "maximum"]].set_axis(["low", "high"], axis=1)
        marks.append(Line(rows.loc[:, "mean"], str(name), colour, band=band))
        marks.append(Line(rows.loc[:, "chance_unrelated"], f"{name}: unrelated items", colour, dashed=True))
    caption = (
        "Mean share of a layer's neurons that have the type in an item; the band goes from the lowest to the highest "
        "item. Dashed: if the items of the languages had nothing to do with each other."
    )
    return Chart(title, "layer", "share of neurons", tuple(marks), caption)


def type_map(table: pd.DataFrame, name: str, value: str = "sum_share", title: str = "") -> Chart:
    """Heat map of `analysis.contribution` for one type: rows = languages, columns = layers."""
    rows = table.loc[table["type"].eq(name)]
    matrix = rows.pivot(index="language", columns="layer", values=value).loc[list(rows["language"].unique())]
    title = title or f"{name}: {value.replace('_', ' ')}"
    cells = Heatmap(matrix, (0.0, 1.0), SEQUENTIAL, "share", ".2f")
    return Chart(title, "layer", "language", (cells,), "Means over items, for the neurons of this type in each.")


def type_effects(table: pd.DataFrame, title: str = "Neurons off, by type", y: str = "loss increase, nats") -> Chart:
    """Bars: what each type of neurons does, with its interval; dots: its controls.

    Args:
        table: Rows of `TypeEffects.table` of one action and one language.
        title: Title of the figure.
        y: Label of the change.
    """
    own = table.drop_duplicates("type").set_index("type")
    interval = interval_of(own, "low", "high")
    marks: list[Bars | Dots] = [Bars(own.loc[:, "change"], "the type", HURT, interval)]
    for place, (control_name, rows) in enumerate(table.groupby("control", sort=False)):
        label, colour = f"control: {control_name}", CURVES[place % len(CURVES)]
        marks.append(Dots(rows.set_index("type").loc[:, "control_change"], label, colour))
    caption = (
        "A bar that is not apart from its dots says nothing about the type. Types have different numbers of units."
    )
    sure = "" if interval is None else " Error bars: 95 % intervals over items."
    return Chart(title, "type", y, tuple(marks), caption + sure)


def type_strengths(table: pd.DataFrame, title: str = "Neurons raised", y: str = "loss increase, nats") -> Chart:
    """Curves over actions: the change under the type, with its interval, and under each control dashed.

    Args:
        table: Rows of `TypeEffects.table` of one type and one language.
        title: Title of the figure.
        y: Label of the change.
    """
    own = table.drop_duplicates("action").set_index("action")
    marks = [Line(own.loc[:, "change"], "the type", HURT, band=own.loc[:, ["low", "high"]])]
    for place, (control_name, rows) in enumerate(table.groupby("control", sort=False)):
        values = rows.set_index("action").loc[:, "control_change"]
        marks.append(Line(values, f"control: {control_name}", CURVES[place % len(CURVES)], dashed=True))
    return Chart(title, "action", y, tuple(marks), "The band is the 95 % interval over items.")
