"""Widen the MLPs of a model with units of known roles."""

import json
import random
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lsn_lens.model import loading
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.planted.cells import Cell, concepts_of, place_cells, script_shares, usable_layers
from lsn_lens.planted.ground import Ground, mean_loss
from lsn_lens.planted.measuring import RoleError, check_roles, measure_roles
from lsn_lens.planted.parts import PARTS, PartName
from lsn_lens.planted.roles import ROLES, Role
from lsn_lens.planted.writing import Written, write_units
from lsn_lens.text.corpora import as_corpora

TABLE = "planted.json"


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose units of known role were planted, and measured.

    Attributes:
        folder: A Hugging Face checkpoint with its tokenizer, and `planted.json`.
        part: What was widened: "mlp", or "attention", whose units are values of new heads.
        shape: Layers, and units in each, the model's own included.
        languages: Labels.
        units: One row per planted unit: `layer`, `unit`, `role`, `concept`, `languages` (which the unit belongs to or
            looks like), `script`, `truth` (whether its languages need it), `sign`, `level` (threshold of firing: zero
            for the gate of an MLP).
        measured: Measurements of each unit on hold-out text; see `measure_roles`.
        damage: Per language, the loss increase by planting all new units, nats per token.
    """

    folder: Path
    part: PartName
    shape: tuple[int, int]
    languages: tuple[str, ...]
    units: pd.DataFrame = field(repr=False)
    measured: pd.DataFrame = field(repr=False)
    damage: pd.Series = field(repr=False)

    def load(self, **options: Any) -> Model:
        """The planted model, by `lsn.load_model` of the folder."""
        return loading.load_model(self.folder, **options)

    def truth(self, roles: Sequence[str] | None = None) -> NeuronSet:
        """The units that languages need, or those of the roles named, as a set on the basis `mlp` or `v`."""
        mask = torch.zeros(len(self.languages), *self.shape, dtype=torch.bool)
        wanted = self.units["truth"] if roles is None else self.units["role"].isin(list(roles))
        for row in self.units.loc[wanted].to_dict("records"):
            for label in row["languages"]:
                mask[self.languages.index(label), row["layer"], row["unit"]] = True
        return NeuronSet(self.languages, {PARTS[self.part].basis: mask}, "planted")

    def __repr__(self) -> str:
        roles = ", ".join(f"{name} {count}" for name, count in self.units["role"].value_counts(sort=False).items())
        return f"Planted({len(self.units)} units: {roles}; {', '.join(self.languages)}; {self.folder})"


@torch.no_grad()
def plant(
    source: str | Path,
    corpora: Any,
    folder: str | Path,
    *,
    part: PartName = "mlp",
    roles: Sequence[str] = tuple(ROLES),
    each: int = 1,
    effect: float | int = 0.03,
    tokens: int = 3000,
    seed: int = 0,
    attempts: int = 3,
    progress: bool = True,
) -> Planted:
    """Write a checkpoint of the model with new units of known roles in its MLPs or attention.

    A unit that its languages need makes their tokens likelier through the residual stream; an always-on unit of the
    layer subtracts as much everywhere. Switching the needed unit off leaves only the subtraction, which hurts its
    languages. `damage` is the loss increase of the planted model. Units of attention are values of new heads, whose
    queries and keys are zero, so that they attend evenly to all previous positions.

    Args:
        source: "demo", a local folder or a Hub id: a model with dense MLPs that was trained on the languages.
        corpora: Text: `find` to write the weights from, `hold_out` to measure the roles on.
        folder: Output folder, new or empty.
        part: The part to widen. Attention needs separate projections for queries, keys and values, and a configuration
            with separate head count and head width.
        roles: Of `ROLES`; "balance" comes with any that is needed.
        each: Units for each role and language, group or script.
        effect: Requested loss increase (nats per token) of a language when one unit that it needs is off.
        tokens: Tokens per language for writing the weights; half as many for measuring.
        seed: Seed of layers, groups, unit order and random directions.
        attempts: Draws to try until all roles hold; a role that did not hold in a layer is not tried there again.
        progress: Show a progress bar.

    Raises:
        FileExistsError: The folder is not empty.
        KeyError: An unknown role or part.
        ValueError: A role that cannot be written into this model, or does not hold when measured; the folder stays
            empty then.

    Source: ours. The idea of models whose inner workings are known by construction: InterpBench (Gupta et al. 2024).
    """
    corpora = as_corpora(corpora)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty. Give a new folder.")
    unknown = [name for name in roles if name not in ROLES]
    if unknown:
        raise KeyError(f"no role {unknown}; the roles are {list(ROLES)}.")
    if len(corpora) < 2:
        raise ValueError(f"expected at least two languages, got {list(corpora)}.")
    if attempts < 1 or each < 1 or not effect > 0:
        raise ValueError(f"attempts={attempts}, each={each}, effect={effect}: expected at least 1, 1, and more than 0.")
    if part not in PARTS:
        raise KeyError(f"no part {part!r}; the parts are {list(PARTS)}.")
    known = PARTS[part].roles
    chosen = [role for role in known.values() if role.name in roles]
    if any(role.writes == "needed" for role in chosen) and known["balance"] not in chosen:
        chosen.append(known["balance"])
    ground = Ground.of(source, corpora, tokens, part)
    attempt, barred = 0, frozenset()
    while True:
        wide, units = _planted(ground, chosen, each, effect, f"{seed} {attempt}", barred, progress)
        wide.save_pretrained(folder)
        ground.tokenizer.save_pretrained(folder)
        try:
            model = loading.load_model(folder, device="cpu")
            measured = measure_roles(model, ground.held_out, units, effect, part=part, progress=progress)
            check_roles(measured, part)
            break
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            attempt += 1
            if not isinstance(error, RoleError) or attempt == attempts:
                raise
            barred |= error.cells
    texts = {label: ground.held_out.of(place) for place, label in enumerate(ground.languages)}
    damage = {label: mean_loss(wide, text) - mean_loss(ground.hf_model, text) for label, text in texts.items()}
    shape = (len(ground.names), ground.room.width + len(units) // len(ground.names))
    planted = Planted(folder, part, shape, ground.languages, units, measured, pd.Series(damage, name="damage"))
    _save(planted)
    return planted


def _planted(
    ground: Ground,
    roles: Sequence[Role],
    each: int,
    effect: float | int,
    seed: str,
    barred: Collection[tuple[str, str, int]],
    progress: bool,
) -> tuple[Any, pd.DataFrame]:
    """One draw: the widened model and the table of its units."""
    draw = random.Random(seed)
    cells = _choose(ground, roles, each, draw, barred)
    wide, written = write_units(ground, cells, effect, draw.randrange(2**31), progress)
    return wide, _table(written)


def _choose(
    ground: Ground,
    roles: Sequence[Role],
    each: int,
    draw: random.Random,
    barred: Collection[tuple[str, str, int]] = (),
) -> list[Cell]:
    """The units to plant, with their layers."""
    find, held_out = ground.inputs
    shares = script_shares(find, ground.scripts, ground.languages)
    scoped = concepts_of(roles, ground.languages, shares, draw)
    concepts = [concept for some in scoped.values() for concept in some]
    usable, best = usable_layers(concepts, find, held_out, ground.scripts, ground.languages, ground.part)
    always = usable[concepts.index(scoped["none"][0])]  # where a unit can be always on
    layers = {
        concept: [layer for layer in usable[number] if layer in always] for number, concept in enumerate(concepts)
    }
    can = [group for group in scoped["group"] if layers[group]]
    scoped["group"] = (can or scoped["group"])[: len(ground.languages) // 2]  # groups are random, so any will do
    return place_cells(roles, scoped, layers, dict(zip(concepts, best, strict=True)), each, draw, barred)


def _table(written: Sequence[Written]) -> pd.DataFrame:
    """The units as a table, one row per unit."""
    rows = [
        {
            "layer": each.cell.layer,
            "unit": each.index,
            "role": each.cell.role.name,
            "concept": str(each.cell.concept),
            "languages": each.cell.concept.languages,
            "script": each.cell.concept.script,
            "truth": each.cell.role.truth,
            "sign": each.cell.role.sign,
            "level": each.unit.level,
        }
        for each in written
    ]
    return pd.DataFrame(rows)


def _save(planted: Planted) -> None:
    tables = {name: getattr(planted, name).to_dict("list") for name in ("units", "measured")}
    plain = {name: getattr(planted, name) for name in ("part", "shape", "languages")}
    content = {**plain, **tables, "damage": planted.damage.to_dict()}
    (planted.folder / TABLE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load_planted(folder: str | Path) -> Planted:
    """Open what `plant` wrote.

    Raises:
        ValueError: Not a folder of `plant`.
    """
    file = Path(folder) / TABLE
    if not file.is_file():
        raise ValueError(f"{folder} has no {TABLE}: it was not written by plant.")
    content = json.loads(file.read_text(encoding="utf-8"))
    units = pd.DataFrame(content["units"])
    units["languages"] = [tuple(labels) for labels in units["languages"]]
    damage = pd.Series(content["damage"], name="damage")
    shape, languages = tuple(content["shape"]), tuple(content["languages"])
    return Planted(
        Path(folder), content["part"], shape, languages, units, pd.DataFrame(content["measured"]), damage
    )  # fmt: skip
