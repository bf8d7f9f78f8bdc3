"""Whose a result is: a fingerprint of a model's weights, and what goes with sets and values found on it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

ENTRIES = 1 << 14  # read of a tensor at least, or all that it has; every row and column once in any case
FAINT = 2.0**-14  # below it half precision keeps fewer digits, so that loads would differ

Origin = Mapping[str, Any]

# Names on which HookedTransformer and TransformerBridge agree, in value and in layout; of those in a row, the first.
MATRICES = (
    ("mlp.W_in",),
    ("mlp.W_out",),
    ("attn.W_Q",),
    ("attn._W_K", "attn.W_K"),
    ("attn._W_V", "attn.W_V"),
    ("attn.W_O",),
)
PARTS = (
    *MATRICES,
    ("mlp.W_gate",),
    *(("mlp.b_in",), ("mlp.b_out",), ("attn.b_Q",), ("attn._b_K", "attn.b_K"), ("attn._b_V", "attn.b_V"), ("attn.b_O",)),
    *(("ln1.w",), ("ln1.b",), ("ln2.w",), ("ln2.b",)),
)
ENDS = (("embed.W_E",), ("unembed.W_U",), ("ln_final.w",))


@torch.no_grad()
def fingerprint(model: Any) -> str | None:
    """A hash of a sample of all weights, cheap enough to be taken whenever a set is used.

    The same for both classes of TransformerLens, and for one checkpoint loaded in float32 or bfloat16 (and float16,
    where its files hold half precision). Each row and column of each matrix is touched; up to 16,384 entries, all.
    None for a model whose weights are not in memory.
    """
    digest = hashlib.sha256()
    for weight in _weights(model):
        if weight.is_meta:
            return None
        sample = _sample(weight).to(torch.bfloat16).float()
        sample = sample.where(sample.abs() >= FAINT, 0)
        if sample.any():  # one class says no bias, the other one of zeros
            digest.update(str(tuple(sorted(weight.shape))).encode())
            digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _weights(model: Any) -> Iterator[Tensor]:
    blocks = list(getattr(model, "blocks", ()))
    if blocks and all(_read(block, names) is not None for block in blocks for names in MATRICES):
        for owner, table in ((model, ENDS), *((block, PARTS) for block in blocks)):
            yield from (each for names in table if (each := _read(owner, names)) is not None)
    else:  # mixtures of experts, state spaces: what there is, by its Hugging Face name
        named = getattr(model, "original_model", model).named_parameters()
        yield from (weight for _, weight in sorted(named, key=lambda pair: pair[0]))


def _read(owner: Any, names: Iterable[str]) -> Tensor | None:
    """The first of the attributes that there is."""
    for name in names:
        try:
            found = reduce(getattr, name.split("."), owner)
        except AttributeError:  # also from a bridge's property of a projection that is missing
            continue
        if isinstance(found, Tensor):
            return found
    return None


def _sample(weight: Tensor) -> Tensor:
    """Entries along the diagonals of `[all other axes, longest axis]`, without a copy of the whole."""
    if weight.numel() <= ENTRIES:
        return weight.reshape(-1)
    longest = max(range(weight.ndim), key=lambda axis: weight.shape[axis])
    columns, rows = weight.shape[longest], weight.numel() // weight.shape[longest]
    place = torch.arange(max(ENTRIES, columns, rows), device=weight.device)
    others = [axis for axis in range(weight.ndim) if axis != longest]
    index = dict(zip(others, torch.unravel_index(place % rows, [weight.shape[axis] for axis in others]), strict=True))
    index[longest] = (place + place // max(columns, rows)) % columns
    return weight[tuple(index[axis] for axis in range(weight.ndim))]


def origin_of(model: Any) -> dict[str, Any]:
    """Name, revision and fingerprint, as a set or an action keeps them."""
    source = getattr(model, "lsn_lens_source", None) or {"name": str(model.cfg.model_name), "revision": None}
    return {"model": source["name"], "revision": source["revision"], "fingerprint": fingerprint(model)}


def whose(origin: Origin) -> str:
    """For people: the model, its revision, the first digits of its fingerprint."""
    revision = f" at {origin['revision']}" if origin.get("revision") else ""
    return f"{origin.get('model', 'a model')}{revision} (weights {str(origin.get('fingerprint'))[:8]})"


def check_model(model: Any, origins: Mapping[str, Origin]) -> None:
    """Refuse what was found on another model.

    Args:
        model: That it is to be used on.
        origins: What is used, in words -> where it is from; without a fingerprint it passes.

    Raises:
        ValueError: Other weights.
    """
    known = {what: origin for what, origin in origins.items() if origin.get("fingerprint")}
    here = origin_of(model) if known else {}
    for what, origin in known.items():
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
