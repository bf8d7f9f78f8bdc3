"""Run only the layers that a change can reach: the layers before it run once, for many changes of the same tokens."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from lsn_lens.model import forward, hooks
from lsn_lens.model.probing import device_of, probe_ids, vocabulary_size
from lsn_lens.model.structure import Model

LAYER = re.compile(r"blocks\.(\d+)\.")

Outputs = Mapping[int, Any]  # by layer, what the block before it returned

_able: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()


def first_layer(names: Iterable[str]) -> int:
    """The first layer at which hooks of these names act; 0 for a hook outside the layers, or without hooks."""
    found = [LAYER.match(name) for name in names]
    return min((int(each[1]) if each else 0 for each in found), default=0)


def can_resume(model: Model) -> bool:
    """Whether a pass may begin at a later layer: no user hooks, and layers pass on one tensor alone (tested once)."""
    if hooks.is_everywhere() or hooks.in_force(model):
        return False
    if model not in _able:
        with hooks.as_it_is(model):
            _able[model] = _is_exact(model)
    return _able[model]


@contextlib.contextmanager
def recorded(model: Model, layers: Iterable[int]) -> Iterator[Outputs]:
    """Keep what reaches these layers in a forward pass inside the block."""
    kept: dict[int, Any] = {}

    def keep(layer: int, whole: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            kept[layer] = whole(*args, **settings)
            return kept[layer]

        return run

    with _replaced(model, {layer - 1: keep(layer, model.blocks[layer - 1].forward) for layer in layers if layer}):
        yield kept


@contextlib.contextmanager
def resumed(model: Model, layer: int, outputs: Outputs, copies: int = 1) -> Iterator[None]:
    """Let forward passes inside the block begin at a layer, with copies of the rows that were recorded.

    Layer 0, or a layer that was not recorded: the whole pass. Hooks of the layers before do not fire.
    """
    if layer not in outputs:
        yield
        return
    given = _repeated(outputs[layer], copies)
    with _replaced(model, {each: lambda *args, **settings: given for each in range(layer)}):
        yield


@contextlib.contextmanager
def _replaced(model: Model, forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Other forwards of some blocks, on top of forwards that were replaced before."""
    own = {layer: model.blocks[layer].__dict__ for layer in forwards}
    before = {layer: each["forward"] for layer, each in own.items() if "forward" in each}
    try:
        for layer, each in own.items():
            each["forward"] = forwards[layer]
        yield
    finally:
        for layer, each in own.items():
            each.pop("forward", None)
            each.update({"forward": before[layer]} if layer in before else {})


def _repeated(output: Any, copies: int) -> Any:
    if isinstance(output, Tensor):
        return output.repeat(copies, 1, 1)
    return tuple(None if each is None else each.repeat(copies, 1, 1) for each in output)


@torch.no_grad()
def _is_exact(model: Model) -> bool:
    """Whether the last layer alone, given what reached it, makes a few tokens' hidden states again."""
    last, plain = model.cfg.n_layers - 1, list[bool]()
    if not last:
        return False

    def look(whole: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            output = whole(*args, **settings)
            plain.append(_is_plain((args[1:], *settings.values())) and _is_stream(output, len(ids)))
            return output

        return run

    ids = torch.stack(probe_ids(vocabulary_size(model), 8, 8)).to(device_of(model))
    with hooks.set_aside(model):
        with recorded(model, [last]) as outputs:
            full = forward.hidden_states(model, ids, None)
        with _replaced(model, {layer: look(model.blocks[layer].forward) for layer in range(last + 1)}):
            forward.hidden_states(model, ids.flip(0), None)  # other tokens: nothing of the first pass stays
        if len(plain) != last + 1 or not all(plain):
            return False
        with resumed(model, last, outputs):
            return forward.alike(model, full, forward.hidden_states(model, ids, None))


def _is_plain(value: Any) -> bool:
    """Whether a layer cannot leave anything in this argument for later layers, as in a cache."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, Tensor | int | float | str)


def _is_stream(output: Any, rows: int) -> bool:
    """Whether a block returned the residual stream alone, `[row pos d_model]`."""
    parts = output if isinstance(output, tuple) else (output,)
    first, rest = parts[0], parts[1:]
    return isinstance(first, Tensor) and first.ndim == 3 and len(first) == rows and all(each is None for each in rest)
