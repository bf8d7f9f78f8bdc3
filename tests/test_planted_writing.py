"""What is written into weights: widened projections, columns and their sizes, directions that nothing reads."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from oracles import loss_of
from planted_world import EFFECT, LABELS, QUICK
from torch import nn
from transformers.pytorch_utils import Conv1D

import lsn_lens as lsn
from lsn_lens.planted import writing
from lsn_lens.planted.cells import Cell, Concept
from lsn_lens.planted.ground import Ground
from lsn_lens.planted.planting import plant
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.unread import unread_direction
from lsn_lens.planted.weights import Projections, Reads, Unit, unit_for, widened
from lsn_lens.planted.writing import Written, _calibrated, _set_columns, _widened, language_drifts

# weights


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "neox", "opt"])
@torch.no_grad()
def test_a_widened_model_computes_what_the_model_did(tiny_model_folder, architecture):
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6})
    ground = Ground.of(tiny_model_folder(architecture), corpora, 60)
    generator = torch.Generator().manual_seed(0)
    width = ground.room.width
    orders = [ground.room.order(5, generator) for _ in ground.names]
    wide = _widened(ground, orders)
    ids = torch.arange(20)[None]
    assert (wide(ids).logits - ground.hf_model(ids).logits).abs().max() < 1e-4
    gate, old = ground.names[1].gate, ground.projections(1)
    where = orders[1].argsort()  # of the old units first, then of the new ones
    new, old_weight = (module.weight.T if isinstance(module, Conv1D) else module.weight
                       for module in (wide.get_submodule(gate), old.gate))  # fmt: skip
    assert torch.equal(new[where[:width]], old_weight)
    assert not new[where[width:]].any()
    assert not torch.equal(where[:width], torch.arange(width))


def test_widened_projections():
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(7, generator=generator)
    x, hidden = torch.randn(3, 6, generator=generator), torch.randn(3, 5, generator=generator)
    for module in (nn.Linear(6, 5), Conv1D(5, 6), nn.Linear(6, 5, bias=False)):
        tensors = widened(module, order, outputs=True)
        weight = tensors["weight"].T if isinstance(module, Conv1D) else tensors["weight"]
        got = nn.functional.linear(x, weight, tensors.get("bias"))
        assert torch.allclose(got, torch.cat([module(x), torch.zeros(3, 2)], 1)[:, order], atol=1e-6)
    for module in (nn.Linear(5, 6), Conv1D(6, 5)):
        tensors = widened(module, order, outputs=False)
        weight = tensors["weight"].T if isinstance(module, Conv1D) else tensors["weight"]
        spread = torch.cat([hidden, torch.randn(3, 2, generator=generator)], 1)[:, order]
        assert torch.allclose(nn.functional.linear(spread, weight, tensors["bias"]), module(hidden), atol=1e-6)


def test_a_role_that_takes_a_second_projection(ungated, tmp_path):
    world, _ = ungated
    with pytest.raises(ValueError, match="'negative' cannot be written into this model: its MLPs have one projection"):
        plant(world.folder, world.corpora, tmp_path / "p", roles=("negative",), **QUICK)
    acts = torch.randn(40, 6)
    everywhere = torch.ones(40, dtype=torch.bool)
    reads = Reads(acts, torch.zeros(40, dtype=torch.long), everywhere, acts[0], acts[0])
    mlp = Projections(None, None, None, nn.functional.gelu)
    with pytest.raises(ValueError, match="Leave the role out"):
        unit_for(ROLES["negative"], mlp, reads, 1.0, torch.Generator())


# columns


def placed(ground, *roles):
    """Units in new places of a widened model, each of the first language: role, layer, size; and the model."""
    orders = [torch.arange(ground.room.width + len(roles)) for _ in ground.names]
    concept = Concept((ground.languages[0],))
    axis = torch.eye(ground.unembedding.shape[1])[0]
    units = [
        Written(
            Cell(ROLES[role], concept, layer), ground.room.width + number, Unit(axis, axis, size),
            axis if role == "unread" else 0 * axis,
        )
        for number, (role, layer, size) in enumerate(roles)
    ]  # fmt: skip
    return _widened(ground, orders), units


def column_of(ground, wide, unit):
    return wide.get_submodule(ground.names[unit.cell.layer].down).weight.data[:, unit.index]


@torch.no_grad()
def test_columns_add_take_away_and_write_where_nothing_is_read(ground):
    wide, units = placed(
        ground, ("specific", 0, 2.0), ("quiet", 0, 0.5), ("balance", 0, 4.0), ("specific", 1, 1.0), ("unread", 1, -2.0)
    )
    needs = torch.randn(5, ground.unembedding.shape[1], generator=torch.Generator().manual_seed(0))
    needs[[2, 4]] = 0.0
    found = _set_columns(ground, wide, units, needs)
    much = float(needs[[0, 1, 3]].norm(dim=1).mean())
    expected = [needs[0] / 2, needs[1] / 0.5, -(needs[0] + needs[1]) / 4, needs[3], units[4].column * much / -2]
    for unit, column, wanted in zip(units, found, expected, strict=True):
        torch.testing.assert_close(column, wanted)
        torch.testing.assert_close(column_of(ground, wide, unit), wanted)


@torch.no_grad()
def test_sizes_are_calibrated_by_the_loss_each_unit_alone_is_worth(ground, monkeypatch):
    wide, units = placed(ground, ("specific", 0, 2.0), ("quiet", 1, 0.5), ("specific", 1, 1.0), ("loud", 0, 1.0))
    worth = [EFFECT / 1.5**2, EFFECT / 1000, EFFECT * 1000, 1.0]  # nats where a unit writes 1

    def loss(wide, text):
        (language,) = {place for place, _ in text.rows}
        each = [float(column_of(ground, wide, unit).norm() * unit.unit.size) ** 2 for unit in units]
        return 5.0 - sum(much * size for much, size in zip(worth, each, strict=True)) * (language == 1)

    monkeypatch.setattr(writing, "mean_loss", loss)
    sizes = torch.zeros(4, len(LABELS))
    sizes[:3, 1] = 1.0
    found = _calibrated(ground, wide, units, sizes, EFFECT)
    # what one round cannot reach is at most doubled or halved in each of three
    torch.testing.assert_close(found[:, 1], torch.tensor([1.5, 8.0, 1 / 8, 0.0]))
    assert not found[:, [0, 2, 3]].any()
    drift = language_drifts(ground)[1]
    for unit, size in zip(units, found[:, 1], strict=True):
        torch.testing.assert_close(column_of(ground, wide, unit) * unit.unit.size, size * drift)


def test_an_unread_direction_is_the_last_of_the_gradients_of_single_documents(ground):
    name = ground.names[0].down
    text = ground.find.of(0).head(150)
    cut = [(place, ids[: 12 * number]) for number, (place, ids) in enumerate(text.rows, 1)]  # so that some are padded
    text = dataclasses.replace(text, rows=cut)
    gradients = []
    for _, ids in text.rows:
        added = torch.zeros(1, len(ids), ground.unembedding.shape[1], requires_grad=True)
        handle = ground.hf_model.get_submodule(name).register_forward_hook(lambda module, given, out: out + added)
        try:
            logits = ground.hf_model(torch.tensor([ids])).logits[0, :-1]
        finally:
            handle.remove()
        loss = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        gradients.append(torch.autograd.grad(loss, added)[0][0].double())
    steps = torch.cat(gradients).numpy()
    found = unread_direction(ground.hf_model, name, text).double().numpy()
    lowest = np.linalg.eigvalsh(steps.T @ steps)[0]
    assert np.square(steps @ found).sum() == pytest.approx(lowest, rel=0.01)


def test_drifts_raise_their_own_language_alone(ground):
    drifts = language_drifts(ground)
    logits = drifts @ ground.unembedding.T
    find, _ = ground.inputs
    counts = torch.stack([torch.bincount(find.ids[find.language == place], minlength=len(ground.unembedding))
                          for place in range(4)]).float()  # fmt: skip
    weights = counts / counts.sum(1, keepdim=True)
    best, second = weights.topk(2, dim=0).values
    own = torch.where(weights == best, best - second, 0.0)
    table = own @ logits.T
    assert (table.diagonal() > 0).all()
    assert (table - torch.diag(table.diagonal())).abs().max() < 1e-3 * table.diagonal().min()


def test_an_unread_direction_is_the_one_that_the_loss_heeds_least(ground):
    text = ground.find.of(0).head(200)
    down = ground.hf_model.get_submodule(ground.names[0].down)
    found = unread_direction(ground.hf_model, ground.names[0].down, text)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    rows = [torch.tensor([ids]) for _, ids in text.rows]
    clean = loss_of(ground.hf_model, rows)

    def moved(direction):
        """By how much the loss changes when this is added to what the module writes."""
        handle = down.register_forward_hook(lambda module, given, out: out + 0.3 * direction)
        try:
            return abs(loss_of(ground.hf_model, rows) - clean)
        finally:
            handle.remove()

    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(len(found), generator=generator) for _ in range(21)]
    others = sorted(moved(each / each.norm()) for each in drawn)
    assert moved(found) < min(others[0], others[10] / 3)
    assert not down._forward_hooks
