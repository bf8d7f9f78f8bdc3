"""Read the scale and the rotary embedding of a model's attention from the model's own tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsn_lens.model import forward, structure
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics import importance as maths
from lsn_lens.statistics.importance import Rotation

PROBE = 32  # random tokens from which scale and pairing are read
HEADS = 8  # key heads from which the rotation is fitted
CLEAR = 1e-4  # attention below this is left out where scores are compared with it
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
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
    """Scale of the scores in every layer, and the rotation of every position, checked against the pattern."""
    if _soft_cap(model):
        raise DoesNotApply(
            "this model has a soft cap on attention scores, so the contribution of a query or key dimension cannot be "
            f"read from the attention pattern: {INSTEAD}."
        )
    length = min(max(longest, PROBE), model.cfg.n_ctx)
    ids = torch.randint(structure.vocabulary_size(model), (1, length), generator=torch.Generator().manual_seed(0))
    probe = _Probe()
    names = [f"blocks.{i}.attn.hook_{each}" for i in range(model.cfg.n_layers) for each in
             ("q", "k", "rot_q", "rot_k", "pattern", "cos", "sin")]  # fmt: skip
    hooks = [(name, probe.hook(name)) for name in names if name in model.hook_dict]
    with model.hooks(fwd_hooks=hooks):  # with the user's hooks, which must leave the pattern a softmax too
        forward.hidden_states(model, ids.to(structure.device_of(model)), None)
    half = next(model.parameters()).dtype not in (torch.float32, torch.float64)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    scales, rotations = [], list[Rotation]()
    for layer in range(model.cfg.n_layers):
        scale, rotation = _read_layer(probe, layer, tolerance)
        scales.append(scale)
        rotations.append(rotation)
    return {"scale": torch.tensor(scales), **_tables(rotations, tolerance)}


def _soft_cap(model: Model) -> bool:
    config = model.original_model.config if structure.is_bridge(model) else model.cfg
    caps = (getattr(config, name, None) for name in ("attn_logit_softcapping", "attn_scores_soft_cap"))
    return any(cap is not None and cap > 0 for cap in caps)


def _read_layer(probe: _Probe, layer: int, tolerance: float) -> tuple[float, Rotation]:
    """The first rotation that explains the rotated tensors and, with one scale, the attention pattern."""
    q, k, pattern = (probe.get(layer, name) for name in ("q", "k", "pattern"))
    if q is None or k is None or pattern is None:
        raise DoesNotApply(f"layer {layer} has no attention with queries, keys and a pattern: {INSTEAD}.")
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
        for partner in maths.pairings(d_head):
            rotation = maths.fit_rotation(k[:, :HEADS], rot_k[:, :HEADS], partner)
            pairs = ((rotation.apply(q), rot_q), (rotation.apply(k), rot_k))
            fitted.append((max(float((a - b).norm() / b.norm()) for a, b in pairs), rotation))
        fitted.sort(key=lambda each: round(each[0], 4))  # several can fit: the same one in every layer
        return [rotation for error, rotation in fitted[:1] if error <= tolerance]
    if cos is not None and sin is not None:  # rotated tensors without a hook that fires
        n = cos.shape[-1]
        partners = [p for p in maths.pairings(d_head) if bool((p[n:] == torch.arange(n, d_head)).all())][:2]
        return [maths.table_rotation(cos, sin, p) for p in partners]
    return [maths.no_rotation(d_head)]


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
