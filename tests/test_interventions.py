"""Interventions do to a model's computation what editing its weights or modules would do, and leave no trace."""

import gc
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import (
    BACKENDS,
    D_MLP,
    D_MODEL,
    HOOKED_LOADS,
    LAYERS,
    PARTS,
    every_model,
    parts,
)
from jaxtyping import TypeCheckError
from oracles import assert_close, edited, hooks_of, keep, some_ids, some_units

import lsn_lens as lsn
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.model import structure, unembedding
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES, WRITE_SITE, flat

LENGTHS = (9, 6)

pytestmark = pytest.mark.usefixtures("no_gradients")


def padded(side):
    """Rows of `LENGTHS` tokens, and their mask."""
    ids, mask = some_ids(len(LENGTHS), max(LENGTHS)), torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(0, length) if side == "right" else slice(-length, None)] = 1
    return ids, mask


# what an intervention computes


@every_model
@pytest.mark.parametrize("basis", [basis for basis in WRITE_SITE if basis != "resid"])
def test_zero_is_removing_the_weights(architecture, backend, basis, load, hugging_face):
    model = load(architecture, backend)
    if not structure.has_site(model, WRITE_SITE[basis]):
        pytest.skip("no gate, no up projection")
    found = some_units(model, basis)
    ids = some_ids()
    before = model(ids)
    expected = edited(hugging_face(architecture), architecture, found)(ids).logits
    with lsn.intervene(model, found, lsn.zero):
        actual = model(ids)
    assert_close(actual, expected)
    assert (actual - before).abs().max() > 0.05 * before.std()


@every_model
@pytest.mark.parametrize("side", ["right", "left"])
def test_zero_under_padding(architecture, backend, side, load, hugging_face):
    model = load(architecture, backend)
    found = some_units(model)
    ids, mask = padded(side)
    reference = edited(hugging_face(architecture), architecture, found)
    with lsn.intervene(model, found, lsn.zero):
        actual = model(ids, attention_mask=mask)
    for row, kept in enumerate(mask.bool()):
        assert_close(actual[row, kept], reference(ids[row, kept][None]).logits[0])


@every_model
def test_zero_in_cached_generation(architecture, backend, load, hugging_face):
    model = load(architecture, backend)
    found = some_units(model)
    ids = some_ids()
    hf_model = edited(hugging_face(architecture), architecture, found)
    hf_model.generation_config.eos_token_id = None
    expected = hf_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    with lsn.intervene(model, found, lsn.zero):
        cached = model.generate(ids, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
        uncached = ids
        for _ in range(8):
            uncached = torch.cat([uncached, model(uncached)[:, -1].argmax(-1, keepdim=True)], 1)
    assert cached.tolist() == uncached.tolist() == expected.tolist()


def test_changes_act_like_hooks_on_the_hugging_face_modules(load, hugging_face):
    """Grouped heads: a unit of z is a column of o_proj, a unit of v an output of v_proj."""
    ids = some_ids()
    for backend in BACKENDS:
        model = load("llama", backend)
        for basis in WRITE_SITE:
            found = some_units(model, basis)
            hf_model = hugging_face("llama")
            for layer, units in enumerate(found.units(basis)):
                change_module(parts("llama", hf_model, layer), basis, units, lambda acts: acts * -2 + 0.5)
            with lsn.intervene(model, found, lsn.scale(-2)), lsn.intervene(model, found, lsn.add(0.5)):
                assert_close(model(ids), hf_model(ids).logits)


def change_module(modules, basis, units, change):
    """Change some outputs of a Hugging Face module with a plain torch hook; inputs of o_proj and down_proj."""

    def changed(acts):
        return torch.where(units, change(acts), acts)

    if basis in ("mlp", "z"):
        module = modules.down if basis == "mlp" else modules.o
        module.register_forward_pre_hook(lambda module, args: (changed(args[0]), *args[1:]))
    else:
        module = modules.block if basis == "resid" else getattr(modules, basis)
        module.register_forward_hook(lambda module, args, output: changed(output))


ACTIONS = {
    "zero": (lsn.zero, lambda acts, values: torch.zeros_like(acts)),
    "set_to": (lsn.set_to(1.5), lambda acts, values: torch.full_like(acts, 1.5)),
    "set_to values": (lambda values: lsn.set_to(values, "mean"), lambda acts, values: values.expand_as(acts)),
    "scale": (lsn.scale(-0.5), lambda acts, values: acts * -0.5),
    "add": (lsn.add(0.25), lambda acts, values: acts + 0.25),
    "add values": (lsn.add, lambda acts, values: acts + values),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("basis", ["mlp", "v", "z", "mlp_out", "resid"])
@pytest.mark.parametrize("kind", ACTIONS)
def test_values_land_where_they_should(backend, basis, kind, load):
    """Read back right after the write, in a layer whose input the intervention left alone."""
    model = load("llama", backend)
    site = SITES[WRITE_SITE[basis]]
    found = some_units(model, basis)
    found.masks[basis][:, 0] = False  # layer 1 only
    units = found.units(basis)
    values = torch.arange(units.numel(), dtype=torch.float64).view(units.shape) / units.numel()
    action, expected = ACTIONS[kind]
    ids, mask = padded("right")
    before = read(model, site, ids, mask)
    with lsn.intervene(model, found, action({basis: values}) if kind.endswith("values") else action):
        after = read(model, site, ids, mask)
    chosen = units[1]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][..., ~chosen], before[1][..., ~chosen])
    assert torch.equal(after[1][..., chosen], expected(before[1], values[1].float())[..., chosen])
    assert not torch.equal(after[1], before[1])


def read(model, site, ids, mask=None):
    """What a hook added now sees at a site, by layer, units flat."""
    seen = {}
    hooks = [(site.hook_name(layer), keep(seen, layer)) for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=hooks):
        model(ids, attention_mask=mask)
    return {layer: flat(acts, site) for layer, acts in seen.items()}


# act(gate)


GATED = [each for each in PARTS if "up" in PARTS[each]]
gated_model = pytest.mark.parametrize(
    ("architecture", "backend"),
    [(each, backend) for each in GATED for backend in BACKENDS if backend == "bridge" or each in HOOKED_LOADS],
)
GATE_CHANGES = {
    "set": (lsn.set_to(0.7), lambda acts: torch.full_like(acts, 0.7)),
    "scale": (lsn.scale(-1.5), lambda acts: acts * -1.5),
    "add": (lsn.add(0.3), lambda acts: acts + 0.3),
    "zero": (lsn.zero, torch.zeros_like),
}


def hook_gate(architecture, hf_model, found, change):
    """Change chosen outputs of the activation function, in place of the product."""
    for layer, units in enumerate(found.units("mlp")):
        parts(architecture, hf_model, layer).act.register_forward_hook(
            lambda module, args, output, units=units: torch.where(units, change(output), output)
        )
    return hf_model


@gated_model
@pytest.mark.parametrize("kind", GATE_CHANGES)
def test_act_of_the_gate_is_the_activation_functions_output(kind, architecture, backend, load, hugging_face):
    model, ids = load(architecture, backend), some_ids()
    found, (action, change) = some_units(model), GATE_CHANGES[kind]
    expected = hook_gate(architecture, hugging_face(architecture), found, change)(ids).logits
    with lsn.intervene(model, found, action.on("mlp_act")):
        assert_close(model(ids), expected)
    with lsn.intervene(model, found, action):
        same = (model(ids) - expected).abs().max() <= 2e-5 * expected.std()
    assert bool(same) == (kind in ("zero", "scale")), "setting the product is another thing"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", [each for each in PARTS if each not in GATED])
def test_without_a_gate_both_mlp_sites_are_one(architecture, backend, load):
    model, ids = (
        load(architecture, backend) if backend == "bridge" or architecture in HOOKED_LOADS else None,
        some_ids(),
    )
    found = some_units(model)
    for action in (lsn.set_to(0.7), lsn.add(0.3)):
        with lsn.intervene(model, found, action):
            expected = model(ids)
        with lsn.intervene(model, found, action.on("mlp_act")):
            assert torch.equal(model(ids), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_later_changes_of_the_gate_see_earlier_ones(backend, load):
    """Zero, then add: act(gate) is what was added. As steps, as nested blocks, and from either site."""
    model, ids = load("llama", backend), some_ids()
    found = some_units(model)
    add = lsn.add(0.3).on("mlp_act")
    with lsn.intervene(model, found, lsn.set_to(0.3).on("mlp_act")):
        expected = model(ids)
    for first in (lsn.zero, lsn.zero.on("mlp_act")):
        with lsn.intervene(model, lsn.Intervention("both", ((found, first), (found, add)))):
            assert_close(model(ids), expected)
        with lsn.intervene(model, found, first), lsn.intervene(model, found, add):
            assert_close(model(ids), expected)
    with lsn.intervene(model, lsn.Intervention("other order", ((found, add), (found, lsn.zero)))):
        assert (model(ids) - expected).abs().max() > 0.05 * expected.std()


def test_a_perplexity_table_changes_act_of_the_gate(load, hugging_face):
    """On a bridge this runs lean: Hugging Face's own modules wherever no hook is needed."""
    texts = {"de": ["Der Fluss steht hoch.", "Die Brücke ist gesperrt, und der Regen"], "en": ["The river is high."]}
    corpora = lsn.load_corpora(texts, hold_out=0.0)
    corpora = {label: replace(corpus, hold_out=corpus.find) for label, corpus in corpora.items()}
    for backend in BACKENDS:
        model = load("llama", backend)
        found = NeuronSet(("de",), some_units(model).masks)
        layout = lsn.Layout(kind="documents", equal=False)
        action = lsn.set_to(0.7).on("mlp_act")
        table = lsn.perplexity_table(model, corpora, found, action, layout=layout, progress=False)
        rows = table[table["intervened"] == "de"].set_index("evaluated")
        hf_model = hook_gate("llama", hugging_face("llama"), found, GATE_CHANGES["set"][1])
        for label, documents in texts.items():
            scores = []
            for text in documents:
                ids = torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
                chances = hf_model(ids).logits[0, :-1].log_softmax(-1)
                scores += (-chances.gather(1, ids[0, 1:, None])[:, 0]).tolist()
            assert rows.loc[label, "nll"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_a_loss_beyond_what_perplexity_can_hold(load, monkeypatch):
    """A model broken so far that the perplexity overflows still has a row, with its loss."""
    corpora = lsn.load_corpora({"de": ["Der Fluss steht hoch."] * 4, "en": ["The river is high."] * 4})
    model, layout = load("llama"), lsn.Layout(kind="documents", equal=False)
    monkeypatch.setattr(
        unembedding, "token_losses", lambda model, ids, mask, at, targets: 1000.0 + 0 * targets.double()
    )
    table = lsn.perplexity_table(model, corpora, some_units(model), lsn.zero, layout=layout, progress=False)
    assert (table["nll"] == 1000).all() and (table["perplexity"] == float("inf")).all()


# directions, places, several at once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_removed_direction_is_gone(dtype, backend, load, hugging_face):
    """Over the chosen dimensions; a direction of length 0 takes nothing out."""
    model, ids = load("llama", backend), some_ids()
    found = some_units(model, "resid", 0.6)
    directions = torch.randn(LAYERS, D_MODEL, generator=torch.Generator().manual_seed(2))
    with lsn.intervene(model, found, lsn.remove_direction({"resid": directions})):
        after, logits = read(model, SITES["resid_post"], ids), model(ids)
    hf_model = hugging_face("llama")
    for layer, units in enumerate(found.units("resid")):
        direction = directions[layer] * units
        direction = direction / direction.square().sum().sqrt()
        assert (after[layer] @ direction).abs().max() < 1e-5
        parts("llama", hf_model, layer).block.register_forward_hook(
            lambda module, args, output, d=direction: output - (output @ d)[..., None] * d
        )
    assert_close(logits, hf_model(ids).logits)
    change = lsn.remove_direction({"resid": directions}).change
    acts, direction = torch.randn(3, 5, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    left = change(acts, direction)
    assert left.dtype == dtype
    assert (left.double() @ direction.double()).abs().max() < 8 * torch.finfo(dtype).eps * direction.double().norm() * 4
    assert torch.equal(change(acts, torch.zeros(8, dtype=dtype)), acts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_by_place_repeat_along_the_text(backend, load):
    model, (ids, mask) = load("llama", backend), padded("right")
    found, values = some_units(model), torch.randn(LAYERS, 4, D_MLP, generator=torch.Generator().manual_seed(5))
    with lsn.intervene(model, found, lsn.set_to({"mlp": values})):
        after = read(model, SITES["mlp_post"], ids, mask)
    for layer, units in enumerate(found.units("mlp")):
        expected = values[layer][torch.arange(max(LENGTHS)) % 4][:, units]
        assert torch.equal(after[layer][..., units], expected.expand(len(LENGTHS), -1, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_an_intervention_are_nested_blocks(backend, load):
    model, ids = load("llama", backend), some_ids()
    first, second, third = some_units(model, seed=1), some_units(model, seed=2), some_units(model, "z")
    steps = ((first, lsn.set_to(0.7)), (second, lsn.scale(2.0)), (third, lsn.zero))
    what = lsn.Intervention("three", steps)
    assert len(what) == len(first | second) + len(third) < len(first) + len(second) + len(third)
    assert repr(what) == f"<Intervention 'three': set of {len(first)}, scale 2 of {len(second)}, zero of {len(third)}>"
    blocks = [lsn.intervene(model, neurons, action) for neurons, action in steps]
    with blocks[0], blocks[1], blocks[2]:
        expected = model(ids)
    with lsn.intervene(model, what):
        assert torch.equal(model(ids), expected)
    with lsn.intervene(model, lsn.Intervention("turned", steps[::-1])):
        assert not torch.equal(model(ids), expected), "the order matters"
    with (
        pytest.raises(ValueError, match=r"'three' is an Intervention and has its own.*cannot take zero"),
        lsn.intervene(model, what, lsn.zero),
    ):
        pass


def test_names_of_actions():
    for action, name in (
        (lsn.zero.at("prompt"), "zero, prompt"),
        (lsn.scale(2).at(slice(0, 1)), "scale 2, positions 0:1"),
        (lsn.scale(2).at(slice(3, None)), "scale 2, positions 3:"),
        (lsn.scale(2).at(slice(None, 9, 2)), "scale 2, positions :9:2"),
        (lsn.set_to(1).on("mlp_act").at("last"), "set on mlp_act, last"),
    ):
        assert action.name == repr(action) == name


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_bases_and_languages_at_once(backend, load):
    model = load("llama", backend)
    sets = [some_units(model, basis, seed=seed) for basis, seed in (("mlp", 0), ("z", 1))]
    both = NeuronSet(("xx",), {**sets[0].masks, **sets[1].masks})
    ids = some_ids()
    with lsn.intervene(model, sets[0]), lsn.intervene(model, sets[1]):
        expected = model(ids)
    with lsn.intervene(model, both):
        assert torch.equal(model(ids), expected)
    halves = torch.cat([sets[0].masks["mlp"], some_units(model, seed=2).masks["mlp"]])
    with lsn.intervene(model, NeuronSet(("xx", "yy"), {"mlp": halves})):
        together = model(ids)
    with lsn.intervene(model, NeuronSet(("zz",), {"mlp": halves.any(0, keepdim=True)})):
        assert torch.equal(model(ids), together)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_ablation_sets_the_means_of_a_run(backend, load):
    model = load("llama", backend)
    width = structure.site_width(model, "mlp_post")
    sums = torch.randn(3, LAYERS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    statistics = lsn.Statistics(("de", "fr", "zh"), {"mlp_post.sum": sums}, torch.full((3, LAYERS), 4))
    found = some_units(model)
    for action, expected in (
        (lsn.mean_ablation(statistics), sums.mean(0) / 4),
        (lsn.other_mean_ablation(statistics)("fr"), sums[[0, 2]].mean(0) / 4),
    ):
        with lsn.intervene(model, found, action):
            after = read(model, SITES["mlp_post"], some_ids())
        for layer, units in enumerate(found.units("mlp")):
            assert torch.equal(after[layer][..., units], expected[layer, units].float().expand(2, 9, -1))


# no trace


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_behind(backend, load):
    model = load("llama", backend)
    found, ids = some_units(model), some_ids()
    before, weights, copy = model(ids), structure.describe(model)["weights_hash"], ids.clone()
    hooks = hooks_of(model)
    with lsn.intervene(model, found, lsn.set_to(3.0)) as inside:
        assert inside is model
        assert hooks_of(model) != hooks
        assert not torch.equal(model(ids), before)
    with pytest.raises(RuntimeError, match="by the user"), lsn.intervene(model, found):
        raise RuntimeError("by the user")
    with pytest.raises(RuntimeError, match="in a forward pass"), lsn.intervene(model, found, broken_action()):
        model(ids)
    assert hooks_of(model) == hooks
    assert torch.equal(model(ids), before)
    assert structure.describe(model)["weights_hash"] == weights
    assert torch.equal(ids, copy)


def broken_action():
    def change(acts, values):
        raise RuntimeError("in a forward pass")

    return lsn.interventions.Action("broken", change)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_seen_by_others_stay_as_they_were(backend, load):
    """A hook that came first keeps the activation without a copy: the write must not show in it."""
    model = load("llama", backend)
    ids, kept = some_ids(), {}
    name = SITES["mlp_post"].hook_name(1)

    def keep_without_copy(acts, hook):
        kept["acts"], kept["copy"] = acts, acts.clone()

    with model.hooks(fwd_hooks=[(name, keep_without_copy)]), lsn.intervene(model, some_units(model)):
        model(ids)
    assert torch.equal(kept["acts"], kept["copy"])
    assert kept["acts"].abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_users_own_hooks_stay_and_see_only_the_users_passes(backend, load):
    model = load("llama", backend)
    calls = []
    model.add_hook(SITES["mlp_post"].hook_name(0), lambda acts, hook: calls.append(1))
    try:
        with lsn.intervene(model, some_units(model)):
            calls.clear()
            model(some_ids())
        assert len(calls) == 1
        calls.clear()
        intervention_hooks(model, some_units(model), lsn.zero)
        assert not calls, "probing the model's width must not fire hooks of others"
        model(some_ids())
        assert len(calls) == 1
    finally:
        model.reset_hooks()


@every_model
def test_nesting(architecture, backend, load):
    """The inner one acts on what the outer one left; each goes with its own block."""
    model = load(architecture, backend)
    outer, inner, ids = some_units(model, seed=1), some_units(model, seed=2), some_ids()
    hooks = hooks_of(model)
    with lsn.intervene(model, outer, lsn.set_to(0.7)):
        alone = model(ids)
        with lsn.intervene(model, inner, lsn.scale(2.0)):
            values = read(model, SITES["mlp_post"], ids)[1]
        assert torch.equal(model(ids), alone)
    shared = (outer & inner).units("mlp")[1]
    assert shared.any()
    assert torch.equal(values[..., shared], torch.full_like(values[..., shared], 1.4))
    assert hooks_of(model) == hooks


@pytest.mark.parametrize("backend", BACKENDS)
def test_sites_can_be_probed_inside_an_intervention(backend, load):
    """The probe looks at the bare model: neurons that are held at a value are no sign of another architecture."""
    model = load("llama", backend)
    with lsn.intervene(model, some_units(model), lsn.set_to(5)):
        changed = model(some_ids())
        assert structure.site_width(model, "mlp_act") == D_MLP
        assert torch.equal(model(some_ids()), changed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_set_changes_nothing(backend, load):
    model = load("llama", backend)
    ids, before, hooks = some_ids(), model(some_ids()), hooks_of(model)
    empty = NeuronSet(("xx",), {"mlp": torch.zeros(1, LAYERS, D_MLP, dtype=torch.bool)})
    for what in (empty, lsn.Intervention("set", ((empty, lsn.set_to(9.0)),)), lsn.Intervention("set")):
        action = lsn.set_to(9.0) if what is empty else None
        with (
            pytest.warns(UserWarning, match="'set' has no units: the model is unchanged") as warned,
            lsn.intervene(model, what, action),
        ):
            assert hooks_of(model) == hooks
            assert torch.equal(model(ids), before)
        assert warned[0].filename == __file__


def test_half_precision(tiny_model_folder):
    """Values in float32 or float64 are brought to the activations' dtype."""
    for backend in BACKENDS:
        model = lsn.load_model(tiny_model_folder("llama"), backend=backend, device="cpu", dtype=torch.bfloat16)
        found = some_units(model)
        values = {"mlp": torch.full((LAYERS, D_MLP), 0.1, dtype=torch.float64)}
        with lsn.intervene(model, found, lsn.set_to(values)):
            seen = read(model, SITES["mlp_post"], some_ids())[0]
        assert seen.dtype == torch.bfloat16
        assert (seen[..., found.units("mlp")[0]] == torch.tensor(0.1, dtype=torch.bfloat16)).all()


# blocks that nobody entered


def test_a_block_without_with_says_so(load):
    model = load("llama")
    with pytest.warns(UserWarning, match=r"intervene\('zero'\) was not used.*with lsn.intervene"):
        lsn.intervene(model, some_units(model))
        gc.collect()


USED = """
import contextlib, gc, sys, warnings
import torch, lsn_lens as lsn
warnings.simplefilter("error")
sys.unraisablehook = lambda each: print("raised", each.exc_value)
model = lsn.load_model("demo", device="cpu")
found = lsn.NeuronSet(["xx"], {"mlp": torch.ones(1, model.cfg.n_layers, model.cfg.d_mlp).bool()})
with lsn.intervene(model, found), contextlib.ExitStack() as stack:
    stack.enter_context(lsn.intervene(model, found, "zero"))
with contextlib.suppress(RuntimeError), lsn.intervene(model, found):
    raise RuntimeError
with contextlib.suppress(KeyError), lsn.intervene(model, found, lsn.set_to({"z": torch.zeros(1, 1)})):
    pass
changed = lsn.intervene(model, found)(lambda: None)
changed(), changed()
del changed
gc.collect()
print("still here")
kept = lsn.intervene(model, found)  # until the interpreter ends
"""


def test_blocks_that_were_entered_and_the_end_of_python_are_silent():
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["still here", ""] and "was not used" not in done.stderr


# refusals


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend, load):
    model = load("llama", backend)
    found, hooks = some_units(model), hooks_of(model)
    wrong = {
        "units": NeuronSet(("xx",), {"mlp": torch.ones(1, LAYERS, D_MLP + 1, dtype=torch.bool)}),
        "layers": NeuronSet(("xx",), {"mlp": torch.ones(1, LAYERS + 1, D_MLP, dtype=torch.bool)}),
        "grouped heads": NeuronSet(("xx",), {"v": torch.ones(1, LAYERS, D_MODEL, dtype=torch.bool)}),
    }
    for each in wrong.values():
        with pytest.raises(ValueError, match="found on another model"), lsn.intervene(model, each):
            pass
    unknown = NeuronSet(("xx",), {"router": torch.ones(1, LAYERS, 4, dtype=torch.bool)})
    with pytest.raises(KeyError, match=r"router.*the bases are"), lsn.intervene(model, unknown):
        pass
    with (
        pytest.raises(KeyError, match="no values for basis 'mlp'; it has"),
        lsn.intervene(model, found, lsn.set_to({"z": torch.zeros(LAYERS, D_MODEL)})),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"have shape \[1, 2\], expected \[2, 48\]"),
        lsn.intervene(model, found, lsn.set_to({"mlp": torch.zeros(1, 2)})),
    ):
        pass
    assert hooks_of(model) == hooks


@pytest.mark.parametrize("backend", BACKENDS)
def test_bases_that_cannot_be_written(backend, load):
    """What no model can write, and what this one has not."""
    for basis in ("pattern", "mlp_act", "mlp_post"):  # sites, but no units to write by this name
        units = NeuronSet(("xx",), {basis: torch.ones(1, LAYERS, 4, dtype=torch.bool)})
        with (
            pytest.raises(KeyError, match=f"cannot intervene on basis '{basis}'; the bases are"),
            lsn.intervene(load("llama", backend), units),
        ):
            pass
    up = NeuronSet(("xx",), {"mlp_up": torch.ones(1, LAYERS, 4 * D_MODEL, dtype=torch.bool)})
    with (
        pytest.raises(ValueError, match=r"site 'mlp_up': .* has no blocks.0.mlp.hook_pre_linear"),
        lsn.intervene(load("gpt2", backend), up),
    ):
        pass
    with pytest.raises(KeyError, match="no language"):
        some_units(load("llama", backend))["fr"]


@pytest.mark.parametrize("where", ["everywhere", slice(-3, None), slice(0, -1), slice(9, 0, -1), 3])
def test_places_that_are_none(where):
    with pytest.raises((ValueError, TypeCheckError), match="where"):
        lsn.zero.at(where)
    with pytest.raises((ValueError, TypeCheckError), match="where"):
        lsn.Action("by hand", torch.zeros_like, where=where)
    with pytest.raises((ValueError, TypeCheckError), match="mlp_site"):
        lsn.zero.on("mlp_pre")


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_are_refused(backend, load):
    """A mean over no tokens is NaN: setting neurons to it would turn every later number into NaN."""
    model = load("llama", backend)
    found = some_units(model)
    values = torch.zeros(LAYERS, D_MLP)
    values[1, found.units("mlp")[1].nonzero()[0]] = float("nan")
    for bad in ({"mlp": values}, float("inf")):
        with pytest.raises(ValueError, match="not all finite"), lsn.intervene(model, found, lsn.set_to(bad)):
            pass
    values[:] = float("nan")
    values[found.units("mlp")] = 1.0  # the values of other units are of no interest
    with lsn.intervene(model, found, lsn.set_to({"mlp": values})):
        assert model(some_ids()).isfinite().all()
