"""Read the scale, the norms and the rotary embedding of a model's attention from the model's own tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsn_lens.model import forward, hooks, structure
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.rotations import HeadNorm, Rotation, fit_rotation, no_rotation, pairings, table_rotation

PROBE = 32  # random tokens from which scale and pairing are read
HEADS = 8  # key heads from which the rotation is fitted
CLEAR = 1e-4  # attention below this is left out where scores are compared with it
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
EQUAL = (2.0**12, 2.0**-13)  # far above and near the eps of a norm, and exact in every dtype
INSTEAD = 'leave out queries and keys: bases=("mlp", "v", "z")'


@dataclass
class _Probe:
    """Hooked tensors of one forward pass over random tokens, per layer."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[..., None]:
        def keep(acts: Tensor, hook: Any) -> None:
            if name.endswith("pattern"):
                kept = acts[0, :, :PROBE, :PROBE]
            elif name.endswith(("hook_q", "rot_q")):
                kept = acts[0, :PROBE]
            else:  # keys show the rotation of every position
                kept = acts[0]
            self.seen[name] = kept.detach().float().cpu()

        return keep

    def get(self, layer: int, name: str) -> Tensor | None:
        return self.seen.get(f"blocks.{layer}.attn.hook_{name}")


def read_attention(model: Model, longest: int) -> dict[str, Tensor]:
    """Scale and norms of every layer, and the rotation of every position, checked against the pattern.

    `norms.<layer>`, `[2 d_head+1]`, has the weight and the eps of the norms of queries and keys, where there are any.
    """
    if _soft_cap(model):
        raise DoesNotApply(
            "this model has a soft cap on attention scores, so the contribution of a query or key dimension cannot be "
            f"read from the attention pattern: {INSTEAD}."
        )
    norms = [_head_norms(model, layer) for layer in range(model.cfg.n_layers)]
    length = min(max(longest, PROBE), model.cfg.n_ctx)
    ids = torch.randint(structure.vocabulary_size(model), (1, length), generator=torch.Generator().manual_seed(0))
    probe = _Probe()
    names = [f"blocks.{i}.attn.hook_{each}" for i in range(model.cfg.n_layers) for each in
             ("q", "k", "rot_q", "rot_k", "pattern", "cos", "sin")]  # fmt: skip
    reads = [(name, probe.hook(name)) for name in names if name in model.hook_dict]
    with model.hooks(fwd_hooks=reads):  # with the user's hooks, which must leave the pattern a softmax too
        forward.hidden_states(model, ids.to(structure.device_of(model)), None)
    tolerance = _tolerance(model)
    scales, rotations = [], list[Rotation]()
    for layer in range(model.cfg.n_layers):
        scale, rotation = _read_layer(probe, layer, norms[layer], tolerance)
        scales.append(scale)
        rotations.append(rotation)
    numbers = {
        f"norms.{layer}": torch.stack([torch.cat([each.weight, each.eps[None]]) for each in pair])
        for layer, pair in enumerate(norms)
        if pair
    }
    return {"scale": torch.tensor(scales), **_tables(rotations, tolerance), **numbers}


def _soft_cap(model: Model) -> bool:
    config = model.original_model.config if structure.is_bridge(model) else model.cfg
    caps = (getattr(config, name, None) for name in ("attn_logit_softcapping", "attn_scores_soft_cap"))
    return any(cap is not None and cap > 0 for cap in caps)


def _head_norms(model: Model, layer: int) -> list[HeadNorm]:
    """The norms of the queries and of the keys; none if they pass none."""
    attention = getattr(model.blocks[layer], "attn", None)
    modules = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    with hooks.set_aside(model):
        return [] if modules == [None, None] else [_as_numbers(model, layer, module) for module in modules]


@torch.no_grad()
def _as_numbers(model: Model, layer: int, module: Any) -> HeadNorm:
    """An RMS norm over the dimensions of a head, from what it makes of equal numbers: large ones show its weight."""
    module, d_head = getattr(module, "original_component", module), model.cfg.d_head
    shapes = [list(each.shape) for each in module.parameters()] if module is not None else ["none"]
    if module is not None and shapes in ([], [[d_head]]):
        made = {"device": structure.device_of(model), "dtype": next(model.parameters()).dtype}
        probe = torch.randn(1, 1, HEADS, d_head, generator=torch.Generator().manual_seed(0)).to(**made)
        large, small = (module(torch.full((1, 1, 1, d_head), size, **made)).flatten().float().cpu() for size in EQUAL)
        ratio = large.abs().sum() / small.abs().sum()
        norm = HeadNorm(large, (EQUAL[1] ** 2 * (ratio.square() - 1)).clamp_min(0))
        expected = module(probe)[0].float().cpu()
        if _unlike(norm.apply(probe[0].float().cpu()), expected) <= _tolerance(model):
            return norm
    raise DoesNotApply(
        f"layer {layer}: queries and keys pass a norm before their product that is no RMS norm over the {d_head} "
        f"dimensions of each head (its weights have the shapes {shapes}), so the removal of one of their "
        f"units has no closed form here: {INSTEAD}."
    )


def _unlike(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _tolerance(model: Model) -> float:
    half = next(model.parameters()).dtype not in (torch.float32, torch.float64)
    return HALF_TOLERANCE if half else TOLERANCE


def _read_layer(probe: _Probe, layer: int, norms: list[HeadNorm], tolerance: float) -> tuple[float, Rotation]:
    """The first rotation that explains the rotated tensors and, with one scale, the attention pattern."""
    q, k, pattern = (probe.get(layer, name) for name in ("q", "k", "pattern"))
    if q is None or k is None or pattern is None:
        raise DoesNotApply(f"layer {layer} has no attention with queries, keys and a pattern: {INSTEAD}.")
    q, k = (norm.apply(x) for norm, x in zip(norms, (q, k), strict=True)) if norms else (q, k)
    error = torch.inf
    for rotation in _candidates(probe, layer, q, k, tolerance):
        scale, error = _scale(rotation.apply(q), rotation.apply(k[: len(q)]), pattern)
        if error <= tolerance and scale > 0:
            usual = q.shape[-1] ** -0.5
            return (usual if abs(scale / usual - 1) <= tolerance else scale), rotation
    raise DoesNotApply(
        f"layer {layer}: the attention pattern is not a softmax of scale * rotated q k (the best try leaves "
        f"{error:.2g} of it unexplained, {tolerance:g} is allowed), so importances of queries and keys would be "
        f"wrong; {INSTEAD}."
    )


def _candidates(probe: _Probe, layer: int, q: Tensor, k: Tensor, tolerance: float) -> list[Rotation]:
    """Rotations that fit the probe, the most likely first."""
    d_head = q.shape[-1]
    rot_q, rot_k, cos, sin = (probe.get(layer, name) for name in ("rot_q", "rot_k", "cos", "sin"))
    if rot_q is not None and rot_k is not None:
        fitted = []
        for partner in pairings(d_head):
            rotation = fit_rotation(k[:, :HEADS], rot_k[:, :HEADS], partner)
            pairs = ((rotation.apply(q), rot_q), (rotation.apply(k), rot_k))
            fitted.append((max(_unlike(a, b) for a, b in pairs), rotation))
        fitted.sort(key=lambda each: round(each[0], 4))  # several can fit: the same one in every layer
        return [rotation for error, rotation in fitted[:1] if error <= tolerance]
    if cos is not None and sin is not None:  # rotated tensors without a hook that fires
        n = cos.shape[-1]
        partners = [p for p in pairings(d_head) if bool((p[n:] == torch.arange(n, d_head)).all())][:2]
        return [table_rotation(cos, sin, p) for p in partners]
    return [no_rotation(d_head)]


def _scale(q: Tensor, k: Tensor, pattern: Tensor) -> tuple[float, float]:
    """The scale that maps `q k` to `log P` best, and the share of `log P` that it leaves unexplained.

    Each row has a free constant (for the softmax) and a free slope in the key's position (for ALiBi).
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("tad,sad->ats", q, k).double()
    clear = (pattern > CLEAR) & ((pattern > CLEAR).sum(-1, keepdim=True) >= 4)
    place = torch.arange(scores.shape[-1]).expand_as(scores).double()
    target, scores, place = (_centred(each, clear) for each in (pattern.clamp_min(1e-30).double().log(), scores, place))
    target, scores = (each - _along(each, place) for each in (target, scores))
    scale = float((target * scores).sum() / scores.square().sum().clamp_min(1e-30))
    return scale, float((target - scale * scores).norm() / target.norm().clamp_min(1e-30))


def _centred(values: Tensor, where: Tensor) -> Tensor:
    mean = (values * where).sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp_min(1)
    return (values - mean) * where


def _along(values: Tensor, place: Tensor) -> Tensor:
    slope = (values * place).sum(-1, keepdim=True) / place.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return slope * place


def _tables(rotations: list[Rotation], tolerance: float) -> dict[str, Tensor]:
    """Rotations of all layers; equal rotations are stored once."""
    kept: list[Rotation] = []
    table = []
    for each in rotations:
        same = [i for i, other in enumerate(kept) if _same(each, other, tolerance)]
        table.append(same[0] if same else len(kept))
        kept += [] if same else [each]
    return {
        "cos": torch.stack([each.cos for each in kept]),
        "turn": torch.stack([each.turn for each in kept]),
        "table": torch.tensor(table),
        "partner": torch.stack([each.partner for each in kept]),
    }


def _same(one: Rotation, other: Rotation, tolerance: float) -> bool:
    close = all(bool((a - b).abs().max() <= tolerance) for a, b in ((one.cos, other.cos), (one.turn, other.turn)))
    return close and torch.equal(one.partner, other.partner)
