"""Switch units off, set or push them, as a context manager that leaves no trace."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens import models
from lsn_lens.neurons import NeuronSet
from lsn_lens.sites import SITES, WRITE_SITE, flat
from lsn_lens.statistics import Statistic, Statistics

Values = int | float | Mapping[str, Float[Tensor, "layer unit"]]


@dataclass(frozen=True)
class Action:
    """What to do to the chosen units: `change(acts, values)`, elementwise, with values per unit.

    It sees one position at a time, so it works under a KV cache.
    """

    name: str
    change: Callable[[Tensor, Any], Tensor]
    values: Values = 0.0

    def __repr__(self) -> str:
        return self.name


zero = Action("zero", lambda acts, values: torch.zeros_like(acts))


def set_to(values: Values, name: str = "set") -> Action:
    """Set units to a number, or to `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: torch.zeros_like(acts) + value, values)


def scale(factor: int | float) -> Action:
    """Multiply units by a factor."""
    return Action(f"scale {factor:g}", lambda acts, value: acts * value, factor)


def add(values: Values, name: str = "add") -> Action:
    """Add a number, or `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: acts + value, values)


def mean_ablation(statistics: Statistics) -> Action:
    """Set units to their mean over all languages of a run (`run.statistics`), each language counting the same."""
    return set_to(_means(statistics), "dataset mean")


def other_mean_ablation(statistics: Statistics) -> Callable[[str], Action]:
    """For a language, set units to their mean over the other languages of a run (`run.statistics`)."""
    return lambda language: set_to(_means(statistics, language), "other languages' mean")


def _means(statistics: Statistics, without: str | None = None) -> dict[str, Float[Tensor, "layer unit"]]:
    """Means at the write site of every basis that the run has sums for."""
    return {
        basis: statistics.pooled_mean(site, without).float()
        for basis, site in WRITE_SITE.items()
        if Statistic(site, "sum").key in statistics.sums
    }


@contextlib.contextmanager
def intervene(model: models.Model, neurons: NeuronSet, action: Action = zero) -> Iterator[models.Model]:
    """Change the units of a set (of all its languages) in every forward pass inside the block.

    Args:
        model: A HookedTransformer or TransformerBridge; its weights are never touched.
        neurons: For example `found["fr"]`.
        action: `zero`, `set_to(...)`, `scale(...)`, `add(...)`, `mean_ablation(run.statistics)`.

    Yields:
        The model. Its hooks are gone when the block ends, also by an exception.

    Raises:
        ValueError: The set is of another shape than the model, or a value is NaN or infinite.
        KeyError: A basis that cannot be written to, or without values.

    Source: deactivation as in Tang et al. 2024 (zero act(gate) at all positions), which is zeroing the down
    projection's input `mlp.hook_post`. Setting `hook_post` is not setting act(gate) on gated models.
    """
    with model.hooks(fwd_hooks=intervention_hooks(model, neurons, action)):
        yield model


def intervention_hooks(
    model: models.Model, neurons: NeuronSet, action: Action, width: Callable[[str], int] | None = None
) -> list[tuple[str, Callable[..., Tensor]]]:
    """The hooks of `intervene`: one for each layer with chosen units.

    `width` gives a site's units where they are known already: finding out takes a forward pass.
    """
    width = width or partial(models.site_width, model)
    hooks = []
    for basis in neurons.masks:
        if basis not in WRITE_SITE:
            raise KeyError(f"cannot intervene on basis {basis!r}; the bases are {list(WRITE_SITE)}.")
        site = SITES[WRITE_SITE[basis]]
        units = neurons.units(basis)
        shape = (model.cfg.n_layers, width(site.name))
        if tuple(units.shape) != shape:
            raise ValueError(
                f"the set has {list(units.shape)} [layer, unit] on basis {basis!r}, the model {list(shape)}: "
                "it was found on another model."
            )
        values = _values(action, basis, units)
        for layer in units.any(1).nonzero()[:, 0].tolist():
            index = units[layer].nonzero()[:, 0].to(models.device_of(model))
            value = values[layer, units[layer]] if isinstance(values, Tensor) else values
            if not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"action {action.name!r}: values for {basis!r} in layer {layer} are not all finite.")
            hooks.append((site.hook_name(layer), _hook(site.name, index, value, action.change)))
    return hooks


def _values(action: Action, basis: str, units: Tensor) -> Any:
    if not isinstance(action.values, Mapping):
        return action.values
    if basis not in action.values:
        raise KeyError(f"action {action.name!r} has no values for basis {basis!r}; it has {list(action.values)}.")
    values = action.values[basis]
    if values.shape != units.shape:
        raise ValueError(f"values for {basis!r} have shape {list(values.shape)}, expected {list(units.shape)}.")
    return values


def _hook(name: str, index: Tensor, value: Any, change: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    def write(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone()  # an in-place edit would show in tensors that the caller holds
        view = flat(new, SITES[name]).view(*acts.shape[:2], -1)
        chosen = value.to(acts.device, acts.dtype) if isinstance(value, Tensor) else value
        view[..., index] = change(view[..., index], chosen)
        return view.view(acts.shape)

    return write
