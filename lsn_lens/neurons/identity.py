"""The origin of a result: a fingerprint of a model's weights, stored with sets and values found on that model."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

ENTRIES = 1 << 12  # entries read per tensor (all, if it has fewer); at least one in every row and column
FAINT = 2.0**-14  # below this value half precision keeps fewer digits, so that loads would differ

Origin = Mapping[str, Any]
CARRIED = "carried over"  # the note of a set, and the mark of an action, that was made for another model

# Names on which HookedTransformer and TransformerBridge agree, in value and in layout; of several, the first present.
MATRICES = ("mlp.W_in", "mlp.W_out", "attn.W_Q", "attn._W_K|attn.W_K", "attn._W_V|attn.W_V", "attn.W_O")
VECTORS = ("mlp.b_in", "mlp.b_out", "attn.b_Q", "attn._b_K|attn.b_K", "attn._b_V|attn.b_V", "attn.b_O")
NORMS = ("ln1.w", "ln1.b", "attn.q_norm.w", "attn.k_norm.w", "ln1_post.w", "ln2_post.w")
SECOND = ("ln2.w", "ln2.b")  # in a parallel block, absent in one class and equal to ln1 in the other
PARTS = (*MATRICES, "mlp.W_gate", *VECTORS, *NORMS)
ENDS = (
    "embed.W_E", "embed.ln.w|embed_ln.w", "embed.ln.b|embed_ln.b", "unembed.W_U", "unembed.b_U",
    "ln_final.w", "ln_final.b",
)  # fmt: skip


@torch.no_grad()
def fingerprint(model: Any) -> str | None:
    """A hash over a sample of every weight tensor, cheap enough for every use of a set.

    The hash is equal for both classes of TransformerLens, and for one checkpoint loaded in float32 or bfloat16 (and
    float16, where its files hold half precision). It covers each row and column of each matrix, and all entries of a
    tensor with at most 4,096. It is None for a model whose weights are not in memory.
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
        if sample.any():  # one class has no bias where the other has zeros
            digest.update(str(sorted(weight.shape)).encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def _weights(model: Any) -> Iterator[Tensor]:
    blocks = list(getattr(model, "blocks", ()))
    try:
        is_dense = bool(blocks) and all(_read(block, names) is not None for block in blocks for names in MATRICES)
    except NotImplementedError:  # a bridge raises it for weights that it cannot read: quantised, or not in memory
        is_dense = False
    if is_dense:
        for owner, table in ((model, ENDS), *((block, PARTS) for block in blocks)):
            yield from (each for names in table if (each := _read(owner, names)) is not None)
        places = _read(model, "pos_embed.W_pos")
        if places is not None and getattr(model.cfg, "positional_embedding_type", "") == "standard":  # otherwise unused
            yield places[-model.cfg.n_ctx :]  # one class keeps leading rows that no position uses
        for block in blocks:
            for name, first in zip(SECOND, ("ln1.w", "ln1.b"), strict=True):
                own, other = _read(block, name), _read(block, first)
                if own is not None and not (other is not None and torch.equal(own, other)):
                    yield own
    else:  # mixtures of experts, state spaces, quantised models: all parameters, by Hugging Face name
        named = getattr(model, "original_model", model).state_dict()
        yield from (named[name] for name in sorted(named) if isinstance(named[name], Tensor))


def _read(owner: Any, names: str) -> Tensor | None:
    """The first attribute that exists."""
    for name in names.split("|"):
        try:
            found = reduce(getattr, name.split("."), owner)
        except AttributeError:  # a bridge's property of a missing projection raises it too
            continue
        if isinstance(found, Tensor):
            return found
    return None


def _places(shape: torch.Size, device: torch.device) -> tuple[Tensor, ...]:
    """An index of the entries on the diagonals of `[all other axes, longest axis]`."""
    longest = max(range(len(shape)), key=lambda axis: shape[axis])
    others = [axis for axis in range(len(shape)) if axis != longest]
    columns, rows = shape[longest], shape.numel() // shape[longest]
    place = torch.arange(max(ENTRIES, columns, rows), device=device)
    index = dict(zip(others, torch.unravel_index(place % rows, [shape[axis] for axis in others]), strict=True))
    index[longest] = (place + place // max(columns, rows)) % columns
    return tuple(index[axis] for axis in range(len(shape)))


def origin_of(model: Any) -> dict[str, Any]:
    """A model's name, revision and fingerprint, as stored in a set or an action."""
    source = getattr(model, "lsn_lens_source", None) or {"name": str(model.cfg.model_name), "revision": None}
    return {"model": source["name"], "revision": source["revision"], "fingerprint": fingerprint(model)}


def check_origin(origin: Any) -> None:
    """Require an origin to be a mapping.

    Raises:
        ValueError: The origin is something else.
    """
    if not isinstance(origin, Mapping):
        raise ValueError(f"origin={origin!r}: expected a mapping, such as `found.origin` or `run.statistics.origin`.")


def whose(origin: Origin) -> str:
    """An origin as text: the model, its revision, the first digits of its fingerprint."""
    revision = f" at {origin['revision']}" if origin.get("revision") else ""
    weights = f" (weights {origin['fingerprint'][:8]})" if origin.get("fingerprint") else ""
    return f"{origin.get('model') or 'a model not named'}{revision}{weights}"


def check_same_model(model: Any, origins: Iterable[tuple[str, Origin]]) -> None:
    """Refuse sets and values that were found on another model.

    Args:
        model: The model they are used on.
        origins: Pairs of a description and an origin; an origin without a fingerprint passes.

    Raises:
        ValueError: An origin with another fingerprint.
    """
    known = [(what, origin) for what, origin in origins if origin.get("fingerprint")]
    here = origin_of(model) if known else {}
    for what, origin in known:
        if here["fingerprint"] not in (None, origin["fingerprint"]):
            raise ValueError(
                f"{what} is from {whose(origin)}, this model is {whose(here)}: it was found on another model, or on "
                "other weights. Find it again on this model. To use it anyway (checkpoints of one training, edited or "
                "differently rounded weights), carry it over with .for_model(model), which records this."
            )


def joined(one: Origin, other: Origin) -> dict[str, Any]:
    """The shared origin of two results of one model: entries that agree, and entries that only one origin has.

    Raises:
        ValueError: The origins name two models.
    """
    known = [each["fingerprint"] for each in (one, other) if each.get("fingerprint")]
    if len(set(known)) > 1:
        raise ValueError(
            f"sets of two models, {whose(one)} and {whose(other)}: their units do not correspond. To combine the sets "
            "anyway, carry one over first: .for_model(model)."
        )
    return {key: value for key, value in {**one, **other}.items() if one.get(key, value) == other.get(key, value)}
