"""The parts of a model for planting: the MLPs, and the attention as new heads."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import anatomy_of, by_output, place
from lsn_lens.neurons.sites import SITES
from lsn_lens.planted.roles import ATTENTION_ROLES, ROLES, Role

PartName = Literal["mlp", "attention"]
# configuration names of the MLP width and the numbers of heads
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
TRIES = 64  # numbers of heads to try; some architectures need a divisor of the residual stream's width
HEADS, GROUPS = "num_attention_heads", "num_key_value_heads"


@dataclass(frozen=True)
class Part:
    """A part and the sites of its units.

    Attributes:
        basis: The units' basis in a `NeuronSet`, where they are switched off.
        fires: The site whose values decide whether a unit fires.
        value: The site of a unit's activation.
        scored: Bases on which methods score the same units.
        roles: The possible roles.
    """

    basis: str
    fires: str
    value: str
    scored: tuple[str, ...]
    roles: Mapping[str, Role]


PARTS: Mapping[PartName, Part] = {
    "mlp": Part("mlp", "mlp_pre", "mlp_post", ("mlp", "mlp_pre", "mlp_up"), ROLES),
    # a head with zero queries attends evenly, so its outputs are the values' means over previous positions
    "attention": Part("v", "v", "v", ("v", "z"), ATTENTION_ROLES),
}


class Names(NamedTuple):
    """A layer's projections in a Hugging Face model.

    Attributes:
        gate: The input projection of new units: the gate, the only projection of an MLP, or the values.
        up: The second input projection; None if there is none.
        down: The output projection.
        queries, keys: Projections of attention; zero for new heads.
    """

    gate: str
    up: str | None
    down: str
    queries: str | None = None
    keys: str | None = None


def projections(bridge: Model, part: PartName) -> list[Names]:
    """The names of each layer.

    Raises:
        ValueError: Projections that share one matrix, or are missing.
    """
    second = "mlp_up" if structure.is_gated(bridge) else None
    sites = ("mlp_pre", second, "mlp_post") if part == "mlp" else ("v", None, "z", "q", "k")
    anatomy = anatomy_of(bridge)
    rows = []
    for layer in range(bridge.cfg.n_layers):
        names: list[str | None] = []
        for site in sites:
            if site is None:
                names.append(None)
                continue
            name, _, order = place(anatomy, SITES[site].hook_name(layer), SITES[site].basis)
            if not torch.equal(order, torch.arange(structure.site_width(bridge, site))) or name in names:
                raise ValueError(
                    f"units cannot be planted into the {part} of this model: {name} is not one projection by itself."
                )
            names.append(name)
        rows.append(Names(*names))  # type: ignore[arg-type]
    return rows


@dataclass(frozen=True)
class Room:
    """The widening of a part.

    Attributes:
        width: Units per layer before.
        step: New units come in multiples of this number: the units of a head.
        readers: Writing units per new unit: the query heads that share a head's values.
        counts: Configuration names of the numbers that grow, each with its increase per step.
        fixed: Other required configuration values.
    """

    width: int
    step: int
    readers: int
    counts: Mapping[str, int]
    fixed: Mapping[str, int]

    def order(self, more: int, seed: torch.Generator) -> Int[Tensor, "unit"]:
        """A random order of old and new units: position i has unit `order[i]`, new units have the highest numbers.

        Heads stay whole.
        """
        return self._within(torch.randperm((self.width + more) // self.step, generator=seed))

    def writers(self, units: Int[Tensor, "unit"]) -> Int[Tensor, "unit reader"]:
        """The inputs of the down projection that each unit feeds."""
        heads = (units // self.step)[:, None] * self.readers + torch.arange(self.readers)
        return heads * self.step + (units % self.step)[:, None]

    def queries(self, order: Int[Tensor, "unit"]) -> Int[Tensor, "query"]:
        """The same order for the units of query heads."""
        heads = order[:: self.step] // self.step
        return self._within((heads[:, None] * self.readers + torch.arange(self.readers)).flatten())

    def _within(self, heads: Int[Tensor, "head"]) -> Int[Tensor, "unit"]:
        return (heads[:, None] * self.step + torch.arange(self.step)).flatten()

    def widen(self, config: Any, more: int) -> Any:
        """The configuration of the widened model."""
        config = copy.deepcopy(config)
        for name, each in self.counts.items():
            setattr(config, name, (self.width + more) // self.step * each)
        for name, value in self.fixed.items():
            setattr(config, name, value)
        return config

    def fitting(self, hf_model: Any, name: str, needed: int) -> int:
        """The smallest number of units, at least `needed`, with which the model can be built; tried without weights.

        Args:
            hf_model: The model with the configuration.
            name: Name of a down projection for the units.
            needed: Minimum number of units.

        Raises:
            ValueError: No number that was tried works.
        """
        first = -(-needed // self.step)
        for steps in range(first, first + TRIES):
            config = self.widen(hf_model.config, steps * self.step)
            try:
                type(config).from_dict(config.to_dict())  # raises for values that the configuration does not allow
                with torch.device("meta"):
                    wide: Any = AutoModelForCausalLM.from_config(config)
            except (ValueError, RuntimeError, StrictDataclassError):
                continue
            if by_output(wide.get_submodule(name)).shape[1] == (self.width + steps * self.step) * self.readers:
                return steps * self.step
        raise ValueError(
            f"{type(hf_model.config).__name__} cannot have {needed} more units in a layer: {name} does not grow with "
            f"{list(self.counts)}."
        )


def room_of(hf_model: Any, names: Names, part: PartName) -> Room:
    """The possible widening of a part.

    Raises:
        ValueError: The configuration does not give the width a number of its own.
    """
    config, width = hf_model.config, by_output(hf_model.get_submodule(names.gate)).shape[0]
    room = _room_of_mlp(config, width) if part == "mlp" else _room_of_attention(config, width)
    room.fitting(hf_model, names.down, 1)
    return room


def _room_of_mlp(config: Any, width: int) -> Room:
    name = next((each for each in WIDTHS if getattr(config, each, None) == width), None)
    if name is None and hasattr(config, "n_inner"):  # None there means four times the residual stream
        name = "n_inner"
    if name is None:
        raise ValueError(
            f"{type(config).__name__} has no width of the MLP that could be changed (looked for {list(WIDTHS)})."
        )
    return Room(width, 1, 1, {name: 1}, {})


def _room_of_attention(config: Any, width: int) -> Room:
    heads = getattr(config, HEADS, None)
    groups = getattr(config, GROUPS, None)
    if not heads or not groups:
        raise ValueError(
            f"{type(config).__name__} does not count its heads as new ones need it (looked for {HEADS} and {GROUPS}). "
            "Plant into its MLPs."
        )
    readers, d_head = heads // groups, width // groups
    return Room(width, d_head, readers, {GROUPS: 1, HEADS: readers}, {"head_dim": d_head})
