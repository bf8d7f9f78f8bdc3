"""Measure planted units, and refuse units whose role does not hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.collection.recorders.importance import heads_output, value_heads
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.model import forward, structure, unembedding
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, flat
from lsn_lens.planted.parts import PARTS, Part, PartName
from lsn_lens.planted.reading import Text, token_scripts
from lsn_lens.planted.roles import MANY

EFFECT_TOKENS = 500  # tokens per language for the effect of each unit; the same text with and without the unit


@torch.no_grad()
def measure_roles(
    model: Model,
    text: Text,
    units: pd.DataFrame,
    effect: float | int = 0.03,
    *,
    part: PartName = "mlp",
    progress: bool = True,
) -> pd.DataFrame:
    """Measurements of each planted unit on hold-out text, in either model class.

    Args:
        model: The planted model, as HookedTransformer or TransformerBridge.
        text: From `read_text`.
        units: `Planted.units`.
        effect: Requested effect, nats per token.
        part: The part of the units.
        progress: Show a progress bar.

    Returns:
        One row per unit, as in `units`: `layer`, `unit`, `role`, `concept`; shares of tokens on which the unit fires
        (`mlp_pre` above zero; a value, `v`, beyond its `level`): `own_rate` (lowest of its languages), `other_rate` and
        `lowest_rate` (highest and lowest of the others); `own_value`, `lowest_value` (mean of `mlp_post` or `v`, its
        languages' highest and the others' lowest); `loudness` (share of the layer's units whose mean size on all text
        is below its own on its languages); `writes` (its mean size there times the norm of its output weights, as a
        multiple of that of the units that languages need; NaN without any); `own_rise` (lowest of its languages) and
        `other_rise` (highest of the others): loss increase when the unit is zero, nats per token; `script_rate`,
        `other_script_rate` (its lowest rate in a language on tokens of its script, its highest on tokens of others; NaN
        without a script); `effect`. For units of no language, all languages are both own and other.
    """
    check_model(model)
    values = _values(model, text, units, PARTS[part], progress)
    rises = _rises(model, text.head(EFFECT_TOKENS), units, PARTS[part], values["alive"], progress)
    rows = []
    needed = _needed(values["writes"], units, text.languages)
    for place, unit in enumerate(units.to_dict("records")):
        own = np.array([label in unit["languages"] for label in text.languages])
        other = ~own if not own.all() else own
        rate, mean, loud, much = (values[name][place] for name in ("rate", "mean", "loudness", "writes"))
        rows.append(
            {
                **{name: unit[name] for name in ("layer", "unit", "role", "concept")},
                "own_rate": rate[own].min(),
                "other_rate": rate[other].max(),
                "lowest_rate": rate[other].min(),
                "own_value": mean[own].max(),
                "lowest_value": mean[other].min(),
                "loudness": loud[own].mean(),
                "writes": much[own].mean() / needed,
                "own_rise": rises[place][own].min(),
                "other_rise": rises[place][other].max(),
                "script_rate": values["script"][place, 0],
                "other_script_rate": values["script"][place, 1],
                "effect": effect,
            }
        )
    return pd.DataFrame(rows)


class RoleError(ValueError):
    """Planted units whose role does not hold.

    Attributes:
        cells: Role, concept and layer of each.
    """

    def __init__(self, message: str, cells: Iterable[tuple[str, str, int]] = ()) -> None:
        super().__init__(message)
        self.cells = frozenset(cells)


def check_roles(measured: pd.DataFrame, part: PartName = "mlp") -> None:
    """Refuse units of a part whose role does not hold.

    Raises:
        RoleError: The message names each such unit and its measurement.
    """
    wrong = [
        (row, fault)
        for row in measured.to_dict("records")
        for holds in PARTS[part].roles[row["role"]].holds
        if (fault := holds(row))
    ]
    said = [
        f"{row['role']} of {row['concept']} (layer {row['layer']}, unit {row['unit']}): {fault}" for row, fault in wrong
    ]
    if wrong:
        raise RoleError(
            f"{len(wrong)} of {len(measured)} planted units are not what they were made to be:\n"
            + "\n".join(said[:20])
            + "\nTry another seed, more tokens or a smaller effect; or leave these roles or languages out.",
            ((row["role"], row["concept"], row["layer"]) for row, _ in wrong),
        )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the tokens of a text by language; `fires` also by script, the last for no script."""

    fires: Float[Tensor, "planted language script"]
    values: Float[Tensor, "planted language"]
    sizes: Float[Tensor, "layer language unit"]
    counts: Float[Tensor, "language script"]
    alive: Bool[Tensor, "layer unit"]


def _values(model: Model, text: Text, units: pd.DataFrame, part: Part, progress: bool) -> dict[str, Any]:
    """Rates, means, loudness and writes `[unit, language]`, and rates by script."""
    layers, index = (torch.tensor(units[name].to_numpy()) for name in ("layer", "unit"))
    scripts = token_scripts(model.tokenizer, structure.vocabulary_size(model))
    names = sorted({each for each in scripts if each})
    number = torch.tensor([names.index(each) if each else len(names) for each in scripts])
    sums = _sums(model, text, units, part, number, progress)
    tokens = sums.counts.sum(1)
    sizes = sums.sizes / tokens[:, None]
    norms = torch.stack([_output_norms(model, layer, part) for layer in range(model.cfg.n_layers)])
    return {
        "rate": (sums.fires.sum(2) / tokens).double().numpy(),
        "mean": (sums.values / tokens).double().numpy(),
        "loudness": _above(sizes, layers, index),
        "writes": (sizes * norms[:, None])[layers, :, index].double().numpy(),
        "alive": sums.alive[layers, index].numpy(),
        "script": np.array(
            [_by_script(sums.fires[place], sums.counts, names, unit) for place, unit in enumerate(units["script"])]
        ),
    }


def _sums(
    model: Model, text: Text, units: pd.DataFrame, part: Part, number: Int[Tensor, "vocabulary"], progress: bool
) -> _Sums:
    """The sums over a text; `number` is the script of each token id."""
    languages, scripts, width = len(text.languages), int(number.max()) + 1, structure.site_width(model, part.value)
    layers, index = (torch.tensor(units[name].to_numpy()) for name in ("layer", "unit"))
    levels = torch.tensor(units["level"].to_numpy(), dtype=torch.float32)
    mine = [(layers == layer).nonzero()[:, 0] for layer in range(model.cfg.n_layers)]
    sums = _Sums(
        torch.zeros(len(units), languages, scripts), torch.zeros(len(units), languages),
        torch.zeros(len(mine), languages, width), torch.zeros(languages, scripts),
        torch.zeros(len(mine), width, dtype=torch.bool),
    )  # fmt: skip
    device, seen = structure.device_of(model), {}
    with model.hooks(fwd_hooks=_keeping(seen, part, len(mine))):
        for ids, keep, rows in tqdm(list(text.batches()), desc="roles: activations", disable=not progress):
            model(ids.to(device), attention_mask=keep.long().to(device), return_type=None)
            counted = keep & (torch.arange(keep.shape[1]) >= text.first)
            cells = rows[:, None].expand_as(keep)[counted] * scripts + number[ids[counted]]
            where = torch.nn.functional.one_hot(cells, languages * scripts).float()
            by_language = where.view(len(where), languages, scripts).sum(2)
            sums.counts.add_(where.sum(0).view_as(sums.counts))
            for layer, some in enumerate(mine):
                pre, post = (seen[name, layer][counted] for name in (part.fires, part.value))
                fired = _beyond(pre[:, index[some]], levels[some]).float().T @ where
                sums.fires[some] += fired.view(len(some), languages, scripts)
                sums.values[some] += post[:, index[some]].T @ by_language
                sums.sizes[layer] += by_language.T @ post.abs()
                sums.alive[layer] |= seen[part.value, layer][keep].any(0)
    return sums


def _keeping(seen: dict[tuple[str, int], Tensor], part: Part, n_layers: int) -> list[tuple[str, Any]]:
    """Hooks that store a part's gates and values in `seen`, by site and layer."""

    def keep_acts(name: str, layer: int) -> Any:
        def hook(acts: Tensor, hook: Any) -> None:
            seen[name, layer] = flat(acts.detach().cpu().float(), SITES[name])

        return hook

    sites = dict.fromkeys((part.fires, part.value))
    return [(SITES[name].hook_name(layer), keep_acts(name, layer)) for name in sites for layer in range(n_layers)]


def _above(
    sizes: Float[Tensor, "layer language unit"], layers: Int[Tensor, "planted"], index: Int[Tensor, "planted"]
) -> Float[np.ndarray, "planted language"]:
    """Share of its layer's units whose size on all text is below a unit's on each language."""
    shares = [
        (sizes[layer].mean(0) < sizes[layer, :, unit, None]).double().mean(1)
        for layer, unit in zip(layers, index, strict=True)
    ]
    return torch.stack(shares).numpy()


def _needed(writes: Float[np.ndarray, "planted language"], units: pd.DataFrame, languages: Sequence[str]) -> float:
    """The mean of `writes` of the needed units on their languages."""
    own = [
        writes[place][[label in unit["languages"] for label in languages]].mean()
        for place, unit in enumerate(units.to_dict("records"))
        if unit["truth"]
    ]
    return float(np.mean(own)) if own else float("nan")


def _beyond(acts: Float[Tensor, "token unit"], levels: Float[Tensor, "unit"]) -> Bool[Tensor, "token unit"]:
    """Where units fire: above a positive level, below a negative level."""
    return torch.where(levels < 0, acts < levels, acts > levels)


def _output_norms(model: Model, layer: int, part: Part) -> Float[Tensor, "unit"]:
    """Norm of each unit's output weights; for a value, over all heads that read it."""
    if part.value == "mlp_post":
        return model.blocks[layer].mlp.W_out.detach().cpu().float().norm(dim=1)
    w_o = heads_output(model, layer).cpu().float()
    return w_o.unflatten(0, (value_heads(model), -1)).square().sum((1, 3)).sqrt().flatten()


def _by_script(
    fires: Float[Tensor, "language script"], counts: Float[Tensor, "language script"], names: Sequence[str], script: Any
) -> tuple[float, float]:
    """Lowest rate on the script's tokens, highest on those of other scripts, in languages with enough of them."""
    if script not in names:
        return float("nan"), float("nan")
    own = names.index(script)
    rest = [place for place in range(len(names)) if place != own]
    sides = ((fires[:, own], counts[:, own]), (fires[:, rest].sum(1), counts[:, rest].sum(1)))
    inside, outside = ((hits / total)[total >= MANY] for hits, total in sides)
    return (
        float(inside.min()) if len(inside) else float("nan"),
        float(outside.max()) if len(outside) else float("nan"),
    )


def _rises(
    model: Model, text: Text, units: pd.DataFrame, part: Part, alive: Bool[np.ndarray, "unit"], progress: bool
) -> Float[np.ndarray, "unit language"]:
    """Each language's loss increase when one unit is zero; 0 for a unit that is always zero."""
    width = structure.site_width(model, part.value)
    clean = _losses(model, text, [])
    rises = np.zeros((len(units), len(clean)))
    places = list(zip(units["layer"], units["unit"], strict=True))
    for place in tqdm(alive.nonzero()[0], desc="roles: effects", disable=not progress):
        mask = torch.zeros(1, model.cfg.n_layers, width, dtype=torch.bool)
        mask[(0, *places[place])] = True
        hooks = intervention_hooks(model, NeuronSet(("unit",), {part.basis: mask}), zero, lambda _: width)
        rises[place] = _losses(model, text, hooks) - clean
    return rises


def _losses(model: Model, text: Text, hooks: list[Any]) -> Float[np.ndarray, "language"]:
    """Mean loss of each language, nats per token."""
    totals, counts = np.zeros(len(text.languages)), np.zeros(len(text.languages))
    device = structure.device_of(model)
    with forward.lean(model, [name for name, _ in hooks]), model.hooks(fwd_hooks=hooks):
        for ids, keep, languages in text.batches():
            kept, count = keep.to(device), keep[:, 1:].sum(1).numpy()
            losses = unembedding.next_token_losses(model, ids.to(device), kept.long(), kept[:, 1:])
            np.add.at(totals, languages.numpy().repeat(count), losses.cpu().numpy())
            np.add.at(counts, languages.numpy(), count)
    return totals / counts
