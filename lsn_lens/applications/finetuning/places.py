"""Which entries of a Hugging Face model's weights belong to the units of a set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import Anatomy, anatomy_of, place
from lsn_lens.neurons.identity import check_same_model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, WRITE_SITE
from lsn_lens.refusal import DoesNotApply, check_kind

# a neuron is a row of each projection into the MLP, with its bias, and a column of the projection out of it; a unit of
# another basis is a row or column of the one projection that gives or takes it
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    **{basis: (site,) for basis, site in WRITE_SITE.items() if basis != "resid"},
    "mlp": ("mlp_pre", "mlp_up", "mlp_post"),
}

Entries = Int[Tensor, "entry"]  # of a flattened weight


def all_units(model: Model, bases: Sequence[str] = ("mlp",)) -> NeuronSet:
    """All units of these bases, as the set of one language called "all".

    Args:
        model: A TransformerBridge.
        bases: Kinds of units.

    Raises:
        KeyError: A basis whose units have no weights of their own.
        DoesNotApply: The model lacks the units.
    """
    _check_bases(bases)
    shapes = {basis: (1, model.cfg.n_layers, structure.site_width(model, WRITE_SITE[basis])) for basis in bases}
    return NeuronSet(("all",), {basis: torch.ones(shape, dtype=torch.bool) for basis, shape in shapes.items()}, "all")


def entries_of(model: Model, units: NeuronSet) -> dict[str, Entries]:
    """The weights of a set's units: parameter name -> the sorted indices of their entries in the flattened parameter.

    Raises:
        ValueError: An empty set, a set of another model, or units without weights of their own.
        KeyError: A basis whose units have no weights of their own.
    """
    _check_set(model, units)
    anatomy = anatomy_of(model)
    found: dict[str, list[Entries]] = {}
    for basis in units.masks:
        mask = units.units(basis)
        for layer in mask.any(1).nonzero()[:, 0].tolist():
            for site in _sites(model, basis):
                for name, entries in _entries(anatomy, SITES[site].hook_name(layer), basis, mask[layer]).items():
                    found.setdefault(name, []).append(entries)
    return {name: torch.cat(each).unique() for name, each in found.items()}


def modules_of(model: Model, bases: Sequence[str]) -> list[str]:
    """The names of the projections that the units of these bases are rows and columns of, in the model's order."""
    _check_bases(bases)
    anatomy = anatomy_of(model)
    names = {
        place(anatomy, SITES[site].hook_name(layer), basis)[0]
        for basis in bases
        for layer in range(model.cfg.n_layers)
        for site in _sites(model, basis)
    }
    return [name for name, _ in anatomy.bare.named_modules() if name in names]


def _sites(model: Model, basis: str) -> list[str]:
    """The sites of a basis that the model has."""
    return [site for site in WEIGHTS[basis] if site != "mlp_up" or structure.is_gated(model) or basis == "mlp_up"]


def _entries(anatomy: Anatomy, hook: str, basis: str, chosen: Tensor) -> dict[str, Entries]:
    """The entries of one projection, and of its bias where units are its outputs."""
    name, outputs, order = place(anatomy, hook, basis)
    if len(order) != len(chosen):
        raise DoesNotApply(
            f"basis {basis!r}: {len(chosen)} units, but {len(order)} {'outputs' if outputs else 'inputs'} of {name}: "
            "the mapping between them is unknown."
        )
    module: Any = anatomy.bare.get_submodule(name)
    rows, columns = module.weight.shape
    index = order[chosen]
    if outputs != isinstance(module, Conv1D):  # outputs are the rows of a weight; a Conv1D stores it transposed
        entries = index[:, None] * columns + torch.arange(columns)
    else:
        entries = torch.arange(rows)[:, None] * columns + index
    bias = {f"{name}.bias": index} if outputs and module.bias is not None else {}
    return {f"{name}.weight": entries.flatten(), **bias}


def _check_set(model: Model, units: NeuronSet) -> None:
    check_kind("units", units, NeuronSet, "a NeuronSet, such as found['fr'], the word 'full', or Lora(parameters)")
    if not len(units):
        raise ValueError(f"the set {units.method!r} has no units: there is nothing to train.")
    check_same_model(model, [(f"the set {units.method!r}", units.origin)])
    _check_bases(units.masks)
    for basis in units.masks:
        shape = [model.cfg.n_layers, structure.site_width(model, WRITE_SITE[basis])]
        if list(units.units(basis).shape) != shape:
            raise ValueError(
                f"{list(units.units(basis).shape)} [layer, unit] on {basis!r} are not {shape}: the set was found on "
                "another model."
            )


def _check_bases(bases: Sequence[str] | Mapping[str, Any]) -> None:
    if unknown := [basis for basis in bases if basis not in WEIGHTS]:
        raise KeyError(f"units of basis {unknown} have no weights of their own; bases with weights: {list(WEIGHTS)}.")
