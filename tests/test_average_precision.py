"""Average precision against scikit-learn, plain Hugging Face modules, planted units and a selection written out."""

import math

import numpy as np
import pytest
import torch
from conftest import BACKENDS, SENTENCES, fused_rows, parts
from sklearn.metrics import average_precision_score

import lsn_lens as lsn
from lsn_lens.methods import average_precision as module
from lsn_lens.methods.average_precision import (
    BASES,
    AveragePrecision,
    average_precision_bounds,
    average_precisions,
    positive_median,
)
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.statistics.sums import Statistics

LANGUAGES = ("en", "fr", "zh")
TEXTS = {
    "en": [SENTENCES[0], "Rain again.", "The bridge is high."],
    "de": [SENTENCES[1], "Die Brücke."],
    "fr": [SENTENCES[2], "Le pont est haut après la pluie.", "La pluie"],
}
LAYOUT = lsn.Layout(kind="documents", equal=False, shards=2)
HF_MODULES = {"attn_out": "o", "mlp_pre": "gate", "mlp_up": "up", "mlp_out": "down"}
every_model = pytest.mark.parametrize(
    ("architecture", "backend"), [(each, backend) for each in ("llama", "gpt2", "bloom") for backend in BACKENDS]
)


def statistics_of(values, skip_bos=False):
    """From language -> basis -> `[layer, sentence, unit]`."""
    ending = ".mean.skip_bos" if skip_bos else ".mean"

    def read(key, layer):
        basis = key.removesuffix(ending)
        return {label: values[label][basis][layer] for label in reversed(values)}  # labels count, not their order

    first = next(iter(next(iter(values.values())).values()))
    return Statistics(tuple(values), {}, torch.ones(len(values), len(first)).long(), read=read)


def random_values(seed=0, sentences=(12, 9, 14), layers=2, liking=1.0, **widths):
    """Responses of units that like a language, or shun it; some have few different values."""
    generator = torch.Generator().manual_seed(seed)
    widths = widths or {"q": 6, "mlp_pre": 11, "mlp_out": 4}
    made = {}
    for label, n in zip(LANGUAGES, sentences, strict=False):
        made[label] = {}
        for basis, width in widths.items():
            values = torch.randn(layers, n, width, generator=generator)
            values += liking * torch.randn(layers, 1, width, generator=generator)
            values[..., ::3] = values[..., ::3].round()
            made[label][basis] = values
    return made


def find(values, **settings):
    method = AveragePrecision(**settings)
    return method.select(method.score(statistics_of(values)))


def sklearn_scores(responses):
    labels = np.repeat(np.arange(len(responses)), [len(each) for each in responses])
    everyone = torch.cat(responses).numpy()
    return np.array(
        [[average_precision_score(labels == k, unit) for unit in everyone.T] for k in range(len(responses))]
    )


# the score


@pytest.mark.parametrize("seed", range(12))
def test_equals_scikit_learn(seed, monkeypatch):
    draw = np.random.default_rng(seed)
    sizes, units = draw.integers(1, 40, draw.integers(2, 6)), 25
    responses = [draw.normal(draw.normal(0, 1, units), 1, (n, units)).astype(np.float32) for n in sizes]
    for each in responses:
        each[:, 5:10] = each[:, 5:10].round()  # ties
        each[:, 10:13] = each[:, 10:13] > 0  # two values
        each[:, 13] = 3.5  # constant
        each[:, 14] = 0.0
        each[:, 15] = np.where(each[:, 15] > 0, 0.0, -0.0)
    responses = [torch.from_numpy(each) for each in responses]
    actual = average_precisions(responses)
    np.testing.assert_allclose(actual.numpy(), sklearn_scores(responses), rtol=0, atol=1e-9)
    for at_once in (1, 3 * int(sizes.sum())):
        monkeypatch.setattr(module, "VALUES", at_once)
        assert torch.equal(average_precisions(responses), actual)


@pytest.mark.parametrize(("positives", "others"), [(500, 2500), (1, 1), (3, 17), (20, 5)])
def test_bounds_are_reached(positives, others):
    lowest, constant, highest = average_precision_bounds(positives, positives + others)
    own, rest = torch.arange(positives).float()[:, None], torch.arange(others).float()[:, None]
    columns = [
        torch.cat([own - others - positives, own * 0, own + others], dim=1),
        torch.cat([rest, rest * 0, rest], dim=1),
    ]
    assert average_precisions(columns)[0].tolist() == pytest.approx([lowest, constant, highest], abs=1e-11)
    assert highest == 1.0


def test_bounds_of_the_papers_data():
    lowest, constant, _ = average_precision_bounds(500, 3000)
    assert lowest == pytest.approx(0.08856, abs=5e-6)
    assert constant == pytest.approx(1 / 6)


def test_scores_are_the_precisions_of_every_layer_and_basis():
    values = random_values()
    scores = AveragePrecision().score(statistics_of(values))
    assert list(scores.values) == ["q", "mlp_pre", "mlp_out"]
    for basis, actual in scores.values.items():
        for layer in range(2):
            expected = sklearn_scores([values[label][basis][layer] for label in LANGUAGES])
            np.testing.assert_allclose(actual[:, layer].numpy(), expected, rtol=0, atol=1e-9)


def test_constant_units_are_never_chosen():
    values = random_values(q=9)
    for label, value in zip(LANGUAGES, (1, 2, 3), strict=True):
        values[label]["q"][0, :, 2] = 0.0
        values[label]["q"][1, :, 4] = -0.7
        values[label]["q"][0, :, 7] = 0.1 + value * 1e-8  # 0.1 throughout, with the rounding of a mean
        values[label]["q"][1, :, 7] = 1000 + value  # close, small: yet perfect signs
        values[label]["q"][1, :, 8] = value * 1e-9
    assert len({float(values[label]["q"][0, 0, 7]) for label in LANGUAGES}) == 3
    scores = AveragePrecision().score(statistics_of(values))
    assert scores.values["q"].isinf().nonzero()[:, 1:].unique(dim=0).tolist() == [[0, 2], [0, 7], [1, 4]]
    for side in ("top", "bottom", "both"):
        units = find(values, side=side, rate=1.0).units("q")
        assert (~units).nonzero().tolist() == [[0, 2], [0, 7], [1, 4]]


# the selection


def test_planted_units_are_found_on_their_side():
    values = random_values(layers=3, liking=0.0, k=20, mlp_up=30)
    values["fr"]["k"][1, :, 7] += 40  # high in French
    values["fr"]["mlp_up"][2, :, 9] -= 40  # low in French
    high, low = ("k", 1, 7), ("mlp_up", 2, 9)
    for side, count, expected in (("top", 1, {high}), ("bottom", 1, {low}), ("both", 2, {high, low})):
        found = find(values, side=side, count=count)["fr"]
        chosen = {(basis, *place) for basis, mask in found.masks.items() for place in mask[0].nonzero().tolist()}
        assert chosen == expected


def written_out(scores, place, side, count):
    """The selection for one language from lists: highest (or lowest) first, then layer, basis, unit."""
    units = [
        (float(scores.values[basis][place, layer, unit]), layer, BASES.index(basis), unit)
        for basis in scores.values
        for layer in range(scores.values[basis].shape[1])
        for unit in range(scores.values[basis].shape[2])
    ]
    units = [each for each in units if each[0] > -math.inf]
    count = min(count, len(units))
    n_top = {"top": count, "bottom": 0, "both": (count + 1) // 2}[side]
    top = sorted(units, key=lambda each: (-each[0], *each[1:]))[:n_top]
    bottom = sorted(set(units) - set(top))[: count - n_top]
    cuts = {each[-1][0] for each in (top, bottom) if each}
    left_out = [each for each in set(units) - set(top) - set(bottom) if each[0] in cuts]
    return {(BASES[basis], layer, unit) for _, layer, basis, unit in top + bottom}, len(left_out)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_selection_equals_the_rule_written_out(seed, side, tmp_path):
    values = random_values(seed, mlp_out=5, v=7, q=6)  # in another order than the ties'
    values = {
        label: {basis: (each * (seed + 1)).round() for basis, each in bases.items()} for label, bases in values.items()
    }
    total = 2 * (5 + 7 + 6)
    for settings, count in (
        ({"count": 1}, 1),
        ({"count": 7}, 7),
        ({"count": 999}, 999),
        ({"rate": 0.3}, round(0.3 * total)),
    ):
        method = AveragePrecision(side=side, **settings)
        scores = method.score(statistics_of(values))
        found = method.select(scores)
        assert found.notes["asked"] == count
        for place, label in enumerate(LANGUAGES):
            expected, left_out = written_out(scores, place, side, count)
            chosen = {(b, *each) for b, mask in found.masks.items() for each in mask[place].nonzero().tolist()}
            assert chosen == expected
            assert len(chosen) == min(count, total)
            assert found.notes["ties_left_out"][label] == left_out
        assert method.select(NeuronScores.load(scores.save(tmp_path / "scores"))) == found


def test_ties_go_by_layer_then_basis_then_unit_and_none_is_taken_twice():
    same = {basis: torch.zeros(3, 2, 2, dtype=torch.float64) + 0.5 for basis in ("mlp_out", "v", "q")}
    scores = NeuronScores(LANGUAGES, same, "made up")
    order = [(layer, basis, unit) for layer in range(2) for basis in ("q", "v", "mlp_out") for unit in range(2)]
    for side in ("top", "bottom", "both"):
        for count in range(1, 13):
            found = AveragePrecision(side=side, count=count).select(scores)
            chosen = {
                (layer, basis, unit)
                for basis, mask in found.masks.items()
                for layer, unit in mask[0].nonzero().tolist()
            }
            assert chosen == set(order[:count])
            assert found.notes["ties_left_out"] == dict.fromkeys(LANGUAGES, 12 - count)


def test_the_order_of_languages_does_not_matter():
    values = random_values(3)
    found = find(values, count=9)
    for order in (("zh", "en", "fr"), ("fr", "zh", "en")):
        assert find({label: values[label] for label in order}, count=9)[LANGUAGES] == found


def test_a_copied_language_has_the_same_units():
    values = random_values(4)
    found = find({**values, "copy": values["fr"]}, count=8)
    assert all(torch.equal(mask[1], mask[3]) for mask in found.masks.values())
    assert found.counts()["copy"] == 8


# what it reads


def outputs_of(architecture, modules, basis, units):
    """The Hugging Face module that gives a basis, and which of its outputs are the units."""
    if basis in "qkv" and hasattr(modules, "qkv"):
        return modules.qkv, fused_rows(architecture, basis, units)
    return getattr(modules, HF_MODULES.get(basis, basis)), units


@pytest.fixture(scope="module")
def collected(load):
    """`collected(architecture, backend, skip_bos)`: a run over `TEXTS`."""
    corpora, runs = lsn.load_corpora(TEXTS, hold_out=0.0), {}

    def collect(architecture, backend, skip_bos=False):
        key = (architecture, backend, skip_bos)
        if key not in runs:
            methods = [AveragePrecision(skip_bos=skip_bos)]
            runs[key] = lsn.collect(load(architecture, backend), corpora, methods, layout=LAYOUT, progress=False)
        return runs[key]

    return collect


@every_model
@torch.no_grad()
def test_responses_are_the_means_of_the_linear_layers_outputs(architecture, backend, load, hugging_face, collected):
    model, hf_model = load(architecture, backend), hugging_face(architecture)
    bases = [basis for basis in BASES if architecture == "llama" or basis != "mlp_up"]
    seen, expected = {}, {}
    for layer in range(model.cfg.n_layers):
        for basis in bases:
            width = lsn.model.structure.site_width(model, basis)
            linear, columns = outputs_of(architecture, parts(architecture, hf_model, layer), basis, torch.arange(width))
            linear.register_forward_hook(
                lambda m, i, output, key=(basis, layer), columns=columns: seen.update({key: output[0][:, columns]})
            )
    for label, texts in TEXTS.items():
        for text in texts:
            ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            hf_model(torch.tensor([[model.tokenizer.bos_token_id, *ids]]))
            for key, output in seen.items():
                for skip_bos in (False, True):
                    expected.setdefault((label, *key, skip_bos), []).append(output[int(skip_bos) :].mean(0))
    for skip_bos in (False, True):
        statistics = collected(architecture, backend, skip_bos).statistics
        assert set(AveragePrecision(skip_bos=skip_bos).score(statistics).values) == set(bases)
        for basis, layer in seen:
            key = f"{basis}.mean" + (".skip_bos" if skip_bos else "")
            for label, values in statistics.documents(key, layer).items():
                torch.testing.assert_close(
                    values, torch.stack(expected[label, basis, layer, skip_bos]), rtol=1e-4, atol=1e-5
                )


@every_model
@torch.no_grad()
def test_forcing_to_the_median_is_a_hook_on_the_linear_layers(architecture, backend, load, hugging_face, collected):
    model, run = load(architecture, backend), collected(architecture, backend)
    found, medians = lsn.detect(run, "average_precision", rate=0.1)["fr"], positive_median(run.statistics)
    place = run.languages.index("fr")
    values = {basis: each[place] for basis, each in medians.items()}
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(ids)
    for basis, mask in found.masks.items():
        one = lsn.NeuronSet(("fr",), {basis: mask | (torch.arange(mask.shape[-1]) == 3)})  # none is empty
        hf_model = hugging_face(architecture)
        for layer, chosen in enumerate(one.units(basis)):
            units = chosen.nonzero()[:, 0]
            linear, columns = outputs_of(architecture, parts(architecture, hf_model, layer), basis, units)
            linear.register_forward_hook(
                lambda m, i, output, columns=columns, new=values[basis][layer, units]: output.index_copy(
                    -1, columns, new.expand(*output.shape[:-1], -1)
                )
            )
        with lsn.intervene(model, one, lsn.set_to(values)):
            actual = model(ids)
        assert (actual - hf_model(ids).logits).abs().max() <= 2e-5 * before.std()
        assert (actual - before).abs().max() > 1e-3 * before.std()


def test_the_median_is_numpys():
    values = random_values(sentences=(12, 9, 1))
    medians = positive_median(statistics_of(values))
    assert list(medians) == ["q", "mlp_pre", "mlp_out"]
    for basis, actual in medians.items():
        expected = np.stack([np.median(values[label][basis].numpy(), axis=1) for label in LANGUAGES])
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-7)
    assert list(positive_median(statistics_of(values), ("mlp_out",))) == ["mlp_out"]
    assert list(positive_median(statistics_of(values, skip_bos=True), skip_bos=True)) == list(medians)


# what it refuses


def test_named_bases_must_be_there(load, collected):
    corpora, gpt2 = lsn.load_corpora(TEXTS, hold_out=0.0), load("gpt2")
    with pytest.raises(ValueError, match="mlp_up"):
        lsn.collect(gpt2, corpora, [AveragePrecision(bases=("q", "mlp_up"))], layout=LAYOUT, progress=False)
    run = lsn.collect(gpt2, corpora, [AveragePrecision(bases=("mlp_pre", "k"))], layout=LAYOUT, progress=False)
    assert list(lsn.detect(run, "average_precision").masks) == ["k", "mlp_pre"]
    assert list(lsn.detect(run, "average_precision", bases=("mlp_pre",)).masks) == ["mlp_pre"]
    with pytest.raises(KeyError, match=r"attn_out\.mean"):
        lsn.detect(run, "average_precision", bases=("attn_out", "k"))
    with pytest.raises(KeyError, match="skip_bos"):
        lsn.detect(run, "average_precision", skip_bos=True)
    with pytest.raises(ValueError, match="single documents"):
        lsn.collect(gpt2, corpora, ["average_precision"], layout=lsn.Layout(), progress=False)


def test_too_few_languages_or_sentences():
    values = random_values(sentences=(3, 0, 0))
    with pytest.raises(ValueError, match=r"no sentences of \['fr', 'zh'\]"):
        find(values)
    with pytest.raises(ValueError, match=r"no sentences of \['fr', 'zh'\]"):
        positive_median(statistics_of(values))
    with pytest.raises(ValueError, match="at least two"):
        find({"en": values["en"]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.0), ("rate", 1.5), ("count", 0), ("count", -2), ("bases", ()), ("bases", ("q", "z")),
        ("bases", ("q", "q")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        AveragePrecision(**{name: value})
