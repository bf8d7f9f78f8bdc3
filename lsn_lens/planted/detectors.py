"""Scores of methods against planted units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, t

from lsn_lens.bars import tqdm
from lsn_lens.collection.collecting import collect
from lsn_lens.methods.base import order_of
from lsn_lens.methods.catalogue import METHODS, Methods, named
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.methods.random import Random
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.planted.parts import PARTS
from lsn_lens.planted.planting import Planted
from lsn_lens.planted.roles import ROLES
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

TOP = 0.01  # share of the part's units for top recall
ORDINARY = "the model's own"
NOT_SCORED = {
    ExpertFrequency: "it chooses groups of neurons",
    Random: "its scores are those of the method that it is drawn like; chance is in the table",
}
MEASURES = ("average_precision", "chance", "precision_at_k", "precision", "recall", "top_recall")


@dataclass(frozen=True, eq=False)
class DetectorScores:
    """The result of `score_detectors`, best average precision first.

    Attributes:
        methods: One row per part (MLPs, attention) and method: each of `MEASURES` as the mean over plantings, with a 95
            % interval (`_low`, `_high`; missing for a single planting), and `found` (chosen planted units).
        by_language: One row per planting, method and language: the same measures, `planted` and `true` units.
        roles: One row per part, method and role: `units`, `own` (share of them that the method chose for one of the
            languages that the unit belongs to or looks like), `other` (for any other language). The role "the model's
            own" has all units that were not planted; for it only `any`, the share chosen for some language, counts.
        skipped: Methods that do not score the units of a part, with the reason.
        settings: Settings of the run on the first planting: model and text.
    """

    methods: pd.DataFrame
    by_language: pd.DataFrame
    roles: pd.DataFrame
    skipped: Mapping[str, str]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        shown = self.methods[["part", "method", "average_precision"]].itertuples(index=False)
        rows = ", ".join(f"{part} {name} {value:.2f}" for part, name, value in shown)
        return f"DetectorScores(average precision: {rows})"

    def _repr_html_(self) -> str:
        return f"<p><b>DetectorScores</b></p>{self.methods.to_html()}{self.roles.to_html()}"


def score_detectors(
    plantings: Sequence[Planted],
    corpora: Any,
    methods: Methods = tuple(METHODS),
    *,
    layout: Layout | None = None,
    progress: bool = True,
    **options: Any,
) -> DetectorScores:
    """Run methods on planted models and score how well they find the planted units.

    For each language, a method should rank the planted units that the language needs above all other planted units,
    see `order_of`. The model's own units are left out, since their roles are unknown. If a method ranks several
    projections of a neuron (`mlp_pre`, `mlp_up`; `v`, `z`), the better rank counts.

    Args:
        plantings: From `plant`, into any part; several of one part give intervals.
        corpora: Text in all or some of the planted languages.
        methods: Names, or ready methods by name. Methods without scores of single units are listed in `skipped`.
        layout: Layout of `collect`; cap it to test how much text a method needs.
        progress: Show progress bars.
        options: Options of `Planted.load`, for example `backend`.

    Returns:
        Per language, before means: `average_precision` of the ranking (ties count as ties; `chance` is that of a random
        one), `precision_at_k` (at equal size: of its first k planted units, the share that the language needs; k is
        the number of those, so that this is recall at k, too; a method that ranks fewer misses the others), `precision`
        and `recall` of the method's own set among planted units (precision is missing where it holds none of them), and
        `top_recall`: the share of true units among the highest 1 % of the part's units, the model's own included.

    Raises:
        KeyError: An unknown method, or a language that was not planted.
        ValueError: No planting, or a planting without units that a language needs.
    """
    corpora = as_corpora(corpora)
    if not plantings:
        raise ValueError("no plantings: expected at least one, from plant.")
    every = named(methods)
    skipped = {name: NOT_SCORED[type(each)] for name, each in every.items() if type(each) in NOT_SCORED}
    every = {name: method for name, method in every.items() if name not in skipped}
    frames: list[pd.DataFrame] = []
    chosen: list[pd.DataFrame] = []
    settings: Mapping[str, Any] = {}
    without: dict[tuple[str, str], str] = {}
    for number, planted in enumerate(tqdm(plantings, desc="plantings", disable=not progress)):
        unknown = [label for label in corpora if label not in planted.languages]
        if unknown:
            raise KeyError(f"{unknown} were not planted in {planted.folder}; its languages are {planted.languages}.")
        if not any(planted.units["truth"]):
            raise ValueError(f"{planted.folder} has no unit that a language needs: there is nothing to find.")
        some = {name: method for name, method in every.items() if (planted.part, name) not in without}
        run = collect(planted.load(**options), corpora, some.values(), layout=layout, progress=progress)
        settings = settings or run.settings
        for name, method in some.items():
            scores = method.score(run.statistics)
            bases = _bases(planted, scores)
            if not bases:
                without[planted.part, name] = f"it scores {', '.join(scores.values)}"
                continue
            found = method.select(scores)
            label = {"part": planted.part, "planting": number, "method": name}
            order = order_of(method, replace(scores, values={basis: scores.values[basis] for basis in bases}))
            frames.append(_by_language(planted, scores.languages, order, found).assign(**label))
            chosen.append(_by_unit(planted, found, bases).assign(**label))
    skipped |= {f"{name} ({part})": why for (part, name), why in without.items()}
    if not frames:
        raise ValueError(f"no method scores the units that were planted: {skipped}.")
    by_language = pd.concat(frames, ignore_index=True)
    return DetectorScores(
        _methods(by_language), by_language, _roles(pd.concat(chosen, ignore_index=True)), skipped, settings
    )


def _bases(planted: Planted, scores: NeuronScores) -> list[str]:
    """The bases on which the method scores exactly the planted units, one value per unit."""
    shapes = {basis: tuple(each.shape[1:]) for basis, each in scores.values.items()}
    return [basis for basis in PARTS[planted.part].scored if shapes.get(basis) == planted.shape]


def _neurons(values: Mapping[str, torch.Tensor], language: int) -> torch.Tensor:
    """The best of a neuron's projections, by rank where there are several, -inf without any: `[layer unit]`."""
    own = [each[language].double() for each in values.values()]
    if len(own) == 1:
        return own[0]
    ranks = [torch.from_numpy(rankdata(each.numpy()).reshape(each.shape)) for each in own]
    return torch.stack([rank.where(each > -torch.inf, -torch.inf) for rank, each in zip(ranks, own, strict=True)]).amax(
        0
    )


def _chosen(found: NeuronSet, shape: tuple[int, int], bases: Sequence[str], language: int) -> torch.Tensor:
    none = torch.zeros(shape, dtype=torch.bool)
    return torch.stack([none, *(found.masks[basis][language] for basis in bases if basis in found.masks)]).any(0)


def _by_language(
    planted: Planted, languages: Sequence[str], order: Mapping[str, torch.Tensor], found: NeuronSet
) -> pd.DataFrame:
    from sklearn.metrics import average_precision_score  # slow to import, and needed here only

    index = tuple(torch.tensor(planted.units[name].to_numpy()) for name in ("layer", "unit"))
    rows, units = [], planted.units.to_dict("records")
    for place, label in enumerate(languages):
        true = np.array([unit["truth"] and label in unit["languages"] for unit in units])
        if not true.any():
            continue
        neurons = _neurons(order, place)
        ranks = rankdata(neurons.flatten().numpy()).reshape(neurons.shape)  # ties are ties, -inf is lowest
        own = ranks[index[0].numpy(), index[1].numpy()]
        mask = _chosen(found, planted.shape, [*order], place)[index].numpy()
        k = int(true.sum())
        bar = neurons.numel() * (1 - TOP)
        rows.append(
            {
                "language": label,
                "planted": len(true),
                "true": k,
                "chosen": int(mask.sum()),
                "average_precision": float(average_precision_score(true, own)),
                "chance": k / len(true),
                "precision_at_k": _precision_at(true, neurons[index].numpy(), k),
                "precision": float(true[mask].mean()) if mask.any() else math.nan,
                "recall": float(mask[true].mean()),
                "top_recall": float((own[true] > bar).mean()),
            }
        )
    return pd.DataFrame(rows)


def _precision_at(true: np.ndarray, values: np.ndarray, k: int) -> float:
    """Share of true units among the k highest; for a tie across the border the expected share; -inf is no unit."""
    border = np.sort(values)[-k]
    above, at = values > border, values == border
    expected = true[at].mean() * (k - above.sum()) if border > -np.inf else 0
    return float((true[above].sum() + expected) / k)


def _by_unit(planted: Planted, found: NeuronSet, bases: Sequence[str]) -> pd.DataFrame:
    """The share of planted units chosen per role and language, and of all other units."""
    masks = torch.stack([_chosen(found, planted.shape, bases, place) for place in range(len(found.languages))])
    rows = []
    for unit in planted.units.to_dict("records"):
        labels = {label for place, label in enumerate(found.languages) if masks[place, unit["layer"], unit["unit"]]}
        own, here = labels & set(unit["languages"]), bool(set(unit["languages"]) & set(found.languages))
        if here:
            rows.append(
                {"role": unit["role"], "units": 1, "own": bool(own), "other": bool(labels - own), "any": bool(labels)}
            )
    others = masks.any(0)
    others[torch.tensor(planted.units["layer"].to_numpy()), torch.tensor(planted.units["unit"].to_numpy())] = False
    rest = others.numel() - len(planted.units)
    rows.append(
        {"role": ORDINARY, "units": rest, "own": math.nan, "other": math.nan, "any": float(others.sum() / rest)}
    )
    return pd.DataFrame(rows)


def _roles(chosen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    pairs: Any = chosen.groupby(["part", "method"], sort=False)
    for (part, method), mine in pairs:
        for role in [*ROLES, ORDINARY]:
            some: Any = mine.loc[mine["role"].eq(role)]
            if len(some):
                shares = some[["own", "other", "any"]].astype(float).mean().to_dict()
                truth = role in ROLES and ROLES[role].truth
                label = {"part": part, "method": method, "role": role, "truth": truth}
                rows.append({**label, "units": some["units"].sum(), **shares})
    return pd.DataFrame(rows)


def _methods(by_language: pd.DataFrame) -> pd.DataFrame:
    rows = []
    parts: list[str] = list(PARTS)
    pairs: Any = by_language.groupby(["part", "method"], sort=False)
    for (part, method), some in pairs:
        row: dict[str, Any] = {"part": part, "method": method}
        for name in MEASURES:
            means = some.groupby("planting")[name].mean().dropna()
            count = len(means)
            half = t.ppf(0.975, count - 1) * means.std() / math.sqrt(count) if count > 1 else math.nan
            mean = float(means.mean()) if count else math.nan
            low, high = np.clip([mean - half, mean + half], 0, 1)  # all measures are shares
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append({**row, "found": int(some["chosen"].sum()), "plantings": some["planting"].nunique()})
    rows.sort(key=lambda row: (parts.index(row["part"]), -row["average_precision"]))
    return pd.DataFrame(rows).drop(columns=["chance_low", "chance_high"])
