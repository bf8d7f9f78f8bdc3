"""What training changed, as a file: the new entries of a model's weights, and whose they are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from xxhash import xxh3_128

from lsn_lens import files
from lsn_lens.interventions.exporting import check_new, write_checkpoint
from lsn_lens.model import loading
from lsn_lens.model.entry import check_plain
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import unwrapped
from lsn_lens.neurons.identity import origin_of, whose
from lsn_lens.neurons.sets import NeuronSet

KIND = "delta"
INDEX, UNITS = "@index", "units."  # what the names of other tensors in the file end and begin with


@dataclass(frozen=True, eq=False)
class Change:
    """New values of one parameter.

    Attributes:
        values: The parameter, or with `index` some of its entries.
        index: Which entries of the flattened parameter these are; None for all.
    """

    values: Tensor
    index: Tensor | None = None

    def into(self, weight: Tensor) -> Tensor:
        """A new tensor: the weight with the values."""
        if self.index is None:
            return self.values.to(weight).view_as(weight)
        return weight.flatten().index_copy(0, self.index, self.values.to(weight)).view_as(weight)


@dataclass(frozen=True, eq=False)
class Delta:
    """The weights that training changed, of one model.

    Attributes:
        changes: Parameter name in the Hugging Face model -> its change.
        base, result: Hashes over all bits of the weights, before and after.
        units: The set whose units were trained; None for full fine-tuning and LoRA.
        trained: What was trained, in words.
        parameters: Number of trained parameters.
        origin: The model, as in a set.
        settings: Settings of the training.
        losses: One row per step: `step`, `loss` (nats per token, before the step), `grad_norm`, `learning_rate`.
    """

    changes: Mapping[str, Change] = field(repr=False)
    base: str
    result: str
    units: NeuronSet | None = field(repr=False)
    trained: str
    parameters: int
    origin: Mapping[str, Any]
    settings: Mapping[str, Any] = field(repr=False)
    losses: pd.DataFrame = field(repr=False)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file with a JSON header; returns its path."""
        tensors = {name: each.values for name, each in self.changes.items()}
        tensors |= {name + INDEX: each.index for name, each in self.changes.items() if each.index is not None}
        header: dict[str, Any] = {
            "kind": KIND, "base": self.base, "result": self.result, "trained": self.trained,
            "parameters": self.parameters, "origin": dict(self.origin), "settings": dict(self.settings),
            "losses": self.losses.to_dict("list"), "version": version("lsn-lens"),
        }  # fmt: skip
        if self.units is not None:
            tensors |= {UNITS + basis: mask for basis, mask in self.units.masks.items()}
            header["units"] = {
                "languages": self.units.languages, "method": self.units.method, "notes": dict(self.units.notes),
                "origin": dict(self.units.origin),
            }  # fmt: skip
        return files.save_tensors(path, {name: each.cpu() for name, each in tensors.items()}, header)

    @classmethod
    def load(cls, path: Path | str) -> "Delta":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: A file of another kind, or a damaged file.
        """
        tensors, header = files.load_tensors(path, KIND)
        masks = {name.removeprefix(UNITS): tensors.pop(name) for name in list(tensors) if name.startswith(UNITS)}
        index = {name.removesuffix(INDEX): tensors.pop(name) for name in list(tensors) if name.endswith(INDEX)}
        told = header.get("units")
        units = told and NeuronSet(told["languages"], masks, told["method"], told["notes"], told["origin"])
        changes = {name: Change(values, index.get(name)) for name, values in tensors.items()}
        rest = {name: header[name] for name in ("base", "result", "trained", "parameters", "origin", "settings")}
        return cls(changes=changes, units=units, losses=pd.DataFrame(header["losses"]), **rest)

    def __repr__(self) -> str:
        return f"Delta({self.trained}: {self.parameters:,} parameters, of {whose(self.origin)})"


@torch.no_grad()
def hash_of(hf_model: nn.Module) -> str:
    """A hash over every bit of a Hugging Face model's weights, and over their names."""
    digest = xxh3_128()
    for name, weight in sorted(hf_model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def put_into(hf_model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Replace parameters by changed ones, under all names that share them; the tensors replaced stay as they are."""
    own = dict(hf_model.named_parameters())
    new = {}
    for name, each in changes.items():
        moved = Change(each.values, None if each.index is None else each.index.to(own[name].device))
        new[id(own[name])] = nn.Parameter(moved.into(own[name].detach()), requires_grad=False)
    for module in hf_model.modules():
        for name, weight in list(module._parameters.items()):
            if id(weight) in new:
                module._parameters[name] = new[id(weight)]


def changed(model: Model, delta: Delta) -> Model:
    """A TransformerBridge with a delta's weights; it shares the memory of all other weights with the model."""
    hf_model = unwrapped(model)
    put_into(hf_model, delta.changes)
    if hash_of(hf_model) != delta.result:
        raise ValueError(f"{delta}: it does not give the weights that training gave; the file was changed.")
    made = loading.load_model(hf_model, model.tokenizer, backend="bridge")
    return loading.labelled(made, f"{origin_of(model)['model']}, {delta.trained} trained", None)


def apply_delta(model: Model, delta: Delta | Path | str) -> Model:
    """The model that training gave, from the model that it began with; that model stays as it is.

    Args:
        model: A TransformerBridge of the model that was trained, in the same dtype.
        delta: From `finetune`, or the file that it wrote.

    Returns:
        A TransformerBridge, bit for bit the trained one.

    Raises:
        DoesNotApply: A HookedTransformer.
        ValueError: Another model, other weights or another dtype; a damaged file.
        FileNotFoundError: The file does not exist.
    """
    check_plain(model)
    delta = delta if isinstance(delta, Delta) else Delta.load(delta)
    if hash_of(unwrapped(model)) != delta.base:
        raise ValueError(
            f"the delta is of {whose(delta.origin)} in {delta.settings['dtype']}, this model is "
            f"{whose(origin_of(model))} in {model.original_model.dtype}: its weights are not, bit for bit, those that "
            "training began with. Load that model in that dtype."
        )
    return changed(model, delta)


def save_checkpoint(model: Model, delta: Delta, folder: Path | str) -> Path:
    """Write the trained model as a Hugging Face checkpoint, which plain transformers loads.

    Args:
        model: As for `apply_delta`.
        delta: From `finetune`.
        folder: A new or empty folder.

    Returns:
        The folder, with weights, configuration, tokenizer, a README and `lsn_lens.json`.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: As `apply_delta`.
    """
    folder = check_new(folder)
    hf_model = unwrapped(apply_delta(model, delta))
    told = {
        "lsn_lens": version("lsn-lens"), "source": dict(delta.origin), "trained": delta.trained,
        "parameters": delta.parameters, "base": delta.base, "result": delta.result, "settings": dict(delta.settings),
    }  # fmt: skip
    card = (
        f"# {whose(delta.origin)}, fine-tuned\n\nTrained: {delta.trained}, {delta.parameters:,} parameters. All other "
        f"weights are, bit for bit, those of the original.\n\nSettings:\n\n```json\n"
        f"{json.dumps(dict(delta.settings), indent=1)}\n```\n\nWritten by lsn_lens {told['lsn_lens']}; details are in "
        "`lsn_lens.json`. The original's licence applies.\n"
    )
    return write_checkpoint(folder, hf_model, model.tokenizer, told, card=card)
