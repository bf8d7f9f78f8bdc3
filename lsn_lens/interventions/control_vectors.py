"""Directions as GGUF control vectors, which llama.cpp adds to the residual stream."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.files import write_bytes
from lsn_lens.interventions.actions import Action, add
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.model.gguf_files import EXTRA
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply, check_kind

ARCHITECTURE, DIRECTION, BASIS = "controlvector", "direction.", "resid"


def save_control_vector(intervention: Intervention, path: Path | str, model_type: str) -> Path:
    """Write an intervention that adds to the residual stream as a control vector of llama.cpp.

    llama.cpp adds the tensor `direction.3`, times a strength (`--control-vector-scaled`), to the output of layer 3
    (from 0) at every token; it has none for layer 0.

    Args:
        intervention: For example `lsn.diffmean_steering(...)`: only additions to the basis `resid`, at all tokens.
        path: A file that ends in `.gguf`.
        model_type: The hint at the model, as `config.model_type` of transformers ("llama"), which
            llama.cpp does not check.

    Returns:
        The path.

    Raises:
        DoesNotApply: Another basis, action or choice of tokens; an addition in layer 0; or nothing to add.
        ValueError: Not an intervention, another ending, or the package gguf is missing.

    Source: llama.cpp, `common.cpp` (layers from 1, vectors in float32), and repeng's `export_gguf`.
    """
    check_kind("intervention", intervention, Intervention, "an intervention, as lsn.diffmean_steering(...)")
    path, gguf = Path(path), _gguf(path)
    vectors = added_vectors(intervention)
    layers = vectors.any(-1).nonzero()[:, 0].tolist()
    if not layers or not layers[0]:
        raise DoesNotApply(
            f"{intervention.name!r} adds something in the layers {layers}: expected one or more, from 1 on; "
            "llama.cpp has no control vector for layer 0."
        )
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / path.name
        writer = gguf.GGUFWriter(partial, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
        for layer in layers:
            writer.add_tensor(f"{DIRECTION}{layer}", vectors[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_bytes(path, partial.read_bytes())
    return path


def load_control_vector(path: Path | str, layers: int, strength: float | int = 1.0) -> Intervention:
    """A control vector of llama.cpp as an intervention.

    Args:
        path: A file that ends in `.gguf`.
        layers: Number of layers of the model.
        strength: The factor.

    Raises:
        ValueError: Another kind of file, directions of several lengths, NaN, or a layer that the model does not have.
    """
    path, gguf = Path(path), _gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        kind = reader.get_field("general.architecture").contents()
    except (ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file ({error}).") from None
    found = {each.name: torch.tensor(each.data).float() for each in reader.tensors if each.name.startswith(DIRECTION)}
    if kind != ARCHITECTURE or not found or len({tuple(each.shape) for each in found.values()}) != 1:
        raise ValueError(f"{path} is of kind {kind!r} with directions {list(found)}: expected a control vector.")
    values = torch.zeros(layers, len(next(iter(found.values()))))
    for name, vector in found.items():
        number = name.removeprefix(DIRECTION)
        if not number.isdecimal() or not 0 < int(number) < layers or not bool(vector.isfinite().all()):
            raise ValueError(
                f"{path}: {name!r} is not finite, or of a layer that the model does not have: expected the layers 1 to "
                f"{layers - 1}."
            )
        values[int(number)] = strength * vector
    name = f"control vector {path.name}, {strength:g}"
    mask = (values != 0).any(-1, keepdim=True).expand(values.shape)[None].clone()
    return Intervention(name, ((NeuronSet(("all",), {BASIS: mask}, name), add({BASIS: values}, name)),))


def added_vectors(intervention: Intervention, basis: str = BASIS) -> Float[Tensor, "layer unit"]:
    """What the intervention adds to a basis in each layer, by default to the residual stream.

    Raises:
        DoesNotApply: Another basis, action or choice of tokens, or nothing that can be added.
    """
    total: Any = None
    for neurons, action in intervention.steps:
        values = action.values[basis] if isinstance(action.values, dict) and basis in action.values else action.values
        by_place = isinstance(values, Tensor) and values.ndim != 2
        if set(neurons.masks) != {basis} or action.where != "all" or by_place or not _adds(action):
            raise DoesNotApply(
                f"step {action.name!r} on {list(neurons.masks)} at {action.where!r}: a vector is added to the basis "
                f"{basis!r}, equally at all tokens. It holds lsn.add(...), as in lsn.diffmean_steering(...)."
            )
        mask = neurons.units(basis)
        added = torch.as_tensor(values, dtype=torch.float32).expand(mask.shape) * mask
        total = added if total is None else total + added
    if total is None or not bool(total.isfinite().all()):
        raise DoesNotApply(f"{intervention.name!r} adds nothing, or values that are not finite.")
    return total.contiguous()


def _adds(action: Action) -> bool:
    """Whether the action is an addition; actions are functions, so it is tried."""
    given, value = torch.tensor([0.0, 1.0, -3.0]), torch.tensor([0.5, 2.0, 4.0])
    return bool(torch.allclose(action.change(given, value), given + value))


def _gguf(path: Path | str) -> Any:
    if Path(path).suffix != ".gguf":
        raise ValueError(f"{path}: expected a name that ends in .gguf.")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{path}: the package gguf is missing. {EXTRA}.")
    import gguf

    return gguf
