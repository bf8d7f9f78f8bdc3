"""An exported checkpoint computes in plain transformers what the model computes under the hooks."""

import json
import sys
from functools import cache

import conftest
import pytest
import torch
import transformers
from conftest import D_MODEL, GROUPED, LLAMA_LIKE, SENTENCES, every_model, tiny_model, tiny_tokenizer
from oracles import assert_close, plain, some_ids

import lsn_lens as lsn
from lsn_lens.model import structure
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE

POST_NORM = ("attn_out", "mlp_out")  # in Gemma 2 what a norm gives

pytestmark = pytest.mark.usefixtures("no_gradients")


def some_units(model, *bases, share=0.25, languages=("xx", "yy")):
    """Random units for each language, some in every layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        basis: (len(languages), model.cfg.n_layers, structure.site_width(model, WRITE_SITE[basis])) for basis in bases
    }
    return NeuronSet(
        languages, {basis: torch.rand(s, generator=generator) < share for basis, s in shapes.items()}, "some"
    )


def assert_same_as_hooks(model, found, folder):
    ids = some_ids()
    before = model(ids)
    with lsn.intervene(model, found, lsn.zero):
        expected = model(ids)
    assert_close(plain(folder)(ids).logits, expected)
    assert (expected - before).abs().max() > 0.05 * before.std()


@pytest.fixture(scope="module")
def exported(load, tiny_model_folder, tmp_path_factory):
    """`exported(architecture)`: units of all bases, and the folder they were exported to, for both model classes."""

    @cache
    def build(architecture):
        model = load(architecture, "bridge")
        bases = [basis for basis in WRITE_SITE if basis != "resid" and structure.has_site(model, WRITE_SITE[basis])]
        if architecture == "gemma2":
            bases = [basis for basis in bases if basis not in POST_NORM]
        found = some_units(model, *bases, share=0.1)
        return found, lsn.export(tiny_model_folder(architecture), found, tmp_path_factory.mktemp("exported") / "out")

    return build


# what the checkpoint computes


@every_model
def test_all_bases_equal_the_hooks(architecture, backend, load, exported):
    model, (found, folder) = load(architecture, backend), exported(architecture)
    missing = {"resid"} | (set() if structure.is_gated(model) else {"mlp_up"})
    missing |= set(POST_NORM) if architecture == "gemma2" else set()
    assert set(found.masks) == set(WRITE_SITE) - missing
    assert_same_as_hooks(model, found, folder)


@pytest.mark.parametrize("basis", [basis for basis in WRITE_SITE if basis != "resid"])
def test_one_basis_equals_the_hooks(basis, load, tiny_model_folder, tmp_path):
    architecture = "llama" if basis == "mlp_up" else "gpt2"  # fused, and weights the other way round
    model = load(architecture)
    found = some_units(model, basis)
    assert_same_as_hooks(model, found, lsn.export(tiny_model_folder(architecture), found, tmp_path / "out"))


def test_fused_gate_and_up_and_grouped_heads(monkeypatch, tmp_path):
    monkeypatch.setitem(conftest.ARCHITECTURES, "phi3", ("phi3", {**LLAMA_LIKE, **GROUPED}))
    tiny_model("phi3").save_pretrained(tmp_path / "in")
    tiny_tokenizer().save_pretrained(tmp_path / "in")
    model = lsn.load_model(tmp_path / "in", device="cpu")
    found = some_units(model, "mlp_pre", "mlp_up", "k")
    folder = lsn.export(tmp_path / "in", found, tmp_path / "out")
    assert_same_as_hooks(model, found, folder)
    # zeroing the gate or up gives the same output: look at the weights too
    fused = plain(folder).model.layers[0].mlp.gate_up_proj.weight
    assert torch.equal(fused.eq(0).all(1), torch.cat([found.units("mlp_pre")[0], found.units("mlp_up")[0]]))


def test_the_embedded_model(demo, tmp_path):
    found = some_units(demo, "mlp", "z", share=0.1)
    folder = lsn.export("demo", found, tmp_path / "out")
    ids = torch.arange(5, 45).view(2, 20)
    with lsn.intervene(demo, found):
        expected = demo(ids)
    hf_model = plain(folder)
    assert_close(hf_model(ids).logits, expected)
    assert (demo(ids) - expected).abs().max() > 0.1 * expected.std()
    assert hf_model.lm_head.weight is hf_model.model.embed_tokens.weight, "tied weights stay tied"
    assert plain(folder, "auto").dtype == torch.float16, "as in the source"
    again = lsn.load_model(folder, device="cpu")
    assert_close(again(ids), expected)


# what is written


def test_nothing_but_the_units_changes(load, tiny_model_folder, hugging_face, tmp_path):
    found = some_units(load("llama"), "mlp", "q")
    folder = lsn.export(tiny_model_folder("llama"), found, tmp_path / "out", dtype=torch.float16)
    before = hugging_face("llama").half().state_dict()
    after = plain(folder).state_dict()
    assert before.keys() == after.keys()
    changed = {name: (before[name] != after[name]) for name in before}
    for layer in range(len(found.units("mlp"))):
        down = changed.pop(f"model.layers.{layer}.mlp.down_proj.weight")
        rows = changed.pop(f"model.layers.{layer}.self_attn.q_proj.weight")
        assert torch.equal(down, found.units("mlp")[layer].expand_as(down))
        assert torch.equal(rows, found.units("q")[layer][:, None].expand_as(rows))
        assert not after[f"model.layers.{layer}.mlp.down_proj.weight"][down].any()
    assert not any(each.any() for each in changed.values())


def test_biases_of_outputs_go_and_biases_behind_inputs_stay(load, tiny_model_folder, hugging_face, tmp_path):
    found = some_units(load("gpt2", "bridge"), "mlp_pre", "mlp")
    after = plain(lsn.export(tiny_model_folder("gpt2"), found, tmp_path / "out"))
    before = hugging_face("gpt2").transformer.h[0].mlp
    after = after.transformer.h[0].mlp
    units = found.units("mlp_pre")[0]
    assert torch.equal(after.c_fc.bias, before.c_fc.bias * ~units)
    assert torch.equal(after.c_proj.bias, before.c_proj.bias)
    assert before.c_fc.bias[units].all()


def test_tokenizer_and_provenance(load, exported, tiny_model_folder):
    found, folder = exported("llama")
    tokenizers = [transformers.AutoTokenizer.from_pretrained(each) for each in (folder, tiny_model_folder("llama"))]
    assert tokenizers[0](SENTENCES[2])["input_ids"] == tokenizers[1](SENTENCES[2])["input_ids"]
    said = json.loads((folder / "lsn_lens.json").read_text())
    assert said["method"] == "some"
    assert said["action"] == "zero"
    assert said["source"] == structure.describe(load("llama", "bridge"))
    for basis, mask in found.masks.items():
        counts = {"xx": int(mask[0].sum()), "yy": int(mask[1].sum())}
        assert said["units"][basis] == {
            "of": mask[0].numel(), "off": int((mask[0] | mask[1]).sum()), "by_language": counts
        }  # fmt: skip
        assert f"`{basis}` (by language: xx {counts['xx']}, yy {counts['yy']})" in (folder / "README.md").read_text()
    assert said["logits_difference"] < 1e-4 < said["logits_change"]


def test_an_empty_set_gives_the_same_model_and_says_so(load, tiny_model_folder, hugging_face, tmp_path):
    nothing = some_units(load("opt", "bridge"), "mlp", share=0.0)
    with pytest.warns(UserWarning, match="no units"):
        folder = lsn.export(tiny_model_folder("opt"), nothing, tmp_path / "out")
    before, after = hugging_face("opt").state_dict(), plain(folder).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# bad input


@pytest.mark.parametrize(
    ("architecture", "basis", "message"),
    [
        ("llama", "resid", "residual stream is the sum"),
        ("gemma2", "attn_out", "output of a Gemma2RMSNorm"),
        ("gemma2", "mlp_out", "output of a Gemma2RMSNorm"),
        ("mixtral", "mlp_out", "output of a MixtralSparseMoeBlock"),
    ],
)
def test_units_that_no_matrix_makes(architecture, basis, message, load, tiny_model_folder, tmp_path):
    found = some_units(load(architecture, "bridge"), basis)
    with pytest.raises(ValueError, match=message):
        lsn.export(tiny_model_folder(architecture), found, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("architecture", "basis", "width", "message"),
    [
        ("llama", "mlp", 47, "found on another model"),
        ("gpt2", "mlp_up", 4 * D_MODEL, "has no blocks.0.mlp.hook_pre_linear"),
        ("mixtral", "mlp", D_MODEL, "mixture of experts"),
    ],
)
def test_sets_that_do_not_fit(architecture, basis, width, message, tiny_model_folder, tmp_path):
    found = NeuronSet(("xx",), {basis: torch.ones(1, 2, width, dtype=torch.bool)})
    with pytest.raises(ValueError, match=message):
        lsn.export(tiny_model_folder(architecture), found, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(load, tiny_model_folder, tmp_path):
    found = some_units(load("llama"), "mlp")
    (tmp_path / "mine.txt").write_text("mine")
    for there in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match="not empty"):
            lsn.export(tiny_model_folder("llama"), found, there)
    (tmp_path / "out").mkdir()
    assert lsn.export(tiny_model_folder("llama"), found, tmp_path / "out") == tmp_path / "out"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.txt", "out"]


def test_weights_that_compute_something_else_are_not_written(monkeypatch, load, tiny_model_folder, tmp_path):
    monkeypatch.setattr(sys.modules["lsn_lens.interventions.exporting"]._Cut, "apply", lambda cut, hf_model: None)
    with pytest.raises(ValueError, match="differ from those under the intervention"):
        lsn.export(tiny_model_folder("llama"), some_units(load("llama"), "mlp"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(monkeypatch, load, tiny_model_folder, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["lsn_lens.interventions.exporting"], "_card", full)
    with pytest.raises(OSError, match="No space"):
        lsn.export(tiny_model_folder("llama"), some_units(load("llama"), "mlp"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
