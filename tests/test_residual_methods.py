"""DiffMean and language dimensions against NumPy."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS

import lsn_lens as lsn
from lsn_lens.methods.diffmean import DiffMean, directions
from lsn_lens.methods.language_dimensions import LanguageDimensions
from lsn_lens.statistics.sums import Statistics

LABELS, LAYERS, UNITS, TOKENS = ("a", "b", "c"), 3, 20, 500


@pytest.fixture(scope="module")
def acts():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, TOKENS, LAYERS, UNITS))
    values[0, :, 1, 4] += 3  # far apart for its spread
    values[1, :, 2, 7] += 5
    values[:, :, :, 11] *= 1000  # an outlier dimension: large differences, larger spread
    return values


@pytest.fixture(scope="module")
def statistics(acts):
    sums = {"resid_post.sum": torch.tensor(acts.sum(1)), "resid_post.squares": torch.tensor((acts**2).sum(1))}
    return Statistics(LABELS, sums, torch.full((3, LAYERS), TOKENS))


def test_directions(acts, statistics):
    means = acts.mean(1)
    for place in range(3):
        others = np.mean([means[i] for i in range(3) if i != place], axis=0)
        assert np.allclose(directions(statistics)[place], means[place] - others)


def test_scores_and_the_best_dimensions(acts, statistics):
    method = DiffMean(rate=0.05)  # one dimension each
    scores = method.score(statistics)
    means, variances = acts.mean(1), acts.var(1)
    for place in range(3):
        others = np.mean([means[i] for i in range(3) if i != place], axis=0)
        expected = np.abs(means[place] - others) / np.sqrt(variances.mean(0))
        assert np.allclose(scores.values["resid"][place], expected)
    found = method.select(scores)
    assert found["a"].units("resid").nonzero().tolist() == [[1, 4]]
    assert found["b"].units("resid").nonzero().tolist() == [[2, 7]]
    assert not found.units("resid")[:, 11].any()


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("anchor", [None, "b"])
def test_language_dimensions(acts, statistics, layer, anchor):
    method = LanguageDimensions(count=4, layer=layer, anchor=anchor, exclude=(11,))
    found = method.select(method.score(statistics))
    means = acts.mean(1)[:, layer]
    for place, label in enumerate(LABELS):
        others = np.mean([means[i] for i in range(3) if i != place], axis=0)
        difference = np.abs(means[1 if anchor else place] - (means[place] if anchor else others))
        difference[11] = 0
        mine = found[label].units("resid")
        if label == anchor:
            assert not mine.any()
            continue
        assert set(mine[layer].nonzero()[:, 0].tolist()) == set(np.argsort(-difference)[:4].tolist())
        assert int(mine.sum()) == 4


def test_monolingual(acts, statistics):
    method = LanguageDimensions(count=2, mode="monolingual", anchor_layer=0, exclude=(11,))
    found = method.select(method.score(statistics))
    difference = np.abs(acts.mean(1)[:, 0] - acts.mean(1)[:, 2])
    difference[:, 11] = 0
    for place, label in enumerate(LABELS):
        units = found[label].units("resid")
        assert set(units[2].nonzero()[:, 0].tolist()) == set(np.argsort(-difference[place])[:2].tolist())
    assert found["b"].units("resid")[2, 7]


def test_a_share_of_the_width(statistics):
    method = LanguageDimensions(count=0.25)
    assert (method.select(method.score(statistics)).counts() == 5).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0"), ({"count": 1.5}, "count=1.5"), ({"mode": "monolingual"}, "anchor_layer"),
        ({"anchor_layer": 3}, "anchor_layer"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ValueError, match=message):
        LanguageDimensions(**settings)


def test_what_the_model_lacks_is_named(statistics):
    with pytest.raises(KeyError, match=r"no language 'xx'.*\['a', 'b', 'c'\]"):
        LanguageDimensions(anchor="xx").score(statistics)
    with pytest.raises(ValueError, match="layer 7: the model has the layers 0 to 2"):
        LanguageDimensions(layer=7).score(statistics)
    with pytest.raises(ValueError, match=r"exclude=\[99\].*0 to 19"):
        LanguageDimensions(exclude=(99,)).score(statistics)


def test_collected_from_a_model(load):
    model = load("llama")
    texts = {"en": ["The river is high.", "No."], "de": ["Der Fluss steht hoch.", "Nein, danke."]}
    layout = lsn.Layout(kind="documents")
    run = lsn.collect(model, lsn.load_corpora(texts, hold_out=0.0), ["diffmean"], layout=layout, progress=False)
    means = []
    for each in texts.values():
        rows = []
        for text in each:
            ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
            rows.append(model.run_with_cache(torch.tensor([ids]))[1]["blocks.1.hook_resid_post"][0])
        means.append(torch.cat(rows).mean(0))
    assert torch.allclose(directions(run.statistics)[0, 1].float(), means[0] - means[1], atol=1e-5)


# the recipe as it was released, by plain transformers

SENTENCES = {
    "en": ["The river is high.", "No.", "The bridge is closed after the rain."],
    "de": ["Der Fluss steht hoch.", "Nein, danke.", "Die Brücke ist gesperrt."],
    "fr": ["La rivière est haute.", "Non.", "Le pont est fermé après la pluie."],
}
COUNT = 6


@pytest.fixture(scope="module")
def recipe(hugging_face, load):
    """The model, and by language and layer the mean over sentences of the mean over tokens, the last before its MLP."""
    hf_model, tokenizer = hugging_face("llama"), load("llama").tokenizer
    before: list[torch.Tensor] = []
    last = hf_model.model.layers[-1].post_attention_layernorm
    handle = last.register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    means = {}
    with torch.no_grad():
        for label, texts in SENTENCES.items():
            rows = []
            for text in texts:
                ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
                states = hf_model(ids, output_hidden_states=True).hidden_states
                rows.append([each[0].mean(0) for each in (*states[: len(hf_model.model.layers) - 1], before[-1])])
            means[label] = [torch.stack(each).mean(0).numpy() for each in zip(*rows, strict=True)]
    handle.remove()
    return hf_model, means


@pytest.fixture(scope="module", params=BACKENDS)
def released_run(request, load):
    model = load("llama", request.param)
    methods = [LanguageDimensions(variant="released"), "language_dimensions"]
    corpora = lsn.load_corpora(SENTENCES, hold_out=0.0)
    layout = lsn.Layout(kind="documents", equal=False)
    return model, lsn.collect(model, corpora, methods, layout=layout, progress=False)


@pytest.mark.parametrize("mode", ["parallel", "monolingual"])
def test_the_released_dimensions(mode, recipe, released_run):
    _, means = recipe
    _, run = released_run
    settings = {"mode": mode, **({"anchor": "en"} if mode == "parallel" else {"anchor_layer": 0})}
    found = lsn.detect(run, "language_dimensions", count=COUNT, variant="released", exclude=(3,), **settings)
    differs = 0
    for label in ("de", "fr"):
        source = means["en"][-1] if mode == "parallel" else means[label][0]
        size = np.abs(source - means[label][-1])
        size[3] = 0
        units = found[label].units("resid")
        assert set(units[-1].nonzero()[:, 0].tolist()) == set(np.argsort(-size)[:COUNT].tolist())
        assert int(units.sum()) == COUNT
        ours = lsn.detect(run, "language_dimensions", count=COUNT, exclude=(3,), **settings)
        differs += int((units ^ ours[label].units("resid")).sum())
    assert differs  # else the two variants would be one
    assert found.origin["found"] == ["resid_pre.mean", "resid_mid.mean"]


def test_the_released_steering(recipe, released_run):
    hf_model, means = recipe
    model, run = released_run
    found = lsn.detect(run, "language_dimensions", count=COUNT, anchor="en", variant="released")
    what = lsn.dimensions_steering(run.statistics, found, "de", strength=0.4, layer=0, variant="released")
    control = np.zeros(model.cfg.d_model, dtype=np.float32)
    chosen = np.argsort(-np.abs(means["en"][-1] - means["de"][-1]))[:COUNT]
    control[chosen] = 0.4 * means["de"][-1][chosen]

    def overwrite(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = torch.where(torch.tensor(control) != 0, torch.tensor(control), hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    ids = torch.tensor([[0, 5, 9, 40, 77, 3]])
    clean = hf_model(ids).logits
    handle = hf_model.model.layers[0].register_forward_hook(overwrite)
    with torch.no_grad():
        expected = hf_model(ids).logits
    handle.remove()
    with torch.no_grad(), lsn.intervene(model, what):
        logits = model(ids)
    assert (logits - expected).abs().max() < 1e-4 * expected.std()
    assert (clean - expected).abs().max() > 0.1 * expected.std()


def test_where_the_dimensions_are_written(released_run):
    _, run = released_run
    found = lsn.detect(run, "language_dimensions", count=COUNT)
    mean = run.statistics.mean("resid_post")[run.languages.index("fr")]
    ((units, action),) = lsn.dimensions_steering(run.statistics, found, "fr", strength=2).steps
    assert units == found["fr"]
    assert torch.equal(action.values["resid"][1], 2 * mean[1].float())
    ((units, action),) = lsn.dimensions_steering(run.statistics, found, "fr", strength=2, layer=-2).steps
    assert torch.equal(units.masks["resid"][0, 0], found["fr"].masks["resid"][0, 1])
    assert not units.masks["resid"][0, 1].any()
    assert torch.equal(action.values["resid"][0], 2 * mean[1].float())
    with pytest.raises(ValueError, match="layer 5: the model has the layers 0 to 1"):
        lsn.dimensions_steering(run.statistics, found, "fr", layer=5)
    both = found | lsn.detect(run, "language_dimensions", count=COUNT, layer=0)
    with pytest.raises(ValueError, match=r"layers \[0, 1\]: expected one"):
        lsn.dimensions_steering(run.statistics, both, "fr", layer=0)


def test_a_model_without_a_stream_before_the_mlp_is_named(load):
    corpora = lsn.load_corpora(SENTENCES, hold_out=0.0)
    with pytest.raises(ValueError, match="resid_mid"):  # its halves run in parallel
        lsn.collect(load("neox"), corpora, [LanguageDimensions(variant="released")], progress=False)
