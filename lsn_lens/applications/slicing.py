"""Write a smaller Hugging Face checkpoint, from whose MLPs neurons are cut out."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsn_lens.applications import sliced_model
from lsn_lens.interventions.exporting import check_places, distance, under_hooks, write_checkpoint
from lsn_lens.model import structure
from lsn_lens.model.checkpoints import given, read_tokenizer, read_weights, source_of
from lsn_lens.model.gguf_files import located
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import anatomy_of, by_output, place
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES
from lsn_lens.refusal import DoesNotApply, check_kind

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")  # fields that may hold the width
CODE = "modeling_sliced"


@torch.no_grad()
def slice_checkpoint(
    source: str | Path,
    neurons: NeuronSet,
    folder: str | Path,
    *,
    with_code: bool = False,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint without these neurons: its logits are those of the model with the neurons at zero.

    Rows of the gate and up projections and columns of the down projection are cut out, and the configuration gets the
    new width, so that plain transformers loads the folder. The written checkpoint is loaded again and its logits are
    compared with those under the intervention before the folder gets its name.

    Args:
        source: `"demo"`, a local folder or a Hub id, as for `load_model`.
        neurons: The neurons to cut out, of all languages of the set: `plan["fr"]`. Most configurations have one width
            for all layers, so as many neurons of each layer.
        folder: A new or empty folder.
        with_code: For layers of different widths, and for classes whose configuration has no width (BLOOM): write a
            class of 20 lines into the folder, which transformers loads with `trust_remote_code=True`.
        revision: Branch, tag or commit of a Hub model.
        dtype: The dtype of the weights; by default the checkpoint's own.
        options: Options of `AutoModelForCausalLM.from_pretrained`, see `load_model`.

    Returns:
        The folder, with weights, configuration, tokenizer, a README and `lsn_lens.json`.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: No neurons, another basis than "mlp", a set of another model, a layer left empty, or logits that
            differ.
        DoesNotApply: An MLP that cannot be cut, or widths that the configuration cannot hold.
    """
    folder = check_places(source, folder)
    _check_set(neurons)
    name, options = located(source_of(source), given({**options, "revision": revision}))
    cuts, ids, expected, provenance = under_hooks(name, neurons, dtype, options, _cuts)
    hf_model = read_weights(name, expected.dtype, options, attention=None).eval()
    before = sum(weight.numel() for weight in hf_model.parameters())
    config, kind = _narrow(hf_model, cuts, with_code)
    for cut in cuts:
        cut.apply(hf_model)
    hf_model.config = config
    provenance |= {"widths": [each.width for each in cuts if not each.outputs], "parameters_before": before,
                   "parameters": sum(weight.numel() for weight in hf_model.parameters())}  # fmt: skip

    def finish(partial: Path) -> None:
        if kind is not type(hf_model):
            _write_code(partial, type(hf_model))
        again = kind.from_pretrained(partial, dtype=expected.dtype, attn_implementation="eager").to(ids.device).eval()
        provenance["logits_difference"] = difference = distance(again(ids).logits, expected)
        allowed = structure.TOLERANCE.get(expected.dtype, structure.HALF_TOLERANCE)
        if not difference <= allowed:
            raise DoesNotApply(
                f"{source} ({type(hf_model).__name__}): without the neurons, logits differ from those with the neurons "
                f"at zero by {difference:.2g} standard deviations; at most {allowed:g} is allowed. Its MLP cannot be "
                "cut. Nothing was written."
            )

    tokenizer = read_tokenizer(name, options)
    # transformers renames no weights of code
    own_names: dict[str, Any] = {} if kind is type(hf_model) else {"save_original_format": False}
    return write_checkpoint(folder, hf_model, tokenizer, provenance, finish, "cut out", **own_names)


@dataclass(frozen=True)
class Cut:
    """The outputs or inputs that one Hugging Face module keeps.

    Attributes:
        module: Its name.
        outputs: Whether outputs are cut, else inputs.
        keep: The rows or columns that stay.
        of: How many there were.
    """

    module: str
    outputs: bool
    keep: Tensor
    of: int

    @property
    def width(self) -> int:
        """Rows or columns that stay."""
        return len(self.keep)

    def apply(self, hf_model: nn.Module) -> None:
        """Replace the weights by smaller ones."""
        module: Any = hf_model.get_submodule(self.module)
        keep = self.keep.to(module.weight.device)
        axis = int(self.outputs == isinstance(module, Conv1D))  # a Conv1D stores its weight transposed
        module.weight = nn.Parameter(module.weight.index_select(axis, keep), requires_grad=False)
        if self.outputs and module.bias is not None:
            module.bias = nn.Parameter(module.bias.index_select(0, keep), requires_grad=False)


def _check_set(neurons: NeuronSet) -> None:
    check_kind("neurons", neurons, NeuronSet, "a set such as plan['fr']")
    other = [basis for basis, mask in neurons.masks.items() if basis != "mlp" and bool(mask.any())]
    if other:
        raise ValueError(f"the set has units of {other}: only neurons of the basis 'mlp' can be cut out.")
    if not len(neurons):
        raise ValueError(f"the set {neurons.method!r} has no neurons: there is nothing to cut out.")
    empty = neurons.units("mlp").all(1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"the set {neurons.method!r} leaves the layers {empty} without a neuron: keep one or more in each layer. "
            f"(It is cut out for all its languages {list(neurons.languages)} together.)"
        )


def _cuts(bridge: Model, neurons: NeuronSet) -> list[Cut]:
    """The rows and columns that stay, layer by layer; rows of a fused projection together."""
    anatomy, units, cuts = anatomy_of(bridge), neurons.units("mlp"), []
    sites = ["mlp_pre", *(["mlp_up"] if structure.is_gated(bridge) else []), "mlp_post"]
    for layer in range(len(units)):
        gone: dict[tuple[str, bool], Tensor] = {}
        for site in sites:
            module, outputs, order = place(anatomy, SITES[site].hook_name(layer), "mlp")
            if len(order) != units.shape[1] or outputs != (site != "mlp_post"):
                raise DoesNotApply(
                    f"{type(bridge.original_model).__name__}, layer {layer}: {module} does not have the layer's "
                    f"{units.shape[1]} neurons as its {'inputs' if site == 'mlp_post' else 'outputs'}, so its MLP "
                    "cannot be cut."
                )
            gone[module, outputs] = torch.cat([gone.get((module, outputs), order[:0]), order[units[layer]]])
        for (module, outputs), index in gone.items():
            weight = by_output(anatomy.bare.get_submodule(module))
            stays = torch.ones(weight.shape[0 if outputs else 1], dtype=torch.bool)
            stays[index] = False
            cuts.append(Cut(module, outputs, stays.nonzero()[:, 0], len(stays)))
    return cuts


def _narrow(hf_model: Any, cuts: list[Cut], with_code: bool) -> tuple[Any, Any]:
    """The configuration of the smaller model, and the class that builds it.

    Raises:
        DoesNotApply: The configuration has no field for the width or widths, and no code may be written.
    """
    shapes = {name: list(weight.shape) for name, weight in hf_model.named_parameters()}
    for cut in cuts:
        module: Any = hf_model.get_submodule(cut.module)
        shapes[f"{cut.module}.weight"][int(cut.outputs == isinstance(module, Conv1D))] = cut.width
        if cut.outputs and module.bias is not None:
            shapes[f"{cut.module}.bias"][0] = cut.width
    widths = {cut.width for cut in cuts if not cut.outputs}
    for field in WIDTHS if len(widths) == 1 else ():
        config = copy.deepcopy(hf_model.config)
        if hasattr(config, field) and not isinstance(getattr(config, field), list):
            setattr(config, field, min(widths))
            if _shapes(type(hf_model), config) == shapes:
                return config, type(hf_model)
    if not with_code:
        why = "has no field for the width of its MLPs" if len(widths) == 1 else (
            f"holds one width, and the layers keep {sorted(widths)} neurons"
        )  # fmt: skip
        raise DoesNotApply(
            f"{type(hf_model).__name__}: its configuration {why}. Give with_code=True, which writes a class into the "
            "folder that transformers loads with trust_remote_code=True"
            + (", or a plan with layers='uniform'." if len(widths) > 1 else ".")
        )
    config = copy.deepcopy(hf_model.config)
    sizes: dict[str, list[int]] = {}
    for cut in cuts:
        weight = by_output(hf_model.get_submodule(cut.module))
        size = sizes.setdefault(cut.module, [weight.shape[1], weight.shape[0]])
        size[int(cut.outputs)] = cut.width
    config.sliced = sizes
    config.auto_map = {"AutoModelForCausalLM": f"{CODE}.{type(hf_model).__name__}"}
    return config, sliced_model.narrowed(type(hf_model))


def _shapes(kind: Any, config: Any) -> Mapping[str, list[int]]:
    """The shapes of all weights of a model of this configuration."""
    with torch.device("meta"):
        return {name: list(weight.shape) for name, weight in kind._from_config(config).named_parameters()}


def _write_code(folder: Path, kind: Any) -> None:
    lines = [inspect.getsource(sliced_model), f"\n\n{kind.__name__} = narrowed({kind.__name__})\n"]
    head, rest = "".join(lines).split("from transformers.pytorch_utils", 1)
    text = f"{head}from transformers import {kind.__name__}\nfrom transformers.pytorch_utils{rest}"
    (folder / f"{CODE}.py").write_text(text, encoding="utf-8")
