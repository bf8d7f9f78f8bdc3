"""Hold-out text is tokenised once and the unchanged model measured on it once, whatever is measured there."""

import gc
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, D_MLP, SENTENCES, VOCABULARY, tiny_tokenizer
from tiny import redraw

import lsn_lens as lsn
from lsn_lens import generation
from lsn_lens.comparison.checks import Checks
from lsn_lens.controls import ablations, matched, neutral
from lsn_lens.evaluation import baseline, by_document, perplexity, stages, workflow
from lsn_lens.model import hooks, unembedding

LANGUAGES = ("en", "de", "zh")
LAYERS = 3
LAYOUT = lsn.Layout(max_tokens=128, length=64)
TEXTS = dict(zip(LANGUAGES, (SENTENCES[0], SENTENCES[1], SENTENCES[3]), strict=True))
QUIET = {"progress": False}


def some_set(seed=0):
    mask = torch.rand(3, LAYERS, D_MLP, generator=torch.Generator().manual_seed(seed)) < 0.2
    return lsn.NeuronSet(LANGUAGES, {"mlp": mask}, "made")


FOUND, OTHER = some_set(), some_set(1)
OFF = lsn.Intervention("off", ((FOUND["en"], lsn.zero),))
UNITS = pd.DataFrame({"basis": ["mlp"], "layer": [1], "unit": [1]})
NEUTRAL = lsn.load_corpora({"numbers": [f"{i} 2 3 4 5 6 7 8 9 1 2 3" for i in range(40)]})

# every function that measures hold-out text, and what more it needs
MEASURES = {
    "perplexity_matrix": lambda m, c, r, **s: lsn.perplexity_matrix(m, c, FOUND, lsn.mean_ablation(r.statistics), **s),
    "loss_table": lambda m, c, r, **s: perplexity.loss_table(m, c, [OFF, lsn.Intervention("nothing")], **s),
    "ablation_sensitivity": lambda m, c, r, **s: ablations.ablation_sensitivity(m, c, r, FOUND, seeds=2, **s),
    "off_target": lambda m, c, r, **s: (
        neutral.off_target(m, c, FOUND, neutral={}, seeds=2, prompts=1, tokens=2, **s).losses
    ),
    "outlier_effects": lambda m, c, r, **s: matched.outlier_effects(m, c, FOUND, UNITS, **s),
    "workflow_grid": lambda m, c, r, **s: workflow.workflow_grid(
        m, c, FOUND, stages.Stages(1, 1), switches=["all", "understand FFN"], seeds=2, **s
    ),
    "search_stages": lambda m, c, r, **s: stages.search_stages(m, c, FOUND, understand=[1], generate=[1], **s)[1],
    "steering_losses": lambda m, c, r, **s: generation.steering_losses(
        m, c, [generation.Steering("off", lambda *_: OFF)], LANGUAGES, **s
    ),
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A model with enough layers for three stages, its text and a run on it."""
    model_type, sizes = ARCHITECTURES["llama"]
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, **{**sizes, "num_hidden_layers": LAYERS},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "three"
    redraw(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model = lsn.load_model(folder, device="cpu")
    corpora = lsn.load_corpora(
        {label: [f"{i} {text}" for i in range(40)] for label, text in TEXTS.items()}, hold_out=0.4
    )
    run = lsn.collect(model, corpora, ["lape", "lap", "diffmean"], layout=lsn.Layout(max_tokens=400), **QUIET)
    return model, corpora, run


@pytest.fixture
def counted(monkeypatch):
    """How often each text was tokenised, and how many tokens the unchanged model has read."""
    tokenised, unchanged = Counter(), Counter()
    tokenize, losses = baseline.tokenize, unembedding.next_token_losses

    def tokenize_counted(label, *args, **settings):
        tokenised[label] += 1
        return tokenize(label, *args, **settings)

    def losses_counted(model, ids, *args):
        unchanged["tokens"] += 0 if hooks.in_force(model) else ids.numel()
        return losses(model, ids, *args)

    monkeypatch.setattr(baseline, "tokenize", tokenize_counted)
    monkeypatch.setattr(unembedding, "next_token_losses", losses_counted)
    return tokenised, unchanged


@pytest.mark.parametrize("name", MEASURES)
def test_a_text_is_tokenised_and_measured_unchanged_once_or_not_at_all(name, ready, counted):
    tokenised, unchanged = counted
    model, corpora, run = ready
    table = MEASURES[name](model, corpora, run, layout=LAYOUT, **QUIET)
    assert tokenised == dict.fromkeys(LANGUAGES, 1)
    assert unchanged["tokens"] == len(LANGUAGES) * 128
    text = baseline.held_out(model, corpora, LAYOUT, **QUIET)
    tokenised.clear()
    unchanged.clear()
    again = MEASURES[name](model, corpora, run, text=text, **QUIET)
    assert not tokenised and not unchanged["tokens"]
    pd.testing.assert_frame_equal(again, table)


def test_a_whole_comparison_measures_each_of_its_three_texts_once(ready, counted, monkeypatch):
    tokenised, unchanged = counted
    model, corpora, run = ready
    monkeypatch.setattr(neutral, "neutral_text", lambda: NEUTRAL)
    monkeypatch.setattr("lsn_lens.comparison.model_checks.NEUTRAL", ("numbers",))
    blocks = neutral.measured_neutral(model, **QUIET).plan
    size = sum(map(blocks.tokens_of, blocks.shards))
    tokenised.clear()
    unchanged.clear()
    lsn.compare(
        run, ["lape", "lap", "diffmean"], model=model, corpora=corpora, seeds=2, more_seeds=0, control_tokens=64,
        layout=LAYOUT, sizes=(2,), size_seeds=1,
        found={"lape": FOUND, "lap": OTHER}, trust=Checks(0, 0, ablations=True, off_target=True, seeds=1), **QUIET,
    )  # fmt: skip
    assert tokenised == {**dict.fromkeys(LANGUAGES, 2), "numbers": 1}  # all of it, its first tokens, and neutral text
    assert unchanged["tokens"] == len(LANGUAGES) * (128 + 64) + size


def test_text_at_hand_must_be_of_this_model_and_text(ready, load):
    model, corpora, _ = ready
    text = baseline.held_out(model, corpora, LAYOUT, **QUIET)
    two = {label: corpora[label] for label in LANGUAGES[:2]}
    for given in ((load("neox"), corpora, None), (model, two, None), (model, corpora, LAYOUT)):
        with pytest.raises(ValueError, match=r"text= is hold-out text of .*Give the model and corpora"):
            baseline.held_out(*given, text=text)


def test_files_of_tokens_live_as_long_as_the_text(ready):
    model, corpora, _ = ready
    text = baseline.held_out(model, corpora, LAYOUT, **QUIET)
    folder = Path(text.plan.tokens["en"].path).parent
    assert len(list(folder.glob("*.tokens"))) == len(LANGUAGES)
    del text
    gc.collect()
    assert not folder.exists()


def test_no_files_are_left_where_text_is_refused(ready, monkeypatch, tmp_path):
    model, corpora, _ = ready
    monkeypatch.setattr(baseline.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="beyond the model's context"):
        baseline.held_out(model, corpora, lsn.Layout(length=10**6), **QUIET)
    assert not list(tmp_path.iterdir())


def test_document_losses_of_one_text_under_interventions(ready):
    model, corpora, _ = ready
    layout = lsn.Layout(kind="documents", max_tokens=200, equal=False)
    text = baseline.held_out(model, corpora, layout, **QUIET)
    alone = by_document.document_losses(model, corpora, max_tokens=200, **QUIET)
    pd.testing.assert_frame_equal(text.by_document(), alone)
    with lsn.intervene(model, FOUND["en"]):
        changed = by_document.document_losses(model, corpora, max_tokens=200, **QUIET)
    pd.testing.assert_frame_equal(text.by_document(OFF, **QUIET), changed, rtol=1e-5)
    assert (changed["loss"] - alone["loss"]).abs().max() > 1e-3


def test_text_at_hand_must_be_this_text_and_the_model_unedited(ready, load):
    model, corpora, run = ready
    found = lsn.detect(run, "lape", rate=0.2)
    text = baseline.held_out(model, corpora, progress=False)
    labels = list(corpora)
    other = {label: [f"other {i} text" for i in range(40)] for label in labels}
    with pytest.raises(ValueError, match="other hold-out documents"):
        lsn.perplexity_matrix(model, other, found, text=text, progress=False)
    weight = next(iter((getattr(model, "original_model", None) or model).parameters()))
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight *= 1.5
        with pytest.raises(ValueError, match="weights changed"):
            text.measure(lsn.NeuronSet(found.languages, found.masks), progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert len(text.measure(found, progress=False).table)
