"""Figures of sets, rankings and clusters: overlaps of many sets, precision and recall, dendrograms, effect by size."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import dendrogram

from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import check_kind
from lsn_lens.report.charts import Chart
from lsn_lens.report.marks import Bars, Dots, Line
from lsn_lens.report.palette import CURVES, EMPTY, OTHER, RANDOM

__all__ = ["clusters", "precision_recall", "size_curves", "upset"]


def upset(found: NeuronSet | Mapping[str, NeuronSet], most: int = 20, title: str = "Units that sets share") -> Chart:
    """UpSet plot: how many units are in exactly these sets and in no other.

    Args:
        found: One set, whose languages are compared; or sets by name, as `found` of a `Comparison`: a unit is in
            a set if it belongs to any language there.
        most: Number of combinations shown, the largest first; the caption says how many are left out.
        title: Title of the figure.

    Raises:
        ValueError: Fewer than two sets, or no units.
    """
    members = _members(found)
    names = list(dict.fromkeys(name for name, _ in members))
    inside: dict[tuple[str, int, int], list[str]] = {}
    for name, units in members:
        for unit in units:
            inside.setdefault(unit, []).append(name)
    counts = Counter(tuple(each) for each in inside.values()).most_common()
    if len(names) < 2 or not counts:
        raise ValueError(f"{len(names)} sets with {len(inside)} units: expected two sets or more, with units.")
    shown = counts[:most]
    labels = [" & ".join(each) for each, _ in shown]
    step = shown[0][1] / 12
    places = {name: -step * (place + 1) for place, name in enumerate(names)}
    dots = [(label, places[name], name in each) for label, (each, _) in zip(labels, shown, strict=True)
            for name in names]  # fmt: skip
    marks = [Bars(pd.Series([count for _, count in shown], index=labels), "units", CURVES[0])]
    for is_member, words, colour in ((True, "in the set", RANDOM), (False, "not in the set", EMPTY)):
        own = [(label, place) for label, place, each in dots if each == is_member]
        values = pd.Series([place for _, place in own], index=[label for label, _ in own], dtype=float)
        marks += [Dots(values, words, colour)] if own else []
    high = shown[0][1]
    left = f" {len(counts) - most} smaller combinations are left out." if len(counts) > most else ""
    return Chart(
        title, "combination, largest first", "units", tuple(marks),
        f"Bars: units that are in exactly the sets with a dark dot below, {len(inside)} in all.{left}",
        {place: str(count) for place, (_, count) in enumerate(shown)},
        {**{place: name for name, place in places.items()}, 0: "0", round(high / 2): str(round(high / 2)),
         high: str(high)},
    )  # fmt: skip


Units = list[tuple[str, int, int]]


def _members(found: NeuronSet | Mapping[str, NeuronSet]) -> list[tuple[str, Units]]:
    """Names and their units."""
    if isinstance(found, NeuronSet):
        frame = found.to_frame()
        return [(label, _units(frame.loc[frame["language"].eq(label)])) for label in found.languages]
    check_kind("found", found, Mapping, "a set, as lsn.detect(run), or sets by name, as comparison.found")
    return [(name, _units(each.to_frame())) for name, each in found.items()]


def _units(frame: pd.DataFrame) -> Units:
    keys = frame[["basis", "layer", "unit"]].drop_duplicates()
    return [(str(basis), int(layer), int(unit)) for basis, layer, unit in keys.itertuples(index=False, name=None)]


def precision_recall(
    scores: NeuronScores | Mapping[str, NeuronScores], reference: NeuronSet, language: str, title: str = ""
) -> Chart:
    """Precision and recall of rankings against a set that is taken as true, such as planted units.

    Units that a method cannot choose (-inf) come last, in a tie; a tie is one point.

    Args:
        scores: One method's scores, or scores by method.
        reference: The set taken as true, on the bases of all scores.
        language: The language.
        title: Title of the figure.

    Raises:
        KeyError: A language, or a basis of the reference, that the scores lack.
        ValueError: The reference has no unit of the language, or has other shapes than the scores.
    """
    from sklearn.metrics import precision_recall_curve  # slow to import

    given = {scores.method: scores} if isinstance(scores, NeuronScores) else scores
    true = np.concatenate([mask.flatten().numpy() for mask in reference[language].masks.values()])
    if not true.any():
        raise ValueError(f"the reference has no units of {language!r}: choose another language or reference.")
    marks, chance = [], float(true.mean())
    for place, (name, each) in enumerate(given.items()):
        lacking = [basis for basis in reference.masks if basis not in each.values]
        if lacking or language not in each.languages:
            raise KeyError(
                f"{name} scores {list(each.values)} in {list(each.languages)}: expected {list(reference.masks)} in "
                f"{language!r}, as the reference."
            )
        own = each.languages.index(language)
        values = torch.cat([each.values[basis][own].flatten() for basis in reference.masks]).double().numpy()
        if len(values) != len(true):
            raise ValueError(f"{name} scores {len(values)} units, the reference has {len(true)}: of another model?")
        lowest = values[np.isfinite(values)].min(initial=0.0) - 1.0
        precision, recall, _ = precision_recall_curve(true, np.where(values == -np.inf, lowest, values))
        marks.append(Line(pd.Series(precision[:-1], index=recall[:-1]), name, CURVES[place % len(CURVES)],
                          scale="numbers"))  # fmt: skip
    marks.append(Line(pd.Series([chance] * 2, index=[0.0, 1.0]), "chance", OTHER, dashed=True, scale="numbers"))
    caption = f"Precision: share of the ranked units that are true. Recall: share of the {int(true.sum())} true units."
    return Chart(title or f"{language}: precision and recall", "recall", "precision", tuple(marks), caption)


def clusters(similarity: pd.DataFrame, title: str = "Languages by similarity") -> Chart:
    """Dendrogram of languages: average linkage on 1 - similarity, from `analysis.expert_similarity`.

    Raises:
        ValueError: Fewer than two languages, or a similarity that is missing.
    """
    from lsn_lens.analysis.experts import language_clusters  # which loads the models' libraries

    if len(similarity) < 2 or similarity.isna().to_numpy().any():
        raise ValueError(f"similarity of {list(similarity.index)}: expected numbers for two languages or more.")
    drawn = dendrogram(language_clusters(similarity), labels=[*map(str, similarity.index)], no_plot=True)
    places = [[(x - 5) / 10 for x in each] for each in drawn["icoord"]]  # SciPy puts leaves at 5, 15, ...
    marks = tuple(
        Line(pd.Series(heights, index=at), "", CURVES[0], scale="numbers")
        for at, heights in zip(places, drawn["dcoord"], strict=True)
    )
    return Chart(
        title, "", "1 - similarity", marks,
        "Average linkage: two groups join at the mean distance of their languages, 1 - similarity.",
        dict(enumerate(drawn["ivl"])),
    )  # fmt: skip


def size_curves(curves: pd.DataFrame, title: str = "Effect by number of units") -> Chart:
    """The effect of each method by the number of its units, with the band of random units.

    Args:
        curves: `Comparison.curves` of one kind of unit; means over the languages that every method has at every size.
        title: Title of the figure.

    Raises:
        ValueError: Several kinds of unit, which no axis can compare.
    """
    if len(set(curves["bases"])) != 1:
        raise ValueError(f"curves of {list(curves['bases'].unique())}: choose the rows of one kind of unit (bases).")
    rows = complete(curves)
    means: Any = rows.groupby(["method", "units"])["own_rise"].mean()
    marks = [
        Line(means[name], str(name), CURVES[place % len(CURVES)], dashed=place >= len(CURVES), scale="log")
        for place, name in enumerate(dict.fromkeys(rows["method"]))
    ]
    random: Any = rows.groupby("units")[["random_mean", "random_low", "random_high"]].mean()
    if random["random_mean"].notna().any():
        band = random[["random_low", "random_high"]].set_axis(["low", "high"], axis=1)
        marks.append(Line(random["random_mean"], "random units", RANDOM, dashed=True, band=band, scale="log"))
    return Chart(
        title, "units per language", "in-language loss increase, nats per token", tuple(marks),
        f"{means_over(rows)} Band: from the least to the most of the random sets of all methods.",
    )  # fmt: skip


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The languages that every method has at every size; with none, the sizes lose the largest number of units."""
    counts, every = rows["language"].value_counts(), len(rows[["method", "units"]].drop_duplicates())
    whole = [label for label, count in counts.items() if count == every]
    if whole or len(set(rows["units"])) < 2:
        return rows.loc[rows["language"].isin(whole)] if whole else rows
    return complete(rows.loc[rows["units"] < rows["units"].max()])


def means_over(rows: pd.DataFrame) -> str:
    """What a mean over the rows is over, in words."""
    return f"Means over {', '.join(dict.fromkeys(rows['language']))}. The axis of units is logarithmic."
