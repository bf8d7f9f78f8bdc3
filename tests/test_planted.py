"""Planted units against plain Hugging Face modules, weights edited by hand, and roles that were tampered with."""

import shutil
import unicodedata
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, SENTENCES
from oracles import loss_of, plain
from planted_world import EFFECT, LABELS, QUICK, TOKENS, documents, first_of, of

import lsn_lens as lsn
from lsn_lens.planted import planting
from lsn_lens.planted.ground import Ground
from lsn_lens.planted.measuring import EFFECT_TOKENS, RoleError, check_roles, measure_roles
from lsn_lens.planted.parts import room_of
from lsn_lens.planted.planting import load_planted, plant
from lsn_lens.planted.reading import read_text
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.world import make_world


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, planted):
    return planted.load(backend=request.param, device="cpu")


@torch.no_grad()
def activations(hf_model, gates, downs, rows):
    """Of each layer what the gates give and the down projections read, separators left out."""
    seen = {name: [] for name in (*gates, *downs)}

    def keep(name):
        def hook(module, given, out):
            seen[name].append((out if name in gates else given[0])[0, 1:])

        return hook

    handles = [hf_model.get_submodule(name).register_forward_hook(keep(name)) for name in seen]
    for row in rows:
        hf_model(row)
    for handle in handles:
        handle.remove()
    return [[torch.cat(seen[name]) for name in names] for names in (gates, downs)]


# the planted model


def test_every_role_is_there_for_whom_it_is_meant(planted):
    counts = planted.units.groupby("role")["languages"].apply(list)
    assert set(counts.index) == set(ROLES)
    for role in ("specific", "quiet", "negative", "loud", "unread", "frequency"):
        assert sorted(counts[role]) == sorted((label,) for label in LABELS)
    assert sorted(map(len, counts["shared"])) == [2, 2]
    scripts = planted.units.loc[planted.units["role"].eq("script")].set_index("script")["languages"].to_dict()
    assert scripts == {"LATIN": ("latin-1", "latin-2"), "CYRILLIC": ("cyrillic-1", "cyrillic-2")}
    assert planted.units["truth"].sum() == 4 + 2 + 4 + 4
    assert not planted.units.duplicated(["layer", "unit"]).any()


def test_without_the_planted_units_it_is_the_model_of_before(planted, model, ground):
    before = plain(ground.hf_model.config._name_or_path)
    ids, keep, _ = next(ground.held_out.batches())
    with torch.no_grad():
        expected = before(ids, attention_mask=keep.long()).logits[keep]
        everything = planted.truth(list(ROLES))
        assert len(everything) == len(planted.units)
        with lsn.intervene(model, everything, lsn.zero):
            bare = model(ids, attention_mask=keep.long(), return_type="logits")[keep]
        whole = model(ids, attention_mask=keep.long(), return_type="logits")[keep]
    assert (bare - expected).abs().max() < 1e-4
    assert (whole - expected).abs().max() > 0.1


def test_roles_are_measured_alike_in_both_classes(planted, model, ground):
    again = measure_roles(model, ground.held_out, planted.units, EFFECT, progress=False)
    pd.testing.assert_frame_equal(again, planted.measured, atol=2e-4, rtol=1e-3)
    check_roles(again)


def test_measures_are_those_of_plain_modules(planted, world):
    hf_model = plain(planted.folder)
    rows = documents(planted, world, TOKENS // 2)
    gates = [f"model.layers.{layer}.mlp.gate_proj" for layer in range(2)]
    downs = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    acts = {label: activations(hf_model, gates, downs, some) for label, some in rows.items()}
    short = {label: first_of(some, EFFECT_TOKENS) for label, some in rows.items()}
    clean = {label: loss_of(hf_model, some) for label, some in short.items()}
    norms = [hf_model.get_submodule(down).weight.data.norm(dim=0).clone() for down in downs]

    def written(unit, label):
        return float(acts[label][1][unit["layer"]][:, unit["unit"]].abs().mean() * norms[unit["layer"]][unit["unit"]])

    needed = np.mean([np.mean([written(unit, label) for label in unit["languages"]])
                      for unit in planted.units.to_dict("records") if unit["truth"]])  # fmt: skip
    average = [torch.stack([acts[label][1][layer].abs().mean(0) for label in LABELS]).mean(0) for layer in range(2)]
    for unit, row in zip(planted.units.to_dict("records"), planted.measured.to_dict("records"), strict=True):
        layer, index, own = unit["layer"], unit["unit"], unit["languages"]
        other = [label for label in LABELS if label not in own] or list(own)
        rate = {label: float((acts[label][0][layer][:, index] > 0).float().mean()) for label in LABELS}
        value = {label: float(acts[label][1][layer][:, index].mean()) for label in LABELS}
        size = {label: acts[label][1][layer][:, index].abs().mean() for label in own}
        column = hf_model.get_submodule(downs[layer]).weight.data[:, index]
        kept = column.clone()
        column.zero_()
        rise = {label: loss_of(hf_model, short[label]) - clean[label] for label in LABELS}
        column.copy_(kept)
        expected = {
            "own_rate": min(rate[label] for label in own),
            "other_rate": max(rate[label] for label in other),
            "lowest_rate": min(rate[label] for label in other),
            "own_value": max(value[label] for label in own),
            "lowest_value": min(value[label] for label in other),
            "loudness": np.mean([float((average[layer] < size[label]).float().mean()) for label in own]),
            "writes": np.mean([written(unit, label) for label in own]) / needed,
            "own_rise": min(rise[label] for label in own),
            "other_rise": max(rise[label] for label in other),
        }
        for name, wanted in expected.items():
            assert row[name] == pytest.approx(wanted, abs=1e-4, rel=1e-3), (unit, name)


def test_script_units_fire_by_letters(planted, world):
    hf_model = plain(planted.folder)
    rows = documents(planted, world, TOKENS // 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(planted.folder)
    units = planted.units.loc[planted.units["role"].eq("script")]
    for place, unit in units.iterrows():
        gate = f"model.layers.{unit['layer']}.mlp.gate_proj"
        rates = {}
        for label, some in rows.items():
            ((acts,), _) = activations(hf_model, [gate], [], some)
            words = tokenizer.convert_ids_to_tokens(torch.cat([row[0, 1:] for row in some]).tolist())
            assert {unicodedata.name(word[0]).split()[0] for word in words} == {world.scripts[label]}
            rates[label] = float((acts[:, unit["unit"]] > 0).float().mean())
        own = [rate for label, rate in rates.items() if world.scripts[label] == unit["script"]]
        other = [rate for label, rate in rates.items() if world.scripts[label] != unit["script"]]
        assert planted.measured["script_rate"][place] == pytest.approx(min(own), abs=1e-6)
        assert planted.measured["other_script_rate"][place] == pytest.approx(max(other), abs=1e-6)
    assert planted.measured["script_rate"].notna().sum() == len(units)


def test_damage_is_what_the_loss_rose_by(planted, world):
    before, after = plain(world.folder), plain(planted.folder)
    for label, rows in documents(planted, world, TOKENS // 2).items():
        assert planted.damage[label] == pytest.approx(loss_of(after, rows) - loss_of(before, rows), abs=1e-4)


def test_the_truth_is_the_table(planted):
    truth, quiet = planted.truth(), planted.truth(["quiet"])
    for label in LABELS:
        rows = planted.units.loc[[label in labels for labels in planted.units["languages"]]]
        for found, wanted in ((truth, rows["truth"]), (quiet, rows["role"].eq("quiet"))):
            frame = found[label].to_frame()
            units = set(zip(frame["layer"], frame["unit"], strict=True))
            assert units == set(zip(rows["layer"][wanted], rows["unit"][wanted], strict=True))
            assert units


def test_opened_again_it_is_the_same(planted, tmp_path):
    again = load_planted(planted.folder)
    assert (again.folder, again.languages) == (planted.folder, planted.languages)
    pd.testing.assert_frame_equal(again.units, planted.units)
    pd.testing.assert_frame_equal(again.measured, planted.measured)
    pd.testing.assert_series_equal(again.damage, planted.damage)
    assert again.truth() == planted.truth()
    with pytest.raises(ValueError, match="not written by plant"):
        load_planted(tmp_path)


def test_seeds(world, planted, tmp_path):
    some = {**QUICK, "tokens": 500, "roles": ("specific", "loud")}
    first, second = (plant(world.folder, world.corpora, tmp_path / name, **some) for name in "ab")
    other = plant(world.folder, world.corpora, tmp_path / "c", seed=1, **QUICK)  # with all roles: they hold there too
    names = sorted(path.name for path in first.folder.iterdir())
    assert {"model.safetensors", "planted.json", "config.json"} <= set(names)
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert len(other.units) >= len(planted.units) - 4
    columns = ["role", "layer", "unit"]
    places = [
        set(each.units.loc[each.units["role"].ne("silent"), columns].itertuples(index=False, name=None))
        for each in (planted, other)
    ]
    assert len(places[0] & places[1]) < len(places[0]) / 3


# roles that do not hold


def tampered(planted, folder, change):
    """A copy whose weights were changed, through measuring again."""
    shutil.copytree(planted.folder, folder)
    hf_model = plain(folder)
    change(hf_model.model.layers)
    hf_model.save_pretrained(folder)
    return lsn.load_model(folder, device="cpu")


def test_a_unit_that_writes_nothing_is_refused(planted, ground, tmp_path):
    unit = of(planted, "specific", "latin-1")
    down = tampered(
        planted, tmp_path / "t",
        lambda layers: layers[unit["layer"]].mlp.down_proj.weight.data[:, unit["unit"]].zero_(),
    )  # fmt: skip
    measured = measure_roles(down, ground.held_out, planted.units, EFFECT, progress=False)
    with pytest.raises(RoleError, match=r"specific of latin-1 \(layer \d, unit \d+\): switched off, .* 0\.0000"):
        check_roles(measured)


def test_units_in_each_others_place_are_refused(planted, ground, tmp_path):
    units = planted.units.copy()
    one, two = of(planted, "quiet", "latin-1").name, of(planted, "quiet", "cyrillic-1").name
    places = units.loc[[one, two], ["layer", "unit"]].to_numpy()
    units.loc[[two, one], ["layer", "unit"]] = places
    measured = measure_roles(planted.load(device="cpu"), ground.held_out, units, EFFECT, progress=False)
    with pytest.raises(RoleError, match=r"(?s)quiet of latin-1.*fires on.*quiet of cyrillic-1.*fires on|"
                                        r"(?s:quiet of cyrillic-1.*fires on.*quiet of latin-1.*fires on)"):  # fmt: skip
        check_roles(measured)


GOOD = {
    "layer": 0, "unit": 1, "concept": "x", "own_rate": 0.99, "other_rate": 0.01, "lowest_rate": 0.0, "own_value": 1.0,
    "lowest_value": 0.0, "loudness": 0.5, "writes": 1.0, "own_rise": 0.03, "other_rise": 0.0, "script_rate": np.nan,
    "other_script_rate": np.nan, "effect": 0.03,
}  # fmt: skip
FAULTS = [  # role, what makes it hold, and what spoils it
    ("specific", {}, {"own_rate": 0.8}), ("specific", {}, {"other_rate": 0.2}), ("specific", {}, {"own_rise": 0.007}),
    ("specific", {}, {"other_rise": 0.016}), ("shared", {}, {"own_rise": -0.03}), ("quiet", {}, {"loudness": 0.51}),
    ("negative", {"own_value": -1.0, "lowest_rate": 0.99}, {"own_value": 0.1}),
    ("negative", {"own_value": -1.0, "lowest_rate": 0.99}, {"lowest_value": -2.0}),
    ("negative", {"own_value": -1.0, "lowest_rate": 0.99}, {"own_value": 0.1, "lowest_value": 0.2}),
    ("negative", {"own_value": -1.0, "lowest_rate": 0.99}, {"own_rate": 0.8}),
    ("negative", {"own_value": -1.0, "lowest_rate": 0.99}, {"lowest_rate": 0.5}),
    ("loud", {"own_rise": 0.0, "loudness": 1.0}, {"loudness": 0.89}),
    ("loud", {"own_rise": 0.0, "loudness": 1.0}, {"own_rise": 0.001}),
    ("loud", {"own_rise": 0.0, "loudness": 1.0}, {"other_rise": -0.001}),
    ("unread", {"own_rise": 0.0}, {"own_rise": 0.016}), ("unread", {"own_rise": 0.0}, {"other_rise": -0.016}),
    ("unread", {"own_rise": 0.0}, {"writes": 0.49}), ("unread", {"own_rise": 0.0}, {"own_rate": 0.8}),
    ("frequency", {"own_rate": 0.6, "other_rate": 0.3, "lowest_rate": 0.3, "own_rise": 0.0}, {"other_rate": 0.55}),
    ("frequency", {"own_rate": 0.6, "other_rate": 0.3, "lowest_rate": 0.3, "own_rise": 0.0}, {"lowest_rate": 0.01}),
    ("frequency", {"own_rate": 0.6, "other_rate": 0.3, "lowest_rate": 0.3, "own_rise": 0.0}, {"own_rate": 0.95}),
    ("frequency", {"own_rate": 0.6, "other_rate": 0.3, "lowest_rate": 0.3, "own_rise": 0.0}, {"own_rise": -0.02}),
    ("script", {"script_rate": 0.9, "other_script_rate": 0.1, "own_rise": 0.0}, {"script_rate": 0.7}),
    ("script", {"script_rate": 0.9, "other_script_rate": 0.1, "own_rise": 0.0}, {"other_script_rate": 0.3}),
    ("script", {"script_rate": 0.9, "other_script_rate": 0.1, "own_rise": 0.0}, {"other_rise": 0.02}),
    ("silent", {"own_rate": 0.0, "other_rate": 0.0, "own_rise": 0.0}, {"other_rate": 0.02}),
    ("silent", {"own_rate": 0.0, "other_rate": 0.0, "own_rise": 0.0}, {"own_rate": 0.02}),
    ("silent", {"own_rate": 0.0, "other_rate": 0.0, "own_rise": 0.0}, {"own_rise": 0.001}),
    ("balance", {"lowest_rate": 0.99}, {"lowest_rate": 0.5}), ("balance", {"lowest_rate": 0.99}, {"own_rate": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("role", "good", "bad"), FAULTS)
def test_each_claim_of_a_role_is_asked_for(role, good, bad):
    row = {**GOOD, **good, "role": role}
    check_roles(pd.DataFrame([row]))
    with pytest.raises(RoleError, match=f"^1 of 2 planted units.*\n{role} of x .layer 0, unit 1"):
        check_roles(pd.DataFrame([row, {**row, **bad}]))


def test_every_role_is_among_these():
    assert {role for role, _, _ in FAULTS} == set(ROLES)


def test_what_did_not_hold_is_not_tried_there_again(world, planted, tmp_path, monkeypatch):
    row = {**GOOD, "role": "quiet", "layer": 1}
    with pytest.raises(RoleError) as refused:
        check_roles(pd.DataFrame([row, {**row, "loudness": 0.6}]))
    assert refused.value.cells == {("quiet", "x", 1)}
    seen = []

    def refuse(measured, part):
        places = measured.loc[measured["role"].eq("loud"), ["role", "concept", "layer"]]
        seen.append(set(places.itertuples(index=False, name=None)))
        raise RoleError("no", seen[-1])

    monkeypatch.setattr(planting, "check_roles", refuse)
    with pytest.raises(RoleError, match="no"):
        plant(world.folder, world.corpora, tmp_path / "p", roles=("loud",), attempts=2, **{**QUICK, "tokens": 400})
    first, second = seen
    assert len(first) == len(second) == 4 and not first & second  # there are two layers, and both can hold it


def test_nothing_is_left_of_what_is_refused(world, tmp_path, monkeypatch):
    seen = []

    def refuse(measured, part):
        assert (tmp_path / "p" / "model.safetensors").is_file()
        seen.append(tuple(measured["unit"]))
        raise RoleError("no")

    monkeypatch.setattr(planting, "check_roles", refuse)
    with pytest.raises(RoleError, match="no"):
        plant(world.folder, world.corpora, tmp_path / "p", roles=("loud",), attempts=2, **{**QUICK, "tokens": 400})
    assert not (tmp_path / "p").exists()
    assert len(set(seen)) == 2  # each from another draw


# models and requests that it cannot be done with


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"roles": ("specific", "lucky")}, KeyError, r"lucky.*specific"),
        ({"effect": 0}, ValueError, "effect=0"),
        ({"each": 0}, ValueError, "each=0"),
        ({"attempts": 0}, ValueError, "attempts=0"),
        ({"languages": ("latin-1",)}, ValueError, "at least two languages"),
        ({"languages": ("latin-1", "latin-2"), "roles": ("script",)}, ValueError, "'script' needs a script"),
        ({"languages": LABELS[:3], "roles": ("shared",)}, ValueError, "'shared' takes at least four"),
        ({"tokens": 10**6}, ValueError, "latin-1: .* Give more text"),
    ],
)
def test_bad_requests(world, tmp_path, given, error, says):
    labels = given.get("languages", LABELS)
    asked = {**QUICK, **{name: value for name, value in given.items() if name != "languages"}}
    with pytest.raises(error, match=says):
        plant(world.folder, {label: world.corpora[label] for label in labels}, tmp_path / "p", **asked)
    assert not (tmp_path / "p").exists()


def test_languages_that_the_model_does_not_tell_apart(tmp_path):
    world = make_world(tmp_path / "w", steps=0, languages=2, scripts=("GREEK",), lexical_overlap=0.9, progress=False)
    with pytest.raises(ValueError, match=r"'specific' of greek-1 cannot be written into this model.*at best in layer"):
        plant(world.folder, world.corpora, tmp_path / "p", roles=("specific",), **QUICK)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("architecture", "says"), [("bloom", "BloomConfig"), ("mixtral", "Mixtral"), ("llama", None)])
def test_mlps_whose_width_cannot_be_changed(tiny_model_folder, architecture, says):
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "de": [SENTENCES[1]] * 6})
    if says is None:
        assert Ground.of(tiny_model_folder(architecture), corpora, 60).room.width == 48
    else:
        with pytest.raises(ValueError, match=says):
            Ground.of(tiny_model_folder(architecture), corpora, 60)


def test_a_configuration_without_a_width(ground):
    config = SimpleNamespace(hidden_size=48)
    model = SimpleNamespace(config=config, get_submodule=ground.hf_model.get_submodule)
    with pytest.raises(ValueError, match=r"SimpleNamespace has no width of the MLP .*intermediate_size"):
        room_of(model, ground.names[0], "mlp")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_with_one_projection(ungated, backend):
    world, planted = ungated
    text = read_text(
        transformers.AutoTokenizer.from_pretrained(world.folder), world.corpora, "hold_out", TOKENS // 2, 64
    )
    model = planted.load(backend=backend, device="cpu")
    pd.testing.assert_frame_equal(
        measure_roles(model, text, planted.units, EFFECT, progress=False), planted.measured, atol=2e-4, rtol=1e-3
    )
    hf_model = plain(planted.folder)
    rows = {label: first_of(some, EFFECT_TOKENS) for label, some in documents(planted, world, TOKENS // 2).items()}
    unit = of(planted, "specific", "latin-2")
    clean = {label: loss_of(hf_model, some) for label, some in rows.items()}
    hf_model.gpt_neox.layers[unit["layer"]].mlp.dense_4h_to_h.weight.data[:, unit["unit"]] = 0
    rises = {label: loss_of(hf_model, some) - clean[label] for label, some in rows.items()}
    assert rises.pop("latin-2") == pytest.approx(planted.measured["own_rise"][unit.name], abs=1e-4)
    assert max(rises.values()) < 0.015


def test_units_in_one_layer_alone_are_measured():
    model, corpora = lsn.load_model("demo", device="cpu"), lsn.load_corpora("demo", ["en", "ja"])
    text = read_text(model.tokenizer, corpora, "hold_out", 200, 128)
    unit = {"layer": 2, "unit": 7, "role": "specific", "concept": "ja", "languages": ("ja",), "script": "HIRAGANA",
            "truth": True, "sign": 1, "level": 0.0}  # fmt: skip
    (row,) = measure_roles(model, text, pd.DataFrame([unit]), progress=False).to_dict("records")
    assert (row["layer"], row["unit"]) == (2, 7) and 0 < row["own_rate"] < 1 and row["writes"] == 1
