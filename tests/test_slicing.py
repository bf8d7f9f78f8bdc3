"""A sliced checkpoint computes in plain transformers what the model computes with the neurons at zero."""

import json
import sys

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, SENTENCES, parts
from oracles import assert_close, plain, read_ids, some_ids
from tiny import checkpoint
from transformers.pytorch_utils import Conv1D

import lsn_lens as lsn
from lsn_lens import applications
from lsn_lens.applications import slicing

pytestmark = pytest.mark.usefixtures("no_gradients")

WITH_WIDTH = ("llama", "gpt2", "qwen2", "gemma2")
EXACT = 1e-5  # of the logits' standard deviation


def some_neurons(model, counts=(10, 10), languages=("xx",)):
    """Random neurons, so many in each layer."""
    width, generator = model.blocks[0].mlp.W_out.shape[0], torch.Generator().manual_seed(0)
    mask = torch.zeros(len(languages), len(counts), width, dtype=torch.bool)
    for layer, count in enumerate(counts):
        mask[:, layer, torch.randperm(width, generator=generator)[:count]] = True
    return lsn.NeuronSet(languages, {"mlp": mask}, "some")


def zeroed(hf_model, architecture, neurons):
    """Plain transformers with the columns of the down projections at zero, by hand."""
    for layer, unit in neurons.units("mlp").nonzero().tolist():
        down = parts(architecture, hf_model, layer).down
        (down.weight if isinstance(down, Conv1D) else down.weight.T)[unit] = 0
    return hf_model


@pytest.mark.parametrize("architecture", WITH_WIDTH)
def test_logits_are_those_of_the_masked_model(architecture, load, hugging_face, tiny_model_folder, tmp_path):
    model, source = load(architecture, "bridge"), tiny_model_folder(architecture)
    neurons, ids = some_neurons(model), some_ids()
    folder = applications.slice_checkpoint(source, neurons, tmp_path / "out")
    small = plain(folder)
    assert_close(small(ids).logits, zeroed(hugging_face(architecture), architecture, neurons)(ids).logits, EXACT)
    with lsn.intervene(model, neurons, lsn.zero):
        assert_close(small(ids).logits, model(ids), EXACT)
    again = lsn.load_model(folder, backend="bridge", device="cpu")
    width = model.blocks[0].mlp.W_out.shape[0]
    assert [block.mlp.W_out.shape[0] for block in again.blocks] == [width - 10] * 2
    assert_close(again(ids), small(ids).logits, EXACT)
    told = json.loads((folder / "lsn_lens.json").read_text())
    assert told["widths"] == [width - 10] * 2 and told["logits_difference"] < EXACT
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (hugging_face(architecture), small)]
    assert [told["parameters_before"], told["parameters"]] == counts and counts[1] < counts[0]
    corpora = lsn.load_corpora({"xx": [f"{i} {SENTENCES[0]}" for i in range(8)]})
    losses = applications.prune_losses(
        model, corpora, neurons, layout=lsn.Layout(kind="documents", length=64), progress=False
    ).table
    assert losses["kept_parameters"].iloc[-1] == pytest.approx(counts[1] / counts[0], abs=2e-3)
    assert "cut out" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("architecture", "counts"), [("bloom", (10, 10)), ("bloom", (9, 30)), ("llama", (9, 30)),
                                                      ("gpt2", (0, 30)), ("neox", (9, 30))])  # fmt: skip
def test_with_code_any_width(architecture, counts, load, hugging_face, tiny_model_folder, tmp_path):
    model, source = load(architecture, "bridge"), tiny_model_folder(architecture)
    neurons, ids = some_neurons(model, counts), some_ids()
    name = type(model.original_model).__name__
    why = "no field for the width" if counts[0] == counts[1] else r"holds one width, and the layers keep \["
    with pytest.raises(lsn.DoesNotApply, match=f"{name}: its configuration .*{why}.*with_code=True"):
        applications.slice_checkpoint(source, neurons, tmp_path / "refused")
    assert not list(tmp_path.iterdir())
    folder = applications.slice_checkpoint(source, neurons, tmp_path / "out", with_code=True)
    small = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    assert_close(small.eval()(ids).logits, zeroed(hugging_face(architecture), architecture, neurons)(ids).logits, EXACT)
    again = lsn.load_model(folder, backend="bridge", device="cpu", trust_remote_code=True)
    width = model.blocks[0].mlp.W_out.shape[0]
    assert [block.mlp.W_out.shape[0] for block in again.blocks] == [width - count for count in counts]
    assert_close(again(ids), small(ids).logits, EXACT)
    source = (folder / "modeling_sliced.py").read_text()
    assert "lsn_lens" not in source and len(source.splitlines()) < 30


def test_the_code_needs_no_package(load, tiny_model_folder, tmp_path):
    """The class in the folder is used, not the package's."""
    neurons = some_neurons(load("bloom", "bridge"), (9, 30))
    folder = applications.slice_checkpoint(tiny_model_folder("bloom"), neurons, tmp_path / "out", with_code=True)
    small = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(small).__module__.startswith("transformers_modules.")
    assert str(sys.modules[type(small).__module__].__file__).endswith("modeling_sliced.py")


def test_a_fused_projection_is_cut_in_both_halves(tmp_path):
    source = checkpoint("phi3", tmp_path)
    model = lsn.load_model(source, backend="bridge", device="cpu")
    neurons, ids = some_neurons(model), some_ids()
    small = plain(applications.slice_checkpoint(source, neurons, tmp_path / "out"))
    with lsn.intervene(model, neurons, lsn.zero):
        assert_close(small(ids).logits, model(ids), EXACT)


def test_all_languages_of_a_set_are_cut_together_and_in_half_precision(demo, tmp_path):
    mask = torch.zeros(2, 6, 768, dtype=torch.bool)
    mask[0, :, :300] = mask[1, :, 200:500] = True
    neurons = lsn.NeuronSet(("en", "fr"), {"mlp": mask}, origin=lsn.NeuronSet.for_model(
        lsn.NeuronSet(("en",), {"mlp": mask[:1]}), demo).origin)  # fmt: skip
    folder = applications.slice_checkpoint("demo", neurons, tmp_path / "out")
    small = plain(folder)
    assert (
        small.config.intermediate_size == 268 and json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    )
    ids = read_ids("La rivière est haute.", demo)
    with lsn.intervene(demo, neurons, lsn.zero):
        assert_close(small(ids).logits, demo(ids), 1e-4)
    table = applications.slice_ratios("demo", folder, rows=1, length=8, repeats=3, progress=False)
    assert table.loc["parameters", "ratio"] == pytest.approx(
        1 - 6 * 500 * 3 * 192 / table.loc["parameters", "original"]
    )
    assert table.loc["bytes", "ratio"] == pytest.approx(table.loc["parameters", "ratio"], abs=0.01)
    assert (table.loc["seconds"] > 0).all() and table.loc["seconds", "low"] <= table.loc["seconds", "high"]
    with pytest.raises(FileNotFoundError, match=r"nowhere.*expected folders with a checkpoint"):
        applications.slice_ratios("demo", tmp_path / "nowhere")


def test_what_cannot_be_cut_is_refused_and_leaves_nothing(load, tiny_model_folder, tmp_path):
    model, source = load("llama", "bridge"), tiny_model_folder("llama")

    def refused(neurons, source=source, error=ValueError, **said):
        with pytest.raises(error, **said):
            applications.slice_checkpoint(source, neurons, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))

    mask = torch.zeros(1, 2, 48, dtype=torch.bool)
    refused(lsn.NeuronSet(("xx",), {"mlp": mask}, "nothing"), match="'nothing' has no neurons: there is nothing to cut")
    full = mask.clone()
    full[0, 1] = full[0, 0, :4] = True
    refused(lsn.NeuronSet(("xx",), {"mlp": full}, "all"), match=r"leaves the layers \[1\] without a neuron")
    refused(lsn.NeuronSet(("xx",), {"z": mask[..., :32] | True}), match=r"units of \['z'\]: only neurons")
    refused(some_neurons(model).for_model(load("qwen2", "bridge")), match="found on another model")
    refused(some_neurons(load("gpt2", "bridge")), match="found on another model")
    refused(some_neurons(model), tiny_model_folder("mixtral"), lsn.DoesNotApply, match="mixture of experts")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        applications.slice_checkpoint(source, some_neurons(model), tmp_path / "full")
    assert (tmp_path / "full" / "a.txt").read_text() == "mine"


def test_an_mlp_with_a_norm_over_its_neurons_is_refused_by_name(tmp_path):
    source = checkpoint("bitnet", tmp_path)
    neurons = some_neurons(lsn.load_model(source, backend="bridge", device="cpu"))
    with pytest.raises(lsn.DoesNotApply, match=rf"{source.name}, layer 0: mlp.hook_post is not act"):
        applications.slice_checkpoint(source, neurons, tmp_path / "out", with_code=True)


def test_a_wrong_cut_is_noticed_before_the_folder_has_its_name(load, tiny_model_folder, tmp_path, monkeypatch):
    right = slicing.Cut.apply
    monkeypatch.setattr(
        slicing.Cut, "apply",
        lambda self, hf: right(slicing.Cut(self.module, self.outputs, self.keep.flip(0), self.of)
                               if self.outputs else self, hf),
    )  # fmt: skip
    with pytest.raises(lsn.DoesNotApply, match=r"LlamaForCausalLM.*differ .* Nothing was written"):
        applications.slice_checkpoint(
            tiny_model_folder("llama"), some_neurons(load("llama", "bridge")), tmp_path / "out"
        )
    assert not list(tmp_path.iterdir())


def test_the_architectures_are_those_named():
    assert {*WITH_WIDTH, "bloom"} <= set(ARCHITECTURES)
