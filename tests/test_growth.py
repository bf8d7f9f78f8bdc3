"""Growth over checkpoints: tables against plain models, going on after a stop, refusals, the study and its script."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pandas as pd
import pytest
import torch
from conftest import SENTENCES, experiment, page_of, tiny_tokenizer
from tiny import checkpoint
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import lsn_lens as lsn
from lsn_lens.applications.growth_checkpoints import checkpoints_in
from lsn_lens.applications.growth_measuring import growth
from lsn_lens.applications.growth_stages import find_stages
from lsn_lens.studies import GrowthSettings, growth_study

module = sys.modules["lsn_lens.applications.growth_measuring"]

ROWS = lsn.Layout("blocks", length=16, max_tokens=160, shards=5)
HELD = lsn.Layout("blocks", length=16, max_tokens=64)
# labels of programs, which no rule about languages may know
CODE = {
    "python": [f"for i in range({i}): print(len(x{i}))" for i in range(60)],
    "c++": [f"while (i < {i}) {{ std::cout << strlen(x{i}); }}" for i in range(60)],
}
HOW = {"rate": 0.1, "layout": ROWS, "evaluation": HELD, "at_least": 1, "ratio": 2, "seeds": 2, "replicates": 5,
       "progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tmp_path_factory):
    """Three checkpoints: random weights, moved a little twice; numbers order them, not names."""
    place, model = tmp_path_factory.mktemp("training"), AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    torch.manual_seed(0)
    for step in (9, 10, 200):
        model.save_pretrained(place / f"step-{step}")
        tiny_tokenizer().save_pretrained(place / f"step-{step}")
        with torch.no_grad():
            for each in model.parameters():
                each.add_(0.3 * each.std() * torch.randn_like(each))
    return place


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora(CODE, hold_out=0.3)


@pytest.fixture(scope="module")
def grown(folder, corpora, tmp_path_factory):
    return growth(checkpoints_in(folder), corpora, "python", "step-10", tmp_path_factory.mktemp("out"), **HOW)


def test_order_is_by_number(folder):
    assert list(checkpoints_in(folder)) == ["step-9", "step-10", "step-200"]


def test_losses_are_those_of_plain_models(folder, corpora, grown):
    """The same blocks through plain Hugging Face modules."""
    tokenizer = tiny_tokenizer()
    for name in grown.checkpoints:
        model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
        for language in corpora:
            ids = [i for text in corpora[language].hold_out for i in (0, *tokenizer(text)["input_ids"])][:64]
            blocks = torch.tensor(ids).view(-1, 16)
            with torch.no_grad():
                losses = cross_entropy(
                    model(blocks).logits[:, :-1].flatten(0, 1), blocks[:, 1:].flatten(), reduction="none"
                )
            scored = blocks[:, 1:].flatten() != 0
            row = grown.losses.query("checkpoint == @name and language == @language").iloc[0]
            assert row["nll"] == pytest.approx(float(losses[scored].mean()), rel=1e-4)
            assert row["tokens"] == int(scored.sum())
            assert row["bits_per_byte"] == pytest.approx(row["nll"] * row["tokens"] / row["bytes"] / math.log(2))


def test_units_and_survival_by_hand(grown):
    """Counts and survival again, from the definitions."""
    statistics = {name: run.statistics for name, run in grown.runs.items()}
    method = lsn.methods.FrozenLape(rate=0.1).frozen(statistics["step-10"])
    own = lsn.methods.Lape(rate=0.1)
    sets = {
        "frozen": {k: method.select(method.score(v)).masks["mlp"] for k, v in statistics.items()},
        "relative": {k: own.select(own.score(v)).masks["mlp"] for k, v in statistics.items()},
    }
    for row in grown.units.to_dict("records"):
        place = grown.languages.index(row["language"])
        assert row["frozen"] == int(sets["frozen"][row["checkpoint"]][place].sum())
        assert row["fixed_share"] == int(sets["relative"][row["checkpoint"]][place].sum())
        assert row["frozen_low"] <= row["frozen_high"]
    assert len(grown.survival) == 2 * 2 * 2
    for row in grown.survival.to_dict("records"):
        place, masks = grown.languages.index(row["language"]), sets[row["thresholds"]]
        one, two = (masks[row[which]][place] for which in ("checkpoint", "next"))
        assert row["both"] == int((one & two).sum())
        expected = (one.sum(1) * two.sum(1) / one.shape[1]).sum() / max(1, int(one.sum()))
        assert row["chance"] == pytest.approx(float(expected), nan_ok=True) or not one.any()


def test_working_language_is_the_mean_of_the_layers_between(grown):
    table = grown.layers.query("checkpoint == 'step-9' and text == 'c++' and language == 'c++'")
    inner = table.query(f"0 < layer < {table['layer'].max()}")["share"]
    row = grown.working.query("checkpoint == 'step-9' and text == 'c++' and language == 'c++'").iloc[0]
    assert row["share"] == pytest.approx(inner.mean())
    assert grown.own_system("c++", "step-10").loc["step-200"] == pytest.approx(
        grown.working.query("checkpoint == 'step-200' and text == 'c++' and language == 'c++'")["share"].iloc[0]
    )


def test_dependence_is_the_rise_under_the_dominant_units(folder, corpora, grown):
    model = lsn.load_model(folder / "step-200")
    found = lsn.detect(grown.runs["step-200"], "lape", rate=0.1)["python"]
    table = lsn.perplexity_table(model, corpora, found, layout=HELD, progress=False).query("intervened == 'python'")
    rows = grown.dependence.query("checkpoint == 'step-200'").set_index("evaluated")
    for language, rise in zip(table["evaluated"], table["nll_change"], strict=True):
        assert rows.loc[language, "rise"] == pytest.approx(rise, abs=1e-6)
    assert (rows["seeds"] == 2).all()


def test_it_goes_on_after_a_stop_and_loads_no_finished_model(folder, corpora, grown, tmp_path, monkeypatch):
    seen, load = [], module.load_model

    def failing(source, **options):
        seen.append(Path(source).name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return load(source, **options)

    monkeypatch.setattr(module, "load_model", failing)
    with pytest.raises(KeyboardInterrupt):
        growth(checkpoints_in(folder), corpora, "python", "step-10", tmp_path, **HOW)
    again = growth(checkpoints_in(folder), corpora, "python", "step-10", tmp_path, **HOW)
    assert seen == ["step-9", "step-10", "step-10", "step-200"]
    for table in ("losses", "units", "layers", "dependence", "survival"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(grown, table))
    with pytest.raises(ValueError, match=r"measured with other \['seeds'\]"):
        growth(checkpoints_in(folder), corpora, "python", "step-10", tmp_path, **HOW | {"seeds": 3})


def test_bad_input_is_refused_before_a_model_is_loaded(folder, corpora, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *given, **options: pytest.fail("a model was loaded"))
    places = checkpoints_in(folder)
    one = {"step-9": places["step-9"]}
    with pytest.raises(ValueError, match=r"\['step-9'\]: growth needs two or more checkpoints"):
        growth(one, corpora, "python", **HOW)
    with pytest.raises(KeyError, match=r"no text for the dominant language 'ruby'.*\['python', 'c\+\+'\]"):
        growth(places, corpora, "ruby", **HOW)
    with pytest.raises(KeyError, match="no checkpoint reference='step-1'"):
        growth(places, corpora, "python", "step-1", **HOW)
    other = tmp_path / "tokenizer"
    shutil.copytree(folder / "step-10", other)
    state = json.loads((other / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"'other' has another tokenizer than 'step-9': 2 of \d+ tokens have another"):
        growth(one | {"other": other}, corpora, "python", **HOW)
    with pytest.raises(ValueError, match="'other' has other shapes than 'step-9'"):
        growth(one | {"other": tiny_model_folder("gpt2")}, corpora, "python", **HOW)
    with pytest.raises(ValueError, match="twice"):
        growth(one | {"again": places["step-9"]}, corpora, "python", **HOW)
    with pytest.raises(ValueError, match="'a/b' holds '/'"):
        growth(one | {"a/b": places["step-10"]}, corpora, "python", **HOW)
    with pytest.raises(ValueError, match=r"\['a:b'\]: these names cannot be folders"):
        growth(one | {"a:b": places["step-10"]}, corpora, "python", **HOW)
    with pytest.raises(ValueError, match="no subfolder with a config"):
        checkpoints_in(tmp_path / "empty")


SETTINGS = GrowthSettings(rate=0.1, length=16, max_tokens=160, evaluation_tokens=64, at_least=1, ratio=2.0, seeds=2,
                          replicates=5, switch="step-9")  # fmt: skip


def test_one_place_twice_a_list_and_weights_alone_are_refused(folder, corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    twice = {"step-9": f"{folder / 'step-9'}", "step-10": f"{folder}/../{folder.name}/step-9/"}
    with pytest.raises(ValueError, match="one checkpoint is there twice"):
        growth(twice, corpora, "python", "step-10", **HOW)
    with pytest.raises(ValueError, match="checkpoints is a list: expected a mapping of name to folder"):
        growth([folder / "step-9", folder / "step-10"], corpora, "python", **HOW)
    shutil.copytree(folder, tmp_path / "training")
    (tmp_path / "training" / "step-200" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"\['step-200'\] have weights, but no config.json"):
        checkpoints_in(tmp_path / "training")


def test_checkpoints_without_a_working_language_are_left_out_of_stages(grown):
    """Ten checkpoints of a rising score; at two of them no token is identified."""
    names = tuple(f"step-{i}" for i in range(10))
    losses = pd.DataFrame({"checkpoint": names, "language": "c++", "nll": [5 - 0.4 * i for i in range(10)]})
    shares = [math.nan if i in (2, 7) else i / 10 for i in range(10)]
    rows = [
        {"checkpoint": name, "text": "c++", "layer": layer, "language": "c++", "share": share, "coverage": 0.5,
         "unigram_share": 0.5}
        for name, share in zip(names, shares, strict=True) for layer in range(3)
    ]  # fmt: skip
    made = replace(grown, checkpoints=names, losses=losses, layers=pd.DataFrame(rows))
    kept = [name for name, share in zip(names, shares, strict=True) if not math.isnan(share)]
    expected = find_stages(made.score("c++").loc[kept], made.own_system("c++").loc[kept])
    pd.testing.assert_frame_equal(made.stages("c++"), expected)
    assert made.stages("c++").set_index("stage").loc["translation", "observed"]


def test_a_model_of_one_layer_has_a_report_that_names_no_stage(corpora, tmp_path):
    for step, seed in (("step-1", 1), ("step-2", 2), ("step-3", 3)):
        place = checkpoint("llama", tmp_path / step, num_hidden_layers=1)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(place)
        with torch.no_grad():
            for each in model.parameters():
                each.add_(0.3 * each.std() * torch.randn_like(each))
        model.save_pretrained(tmp_path / "training" / step)
        tiny_tokenizer().save_pretrained(tmp_path / "training" / step)
    settings = GrowthSettings("python", rate=0.1, length=16, max_tokens=160, evaluation_tokens=64, seeds=2,
                              replicates=0, at_least=1, ratio=2.0)  # fmt: skip
    study = growth_study(checkpoints_in(tmp_path / "training"), corpora, settings, progress=False)
    assert study.growth.own_system("c++").isna().all() and study["calibration"]["checkpoints"].tolist() == [0]
    assert "c++: no stage observed (0 checkpoints, fewer than the 6" in page_of(study).lead


def test_the_study_reports(folder, corpora, grown, tmp_path):
    study = growth_study(checkpoints_in(folder), corpora, SETTINGS, grown, progress=False)
    assert study.growth.dominant == "python" and study.growth.reference == "step-10"
    assert not study["stages"]["observed"].any() and study["stages"]["why"].str.contains("fewer than the 6").all()
    late = study["units-late"].query("checkpoint == 'step-200'")
    assert late["frozen_total"].tolist() == late["fixed_share_total"].tolist()  # thresholds of the last, on the last
    rows = study["declines"]
    assert list(rows["reference"]) == ["step-10", "step-200"] and set(rows["language"]) == {"c++"}
    page = study.report(tmp_path).with_suffix(".md").read_text()
    assert "c++: no stage observed" in page
    with pytest.raises(KeyError, match="switch='step-1'"):
        growth_study(checkpoints_in(folder), corpora, GrowthSettings(switch="step-1"))
    with pytest.raises(ValueError, match="last checkpoint"):
        growth_study(checkpoints_in(folder), corpora, GrowthSettings(switch="step-200"))


def test_the_script(folder, tmp_path):
    script = experiment("growth")
    texts = tmp_path / "texts"
    texts.mkdir()
    for label, each in CODE.items():
        (texts / f"{label}.txt").write_text("\n".join(each))
    config = script.Config(
        model=str(folder), corpus=str(texts), out=tmp_path / "out", device="cpu", rate=0.1, length=16, max_tokens=160,
        evaluation_tokens=64, at_least=1, ratio=2.0, seeds=2, replicates=0, dominant="python",
    )  # fmt: skip
    path = script.report(config, *script.prepare(config))
    assert path.is_file() and (tmp_path / "out" / "checkpoints" / "step-10" / "measured.json").is_file()


def test_training_makes_checkpoints_of_two_parts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments")
    train = experiment("train_growth_model")
    for label, sentence in (("en", SENTENCES[0]), ("fr", SENTENCES[2])):
        (tmp_path / f"{label}.txt").write_text("\n".join(f"{i} {sentence} {i * i}" for i in range(60)))
    train.train(
        str(tmp_path), "en", "fr", tmp_path / "out", first_steps=6, second_steps=8, before=2, after=3, layers=1,
        d_model=16, d_mlp=32, heads=2, vocabulary=300, block=16, batch=2,
    )  # fmt: skip
    steps = [int(name.split("-")[1]) for name in checkpoints_in(tmp_path / "out")]
    assert steps == train.save_steps(6, 8, 2, 3) == [3, 6, 7, 9, 14]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-14")
    assert model.config.num_hidden_layers == 1
