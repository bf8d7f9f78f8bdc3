"""Actions on a unit's activation (zero, set, scale, add, remove a direction), and the tokens they act on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import CARRIED, Origin, check_origin, origin_of, whose

# per unit, or per position and unit: positions repeat cyclically
Layered = Float[Tensor, "layer unit"] | Float[Tensor, "layer place unit"]
Values = int | float | Mapping[str, Layered]
Where = Literal["all", "prompt", "generated", "last"] | slice
MlpSite = Literal["mlp_post", "mlp_act"]
PHASES = ("all", "prompt", "generated", "last")


@dataclass(frozen=True)
class Action:
    """A change of the chosen units: `change(acts, values)`, with values per unit.

    Each position is changed by itself, so an action works with a KV cache.

    Attributes:
        name: The action's name in tables.
        change: Function of the chosen units of one layer, `[... unit]`, that returns the same shape.
        values: A number, `{basis: [layer, unit]}`, or `{basis: [layer, position, unit]}`.
        where: The tokens to change, see `at`.
        mlp_site: The tensor of the basis `mlp`, see `on`.
        origin: Origin of the values, as in `NeuronSet`; empty for values made by hand.
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
        """The same action at some tokens only.

        Args:
            where: "all"; a slice of positions, counted from the first token of the text (`slice(0, 1)`: the first); or,
                inside `lsn.generate`, "prompt", "generated" (tokens read after the prompt; the first generated token
                is predicted from the prompt, so it does not change) or "last" (the prompt's last token and all
                generated tokens: every position that predicts a generated token).

        Raises:
            ValueError: Another value, or a slice that counts from the end, which is unknown during generation.
        """
        changed = replace(self, where=where)
        if isinstance(where, slice):
            bounds = (where.start, where.stop) if where.step is None else (where.start, where.stop, where.step)
            where = "positions " + ":".join("" if each is None else str(each) for each in bounds)  # type: ignore
        return replace(changed, name=f"{self.name}, {where}")

    def on(self, mlp_site: MlpSite) -> "Action":
        """The same action on another tensor of the basis `mlp`.

        On gated models, setting "mlp_post", the down projection's input `act(gate) * up`, differs from setting
        "mlp_act", `act(gate)` alone: with act(gate) set to c, the input is `c * up`, which still depends on `up`.
        Zeroing either tensor has the same effect. On other models, both names are one tensor.
        """
        return replace(self, mlp_site=mlp_site, name=f"{self.name} on {mlp_site}")

    def for_model(self, model: Model) -> "Action":
        """The same values for another model or other weights, recorded in the action's name.

        Without this, values that were measured on one model are refused on another, see `NeuronSet.for_model`.
        """
        origin = origin_of(model)
        if origin["fingerprint"] is not None and self.origin.get("fingerprint") == origin["fingerprint"]:
            return self
        name = f"{self.name}, {CARRIED} from {whose(self.origin)}" if self.origin else self.name
        return replace(self, name=name, origin=origin)


def _checked(name: str, values: Any) -> Any:
    """Check values: numbers, or tensors of real numbers `[layer, unit]` or `[layer, position, unit]` per basis."""
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
            f"action {name!r}: got {type(values).__name__}, expected a number, or values per unit for each basis, "
            '{"mlp": tensor [layer, unit]}.'
        )
    return values if isinstance(values, int | float) else float(values)


def _by_unit(name: str, basis: str, values: Any) -> Tensor:
    given = torch.as_tensor(values) if isinstance(values, np.ndarray) else values
    if not isinstance(given, Tensor) or given.ndim not in (2, 3) or given.dtype == torch.bool or given.is_complex():
        told = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"action {name!r}: values for {basis!r} are {told}, expected a tensor of real numbers [layer, unit] or "
            "[layer, position, unit]. (A NeuronSet chooses the units.)"
        )
    return given if given.is_floating_point() else given.float()


def _position(bound: Any) -> int | None:
    try:
        return None if bound is None else index(bound)
    except TypeError as error:
        raise ValueError(f"position {bound!r}: expected a whole number.") from error


zero = Action("zero", lambda acts, values: torch.zeros_like(acts))


def set_to(values: Values, name: str = "set") -> Action:
    """Set units to a number, or to values per unit, `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: torch.zeros_like(acts) + value, values)


def scale(factor: int | float) -> Action:
    """Multiply all units by one number."""
    if isinstance(factor, Mapping):
        raise ValueError("scale takes one number for all units; set_to and add take values per unit.")
    factor = _checked("scale", factor)
    return Action(f"scale {factor:g}", lambda acts, value: acts * value, factor)


def add(values: Values, name: str = "add") -> Action:
    """Add a number, or values per unit, `{basis: [layer, unit]}`, to units."""
    return Action(name, lambda acts, value: acts + value, values)


def remove_direction(directions: Mapping[str, Float[Tensor, "layer unit"]], name: str = "remove direction") -> Action:
    """Remove the component along a direction: h - (h · d) d, with d scaled to length 1 over the chosen units.

    Source: the ablation of arXiv 2505.05111, with any direction in place of a feature's.
    """

    def change(acts: Tensor, value: Tensor) -> Tensor:
        exact = torch.promote_types(acts.dtype, torch.float32)  # in half precision a part of the component would remain
        values, direction = acts.to(exact), value.to(exact)
        unit = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return (values - (values * unit).sum(-1, keepdim=True) * unit).to(acts.dtype)

    return Action(name, change, directions)
