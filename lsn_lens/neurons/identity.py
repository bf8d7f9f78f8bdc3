"""Whose a result is: a fingerprint of a model's weights, and what goes with sets and values found on it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

ENTRIES = 1 << 12  # read of a tensor at least, or all that it has; every row and column once in any case
FAINT = 2.0**-14  # below it half precision keeps fewer digits, so that loads would differ

Origin = Mapping[str, Any]
CARRIED = "carried over"  # the note of a set, and the mark of an action, that was made for another model

# Names on which HookedTransformer and TransformerBridge agree, in value and in layout; of several, the first there is.
MATRICES = ("mlp.W_in", "mlp.W_out", "attn.W_Q", "attn._W_K|attn.W_K", "attn._W_V|attn.W_V", "attn.W_O")
VECTORS = ("mlp.b_in", "mlp.b_out", "attn.b_Q", "attn._b_K|attn.b_K", "attn._b_V|attn.b_V", "attn.b_O")
NORMS = ("ln1.w", "ln1.b", "attn.q_norm.w", "attn.k_norm.w", "ln1_post.w", "ln2_post.w")
SECOND = ("ln2.w", "ln2.b")  # of a parallel block, one class says that it has none, the other that it is the first
PARTS = (*MATRICES, "mlp.W_gate", *VECTORS, *NORMS)
ENDS = (
    "embed.W_E", "embed.ln.w|embed_ln.w", "embed.ln.b|embed_ln.b", "unembed.W_U", "unembed.b_U",
    "ln_final.w", "ln_final.b",
)  # fmt: skip


@torch.no_grad()
def fingerprint(model: Any) -> str | None:
    """A hash of a sample of all weights, cheap enough to be taken whenever a set is used.

    The same for both classes of TransformerLens, and for one checkpoint loaded in float32 or bfloat16 (and float16,
    where its files hold half precision). Each row and column of each matrix is touched; of 4,096 entries or fewer, all.
    None for a model whose weights are not in memory.
    """
    weights = list(_weights(model))
    if not weights or any(weight.is_meta for weight in weights):
        return None
    places = cache(_places)
    samples = [
        weight[places(weight.shape, weight.device)] if weight.numel() > ENTRIES else weight.reshape(-1)
        for weight in weights
    ]
    rounded = torch.cat([each.to(samples[0].device) for each in samples]).to(torch.bfloat16).float()
    rounded = rounded.where(rounded.abs() >= FAINT, 0).cpu()
    digest = hashlib.sha256()
    for weight, sample in zip(weights, rounded.split([len(each) for each in samples]), strict=True):
        if sample.any():  # one class says no bias, the other one of zeros
            digest.update(str(sorted(weight.shape)).encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def _weights(model: Any) -> Iterator[Tensor]:
    blocks = list(getattr(model, "blocks", ()))
    try:
        is_dense = bool(blocks) and all(_read(block, names) is not None for block in blocks for names in MATRICES)
    except NotImplementedError:  # a bridge's word for weights that it cannot read: quantised, or not in memory
        is_dense = False
    if is_dense:
        for owner, table in ((model, ENDS), *((block, PARTS) for block in blocks)):
            yield from (each for names in table if (each := _read(owner, names)) is not None)
        places = _read(model, "pos_embed.W_pos")
        if places is not None and getattr(model.cfg, "positional_embedding_type", "") == "standard":  # else it is idle
            yield places[-model.cfg.n_ctx :]  # one class keeps rows in front that no position has
        for block in blocks:
            for name, first in zip(SECOND, ("ln1.w", "ln1.b"), strict=True):
                own, other = _read(block, name), _read(block, first)
                if own is not None and not (other is not None and torch.equal(own, other)):
                    yield own
    else:  # mixtures of experts, state spaces, quantised models: what there is, by its Hugging Face name
        named = getattr(model, "original_model", model).state_dict()
        yield from (named[name] for name in sorted(named) if isinstance(named[name], Tensor))


def _read(owner: Any, names: str) -> Tensor | None:
    """The first of the attributes that there is."""
    for name in names.split("|"):
        try:
            found = reduce(getattr, name.split("."), owner)
        except AttributeError:  # also from a bridge's property of a projection that is missing
            continue
        if isinstance(found, Tensor):
            return found
    return None


def _places(shape: torch.Size, device: torch.device) -> tuple[Tensor, ...]:
    """An index of entries along the diagonals of `[all other axes, longest axis]`."""
    longest = max(range(len(shape)), key=lambda axis: shape[axis])
    others = [axis for axis in range(len(shape)) if axis != longest]
    columns, rows = shape[longest], shape.numel() // shape[longest]
    place = torch.arange(max(ENTRIES, columns, rows), device=device)
    index = dict(zip(others, torch.unravel_index(place % rows, [shape[axis] for axis in others]), strict=True))
    index[longest] = (place + place // max(columns, rows)) % columns
    return tuple(index[axis] for axis in range(len(shape)))


def origin_of(model: Any) -> dict[str, Any]:
    """Name, revision and fingerprint, as a set or an action keeps them."""
    source = getattr(model, "lsn_lens_source", None) or {"name": str(model.cfg.model_name), "revision": None}
    return {"model": source["name"], "revision": source["revision"], "fingerprint": fingerprint(model)}


def check_origin(origin: Any) -> None:
    """Refuse an origin that is no mapping.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(origin, Mapping):
        raise ValueError(f"origin={origin!r}: expected a mapping, such as `found.origin` or `run.statistics.origin`.")


def whose(origin: Origin) -> str:
    """For people: the model, its revision, the first digits of its fingerprint."""
    revision = f" at {origin['revision']}" if origin.get("revision") else ""
    weights = f" (weights {origin['fingerprint'][:8]})" if origin.get("fingerprint") else ""
    return f"{origin.get('model') or 'a model not named'}{revision}{weights}"


def check_same_model(model: Any, origins: Iterable[tuple[str, Origin]]) -> None:
    """Refuse what was found on another model.

    Args:
        model: That it is to be used on.
        origins: What is used, in words, and where it is from; without a fingerprint it passes.

    Raises:
        ValueError: Other weights.
    """
    known = [(what, origin) for what, origin in origins if origin.get("fingerprint")]
    here = origin_of(model) if known else {}
    for what, origin in known:
        if here["fingerprint"] not in (None, origin["fingerprint"]):
            raise ValueError(
                f"{what} is from {whose(origin)}, this model is {whose(here)}: it was found on another model, or on "
                "other weights of it. Find it again on this model; or, where that is meant (checkpoints of one "
                "training, edited or otherwise rounded weights), carry it over with .for_model(model), which says so."
            )


def joined(one: Origin, other: Origin) -> dict[str, Any]:
    """What two results of one model have in common; what only one of them knows is kept.

    Raises:
        ValueError: They are from two models.
    """
    known = [each["fingerprint"] for each in (one, other) if each.get("fingerprint")]
    if len(set(known)) > 1:
        raise ValueError(
            f"sets of two models, {whose(one)} and {whose(other)}: unit for unit they have nothing in common. Where "
            "that is meant, carry one over first: .for_model(model)."
        )
    return {key: value for key, value in {**one, **other}.items() if one.get(key, value) == other.get(key, value)}
