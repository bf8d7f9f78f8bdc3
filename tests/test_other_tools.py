"""Recipes for other tools: the plain model under them is the model under the intervention."""

import importlib.util
from contextlib import contextmanager

import jaxtyping
import pytest
import torch
from conftest import D_MLP, D_MODEL, LAYERS, VOCABULARY, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.interventions import recipe
from lsn_lens.refusal import DoesNotApply

KEYS = {"llama": D_MODEL // 2, "gpt2": D_MODEL}
WIDTHS = {"mlp": {"llama": D_MLP, "gpt2": 4 * D_MODEL}, "k": KEYS, "v": KEYS}
IDS = torch.arange(18).view(2, 9) * 7 % VOCABULARY
ADDED = ("resid", "attn_out", "mlp_out")


def shape(basis, architecture):
    return LAYERS, WIDTHS.get(basis, {}).get(architecture, D_MODEL)


def units(architecture, *bases, seed=0, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    masks = {basis: torch.rand(1, *shape(basis, architecture), generator=generator) < share for basis in bases}
    return lsn.NeuronSet(("fr",), masks)


def values(architecture, *bases):
    generator = torch.Generator().manual_seed(1)
    return {basis: torch.randn(*shape(basis, architecture), generator=generator) for basis in bases}


def steps(name):
    """One intervention on many kinds of units; the steps meet in some units."""
    first, second = units(name, "q", "k", "z", "mlp", "resid"), units(name, "mlp", "q", "attn_out", seed=2)
    added = values(name, "mlp", "q", "attn_out")
    return lsn.Intervention("all", ((first, lsn.zero), (second, lsn.add(added)), (first | first, lsn.scale(-2))))


CASES = {
    "zero": lambda name: (units(name, "mlp"), lsn.zero),
    "set": lambda name: (units(name, "mlp", "k", "v"), lsn.set_to(values(name, "mlp", "k", "v"))),
    "steps": lambda name: (steps(name), None),
}


@contextmanager
def with_transformers(model, text):
    handles = run(text)(model)
    yield lambda: model(IDS).logits
    for each in handles:
        each.remove()


@contextmanager
def with_pyvene(model, text):
    yield lambda: run(text)(model)({"input_ids": IDS})[1].logits


@contextmanager
def with_nnsight(model, text):
    from nnsight import LanguageModel

    apply, traced = run(text), LanguageModel(model, tokenizer=tiny_tokenizer())

    def logits():
        with traced.trace(IDS):
            apply(traced)
            made = traced.output.logits.save()
        return made  # noqa: RET504 (a trace holds no return)

    yield logits


@contextmanager
def with_steering_vectors(model, given):
    from steering_vectors import SteeringVector

    with SteeringVector(**given).apply(model):
        yield lambda: model(IDS).logits


TOOLS = {"transformers": with_transformers, "pyvene": with_pyvene, "nnsight": with_nnsight}


def run(text):
    made = {}
    exec(text, made)
    return made["apply"]


@torch.no_grad()
def compare(model, plain, what, action, tool, how):
    with lsn.intervene(model, what, action):
        expected = model(IDS, return_type="logits")
    clean = plain(IDS).logits
    with how(plain, recipe(model, what, action, tool)) as logits:
        made = logits()
    assert (made - expected).abs().max() < 1e-5 * expected.std() < 0.1 * (clean - expected).abs().max()
    assert torch.equal(plain(IDS).logits, clean)


def needs(tool):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_recipe_is_the_intervention(name, case, tool, load, hugging_face):
    needs(tool)
    compare(load(name, "bridge"), hugging_face(name), *CASES[case](name), tool, TOOLS[tool])


@pytest.mark.parametrize("basis", ADDED)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_steering_vector_holds_what_is_added(name, basis, load, hugging_face):
    model, found, added = load(name, "bridge"), units(name, basis), values(name, basis)
    given = recipe(model, found, lsn.add(added), "steering_vectors")
    assert given["layer_type"] == dict(zip(ADDED, ("decoder_block", "self_attn", "mlp"), strict=True))[basis]
    for layer in range(LAYERS):
        assert torch.equal(given["layer_activations"][layer], added[basis][layer] * found.masks[basis][0, layer])
    needs("steering_vectors")
    compare(model, hugging_face(name), found, lsn.add(added), "steering_vectors", with_steering_vectors)


REFUSED = {
    "token": (("mlp",), lsn.zero.at(slice(0, 1)), "transformers", "depends on the token"),
    "others": (("resid",), lsn.remove_direction({"resid": torch.ones(LAYERS, D_MODEL)}), "pyvene", "unit by itself"),
    "gate": (("mlp",), lsn.set_to(1.0).on("mlp_act"), "nnsight", r"act\(gate\)"),
    "tool": (("mlp",), lsn.zero, "x", "tool='x': expected one of"),
    "basis": (("mlp",), lsn.add(1.0), "steering_vectors", r"on \['mlp'\]: steering-vectors adds to"),
    "zero": (("resid",), lsn.zero, "steering_vectors", "a vector is added"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_down_is_refused(case, load, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    bases, action, tool, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        recipe(load("llama", "bridge"), units("llama", *bases), action, tool)


def test_a_recipe_is_of_one_intervention_with_units_and_its_logits_are_compared(load, monkeypatch):
    model, found = load("llama", "bridge"), units("llama", "mlp")
    with pytest.raises(DoesNotApply, match="has no units"):
        recipe(model, units("llama", "mlp", share=0))
    with lsn.intervene(model, units("llama", "q")), pytest.raises(ValueError, match="there are hooks on the model"):
        recipe(model, found)
    place = "lsn_lens.interventions.other_tools.place"
    monkeypatch.setattr(place, lambda *_: ("model.layers.0.mlp.down_proj", False, torch.arange(D_MLP).flip(0)))
    with pytest.raises(ValueError, match="under the recipe, logits differ"):
        recipe(model, found)
