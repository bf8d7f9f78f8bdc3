"""Stability of a result under other draws of the text or without one language: from a run's shards, no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import combinations
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import hypergeom
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.controls.resampling import check_shards, load_shards, resampled, seeds, subset
from lsn_lens.evaluation.bootstrap import check_replicates, percentile_interval
from lsn_lens.methods.base import Method, check_shares, scores_of, units_of
from lsn_lens.methods.catalogue import get_method
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import Run
from lsn_lens.workers import Report, mapped, shares

STABLE = 0.95  # share of replicates from which on a unit is stable
OVERLAPS = ["jaccard", "expected_jaccard", "corrected_jaccard"]


@dataclass(frozen=True, eq=False)
class Stability:
    """The result of `bootstrap`.

    Attributes:
        found: The set on all shards.
        frequency: By basis, the share of the replicates in which a unit was chosen for a language, in [0, 1].
        intervals: One row per unit of `found`: `language`, `basis`, `layer`, `unit`, `score`, the interval's `low` and
            `high`, and `frequency`. A bound of -inf: the unit could not belong to the language in so many replicates.
        overlaps: One row per replicate and language: `replicate`, `language`, `units`, `jaccard` with the set on all
            shards, `expected_jaccard`, `corrected_jaccard`.
        shards: The smallest number of shards of a language.
        level: Level of the intervals.
    """

    found: NeuronSet
    frequency: Mapping[str, Float[Tensor, "language layer unit"]]
    intervals: pd.DataFrame
    overlaps: pd.DataFrame
    shards: int
    level: float


def bootstrap(
    run: Run,
    method: str | Method = "lape",
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    paired: bool = False,
    progress: bool = True,
) -> Stability:
    """Score and select on runs whose shards are drawn with replacement: a bootstrap over blocks of documents.

    Intervals are expanded percentile intervals, see `percentile_interval`. They are valid for a unit named beforehand;
    units of a set were selected for high scores, so these scores tend to be too high.

    Args:
        run: A run with at least 5 shards per language, better 16.
        method: A name of `lsn.METHODS` or a method object.
        replicates: Draws; 1,000 or more for intervals.
        seed: Seed of the draws.
        level: Level of the intervals, in (0, 1).
        paired: Draw the same shards in all languages, for parallel text.
        progress: Show a progress bar.

    Raises:
        KeyError: The run lacks a statistic that the method needs.
        ValueError: Too few shards, or replicates or level out of range.

    Source: Efron and Tibshirani 1993 (the bootstrap); selection frequency as in Meinshausen and Buehlmann 2010
    (stability selection), who draw half of the data without replacement instead.
    """
    check_replicates(replicates, level)
    check_shards(run, paired)
    chosen = get_method(method)
    small = load_shards(run, [chosen])
    scores = scores_of(chosen, small.statistics)
    found = units_of(chosen, scores)
    mine = shares(list(enumerate(seeds(seed, replicates))))
    with tqdm(total=replicates, desc="bootstrap", disable=not progress) as bar:
        parts = mapped(partial(_replicates, small, chosen, found, paired), mine, bar.update)
    frequency = {basis: torch.stack([part[0][basis] for part in parts]).sum(0) for basis in found.masks}
    values = np.empty((replicates, int(_values(scores, found).numel())))
    for some, part in zip(mine, parts, strict=True):
        values[[replicate for replicate, _ in some]] = part[1]
    overlaps = sorted((row for part in parts for row in part[2]), key=itemgetter("replicate"))
    shards = min(len(each) for each in run.shards.values())
    frequency = {basis: total / replicates for basis, total in frequency.items()}
    intervals = found.to_frame().assign(score=_values(scores, found).numpy())
    intervals["low"], intervals["high"] = percentile_interval(values, shards, level)
    intervals["frequency"] = torch.cat([each[found.masks[basis]] for basis, each in frequency.items()]).numpy()
    table = pd.DataFrame(overlaps).drop(columns=["other_units"])
    return Stability(found, frequency, intervals, table, shards, level)


def _replicates(
    run: Run, method: Method, found: NeuronSet, paired: bool, draws: Sequence[tuple[int, int]], report: Report
) -> tuple[dict[str, Tensor], list[np.ndarray], list[dict[str, Any]]]:
    """Of some replicates: how many chose each unit, the scores of the set's units, and overlaps with the set."""
    frequency = {basis: torch.zeros(mask.shape, dtype=torch.float64) for basis, mask in found.masks.items()}
    values, overlaps = [], []
    for replicate, seed in draws:
        again = method.score(resampled(run, seed, paired=paired).statistics)
        drawn = method.select(again)
        for basis, mask in drawn.masks.items():
            frequency[basis] += mask
        values.append(_values(again, found).numpy())
        overlaps += [{"replicate": replicate, **row} for row in _overlap_rows(drawn, found)]
        report(1)
    return frequency, values, overlaps


def _values(scores: NeuronScores, found: NeuronSet) -> Float[Tensor, "member"]:
    return torch.cat([scores.values[basis][mask].double() for basis, mask in found.masks.items()])


def stability_table(stability: Stability) -> pd.DataFrame:
    """One row per language, from `bootstrap`.

    Returns:
        `language`; `units` of the set on all shards; `units_low` and `units_high`, the interval of the number of units;
        `stable_units`, units of the set that at least 95 % of the replicates chose too; their `stable_share` of the
        set; `mean_frequency` of the set's units; `jaccard` and `corrected_jaccard`, means over the replicates.
    """
    rows = []
    for language, each in stability.overlaps.groupby("language", sort=False):
        own = stability.intervals.loc[stability.intervals["language"].eq(language), "frequency"]
        sizes = each["units"].to_numpy(dtype=float)
        low, high = percentile_interval(sizes, stability.shards, stability.level)
        stable = int((own >= STABLE).sum())
        rows.append(
            {
                "language": language,
                "units": len(own),
                "units_low": int(low),
                "units_high": math.ceil(high),
                "stable_units": stable,
                "stable_share": stable / len(own) if len(own) else np.nan,
                "mean_frequency": own.mean(),
                "jaccard": each["jaccard"].mean(),
                "corrected_jaccard": each["corrected_jaccard"].mean(),
            }
        )
    return pd.DataFrame(rows)


def stable_set(stability: Stability, share: float = STABLE) -> NeuronSet:
    """The units that at least this share of the replicates chose, in the set or not."""
    check_shares(share=share)
    masks = {basis: each >= share for basis, each in stability.frequency.items()}
    whole = stability.found
    return replace(whole, masks=masks, method=f"in {share:g} of the replicates of {whole.method}", notes={})


def across(sets: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """Overlap of sets from different corpora, domains or seeds, for each pair and language.

    Args:
        sets: At least two sets by name, of one model; bases and shapes must be the same.

    Returns:
        One row per pair and language that both have: `set`, `other`, `language`, `units`, `other_units`, `jaccard`,
        `expected_jaccard` of random sets with as many units in each layer, and `corrected_jaccard`, which is (jaccard -
        expected) / (1 - expected): 1 for equal sets, about 0 for unrelated ones. NaN for two empty sets.

    Raises:
        ValueError: Fewer than two sets, or sets of different bases or shapes.
    """
    if len(sets) < 2:
        raise ValueError(f"got the sets {list(sets)}: expected at least two to compare.")
    rows = [
        {"set": one, "other": other, **row}
        for one, other in combinations(sets, 2)
        for row in _overlap_rows(sets[one], sets[other])
    ]
    return pd.DataFrame(rows, columns=["set", "other", "language", "units", "other_units", *OVERLAPS])


def leave_one_out(run: Run, method: str | Method = "lape", *, progress: bool = True) -> pd.DataFrame:
    """The other languages' sets when one language is left out of the statistics.

    Args:
        run: A run with at least three languages.
        method: A name of `lsn.METHODS` or a method object.
        progress: Show a progress bar.

    Returns:
        One row per language left out and each other language: `left_out`, `language`, `units` without it, `other_units`
        with all languages, `jaccard`, `expected_jaccard`, `corrected_jaccard` as `across`, `gained` and `lost` (units),
        and `gained_from_left_out`: units of the language left out among those gained.

    Raises:
        ValueError: Fewer than three languages.
    """
    if len(run.languages) < 3:
        raise DoesNotApply(f"the run has {list(run.languages)}: leaving one out takes three languages or more.")
    chosen = get_method(method)
    small = load_shards(run, [chosen])
    whole = chosen.select(chosen.score(small.statistics))
    rows = []
    for left_out in tqdm(run.languages, desc="leave one out", disable=not progress):
        rest = subset(small, [label for label in run.languages if label != left_out])
        found = chosen.select(chosen.score(rest.statistics))
        for row in _overlap_rows(found, whole):
            one, all_ = found[row["language"]], whole[row["language"]]
            new = {basis: mask[0] & ~all_.masks[basis][0] for basis, mask in one.masks.items()}
            taken = sum(int((mask & whole[left_out].masks[basis][0]).sum()) for basis, mask in new.items())
            gained = sum(int(mask.sum()) for mask in new.values())
            changes = {"gained": gained, "lost": len(all_ - one), "gained_from_left_out": taken}
            rows.append({"left_out": left_out, **row, **changes})
    return pd.DataFrame(rows)


def expected_jaccard(one: Int[Tensor, "layer"], other: Int[Tensor, "layer"], units: Int[Tensor, "layer"]) -> float:
    """Mean Jaccard of two random sets with these numbers of units in each layer; NaN for two empty sets.

    Exact: what two sets share in a layer follows the hypergeometric distribution, and layers are independent.
    """
    total = int(one.sum() + other.sum())
    if not total:
        return float("nan")
    shared = np.ones(1)
    for a, b, n in zip(one.tolist(), other.tolist(), units.tolist(), strict=True):
        if a and b:
            shared = np.convolve(shared, _shared(n, max(a, b), min(a, b)))
    places = np.arange(len(shared))
    return float((shared * places / (total - places)).sum())


@lru_cache(maxsize=1 << 16)
def _shared(units: int, one: int, other: int) -> np.ndarray:
    return hypergeom.pmf(np.arange(other + 1), units, one, other)


def _overlap_rows(one: NeuronSet, other: NeuronSet) -> list[dict[str, Any]]:
    """Jaccard and its chance correction for each language that both sets have."""
    shapes = [{basis: tuple(mask.shape[1:]) for basis, mask in each.masks.items()} for each in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"sets of other bases or shapes cannot be compared: {shapes[0]} and {shapes[1]}.")
    common = [label for label in one.languages if label in other]
    places = [[each.languages.index(label) for label in common] for each in (one, other)]
    a, b = ({basis: mask[at] for basis, mask in x.masks.items()} for x, at in zip((one, other), places, strict=True))
    units = torch.tensor([width for layers, width in shapes[0].values() for _ in range(layers)])
    sizes = [torch.cat([mask.sum(-1) for mask in each.values()], dim=1) for each in (a, b)]
    shared = torch.stack([(mask & b[basis]).sum((1, 2)) for basis, mask in a.items()]).sum(0).tolist()
    rows: list[dict[str, Any]] = []
    for place, label in enumerate(common):
        first, second = (int(each[place].sum()) for each in sizes)
        union = first + second - shared[place]
        jaccard = shared[place] / union if union else float("nan")
        expected = expected_jaccard(sizes[0][place], sizes[1][place], units)
        corrected = (jaccard - expected) / (1 - expected) if expected < 1 else float("nan")
        values = dict(zip(OVERLAPS, (jaccard, expected, corrected), strict=True))
        rows.append({"language": label, "units": first, "other_units": second, **values})
    return rows
