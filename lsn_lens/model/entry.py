"""Check a model before anything runs it; every public function that takes a model calls this check first."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lsn_lens.model import forward, hooks
from lsn_lens.model.probing import is_bridge
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply

CENTRED = 0.02  # root mean square of means over an axis, relative to that of random entries
RAW = (
    "Load it unprocessed: lsn.load_model(...), TransformerBridge.boot_transformers(...) without "
    "enable_compatibility_mode(), or HookedTransformer.from_pretrained_no_processing(...)."
)


def check_model(model: Model) -> None:
    """Refuse a model whose results would be wrong. The check is cheap: without unusual hooks, it runs no forward pass.

    Raises:
        ValueError: The model is not an unwrapped HookedTransformer or TransformerBridge, is in training mode, has
            processed weights, does not fit torch's default dtype, or has a user's hook on a module that its forward
            pass does not run.
    """
    if not _is_model(model):
        raise ValueError(_what_instead(model))
    name = f"{type(model).__name__} of {getattr(model.cfg, 'model_name', None)}"
    default, own = torch.get_default_dtype(), next(model.parameters()).dtype
    if not is_bridge(model) and default not in (torch.float32, own):
        raise ValueError(
            f"{name} is of {own}, and torch's default dtype is {default}, which TransformerLens mixes with it. "
            "Call torch.set_default_dtype(torch.float32) first."
        )
    training = _training(model)
    if training:
        raise ValueError(
            f"{name} is in training mode ({training}), so dropout may change every number. Call model.eval() first."
        )
    processed = next(_processing(model), None)
    if processed:
        raise ValueError(f"{name} has processed weights ({processed}), which change what units are and write. {RAW}")
    idle = _idle(model)
    if idle:
        raise ValueError(
            f"{name}: there is a hook or a replaced forward on {idle}, which its forward pass does not run: the bridge "
            "computes this module's result itself. Move the hook to a hook point (see model.hook_dict) or to the "
            "bridge's component, or remove it."
        )


def check_plain(model: Model) -> None:
    """Refuse a model other than a bare Hugging Face model in a bridge, whose weights or modules are asked for.

    Raises:
        DoesNotApply: A HookedTransformer.
        ValueError: A model that `check_model` refuses, or hooks on it.
    """
    check_model(model)
    if not is_bridge(model):
        raise DoesNotApply(
            "a HookedTransformer has rearranged copies of the weights, which no Hugging Face model has: load the model "
            "as a TransformerBridge, lsn.load_model(..., backend='bridge')."
        )
    if told := hooks.describe_hooks(model):
        raise ValueError(
            f"there are hooks on the model, on {list(told)}, which neither a checkpoint nor a recipe can hold. Take "
            "them off first."
        )


def _is_model(model: Any) -> bool:
    """Whether the model has one of TransformerLens's two classes, without importing them."""
    known = (
        ("transformer_lens.model_bridge", "TransformerBridge"),
        ("transformer_lens.HookedTransformer", "HookedTransformer"),
    )
    classes = [getattr(sys.modules.get(module), name, None) for module, name in known]
    return any(isinstance(model, each) for each in classes if isinstance(each, type))


def _what_instead(model: Any) -> str:
    expected = "Expected a HookedTransformer or a TransformerBridge of TransformerLens"
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return f"the model is the text {str(model)!r}. {expected}: lsn.load_model({str(model)!r})."
    what = f"the model is a {type(model).__module__}.{type(model).__qualname__}. {expected}"
    if isinstance(model, Module):
        return (
            f"{what}, not wrapped in anything: lsn.load_model(its name or folder), or "
            "lsn.load_model(model, tokenizer) for a Hugging Face model in memory."
        )
    return f"{what}, as lsn.load_model gives."


def _training(model: Model) -> str:
    """The first module in training mode; for a HookedTransformer, the first dropout module in training mode."""
    dropouts = (torch.nn.modules.dropout._DropoutNd,)
    for module, name in hooks.modules_of(model).items():
        if module.training and not hooks.is_point(module):
            active = isinstance(module, dropouts) and module.p > 0
            if is_bridge(model) or active:
                return f"{type(module).__name__} {name}".strip()
    return ""


def _processing(model: Model) -> Iterator[str]:
    """The visible ways in which TransformerLens has processed the weights."""
    if is_bridge(model):
        if getattr(model, "_weights_processed", False):
            yield "enable_compatibility_mode() or process_weights()"
        return
    if str(model.cfg.normalization_type).endswith("Pre"):
        yield f"fold_ln: cfg.normalization_type is {model.cfg.normalization_type!r}"
    block = model.blocks[0]
    attention = block.attn
    mlp = getattr(getattr(block, "mlp", None), "W_out", None)  # a mixture of experts has none
    writing = [model.W_E, attention.W_O.flatten(0, 1), *([] if mlp is None else [mlp])]
    if all(_is_centred(each, -1) for each in writing):
        yield "center_writing_weights"
    if _is_centred(model.W_U, -1):
        yield "center_unembed"
    heads = attention.W_O.detach()[0].float()
    if torch.allclose(heads @ heads.T, torch.eye(len(heads), device=heads.device), atol=CENTRED):
        yield "refactor_factored_attn_matrices"
    if not attention.b_V.any() and attention.b_O.any() and (attention.b_Q.any() or attention.b_K.any()):
        yield "fold_value_biases"


def _is_centred(weight: Tensor, axis: int) -> bool:
    """Whether the means over an axis are far smaller than those of random numbers."""
    some = weight.detach()[:4096].float()
    means, spread = some.mean(axis).square().mean().sqrt(), some.square().mean().sqrt()
    return bool(means * some.shape[axis] ** 0.5 < CENTRED * spread)


def _idle(model: Model) -> str:
    """A module with a user's hooks that a bridge wraps but does not run; empty if there is none."""
    if not is_bridge(model):
        return ""
    odd = [module for module in hooks.in_force(model) if not hooks.is_point(module)]
    runs = forward.modules_run(model) if odd else frozenset()
    names = hooks.modules_of(model)
    return next((f"{names[each]} ({type(each).__name__})" for each in odd if id(each) not in runs), "")
