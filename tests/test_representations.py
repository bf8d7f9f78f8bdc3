"""Sentence vectors are Hugging Face's hidden states, and the tables what plain loops give."""

import itertools

import pandas as pd
import pytest
import torch
from conftest import LAYERS, SENTENCES, every_model, parts

import lsn_lens as lsn
from lsn_lens.analysis import representations
from lsn_lens.analysis.representations import (
    Embeddings,
    language_dominance,
    language_similarity,
    pair_similarity,
    sentence_embeddings,
    similarity_change,
)
from lsn_lens.model import structure
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report import plots

TEXTS = {"en": SENTENCES[:3], "de": (SENTENCES[1], SENTENCES[3], SENTENCES[2][:9]), "zh": SENTENCES[1:]}

pytestmark = pytest.mark.usefixtures("no_gradients")


def some_embeddings(languages=3, sentences=6, seed=0, shared=1.0):
    """Random vectors with something in common: the sentence, the language, the layer."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, 3, 8, generator=generator)

    values = noise(languages, sentences) + shared * noise(1, sentences) + noise(languages, 1) + noise(1, 1)
    return Embeddings(tuple("abcdefgh"[:languages]), values, "mean")


def cosine(first, second):
    return float((first * second).sum() / first.norm() / second.norm())


# the vectors


@every_model
def test_vectors_are_hugging_faces_hidden_states(architecture, backend, load, hugging_face):
    model, hf_model = load(architecture, backend), hugging_face(architecture)
    texts = {
        label: [text[:length] for text, length in zip(each, (20, 9), strict=False)] for label, each in TEXTS.items()
    }
    made = {pooling: sentence_embeddings(model, texts, pooling, progress=False) for pooling in ("mean", "last")}
    assert made["mean"].languages == ("en", "de", "zh")
    last = {}
    block = parts(architecture, hf_model, LAYERS - 1).block  # Hugging Face norms its last hidden state
    block.register_forward_hook(lambda module, args, output: last.update(acts=output))
    for place, rows in enumerate(texts.values()):
        for number, text in enumerate(rows):
            ids = torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
            states = [*hf_model(ids, output_hidden_states=True).hidden_states[:-1]]
            states.append(last["acts"][0] if isinstance(last["acts"], tuple) else last["acts"])
            states = torch.stack(states)[:, 0]
            for pooling, expected in (("mean", states[:, 1:].mean(1)), ("last", states[:, -1])):
                assert torch.allclose(made[pooling].values[place, number], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 40, 4096])
def test_batches_change_nothing(size, load, monkeypatch):
    expected = sentence_embeddings(load("llama"), TEXTS, progress=False).values
    monkeypatch.setattr(representations, "BATCH_TOKENS", size)
    assert torch.allclose(sentence_embeddings(load("llama"), TEXTS, progress=False).values, expected, atol=1e-5)


def test_an_intervention_in_force_shows(demo):
    texts = {"en": ["A river.", "The old bridge is closed."], "fr": ["Une rivière.", "Le vieux pont est fermé."]}
    before = sentence_embeddings(demo, texts, progress=False).values
    units = torch.zeros(1, demo.cfg.n_layers, structure.site_width(demo, "resid_post"), dtype=torch.bool)
    units[0, 2, :50] = True
    with lsn.intervene(demo, NeuronSet(("fr",), {"resid": units})):
        during = sentence_embeddings(demo, texts, progress=False).values
    assert torch.equal(during[:, :, :3], before[:, :, :3])
    assert not during[:, :, 3, :50].any()
    assert torch.equal(during[:, :, 3, 50:], before[:, :, 3, 50:])
    assert not torch.allclose(during[:, :, 4:], before[:, :, 4:], atol=0.01)
    assert torch.equal(sentence_embeddings(demo, texts, progress=False).values, before)


def test_without_separator_the_first_token_counts(load, hugging_face):
    made = sentence_embeddings(
        load("llama"), {"en": ["A river"], "de": ["Ein Fluss"]}, separator="none", progress=False
    )
    ids = load("llama").tokenizer("A river", add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = hugging_face("llama")(ids, output_hidden_states=True).hidden_states[1][0].mean(0)
    assert torch.allclose(made.values[0, 0, 1], expected, atol=1e-5)


def test_long_sentences_are_left_out_in_every_language_and_said(load):
    model = load("llama")
    texts = {"en": [SENTENCES[0], "short", "A river."], "de": ["kurz", SENTENCES[1] * 3, "Ein Fluss."]}
    with pytest.raises(ValueError, match=r"1 of 3 sentences have more than the model's 64 tokens.*sentence 1"):
        sentence_embeddings(model, texts, progress=False)
    made = sentence_embeddings(model, texts, skip_long=True, progress=False)
    assert made.left_out == (1,)
    assert "2 sentences (1 left out)" in repr(made)
    expected = sentence_embeddings(model, {label: [each[0], each[2]] for label, each in texts.items()}, progress=False)
    assert torch.allclose(made.values, expected.values, atol=1e-5)
    with pytest.raises(ValueError, match="1 of 1 sentences"):
        sentence_embeddings(model, {"en": ["a"], "de": [SENTENCES[1] * 3]}, skip_long=True, progress=False)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"en": ["a", "b"], "de": ["a"]}, "the same number.*'en': 2, 'de': 1"),
        ({"en": [], "de": []}, "above 0"),
        ({}, "above 0"),
        ({"en": ["a", ""], "de": ["a", "b"]}, "en: sentence 1 .* no tokens"),
    ],
)
def test_bad_sentences(texts, message, load):
    with pytest.raises(ValueError, match=message):
        sentence_embeddings(load("llama"), texts, progress=False)


# the tables


def test_similarity_is_what_loops_give():
    made = some_embeddings()
    table = pair_similarity(made).set_index(["layer", "language", "other"])
    assert len(table) == 9
    for layer, (i, j) in itertools.product(range(3), [(0, 1), (0, 2), (1, 2)]):
        first, second = made.values[i, :, layer], made.values[j, :, layer]
        cosines = [[cosine(a, b) for b in second] for a in first]
        same = [cosines[s][s] for s in range(6)]
        other = [cosines[s][t] for s in range(6) for t in range(6) if s != t]
        hits = [max(range(6), key=cosines[s].__getitem__) == s for s in range(6)]
        hits += [max(range(6), key=lambda t, s=s: cosines[t][s]) == s for s in range(6)]
        row = table.loc[(layer, made.languages[i], made.languages[j])]
        assert row["similarity"] == pytest.approx(sum(same) / 6, abs=1e-6)
        assert row["control"] == pytest.approx(sum(other) / 30, abs=1e-6)
        assert row["above_control"] == pytest.approx(row["similarity"] - row["control"])
        assert row["retrieval"] == pytest.approx(sum(hits) / 12)
    assert table["retrieval"].nunique() > 3
    means = language_similarity(made).set_index("layer")
    for layer in range(3):
        assert means.loc[layer].to_dict() == pytest.approx(table.loc[layer].mean().to_dict())


def test_dominance_is_what_loops_give():
    made = some_embeddings()
    table = language_dominance(made).set_index(["layer", "language"])
    means = made.values.mean(1)
    for layer, target in itertools.product(range(3), range(3)):
        same, other = [], []
        for c, s, t in itertools.product(range(3), range(6), range(6)):
            if c != target:
                moved = made.values[c, s, layer] - means[c, layer] + means[target, layer]
                (same if s == t else other).append(cosine(moved, made.values[target, t, layer]))
        row = table.loc[(layer, made.languages[target])]
        assert row["dominance"] == pytest.approx(sum(same) / len(same), abs=1e-6)
        assert row["control"] == pytest.approx(sum(other) / len(other), abs=1e-6)
        assert row["above_control"] == pytest.approx(row["dominance"] - row["control"])


def test_planted_cases():
    made = some_embeddings(languages=2)
    twins = Embeddings(("a", "b"), made.values[[0, 0]], "mean")
    table = language_similarity(twins)
    assert table["similarity"].tolist() == pytest.approx([1.0] * 3)
    assert table["retrieval"].tolist() == [1.0] * 3
    assert (table["control"] < 0.99).all()
    shifted = torch.stack([made.values[0], made.values[0] + 5 * torch.randn(3, 8)])
    table = language_dominance(Embeddings(("a", "b"), shifted, "mean"))
    assert table["dominance"].tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    unrelated = pair_similarity(some_embeddings(languages=2, sentences=400, shared=0.0))
    assert unrelated["above_control"].abs().max() < 0.03
    assert unrelated["retrieval"].max() < 0.05
    constant = Embeddings(("a", "b"), torch.ones(2, 5, 1, 8), "last")
    assert language_similarity(constant)["retrieval"].tolist() == [0.0], "a tie is no hit"


def test_the_order_of_languages_does_not_matter():
    made, order = some_embeddings(), [2, 0, 1]
    other = Embeddings(tuple(made.languages[i] for i in order), made.values[order], "mean")
    for function in (language_similarity, language_dominance):
        expected = function(made)
        actual = function(other).sort_values([each for each in ("layer", "language") if each in expected])
        pd.testing.assert_frame_equal(actual.reset_index(drop=True), expected)
    tables = [
        {(row.layer, frozenset((row.language, row.other))): row.retrieval for row in pair_similarity(each).itertuples()}
        for each in (made, other)
    ]
    assert tables[0] == tables[1]


def test_change():
    before, after = some_embeddings(), some_embeddings(seed=1)
    for function in (pair_similarity, language_similarity, language_dominance):
        tables = function(before), function(after)
        change = similarity_change(*tables)
        measure = tables[0].columns[-1]
        assert (change[f"{measure}_change"] == tables[1][measure] - tables[0][measure]).all()
        assert (change[f"{measure}_before"] == tables[0][measure]).all()
        assert list(change["layer"]) == list(tables[0]["layer"])
    for other in (pair_similarity(after), language_similarity(after)[1:], language_dominance(after)):
        with pytest.raises(ValueError, match="not of the same kind"):
            similarity_change(language_similarity(before), other)


@pytest.mark.parametrize("function", [pair_similarity, language_similarity, language_dominance])
def test_too_little_to_compare(function):
    for languages, sentences in ((1, 6), (3, 1)):
        with pytest.raises(ValueError, match=f"{languages} languages and {sentences} sentences"):
            function(some_embeddings(languages, sentences))


def test_the_figure_shows_the_tables():
    tables = {"none": language_similarity(some_embeddings()), "zeroed": language_similarity(some_embeddings(seed=1))}
    chart = plots.similarity_curves(tables)
    assert [mark.label for mark in chart.marks] == [
        "none",
        "none: other sentences",
        "zeroed",
        "zeroed: other sentences",
    ]
    assert chart.marks[2].values.tolist() == tables["zeroed"]["similarity"].tolist()
    assert chart.marks[1].values.tolist() == tables["none"]["control"].tolist()
    retrieval = plots.similarity_curves(tables, "retrieval")
    assert [mark.label for mark in retrieval.marks] == ["none", "zeroed"]
    assert chart.plotly() and retrieval.matplotlib()
