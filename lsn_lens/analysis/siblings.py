"""How the types of neurons differ between two models of the same shape, as a base model and its instruct sibling."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens.analysis.sharing import DEFAULT, active_layers, profile
from lsn_lens.collection.collecting import collect
from lsn_lens.methods.sharing import TYPES, Sharing, members
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

ALL_LAYERS = "all"
LEAST_ITEMS = 4


@dataclass(frozen=True, eq=False)
class SharingChange:
    """The result of `sharing_change`. A neuron's typical type is its most frequent one over items.

    Attributes:
        profiles: `profile` of both models side by side: one row per layer and type, `before`, `after`, `change` (means
            over items of the share of neurons), `chance_before`, `chance_after` (`chance_unrelated` of `profile`).
        agreement: One row per layer, and one for "all": `same_items` (share of neurons and items with the same type in
            both models); over random halves of the items, the share of neurons whose typical type is the same
            `between` the models (one half each), and within one model (its two halves; mean of both): the `ceiling`;
            `beyond` (ceiling minus between: the change that other items do not explain), `beyond_low` and `beyond_high`
            (the middle 95 % of the halvings, which is no interval over text), and `chance` (types drawn independently
            with each model's shares).
        transitions: One row per layer and pair of types: `before`, `after` and the `share` of the layer's neurons, by
            their typical types over all items.
        units: The neurons whose typical type is the same in both halves of each model, in every halving, but not
            between models: `layer`, `unit`, `before`, `after`.
        halvings: Number of random halvings.
    """

    profiles: pd.DataFrame
    agreement: pd.DataFrame
    transitions: pd.DataFrame
    units: pd.DataFrame
    halvings: int


def compare_sharing(
    model: Model,
    sibling: Model,
    corpora: Any,
    method: Sharing = DEFAULT,
    *,
    halvings: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> SharingChange:
    """Run two models over the same parallel text, and compare the types of their neurons (`sharing_change`).

    Args:
        model: A HookedTransformer or TransformerBridge.
        sibling: Another one with as many layers and neurons, for example the instruct model.
        corpora: Parallel text, its `find` part. Lists of texts are taken whole.
        method: Defines which neurons are active.
        halvings: Random halvings of the items.
        seed: Seed of the halvings.
        progress: Show progress bars.

    Raises:
        ValueError: Models of different shapes.
        DoesNotApply: Text that is not parallel.

    Source: the question is that of Wang et al. 2024 (arXiv 2406.09265), BLOOM against BLOOMZ; the ceiling is ours.
    """
    check_model(model)
    check_model(sibling)
    shapes = [(each.cfg.n_layers, each.cfg.d_mlp) for each in (model, sibling)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the models have {shapes[0]} and {shapes[1]} layers and neurons per layer: neurons correspond only in "
            "models of one shape, as a base model and its instruct sibling."
        )
    corpora, layout = as_corpora(corpora, hold_out=0.0), Layout("documents", equal=False)
    runs = [collect(each, corpora, [method], layout=layout, progress=progress) for each in (model, sibling)]
    return sharing_change(runs[0].statistics, runs[1].statistics, method, halvings=halvings, seed=seed)


def sharing_change(
    before: Statistics, after: Statistics, method: Sharing = DEFAULT, *, halvings: int = 20, seed: int = 0
) -> SharingChange:
    """Compare the types of neurons in two runs over the same text.

    Args:
        before: Statistics of a run of one model.
        after: Those of the other model on the same items.
        method: Defines which neurons are active.
        halvings: Random halvings of the items.
        seed: Seed of the halvings.

    Raises:
        ValueError: Other languages, items or shapes, or no halving.
        DoesNotApply: Fewer than 4 items, or items that are not parallel.
    """
    if halvings < 1:
        raise ValueError(f"halvings={halvings}: expected 1 or more.")
    if before.languages != after.languages or before.tokens.shape != after.tokens.shape:
        raise ValueError(
            f"the runs are of {before.languages} with {before.tokens.shape[1]} layers and {after.languages} with "
            f"{after.tokens.shape[1]}: give two runs over the same languages, of models of one shape."
        )
    halves: list[tuple[np.ndarray, np.ndarray]] = []
    rows, moves, moved = [], [], []
    for layer, (one, other) in enumerate(zip(_types(before, method), _types(after, method), strict=True)):
        if one.shape != other.shape:
            raise ValueError(
                f"layer {layer} has {tuple(one.shape)} items and neurons before and {tuple(other.shape)} after: give "
                "two runs over the same items, of models of one shape."
            )
        halves = halves or _halves(len(one), halvings, seed)
        rows.append({"layer": str(layer), **_agreement(one, other, halves), "neurons": one.shape[1]})
        typical = [_typical(each) for each in (one, other)]
        shares = torch.bincount(typical[0] * len(TYPES) + typical[1], minlength=len(TYPES) ** 2) / one.shape[1]
        names = [(a, b) for a in TYPES for b in TYPES]
        moves += [
            {"layer": layer, "before": a, "after": b, "share": share}
            for (a, b), share in zip(names, shares.tolist(), strict=True)
        ]
        moved += [{"layer": layer, **each} for each in _moved(one, other, halves)]
    table = pd.DataFrame(rows)
    together = _pooled(table)
    agreement = pd.concat([_plain(table), pd.DataFrame([{"layer": ALL_LAYERS, **together}])], ignore_index=True)
    units = pd.DataFrame(moved, columns=["layer", "unit", "before", "after"])
    return SharingChange(_profiles(before, after, method), agreement, pd.DataFrame(moves), units, halvings)


def _types(statistics: Statistics, method: Sharing) -> Iterator[Int[Tensor, "item unit"]]:
    """Layer by layer, the number of each neuron's type in each item."""
    for _, fires in active_layers(statistics, method):
        yield members(fires.sum(0), len(fires)).int().argmax(0)


def _typical(types: Int[Tensor, "item unit"]) -> Int[Tensor, "unit"]:
    """The most frequent type over items; of equals the one that comes first in `TYPES`."""
    return torch.stack([(types == each).sum(0) for each in range(len(TYPES))]).argmax(0)


def _halves(items: int, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if items < LEAST_ITEMS:
        raise DoesNotApply(f"{items} items: expected {LEAST_ITEMS} or more, to compare with two halves of one model.")
    orders = [np.random.default_rng([seed, each]).permutation(items) for each in range(count)]
    return [(order[: items // 2], order[items // 2 : 2 * (items // 2)]) for order in orders]


def _agreement(one: Tensor, other: Tensor, halves: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    between, within, chance = [], [], []
    for first, second in halves:
        a, b, c, d = (_typical(each[half]) for each in (one, other) for half in (first, second))
        between.append((_same(a, d) + _same(b, c)) / 2)
        within.append((_same(a, b) + _same(c, d)) / 2)
        chance.append(float(_shares(a) @ _shares(d)))
    beyond = np.array(within) - np.array(between)
    return {"same_items": _same(one, other), "between": float(np.mean(between)), "ceiling": float(np.mean(within)),
            "beyond": beyond, "chance": float(np.mean(chance))}  # fmt: skip


def _same(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


def _shares(types: Int[Tensor, "unit"]) -> Float[Tensor, "type"]:
    return torch.bincount(types, minlength=len(TYPES)).double() / len(types)


def _moved(one: Tensor, other: Tensor, halves: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Neurons of one typical type in every half of one model, and of another in every half of the other."""
    kept = [torch.stack([_typical(each[half]) for pair in halves for half in pair]) for each in (one, other)]
    steady = torch.stack([(each == each[0]).all(0) for each in kept]).all(0) & (kept[0][0] != kept[1][0])
    for unit in steady.nonzero()[:, 0].tolist():
        before, after = (TYPES[int(each[0, unit])] for each in kept)
        yield {"unit": unit, "before": before, "after": after}


def _spread(beyond: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(beyond, (0.025, 0.975))
    return {"beyond": float(beyond.mean()), "beyond_low": float(low), "beyond_high": float(high)}


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The arrays over halvings as means and ranges."""
    rows = [{**row, **_spread(row["beyond"])} for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def _pooled(table: pd.DataFrame) -> dict[str, Any]:
    """All layers together; layers have equally many neurons."""
    means = table[["same_items", "between", "ceiling", "chance"]].mean().to_dict()
    beyond = np.mean(np.stack(table["beyond"].tolist()), axis=0)
    return {**means, **_spread(beyond), "neurons": int(table["neurons"].to_numpy().sum())}


def _profiles(before: Statistics, after: Statistics, method: Sharing) -> pd.DataFrame:
    one, other = (profile(each, method) for each in (before, after))
    return pd.DataFrame(
        {
            "layer": one["layer"], "type": one["type"], "before": one["mean"], "after": other["mean"],
            "change": other["mean"] - one["mean"], "chance_before": one["chance_unrelated"],
            "chance_after": other["chance_unrelated"],
        }
    )  # fmt: skip
