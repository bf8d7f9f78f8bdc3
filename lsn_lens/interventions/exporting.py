"""Write a Hugging Face checkpoint in which units are permanently set to zero."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.model import loading, structure
from lsn_lens.model.checkpoints import given, read_tokenizer, read_weights, source_of
from lsn_lens.model.gguf_files import located
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import anatomy_of, by_output, place
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, WRITE_SITE

Edits = TypeVar("Edits")
PROVENANCE = "lsn_lens.json"
INSTEAD = "Leave these units out, or use lsn.intervene, which changes no weights."


@torch.no_grad()
def export(
    source: str | Path,
    neurons: NeuronSet,
    folder: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint with the same output as the model under `intervene(model, neurons, zero)`.

    The weights that write or read the units become zero, for all languages of the set. The architecture stays the
    same, so plain transformers loads the folder. Before anything is written, the logits are compared with those under
    the intervention. The model is loaded twice, one load after the other.

    Args:
        source: `"demo"`, a local folder or a Hub id, as for `load_model`.
        neurons: A set such as `found["fr"]`, on any basis but `resid`.
        folder: A new or empty folder.
        revision: Branch, tag or commit of a Hub model.
        dtype: The dtype of the weights; by default the checkpoint's own.
        options: Options of `AutoModelForCausalLM.from_pretrained`, see `load_model`.

    Returns:
        The folder, with weights, configuration, tokenizer, a README and `lsn_lens.json` (the units set to zero).

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: A set of another model or of other weights (see `NeuronSet.for_model`), units that no single weight
            matrix writes, or logits that differ.
        KeyError: A basis that cannot be intervened on.

    Warns:
        UserWarning: The set is empty, so the checkpoint is the unchanged model.
    """
    folder = check_places(source, folder)
    if not len(neurons):
        warnings.warn("the set has no units: the checkpoint is the unchanged model.", stacklevel=2)
    name, options = located(source_of(source), given({**options, "revision": revision}))
    cuts, ids, expected, provenance = under_hooks(name, neurons, dtype, options, _cuts)
    hf_model = read_weights(name, expected.dtype, options, attention=None)
    hf_model = hf_model.to(ids.device).eval()
    for cut in cuts:
        cut.apply(hf_model)
    difference = distance(hf_model(ids).logits, expected)
    allowed = structure.TOLERANCE.get(expected.dtype, structure.HALF_TOLERANCE)
    if not difference <= allowed:
        raise ValueError(
            f"{source}: with edited weights, logits differ from those under the intervention by {difference:.2g} "
            f"standard deviations; at most {allowed:g} is allowed. Nothing was written. {INSTEAD}"
        )
    tokenizer = read_tokenizer(name, options)
    provenance["logits_difference"] = difference
    return write_checkpoint(folder, hf_model, tokenizer, provenance)


def check_places(source: object, folder: str | Path) -> Path:
    """The folder to write to; refuses a source that is no name or folder, and a folder with something in it.

    Raises:
        ValueError: A model in memory as the source.
        FileExistsError: The folder is not empty.
    """
    if not isinstance(source, str | Path):
        raise ValueError(
            f"expected the name or folder that load_model got, not a {type(source).__name__}: its files are read. "
            "Save a model in memory first: model.save_pretrained(folder), and its tokenizer to the same folder."
        )
    return check_new(folder)


def check_new(folder: str | Path) -> Path:
    """The folder to write to; refuses a folder with something in it.

    Raises:
        FileExistsError: The folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty. Give a new folder.")
    return folder


@dataclass(frozen=True)
class _Cut:
    """Inputs or outputs of one Hugging Face module that are to be set to zero."""

    module: str
    outputs: bool
    index: Tensor

    def apply(self, hf_model: nn.Module) -> None:
        """Edit the weights in place."""
        module: Any = hf_model.get_submodule(self.module)
        index = self.index.to(module.weight.device)
        by_output(module).index_fill_(0 if self.outputs else 1, index, 0)
        if self.outputs and module.bias is not None:
            module.bias.index_fill_(0, index, 0)


def distance(logits: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, in standard deviations of the reference."""
    return float((logits - reference).float().abs().max() / reference.float().std())


def under_hooks(
    source: str | Path,
    neurons: NeuronSet,
    dtype: torch.dtype | str | None,
    options: Mapping[str, Any],
    plan: Callable[[Model, NeuronSet], Edits],
) -> tuple[Edits, Tensor, Tensor, dict[str, Any]]:
    """The edits planned, tokens, their logits with the units at zero, and the provenance; the model is freed."""
    kind = "auto" if dtype is None and "torch_dtype" not in options else dtype
    bridge = loading.load_model(source, backend="bridge", dtype=kind, **options)
    hooks = intervention_hooks(bridge, neurons, zero)
    ids = (
        torch.linspace(0, structure.vocabulary_size(bridge) - 1, 32, device=structure.device_of(bridge))
        .long()
        .view(2, 16)
    )
    clean = bridge(ids, return_type="logits")
    with bridge.hooks(fwd_hooks=hooks):
        expected = bridge(ids, return_type="logits")
    provenance = {**_provenance(bridge, neurons), "logits_change": distance(expected, clean)}
    return plan(bridge, neurons), ids, expected, provenance


def _cuts(bridge: Model, neurons: NeuronSet) -> list[_Cut]:
    """The module inputs or outputs that the units are, per basis and layer."""
    if "resid" in neurons.masks and neurons.masks["resid"].any():
        raise ValueError(
            "units of basis 'resid' cannot be exported: the residual stream is the sum of the embeddings and all "
            f"earlier layers, so no weights of one layer write it. {INSTEAD}"
        )
    anatomy, cuts = anatomy_of(bridge), []
    for basis in neurons.masks:
        units = neurons.units(basis)
        for layer in units.any(1).nonzero()[:, 0].tolist():
            module, outputs, order = place(anatomy, SITES[WRITE_SITE[basis]].hook_name(layer), basis)
            if len(order) != units.shape[1]:
                raise ValueError(
                    f"basis {basis!r}, layer {layer}: {units.shape[1]} units, but {len(order)} "
                    f"{'outputs' if outputs else 'inputs'} of {module}: the mapping between them is unknown. {INSTEAD}"
                )
            cuts.append(_Cut(module, outputs, order[units[layer]]))
    return cuts


def _provenance(bridge: Model, neurons: NeuronSet) -> dict[str, Any]:
    return {
        "lsn_lens": version("lsn-lens"),
        "source": structure.describe(bridge),
        "action": zero.name,
        "method": neurons.method,
        "notes": dict(neurons.notes),
        "origin": dict(neurons.origin),
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


def write_checkpoint(
    folder: Path,
    hf_model: Any,
    tokenizer: Any,
    provenance: dict[str, Any],
    finish: Callable[[Path], None] = lambda folder: None,
    done: str = "permanently set to zero",
    card: str = "",
    **saving: Any,
) -> Path:
    """Write a complete checkpoint or nothing; `finish` adds to the folder and to the provenance, and may refuse it.

    The README is `card`, or for a set of units says what was `done` to them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    try:
        hf_model.save_pretrained(partial, **saving)
        tokenizer.save_pretrained(partial)
        finish(partial)
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=1, default=str) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card or _card(provenance, done), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        return partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _card(provenance: Mapping[str, Any], done: str) -> str:
    """The text of the folder's README."""
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
            f"# {source['name']}, with units {done}",
            "",
            f"The weights of `{source['name']}`{revision}, in which these units were {done}:",
            "",
            *lines,
            "",
            f"Method that found the units: {provenance['method'] or 'unknown'}. Written by lsn_lens "
            f"{provenance['lsn_lens']}; details are in `{PROVENANCE}`. No weights were trained. The original's licence "
            "applies.",
            "",
        ]
    )
