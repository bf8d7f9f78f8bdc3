"""Run a model without waste: Hugging Face's own modules where no hook is needed, no unembedding where no logits are."""

import contextlib
import importlib
import inspect
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens.models import HALF_TOLERANCE, TOLERANCE, Model, device_of, is_bridge, vocabulary_size


@contextlib.contextmanager
def lean(model: Model, hook_names: Iterable[str]) -> Iterator[Model]:
    """Let a bridge run Hugging Face's own modules wherever no hook of `hook_names` is needed.

    Most other hooks do not fire meanwhile. Where no attention hook is needed, attention is computed by
    `scaled_dot_product_attention`. The output is the same up to rounding; a HookedTransformer is left as it is.
    """
    if not is_bridge(model):
        yield model
        return
    needed = {id(model.hook_dict[name]) for name in hook_names}
    swapped: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    attention_stays = False

    def visit(module: torch.nn.Module) -> None:
        nonlocal attention_stays
        wrapped = module._modules.get("_original_component")
        if wrapped is not None:  # a bridge's component that stays reaches into its own parts: leave these
            visit(wrapped)
            return
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            original = child._modules.get("_original_component")
            if original is not None and not any(id(each) in needed for each in child.modules()):
                swapped.append((module, name, child))
                module._modules[name] = original
                visit(original)
            else:
                attention_stays |= "Attention" in type(child).__name__
                visit(child)

    hf_model = model.original_model
    config = hf_model.config
    implementation = config._attn_implementation
    try:
        visit(hf_model)
        if getattr(hf_model, "_supports_sdpa", False) and not attention_stays:
            config._attn_implementation = "sdpa"
        yield model
    finally:
        for module, name, child in reversed(swapped):
            module._modules[name] = child
        config._attn_implementation = implementation


@torch.no_grad()
def lean_is_exact(model: Model, hook_names: Collection[str]) -> bool:
    """Whether the lean forward gives this model's own hidden states, tried on a few tokens."""
    if not is_bridge(model):
        return False
    ids = torch.arange(16, device=device_of(model)).view(2, 8) % vocabulary_size(model)
    full = hidden_states(model, ids, None).float()
    with lean(model, hook_names):
        short = hidden_states(model, ids, None).float()
    allowed = TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE)
    return bool((full - short).abs().max() <= allowed * full.std())


def hidden_states(model: Model, ids: Tensor, mask: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
    """Run all blocks, but not the unembedding: the last residual stream (on a bridge after the final norm).

    Usable inside `lean`. Padding must be on the right: Hugging Face's modules count positions from the left.
    """
    _check_right_padded(mask)
    if not is_bridge(model):
        return model(ids, attention_mask=mask, stop_at_layer=model.cfg.n_layers, return_type=None)
    hf_model = model.original_model
    body = getattr(hf_model, hf_model.base_model_prefix)
    return body(ids, attention_mask=mask, use_cache=False).last_hidden_state


def logits(model: Model, ids: Tensor, mask: Tensor | None = None) -> Float[Tensor, "batch pos d_vocab"]:
    """The model's logits; usable inside `lean`. Padding must be on the right."""
    _check_right_padded(mask)
    if not is_bridge(model):
        return model(ids, attention_mask=mask, return_type="logits")
    return model.original_model(ids, attention_mask=mask, use_cache=False).logits


def step(
    model: Model, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch columns"], cache: Any = None
) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
    """Read the next tokens of a batch that is padded on the left, with the keys and values of what went before.

    Args:
        model: A HookedTransformer or TransformerBridge; all hooks fire. Usable inside `lean`.
        ids: The tokens to read.
        mask: 1 for every token so far, these included, 0 for padding.
        cache: What the step before returned; None to begin with.

    Returns:
        Their logits, and the cache for the next step.
    """
    if not is_bridge(model):
        if cache is None:
            classes: Any = importlib.import_module("transformer_lens")  # TransformerLens 3.9 only
            cache = classes.TransformerLensKeyValueCache.init_cache(model.cfg, ids.device, len(ids))
        return model(ids, attention_mask=mask[:, -ids.shape[1] :], past_kv_cache=cache, return_type="logits"), cache
    hf_model = model.original_model
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    takes_positions = "position_ids" in inspect.signature(hf_model.forward).parameters  # else it counts by the mask
    given = {"position_ids": positions} if takes_positions else {}
    output = hf_model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
    if getattr(output, "past_key_values", None) is None:
        raise ValueError(f"{type(hf_model).__name__} keeps no keys and values: give cache=False.")
    return output.logits, output.past_key_values


def _check_right_padded(mask: Tensor | None) -> None:
    if mask is not None and not bool((mask[:, 1:] <= mask[:, :-1]).all()):
        raise ValueError("the attention mask has padding before tokens; expected all padding on the right.")
