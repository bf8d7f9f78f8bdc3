"""The off-target table says what single measurements say."""

import pandas as pd
import pytest
import torch
from conftest import BACKENDS, D_MLP, LAYERS, SENTENCES

import lsn_lens as lsn
from lsn_lens.controls import neutral as off_target_module
from lsn_lens.controls.matched import activity
from lsn_lens.controls.neutral import neutral_text, off_target
from lsn_lens.generation.texts.strings import distinct, repetition
from lsn_lens.neurons.sets import NeuronSet

TEXT = dict(zip(("en", "de", "zh"), (SENTENCES[0], SENTENCES[1], SENTENCES[3]), strict=True))
SHORT = lsn.Layout(max_tokens=64)


def labels_of(texts):
    return [("en" if text.isascii() else "de", 1.0) for text in texts]


def small_neutral():
    loaded = lsn.load_corpora({"numbers": ["1, 2, 3, 4, 5, 6, 7, 8"] * 40}, hold_out=0.5)
    return {"numbers": loaded["numbers"]}


@pytest.fixture(scope="module", params=BACKENDS)
def ready(request, load):
    model = load("llama", request.param)
    corpora = lsn.load_corpora({label: [f"{i} {text}" for i in range(12)] for label, text in TEXT.items()})
    run = lsn.collect(model, corpora, ["lape"], progress=False)
    mask = torch.rand(3, LAYERS, D_MLP, generator=torch.Generator().manual_seed(0)) < 0.2
    found = NeuronSet(tuple(TEXT), {"mlp": mask}, "made")
    settings = {"layout": SHORT, "prompts": 3, "tokens": 8, "seeds": 2, "neutral": small_neutral(), "progress": False}
    result = off_target(model, corpora, found, statistics=run.statistics, identify=labels_of, **settings)
    return model, corpora, run, found, settings, result


def test_neutral_text_is_of_no_language_and_all_to_measure_with():
    text = neutral_text()
    assert list(text) == ["numbers", "arithmetic", "code"]
    documents = {kind: list(corpus.hold_out) for kind, corpus in text.items()}
    assert all(not list(corpus.find) for corpus in text.values())
    assert all(1500 < sum(map(len, each)) < 3500 for each in documents.values())
    assert not any(char.isalpha() for kind in ("numbers", "arithmetic") for each in documents[kind] for char in each)
    for each in documents["code"]:
        compile(each, "neutral", "exec")
    for line in documents["arithmetic"]:
        for equation in line.split("; "):
            left, right = equation.split(" = ")
            assert eval(left) == int(right)


def test_rises_are_those_of_one_intervention_by_hand(ready):
    model, corpora, run, found, _, result = ready
    assert result.matched == "count, layer, root mean square in the own language"
    row = result.table.set_index("language").loc["de"]
    drawn = [found.random_like(seed, activity(run.statistics, ["mlp"])) for seed in range(2)]
    for ending, measure in (("", "nll_change"), ("_bits_per_byte", "bits_per_byte_change")):
        matrices = [
            lsn.perplexity_matrix(model, corpora, each, measure=measure, layout=SHORT, progress=False).loc["de"]
            for each in (found, *drawn)
        ]
        others = [each.drop("de") for each in matrices]
        assert row[f"own_rise{ending}"] == pytest.approx(matrices[0]["de"], rel=1e-3, abs=1e-6)
        assert row[f"worst_other{ending}"] == others[0].idxmax()
        assert row[f"worst_other_rise{ending}"] == pytest.approx(others[0].max(), rel=1e-3, abs=1e-6)
        assert row[f"mean_other_rise{ending}"] == pytest.approx(others[0].mean(), rel=1e-3, abs=1e-6)
        own = sum(each["de"] for each in matrices[1:]) / 2
        assert row[f"random_own_rise{ending}"] == pytest.approx(own, rel=1e-3, abs=1e-6)
        worst = sum(each.max() for each in others[1:]) / 2
        assert row[f"random_worst_other_rise{ending}"] == pytest.approx(worst, rel=1e-3, abs=1e-6)
        layout = lsn.Layout(length=64, equal=False)
        neutral = small_neutral() | {"en": small_neutral()["numbers"]}
        alone = lsn.perplexity_matrix(model, neutral, found, measure=measure, layout=layout, progress=False)
        assert row[f"numbers_rise{ending}"] == pytest.approx(alone.loc["de", "numbers"], rel=1e-3, abs=1e-6)
    assert set(result.losses["kind"]) == {"own", "other", "neutral"}


def test_texts_are_what_the_changed_model_writes(ready):
    model, corpora, run, found, _, result = ready
    row = result.table.set_index("language").loc["zh"]
    texts = result.texts.loc[result.texts["asked"].eq("zh")]
    documents = list(corpora["zh"].hold_out)[:3]
    starts = [each[: len(each) // 3] for each in documents]  # two "words": a number, and all the rest
    before = lsn.generate(model, starts, tokens=8, progress=False)
    with lsn.intervene(model, found["zh"], lsn.zero):
        after = lsn.generate(model, starts, tokens=8, progress=False)
    with lsn.intervene(model, found.random_like(0, activity(run.statistics, ["mlp"]))["zh"], lsn.zero):
        random = lsn.generate(model, starts, tokens=8, progress=False)
    for state, frame in (("before", before), ("after", after), ("random", random)):
        assert texts.loc[texts["state"].eq(state), "text"].tolist() == frame["text"].tolist()
        assert row[f"distinct_2_{state}"] == pytest.approx(distinct(frame["text"], 2), nan_ok=True)
        expected = pd.Series([repetition(text) for text in frame["text"]]).mean()
        assert row[f"repetition_{state}"] == pytest.approx(expected, nan_ok=True)
        assert row[f"own_language_{state}"] == 0  # `labels_of` never says so
    assert before["text"].tolist() != after["text"].tolist()


def test_collapse_is_named(ready, monkeypatch):
    model, corpora, _, found, settings, result = ready
    assert off_target_module.COLLAPSE == 3  # which no intervention on this random model reaches
    assert result.table["collapse"].tolist() == ["", "", ""]
    rises = result.losses.loc[result.losses["set"].eq("found") & result.losses["intervened"].eq("en")]
    bar = rises["nll_change"].median()
    monkeypatch.setattr(off_target_module, "COLLAPSE", bar)
    broken = off_target(model, corpora, found["en"], **settings)
    above = rises.loc[rises["nll_change"] > bar, "evaluated"]
    assert len(above) == 2  # of four texts
    assert broken.table["collapse"].tolist() == [", ".join(above)]
    assert broken.matched == "count, layer"
    assert "own_language_before" in result.table
    assert "own_language_before" not in broken.table


def test_a_language_without_units_changes_nothing(ready):
    model, corpora, _, found, settings, _ = ready
    nobody = NeuronSet(("en",), {"mlp": torch.zeros_like(found.masks["mlp"][:1])})
    row = off_target(model, corpora, nobody, **settings).table.iloc[0]
    assert row["units"] == row["own_rise"] == row["worst_other_rise"] == row["numbers_rise"] == 0
    assert row["distinct_2_before"] == row["distinct_2_after"]


def test_bad_input(ready):
    model, corpora, _, found, _, _ = ready
    with pytest.raises(KeyError, match=r"languages \['de', 'zh'\]"):
        off_target(model, dict.fromkeys(("en", "fr"), corpora["en"]), found)
    for wrong in ({"seeds": 0}, {"prompts": 0}, {"neutral": {"en": small_neutral()["numbers"]}}):
        with pytest.raises(ValueError, match="neutral text named as a language"):
            off_target(model, corpora, found, **wrong)
    with pytest.raises(ValueError, match="two languages or more"):
        off_target(model, {"en": corpora["en"]}, found["en"])
