"""Units of attention against plain Hugging Face modules and weights edited by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, SENTENCES
from oracles import loss_of, plain
from planted_world import EFFECT, LABELS, QUICK, TOKENS
from torch import nn

import lsn_lens as lsn
from lsn_lens.planted.cells import Cell, Concept
from lsn_lens.planted.directions import half_height
from lsn_lens.planted.ground import Ground
from lsn_lens.planted.measuring import EFFECT_TOKENS, RoleError, _output_norms, check_roles, measure_roles
from lsn_lens.planted.parts import PARTS, Room
from lsn_lens.planted.planting import load_planted, plant
from lsn_lens.planted.reading import read_text
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.weights import Projections, Reads, Unit, unit_for
from lsn_lens.planted.world import SIZES, make_world
from lsn_lens.planted.writing import Written, _widened, _write

ATTENTION = {**QUICK, "part": "attention"}


@pytest.fixture(scope="module", params=["a head's values for each query head", "values shared by two query heads"])
def made(request, tmp_path_factory, world):
    folder, land = tmp_path_factory.mktemp("heads"), world
    if "shared" in request.param:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SIZES, "llama", {**SIZES["llama"], "num_key_value_heads": 2})
            land = make_world(folder / "w", progress=False)
    planted = plant(land.folder, land.corpora, folder / "p", **ATTENTION)
    tokenizer = transformers.AutoTokenizer.from_pretrained(land.folder)
    text = read_text(tokenizer, land.corpora, "hold_out", TOKENS // 2, 64)
    hf_model = plain(planted.folder)
    return land, planted, text, hf_model


def rows_of(text, label, tokens=10**9):
    """The documents of a language, until they have so many tokens."""
    taken = []
    for place, ids in text.rows:
        if text.languages[place] == label and sum(len(each[0]) for each in taken) < tokens:
            taken.append(torch.tensor([ids]))
    return taken


def attention(hf_model, layer):
    return hf_model.model.layers[layer].self_attn


def writers(hf_model, unit):
    """The inputs of the output projection that carry a value: one of each query head that shares it."""
    d_head = hf_model.config.head_dim
    shared = hf_model.config.num_attention_heads // hf_model.config.num_key_value_heads
    head, place = divmod(unit, d_head)
    return [(head * shared + query) * d_head + place for query in range(shared)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_roles_are_measured_alike_in_both_classes(made, backend):
    _, planted, text, _ = made
    model = planted.load(backend=backend, device="cpu")
    again = measure_roles(model, text, planted.units, EFFECT, part="attention", progress=False)
    pd.testing.assert_frame_equal(again, planted.measured, atol=2e-4, rtol=1e-3)
    check_roles(again, "attention")


def test_every_role_is_there(made):
    _, planted, _, hf_model = made
    assert planted.part == "attention"
    assert set(planted.units["role"]) == set(ROLES)
    assert planted.units["truth"].sum() == 4 + 2 + 4 + 4
    assert planted.shape == (2, hf_model.config.num_key_value_heads * 12)
    assert not planted.units.duplicated(["layer", "unit"]).any()
    heads = planted.units.groupby("layer")["unit"].apply(lambda units: sorted(units // 12))
    assert all(sorted(set(mine)) * 12 == mine or len(mine) == 12 * len(set(mine)) for mine in heads)  # whole heads
    again = load_planted(planted.folder)
    assert (again.part, again.shape, again.truth()) == ("attention", planted.shape, planted.truth())
    assert list(planted.truth().masks) == ["v"]


def test_measures_are_those_of_plain_modules(made):
    _, planted, text, hf_model = made
    values = {}
    for label in LABELS:
        seen = [[], []]
        handles = [
            attention(hf_model, layer).v_proj.register_forward_hook(
                lambda module, given, out, keep=seen[layer]: keep.append(out[0, 1:].detach())
            )
            for layer in range(2)
        ]
        loss_of(hf_model, rows_of(text, label))
        for handle in handles:
            handle.remove()
        values[label] = [torch.cat(each) for each in seen]
    short = {label: rows_of(text, label, EFFECT_TOKENS) for label in LABELS}
    clean = {label: loss_of(hf_model, short[label]) for label in LABELS}
    average = [torch.stack([values[label][layer].abs().mean(0) for label in LABELS]).mean(0) for layer in range(2)]

    def written(unit, label):
        columns = attention(hf_model, unit["layer"]).o_proj.weight.data[:, writers(hf_model, unit["unit"])]
        return float(values[label][unit["layer"]][:, unit["unit"]].abs().mean() * columns.norm())

    needed = np.mean([np.mean([written(unit, label) for label in unit["languages"]])
                      for unit in planted.units.to_dict("records") if unit["truth"]])  # fmt: skip
    for unit, row in zip(planted.units.to_dict("records"), planted.measured.to_dict("records"), strict=True):
        if unit["role"] == "silent" and unit["unit"] % 5:
            continue
        layer, index, own, level = unit["layer"], unit["unit"], unit["languages"], unit["level"]
        other = [label for label in LABELS if label not in own] or list(own)
        acts = {label: values[label][layer][:, index] for label in LABELS}
        fires = {label: (each < level if level < 0 else each > level).float().mean() for label, each in acts.items()}
        weight = attention(hf_model, layer).o_proj.weight.data
        kept = weight.clone()
        weight[:, writers(hf_model, index)] = 0
        rise = {label: loss_of(hf_model, short[label]) - clean[label] for label in LABELS}
        weight.copy_(kept)
        size = {label: float(each.abs().mean()) for label, each in acts.items()}
        expected = {
            "own_rate": min(fires[label] for label in own),
            "other_rate": max(fires[label] for label in other),
            "lowest_rate": min(fires[label] for label in other),
            "own_value": max(acts[label].mean() for label in own),
            "lowest_value": min(acts[label].mean() for label in other),
            "loudness": np.mean([float((average[layer] < size[label]).float().mean()) for label in own]),
            "writes": np.mean([written(unit, label) for label in own]) / needed,
            "own_rise": min(rise[label] for label in own),
            "other_rise": max(rise[label] for label in other),
        }
        for name, wanted in expected.items():
            # a share of few units moves by a step where two of them are as loud
            assert row[name] == pytest.approx(float(wanted), abs=0.05 if name == "loudness" else 2e-4, rel=1e-3), name


def test_new_heads_attend_evenly(made):
    _, planted, text, hf_model = made
    row = rows_of(text, "latin-1")[0]
    places = sorted(set(planted.units.loc[planted.units["layer"].eq(0), "unit"] // 12))
    assert not attention(hf_model, 0).k_proj.weight.data.view(-1, 12, 48)[places].any()
    hf_model.set_attn_implementation("eager")
    pattern = hf_model(row, output_attentions=True).attentions[0][0]
    shared = hf_model.config.num_attention_heads // hf_model.config.num_key_value_heads
    evenly = torch.ones(row.shape[1], row.shape[1]).tril()
    evenly /= evenly.sum(1, keepdim=True)
    for place in places:
        for query in range(shared):
            torch.testing.assert_close(pattern[place * shared + query], evenly)


def test_without_the_planted_units_it_is_the_model_of_before(made):
    land, planted, text, _ = made
    before = plain(land.folder)
    model = planted.load(device="cpu")
    ids, keep, _ = next(text.batches())
    everything = planted.truth(list(ROLES))
    assert len(everything) == len(planted.units)
    with torch.no_grad(), lsn.intervene(model, everything, lsn.zero):
        bare = model(ids, attention_mask=keep.long(), return_type="logits")[keep]
    with torch.no_grad():
        expected = before(ids, attention_mask=keep.long()).logits[keep]
        whole = model(ids, attention_mask=keep.long(), return_type="logits")[keep]
    assert (bare - expected).abs().max() < 1e-4
    assert (whole - expected).abs().max() > 0.1


def test_what_negative_means_here(made):
    _, planted, _, _ = made
    rows = planted.measured.loc[planted.measured["role"].eq("negative")]
    assert (rows["own_value"] < 0).all() and (rows["own_value"] < rows["lowest_value"]).all()
    with pytest.raises(RoleError, match=r"negative of latin-1 .*its mean is"):
        check_roles(rows.assign(own_value=-rows["own_value"]), "attention")
    check_roles(rows, "attention")


# where it can be done


@pytest.mark.parametrize("architecture", ["llama", "llama_mha", "mistral", "qwen2", "gemma2"])
@torch.no_grad()
def test_a_widened_model_computes_what_the_model_did(tiny_model_folder, architecture):
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6})
    ground = Ground.of(tiny_model_folder(architecture), corpora, 60, "attention")
    room = ground.room
    more = room.fitting(ground.hf_model, ground.names[0].down, room.step + 1)
    assert more % room.step == 0 and more > room.step
    generator = torch.Generator().manual_seed(0)
    orders = [room.order(more, generator) for _ in ground.names]
    wide = _widened(ground, orders)
    ids = torch.arange(20)[None]
    assert (wide(ids).logits - ground.hf_model(ids).logits).abs().max() < 1e-4
    new = orders[0].argsort()[room.width :]
    wide.get_submodule(ground.names[0].gate).weight[new[:3]] = 1.0  # a value that something reads changes it
    down = wide.get_submodule(ground.names[0].down).weight
    assert not down[:, room.writers(new[:3]).flatten()].any()
    assert (wide(ids).logits - ground.hf_model(ids).logits).abs().max() < 1e-4
    down[:, room.writers(new[:3]).flatten()] = 1.0
    assert (wide(ids).logits - ground.hf_model(ids).logits).abs().max() > 1e-3


def test_heads_come_in_numbers_that_the_architecture_takes(tiny_model_folder):
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6})
    ground = Ground.of(tiny_model_folder("llama_mha"), corpora, 60, "attention")
    assert (ground.hf_model.config.hidden_size, ground.hf_model.config.num_attention_heads) == (32, 4)
    assert ground.room.fitting(ground.hf_model, ground.names[0].down, 1) == 4 * 8  # of 5 to 8, 8 alone divides 32


@pytest.mark.parametrize(
    ("architecture", "says"),
    [("gpt2", "c_attn is not one projection"), ("neox", "is not one projection|GPTNeoXConfig"), ("opt", "OPTConfig"),
     ("bloom", "is not one projection|BloomConfig")],
)  # fmt: skip
def test_attention_that_cannot_be_widened(tiny_model_folder, architecture, says):
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6})
    with pytest.raises(ValueError, match=says):
        Ground.of(tiny_model_folder(architecture), corpora, 60, "attention")


def test_query_heads_that_share_a_value_all_write_for_it():
    room = Room(6, 3, 2, {}, {})  # two heads of three values, each read by two query heads
    assert room.writers(torch.tensor([0, 4])).tolist() == [[0, 3], [7, 10]]
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    assert room.queries(order).tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    new = room.order(6, torch.Generator().manual_seed(0)).view(4, 3)
    assert sorted(new[:, 0].tolist()) == [0, 3, 6, 9] and (new.diff(dim=1) == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_what_a_value_writes_is_shared_by_its_readers_and_measured_over_them(tiny_model_folder, backend):
    folder = tiny_model_folder("llama")
    ground = Ground.of(folder, lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6}), 60, "attention")
    down = ground.hf_model.get_submodule(ground.names[1].down).weight
    assert ground.room.readers > 1
    inputs = ground.room.writers(torch.arange(ground.room.width))
    norms = _output_norms(lsn.load_model(folder, backend=backend, device="cpu"), 1, PARTS["attention"])
    torch.testing.assert_close(norms, down[:, inputs].square().sum((0, 2)).sqrt())
    column = torch.arange(down.shape[0]).float()
    unit = Written(Cell(ROLES["specific"], Concept(("en",)), 1), 5, Unit(column, None, 1.0), column)
    _write(ground, ground.hf_model, unit, column)
    torch.testing.assert_close(down[:, inputs[5]].sum(1), column)
    assert (down[:, inputs[5][0]] == down[:, inputs[5]].T).all()


# weights


def tokens(seed=0):
    """Tokens of three languages around three means, with one axis common to all."""
    generator = torch.Generator().manual_seed(seed)
    language = torch.arange(3).repeat_interleave(200)
    means = 4 * torch.eye(3, 8) + nn.functional.one_hot(torch.tensor(7), 8)
    return means[language] + torch.randn(600, 8, generator=generator) * 0.5, language


@pytest.mark.parametrize(("role", "size"), [("specific", 2.0), ("negative", -2.0), ("loud", 10.0), ("quiet", 0.04)])
def test_a_value_is_as_large_as_wanted_inside_and_near_zero_elsewhere(role, size):
    acts, language = tokens()
    acts += 3 * nn.functional.one_hot(torch.tensor(7), 8)  # what all tokens share counts for nothing
    inside = language == 1
    reads = Reads(acts, language, inside, acts[0], acts[0])
    unit = unit_for(PARTS["attention"].roles[role], Projections(None, None, None, None), reads, 2.0, torch.Generator())
    value = acts @ unit.gate
    assert value[inside].mean() == pytest.approx(size, rel=0.1)
    assert value[~inside].mean().abs() < 0.05 * abs(size)
    assert unit.size == pytest.approx(float(value[inside].mean()), rel=1e-3)
    assert unit.level == pytest.approx(unit.size / 2)


def test_a_silent_value_is_zero_and_one_at_a_rate_fires_at_it():
    acts, language = tokens()
    everywhere = torch.ones(600, dtype=torch.bool)
    part, heads = PARTS["attention"].roles, Projections(None, None, None, None)
    reads = Reads(acts, language, everywhere, acts[0], acts[0])
    silent = unit_for(part["silent"], heads, reads, 1.0, torch.Generator())
    assert not silent.gate.any() and silent.level == 0
    always = unit_for(part["balance"], heads, reads, 1.5, torch.Generator())
    assert float((acts @ always.gate).mean()) == pytest.approx(1.5, rel=0.1)
    reads = Reads(acts, language, language == 2, acts[0], acts[0])
    rate = unit_for(part["frequency"], heads, reads, 1.5, torch.Generator().manual_seed(0))
    fires = acts @ rate.gate > rate.level
    assert float(fires[language == 2].float().mean()) == pytest.approx(0.6, abs=0.05)
    assert float(fires[language == 0].float().mean()) == pytest.approx(0.3, abs=0.05)


def test_half_height_knows_inside_from_outside():
    acts, language = tokens()
    inside = torch.stack([language == 0, language != 1], 1)
    new, new_language = tokens(1)
    fires = half_height(acts, inside, torch.ones_like(inside), new)
    assert (fires == torch.stack([new_language == 0, new_language != 1], 1)).float().mean() > 0.97
    known = inside | (torch.arange(600) % 2 == 0)[:, None]
    wrong = torch.where(known, inside, ~inside)
    pair = (half_height(acts, each, known, new) for each in (wrong, inside))
    assert torch.equal(*pair)
