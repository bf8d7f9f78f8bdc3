"""What is done to a unit's activation: zero, set, scale, add, remove a direction; and at which tokens."""

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

    def for_model(self, model: Model) -> "Action":
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
    """Set units to a number, or to values by unit, `{basis: [layer, unit]}`."""
    return Action(name, lambda acts, value: torch.zeros_like(acts) + value, values)


def scale(factor: int | float) -> Action:
    """Multiply units by a factor, which is a number."""
    if isinstance(factor, Mapping):
        raise ValueError("scale takes one number for all units; values by unit are for set_to and add.")
    factor = _checked("scale", factor)
    return Action(f"scale {factor:g}", lambda acts, value: acts * value, factor)


def add(values: Values, name: str = "add") -> Action:
    """Add a number, or values by unit, `{basis: [layer, unit]}`."""
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
