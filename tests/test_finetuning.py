"""Training the weights of a set's units: what moves, what does not, and what is written."""

import copy
import importlib.util
import random
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from conftest import BACKENDS, D_MLP, SENTENCES, experiment, fused_rows, page_of, parts, refused
from oracles import plain
from scipy import stats

import lsn_lens as lsn
from lsn_lens.applications import Diverged, Lora, Training, all_units, apply_delta, finetune, save_checkpoint
from lsn_lens.applications.finetuning import bench, lora, training, tuning
from lsn_lens.applications.finetuning.places import entries_of
from lsn_lens.applications.finetuning.rows import rows_of
from lsn_lens.evaluation.bootstrap import mean_interval
from lsn_lens.model.weights import unwrapped
from lsn_lens.studies import finetuning

TEXTS = [f"{number} {text}" for number in range(5) for text in SENTENCES]
SHORT = Training(learning_rate=1e-2, batch=4, length=16, warmup=0.0)
HEAVY = {
    "adamw": Training(1e-2, batch=4, length=16, weight_decay=0.5, clip=1e-3, warmup=0.0),
    "sgd": Training(0.5, batch=4, length=16, weight_decay=0.1, clip=1.0, optimizer="sgd", momentum=0.95, warmup=0.0),
}
QUIET = {"progress": False}
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra [lora]")


def some_units(**bases):
    """A tenth of the units of each basis, by width, in two layers."""
    generator = torch.Generator().manual_seed(0)
    masks = {basis: torch.rand(1, 2, width, generator=generator) < 0.1 for basis, width in bases.items()}
    return lsn.NeuronSet(("xx",), masks, "some")


def weights(model):
    return {name: each.detach().clone() for name, each in unwrapped(model).named_parameters()}


def rows_and_columns(architecture, hf_model, found):
    """Which entries of each parameter belong to the units, from the plain modules."""
    chosen = {name: torch.zeros_like(each, dtype=torch.bool) for name, each in hf_model.named_parameters()}
    names = {id(module): name for name, module in hf_model.named_modules()}

    def take(module, units, outputs):
        weight = chosen[f"{names[id(module)]}.weight"]
        weight = weight.T if type(module).__name__ == "Conv1D" else weight
        weight[units if outputs else (slice(None), units)] = True
        if outputs and module.bias is not None:
            chosen[f"{names[id(module)]}.bias"][units] = True

    for layer in range(2):
        part = parts(architecture, hf_model, layer)
        for basis in found.masks:
            units = found.units(basis)[layer].nonzero()[:, 0]
            if basis == "mlp":
                take(part.gate, units, True)
                take(part.down, units, False)
                if hasattr(part, "up"):
                    take(part.up, units, True)
            elif basis == "z":
                take(part.o, units, False)
            elif hasattr(part, "qkv"):
                take(part.qkv, fused_rows(architecture, basis, units), True)
            else:
                take(getattr(part, basis), units, True)
    return chosen


@pytest.mark.parametrize(
    ("architecture", "optimizer"), [("llama", "adamw"), ("llama", "sgd"), ("gpt2", "sgd"), ("bloom", "adamw")]
)
def test_nothing_but_the_units_moves_whatever_the_optimiser(architecture, optimizer, load, hugging_face):
    model = load(architecture, "bridge")
    mlp = 4 * 32 if architecture != "llama" else D_MLP
    found = some_units(mlp=mlp, q=32, k=16 if architecture == "llama" else 32, z=32)
    before = weights(model)
    made = finetune(model, found, TEXTS, HEAVY[optimizer], **QUIET)
    after, chosen = weights(made.model), rows_and_columns(architecture, hugging_face(architecture), found)
    assert before.keys() == after.keys() == chosen.keys()
    for name, old in before.items():
        assert torch.equal(after[name][~chosen[name]], old[~chosen[name]]), name
    moved = torch.cat([(after[name] != old)[chosen[name]] for name, old in before.items()])
    assert moved.float().mean() > 0.97  # a key's bias changes no loss, and tokens that never occur move nothing
    assert made.delta.parameters == len(moved)
    assert all(torch.equal(before[name], each) for name, each in weights(model).items()), "the base stays as it is"


def test_the_optimiser_holds_the_units_and_nothing_else(load, monkeypatch):
    seen = []

    class Spy(training._Watch):
        def on_train_end(self, args, state, control, **given):
            held = [each for group in given["optimizer"].param_groups for each in group["params"]]
            moments = [each for kept in given["optimizer"].state.values() for each in kept.values() if each.ndim]
            seen.append((sum(each.numel() for each in held), sum(each.numel() for each in moments)))

    monkeypatch.setattr(training, "_Watch", Spy)
    found = some_units(mlp=D_MLP)
    finetune(load("llama", "bridge"), found, TEXTS, HEAVY["adamw"], **QUIET)
    count = 3 * 32 * len(found)
    assert seen == [(count, 2 * count)]


def test_the_steps_are_those_of_a_plain_loop_with_masks(load, hugging_face):
    model, found = load("gpt2", "bridge"), some_units(mlp=4 * 32, q=32)
    texts = TEXTS[:8]
    rows = rows_of(model, texts, Training(batch=1, length=16), progress=False)
    settings = Training(1e-2, 3, len(rows), length=16, clip=0.05, warmup=0.0, schedule="constant_with_warmup")
    made = finetune(model, found, texts, settings, **QUIET)
    oracle = hugging_face("gpt2")
    chosen = rows_and_columns("gpt2", oracle, found)
    own = dict(oracle.named_parameters())
    optimizer, losses = torch.optim.AdamW(own.values(), 1e-2, weight_decay=0.0), []
    for _ in range(3):
        optimizer.zero_grad()
        logits = oracle(rows.ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        losses.append(float(loss.detach()))
        for name, each in own.items():
            each.grad *= chosen[name]
        torch.nn.utils.clip_grad_norm_(own.values(), 0.05)
        optimizer.step()
    torch.testing.assert_close(made.delta.losses["loss"].tolist(), losses, atol=2e-4, rtol=0)
    for name, each in weights(made.model).items():
        torch.testing.assert_close(each, own[name].detach(), atol=1e-4, rtol=0)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(("batch", "accumulation"), [(18, 1), (1, 18)])  # rows of 15 of 270 tokens
def test_an_only_step_has_the_full_rate(batch, accumulation, load):
    """A warm-up begins at rate 0, which would leave every weight as it was."""
    model = load("llama", "bridge")
    made = finetune(model, some_units(mlp=48), TEXTS[:8], Training(1e-2, 1, batch, accumulation, 15), **QUIET)
    assert made.delta.losses["learning_rate"].tolist() == [1e-2]
    before, after = weights(model), weights(made.model)
    assert (
        max(float((after[name] - before[name]).abs().max()) for name in before) > 5e-3
    )  # AdamW's first step: the rate


def test_rows_are_the_text_and_no_separator_is_predicted(load):
    model = load("llama", "bridge")
    rows = rows_of(model, TEXTS, SHORT, progress=False)
    flat = [each for text in TEXTS for each in [0, *model.tokenizer(text)["input_ids"]]]
    assert rows.ids.flatten().tolist() == flat[: rows.ids.numel()]
    expected = rows.ids.masked_fill(rows.ids == 0, -100)
    expected[:, 0] = -100
    assert torch.equal(rows.labels, expected)


# what is written


def test_delta_checkpoint_and_model_are_the_same_bits(load, tmp_path):
    model, found = load("llama", "bridge"), some_units(mlp=D_MLP, v=16)
    made = finetune(model, found, TEXTS, SHORT, tmp_path / "out", **QUIET)
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"training.json", "delta.safetensors"}
    folder = save_checkpoint(model, made.delta, tmp_path / "checkpoint")
    file, applied = weights(made.model), apply_delta(model, tmp_path / "out" / "delta.safetensors")
    assert all(torch.equal(file[name], each) for name, each in weights(applied).items())
    written = plain(folder, torch.float32).state_dict()
    assert all(torch.equal(written[name], each) for name, each in file.items())
    again = lsn.load_model(folder, device="cpu", backend="bridge")
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids), made.model(ids))
    assert (made.model(ids) - model(ids)).abs().max() > 1e-3
    loaded = lsn.applications.Delta.load(tmp_path / "out" / "delta.safetensors")
    assert loaded.units == found and loaded.losses.equals(made.delta.losses) and loaded.base == made.delta.base
    with pytest.raises(FileExistsError, match="not empty"):
        save_checkpoint(model, made.delta, folder)


def test_a_delta_of_another_model_is_refused(load, tiny_model_folder):
    model = load("llama", "bridge")
    delta = finetune(model, some_units(mlp=D_MLP), TEXTS, SHORT, **QUIET).delta
    for other in (
        load("llama_mha", "bridge"),
        apply_delta(model, delta),
        lsn.load_model(tiny_model_folder("llama"), backend="bridge", dtype=torch.bfloat16, device="cpu"),
    ):
        with pytest.raises(ValueError, match="not, bit for bit, those that training began with"):
            apply_delta(other, delta)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has bridges only")
def test_copied_weights_are_refused(load):
    with pytest.raises(lsn.DoesNotApply, match="backend='bridge'"):
        finetune(load("llama", "hooked"), some_units(mlp=D_MLP), TEXTS, SHORT, **QUIET)


def test_an_interrupted_training_goes_on_to_the_same_bits(load, tmp_path, monkeypatch):
    model, found = load("llama", "bridge"), some_units(mlp=D_MLP)
    settings = Training(1e-2, epochs=2, batch=4, length=16, weight_decay=0.1, save_every=3)
    whole = finetune(model, found, TEXTS, settings, **QUIET)
    check = training._Watch.check

    def stop(self, loss, step):
        if step == 5:
            raise KeyboardInterrupt
        check(self, loss, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Watch, "check", stop)
        finetune(model, found, TEXTS, settings, tmp_path / "out", **QUIET)
    assert training.last_state(tmp_path / "out" / "states").endswith("checkpoint-3")
    again = finetune(model, found, TEXTS, settings, tmp_path / "out", **QUIET)
    assert again.delta.result == whole.delta.result
    assert again.delta.losses.equals(whole.delta.losses)
    monkeypatch.setattr(tuning, "train", None)  # a finished training is read
    assert finetune(model, found, TEXTS, settings, tmp_path / "out", **QUIET).delta.result == whole.delta.result
    with pytest.raises(ValueError, match=r"holds another training: learning_rate was 0.01 and is 0.1"):
        finetune(model, found, TEXTS, Training(**{**vars(settings), "learning_rate": 0.1}), tmp_path / "out", **QUIET)


def test_half_precision_keeps_small_steps(tiny_model_folder):
    model = lsn.load_model(tiny_model_folder("llama"), backend="bridge", dtype=torch.bfloat16, device="cpu")
    settings = Training(1e-4, epochs=4, batch=4, length=16, warmup=0.0, schedule="constant_with_warmup")
    found = some_units(mlp=D_MLP)
    delta = finetune(model, found, TEXTS, settings, **QUIET).delta
    own = weights(model)
    moved = [each.values != own[name].flatten()[each.index] for name, each in delta.changes.items()]
    assert {each.values.dtype for each in delta.changes.values()} == {torch.bfloat16}
    assert len(delta.losses) > 30 and torch.cat(moved).float().mean() > 0.5  # one step is below what bfloat16 resolves


def test_the_random_generators_are_the_callers(load):
    model = load("llama", "bridge")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    finetune(model, some_units(mlp=D_MLP), TEXTS, SHORT, **QUIET)
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    own = random.getstate()
    with training._kept_random():
        random.seed(3)
    assert random.getstate() == own


# the baselines


def test_all_units_and_all_weights(load):
    model = load("llama", "bridge")
    sizes = {name: each.numel() for name, each in weights(model).items()}
    mlp = sum(size for name, size in sizes.items() if ".mlp." in name)
    assert sum(map(len, entries_of(model, all_units(model)).values())) == mlp
    made = finetune(model, "full", TEXTS, SHORT, **QUIET)
    assert made.delta.parameters == sum(sizes.values())
    after = weights(made.model)
    assert not any(torch.equal(after[name], each) for name, each in weights(model).items())


@needs_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_has_as_many_parameters_and_leaves_the_base(architecture, load):
    model = load(architecture, "bridge")
    before = weights(model)
    made = finetune(model, Lora(1000), TEXTS, SHORT, **QUIET)
    assert all(torch.equal(before[name], each) for name, each in weights(model).items())
    assert 1000 - 160 <= made.delta.parameters <= 1000
    after = weights(made.model)
    moved = {name for name, each in before.items() if not torch.equal(each, after[name])}
    assert moved == set(made.delta.changes) and all(".mlp." in name for name in moved)
    assert made.delta.losses["loss"].iloc[-1] < made.delta.losses["loss"].iloc[0]
    ranks = [torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) for name in moved]
    shapes = [sum(before[name].shape) for name in moved]
    assert sum(int(rank) * size for rank, size in zip(ranks, shapes, strict=True)) == made.delta.parameters


def test_ranks_fill_the_budget():
    sizes = {"a": 30, "b": 50}
    for budget in (30, 79, 80, 111, 1000):
        ranks = lora.ranks_of(sizes, budget, seed=budget)
        used = sum(sizes[name] * rank for name, rank in ranks.items())
        assert budget - 30 < used <= budget and abs(ranks.get("a", 0) - ranks.get("b", 0)) <= 2
    with pytest.raises(ValueError, match="takes 30 parameters"):
        lora.ranks_of(sizes, 29, seed=0)


def test_lora_without_peft_names_the_extra(load, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lsn-lens\[lora\]"):
        finetune(load("llama", "bridge"), Lora(1000), TEXTS, SHORT, **QUIET)


# bad input


def test_bad_input_is_named_before_anything_is_written(load, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    model, good = load("llama", "bridge"), some_units(mlp=D_MLP)
    with_origin = lsn.NeuronSet(good.languages, good.masks, "m", origin={"fingerprint": "0" * 32, "model": "other"})
    cases = {
        "has no units": some_units(mlp=D_MLP) ^ some_units(mlp=D_MLP),
        "is from other": with_origin,
        "found on another model": some_units(mlp=D_MLP + 1),
        "have no weights of their own": some_units(resid=32),
        "units is 'everything'": "everything",
    }
    for said, units in cases.items():
        with pytest.raises((ValueError, KeyError), match=said):
            finetune(model, units, TEXTS, SHORT, tmp_path / "out", **QUIET)
    for said, texts in {"one step takes": TEXTS[:1], "is a str": "text", "documents is empty": []}.items():
        with pytest.raises(ValueError, match=said):
            finetune(model, good, texts, SHORT, tmp_path / "out", **QUIET)
    with lsn.intervene(model, good), pytest.raises(ValueError, match="Take them off"):
        finetune(model, good, TEXTS, SHORT, **QUIET)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="no training of finetune"):
        finetune(model, good, TEXTS, SHORT, tmp_path / "out", **QUIET)
    for wrong in ({"learning_rate": 0.0}, {"batch": 0}, {"clip": float("nan")}, {"optimizer": "adam"}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Training(**wrong)


@pytest.mark.parametrize(("rate", "said"), [(10.0, "10"), (1e30, r"1e\+30")])
def test_a_training_that_diverges_is_stopped_and_leaves_nothing(rate, said, load, tmp_path):
    settings = Training(rate, batch=4, length=16, warmup=0.0, save_every=1)
    with pytest.raises(Diverged, match=rf"diverged at step \d+.*learning rate {said} is too high"):
        finetune(load("llama", "bridge"), "full", TEXTS, settings, tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


# planted truth, and the study


def test_planted_neurons_repair_a_damaged_copy_better_than_random_ones(planted, world):
    label = planted.languages[0]
    truth = planted.truth()[label]
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(planted.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(planted.folder)
    broken = copy.deepcopy(hf_model)
    with torch.no_grad():
        for layer, unit in truth.units("mlp").nonzero().tolist():
            broken.model.layers[layer].mlp.down_proj.weight[:, unit] = 0
    model, damaged = (lsn.load_model(each, tokenizer, backend="bridge") for each in (hf_model, broken))
    texts, layout = world.corpora[label].find[:60], lsn.Layout(length=32, max_tokens=1500)

    def losses(model):
        table = lsn.perplexity_table(model, world.corpora, {}, layout=layout, progress=False)
        return table.set_index("evaluated")["nll"]

    def apart(units):  # from the undamaged model, in all languages: a repair brings them back and changes nothing else
        trained = finetune(damaged, units, texts, Training(1e-3, batch=8, length=32), **QUIET).model
        return float((losses(trained) - whole).abs().sum())

    whole = losses(model)
    damage = losses(damaged) - whole
    assert damage.idxmax() == label and damage[label] > 0.1
    own, others = apart(truth), [apart(truth.random_like(seed)) for seed in range(3)]
    assert own < min(others) and own < 0.5 * damage.abs().sum()


def test_intervals_are_those_of_students_test():
    values = np.array([0.1, 0.3, 0.2, 0.6, 0.4])
    mean, low, high = mean_interval(values, 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert np.allclose([mean, low, high], [values.mean(), *expected])
    assert np.isnan(mean_interval(values[:1])[1])


@needs_peft
def test_the_study_and_its_script(tmp_path, monkeypatch):
    script = experiment("finetune_neurons")
    numbers = {"numbers": lsn.controls.neutral_text()["numbers"]}
    monkeypatch.setattr(bench, "measured_neutral", partial(lsn.controls.measured_neutral, neutral=numbers))
    settings = {
        "methods": ("lape",), "languages": ("en", "fr"), "train": ("fr",), "documents": (8,), "rate_documents": 4,
        "seeds": 2, "rates": (1e-3,), "batch": 2, "length": 32, "max_tokens": 400, "evaluation_tokens": 100,
        "out": tmp_path / "out",
    }  # fmt: skip
    config = script.Config(**settings)
    prepared = script.prepare(config)
    path = script.report(config, *prepared)
    assert path.is_file() and len(list((tmp_path / "out" / "trainings").iterdir())) == 2 * 4
    monkeypatch.setattr(bench, "finetune", None)  # nothing is trained again
    model, corpora, run = prepared
    study = lsn.studies.finetuning_study(model, corpora, config, run, tmp_path / "out" / "trainings", **QUIET)
    losses, summary = study["losses"], study["summary"].set_index("kind")
    assert list(summary.index) == ["lape", "random", "lora", "full"]
    for kind, row in summary.iterrows():
        mine = losses.loc[losses["kind"].eq(kind)]
        own, other = (mine.loc[mine["evaluated"].eq(each)] for each in ("fr", "en"))
        assert np.allclose(own["change"], own["after"] - own["before"]) and own["change"].all()
        assert np.isclose(row["own"], own["change"].mean())
        assert np.isclose(row["others"], other["change"].mean()) and np.isclose(row["worst"], row["others"])
    by = losses.loc[losses["text"].eq("own")].set_index(["kind", "seed"])["change"]
    apart = study["against_random"].set_index("kind")["own"]
    assert np.isclose(apart["full"], (by["full"] - by["random"]).mean())
    assert summary.loc["lora", "parameters"] <= summary.loc["lape", "parameters"] < summary.loc["full", "parameters"]
    assert "improves fr most" in page_of(study).lead
    assert "no text for ['xx']" in refused(script, **{**settings, "train": ("xx",)})
    assert "documents to train on" in refused(script, **{**settings, "documents": (5000,)})


def test_each_kind_gets_the_rate_with_the_lowest_loss():
    losses = {("a", 1.0): 3.0, ("a", 2.0): 2.0, ("b", 1.0): 4.0, ("b", 2.0): np.inf}

    class Known(bench.Bench):
        def __init__(self):
            pass

        def choice_loss(self, what, language, documents, rate):
            assert (language, documents) == ("fr", 7)
            return losses[what, rate]

    arms = {kind: lambda seed, kind=kind: kind for kind in "ab"}
    settings = lsn.studies.FinetuningSettings(rates=(1.0, 2.0), rate_documents=7)
    rates, table = finetuning._rates(Known(), arms, "fr", settings, False)
    assert rates == {"a": 2.0, "b": 1.0} and len(table) == 4
    losses["b", 1.0] = np.inf
    with pytest.raises(Diverged, match=r"\['b'\] diverged at every learning rate"):
        finetuning._rates(Known(), arms, "fr", settings, False)
