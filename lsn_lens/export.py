"""Write a Hugging Face checkpoint in which units are switched off for good."""

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from lsn_lens import models
from lsn_lens.interventions import intervention_hooks, zero
from lsn_lens.neurons import NeuronSet
from lsn_lens.sites import SITES, WRITE_SITE

PROVENANCE = "lsn_lens.json"
# what TransformerLens cuts a fused projection into, by the method of the bridge's component that does it
SPLITS = {"split_qkv_matrix": ("q", "k", "v"), "split_gate_up_matrix": ("gate", "in")}
LAST = ("o", "out")  # the projection whose output is that of its attention or MLP
INSTEAD = "Leave these units out, or use lsn.intervene, which changes no weights."


@torch.no_grad()
def export(
    source: str | Path,
    neurons: NeuronSet,
    folder: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint that computes what the model computes under `intervene(model, neurons, zero)`.

    The weights that make or read the units become zero, for all languages of the set. The architecture stays, so
    plain transformers loads the folder. The logits are compared with those under the hooks before anything is
    written. The model is loaded twice, one after the other.

    Args:
        source: `"demo"`, a local folder or a Hub id, as for `load_model`.
        neurons: For example `found["fr"]`, on any basis but `resid`.
        folder: Where to: new or empty.
        revision: Branch, tag or commit of a Hub model.
        dtype: Of the weights; by default the checkpoint's own.

    Returns:
        The folder, with weights, configuration, tokenizer, a README and `lsn_lens.json` (what was switched off).

    Raises:
        FileExistsError: There is something in the folder.
        ValueError: A set of another model, units that no single weight matrix makes, or logits that differ.
        KeyError: A basis that cannot be intervened on.

    Warns:
        UserWarning: The set is empty, so the checkpoint is the model as it was.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty. Give a new folder.")
    if not len(neurons):
        warnings.warn("the set has no units: the checkpoint is the model as it was.", stacklevel=2)
    name = str(models.DEMO_MODEL) if str(source) == "demo" else str(source)
    cuts, ids, expected, provenance = _under_hooks(source, neurons, revision, dtype)
    hf_model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=expected.dtype)
    hf_model = hf_model.to(ids.device).eval()
    for cut in cuts:
        cut.apply(hf_model)
    difference = _distance(hf_model(ids).logits, expected)
    allowed = models.TOLERANCE.get(expected.dtype, models.HALF_TOLERANCE)
    if not difference <= allowed:
        raise ValueError(
            f"{source}: with edited weights, logits differ from those under the intervention by {difference:.2g} of "
            f"their standard deviation, at most {allowed:g} is allowed. Nothing was written. {INSTEAD}"
        )
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    return _write(folder, hf_model, tokenizer, {**provenance, "logits_difference": difference})


@dataclass(frozen=True)
class _Cut:
    """Inputs or outputs of one Hugging Face module, to be made zero."""

    module: str
    outputs: bool
    index: Tensor

    def apply(self, hf_model: nn.Module) -> None:
        """Edit the weights in place."""
        module: Any = hf_model.get_submodule(self.module)
        index = self.index.to(module.weight.device)
        _by_output(module).index_fill_(0 if self.outputs else 1, index, 0)
        if self.outputs and module.bias is not None:
            module.bias.index_fill_(0, index, 0)


def _by_output(module: Any) -> Tensor:
    """The weight as `[output, input]`, a view: a Conv1D keeps it the other way round."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def _distance(logits: Tensor, reference: Tensor) -> float:
    """Largest difference, in standard deviations of the reference."""
    return float((logits - reference).float().abs().max() / reference.float().std())


def _under_hooks(
    source: str | Path, neurons: NeuronSet, revision: str | None, dtype: torch.dtype | None
) -> tuple[list[_Cut], Tensor, Tensor, dict[str, Any]]:
    """What to edit, tokens, their logits under the intervention, and the provenance; the model is let go of."""
    name = str(models.DEMO_MODEL) if str(source) == "demo" else str(source)
    config = AutoConfig.from_pretrained(name, revision=revision)
    kind: torch.dtype = dtype or getattr(config, "dtype", None) or torch.float32
    bridge = models.load_model(source, backend="bridge", revision=revision, dtype=kind)
    hooks = intervention_hooks(bridge, neurons, zero)
    ids = torch.linspace(0, models.vocabulary_size(bridge) - 1, 32, device=models.device_of(bridge)).long().view(2, 16)
    clean = bridge(ids, return_type="logits")
    with bridge.hooks(fwd_hooks=hooks):
        expected = bridge(ids, return_type="logits")
    provenance = {**_provenance(bridge, neurons), "logits_change": _distance(expected, clean)}
    return _cuts(bridge, neurons), ids, expected, provenance


# where the units are in the Hugging Face model


@dataclass(frozen=True)
class _Anatomy:
    """A bridge beside the bare Hugging Face model that it wraps (without weights)."""

    bridge: models.Model
    bare: nn.Module
    names: Mapping[int, str]  # id of a wrapped module -> its name in the bare model
    owners: Mapping[int, tuple[Any, bool]]  # id of a hook point -> its component, and whether it shows outputs

    def name(self, component: Any) -> str | None:
        """What the bare model calls a component of the bridge; None for one that it does not have."""
        return self.names.get(id(component.original_component))


def _anatomy(bridge: models.Model) -> _Anatomy:
    with torch.device("meta"):
        bare: Any = AutoModelForCausalLM.from_config(copy.deepcopy(bridge.original_model.config))
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
    return _Anatomy(bridge, bare, {id(module): name for name, module in wrapped if name in known}, owners)


def _cuts(bridge: models.Model, neurons: NeuronSet) -> list[_Cut]:
    """For each basis and layer with units: the inputs or outputs that they are."""
    if "resid" in neurons.masks and neurons.masks["resid"].any():
        raise ValueError(
            "units of basis 'resid' cannot be exported: the residual stream is the sum of the embeddings and all "
            f"layers so far, so no weights of one layer make it. {INSTEAD}"
        )
    anatomy, cuts = _anatomy(bridge), []
    for basis in neurons.masks:
        units = neurons.units(basis)
        for layer in units.any(1).nonzero()[:, 0].tolist():
            module, outputs, order = _place(anatomy, SITES[WRITE_SITE[basis]].hook_name(layer), basis)
            if len(order) != units.shape[1]:
                raise ValueError(
                    f"basis {basis!r}, layer {layer}: {units.shape[1]} units, but {len(order)} "
                    f"{'outputs' if outputs else 'inputs'} of {module}: which is which is not known. {INSTEAD}"
                )
            cuts.append(_Cut(module, outputs, order[units[layer]]))
    return cuts


def _place(anatomy: _Anatomy, hook: str, basis: str) -> tuple[str, bool, Tensor]:
    """The module that a hook point stands at, whether at its outputs, and which of them each unit is."""
    component, outputs = anatomy.owners[id(anatomy.bridge.hook_dict[hook])]
    if outputs:
        parts: Mapping[str, Any] = getattr(component, "submodules", {})
        component = next((parts[name] for name in LAST if name in parts), component)
    name = anatomy.name(component)
    module: Any = anatomy.bare.get_submodule(name) if name else None
    if isinstance(module, nn.Linear | Conv1D):
        return name or "", outputs, torch.arange(_by_output(module).shape[0 if outputs else 1])
    if outputs and name is None:
        return _fused(anatomy, component, basis)
    kind = type(module).__name__
    raise ValueError(
        f"units of basis {basis!r} cannot be exported from this model: {hook} is the output of a {kind} ({name}), "
        f"not of one weight matrix. {INSTEAD}"
    )


def _fused(anatomy: _Anatomy, part: Any, basis: str) -> tuple[str, bool, Tensor]:
    """The same for a projection that the Hugging Face model keeps together with others in one matrix.

    In which order is known to TransformerLens, for each architecture: given a copy whose weights are row numbers,
    it cuts out rows that say where they were.
    """
    parent: Any = next(each for each in anatomy.bridge.modules() if part in getattr(each, "submodules", {}).values())
    path = anatomy.name(parent)
    split = next((each for each in SPLITS if hasattr(parent, each)), None)
    if path is None or split is None:
        raise ValueError(f"units of basis {basis!r}: TransformerLens does not say which weights make them. {INSTEAD}")
    numbered: Any = copy.deepcopy(anatomy.bare.get_submodule(path)).float().to_empty(device="cpu")
    rows: list[tuple[str, int]] = []
    for name, module in numbered.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = _by_output(module)
            weight.copy_(torch.arange(len(rows), len(rows) + len(weight))[:, None].expand_as(weight))
            rows += [(name, row) for row in range(len(weight))]
    place = next(name for name, each in parent.submodules.items() if each is part)
    piece = getattr(parent, split)(numbered)[SPLITS[split].index(place)]
    places = [rows[int(number)] for number in piece.weight[:, 0]]
    name = places[0][0]
    order = torch.tensor([row for each, row in places if each == name])
    return f"{path}.{name}", True, order


def _provenance(bridge: models.Model, neurons: NeuronSet) -> dict[str, Any]:
    return {
        "lsn_lens": version("lsn-lens"),
        "source": models.describe(bridge),
        "action": zero.name,
        "method": neurons.method,
        "notes": dict(neurons.notes),
        "units": {
            basis: {
                "of": mask[0].numel(),
                "off": int(mask.any(0).sum()),
                "by_language": dict(zip(neurons.languages, mask.sum((1, 2)).tolist(), strict=True)),
            }
            for basis, mask in neurons.masks.items()
        },
    }


# the folder


def _write(folder: Path, hf_model: Any, tokenizer: Any, provenance: Mapping[str, Any]) -> Path:
    """A whole checkpoint, or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        hf_model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=1, default=str) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(provenance), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        return partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _card(provenance: Mapping[str, Any]) -> str:
    """What a reader of the folder needs to know."""
    source = provenance["source"]
    revision = f", revision {source['revision']}" if source["revision"] else ""
    lines = [
        f"- {each['off']:,} of {each['of']:,} units of basis `{basis}` (by language: "
        + ", ".join(f"{language} {count:,}" for language, count in each["by_language"].items())
        + ")"
        for basis, each in provenance["units"].items()
    ]
    return "\n".join(
        [
            f"# {source['name']}, with units switched off",
            "",
            f"The weights of `{source['name']}`{revision}, in which these units were set to zero for good:",
            "",
            *lines,
            "",
            f"They were found by: {provenance['method'] or 'not said'}. Written by lsn_lens {provenance['lsn_lens']}; "
            f"details are in `{PROVENANCE}`. No weights were trained. The licence is that of the original.",
            "",
        ]
    )
