"""Write new units into a copy of a model, and calibrate their output for the requested effect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from lsn_lens.bars import tqdm
from lsn_lens.model.weights import by_output
from lsn_lens.planted.cells import ALWAYS, Cell, Concept, inside_and_known
from lsn_lens.planted.directions import separate
from lsn_lens.planted.ground import Ground, mean_loss
from lsn_lens.planted.reading import Inputs
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.unread import unread_direction
from lsn_lens.planted.weights import Reads, Unit, unit_for, widened

REFITS = 3  # of what units read, since what those of earlier layers write changes it; then a last one
ROUNDS = 3  # of finding out how much must be written, after each but the last
CALIBRATE = 800  # tokens of a language for that
FIRST = 0.03  # initial size of a unit's output, relative to the residual stream's norm


@dataclass(frozen=True, eq=False)
class Written:
    """A unit in its place.

    Attributes:
        cell: What it is for.
        index: Where it is in the widened layer.
        unit: Its rows.
        column: The output weights; for a unit that is not "ordinary", a direction or zero until calibration.
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
    room = ground.room
    most = max(sum(cell.layer == layer for cell in cells) for layer in range(len(ground.names)))
    more = room.fitting(ground.hf_model, ground.names[0].down, most)
    orders = [room.order(more, generator) for _ in ground.names]
    wide = _widened(ground, orders)
    nobody = Concept(ground.languages)
    planned: list[tuple[Cell, int]] = []
    for layer, order in enumerate(orders):
        mine = [cell for cell in cells if cell.layer == layer]
        mine += [Cell(ROLES["silent"], nobody, layer)] * (more - len(mine))  # all layers are equally wide
        places = order.argsort()[room.width :]
        planned += zip(mine, places[torch.randperm(more, generator=generator)].tolist(), strict=True)
    sizes = _first_sizes(ground, [cell for cell, _ in planned])
    written: list[Written] = []
    for last in tqdm([False] * REFITS + [True], desc="plant: fits", disable=not progress):
        inputs = ground.read(wide, ground.find)
        draws = torch.Generator().manual_seed(seed)
        written = [
            each
            for layer in range(len(ground.names))
            for each in _units(ground, wide, layer, [row for row in planned if row[0].layer == layer], inputs, draws)
        ]
        _set_rows(ground, wide, written)
        if not last:
            sizes = _calibrated(ground, wide, written, sizes, effect)
    _set_columns(ground, wide, written, sizes @ language_drifts(ground))
    return wide, written


def _widened(ground: Ground, orders: Sequence[Int[Tensor, "unit"]]) -> Any:
    """The model with room for more units, which do nothing yet."""
    room, tensors = ground.room, ground.hf_model.state_dict()
    for names, order in zip(ground.names, orders, strict=True):
        queries = room.queries(order)
        outputs = {names.gate: order, names.up: order, names.keys: order, names.queries: queries}
        for name, places in [*outputs.items(), (names.down, queries)]:
            if name is not None:
                found = widened(ground.hf_model.get_submodule(name), places, outputs=name != names.down)
                tensors |= {f"{name}.{key}": each for key, each in found.items()}
    config = room.widen(ground.hf_model.config, len(orders[0]) - room.width)
    config.dtype = torch.float32
    wide = AutoModelForCausalLM.from_config(config).eval()
    wide.load_state_dict(tensors)
    wide.tie_weights()
    return wide


def _units(
    ground: Ground, wide: Any, layer: int, planned: Sequence[tuple[Cell, int]], inputs: Inputs, seed: torch.Generator
) -> list[Written]:
    """The new units of one layer."""
    acts, old = inputs.layers[layer], ground.projections(layer)
    ordinary = float(old.post(acts).abs().mean(0).median()) or 1.0
    norm = float(old.down.weight.norm() / by_output(old.down).shape[1] ** 0.5)  # of an ordinary unit's output weights
    none = torch.zeros(acts.shape[1])
    concepts = list(dict.fromkeys([Concept(ground.languages), *(cell.concept for cell, _ in planned)]))
    inside, known = inside_and_known(concepts, inputs, ground.scripts, ground.languages)
    directions = separate(acts, inside, known)
    always = directions[0] if float(((acts @ directions[0]) > 0).float().mean()) >= ALWAYS[ground.part] else none
    new = []
    for cell, index in planned:
        place = concepts.index(cell.concept)
        reads = Reads(acts, inputs.language, inside[:, place], directions[place], always)
        unit = unit_for(cell.role, old, reads, ordinary, seed)
        drawn = torch.randn(acts.shape[1], generator=seed)
        column = drawn / drawn.norm() * norm if cell.role.writes == "ordinary" else none
        if cell.role.writes == "unread":
            text = ground.find.of(ground.languages.index(cell.concept.languages[0]))
            column = unread_direction(wide, ground.names[layer].down, text)
        new.append(Written(cell, index, unit, column))
    return new


def _set_rows(ground: Ground, wide: Any, written: Sequence[Written]) -> None:
    for each in written:
        names, index = ground.names[each.cell.layer], each.index
        by_output(wide.get_submodule(names.gate))[index] = each.unit.gate
        if names.up is not None and each.unit.up is not None:
            by_output(wide.get_submodule(names.up))[index] = each.unit.up
        _write(ground, wide, each, each.column)


def _write(ground: Ground, wide: Any, each: Written, column: Float[Tensor, "d_model"]) -> None:
    """Make that the output weights of a unit, in equal shares where several read it."""
    places = ground.room.writers(torch.tensor([each.index]))[0]
    by_output(wide.get_submodule(ground.names[each.cell.layer].down))[:, places] = column[:, None] / len(places)


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
        columns = _set_columns(ground, wide, written, sizes @ drifts)
        clean = [mean_loss(wide, text) for text in texts]
        for place in sizes.any(1).nonzero()[:, 0].tolist():
            _write(ground, wide, written[place], torch.zeros_like(columns[place]))
            for language in sizes[place].nonzero()[:, 0].tolist():
                rise = mean_loss(wide, texts[language]) - clean[language]
                sizes[place, language] *= min(max((effect / max(rise, effect / 16)) ** 0.5, 0.5), 2.0)
            _write(ground, wide, written[place], columns[place])
    _set_columns(ground, wide, written, sizes @ drifts)
    return sizes


def _set_columns(
    ground: Ground, wide: Any, written: Sequence[Written], needs: Float[Tensor, "unit d_model"]
) -> Float[Tensor, "unit d_model"]:
    """What each unit writes; returned as set.

    A needed one adds what its languages need, and the always-on one of its layer takes all of that away; an unread one
    writes as much as needed ones do on average.
    """
    columns = torch.stack([each.column for each in written])
    layers = torch.tensor([each.cell.layer for each in written])
    adds = needs.norm(dim=1)
    much = float(adds[adds > 0].mean()) if adds.any() else FIRST * float(ground.inputs[0].layers[0].norm(dim=1).mean())
    for place, each in enumerate(written):
        moves = {
            "needed": needs[place],
            "balance": -needs[layers == layers[place]].sum(0),
            "unread": each.column * much,
        }.get(each.cell.role.writes)
        if moves is not None:
            columns[place] = moves / each.unit.size
        _write(ground, wide, each, columns[place])
    return columns
