"""The structure of a model: its sites, by name, and checks that its tensors are what their names say.

A *model* is an unwrapped `HookedTransformer` (TransformerLens 3.9) or `TransformerBridge` (3.9 and 4.x).
Weights are never processed: folding and centring change what several methods measure.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_128

from lsn_lens.model.checkpoints import DEMO_MODEL
from lsn_lens.model.mlps import (
    Activation,
    activations,
    check_hooks,
    check_mlps,
    check_zero,
    firing,
    is_gated,
    mlp_sites,
    named,
)
from lsn_lens.model.probing import TOKENS, device_of, is_bridge, probe, probe_ids, vocabulary_size
from lsn_lens.neurons.sites import SITES, Site, flat, get_site
from lsn_lens.refusal import DoesNotApply

__all__ = [
    "DEMO_MODEL",
    "HALF_TOLERANCE", "TOLERANCE", "Activation", "Model", "activations", "describe", "device_of", "firing", "has_site",
    "is_bridge", "is_gated", "position_border", "probe_ids", "reader", "site_width", "vocabulary_size",
]  # fmt: skip

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-4}  # of the logits' standard deviation
HALF_TOLERANCE = 0.1

Model = Any


def describe(model: Model) -> dict[str, Any]:
    """Name, class, dtype and a hash of all weights, as plain data.

    The hash (XXH3, 128 bits) covers every bit, and takes a tenth of the time of SHA-256: so it is computed anew each
    time, and no edit of weights can be missed, in whatever way it was made.
    """
    digest = xxh3_128()
    parameters = (model.original_model if is_bridge(model) else model).named_parameters()
    for _, parameter in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy())
    return {
        **_source(model),
        "class": type(model).__name__,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "layers": model.cfg.n_layers,
        "weights_hash": digest.hexdigest(),
    }


def _source(model: Model) -> dict[str, Any]:
    return getattr(model, "lsn_lens_source", {"name": str(model.cfg.model_name), "revision": None})


def position_border(model: Model) -> int | None:
    """The length beyond which a model uses other position codes; None for a model that always uses the same codes.

    With "longrope", the longest row of a batch decides the codes of all rows. With "dynamic", codes change only beyond
    the context.
    """
    config = model.original_model.config.get_text_config() if is_bridge(model) else None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in (rope, *rope.values()) if isinstance(each, dict)]  # one for all layers, or one per kind
    borders = [x["original_max_position_embeddings"] for x in kinds if x.get("rope_type") == "longrope"]
    return min(borders, default=None)


def reader(model: Model, name: str) -> tuple[Site, Callable[[Tensor, int], Tensor]]:
    """The site to hook for a named tensor, and a function of its tensor and the layer that gives `[batch pos unit]`."""
    site = get_site(name)
    if site.activated and not is_gated(model):
        return SITES["mlp_post"], lambda acts, layer: acts
    if site.activated:
        functions = activations(model)
        return site, lambda acts, layer: functions[layer](acts)
    return site, lambda acts, layer: flat(acts, site)


def has_site(model: Model, name: str) -> bool:
    """Whether every layer has the site, with the tensor that its name says."""
    try:
        site_width(model, name)
    except DoesNotApply:
        return False
    return True


@torch.no_grad()
def site_width(model: Model, name: str) -> int:
    """Number of units of a site, measured with a few tokens in every layer.

    Raises:
        DoesNotApply: The model lacks the site in some layer, its layers differ, or the tensor is not what
            the site's name says (as in mixtures of experts).
    """
    site, layers = get_site(name), range(model.cfg.n_layers)
    own = [site.hook_name(layer) for layer in layers]
    whole = [SITES[each].hook_name(layer) for each in mlp_sites(model) for layer in layers if site.basis == "mlp"]
    where = "the MLP" if whole else f"site {name!r}"  # the MLP first: what fails there fails at all its sites
    has_values = device_of(model).type != "meta"  # without values there is nothing to check
    try:
        check_hooks(model, whole or own)
        seen, logits = probe(model, [each for each in dict.fromkeys([*whole, *own]) if each in model.hook_dict])
        if whole and has_values:
            check_mlps(model, seen)
        where = f"site {name!r}"
        check_hooks(model, own)
        widths = {layer: _width(model, seen, site, layer) for layer in layers}
        if len(set(widths.values())) != 1:
            raise DoesNotApply(f"{named(model)} has layers of different widths: {widths}.")
        if site.name == "mlp_post" and has_values:  # the write site of the basis `mlp`
            check_zero(model, seen, logits)
    except DoesNotApply as error:
        raise DoesNotApply(f"{where}: {error}") from error
    return widths[0]


def _width(model: Model, seen: dict[str, Tensor], site: Site, layer: int) -> int:
    """Number of units of the site in one layer."""
    hook = site.hook_name(layer)
    if hook not in seen:
        raise DoesNotApply(f"{named(model)}: {hook} shows nothing when the model runs.")
    shape = list(seen[hook].shape)
    heads = [model.cfg.n_heads] if site.heads else []
    if site.basis in ("k", "v") and len(shape) == 4 and shape[2]:  # query heads may share them
        heads = [shape[2]] if model.cfg.n_heads % shape[2] == 0 else heads
    expected = [1, TOKENS, *heads]
    if len(shape) != len(expected) + 1 or shape[:-1] != expected:
        raise DoesNotApply(
            f"{named(model)}: {hook} shows {shape} for a text of {TOKENS} tokens, expected "
            f"{[*expected, 'd_head' if site.heads else 'unit']}: it is not what its name says."
        )
    return flat(seen[hook], site).shape[-1]
