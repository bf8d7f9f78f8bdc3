"""Zero, set or steer units in a context manager that restores the model."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lsn_lens.interventions.actions import Action, zero
from lsn_lens.interventions.words import action_for
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import Origin, check_same_model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, WRITE_SITE, flat
from lsn_lens.refusal import check_kind

Hook = tuple[str, Callable[..., Any]]


@dataclass(frozen=True)
class Columns:
    """The position of a forward pass within a generation; `lsn.generate` sets `COLUMNS` to it for hooks to read."""

    first: int  # first column of the pass, counted with the padding on the left
    prompt: int
    pads: Int[Tensor, "batch"]


COLUMNS: ContextVar[Columns | None] = ContextVar("COLUMNS", default=None)  # None outside of a generation


@dataclass(frozen=True)
class Intervention:
    """Changes made in order, under one name: a later change starts from the result of the earlier ones."""

    name: str
    steps: tuple[tuple[NeuronSet, Action], ...] = ()

    def __post_init__(self) -> None:
        given: list[Any] = [None] if isinstance(self.steps, NeuronSet) else list(self.steps)
        if not all(isinstance(each, tuple | list) and len(each) == 2 for each in given):
            raise ValueError(f"steps of {self.name!r}: expected pairs, as [(found['fr'], lsn.zero)].")
        steps = ((neurons, check_step(neurons, action)) for neurons, action in given)
        object.__setattr__(self, "steps", tuple(steps))

    def __len__(self) -> int:
        """Number of different units that the intervention changes."""
        masks = [(basis, each.units(basis)) for each, _ in self.steps for basis in each.masks]
        return len({(basis, *unit) for basis, mask in masks for unit in mask.nonzero().tolist()})

    def __repr__(self) -> str:
        return f"<Intervention {self.name!r}: {', '.join(f'{action} of {len(n):,}' for n, action in self.steps)}>"


def intervene(
    model: Model, neurons: NeuronSet | Intervention, action: Action | str | None = None
) -> contextlib.AbstractContextManager[Model]:
    """Change the units of a set (of all its languages) in every forward pass inside the block.

    Args:
        model: A HookedTransformer or TransformerBridge; its weights are never touched.
        neurons: A set such as `found["fr"]`, or an `Intervention`, which has its own actions.
        action: `zero` (the default, also as the word "zero"), `set_to(...)`, `scale(...)`, `add(...)`,
            `mean_ablation(run.statistics)`. For several changes at once, nest the blocks or give an `Intervention`.

    Returns:
        A context manager that yields the model. Its hooks are removed when the block ends, also after an exception.

    Raises:
        ValueError: The set or the action's values were found on another model or other weights (see
            `NeuronSet.for_model`) or have another shape; a value is NaN or infinite; an `Intervention` together with an
            action; or arguments that are not a set and an action.
        KeyError: A basis that cannot be written to, or without values.
        FloatingPointError: Raised by `lsn.generate` and others inside the block; the intervention's name is in front.

    Warns:
        UserWarning: The set is empty, so the model is unchanged; or `with` was forgotten.

    Source: deactivation as in Tang et al. 2024 (zero act(gate) at all positions), which is zeroing the down
    projection's input `mlp.hook_post`.
    """
    what = intervention_of(neurons, action)
    used: list[bool] = []
    block = _in_force(model, what, used)
    weakref.finalize(block, _warn_unused, what.name, used).atexit = False
    return block


def _warn_unused(name: str, used: list[bool]) -> None:
    """Warn, at garbage collection, about a block that was never entered."""
    if not used:
        warnings.warn(
            f"intervene({name!r}) was not used, so the model is unchanged: an intervention acts inside a block, "
            "`with lsn.intervene(...):`.",
            stacklevel=3,
        )


@contextlib.contextmanager
def _in_force(model: Model, what: Intervention, used: list[bool]) -> Iterator[Model]:
    used.append(True)
    check_model(model)
    hooks = hooks_of(model, what)
    if not hooks:
        warnings.warn(f"{what.name!r} has no units: the model is unchanged.", stacklevel=3)
    with model.hooks(fwd_hooks=hooks), named(what):
        yield model


def intervention_of(neurons: object, action: object = None) -> Intervention:
    """The arguments of `intervene` as an `Intervention`.

    Raises:
        ValueError: Neither a set with an action nor an `Intervention` alone.
    """
    if isinstance(neurons, Intervention):
        if action is not None:
            raise ValueError(f"{neurons.name!r} is an Intervention and has its own actions; it cannot take {action!r}.")
        return neurons
    chosen = check_step(neurons, zero if action is None else action)
    return Intervention(chosen.name, ((neurons, chosen),))  # type: ignore


def check_interventions(given: Iterable[Intervention]) -> list[Intervention]:
    """Interventions to be compared, as a list; refuses other things, and two of one name."""
    check_kind("interventions", given, Iterable, "a list, as [lsn.Intervention('off', [(found['fr'], lsn.zero)])]")
    each = list(given)
    for what in each:
        check_kind("one of the interventions", what, Intervention, "lsn.Intervention('off', [(found['fr'], lsn.zero)])")
    names = ["none", *(what.name for what in each)]
    if len(set(names)) < len(names):
        raise ValueError(f"interventions need different names, and none the name 'none': {names[1:]}.")
    return each


def check_step(neurons: object, action: object) -> Action:
    """The action of a step, given as an action or a word; other arguments are refused before anything runs.

    Raises:
        ValueError: Not a set or not an action; the message says what was given.
    """
    if not isinstance(neurons, NeuronSet):
        raise ValueError(
            f"got {type(neurons).__name__} as the units: expected a NeuronSet, such as found['fr'], or an Intervention."
        )
    return action_for(action)


def check_steps(model: Model, steps: Iterable[tuple[NeuronSet, Action]]) -> None:
    """Refuse, before anything slow runs, steps that are not sets and actions or are from another model.

    Raises:
        ValueError: The message says what was given, and its origin.
    """
    origins: list[tuple[str, Origin]] = []
    for neurons, action in steps:
        chosen = check_step(neurons, action)
        origins += [(f"the set {neurons.method!r}", neurons.origin), (f"action {chosen.name!r}", chosen.origin)]
    check_same_model(model, origins)


@contextlib.contextmanager
def named(what: Intervention) -> Iterator[None]:
    """Put the intervention's name in front of a `FloatingPointError`."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"under {what.name!r}: {error}") from error


def hooks_of(model: Model, what: Intervention, width: Callable[[str], int] | None = None) -> list[Hook]:
    """All hooks of an intervention, in the order of its steps; `width` as for `intervention_hooks`."""
    return [hook for neurons, action in what.steps for hook in intervention_hooks(model, neurons, action, width)]


def intervention_hooks(
    model: Model, neurons: NeuronSet, action: Action, width: Callable[[str], int] | None = None
) -> list[Hook]:
    """The hooks of `intervene`, for each layer with chosen units.

    `width` gives a site's number of units if it is known already: measuring it takes a forward pass.
    """
    check_steps(model, [(neurons, action)])
    return step_hooks(model, neurons, action, width or partial(structure.site_width, model))


def step_hooks(model: Model, neurons: NeuronSet, action: Action, width: Callable[[str], int]) -> list[Hook]:
    """`intervention_hooks` of a step that `check_steps` has seen, which reads all weights."""
    hooks, device = list[Hook](), structure.device_of(model)
    for basis in neurons.masks:
        if basis not in WRITE_SITE:
            raise KeyError(f"cannot intervene on basis {basis!r}; the bases are {list(WRITE_SITE)}.")
        units = neurons.units(basis)
        shape = (model.cfg.n_layers, width(WRITE_SITE[basis]))
        if tuple(units.shape) != shape:
            raise ValueError(
                f"{list(units.shape)} [layer, unit] on {basis!r} are not {list(shape)}: it was found on another model."
            )
        values = _values(action, basis, units)
        make = _act_hooks if basis == "mlp" and action.mlp_site == "mlp_act" and structure.is_gated(model) else _hooks
        for layer in units.any(1).nonzero()[:, 0].tolist():
            value = values[layer][..., units[layer]] if isinstance(values, Tensor) else values
            if not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"action {action.name!r}: values for {basis!r} in layer {layer} are not all finite.")
            index = units[layer].nonzero()[:, 0].to(device)
            hooks += make(model, basis, layer, index, value, action)
    return hooks


def _values(action: Action, basis: str, units: Tensor) -> Any:
    if not isinstance(action.values, Mapping):
        return action.values
    if basis not in action.values:
        raise KeyError(f"action {action.name!r} has no values for basis {basis!r}; it has {list(action.values)}.")
    values = action.values[basis]
    if (values.shape[0], values.shape[-1]) != units.shape:
        raise ValueError(f"values for {basis!r} have shape {list(values.shape)}, expected {list(units.shape)}.")
    return values


def _hooks(model: Model, basis: str, layer: int, index: Tensor, value: Any, action: Action) -> list[Hook]:
    """One hook at the write site of the basis."""
    site = SITES[WRITE_SITE[basis]]

    def write(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone()  # an in-place edit would show in tensors that the caller holds
        view = flat(new, site).view(*acts.shape[:2], -1)
        before = view[..., index]
        view[..., index] = _where_chosen(model, action, before, _changed(model, action, before, value))
        return view.view(acts.shape)

    return [(site.hook_name(layer), write)]


def _act_hooks(model: Model, basis: str, layer: int, index: Tensor, value: Any, action: Action) -> list[Hook]:
    """Hooks for a gated MLP: read up, and write the changed act(gate) * up into the down projection's input.

    act(gate) is computed as that input over up, so that it includes the effect of earlier changes.
    """
    read: list[Tensor] = []
    bias = 0 if structure.is_bridge(model) else model.blocks[layer].mlp.b_in[index]  # added after the product

    def keep(acts: Tensor, hook: Any) -> None:
        read[:] = [acts[..., index]]

    def write(acts: Tensor, hook: Any) -> Tensor:
        new, before, up = acts.clone(), acts[..., index], read.pop()
        empty = up.abs() < torch.finfo(up.dtype).tiny  # here the gate is unknown, and has no effect
        gate = torch.where(empty, 0, (before - bias) / up)
        new[..., index] = _where_chosen(model, action, before, _changed(model, action, gate, value) * up + bias)
        return new

    return [(SITES["mlp_up"].hook_name(layer), keep), (SITES["mlp_post"].hook_name(layer), write)]


def _changed(model: Model, action: Action, acts: Tensor, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return action.change(acts, value)
    value = value.to(acts.device, acts.dtype)
    return action.change(acts, value if value.ndim == 1 else value[_positions(model, acts) % len(value)])


def _where_chosen(model: Model, action: Action, before: Tensor, after: Tensor) -> Tensor:
    """`after` at the tokens that the action is for, `before` elsewhere."""
    if action.where == "all":
        return after
    if isinstance(action.where, slice):
        start, stop, step = action.where.indices(model.cfg.n_ctx)
        positions = _positions(model, before)
        chosen = (positions >= start) & (positions < stop) & ((positions - start) % step == 0)
    else:
        columns = COLUMNS.get()
        if columns is None:
            raise RuntimeError(
                f"action {action.name!r}: only lsn.generate knows where the prompt ends. Use lsn.generate, or "
                "choose where='all' or a slice of positions."
            )
        place = columns.first + torch.arange(before.shape[1], device=before.device)
        chosen = {
            "prompt": place < columns.prompt,
            "generated": place >= columns.prompt,
            "last": place >= columns.prompt - 1,
        }[action.where][None]
    return torch.where(chosen[..., None], after, before)


def _positions(model: Model, acts: Tensor) -> Int[Tensor, "row pos"]:
    """Positions in the text; without `Columns` the pass is assumed to begin with the text."""
    columns = COLUMNS.get() or Columns(0, 0, torch.zeros(1, dtype=torch.long))
    place = columns.first + torch.arange(acts.shape[1], device=acts.device)
    return place - columns.pads[:, None].to(acts.device)
