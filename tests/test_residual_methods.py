"""DiffMean and language dimensions against NumPy."""

import numpy as np
import pytest
import torch

import lsn_lens as lsn
from lsn_lens.methods import DiffMean, LanguageDimensions
from lsn_lens.methods.diffmean import directions
from lsn_lens.statistics import Statistics

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
