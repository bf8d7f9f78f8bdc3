"""Planted units against plain Hugging Face modules, weights edited by hand, and roles that were tampered with."""

import dataclasses
import random
import shutil
import unicodedata
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, SENTENCES
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers.pytorch_utils import Conv1D

import lsn_lens as lsn
from lsn_lens.planted import planting, writing
from lsn_lens.planted.cells import (
    Cell,
    Concept,
    _rates,
    concepts_of,
    inside_and_known,
    place_cells,
    script_shares,
    usable_layers,
)
from lsn_lens.planted.directions import PENALTY, answer, at_rates, both_sides, separate
from lsn_lens.planted.ground import Ground
from lsn_lens.planted.measuring import EFFECT_TOKENS, RoleError, check_roles, measure_roles
from lsn_lens.planted.parts import room_of
from lsn_lens.planted.planting import load_planted, plant
from lsn_lens.planted.reading import Inputs, inputs_of, read_text, token_scripts
from lsn_lens.planted.roles import ROLES
from lsn_lens.planted.unread import unread_direction
from lsn_lens.planted.weights import Projections, Reads, Unit, unit_for, widened
from lsn_lens.planted.world import make_world
from lsn_lens.planted.writing import Written, _calibrated, _set_columns, _widened, language_drifts

TOKENS, EFFECT = 1500, 0.03
LABELS = ("latin-1", "cyrillic-1", "latin-2", "cyrillic-2")
QUICK = {"tokens": TOKENS, "effect": EFFECT, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", progress=False)


@pytest.fixture(scope="module")
def planted(world, tmp_path_factory):
    return plant(world.folder, world.corpora, tmp_path_factory.mktemp("planted") / "p", **QUICK)


@pytest.fixture(scope="module")
def ground(world):
    return Ground.of(world.folder, world.corpora, TOKENS)


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, planted):
    return planted.load(backend=request.param, device="cpu")


@pytest.fixture(scope="module")
def ungated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ungated")
    world = make_world(folder / "w", model_type="gpt_neox", progress=False)
    roles = ("specific", "shared", "loud", "frequency")
    return world, plant(world.folder, world.corpora, folder / "p", roles=roles, **QUICK)


def hugging_face_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def documents(planted, world, tokens):
    """Held-out documents of each language behind the separator, until they have so many tokens without it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(planted.folder)
    found = {}
    for label in planted.languages:
        found[label], total = [], 0
        for text in world.corpora[label].hold_out:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found[label].append(torch.tensor([[tokenizer.bos_token_id, *ids]]))
            total += len(ids)
            if total >= tokens:
                break
    return found


def first_of(rows, tokens):
    """The first documents, until they have so many tokens with the separator."""
    taken = []
    for row in rows:
        if sum(each.shape[1] for each in taken) < tokens:
            taken.append(row)
    return taken


@torch.no_grad()
def loss_of(hf_model, rows):
    logits = torch.cat([hf_model(row).logits[0, :-1] for row in rows])
    return float(nn.functional.cross_entropy(logits, torch.cat([row[0, 1:] for row in rows])))


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


# the world


def test_words_are_of_their_scripts_and_shared_as_asked(world):
    assert tuple(world.words) == LABELS == tuple(world.corpora)
    for label, words in world.words.items():
        assert len(set(words)) == len(words) == 60
        names = {unicodedata.name(letter).split()[0] for word in words for letter in word}
        assert names == {label.split("-")[0].upper()}
    shared = {(a, b): len(set(world.words[a]) & set(world.words[b])) for a in LABELS for b in LABELS if a < b}
    assert {pair for pair, count in shared.items() if count} == {("cyrillic-1", "cyrillic-2"), ("latin-1", "latin-2")}
    assert {count for count in shared.values() if count} == {12}  # a fifth


def test_frequencies_fall_and_orders_differ(world):
    pairs = {}
    for label, corpus in world.corpora.items():
        rows = [text.split() for text in corpus.find]
        counts = Counter(word for row in rows for word in row)
        frequent = [counts[word] for word in world.words[label]]
        assert sum(frequent[:10]) > 3 * sum(frequent[-10:])
        pairs[label] = Counter(pair for row in rows for pair in pairwise(row))
        first, count = max(((a, n) for (a, _), n in pairs[label].items()), key=lambda pair: pair[1])
        assert count > 0.1 * counts[first]  # a follower of its own: by frequency alone it would have less


def test_the_model_has_learned_the_languages_and_its_neurons_do_nothing(world, ground):
    hf_model = hugging_face_of(world.folder)
    mlps = [weight for name, weight in hf_model.named_parameters() if ".mlp." in name]
    assert len(mlps) == 6
    assert all(1 in weight.shape and not weight.any() for weight in mlps)
    for label, corpus in world.corpora.items():
        place = LABELS.index(label)
        counts = Counter(word for text in corpus.find for word in text.split())
        shares = np.array(list(counts.values())) / sum(counts.values())
        unigram = -(shares * np.log(shares)).sum()  # nats: all that is known of a word without the one before it
        rows = [torch.tensor([ids]) for language, ids in ground.held_out.rows if language == place]
        assert loss_of(hf_model, rows) < unigram - 0.5


def test_same_seed_same_bytes(tmp_path):
    make_world(tmp_path / "a", steps=4, languages=3, progress=False)
    make_world(tmp_path / "b", steps=4, languages=3, progress=False)
    other = make_world(tmp_path / "c", steps=4, languages=3, seed=1, progress=False)
    assert list(other.corpora) == ["latin-1", "cyrillic-1", "latin-2"]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"languages": 1}, ValueError, "at least two"),
        ({"lexical_overlap": 1}, ValueError, r"\[0, 1\)"),
        ({"lexical_overlap": -0.1}, ValueError, r"\[0, 1\)"),
        ({"scripts": ("LATIN", "RUNIC")}, KeyError, "RUNIC"),
        ({"scripts": ()}, KeyError, "script"),
        ({"model_type": "bert"}, KeyError, "bert"),
    ],
)
def test_worlds_that_cannot_be_made(tmp_path, given, error, says):
    with pytest.raises(error, match=says):
        make_world(tmp_path / "w", progress=False, **given)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("make", [make_world, lambda folder: plant("demo", lsn.load_corpora("demo"), folder)])
def test_a_folder_with_something_in_it_is_refused(tmp_path, make):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


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
    before = hugging_face_of(ground.hf_model.config._name_or_path)
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
    hf_model = hugging_face_of(planted.folder)
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
    hf_model = hugging_face_of(planted.folder)
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
    before, after = hugging_face_of(world.folder), hugging_face_of(planted.folder)
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
    hf_model = hugging_face_of(folder)
    change(hf_model.model.layers)
    hf_model.save_pretrained(folder)
    return lsn.load_model(folder, device="cpu")


def of(planted, role, label):
    units = planted.units
    return units.loc[units["role"].eq(role) & units["concept"].eq(label)].iloc[0]


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
    hf_model = hugging_face_of(planted.folder)
    rows = {label: first_of(some, EFFECT_TOKENS) for label, some in documents(planted, world, TOKENS // 2).items()}
    unit = of(planted, "specific", "latin-2")
    clean = {label: loss_of(hf_model, some) for label, some in rows.items()}
    hf_model.gpt_neox.layers[unit["layer"]].mlp.dense_4h_to_h.weight.data[:, unit["unit"]] = 0
    rises = {label: loss_of(hf_model, some) - clean[label] for label, some in rows.items()}
    assert rises.pop("latin-2") == pytest.approx(planted.measured["own_rise"][unit.name], abs=1e-4)
    assert max(rises.values()) < 0.015


# directions


def plane(seed=0):
    """Tokens of three languages around three means."""
    generator = torch.Generator().manual_seed(seed)
    language = torch.arange(3).repeat_interleave(200)
    means = 4 * torch.eye(3, 8) + torch.nn.functional.one_hot(torch.tensor(7), 8)
    return means[language] + torch.randn(600, 8, generator=generator) * 0.5, language


def test_separate_counts_both_sides_the_same_and_the_unknown_not_at_all():
    acts, language = plane()
    inside = torch.stack([language == 0, language != 1], 1)
    found = separate(acts, inside, torch.ones_like(inside))
    assert (((acts @ found.T) > 0) == inside).float().mean() > 0.99
    known = inside | (torch.arange(600) % 2 == 0)[:, None]
    wrong = torch.where(known, inside, ~inside)
    assert torch.allclose(separate(acts, wrong, known), separate(acts, inside, known), atol=1e-4)
    rare = torch.cat([torch.arange(200)[:10], torch.arange(200, 600)])  # ten tokens against four hundred
    few = separate(acts[rare], inside[rare, :1], torch.ones_like(inside[rare, :1]))
    assert (acts[language == 0] @ few[0] > 0).float().mean() > 0.95


def test_answer_is_least_squares():
    acts, language = plane()
    gate = torch.rand(600, generator=torch.Generator().manual_seed(1))
    wanted = (language == 2).float() * 3
    expected = np.linalg.lstsq((acts * gate[:, None]).numpy(), wanted.numpy(), rcond=None)[0]
    np.testing.assert_allclose(answer(acts, gate, wanted).numpy(), expected, atol=1e-3)
    sides = acts @ both_sides(acts, language == 1)
    assert sides[language == 1].mean() > 0.8
    assert sides[language != 1].mean() < -0.8


def test_at_rates():
    acts, language = plane()
    found = at_rates(acts, language, [0.6, 0.3, 0.1], torch.Generator().manual_seed(3))
    rates = [float((acts[language == place] @ found > 0).float().mean()) for place in range(3)]
    np.testing.assert_allclose(rates, [0.6, 0.3, 0.1], atol=0.05)


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


def test_which_layers_can_hold_a_concept(ground):
    find, held_out = ground.inputs
    concepts = [Concept(("latin-1",)), Concept(("latin-1", "latin-2"), "LATIN")]
    layers, best = usable_layers(concepts, find, held_out, ground.scripts, ground.languages)
    assert layers == {0: [0, 1], 1: [0, 1]}
    shuffled = dataclasses.replace(find, language=find.language[torch.randperm(len(find.language))])
    lost, said = usable_layers(concepts[:1], shuffled, held_out, ground.scripts, ground.languages)
    assert lost == {0: []}
    assert "fires on" in said[0] and len(best) == 2


def test_a_direction_is_as_good_as_in_its_worst_languages():
    language = torch.arange(4).repeat_interleave(50)
    inside, known = language < 2, torch.ones(200, dtype=torch.bool)
    fires = torch.arange(200) % 50 < torch.tensor([50, 25, 5, 10])[language]
    assert _rates(fires, inside, known, language) == pytest.approx((0.5, 0.2))


def test_groups_are_drawn_for_enough_languages():
    scopes = concepts_of([ROLES["shared"]], LABELS, {}, random.Random(0))
    assert {len(concept.languages) for concept in scopes["group"]} == {2}
    assert len(set(scopes["group"])) == len(scopes["group"]) == 4
    many = concepts_of([ROLES["shared"]], list("abcdef"), {}, random.Random(0))
    assert {len(concept.languages) for concept in many["group"]} == {2, 3}


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


def marked(rates, per=400):
    """Tokens of as many languages, with a mark that so many of each have, and something common to all."""
    language = torch.arange(len(rates)).repeat_interleave(per)
    has = torch.arange(per) < torch.tensor(rates)[:, None] * per
    acts = torch.stack([torch.where(has.flatten(), 1.0, -1.0), torch.ones(len(language))], 1)
    return acts, language


def test_separate_is_logistic_regression_with_balanced_classes():
    acts, language = marked([0.8, 0.5, 0.3])
    acts = 10 * (acts + torch.randn(acts.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    inside, known = (language == 0)[:, None], (torch.arange(1200) % 3 > 0)[:, None] | (language > 0)[:, None]
    size = acts.square().mean().sqrt()
    expected = LogisticRegression(
        C=1 / (2 * PENALTY * int(known.sum())), class_weight="balanced", fit_intercept=False, tol=1e-8
    ).fit((acts / size)[known[:, 0]], inside[known])
    found = separate(acts, inside, known)[0] * size
    np.testing.assert_allclose(found.numpy(), expected.coef_[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("part", "own", "other", "usable"),
    [
        ("mlp", 0.95, 0.07, ["one", "script", "all"]),
        ("mlp", 0.85, 0.07, ["all"]),
        ("mlp", 0.95, 0.15, ["all"]),
        ("attention", 0.95, 0.02, ["one", "script", "all"]),
        ("attention", 0.95, 0.07, ["script", "all"]),  # on tokens of other scripts it may fire more often
        ("attention", 0.95, 0.15, ["all"]),
    ],
)
def test_how_well_a_layer_must_tell_tokens_apart(part, own, other, usable):
    find, language = marked([0.9, 0.1])
    acts, _ = marked([own, other])
    concepts = {"one": Concept(("a",)), "script": Concept(("a",), "LATIN"), "all": Concept(("a", "b"))}
    texts = [Inputs([each], language, language.clone()) for each in (find, acts)]
    layers, said = usable_layers(list(concepts.values()), *texts, ["LATIN", "GREEK"], ("a", "b"), part)
    assert [name for name, found in zip(concepts, layers.values(), strict=True) if found == [0]] == usable
    assert said[0] == f"layer 0: fires on {own:.0%} of its tokens and {other:.0%} of others'"


def test_the_layer_that_tells_tokens_apart_best_is_named():
    find, language = marked([0.9, 0.1])
    layers = [marked(rates)[0] for rates in ([0.9, 0.3], [0.7, 0.01])]
    texts = [Inputs(each, language, language.clone()) for each in ([find, find], layers)]
    _, said = usable_layers([Concept(("a",))], *texts, [None, None], ("a", "b"))
    assert said == ["layer 1: fires on 70% of its tokens and 1% of others'"]


def test_a_gate_fires_above_zero_and_a_value_above_half_its_height():
    find, language = marked([0.6, 0.5])  # at the best direction's half height most tokens of both
    texts = [Inputs([each], language, language.clone()) for each in (find, marked([1.0, 0.0])[0])]
    for part, expected in (("mlp", [0]), ("attention", [])):
        assert usable_layers([Concept(("a",))], *texts, [None, None], ("a", "b"), part)[0] == {0: expected}


@pytest.mark.parametrize(("part", "share", "usable"), [("mlp", 0.01, False), ("attention", 0.01, True),
                                                        ("attention", 0.07, False)])  # fmt: skip
def test_a_unit_of_nobody_must_be_on_nearly_always(part, share, usable):
    acts, language = marked([1.0, 1.0])
    new = torch.where((torch.arange(800) % 100 < share * 100)[:, None], -acts, acts)
    texts = [Inputs([each], language, language.clone()) for each in (acts, new)]
    layers, _ = usable_layers([Concept(("a", "b"))], *texts, [None, None], ("a", "b"), part)
    assert layers == {0: [0] if usable else []}


def test_tokens_without_a_script_say_nothing_of_scripts():
    language = torch.tensor([0, 0, 0, 1, 1])
    text = Inputs([torch.zeros(5, 2)], language, torch.tensor([0, 2, 1, 1, 2]))
    scripts = ["LATIN", "GREEK", None]
    inside, known = inside_and_known([Concept(("b",)), Concept(("a",), "LATIN")], text, scripts, ("a", "b"))
    assert inside.T.tolist() == [[False, False, False, True, True], [True, False, False, False, False]]
    assert known.T.tolist() == [[True] * 5, [True, False, True, True, False]]
    assert script_shares(text, scripts, ("a", "b")) == {"a": {"LATIN": 0.5, "GREEK": 0.5}, "b": {"GREEK": 1.0}}
    fires = torch.zeros(200, dtype=torch.bool)
    half = torch.arange(200) % 2 == 0
    assert _rates(~fires, half, half, fires.long()) == (1.0, 0.0)  # none of those outside is known
    assert _rates(half, torch.arange(200) < 19, ~fires, fires.long()) == pytest.approx((0.0, 90 / 181))  # 19: too few


def test_scripts_that_tell_languages_apart():
    shares = {"a": {"LATIN": 0.96, "GREEK": 0.04}, "b": {"LATIN": 0.94, "CYRILLIC": 0.06}, "c": {"LATIN": 1.0}}
    found = concepts_of([ROLES["script"]], tuple("abc"), shares, random.Random(0))
    assert found["script"] == [Concept(("b",), "CYRILLIC")]


def test_layers_are_filled_evenly_and_balanced_where_something_is_needed():
    concepts = {"language": [Concept((label,)) for label in "abcd"], "none": [Concept(tuple("abcd"))]}
    layers = {concept: [0, 1, 2] for concept in concepts["language"]}
    roles = [ROLES["specific"], ROLES["loud"], ROLES["balance"]]
    cells = place_cells(roles, concepts, layers, {}, 6, random.Random(0))
    counts = Counter(cell.layer for cell in cells if cell.role.writes != "balance")
    assert counts.total() == 48 and max(counts.values()) - min(counts.values()) <= 2
    layers = {concept: [int(concept.languages[0] == "d")] for concept in concepts["language"]}
    concepts["group"] = [Concept(("a", "b"))]
    cells = place_cells(
        [ROLES["shared"], *roles[1:]], concepts, {**layers, concepts["group"][0]: [2]}, {}, 1, random.Random(0)
    )
    assert [(str(cell.role.name), cell.layer) for cell in cells] == [
        ("shared", 2), ("loud", 0), ("loud", 0), ("loud", 0), ("loud", 1), ("balance", 2),
    ]  # fmt: skip


# what is written


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


# text


def test_what_layers_read_is_that_of_single_documents_without_separators(ground, world):
    text = read_text(ground.tokenizer, world.corpora, "find", 100, 30)
    assert {len(ids) for _, ids in text.rows} == {30}  # the separator is among them
    assert [place for place, _ in text.rows] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    rows = [(place, ids[: 10 + number]) for number, (place, ids) in enumerate(text.rows)]
    names = [each.gate for each in ground.names]
    got = inputs_of(ground.hf_model, names, dataclasses.replace(text, rows=rows))
    assert got.ids.tolist() == [token for _, ids in rows for token in ids[1:]]
    assert got.language.tolist() == [place for place, ids in rows for _ in ids[1:]]
    for place, name in enumerate(names):
        seen = []
        handle = ground.hf_model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0][0, 1:])
        )
        with torch.no_grad():
            for _, ids in rows:
                ground.hf_model(torch.tensor([ids]))
        handle.remove()
        torch.testing.assert_close(got.layers[place], torch.cat(seen), atol=1e-5, rtol=1e-4)


def test_a_token_of_two_scripts_or_of_a_part_of_a_letter_has_none():
    class Tokenizer(list):
        def batch_decode(self, rows):
            return [self[token] for (token,) in rows]

    tokens = Tokenizer(["ab", "\u03b1\u03b2", "a\u03b1", "12", "\ufffda", " c."])
    assert token_scripts(tokens, 8) == ["LATIN", "GREEK", None, None, None, "LATIN", None, None]
    assert token_scripts(tokens, 1) == ["LATIN"]


def test_units_in_one_layer_alone_are_measured():
    model, corpora = lsn.load_model("demo", device="cpu"), lsn.load_corpora("demo", ["en", "ja"])
    text = read_text(model.tokenizer, corpora, "hold_out", 200, 128)
    unit = {"layer": 2, "unit": 7, "role": "specific", "concept": "ja", "languages": ("ja",), "script": "HIRAGANA",
            "truth": True, "sign": 1, "level": 0.0}  # fmt: skip
    (row,) = measure_roles(model, text, pd.DataFrame([unit]), progress=False).to_dict("records")
    assert (row["layer"], row["unit"]) == (2, 7) and 0 < row["own_rate"] < 1 and row["writes"] == 1
