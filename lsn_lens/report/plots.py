"""Figures: each function turns a DataFrame into a `Chart`, which matplotlib and plotly can both draw."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import check_kind
from lsn_lens.report.charts import Chart, save
from lsn_lens.report.marks import Bars, Dots, Heatmap, Line, interval_of
from lsn_lens.report.palette import CURVES, DIVERGING, HURT, OTHER, RANDOM, SEQUENTIAL
from lsn_lens.report.set_plots import clusters, precision_recall, size_curves, upset
from lsn_lens.report.type_plots import type_curves, type_effects, type_map, type_strengths

__all__ = [
    "Chart", "agreement", "change_matrix", "checkpoint_curves", "clusters", "control", "digits", "dose_curve",
    "expert_heatmap", "language_curves", "language_map", "layer_counts", "log_odds_map", "method_rises", "overlap",
    "precision_recall", "prune_curves", "robust_limit", "save", "share_map", "similarity_curves", "size_curves",
    "switch_rises", "training_changes", "type_curves", "type_effects", "type_map", "type_strengths", "upset",
]  # fmt: skip


def layer_counts(frame: pd.DataFrame | NeuronSet, title: str = "Neurons per layer and language") -> Chart:
    """Heat map of a set or its `layer_counts()`: rows = language, columns = layer, colour = number of neurons."""
    check_kind("frame", frame, pd.DataFrame | NeuronSet, "a set, as lsn.detect(run), or its layer_counts()")
    counts = (frame.layer_counts() if isinstance(frame, NeuronSet) else frame).T
    limit = max(1.0, float(counts.to_numpy().max()))
    cells = Heatmap(counts, (0.0, limit), SEQUENTIAL, "neurons", ".0f")
    return Chart(title, "layer", "language", (cells,), "How many neurons of each layer belong to each language.")


def change_matrix(
    matrix: pd.DataFrame,
    title: str = "Loss increase",
    unit: str = "nats per token",
    limit: float | None = None,
) -> Chart:
    """Heat map of `perplexity_matrix`: rows = ablated, columns = evaluated language; red = hurt, blue = helped.

    The colours end at `limit`, by default `robust_limit`, so that one broken language does not hide the rest; give two
    matrices the same limit to compare them.
    """
    shown = matrix.drop(index="none", errors="ignore")
    limit = limit or robust_limit(shown)
    finite = shown.to_numpy(dtype=float)[np.isfinite(shown.to_numpy(dtype=float))]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    form = f"+z.{digits(limit)}f"
    label = f"{unit}<br>from {low:{form}} to {high:{form}}"
    cells = Heatmap(shown, (-limit, limit), DIVERGING, label, form)
    caption = (
        f"Each cell: the loss increase on the column's text when the row's units are ablated ({unit}). "
        f"Values go from {low:{form}} to {high:{form}}; the colours end at ±{limit:.{digits(limit)}f}, "
        "so that one language with huge values does not hide the others."
    )
    return Chart(title, "evaluated on", "units ablated of", (cells,), caption)


def robust_limit(matrix: pd.DataFrame) -> float:
    """The end of a symmetric colour scale: a bound on three quarters of the rows, or of the columns.

    The largest |value| of each row, its upper quartile, the same for the columns, and the smaller of the two: one
    row or one column of huge values changes neither. Positive, whatever the matrix.
    """
    sizes = matrix.abs().to_numpy(dtype=float)
    sizes = np.where(np.isfinite(sizes), sizes, 0.0)
    limits = [np.quantile(sizes.max(axis, initial=0.0), 0.75, method="lower") for axis in (0, 1) if sizes.size]
    return float(min(limits, default=0.0)) or float(sizes.max(initial=0.0)) or 1.0


def digits(limit: float) -> int:
    """Decimals that show about two significant digits of numbers of this size."""
    return min(8, max(0, 1 - math.floor(math.log10(limit))))


def overlap(jaccard: pd.DataFrame | NeuronSet, title: str = "Overlap between languages") -> Chart:
    """Heat map of a set or its `jaccard()`: shared neurons over all neurons of both; the diagonal is empty."""
    jaccard = jaccard.jaccard() if isinstance(jaccard, NeuronSet) else jaccard
    apart = jaccard.mask(np.eye(len(jaccard), dtype=bool))
    highest = float(np.nan_to_num(apart.to_numpy(dtype=float)).max(initial=0.0))
    cells = Heatmap(apart, (0.0, highest or 1.0), SEQUENTIAL, "Jaccard index", ".2f")
    return Chart(
        title, "", "", (cells,),
        "Neurons that two languages share, as a fraction of all neurons of either (0: none, 1: the same set).",
    )  # fmt: skip


def control(summary: pd.DataFrame, points: pd.DataFrame, title: str = "Own language against random neurons") -> Chart:
    """Bars: in-language loss increases of one method and action; dots: those of the random controls.

    Args:
        summary: `Comparison.control_by_language` of one method, or rows of `effects.summarise`; error bars are its
            `own_rise_low` to `own_rise_high`, where it has them.
        points: `Comparison.control_points` of the method, or rows of `effects.control_points`.
        title: Title of the figure.
    """
    own, random = (each.set_index("language").loc[:, "own_rise"] for each in (summary, points))
    interval = interval_of(summary, "own_rise_low", "own_rise_high")
    marks = (Bars(own, "units found", HURT, interval), Dots(random, "random units, one dot per seed", RANDOM))
    sure = "" if interval is None else " Error bars: 95 % intervals over documents."
    return Chart(
        title, "language", "in-language loss increase, nats per token", marks,
        "Bars: loss increase of the language whose units are ablated. Dots: as many random units in the same layers. A "
        f"bar that is not above its dots is no evidence.{sure}",
    )  # fmt: skip


def method_rises(table: pd.DataFrame, title: str = "Methods side by side") -> Chart:
    """Mean loss increases per method: in-language, other-language, and in-language under random units.

    Args:
        table: `Comparison.specificity` with the column `random_mean` of `Comparison.control`.
        title: Title of the figure.
    """
    rows = table.set_index("method")
    series = (
        ("own language", "own_rise", HURT),
        ("other languages", "mean_other_rise", OTHER),
        ("own language, random units (shorter text)", "random_mean", RANDOM),
    )
    marks = tuple(Bars(rows.loc[:, column], label, colour) for label, column, colour in series)
    return Chart(title, "method", "mean loss increase, nats per token", marks, "Means over languages.")


def switch_rises(summary: pd.DataFrame, english: str = "en", title: str = "Stages and structures") -> Chart:
    """Bars from `workflow_summary`: per switch, the loss increases of the own and other languages."""
    rows = summary.set_index("switch")
    series = (
        ("own language", "own_rise", HURT),
        (english, "english_rise", DIVERGING[0]),
        ("other languages", "others_rise", OTHER),
        ("own language, random units", "random_own_rise", RANDOM),
    )
    marks = tuple(Bars(rows.loc[:, column], label, colour) for label, column, colour in series)
    caption = f"Means over the languages but {english}. Switches have different numbers of units."
    return Chart(title, "units turned off", "mean loss increase, nats per token", marks, caption)


def training_changes(summary: pd.DataFrame, title: str = "Fine-tuning") -> Chart:
    """Bars from the table "summary" of `finetuning_study`, for one language and number of documents."""
    rows = summary.set_index("kind")
    series = (
        ("own language", "own", HURT),
        ("other languages", "others", OTHER),
        ("neutral text", "neutral", RANDOM),
    )
    marks = tuple(
        Bars(rows.loc[:, column], label, colour, interval_of(rows, f"{column}_low", f"{column}_high"))
        for label, column, colour in series
    )
    sure = (
        " Error bars: Student's 95 % intervals over seeds." if any(mark.interval is not None for mark in marks) else ""
    )
    return Chart(
        title, "trained", "change of the loss, nats per token", marks,
        f"Mean change of the loss on hold-out text over seeds; below zero is better.{sure}",
    )  # fmt: skip


def agreement(table: pd.DataFrame, methods: list[str], title: str = "Agreement beyond chance") -> Chart:
    """Heat map of `Comparison.agreement`: 1 for equal sets, 0 for chance; empty without a common kind of unit."""
    matrix = pd.DataFrame(np.nan, index=methods, columns=methods)
    for row in table.to_dict("records"):
        matrix.loc[row["method"], row["other"]] = matrix.loc[row["other"], row["method"]] = row["chance_corrected"]
    cells = Heatmap(matrix, (0.0, 1.0), SEQUENTIAL, "shared units beyond chance", ".2f")
    return Chart(title, "", "", (cells,), "Units that two methods share at equal size, corrected for chance.")


def expert_heatmap(table: pd.DataFrame, language: str) -> Chart:
    """From `experts.frequencies`: rows = layers, columns = experts, the same colours for every language."""
    cells = Heatmap(table.loc[language], (0.0, 1.0), SEQUENTIAL, "share of tokens", ".2f")
    caption = "Share of the language's tokens that select each expert."
    return Chart(f"{language}: how often experts are selected", "expert", "layer", (cells,), caption)


def language_curves(table: pd.DataFrame, text: str, title: str = "") -> Chart:
    """Curves from `working_language`: on text of one language, each language's share by layer."""
    rows = table.loc[table["text"].eq(text)]
    wide = rows.pivot(index="layer", columns="language", values="share")[list(rows["language"].unique())]
    marks = [Line(wide[each], str(each), CURVES[place % len(CURVES)]) for place, each in enumerate(wide.columns)]
    own = rows.loc[rows["language"].eq(text)].set_index("layer")
    beside = (("text_share", "the text itself", OTHER), ("unigram_share", "random tokens", RANDOM))
    if len(own):
        marks += [Line(own[column], f"{text}: {name}", colour, dashed=True) for column, name, colour in beside]
    return Chart(
        title or f"{text}: the language of what each layer predicts", "layer (0: embedding)", "share", tuple(marks),
        "Share of each language in the identified tokens among the most probable tokens at each position. Dashed: the "
        "share in the text itself, and in random tokens from text of all languages.",
    )  # fmt: skip


def language_map(matrix: pd.DataFrame, title: str, label: str = "share", rows: str = "language of the text") -> Chart:
    """Heat map: rows = languages, columns = layers, values in [0, 1], the same colours for every matrix."""
    return Chart(title, "layer (0: embedding)", rows, (Heatmap(matrix, (0.0, 1.0), SEQUENTIAL, label, ".2f"),))


def log_odds_map(matrix: pd.DataFrame, title: str, caption: str = "") -> Chart:
    """Heat map of `word_probes`: rows = languages, columns = layers, red = the first word is more probable."""
    limit = robust_limit(matrix)
    cells = Heatmap(matrix, (-limit, limit), DIVERGING, "log-odds, nats", f"+z.{digits(limit)}f")
    return Chart(title, "layer (0: embedding)", "language of the prompt", (cells,), caption)


def similarity_curves(tables: Mapping[str, pd.DataFrame], measure: str = "similarity", title: str = "") -> Chart:
    """Curves from `language_similarity`: one per condition over the layers, its control dashed."""
    marks = []
    for place, (name, table) in enumerate(tables.items()):
        rows, colour = table.set_index("layer"), CURVES[place % len(CURVES)]
        marks.append(Line(rows.loc[:, measure], name, colour))
        if measure == "similarity":
            marks.append(Line(rows.loc[:, "control"], f"{name}: other sentences", colour, dashed=True))
    return Chart(
        title or "Sentences and their translations", "layer (0: embedding)", measure.replace("_", " "), tuple(marks),
        "Means over pairs of languages. Similarity: cosine of a sentence and its translation; dashed: of a sentence "
        "and other sentences. Retrieval: share of sentences whose nearest of the other language is the translation.",
    )  # fmt: skip


def share_map(matrix: pd.DataFrame, title: str, x: str, y: str, label: str = "share of texts") -> Chart:
    """Heat map of shares in [0, 1], with rows and columns in the given order."""
    return Chart(title, x, y, (Heatmap(matrix, (0.0, 1.0), SEQUENTIAL, label, ".2f"),))


def dose_curve(doses: pd.DataFrame, name: str) -> Chart:
    """Curves from `dose_response` for one steering: share by strength, with interval, random units and no steering."""
    doses = doses.sort_values("dose")
    rows: pd.DataFrame = doses.assign(dose=[f"{each:g}" for each in doses["dose"]]).set_index("dose")
    marks = (
        Line(rows.loc[:, "share"], name, HURT, band=rows.loc[:, ["low", "high"]]),
        Line(rows.loc[:, "random_share"], "random counterpart", RANDOM, dashed=True),
        Line(rows.loc[:, "none_share"], "no steering", OTHER, dashed=True),
    )
    caption = "Share of texts in the target language. The band is Wilson's 95 % interval over texts."
    return Chart(
        f"{name}: strength and response", "strength or count", "share of texts in the target language", marks, caption
    )


def prune_curves(summary: pd.DataFrame, plans: Mapping[str, str], title: str = "Loss by share removed") -> Chart:
    """Curves of the mean loss increase over the rates, one per plan, and their random controls dashed.

    Args:
        summary: The table "summary" of `prune_study`.
        plans: Plan -> its label; a plan called "random" shows the control of the first.
        title: Title of the figure.
    """
    marks = []
    for place, (plan, label) in enumerate(plans.items()):
        is_control = plan == "random"
        rows = summary.loc[summary["plan"].eq(next(iter(plans)) if is_control else plan)]
        rows = rows.assign(rate=[f"{each:.0%}" for each in rows["rate"]]).set_index("rate")
        values = rows.loc[:, "others_rise" if is_control else "rise"]
        marks.append(Line(values, label, RANDOM if is_control else CURVES[place % len(CURVES)], dashed=is_control))
    caption = "Mean over languages of the loss increase on the language whose plan it is. Dashed: random plans."
    return Chart(title, "share removed", "mean loss increase, nats per token", tuple(marks), caption)


def checkpoint_curves(
    table: pd.DataFrame, value: str, title: str, y: str, *, by: str = "language", reference: str | None = None,
    band: tuple[str, str] | None = None,
) -> Chart:  # fmt: skip
    """Curves over checkpoints, one per language: from the tables of `growth`.

    Args:
        table: One row per `checkpoint`, in order, and value of `by`.
        value: Column to draw.
        title: Title of the figure.
        y: Label of the vertical axis.
        by: Column that names the curves.
        reference: Column drawn dashed beside each curve, in its colour.
        band: Columns with the low and the high end of an interval.
    """
    marks = []
    for place, (name, group) in enumerate(table.groupby(by, sort=False)):
        rows: Any = group.set_index("checkpoint")
        colour = CURVES[place % len(CURVES)]
        ends = None if band is None else rows.loc[:, list(band)].set_axis(["low", "high"], axis=1)
        marks.append(Line(rows[value], str(name), colour, band=ends))
        if reference is not None:
            marks.append(Line(rows[reference], f"{name}: {reference.replace('_', ' ')}", colour, dashed=True))
    words = "Bands are 95 % intervals over draws of the text." if band else ""
    return Chart(title, "checkpoint", y, tuple(marks), f"Checkpoints in their order, not to scale. {words}".strip())
