"""The MLPs of a model: their activation functions, and checks that their tensors are what their names say.

Every statement is tested on the tensors of a few tokens, never inferred from names.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from lsn_lens.model.probing import device_of, is_bridge, probe
from lsn_lens.neurons.sites import SITES
from lsn_lens.refusal import DoesNotApply

Activation = Callable[[Tensor], Tensor]
Seen = Mapping[str, Tensor]

MODULES = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")  # Hugging Face's names of the functions
FIELDS = ("hidden_activation", "hidden_act", "activation_function")  # and of the fields of a configuration
COMMON = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")  # for code that calls the function directly
OTHERS = ("attn", "attention", "mixer", "mamba", "conv")  # parts of a block with activation functions of their own
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def is_gated(model: Any) -> bool:
    """Whether the MLP multiplies act(gate) by a second projection."""
    return SITES["mlp_up"].hook_name(0) in model.hook_dict


def mlp_sites(model: Any) -> list[str]:
    """The sites of a model's MLPs."""
    return ["mlp_pre", "mlp_post", *(["mlp_up"] if is_gated(model) else [])]


def activations(model: Any) -> list[Activation]:
    """The activation function of each layer's MLP.

    Raises:
        DoesNotApply: A layer has no MLP with the usual hooks, or none that is known makes `mlp_post` of `mlp_pre`.
    """
    names = [SITES[site].hook_name(layer) for site in mlp_sites(model) for layer in range(model.cfg.n_layers)]
    check_hooks(model, names)
    if device_of(model).type == "meta":  # without values there is nothing to try
        return [_candidates(model, layer)[0] for layer in range(model.cfg.n_layers)]
    seen, _ = probe(model, names)
    return [_fitting(model, layer, seen) for layer in range(model.cfg.n_layers)]


def firing(model: Any) -> list[Activation] | None:
    """Per layer, a function that maps `mlp_pre` to a value above zero exactly where act(gate) > 0.

    None if `mlp_pre` itself is such a value, as for all common functions. (xIELU is positive far below zero.)
    """
    names = [SITES["mlp_pre"].hook_name(layer) for layer in range(model.cfg.n_layers)]
    functions, (seen, _) = activations(model), probe(model, names)
    sizes = torch.logspace(-3, 1.5, 200)
    for act, name in zip(functions, names, strict=True):
        pre = seen[name].flatten(0, -2)
        values = torch.cat([-sizes, sizes]).to(pre)[:, None].expand(-1, pre.shape[-1])
        if any(not torch.equal(act(each) > 0, each > 0) for each in (values, pre)):
            return functions
    return None


def _candidates(model: Any, layer: int) -> list[Activation]:
    """Candidates for the layer's activation function, the most likely first."""
    block = model.blocks[layer]
    if not is_bridge(model):
        return [block.mlp.act_fn]
    modules = [module for name, module in block.named_modules() if not any(each in name.lower() for each in OTHERS)]
    found: list[Any] = [getattr(module, name, None) for module in modules for name in MODULES]
    config = model.original_model.config.get_text_config()
    named = [getattr(config, field, None) for field in FIELDS]
    named = [each for each in named if isinstance(each, str) and each in ACT2FN]
    every: list[Any] = [*filter(callable, found), *(ACT2FN[each] for each in (*named, *COMMON))]
    return every


def _fitting(model: Any, layer: int, seen: Seen) -> Activation:
    """The candidate that gives `mlp_post` from `mlp_pre`, and from `mlp_up` if the MLP is gated."""
    pre, post, *up = (seen[SITES[site].hook_name(layer)] for site in mlp_sites(model))
    candidates = list({id(each): each for each in _candidates(model, layer)}.values())
    if not bool(post.isfinite().all()):  # broken weights, which a pass over text reports: no test is possible
        return candidates[0]
    for act in candidates:
        if _makes(act, pre, up, post):
            return act
    made = "act(hook_pre) * hook_pre_linear" if up else "act(hook_pre)"
    raise DoesNotApply(f"{named(model)}, layer {layer}: mlp.hook_post is not {made}.")


def _makes(act: Activation, pre: Tensor, up: list[Tensor], post: Tensor) -> bool:
    try:
        made = act(pre)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError):  # an object with this name that is not a function of one tensor
        return False
    if not isinstance(made, Tensor) or made.shape != post.shape:
        return False
    made = made * up[0] if up else made
    near = 2e-2 if post.dtype.itemsize < 4 else 1e-4
    return torch.allclose(made.float(), post.float(), rtol=near, atol=near / 20 * float(post.float().std()))


@torch.no_grad()
def check_mlps(model: Any, seen: Seen) -> None:
    """Check that `mlp_post` is the down projection's input, has the width of `mlp_pre`, and follows from it by act.

    Args:
        model: A HookedTransformer or TransformerBridge.
        seen: The tensors from `probe` at the `mlp_sites` of every layer.

    Raises:
        DoesNotApply: A layer fails the check, or shows nothing at a site.
    """
    names = [SITES[site].hook_name(layer) for site in mlp_sites(model) for layer in range(model.cfg.n_layers)]
    if silent := [each for each in names if each not in seen]:
        raise DoesNotApply(f"{named(model)}: {silent[0]} shows nothing when the model runs.")
    for layer in range(model.cfg.n_layers):
        widths = {SITES[site].hook: seen[SITES[site].hook_name(layer)].shape[-1] for site in mlp_sites(model)}
        weight = _down(model, layer)
        d_mlp = None if weight is None else weight.shape[0]
        if set(widths.values()) != {d_mlp}:
            told = ", ".join(f"{hook} has {width}" for hook, width in widths.items())
            raise DoesNotApply(
                f"{named(model)}, layer {layer}: {told} units, the down projection takes {d_mlp}. {why_no_mlp(model)}"
            )
        if bool(seen[SITES["mlp_post"].hook_name(layer)].isfinite().all()):
            _fitting(model, layer, seen)


def _down(model: Any, layer: int) -> Tensor | None:
    """The down projection's weight `[unit, d_model]`; None if it cannot be read."""
    try:
        return model.blocks[layer].mlp.W_out
    except (AttributeError, TypeError, KeyError, NotImplementedError):
        return None


@torch.no_grad()
def check_writes(model: Any) -> None:
    """Check that each layer adds `mlp_post @ W_out`, and a constant at most, to the stream before its MLP.

    Raises:
        DoesNotApply: A layer adds something else: a norm or a scale lies between.
    """
    sites = ("mlp_post", "resid_mid", "resid_post")
    names = {(site, i): SITES[site].hook_name(i) for site in sites for i in range(model.cfg.n_layers)}
    seen, _ = probe(model, names.values())
    for layer in range(model.cfg.n_layers):
        units, before, after = (seen[names[site, layer]][0].float() for site in sites)
        rest = after - before - units @ model.blocks[layer].mlp.W_out.detach().float()
        near = 2e-2 if seen[names["resid_post", layer]].dtype.itemsize < 4 else 1e-4
        if not (rest - rest.mean(0)).norm() <= near * after.norm():  # the mean over tokens holds the bias
            raise DoesNotApply(
                f"{named(model)}, layer {layer}: what the MLP adds to the residual stream is not mlp_post @ W_out "
                "(a norm or a scale follows the down projection), so a neuron has no write of its own."
            )


@torch.no_grad()
def check_zero(model: Any, seen: Seen, logits: Tensor) -> None:
    """Check that zeroing a unit of `mlp_post` equals zeroing the weights that read the unit, in all layers at once.

    Args:
        model: A HookedTransformer or TransformerBridge.
        seen: The tensors from `probe` at `mlp_post` of every layer.
        logits: The logits from `probe`.

    Raises:
        DoesNotApply: The logits differ.
    """
    units, hooks = {}, []
    for layer in range(model.cfg.n_layers):
        name = SITES["mlp_post"].hook_name(layer)
        units[layer] = int(seen[name].flatten(0, -2).abs().sum(0).argmax())
        hooks.append((name, _zero(units[layer])))
    _, by_hooks = probe(model, hooks=hooks)
    _, by_weights = probe(model, under=_zeroed_weights(model, units))
    effect, difference = ((each - by_hooks).float().abs().max() for each in (logits, by_weights))
    allowed = 0.5 if logits.dtype.itemsize < 4 else 0.01  # of the effect; a wrong tensor's is as large as this one's
    if not difference <= allowed * effect:
        raise DoesNotApply(
            f"{named(model)}: zeroing units of mlp.hook_post does not equal zeroing the weights that read them "
            f"(logits differ by {difference / effect:.2g} of the effect): the hook shows another tensor."
        )


def _zero(unit: int) -> Callable[..., Tensor]:
    def hook(acts: Tensor, hook: Any = None) -> Tensor:
        changed = acts.clone()
        changed[..., unit] = 0
        return changed

    return hook


@contextlib.contextmanager
def _zeroed_weights(model: Any, units: Mapping[int, int]) -> Iterator[None]:
    """Make the real down projections ignore these units inside the block."""
    owners = {p.data_ptr(): each for each in model.modules() for p in each._parameters.values() if p is not None}
    with contextlib.ExitStack() as stack:
        for layer, unit in units.items():
            weight: Any = _down(model, layer)
            owner = owners.get(weight.data_ptr())
            if isinstance(owner, nn.Module) and owner is not model.blocks[layer].mlp:
                # no weight changes: the projection's input lacks the unit
                handle = owner.register_forward_pre_hook(lambda module, args, unit=unit: (_zero(unit)(args[0]),))
                stack.callback(handle.remove)
            else:
                row = weight.data[unit].clone()
                stack.callback(weight.data[unit].copy_, row)
                weight.data[unit] = 0
        yield


def check_hooks(model: Any, names: list[str]) -> None:
    """Require hook points.

    Raises:
        DoesNotApply: The model lacks one of them.
    """
    missing = [each for each in names if each not in model.hook_dict]
    if missing:
        why = f" {why_no_mlp(model)}" if ".mlp." in missing[0] else ""
        raise DoesNotApply(f"{named(model)} has no {missing[0]}.{why}")


def why_no_mlp(model: Any) -> str:
    """The likely reason why a model has no MLP to read, as a sentence."""
    bridge = is_bridge(model)
    config = model.original_model.config.get_text_config() if bridge else model.cfg
    field = next((each for each in EXPERTS if getattr(config, each, None)), None)
    if field and has_experts(model.original_model if bridge else model):
        return f"It is a mixture of experts ({field}={getattr(config, field)}), which has no single MLP to count."
    return "Expected a dense MLP with the usual TransformerLens hooks in every layer."


def has_experts(module: nn.Module) -> bool:
    """Whether tokens choose among MLPs, by the module's parts, since configurations name experts that do not exist."""
    return any(name.endswith("experts") or "Experts" in type(each).__name__ for name, each in module.named_modules())


def named(model: Any) -> str:
    """Class and name of a model, for messages."""
    source = getattr(model, "lsn_lens_source", None) or {"name": model.cfg.model_name}
    return f"{type(model).__name__} of {source['name']}"
