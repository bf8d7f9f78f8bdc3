"""Run a model efficiently: Hugging Face's own modules where no hook is needed, and no unneeded unembedding."""

import contextlib
import importlib
import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from lsn_lens.model import hooks
from lsn_lens.model.probing import device_of, is_bridge, vocabulary_size
from lsn_lens.model.structure import TOLERANCE, Model

ROTATED = ("attn.hook_rot_q", "attn.hook_rot_k")


_run: WeakKeyDictionary[Module, tuple[int, frozenset[int]]] = WeakKeyDictionary()


class _Swap:
    """Hugging Face's own modules in place of components that only add unneeded hooks.

    In half precision, a component stays if it computes the result of its wrapped module itself: the two computations
    round differently, and the choice of hooks must not change results.
    """

    def __init__(self, model: Model, hook_names: Iterable[str]):
        self.model, self.config = model, model.original_model.config
        self.blocks = set(map(id, model.blocks))
        self.named = {id(model.hook_dict[name]) for name in hook_names}
        runs = modules_run(model)  # always called: some components add their hooks in the first forward pass
        self.runs = runs if is_half(model) else None
        self.swapped: list[tuple[Module, str, Module]] = []

    def apply(self) -> None:
        """Swap all components without named or active hooks."""
        hf_model = self.model.original_model
        self.implementation, self.attention_stays = self.config._attn_implementation, False
        self.present = {id(module) for module in hooks.in_force(self.model)}
        self.gone: list[Module] = []
        if not hooks.is_everywhere():
            self._visit(hf_model)
        supported = self.runs is None and getattr(hf_model, "_supports_sdpa", False)
        if self.swapped and supported and not self.attention_stays:
            self.config._attn_implementation = "sdpa"

    def undo(self) -> None:
        """As it was."""
        for module, name, child in reversed(self.swapped):
            module._modules[name] = child
        self.swapped.clear()
        self.config._attn_implementation = self.implementation

    def refresh(self) -> None:
        """Undo the swap of modules that have got hooks since."""
        if self.swapped and (hooks.is_everywhere() or any(map(hooks.put_on, self.gone))):
            self.undo()
            self.apply()

    def _visit(self, module: Module) -> None:
        wrapped = module._modules.get("_original_component")
        if wrapped is not None:  # a component that stays uses its own parts: leave these
            self._visit(wrapped)
            return
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            original = child._modules.get("_original_component")
            if original is None or self._stays(child, original):
                self.attention_stays |= "Attention" in type(child).__name__
                self._visit(child)
            else:
                inside = set(original.modules())
                self.gone += [each for each in child.modules() if each not in inside]
                self.swapped.append((module, name, child))
                module._modules[name] = original
                self._visit(original)

    def _stays(self, child: Module, original: Module) -> bool:
        if id(child) in self.blocks:  # TransformerLens finds hook points and weights through blocks
            return True
        if self.runs is not None and id(original) not in self.runs:
            return True
        return any(self._is_needed(each) for each in child.modules())

    def _is_needed(self, module: Module) -> bool:
        if id(module) in self.named or id(module) in self.present:
            return True
        inside, near = hooks.held(module)
        return bool(inside & (self.named | self.present) or near & self.present)


@contextlib.contextmanager
def lean(model: Model, hook_names: Iterable[str] = ()) -> Iterator[Model]:
    """Let a bridge run Hugging Face's own modules wherever no hook is needed.

    Needed are the hook points of `hook_names`, which will get hooks, and every module that has a user's hooks or a
    replaced forward, or gets them later (noticed at the next `hidden_states` or `logits`). Most other hooks do not
    fire inside the block. In float32, if no attention hook is needed, `scaled_dot_product_attention` computes
    attention, and the output is equal up to rounding; in half precision the output is bit-identical.
    A HookedTransformer is unchanged.
    """
    if not is_bridge(model):
        yield model
        return
    with hooks.as_it_is(model):
        swap = _Swap(model, hook_names)
        try:
            swap.apply()
            hooks.swaps[model] = swap
            yield model
        finally:
            hooks.swaps.pop(model, None)
            swap.undo()


@torch.no_grad()
def modules_run(model: Model) -> frozenset[int]:
    """Ids of the modules that take part in a bridge's forward pass; a bridge does not run all wrapped modules."""
    modules = [module for module in hooks.modules_of(model) if not hooks.is_point(module)]
    count, known = _run.get(model, (0, frozenset[int]()))
    if count == len(modules):
        return known
    seen: set[int] = set()
    with hooks.set_aside(model), contextlib.ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(lambda module, given: seen.add(id(module)))
            stack.callback(handle.remove)
        logits(model, _probe(model))
    _run[model] = (len(modules), frozenset(seen))
    return _run[model][1]


@torch.no_grad()
def lean_is_exact(model: Model, hook_names: Collection[str] = ()) -> bool:
    """Whether the lean forward gives this model's hidden states, tested on a few tokens without any hooks.

    In half precision, all bits must be equal. Hook points in `hook_names` or with active hooks must fire as often.
    """
    if not is_bridge(model):
        return False
    points = {model.hook_dict[name] for name in hook_names}
    points |= {module for module in hooks.in_force(model) if hooks.is_point(module)}
    swap = _Swap(model, hook_names)
    with hooks.as_it_is(model):
        with hooks.set_aside(model):
            full, fired = _probed(model, points)
        try:
            swap.apply()  # while active hooks are visible
            with hooks.set_aside(model):
                short, fired_lean = _probed(model, points)
        finally:
            swap.undo()
    if fired != fired_lean:
        return False
    return alike(model, full, short)


def alike(model: Model, one: Tensor, other: Tensor) -> bool:
    """Whether two hidden states of a model are equal, in float32 up to rounding."""
    if is_half(model):
        return torch.equal(one, other)
    return bool((one - other).abs().max() <= TOLERANCE[next(model.parameters()).dtype] * one.std())


def lean_where_exact(model: Model, hook_names: Collection[str]) -> contextlib.AbstractContextManager[Any]:
    """`lean`, or nothing where it is not exact."""
    return lean(model, hook_names) if lean_is_exact(model, hook_names) else contextlib.nullcontext()


def _probed(model: Model, points: Collection[Any]) -> tuple[Tensor, Counter[Any]]:
    """Hidden states of a few tokens, and the number of times each hook point fired."""
    fired: Counter[Any] = Counter()
    with contextlib.ExitStack() as stack:
        for point in points:  # TransformerLens's own hooks, as some components fire a point only if it has one
            point.add_hook(lambda acts, hook, point=point: fired.update([point]))
            handle = point.fwd_hooks[-1]
            stack.callback(point.fwd_hooks.remove, handle)
            stack.callback(handle.hook.remove)
        return hidden_states(model, _probe(model), None), fired


def _probe(model: Model) -> Tensor:
    return torch.arange(16, device=device_of(model)).view(2, 8) % vocabulary_size(model)


def is_half(model: Model) -> bool:
    """Whether the weights are of 16 bits or fewer."""
    return next(model.parameters()).dtype not in TOLERANCE


def how(model: Model, is_lean: bool, hook_names: Iterable[str]) -> dict[str, Any]:
    """The kind of forward pass, as plain data: whose modules run, and which attention they compute."""
    if not is_bridge(model):
        return {"modules": "HookedTransformer", "attention": "eager"}
    if not is_lean:
        return {"modules": "bridge", "attention": model.original_model.config._attn_implementation}
    with lean(model, hook_names):
        return {"modules": "lean", "attention": model.original_model.config._attn_implementation}


def refresh(model: Model) -> None:
    """Inside `lean`, return the modules that have got hooks since."""
    if model in hooks.swaps:
        hooks.swaps[model].refresh()


@contextlib.contextmanager
def _ready(model: Model) -> Iterator[None]:
    """Keep the model's hooks; and in half precision, cast rotated queries and keys to the model's dtype.

    For some architectures the bridge leaves them in float32, while Hugging Face's own attention casts them back.
    """
    refresh(model)
    dtype = next(model.parameters()).dtype
    names = [f"blocks.{layer}.{each}" for layer in range(model.cfg.n_layers) for each in ROTATED]
    points = [model.hook_dict[name] for name in names if name in model.hook_dict] if is_half(model) else []
    with contextlib.ExitStack() as stack:
        for point in dict.fromkeys(points):  # a torch hook in first position, before all others
            handle = point.register_forward_hook(lambda module, given, made: made.to(dtype), prepend=True)
            stack.callback(handle.remove)
        yield


def hidden_states(model: Model, ids: Tensor, mask: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
    """Run all blocks without the unembedding: the last residual stream (for a bridge, after the final norm).

    Works inside `lean`. Padding must be on the right: Hugging Face's modules count positions from the left.
    """
    output = body_output(model, ids, mask)
    return output.last_hidden_state if is_bridge(model) else output


def body_output(model: Model, ids: Tensor, mask: Tensor | None) -> Any:
    """What `hidden_states` reads: a HookedTransformer's last residual stream, or all that a bridge's body returns."""
    _check_right_padded(mask)
    if not is_bridge(model):
        return model(ids, attention_mask=mask, stop_at_layer=model.cfg.n_layers, return_type=None)
    with _ready(model):
        return body_of(model.original_model)(ids, attention_mask=mask, use_cache=False)


def body_of(hf_model: Any) -> Module:
    """The part of a Hugging Face model before its unembedding."""
    body = getattr(hf_model, hf_model.base_model_prefix, None)
    return hf_model.get_decoder() if body is None else body


def logits(model: Model, ids: Tensor, mask: Tensor | None = None) -> Float[Tensor, "batch pos d_vocab"]:
    """The model's logits; works inside `lean`. Padding must be on the right."""
    _check_right_padded(mask)
    if not is_bridge(model):
        return model(ids, attention_mask=mask, return_type="logits")
    with _ready(model):
        return model.original_model(ids, attention_mask=mask, use_cache=False).logits


def step(
    model: Model, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch columns"], cache: Any = None
) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
    """Read the next tokens of a batch that is padded on the left, with the cached keys and values of earlier tokens.

    Args:
        model: A HookedTransformer or TransformerBridge; all hooks fire. Works inside `lean`.
        ids: The tokens to read.
        mask: 1 for every token up to the last of `ids`, 0 for padding.
        cache: The cache that the previous step returned; None for the first step.

    Returns:
        The logits of `ids`, and the cache for the next step.
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
    with _ready(model):
        output = hf_model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
    if getattr(output, "past_key_values", None) is None:
        raise ValueError(f"{type(hf_model).__name__} keeps no keys and values: give cache=False.")
    return output.logits, output.past_key_values


def _check_right_padded(mask: Tensor | None) -> None:
    if mask is not None and not bool((mask[:, 1:] <= mask[:, :-1]).all()):
        raise ValueError("the attention mask has padding before tokens; expected all padding on the right.")
