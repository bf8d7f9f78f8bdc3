"""An intervention written down for other tools, which change the Hugging Face model itself."""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.interventions.actions import Action
from lsn_lens.interventions.control_vectors import added_vectors
from lsn_lens.interventions.intervening import Intervention, hooks_of, intervene, intervention_of
from lsn_lens.model import structure
from lsn_lens.model.entry import check_plain
from lsn_lens.model.probing import TOKENS, probe_ids
from lsn_lens.model.structure import Model
from lsn_lens.model.weights import Anatomy, anatomy_of, place, unwrapped
from lsn_lens.neurons.identity import origin_of, whose
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, WRITE_SITE
from lsn_lens.refusal import DoesNotApply

Tool = Literal["transformers", "nnsight", "pyvene", "steering_vectors"]
Place = tuple[str, str]  # module and side
Affine = tuple[float, float]  # factor and shift
LAYER_TYPES = {"resid": "decoder_block", "attn_out": "self_attn", "mlp_out": "mlp"}  # basis -> of steering-vectors
# within a layer, as they are computed: nnsight reads modules in this order alone
ORDER = ("q", "k", "v", "z", "attn_out", "mlp_pre", "mlp_up", "mlp", "mlp_out", "resid")
HEAD = '''"""{told}."""

import json

import torch

# at the input or output of each module: units become factor * unit + shift
EDITS = json.loads("""
{edits}
""")


def changed(given, edit):
    """A tensor [..., unit], or the first of a tuple, with the units of one edit changed."""
    if isinstance(given, tuple):
        return (changed(given[0], edit), *given[1:])
    new, units = given.clone(), edit["units"]
    factor, shift = (torch.tensor(edit[key], dtype=new.dtype, device=new.device) for key in ("factor", "shift"))
    new[..., units] = factor * new[..., units] + shift
    return new


'''
APPLY = {
    "transformers": '''def apply(model):
    """Put hooks on a model of transformers; each.remove() of all that is returned restores it."""
    handles = []
    for edit in EDITS:
        module = model.get_submodule(edit["module"])
        if edit["side"] == "input":
            handles.append(module.register_forward_pre_hook(lambda _, given, edit=edit: changed(given, edit)))
        else:
            handles.append(module.register_forward_hook(lambda _, given, made, edit=edit: changed(made, edit)))
    return handles
''',
    "nnsight": '''def apply(model):
    """Change the units of a LanguageModel: call it inside `with model.trace(text):`."""
    for edit in EDITS:
        module = model.get(edit["module"])
        setattr(module, edit["side"], changed(getattr(module, edit["side"]), edit))
''',
    "pyvene": '''def apply(model):
    """An IntervenableModel of a model of transformers; the second of `apply(model)(inputs)` is the changed output."""
    import pyvene

    return pyvene.IntervenableModel(
        [
            {
                "component": f"{edit['module']}.{edit['side']}",
                "intervention": lambda base, source, edit=edit, **_: changed(base, edit),
            }
            for edit in EDITS
        ],
        model=model,
    )
''',
}


def recipe(
    model: Model, neurons: NeuronSet | Intervention, action: Action | str | None = None, tool: Tool = "transformers"
) -> str | dict[str, Any]:
    """What `intervene` does with a model, written down for another tool, which then needs no lsn_lens.

    The logits of the plain Hugging Face model under the edits are first compared with those under the intervention.

    Args:
        model: A TransformerBridge, `lsn.load_model(name, backend="bridge")`.
        neurons: A set such as `found["fr"]`, or an `Intervention`, which has its own actions.
        action: As for `intervene`; at all tokens, and of each unit by itself (`zero`, `set_to`, `scale`, `add`).
        tool: "transformers", "nnsight" or "pyvene": the text of a Python file, whose function `apply(model)` does it.
            "steering_vectors": the arguments of its class `SteeringVector`.

    Returns:
        The text, or `{"layer_activations": {layer: Tensor [d_model]}, "layer_type": ...}`.

    Raises:
        DoesNotApply: A HookedTransformer; an action that depends on the token or on other units; nothing to change; for
            steering_vectors, anything but additions to one of the bases `resid`, `attn_out` and `mlp_out`.
        ValueError: An unknown tool, hooks on the model, units that are no inputs or outputs of one module, logits that
            differ, or errors of `intervene`.
    """
    if tool not in get_args(Tool):
        raise ValueError(f"tool={tool!r}: expected one of {list(get_args(Tool))}.")
    check_plain(model)
    what = intervention_of(neurons, action)
    if not hooks_of(model, what):
        raise DoesNotApply(f"{what.name!r} has no units: there is nothing to write down.")
    if tool == "steering_vectors":
        return _steering_vector(what)
    lines = ",\n".join(map(json.dumps, _edits(model, what)))
    told = f"{what.name}: {len(what):,} units of {whose(origin_of(model))}"
    head = HEAD.format(told=told.replace("\\", "/").replace('"', "'"), edits=f"[\n{lines}\n]")
    _check(model, what, head + APPLY["transformers"])
    return head + APPLY[tool]


def _steering_vector(what: Intervention) -> dict[str, Any]:
    bases = {basis for neurons, _ in what.steps for basis in neurons.masks}
    basis = next(iter(bases))
    if len(bases) > 1 or basis not in LAYER_TYPES:
        raise DoesNotApply(f"{what.name!r} is on {sorted(bases)}: steering-vectors adds to one of {list(LAYER_TYPES)}.")
    vectors = added_vectors(what, basis)
    layers = vectors.any(-1).nonzero()[:, 0].tolist()
    return {"layer_activations": {layer: vectors[layer] for layer in layers}, "layer_type": LAYER_TYPES[basis]}


def _edits(model: Model, what: Intervention) -> list[dict[str, Any]]:
    """One edit per module and side, in the order in which they are computed; steps on one unit become one map."""
    anatomy, maps, ranks = anatomy_of(model), dict[Place, dict[int, Affine]](), dict[Place, tuple[int, int]]()
    for neurons, action in what.steps:
        for basis in neurons.masks:
            mask = neurons.units(basis)
            pairs = iter(_affine(model, action, basis, mask).tolist())
            for layer in mask.any(1).nonzero()[:, 0].tolist():
                at, rows = _place(anatomy, basis, layer, mask.shape[1])
                ranks[at] = min(ranks.get(at, (layer, len(ORDER))), (layer, ORDER.index(basis)))
                own = maps.setdefault(at, {})
                for row in rows[mask[layer]].tolist():
                    (factor, shift), (old, moved) = next(pairs), own.get(row, (1.0, 0.0))
                    own[row] = (factor * old, factor * moved + shift)
    edits = []
    for module, side in sorted(ranks, key=ranks.__getitem__):
        units, pairs = zip(*sorted(maps[module, side].items()), strict=True)
        both = zip(("factor", "shift"), zip(*pairs, strict=True), strict=True)
        edits.append({"module": module, "side": side, "units": units} | {key: _short(each) for key, each in both})
    return edits


def _short(values: tuple[float, ...]) -> float | tuple[float, ...]:
    """One number where all are equal."""
    return values[0] if len(set(values)) == 1 else values


def _affine(model: Model, action: Action, basis: str, mask: Tensor) -> Float[Tensor, "unit 2"]:
    """Factor and shift of each chosen unit, by layer; actions are functions, so they are tried."""
    values: Any = action.values[basis] if isinstance(action.values, Mapping) else action.values
    if action.where != "all" or (isinstance(values, Tensor) and values.ndim != 2):
        raise DoesNotApply(f"action {action.name!r} depends on the token: a recipe changes all tokens alike.")
    values = values.cpu()[mask].double() if isinstance(values, Tensor) else values
    tried = torch.linspace(-3, 2, int(mask.sum()), dtype=torch.double)
    shift = action.change(torch.zeros_like(tried), values)
    factor = action.change(torch.ones_like(tried), values) - shift
    if not torch.allclose(action.change(tried, values), factor * tried + shift):
        raise DoesNotApply(f"action {action.name!r} is not factor * unit + shift of each unit by itself.")
    if action.mlp_site == "mlp_act" and basis == "mlp" and structure.is_gated(model) and shift.any():
        raise DoesNotApply(f"action {action.name!r} acts on act(gate), which no module of the model returns by itself.")
    return torch.stack([factor, shift], 1)


def _place(anatomy: Anatomy, basis: str, layer: int, width: int) -> tuple[Place, Tensor]:
    """Module and side that the units of one layer are at, and the index of each unit there."""
    hook = SITES[WRITE_SITE[basis]].hook_name(layer)
    if basis == "resid":
        name = anatomy.name(anatomy.owners[id(anatomy.bridge.hook_dict[hook])][0])
        return (name or "", "output"), torch.arange(width)
    name, outputs, order = place(anatomy, hook, basis)
    if len(order) != width:
        raise ValueError(f"basis {basis!r}, layer {layer}: {width} units, but {len(order)} of them in {name}.")
    return (name, "output" if outputs else "input"), order


@torch.no_grad()
def _check(model: Model, what: Intervention, text: str) -> None:
    """Compare the logits of the plain model under the recipe for transformers with those under the intervention."""
    ids = probe_ids(structure.vocabulary_size(model), TOKENS)[0][None].to(structure.device_of(model))
    recipe: dict[str, Any] = {}
    exec(text, recipe)
    plain = unwrapped(model)
    with intervene(model, what):
        expected = model(ids, return_type="logits")
    recipe["apply"](plain)  # hooks on copies of the model's modules
    difference = float((plain(ids).logits - expected).float().abs().max() / expected.float().std())
    allowed = structure.TOLERANCE.get(expected.dtype, structure.HALF_TOLERANCE)
    if not difference <= allowed:
        raise ValueError(
            f"under the recipe, logits differ from those under {what.name!r} by {difference:.2g} standard deviations; "
            f"at most {allowed:g} is allowed. Use lsn.intervene."
        )
