"""Whose a set is: fingerprints of models, sets that say it, and what is refused elsewhere."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import BACKENDS, HOOKED_LOADS, LAYERS, PARTS, SENTENCES

import lsn_lens as lsn
from lsn_lens.generation.steering.trials import Trial, run_trials
from lsn_lens.model.loading import skeleton
from lsn_lens.neurons.identity import ENTRIES, fingerprint, joined
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet

TEXTS = {"en": [SENTENCES[0]] * 3, "de": [SENTENCES[1]] * 3}
OTHER = r"found on another model, or on other weights.*\.for_model\(model\)"


# fingerprints


@pytest.mark.parametrize("architecture", [*PARTS, "mixtral"])
def test_a_model_has_one_fingerprint_in_every_class_and_precision(architecture, tiny_model_folder):
    backends = [each for each in BACKENDS if each == "bridge" or architecture in HOOKED_LOADS]
    dtypes = (torch.float32, torch.bfloat16)
    seen = {
        fingerprint(lsn.load_model(tiny_model_folder(architecture), backend=backend, device="cpu", dtype=dtype))
        for backend in backends
        for dtype in dtypes
    }
    assert len(seen) == 1
    assert len(seen.pop()) == 32


def test_half_precision_files_have_one_fingerprint_in_all_three_precisions(hugging_face, tmp_path, load):
    hugging_face("llama").half().save_pretrained(tmp_path)
    load("llama").tokenizer.save_pretrained(tmp_path)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert len({fingerprint(lsn.load_model(tmp_path, device="cpu", dtype=dtype)) for dtype in dtypes}) == 1


def test_models_differ_in_their_fingerprints(load, demo):
    names = ("llama", "llama_mha", "qwen2", "gpt2", "neox", "opt", "bloom", "mixtral")
    seen = [fingerprint(load(name, "bridge")) for name in names]
    assert len({*seen, fingerprint(demo)}) == 9


EDITS = {
    "W_in": lambda m: m.blocks[1].mlp.W_in, "W_out": lambda m: m.blocks[0].mlp.W_out,
    "W_gate": lambda m: m.blocks[0].mlp.W_gate, "W_Q": lambda m: m.blocks[1].attn.W_Q,
    "W_K": lambda m: m.blocks[1].attn.W_K, "W_V": lambda m: m.blocks[0].attn.W_V,
    "W_O": lambda m: m.blocks[0].attn.W_O, "embedding": lambda m: m.embed.W_E, "unembedding": lambda m: m.unembed.W_U,
    "norm": lambda m: m.blocks[1].ln1.w, "bias": lambda m: m.blocks[1].attn.b_Q, "last norm": lambda m: m.ln_final.w,
}  # fmt: skip


@pytest.mark.parametrize("part", EDITS)
def test_an_edit_of_any_part_in_place_changes_the_fingerprint(part, load):
    model = load("qwen2", "bridge")
    before, weight = fingerprint(model), EDITS[part](model)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] *= 1.5  # one row, or one number of a vector
        assert fingerprint(model) != before
        weight.copy_(kept)
    assert fingerprint(model) == before


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "neox", "bloom", "qwen2"])
@torch.no_grad()
def test_every_weight_that_changes_the_logits_changes_the_fingerprint(architecture, load):
    model, ids = load(architecture, "bridge"), torch.arange(10)[None] % 7
    before, logits = fingerprint(model), model(ids)
    for name, weight in model.original_model.named_parameters():
        kept = weight.clone()
        weight.mul_(2).add_(0.1)
        changed = bool((model(ids) - logits).abs().max() > 1e-4)
        assert not changed or fingerprint(model) != before, name
        weight.copy_(kept)


@pytest.mark.parametrize("axis", [0, 1])
def test_every_row_and_column_of_a_large_matrix_counts(axis, demo):
    weight = demo.blocks[3].mlp.W_out
    assert weight.numel() > 8 * ENTRIES
    before = fingerprint(demo)
    with torch.no_grad():
        for place in range(0, weight.shape[axis], 67):
            line = weight.select(axis, place)
            kept = line.clone()
            line.zero_()
            assert fingerprint(demo) != before, place
            line.copy_(kept)
    assert fingerprint(demo) == before


def test_weights_that_are_not_there_have_no_fingerprint(hugging_face):
    assert fingerprint(skeleton(hugging_face("llama").config)) is None


# sets say whose they are


@pytest.fixture(scope="module")
def runs(load):
    """`runs(name)`: a tiny model and a run of it."""

    @cache
    def of(name):
        model = load(name)
        corpora = lsn.load_corpora(TEXTS, hold_out=0.4)
        methods = ["lape", "diffmean", "average_precision"]
        return model, lsn.collect(model, corpora, methods, progress=False), corpora

    return of


def test_a_set_says_whose_it_is(runs):
    model, run, _ = runs("llama")
    found = lsn.detect(run, "lape", rate=0.2)
    assert found.origin["fingerprint"] == fingerprint(model) == run.settings["model"]["fingerprint"]
    assert found.origin["model"] == run.settings["model"]["name"]
    assert {"revision", "text", "layout", "dtype", "class"} <= set(found.origin)
    assert found.origin["found"] == ["mlp_pre.positive"]
    assert found.origin["written"] == {"mlp": "mlp_post"}
    assert set(found.origin["versions"]) == {"lsn-lens", "torch", "transformers", "transformer-lens"}
    assert lsn.score(run, "lape").origin == found.origin
    for shown in (repr(found), found._repr_html_()):
        assert f"of {found.origin['model']} (weights {found.origin['fingerprint'][:8]})" in shown
    other = lsn.load_corpora({"en": [SENTENCES[0][4:]] * 3, "de": [SENTENCES[1][4:]] * 3}, hold_out=0.0)
    again = lsn.detect(lsn.collect(model, other, progress=False), "lape")
    assert again.origin["text"] != found.origin["text"]


def test_whose_it_is_goes_with_a_set(runs, tmp_path):
    _, run, _ = runs("llama")
    found = lsn.detect(run, "lape", rate=0.2)
    kept = [
        found["en"], found.only(layers=[0]), found.random_like(1), NeuronSet.load(found.save(tmp_path / "set")),
        found & found, found | lsn.detect(run, "lape", rate=0.1), found - replace(found, origin={}),
        replace(found, origin={}) ^ found,
    ]  # fmt: skip
    for each in kept:
        assert each.origin == json.loads(json.dumps(found.origin)) == found.origin
    scores = lsn.score(run, "lape")
    assert NeuronScores.load(scores.save(tmp_path / "scores")).origin == scores.origin
    both = joined({"fingerprint": "a", "text": 1, "model": "m"}, {"fingerprint": "a", "text": 2, "revision": "r"})
    assert both == {"fingerprint": "a", "model": "m", "revision": "r"}


def test_files_without_an_origin_are_read(tmp_path):
    found = NeuronSet(("en",), {"mlp": torch.zeros(1, 2, 3).bool()})
    path = found.save(tmp_path / "set")
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["lsn_lens"])
    del inner["origin"]
    header["__metadata__"]["lsn_lens"] = json.dumps(inner)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
    assert NeuronSet.load(path) == found
    assert NeuronSet.load(path).origin == {}


def test_sets_of_two_models_are_not_combined(runs):
    one, two = (lsn.detect(runs(name)[1], "lape", rate=0.2) for name in ("llama", "llama_mha"))
    for combine in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a - b, lambda a, b: a ^ b):
        with pytest.raises(ValueError, match=r"sets of two models.*for_model"):
            combine(one, two)
    carried = two.for_model(runs("llama")[0])
    assert "carried over" in (one | carried).notes
    assert (one | carried).origin["fingerprint"] == one.origin["fingerprint"]


# and are refused elsewhere


def test_a_set_of_another_model_is_refused_before_anything_runs(runs, tmp_path, tiny_model_folder):
    model, run, corpora = runs("llama_mha")
    other = lsn.detect(runs("llama")[1], "lape", rate=0.2)
    what = lsn.Intervention("x", ((other, lsn.zero),))
    ran = []
    model.add_hook("blocks.0.hook_resid_post", lambda acts, hook: ran.append(1))
    uses = [
        lambda: lsn.intervene(model, other, lsn.zero).__enter__(),
        lambda: lsn.intervene(model, what).__enter__(),
        lambda: lsn.perplexity_matrix(model, corpora, other, progress=False),
        lambda: lsn.perplexity_matrix(model, corpora, lsn.detect(run, "lape") | other, progress=False),
        lambda: run_trials(model, [Trial(what, ["The river"], [{}], {"tokens": 1})], list, progress=False),
        lambda: lsn.export(tiny_model_folder("llama_mha"), other, tmp_path / "new"),
    ]
    try:
        for use in uses:
            with pytest.raises(ValueError, match=f"{OTHER}|sets of two models"):
                use()
    finally:
        model.reset_hooks()
    assert not ran
    assert not (tmp_path / "new").exists()


def test_values_measured_on_another_model_are_refused(runs):
    model, run, corpora = runs("llama_mha")
    statistics = runs("llama")[1].statistics
    mine = lsn.detect(run, "lape", rate=0.2)
    actions = [
        lsn.mean_ablation(statistics), lsn.other_mean_ablation(statistics)("en"), lsn.language_mean(statistics, "en"),
        lsn.language_median(statistics, "en"), lsn.resample(runs("llama")[0], TEXTS["en"], tokens=4, progress=False),
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(ValueError, match=f"action .*{OTHER}"), lsn.intervene(model, mine, action):
            pass
    with pytest.raises(ValueError, match=OTHER):
        lsn.perplexity_matrix(model, corpora, mine, lsn.other_mean_ablation(statistics), progress=False)
    for pushed in (
        lsn.diffmean_steering(statistics, "en", layer=0),
        lsn.language_arithmetics(statistics, mine, "en"),
    ):
        with pytest.raises(ValueError, match=OTHER), lsn.intervene(model, pushed):
            pass
    carried = lsn.mean_ablation(statistics).for_model(model)
    assert "carried over from" in carried.name
    with lsn.intervene(model, mine, carried):
        pass
    mean = lsn.mean_ablation(run.statistics)
    assert mean.for_model(model) is mean


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_fits_every_load_of_its_model(backend, runs, tiny_model_folder, tmp_path):
    _, run, _ = runs("llama")
    found, mean = lsn.detect(run, "lape", rate=0.2), lsn.mean_ablation(run.statistics)
    for dtype in (torch.float32, torch.bfloat16):
        model = lsn.load_model(tiny_model_folder("llama"), backend=backend, device="cpu", dtype=dtype)
        with lsn.intervene(model, found, mean):
            model(torch.tensor([[1, 2, 3]]))
    lsn.export(tiny_model_folder("llama"), found, tmp_path / "off")
    assert json.loads((tmp_path / "off" / "lsn_lens.json").read_text())["origin"] == found.origin


def test_edited_weights_are_another_model_until_said_otherwise(runs, load):
    found = lsn.detect(runs("llama")[1], "lape", rate=0.2)
    model = copy.deepcopy(load("llama", "bridge"))
    with torch.no_grad():
        model.blocks[1].mlp.W_out[7] = 0
    with pytest.raises(ValueError, match=OTHER), lsn.intervene(model, found, lsn.zero):
        pass
    carried = found.for_model(model)
    assert carried == found
    with lsn.intervene(model, carried, lsn.zero):
        pass
    (told,) = carried.notes["carried over"]
    assert told.startswith("from ")
    assert all(print_[:8] in told for print_ in (found.origin["fingerprint"], fingerprint(model)))
    assert told in repr(carried)
    assert carried.origin["text"] == found.origin["text"]
    assert carried["en"].random_like(0).notes["carried over"] == [told]
    assert carried.for_model(model) is carried
    assert found.for_model(load("llama")) is found


def test_sets_made_by_hand_are_used_on_any_model(load):
    found = NeuronSet(("en",), {"mlp": torch.ones(1, LAYERS, 48).bool()})
    for name in ("llama", "llama_mha"):
        with lsn.intervene(load(name), found, lsn.set_to(0.5)):
            pass


def test_a_run_from_disk_says_the_same(load, tmp_path):
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    run = lsn.collect(load("llama"), corpora, out=tmp_path / "run", progress=False)
    again = lsn.load_run(tmp_path / "run")
    assert lsn.detect(again, "lape").origin == lsn.detect(run, "lape").origin
    assert again.statistics.origin["fingerprint"] == fingerprint(load("llama"))


REFUSED = """
import torch, numpy as np, lsn_lens as lsn
from lsn_lens.neurons.sets import NeuronSet
found = NeuronSet(["en"], {"mlp": torch.ones(1, 2, 5).bool()})
values = torch.ones(2, 5)
calls = {
    "word": lambda: lsn.intervene(None, found, "off"), "class": lambda: lsn.intervene(None, found, lsn.scale),
    "tensor": lambda: lsn.intervene(None, found.masks["mlp"], lsn.zero),
    "dict": lambda: lsn.intervene(None, {"en": found}, lsn.zero), "name": lambda: lsn.intervene(None, "en", lsn.zero),
    "step": lambda: lsn.Intervention("x", ((found, 0),)), "text": lambda: lsn.set_to("0"),
    "truth": lambda: lsn.set_to(True), "mask": lambda: lsn.set_to({"mlp": values.bool()}),
    "list": lambda: lsn.add({"mlp": [[1.0]]}), "flat": lambda: lsn.add({"mlp": values[0]}),
    "bare": lambda: lsn.set_to(values), "factor": lambda: lsn.scale("2"), "factors": lambda: lsn.scale({"mlp": values}),
    "place": lambda: lsn.zero.at(slice(0, 1.5)), "masks": lambda: NeuronSet(["en"], {"mlp": np.ones((1, 2, 5), bool)}),
    "bare masks": lambda: NeuronSet(["en"], found.masks["mlp"]),
    "origin": lambda: NeuronSet(["en"], {}, "", {}, "demo"),
    "documents": lambda: lsn.resample(None, "The river"),
}
for name, call in calls.items():
    try:
        made = call()
        made.__enter__() if hasattr(made, "__enter__") else None
        print(name, "| nothing")
    except Exception as error:
        print(name, "|", type(error).__name__, "|", error)
arrays = lsn.set_to({"mlp": np.arange(10).reshape(2, 5)}).values["mlp"], lsn.set_to(np.float32(0.5)).values
print(arrays[0].dtype, tuple(arrays[0].shape), arrays[1], lsn.scale(torch.tensor(2)).values)
"""


def test_what_is_no_set_no_action_and_no_value_is_refused_in_words():
    """In a process of its own: here the types of arguments are checked before the package sees them."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    told = {line.split(" | ")[0]: line.split(" | ", 1)[1] for line in lines}
    assert all(each.startswith("ValueError | ") for each in told.values()), told
    expected = {
        "word": r"'off'.*the words \['zero', 'mean', 'other mean'\].*lsn.zero",
        "class": "makes an action: call it", "tensor": "got Tensor as the units",
        "dict": "got dict as the units", "name": "got str as the units", "step": "type int", "text": "got str",
        "truth": "got bool", "mask": r"torch.bool \[2, 5\]", "list": "are list", "flat": r"\[5\], expected a tensor",
        "bare": "got Tensor", "factor": "got str", "factors": "one number for all units", "place": "whole number",
        "masks": r"got bool \(1, 2, 5\)", "bare masks": "masks: expected", "origin": "expected a mapping",
        "documents": "letter by letter",
    }  # fmt: skip
    for name, pattern in expected.items():
        assert re.search(pattern, told[name]), (name, told[name])
    assert last == "torch.float32 (2, 5) 0.5 2"
