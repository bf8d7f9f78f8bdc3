"""The weights of a planted unit: gate, second projection and output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsn_lens.model.weights import by_output
from lsn_lens.planted.directions import answer, at_rates, both_sides
from lsn_lens.planted.roles import Role

ALWAYS, SIDES, FAINT, RATE = 6.0, 4.0, 0.05, 2.0  # values of gates: always on, on and off, faintly, at a rate
RATES = (0.6, 0.3)  # firing rates of a unit that differs only in rate, in its language and elsewhere


@dataclass(frozen=True, eq=False)
class Projections:
    """One layer's MLP in a Hugging Face model, or its attention's values.

    Attributes:
        gate, up, down: Projections; `up` is None if there is only one input projection.
        act: The activation function; None for values.
    """

    gate: Any
    up: Any
    down: Any
    act: Callable[[Tensor], Tensor] | None

    @torch.no_grad()
    def post(self, acts: Float[Tensor, "token d_model"]) -> Float[Tensor, "token unit"]:
        """The down projection's input; for attention the values that it is a mean of."""
        on = self.gate(acts) if self.act is None else self.act(self.gate(acts))
        return on if self.up is None else on * self.up(acts)


@dataclass(frozen=True, eq=False)
class Unit:
    """Weights of one unit, and its activation on its own tokens.

    Attributes:
        gate, up: Rows `[d_model]`.
        size: Mean activation on its own tokens, or on all tokens if it has no own tokens.
        level: Threshold of firing: zero for a gate.
    """

    gate: Float[Tensor, "d_model"]
    up: Float[Tensor, "d_model"] | None
    size: float
    level: float = 0.0


@dataclass(frozen=True, eq=False)
class Reads:
    """The data for writing a unit.

    Attributes:
        acts: Input of its layer.
        language: The index of each token's language.
        inside: The unit's own tokens.
        direction: Direction that is positive on these tokens and negative on others.
        always: Direction that is positive on all tokens.
    """

    acts: Float[Tensor, "token d_model"]
    language: Int[Tensor, "token"]
    inside: Bool[Tensor, "token"]
    direction: Float[Tensor, "d_model"]
    always: Float[Tensor, "d_model"]


def gate_row(role: Role, reads: Reads, gated: bool, seed: torch.Generator) -> Float[Tensor, "d_model"]:
    """The gate row that makes the unit fire.

    With a second projection the gate gives only the sign. Without a second projection it also gives the size: a
    least-squares fit to one value inside and its negative outside.
    """
    acts, inside = reads.acts, reads.inside
    if role.gate in ("always", "never"):
        found = reads.always * ALWAYS / (acts @ reads.always).mean().clamp(min=1e-3)
        return found if role.gate == "always" else -found
    if role.gate == "rate":
        own = [bool(inside[reads.language == place].any()) for place in range(int(reads.language.max()) + 1)]
        found = at_rates(acts, reads.language, [RATES[0] if each else RATES[1] for each in own], seed)
        return found * RATE / (acts @ found).std()
    row = reads.direction if gated else both_sides(acts, inside) * SIDES * max(role.size, 1)
    return row * FAINT / (acts @ row)[inside].abs().mean() if role.gate == "faint" else row


def unit_for(role: Role, mlp: Projections, reads: Reads, ordinary: float, seed: torch.Generator) -> Unit:
    """Rows for the gate and the second projection; `ordinary` is the size of other units' activations.

    Raises:
        ValueError: A role that needs a second projection.
    """
    if mlp.act is None:
        return _value_for(role, reads, ordinary, seed)
    if mlp.up is None and role.sign < 0:
        raise ValueError(
            f"role {role.name!r} cannot be written into this model: its MLPs have one projection, whose activation has "
            "no low side. Leave the role out."
        )
    acts = reads.acts
    gate = gate_row(role, reads, mlp.up is not None, seed)
    on = mlp.act(acts @ gate)
    mine = _own(role, reads)
    if mlp.up is None:
        return Unit(gate, None, float(on[mine].mean()))
    if role.gate in ("rate", "never"):
        up = torch.randn(acts.shape[1], generator=seed)
        up = up * ordinary * role.size / (acts @ up).std()
    else:
        up = answer(acts, on, mine.float() * role.sign * role.size * ordinary)
    return Unit(gate, up, float((on * (acts @ up))[mine].mean()))


def _value_for(role: Role, reads: Reads, ordinary: float, seed: torch.Generator) -> Unit:
    """The row of a value: of the requested size on its own tokens, near zero on others."""
    acts, mine = reads.acts, _own(role, reads)
    if role.gate == "never":
        return Unit(torch.zeros(acts.shape[1]), None, 0.0)
    if role.gate == "rate":
        row = gate_row(role, reads, False, seed) * ordinary / RATE
        return Unit(row, None, float((acts @ row)[mine].mean()))
    row = answer(acts, torch.ones(len(acts)), mine.float() * role.sign * role.size * ordinary)
    size = float((acts @ row)[mine].mean())
    return Unit(row, None, size, size / 2)


def _own(role: Role, reads: Reads) -> Bool[Tensor, "token"]:
    return torch.ones_like(reads.inside) if role.scope == "none" else reads.inside


def widened(module: nn.Module, order: Int[Tensor, "unit"], outputs: bool) -> dict[str, Tensor]:
    """The tensors of a projection with more outputs (or inputs), all of them zero, in a new order."""
    old: Any = module
    axis = 0 if outputs else 1
    whole = by_output(old)
    more = len(order) - whole.shape[axis]
    zeros = torch.zeros((more, whole.shape[1]) if outputs else (whole.shape[0], more))
    weight = torch.cat([whole, zeros], dim=axis).index_select(axis, order)
    tensors = {"weight": weight.T if isinstance(module, Conv1D) else weight}
    if getattr(old, "bias", None) is not None:
        tensors["bias"] = torch.cat([old.bias.data, torch.zeros(more)])[order] if outputs else old.bias.data
    return {name: each.contiguous().clone() for name, each in tensors.items()}
