"""Which weights of a Hugging Face model make or read a unit: a bridge knows, whatever the architecture."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsn_lens.model.hooks import set_aside
from lsn_lens.model.probing import TOKENS, device_of, is_bridge, probe_ids, vocabulary_size
from lsn_lens.model.structure import HALF_TOLERANCE, TOLERANCE, Model

# what TransformerLens cuts a fused projection into, by the method of the bridge's component that does it
SPLITS = {"split_qkv_matrix": ("q", "k", "v"), "split_gate_up_matrix": ("gate", "in")}
LAST = ("o", "out")  # the projection that gives the output of its attention or MLP


def by_output(module: Any) -> Tensor:
    """The weight as a view `[output, input]`; a Conv1D stores it transposed."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


@dataclass(frozen=True)
class Anatomy:
    """The mapping between a bridge and the bare Hugging Face model that it wraps (without weights)."""

    bridge: Model
    bare: nn.Module
    names: Mapping[int, str]  # id of a wrapped module -> its name in the bare model
    owners: Mapping[int, tuple[Any, bool]]  # id of a hook point -> its component, and whether it shows outputs

    def name(self, component: Any) -> str | None:
        """The bare model's name of a component of the bridge; None if it has no such component."""
        return self.names.get(id(component.original_component))


def anatomy_of(bridge: Model) -> Anatomy:
    """Map the components of a bridge to the modules of a bare model with the same configuration."""
    with torch.device("meta"):
        bare: Any = type(bridge.original_model)._from_config(copy.deepcopy(bridge.original_model.config))
    known = {name for name, _ in bare.named_modules()}
    wrapped = (
        (name.replace("._original_component", ""), module)
        for name, module in bridge.original_model.named_modules(remove_duplicate=False)
    )
    owners = {}
    for component in bridge.modules():
        for side, outputs in (("hook_in", False), ("hook_out", True)):
            if hasattr(component, side):
                owners[id(getattr(component, side))] = (component, outputs)
    return Anatomy(bridge, bare, {id(module): name for name, module in wrapped if name in known}, owners)


@torch.no_grad()
def n_parameters(model: Model) -> int:
    """Parameters of the Hugging Face model, a shared one counted once.

    A HookedTransformer has biases of zeros that Hugging Face's model lacks, and a copy of a tied embedding: neither is
    counted.
    """
    if is_bridge(model):
        return sum(weight.numel() for weight in anatomy_of(model).bare.parameters())
    tied = torch.equal(model.unembed.W_U, model.embed.W_E.T)
    every = {name: weight for name, weight in model.named_parameters() if weight.any()}
    return sum(weight.numel() for name, weight in every.items() if not (tied and name == "unembed.W_U"))


def place(anatomy: Anatomy, hook: str, basis: str) -> tuple[str, bool, Tensor]:
    """Find the module behind a hook point: its name, whether the hook sees outputs, and each unit's row."""
    component, outputs = anatomy.owners[id(anatomy.bridge.hook_dict[hook])]
    if outputs:
        parts: Mapping[str, Any] = getattr(component, "submodules", {})
        component = next((parts[name] for name in LAST if name in parts), component)
    name = anatomy.name(component)
    module: Any = anatomy.bare.get_submodule(name) if name else None
    if isinstance(module, nn.Linear | Conv1D):
        return name or "", outputs, torch.arange(by_output(module).shape[0 if outputs else 1])
    if outputs and name is None:
        return _fused(anatomy, component, basis)
    raise ValueError(
        f"units of basis {basis!r}: {hook} is the output of a {type(module).__name__} ({name}), not of one weight "
        "matrix, so these units have no weights of their own."
    )


def _fused(anatomy: Anatomy, part: Any, basis: str) -> tuple[str, bool, Tensor]:
    """The same as `place` for a projection that the Hugging Face model fuses with others in one matrix.

    TransformerLens knows the order for each architecture: it is given a copy whose weights are row numbers, and the
    rows that it splits off then tell their original index.
    """
    parent: Any = next(each for each in anatomy.bridge.modules() if part in getattr(each, "submodules", {}).values())
    path = anatomy.name(parent)
    split = next((each for each in SPLITS if hasattr(parent, each)), None)
    if path is None or split is None:
        raise ValueError(f"units of basis {basis!r}: TransformerLens does not say which weights make them.")
    numbered: Any = copy.deepcopy(anatomy.bare.get_submodule(path)).float().to_empty(device="cpu")
    rows: list[tuple[str, int]] = []
    for name, module in numbered.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = by_output(module)
            weight.copy_(torch.arange(len(rows), len(rows) + len(weight))[:, None].expand_as(weight))
            rows += [(name, row) for row in range(len(weight))]
    place = next(name for name, each in parent.submodules.items() if each is part)
    piece = getattr(parent, split)(numbered)[SPLITS[split].index(place)]
    places = [rows[int(number)] for number in piece.weight[:, 0]]
    name = places[0][0]
    order = torch.tensor([row for each, row in places if each == name])
    return f"{path}.{name}", True, order


@torch.no_grad()
def unwrapped(bridge: Model) -> Any:
    """A plain Hugging Face model with the same weights in the same memory; the bridge stays as it is.

    Modules are shallow copies: to put another tensor into one changes nothing in the bridge.

    Raises:
        ValueError: Without the bridge's components the model computes something else.
    """
    plain = _plain(bridge.original_model, anatomy_of(bridge).bare, {})
    ids = probe_ids(vocabulary_size(bridge), TOKENS)[0][None].to(device_of(bridge))
    with set_aside(bridge):
        given = bridge(ids, return_type="logits")
    difference = float((plain(ids).logits - given).float().abs().max() / given.float().std())
    allowed = TOLERANCE.get(given.dtype, HALF_TOLERANCE)
    if not difference <= allowed:
        raise ValueError(
            f"{type(plain).__name__}: outside the bridge, its logits differ by {difference:.2g} standard deviations; "
            f"at most {allowed:g} is allowed. Load the model anew."
        )
    return plain


def _plain(module: Any, bare: Any, made: dict[int, Any]) -> Any:
    """A copy of a module with the modules and tensors that the bare model has, without those that a bridge adds."""
    while "_original_component" in module._modules:
        module = module._modules["_original_component"]
    if id(module) not in made:
        copied = made[id(module)] = copy.copy(module)
        vars(copied).update({key: copy.copy(each) for key, each in vars(module).items() if isinstance(each, dict)})
        copied._modules = {
            key: child and _plain(module._modules[key], child, made) for key, child in bare._modules.items()
        }
        copied._parameters = {
            key: None if each is None else module._parameters[key] for key, each in bare._parameters.items()
        }
        copied._buffers = {key: each for key, each in module._buffers.items() if key in bare._buffers}
    return made[id(module)]
