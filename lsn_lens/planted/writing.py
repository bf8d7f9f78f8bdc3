"""Write new units into a copy of a model, and find out how much each must write for the effect asked for."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lsn_lens.anatomy import by_output
from lsn_lens.planted.cells import ALWAYS, Cell, Concept, inside_and_known
from lsn_lens.planted.directions import separate
from lsn_lens.planted.ground import Ground, mean_loss
from lsn_lens.planted.reading import Inputs, mlp_inputs
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.weights import Reads, Unit, unit_for, widened

REFITS = 3  # of what units read, since what those of earlier layers write changes it; then a last one
ROUNDS = 3  # of finding out how much must be written, after each but the last
CALIBRATE = 800  # tokens of a language for that
FIRST = 0.03  # of the residual stream's norm: what a unit writes to begin with


@dataclass(frozen=True, eq=False)
class Written:
    """A unit in its place.

    Attributes:
        cell: What it is for.
        index: Where it is in the widened layer.
        unit: Its rows.
        column: What it writes apart from what languages need.
    """

    cell: Cell
    index: int
    unit: Unit
    column: Float[Tensor, "d_model"]


def write_units(
    ground: Ground, cells: Sequence[Cell], effect: float | int, seed: int, progress: bool
) -> tuple[Any, list[Written]]:
    """A widened Hugging Face model, and the units in it."""
    generator = torch.Generator().manual_seed(seed)
    most = max(sum(cell.layer == layer for cell in cells) for layer in range(len(ground.names)))
    orders = [torch.randperm(ground.width + most, generator=generator) for _ in ground.names]
    wide = _widened(ground, orders, most)
    nobody = Concept(ground.languages)
    planned: list[tuple[Cell, int]] = []
    for layer, order in enumerate(orders):
        mine = [cell for cell in cells if cell.layer == layer]
        mine += [Cell(ROLES["silent"], nobody, layer)] * (most - len(mine))  # all layers are equally wide
        planned += zip(mine, order.argsort()[ground.width :].tolist(), strict=True)
    sizes = _first_sizes(ground, [cell for cell, _ in planned])
    written: list[Written] = []
    for last in tqdm([False] * REFITS + [True], desc="plant: fits", disable=not progress):
        inputs = mlp_inputs(wide, [gate for gate, _, _ in ground.names], ground.find)
        draws = torch.Generator().manual_seed(seed)
        written = [
            each
            for layer in range(len(ground.names))
            for each in _units(ground, layer, [row for row in planned if row[0].layer == layer], inputs, draws)
        ]
        _set_rows(ground, wide, written)
        if not last:
            sizes = _calibrated(ground, wide, written, sizes, effect)
    _set_columns(ground, wide, written, sizes @ language_drifts(ground))
    return wide, written


def _widened(ground: Ground, orders: Sequence[Int[Tensor, "unit"]], most: int) -> Any:
    """The model with room for more units, which do nothing yet."""
    tensors: dict[str, Tensor] = {}
    for layer, order in enumerate(orders):
        for number, name in enumerate(ground.names[layer]):
            if name is not None:
                found = widened(ground.hf_model.get_submodule(name), most, order, outputs=number < 2)
                tensors |= {f"{name}.{key}": each for key, each in found.items()}
    config = copy.deepcopy(ground.hf_model.config)
    setattr(config, ground.width_name, ground.width + most)
    config.dtype = torch.float32
    wide = AutoModelForCausalLM.from_config(config).eval()
    wide.load_state_dict({**ground.hf_model.state_dict(), **tensors})
    wide.tie_weights()
    return wide


def _units(
    ground: Ground, layer: int, planned: Sequence[tuple[Cell, int]], inputs: Inputs, generator: torch.Generator
) -> list[Written]:
    """The new units of one layer."""
    acts, mlp = inputs.layers[layer], ground.mlp(layer)
    ordinary = float(mlp.post(acts).abs().mean(0).median()) or 1.0
    norm = float(mlp.down.weight.norm() / ground.width**0.5)  # of an ordinary unit's output weights
    none = torch.zeros(acts.shape[1])
    concepts = list(dict.fromkeys([Concept(ground.languages), *(cell.concept for cell, _ in planned)]))
    inside, known = inside_and_known(concepts, inputs, ground.scripts, ground.languages)
    directions = separate(acts, inside, known)
    always = directions[0] if float(((acts @ directions[0]) > 0).float().mean()) >= ALWAYS else none
    new = []
    for cell, index in planned:
        place = concepts.index(cell.concept)
        reads = Reads(acts, inputs.language, inside[:, place], directions[place], always)
        unit = unit_for(cell.role, mlp, reads, ordinary, generator)
        drawn = torch.randn(acts.shape[1], generator=generator)
        column = drawn / drawn.norm() * norm if cell.role.writes == "ordinary" else none
        new.append(Written(cell, index, unit, column))
    return new


def _set_rows(ground: Ground, wide: Any, written: Sequence[Written]) -> None:
    for each in written:
        gate, up, down = ground.names[each.cell.layer]
        by_output(wide.get_submodule(gate))[each.index] = each.unit.gate
        if up is not None and each.unit.up is not None:
            by_output(wide.get_submodule(up))[each.index] = each.unit.up
        by_output(wide.get_submodule(down))[:, each.index] = each.column


def language_drifts(ground: Ground) -> Float[Tensor, "language d_model"]:
    """For each language the direction that makes its own tokens more likely, and no other language's less so."""
    find, _ = ground.inputs
    counts = [
        torch.bincount(find.ids[find.language == place], minlength=len(ground.unembedding)).float()
        for place in range(len(ground.languages))
    ]
    shares = torch.stack([each / each.sum() for each in counts])
    best, runner_up = shares.topk(2, dim=0).values
    own = torch.where(shares == best, best - runner_up, 0.0) @ ground.unembedding  # of tokens that a language has most
    dual = torch.linalg.pinv(own).T  # each row is orthogonal to all other languages' rows
    return dual / dual.norm(dim=1, keepdim=True)


def _first_sizes(ground: Ground, cells: Sequence[Cell]) -> Float[Tensor, "unit language"]:
    """How much each unit adds for each language that needs it, to begin with."""
    sizes = torch.zeros(len(cells), len(ground.languages))
    for place, cell in enumerate(cells):
        if cell.role.writes == "needed":
            own = [ground.languages.index(label) for label in cell.concept.languages]
            sizes[place, own] = FIRST * float(ground.inputs[0].layers[cell.layer].norm(dim=1).mean())
    return sizes


def _calibrated(
    ground: Ground, wide: Any, written: Sequence[Written], sizes: Float[Tensor, "unit language"], effect: float | int
) -> Float[Tensor, "unit language"]:
    """Scale what each needed unit adds, and what is taken away for it, until its languages lose the effect."""
    drifts, sizes = language_drifts(ground), sizes.clone()
    texts = [ground.find.of(place).head(CALIBRATE) for place in range(len(ground.languages))]
    for _ in range(ROUNDS):
        _set_columns(ground, wide, written, sizes @ drifts)
        clean = [mean_loss(wide, text) for text in texts]
        for place in sizes.any(1).nonzero()[:, 0].tolist():
            each = written[place]
            column = by_output(wide.get_submodule(ground.names[each.cell.layer][2]))[:, each.index]
            kept = column.clone()
            column.zero_()
            for language in sizes[place].nonzero()[:, 0].tolist():
                rise = mean_loss(wide, texts[language]) - clean[language]
                sizes[place, language] *= min(max((effect / max(rise, effect / 16)) ** 0.5, 0.5), 2.0)
            column.copy_(kept)
    _set_columns(ground, wide, written, sizes @ drifts)
    return sizes


def _set_columns(ground: Ground, wide: Any, written: Sequence[Written], needs: Float[Tensor, "unit d_model"]) -> None:
    """Each needed unit adds what its languages need; the always-on unit of its layer takes all of that away."""
    for layer, names in enumerate(ground.names):
        weight = by_output(wide.get_submodule(names[2]))
        mine = [place for place, each in enumerate(written) if each.cell.layer == layer]
        for place in mine:
            each = written[place]
            if each.cell.role.writes in ("needed", "balance"):
                adds = needs[place] if each.cell.role.writes == "needed" else -needs[mine].sum(0)
                weight[:, each.index] = adds / each.unit.size
