"""Switch units off, set or push them, as a context manager that leaves no trace."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens import models
from lsn_lens.entry import check_model
from lsn_lens.identity import CARRIED, Origin, check_origin, check_same_model, origin_of, whose
from lsn_lens.neurons import NeuronSet
from lsn_lens.sites import SITES, WRITE_SITE, flat

# per unit, or per place in the text and unit: the places are gone through in their order, again and again
Layered = Float[Tensor, "layer unit"] | Float[Tensor, "layer place unit"]
Values = int | float | Mapping[str, Layered]
Where = Literal["all", "prompt", "generated", "last"] | slice
MlpSite = Literal["mlp_post", "mlp_act"]
Hook = tuple[str, Callable[..., Any]]
PHASES = ("all", "prompt", "generated", "last")
COLUMNS = "lsn_lens_columns"  # the attribute of a model that holds its `Columns`


@dataclass(frozen=True)
class Columns:
    """Where a forward pass stands in a generation; `lsn.generate` puts it on the model for hooks to read."""

    first: int  # of the batch, counted with the padding on the left
    prompt: int
    pads: Int[Tensor, "batch"]


@dataclass(frozen=True)
class Action:
    """What to do to the chosen units: `change(acts, values)`, with values per unit.

    It sees each position by itself, so it works under a KV cache.

    Attributes:
        name: In tables.
        change: From `[... unit]` to the same, the chosen units of one layer.
        values: A number, or `{basis: [layer, unit]}`, or `{basis: [layer, place, unit]}`.
        where: See `at`.
        mlp_site: See `on`.
        origin: Of the values, as in `NeuronSet`; empty for values made by hand.
    """

    name: str
    change: Callable[[Tensor, Any], Tensor]
    values: Values = 0.0
    where: Where = "all"
    mlp_site: MlpSite = "mlp_post"
    origin: Origin = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _checked(self.name, self.values))
        check_origin(self.origin)
        if isinstance(self.where, slice):
            start, stop, step = (_position(each) for each in (self.where.start, self.where.stop, self.where.step))
            if (start or 0) < 0 or (stop or 0) < 0 or (step is not None and step < 1):
                raise ValueError(f"where={self.where}: positions count up from the text's first token, which is 0.")
        elif self.where not in PHASES:
            raise ValueError(f"where={self.where!r}: expected one of {PHASES} or a slice.")
        if self.mlp_site not in ("mlp_post", "mlp_act"):
            raise ValueError(f"mlp_site={self.mlp_site!r}: expected 'mlp_post' or 'mlp_act'.")

    def __repr__(self) -> str:
        return self.name

    def at(self, where: Where) -> "Action":
        """The same at some tokens only.

        Args:
            where: "all"; a slice of positions, counted from the first token of the text (`slice(0, 1)`: the first); or,
                inside `lsn.generate`, "prompt", "generated" (tokens read after the prompt; the first generated token
                is predicted from the prompt, so it is untouched) or "last" (the prompt's last token and all generated
                ones: all that a next token is predicted from).

        Raises:
            ValueError: Something else, or a slice that counts from the end: a text being written has none yet.
        """
        changed = replace(self, where=where)
        if isinstance(where, slice):
            bounds = (where.start, where.stop) if where.step is None else (where.start, where.stop, where.step)
            where = "positions " + ":".join("" if each is None else str(each) for each in bounds)  # type: ignore
        return replace(changed, name=f"{self.name}, {where}")

    def on(self, mlp_site: MlpSite) -> "Action":
        """The same on another tensor of the basis `mlp`.

        On gated models "mlp_post", the down projection's input `act(gate) * up`, and "mlp_act", `act(gate)` alone, are
        not the same to set: setting act(gate) to c makes the input `c * up`, which goes on following `up`. To zero
        either is the same. On other models the two are one tensor.
        """
        return replace(self, mlp_site=mlp_site, name=f"{self.name} on {mlp_site}")

    def for_model(self, model: models.Model) -> "Action":
        """The same values on another model or on other weights: on purpose, and said so in the name.

        As `NeuronSet.for_model`: values that were measured on one model are refused on another.
        """
        origin = origin_of(model)
        if origin["fingerprint"] is not None and self.origin.get("fingerprint") == origin["fingerprint"]:
            return self
        name = f"{self.name}, {CARRIED} from {whose(self.origin)}" if self.origin else self.name
        return replace(self, name=name, origin=origin)


def _checked(name: str, values: Any) -> Any:
    """Numbers as numbers, values by unit as tensors of real numbers `[layer, unit]` or `[layer, place, unit]`."""
    if isinstance(values, Mapping):
        return {basis: _by_unit(name, basis, each) for basis, each in values.items()}
    if (
        isinstance(values, Tensor | np.ndarray)
        and values.ndim == 0
        and values.dtype not in (torch.bool, np.dtype(bool))
    ):
        values = values.item()
    if isinstance(values, bool | np.bool_) or not isinstance(values, Real):
        raise ValueError(
            f"action {name!r}: got {type(values).__name__}, expected a number, or values by unit for each basis, "
            '{"mlp": tensor [layer, unit]}.'
        )
    return values if isinstance(values, int | float) else float(values)


def _by_unit(name: str, basis: str, values: Any) -> Tensor:
    given = torch.as_tensor(values) if isinstance(values, np.ndarray) else values
    if not isinstance(given, Tensor) or given.ndim not in (2, 3) or given.dtype == torch.bool or given.is_complex():
        told = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"action {name!r}: values for {basis!r} are {told}, expected a tensor of real numbers [layer, unit] or "
            "[layer, place, unit]. (Which units to change is said by a NeuronSet.)"
        )
    return given if given.is_floating_point() else given.float()


def _position(bound: Any) -> int | None:
    try:
        return None if bound is None else index(bound)
    except TypeError as error:
        raise ValueError(f"position {bound!r}: expected a whole number.") from error


zero = Action("zero", lambda acts, values: torch.zeros_like(acts))


def set_to(values: Values, name: str = "set") -> Action:
    """Set units to a number, or to `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: torch.zeros_like(acts) + value, values)


def scale(factor: int | float) -> Action:
    """Multiply units by a factor, which is a number."""
    if isinstance(factor, Mapping):
        raise ValueError("scale takes one number for all units; values by unit are for set_to and add.")
    factor = _checked("scale", factor)
    return Action(f"scale {factor:g}", lambda acts, value: acts * value, factor)


def add(values: Values, name: str = "add") -> Action:
    """Add a number, or `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: acts + value, values)


def remove_direction(directions: Mapping[str, Float[Tensor, "layer unit"]], name: str = "remove direction") -> Action:
    """Take out what the units have along a direction: h - (h · d) d, with d scaled to length 1 over the chosen units.

    Source: the ablation of arXiv 2505.05111, with any direction in the place of a feature's.
    """

    def change(acts: Tensor, value: Tensor) -> Tensor:
        exact = torch.promote_types(acts.dtype, torch.float32)  # half precision would leave a part of it
        values, direction = acts.to(exact), value.to(exact)
        unit = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return (values - (values * unit).sum(-1, keepdim=True) * unit).to(acts.dtype)

    return Action(name, change, directions)


def action_for(action: Action | Callable[[str], Action], language: str) -> Action:
    """The action itself, or what a function from languages to actions gives for one.

    Raises:
        ValueError: No action.
    """
    chosen = action if isinstance(action, Action) or not callable(action) else action(language)
    return check_action(chosen)


def check_action(action: Any) -> Action:
    """Refuse what is no action, and say what is.

    Raises:
        ValueError: No action.
    """
    if not isinstance(action, Action):
        raise ValueError(
            f"action={action!r}: expected an action: lsn.zero, lsn.set_to(values), lsn.scale(factor), lsn.add(values), "
            "lsn.mean_ablation(run.statistics), or another of docs/interventions."
        )
    return action


@dataclass(frozen=True)
class Intervention:
    """Changes made one after the other, under one name: later ones see what earlier ones made of a unit."""

    name: str
    steps: tuple[tuple[NeuronSet, Action], ...] = ()

    def __post_init__(self) -> None:
        for neurons, action in self.steps:
            check_step(neurons, action)

    def __len__(self) -> int:
        """How many different units it changes."""
        masks = [(basis, each.units(basis)) for each, _ in self.steps for basis in each.masks]
        return len({(basis, *unit) for basis, mask in masks for unit in mask.nonzero().tolist()})

    def __repr__(self) -> str:
        return f"<Intervention {self.name!r}: {', '.join(f'{action} of {len(n):,}' for n, action in self.steps)}>"


@contextlib.contextmanager
def intervene(
    model: models.Model, neurons: NeuronSet | Intervention, action: Action | None = None
) -> Iterator[models.Model]:
    """Change the units of a set (of all its languages) in every forward pass inside the block.

    Args:
        model: A HookedTransformer or TransformerBridge; its weights are never touched.
        neurons: For example `found["fr"]`; or an `Intervention`, which brings its own actions.
        action: `zero`, `set_to(...)`, `scale(...)`, `add(...)`, `mean_ablation(run.statistics)`; `zero` if left out.
            More than one change at a time: nest the blocks, or give an `Intervention`.

    Yields:
        The model. Its hooks are gone when the block ends, also by an exception.

    Raises:
        ValueError: The set, or the action's values, were found on another model or other weights (see
            `NeuronSet.for_model`) or are of another shape, a value is NaN or infinite, an `Intervention` came with one
            more action, or something else than a set and an action.
        KeyError: A basis that cannot be written to, or without values.
        FloatingPointError: From `lsn.generate` and others inside the block, with the intervention's name in front.

    Warns:
        UserWarning: There is nothing to change, so the model stays as it is.

    Source: deactivation as in Tang et al. 2024 (zero act(gate) at all positions), which is zeroing the down
    projection's input `mlp.hook_post`.
    """
    what = intervention_of(neurons, action)
    check_model(model)
    hooks = hooks_of(model, what)
    if not hooks:
        warnings.warn(f"{what.name!r} has no units: the model stays as it is.", stacklevel=3)
    with model.hooks(fwd_hooks=hooks), named(what):
        yield model


def intervention_of(neurons: object, action: object = None) -> Intervention:
    """What `intervene` was given, as an `Intervention`.

    Raises:
        ValueError: Something else than a set and an action, or an `Intervention` alone.
    """
    if isinstance(neurons, Intervention):
        if action is not None:
            raise ValueError(
                f"{neurons.name!r} is an Intervention and brings its own actions; it cannot take {action!r}."
            )
        return neurons
    action = zero if action is None else action
    check_step(neurons, action)
    return Intervention(action.name, ((neurons, action),))  # type: ignore


def check_step(neurons: object, action: object) -> None:
    """Refuse, before anything runs, what is no set or no action.

    Raises:
        ValueError: Saying what was given.
    """
    if not isinstance(neurons, NeuronSet):
        raise ValueError(
            f"got {type(neurons).__name__} as the units: expected a NeuronSet, such as found['fr'], or an Intervention."
        )
    if not isinstance(action, Action):
        hint = " It is a function: call it with a language, as for other_mean_ablation." if callable(action) else ""
        raise ValueError(
            f"action={str(action)[:60]!r} is of type {type(action).__name__}: expected lsn.zero, lsn.set_to(...), "
            f"lsn.scale(...), lsn.add(...) or an action from a run, such as lsn.mean_ablation(run.statistics).{hint}"
        )


def check_steps(model: models.Model, steps: Iterable[tuple[NeuronSet, Action]]) -> None:
    """Refuse, before anything slow runs, what is no set or action, or is from another model.

    Raises:
        ValueError: Saying what was given, and whose it is.
    """
    origins: list[tuple[str, Origin]] = []
    for neurons, action in steps:
        check_step(neurons, action)
        origins += [(f"the set {neurons.method!r}", neurons.origin), (f"action {action.name!r}", action.origin)]
    check_same_model(model, origins)


@contextlib.contextmanager
def named(what: Intervention) -> Iterator[None]:
    """Say under which intervention numbers stopped being finite."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"under {what.name!r}: {error}") from error


def hooks_of(model: models.Model, what: Intervention, width: Callable[[str], int] | None = None) -> list[Hook]:
    """All hooks of an intervention, in the order of its steps; `width` as for `intervention_hooks`."""
    return [hook for neurons, action in what.steps for hook in intervention_hooks(model, neurons, action, width)]


def intervention_hooks(
    model: models.Model, neurons: NeuronSet, action: Action, width: Callable[[str], int] | None = None
) -> list[Hook]:
    """The hooks of `intervene`, for each layer with chosen units.

    `width` gives a site's units where they are known already: finding out takes a forward pass.
    """
    check_steps(model, [(neurons, action)])
    width = width or partial(models.site_width, model)
    hooks: list[Hook] = []
    for basis in neurons.masks:
        if basis not in WRITE_SITE:
            raise KeyError(f"cannot intervene on basis {basis!r}; the bases are {list(WRITE_SITE)}.")
        units = neurons.units(basis)
        shape = (model.cfg.n_layers, width(WRITE_SITE[basis]))
        if tuple(units.shape) != shape:
            raise ValueError(
                f"the set has {list(units.shape)} [layer, unit] on basis {basis!r}, the model {list(shape)}: "
                "it was found on another model."
            )
        values = _values(action, basis, units)
        make = _act_hooks if basis == "mlp" and action.mlp_site == "mlp_act" and models.is_gated(model) else _hooks
        for layer in units.any(1).nonzero()[:, 0].tolist():
            value = values[layer][..., units[layer]] if isinstance(values, Tensor) else values
            if not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"action {action.name!r}: values for {basis!r} in layer {layer} are not all finite.")
            hooks += make(model, basis, layer, units[layer].nonzero()[:, 0].to(models.device_of(model)), value, action)
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


def _hooks(model: models.Model, basis: str, layer: int, index: Tensor, value: Any, action: Action) -> list[Hook]:
    """One hook, at the site where the basis is written."""
    site = SITES[WRITE_SITE[basis]]

    def write(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone()  # an in-place edit would show in tensors that the caller holds
        view = flat(new, site).view(*acts.shape[:2], -1)
        before = view[..., index]
        view[..., index] = _where_chosen(model, action, before, _changed(model, action, before, value))
        return view.view(acts.shape)

    return [(site.hook_name(layer), write)]


def _act_hooks(model: models.Model, basis: str, layer: int, index: Tensor, value: Any, action: Action) -> list[Hook]:
    """On a gated MLP: read up, and write the changed act(gate) * up into the down projection's input.

    act(gate) is taken to be that input over up, not act of the gate: so it is what earlier changes made of it.
    """
    read: list[Tensor] = []
    bias = 0 if models.is_bridge(model) else model.blocks[layer].mlp.b_in[index]  # which it adds after the product

    def keep(acts: Tensor, hook: Any) -> None:
        read[:] = [acts[..., index]]

    def write(acts: Tensor, hook: Any) -> Tensor:
        new, before, up = acts.clone(), acts[..., index], read.pop()
        empty = up.abs() < torch.finfo(up.dtype).tiny  # no product tells the gate, nor does the gate matter
        gate = torch.where(empty, 0, (before - bias) / up)
        new[..., index] = _where_chosen(model, action, before, _changed(model, action, gate, value) * up + bias)
        return new

    return [(SITES["mlp_up"].hook_name(layer), keep), (SITES["mlp_post"].hook_name(layer), write)]


def _changed(model: models.Model, action: Action, acts: Tensor, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return action.change(acts, value)
    value = value.to(acts.device, acts.dtype)
    return action.change(acts, value if value.ndim == 1 else value[_positions(model, acts) % len(value)])


def _where_chosen(model: models.Model, action: Action, before: Tensor, after: Tensor) -> Tensor:
    """`after` at the tokens that the action is for, `before` elsewhere."""
    if action.where == "all":
        return after
    if isinstance(action.where, slice):
        start, stop, step = action.where.indices(model.cfg.n_ctx)
        positions = _positions(model, before)
        chosen = (positions >= start) & (positions < stop) & ((positions - start) % step == 0)
    else:
        columns = getattr(model, COLUMNS, None)
        if columns is None:
            raise RuntimeError(
                f"action {action.name!r}: only lsn.generate tells the prompt from what follows. Generate with it, or "
                "choose where='all' or a slice of positions."
            )
        place = columns.first + torch.arange(before.shape[1], device=before.device)
        chosen = {
            "prompt": place < columns.prompt,
            "generated": place >= columns.prompt,
            "last": place >= columns.prompt - 1,
        }[action.where][None]
    return torch.where(chosen[..., None], after, before)


def _positions(model: models.Model, acts: Tensor) -> Int[Tensor, "row pos"]:
    """Positions in the text; without `Columns` the pass is taken to begin with the text."""
    columns = getattr(model, COLUMNS, None) or Columns(0, 0, torch.zeros(1, dtype=torch.long))
    place = columns.first + torch.arange(acts.shape[1], device=acts.device)
    return place - columns.pads[:, None].to(acts.device)
