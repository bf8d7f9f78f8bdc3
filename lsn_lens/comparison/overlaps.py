"""Whether two methods find the same units and rank all units alike."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet

PAIR = ["method", "other"]
MEASURES = ["jaccard", "overlap", "expected_overlap", "chance_corrected", "rank_correlation"]
NO_BASIS = "no common basis"


def agreement(found: Mapping[str, NeuronSet], scores: Mapping[str, NeuronScores]) -> pd.DataFrame:
    """The agreement of each pair of methods, language by language.

    Two sets are compared on the bases that both have, at equal size: of the larger set only the units with the best
    scores. Chance is the overlap of two random sets with as many units in each layer.

    Args:
        found: Each method's set.
        scores: Each method's scores, by the same names.

    Returns:
        One row per pair and language, best agreement first: `method`, `other`, `language`, `bases`, `units` (of either
        set), `jaccard` (shared units over all units of both), `overlap` (shared units over `units`), `expected_overlap`
        (the same by chance), `chance_corrected` ((overlap - expected) / (1 - expected): 1 for equal sets, about 0 for
        unrelated ones; Cohen's kappa where there is one layer), `rank_correlation` (Spearman's, over the units that
        either method gives a finite score; -inf ranks lowest), and `note`: why values are missing.
    """
    rows = [
        row
        for one, other in combinations(found, 2)
        for row in _pair(one, other, found, scores, _common(found, one, other))
    ]
    frame = pd.DataFrame(rows, columns=[*PAIR, "language", "bases", "units", *MEASURES, "note"])
    return _best_first(frame)


def average_agreement(by_language: pd.DataFrame) -> pd.DataFrame:
    """One row per pair: the means of `agreement` over the languages where both have units, best agreement first.

    Returns:
        The columns of `agreement`, `languages` (how many have a value) in place of `language`.
    """
    groups: Any = by_language.groupby(PAIR, sort=False)
    frame = groups[["units", *MEASURES]].mean()
    frame.insert(0, "bases", groups["bases"].first())
    frame.insert(1, "languages", groups["overlap"].count())
    frame["note"] = groups["note"].agg(lambda notes: "; ".join(dict.fromkeys(note for note in notes if note)))
    return _best_first(frame.reset_index())


def mean_agreement(average: pd.DataFrame) -> pd.Series:
    """Each method's mean chance-corrected agreement with the methods it shares a basis with."""
    both = pd.concat([average, average.assign(method=average["other"])])
    groups: Any = both.groupby("method")
    return groups["chance_corrected"].mean()


def overlap_at_equal_size(
    one: Bool[Tensor, "unit"], other: Bool[Tensor, "unit"], layers: Int[Tensor, "unit"]
) -> dict[str, float]:
    """Overlap of two sets of equal size, and the overlap expected by chance.

    Args:
        one: Units of the first set.
        other: Units of the second.
        layers: The layer of each unit. Chance draws each set's units anew within their layers.

    Raises:
        ValueError: Sets of different size, or without units.

    Source: chance is the mean of the hypergeometric distribution in each layer; the correction has the form of
    Cohen 1960 (kappa). Taking it at equal size and by layer is ours.
    """
    size = int(one.sum())
    if size != int(other.sum()) or not size:
        raise ValueError(f"sets of {size} and {int(other.sum())} units: expected as many in both, at least one.")
    groups = int(layers.max()) + 1
    a, b, whole = (torch.bincount(layers[kept], minlength=groups).double() for kept in (one, other, layers >= 0))
    shared = int((one & other).sum())
    overlap, expected = shared / size, float((a * b / whole.clamp_min(1)).sum()) / size
    corrected = (overlap - expected) / (1 - expected) if expected < 1 else math.nan
    values = (shared / (2 * size - shared), overlap, expected, corrected)
    return dict(zip(MEASURES[:-1], values, strict=True))


def rank_correlation(one: Float[Tensor, "unit"], other: Float[Tensor, "unit"]) -> float:
    """Spearman's correlation over the units finite in either; -inf ranks lowest. NaN where one side is constant."""
    kept = one.isfinite() | other.isfinite()
    ranks = [pd.Series(each[kept].numpy()).rank().to_numpy() for each in (one, other)]
    if any(len(each) < 2 or np.ptp(each) == 0 for each in ranks):
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


def strongest(chosen: Bool[Tensor, "unit"], scores: Float[Tensor, "unit"], count: int) -> Bool[Tensor, "unit"]:
    """The `count` chosen units with the best scores; ties go to the lower layer, then the lower unit."""
    places = chosen.nonzero()[:, 0]
    order = scores[places].argsort(descending=True, stable=True)
    kept = torch.zeros_like(chosen)
    kept[places[order[:count]]] = True
    return kept


def _common(found: Mapping[str, NeuronSet], one: str, other: str) -> list[str]:
    a, b = found[one].masks, found[other].masks
    return [basis for basis in a if basis in b and a[basis].shape[1:] == b[basis].shape[1:]]


def _pair(
    one: str, other: str, found: Mapping[str, NeuronSet], scores: Mapping[str, NeuronScores], bases: list[str]
) -> Iterable[dict[str, object]]:
    names = (one, other)
    for language in (each for each in found[one].languages if each in found[other]):
        row: dict[str, object] = {"method": one, "other": other, "language": language, "bases": ", ".join(bases)}
        if not bases:
            yield {**row, "note": NO_BASIS}
            continue
        chosen = [_flat(found[name].masks, bases, found[name].languages.index(language)) for name in names]
        values = [_flat(scores[name].values, bases, scores[name].languages.index(language)) for name in names]
        values = [each.double().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf) for each in values]
        size = min(int(each.sum()) for each in chosen)
        row |= {"units": size, "rank_correlation": rank_correlation(*values)}
        if size:
            a, b = (strongest(each, value, size) for each, value in zip(chosen, values, strict=True))
            yield {**row, **overlap_at_equal_size(a, b, _layers(found[one], bases)), "note": ""}
        else:
            empty = [name for name, each in zip(names, chosen, strict=True) if not each.any()]
            yield {**row, "note": f"no units of {', '.join(empty)} on the common bases in {language}"}


def _flat(tensors: Mapping[str, Tensor], bases: list[str], place: int) -> Tensor:
    return torch.cat([tensors[basis][place].flatten() for basis in bases])


def _layers(found: NeuronSet, bases: list[str]) -> Int[Tensor, "unit"]:
    """A number per unit that stands for its basis and layer."""
    shapes = [found.masks[basis].shape[1:] for basis in bases]
    units = torch.tensor([count for layers, count in shapes for _ in range(layers)])
    return torch.arange(len(units)).repeat_interleave(units)


def _best_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("chance_corrected", ascending=False, kind="stable", ignore_index=True)


def mean_jaccard(neurons: NeuronSet) -> float:
    """Mean overlap of two languages' sets; NaN where no two have units."""
    table = neurons.jaccard()
    pairs = [float(table.loc[a, b]) for a, b in combinations(neurons.languages, 2)]  # type: ignore[arg-type]
    return float(pd.Series(pairs, dtype=float).mean())
