"""What units are set to, against numbers measured by hand in Hugging Face's modules."""

import statistics as median_of

import pytest
import torch
from conftest import BACKENDS, D_MLP, D_MODEL, LAYERS, parts
from jaxtyping import TypeCheckError
from oracles import keep, read_ids, some_ids, some_units
from test_interventions import read

import lsn_lens as lsn
from lsn_lens.interventions.words import action_of
from lsn_lens.methods.language_dimensions import LanguageDimensions
from lsn_lens.model import structure
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES
from lsn_lens.statistics.needs import DocumentValues, Statistic

TEXTS = {
    "de": ["Der Fluss steht nach dem Regen hoch.", "Die Brücke ist gesperrt.", "Der Regen"],
    "en": ["The river is high.", "The bridge is closed after the rain.", "It is the river, and the rain."],
    "zh": ["雨后河水上涨。", "桥已经关闭。", "河"],
}
SITES_BY_HAND = {"mlp_post": "down", "mlp_act": "act", "resid_post": "block", "mlp_up": "up"}

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, load):
    return load("llama", request.param)


@pytest.fixture(scope="module")
def statistics(model):
    extra = [DocumentValues("mlp_post", "maximum"), *(Statistic(site, "sum") for site in ("mlp_post", "mlp_act"))]
    methods = ["average_precision", "diffmean", "language_dimensions"]
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    return lsn.collect(model, corpora, methods, extra=extra, progress=False).statistics


@pytest.fixture(scope="module")
def by_hand(model, hugging_face):
    """Site -> language -> document -> `[layer token unit]`, from plain torch hooks."""
    hf_model, seen = hugging_face("llama"), {}
    for layer in range(LAYERS):
        modules = parts("llama", hf_model, layer)
        for site, name in SITES_BY_HAND.items():
            getattr(modules, name).register_forward_hook(
                lambda module, args, output, key=(site, layer): seen.update({key: (args, output)})
            )
    found = {site: {label: [] for label in TEXTS} for site in SITES_BY_HAND}
    with torch.no_grad():
        for label, texts in TEXTS.items():
            for text in texts:
                hf_model(read_ids(text, model))
                for site in SITES_BY_HAND:
                    layers = [
                        seen[site, layer][0][0] if site == "mlp_post" else seen[site, layer][1]
                        for layer in range(LAYERS)
                    ]
                    found[site][label].append(torch.stack([each[0] for each in layers]))
    return found


def mean_of(documents):
    """Of all tokens of a language."""
    return torch.cat(documents, dim=1).double().mean(1)


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-5)


# a language's values


def test_means_are_those_of_all_tokens(statistics, by_hand):
    post, act, resid = (by_hand[site] for site in ("mlp_post", "mlp_act", "resid_post"))
    action = lsn.language_mean(statistics, "en")
    close(action.values["mlp"], mean_of(post["en"]))
    close(action.values["resid"], mean_of(resid["en"]))
    gate = lsn.language_mean(statistics, "en", "mlp_act")
    close(gate.values["mlp"], mean_of(act["en"]))
    assert (action.mlp_site, gate.mlp_site) == ("mlp_post", "mlp_act")
    means = {label: mean_of(post[label]) for label in TEXTS}
    close(lsn.mean_ablation(statistics).values["mlp"], sum(means.values()) / 3)
    close(lsn.other_mean_ablation(statistics)("en").values["mlp"], (means["de"] + means["zh"]) / 2)


def test_maximum_is_that_of_all_tokens(statistics, by_hand):
    expected = torch.cat(by_hand["mlp_post"]["de"], dim=1).amax(1)
    action = lsn.language_maximum(statistics, "de")
    close(action.values["mlp"], expected)
    assert set(action.values) == {"mlp"}


def test_median_is_that_of_means_over_sentences(statistics, by_hand):
    values = lsn.language_median(statistics, "zh").values
    assert set(values) == {"q", "k", "v", "attn_out", "mlp_pre", "mlp_up", "mlp_out"}
    means = torch.stack([each.mean(1) for each in by_hand["mlp_up"]["zh"]])
    expected = [[median_of.median(means[:, layer, unit].tolist()) for unit in range(D_MLP)] for layer in range(LAYERS)]
    close(values["mlp_up"], torch.tensor(expected))


@pytest.mark.parametrize("make", [lsn.language_mean, lsn.language_median, lsn.language_maximum])
def test_a_language_that_is_not_there(make, statistics):
    with pytest.raises(KeyError, match=r"no language 'fr'; the languages are \['de', 'en', 'zh'\]"):
        make(statistics, "fr")


def test_what_the_run_did_not_keep(statistics, model):
    bare = lsn.Statistics(statistics.languages, {}, statistics.tokens)
    found = some_units(model)
    with (
        pytest.raises(KeyError, match="no values for basis 'mlp'"),
        lsn.intervene(model, found, lsn.language_mean(bare, "en")),
    ):
        pass
    for make in (lsn.language_median, lsn.language_maximum):
        with pytest.raises(KeyError, match="no values of single documents"):
            make(bare, "en")
    for bases in (["pattern"], ["mlp", "neurons"], []):
        with pytest.raises(KeyError, match="expected one or more of"):
            lsn.language_maximum(statistics, "en", bases)


# what they do to the model


def look(model, what, ids, *sites):
    """What a hook added inside the intervention sees, `[layer token unit]` for each site."""
    seen = {}
    with lsn.intervene(model, what):
        hooks = [(SITES[site].hook_name(layer), keep(seen, (site, layer))) for site in sites for layer in range(LAYERS)]
        with model.hooks(fwd_hooks=hooks):
            model(ids)
    return [torch.stack([seen[site, layer][0] for layer in range(LAYERS)]) for site in sites]


def languages_units(model, share=0.5):
    """Sets of three languages that share units."""
    masks = [some_units(model, "mlp", share, seed).masks["mlp"] for seed in range(3)]
    return NeuronSet(tuple(TEXTS), {"mlp": torch.cat(masks)})


@pytest.mark.parametrize("source", ["de", None])
@pytest.mark.parametrize("mlp_site", ["mlp_post", "mlp_act"])
@pytest.mark.parametrize("mode", ["additive", "replacement", "difference"])
def test_language_arithmetics(mode, mlp_site, source, model, statistics, by_hand):
    """Off, then on: a unit of both languages gets the target's value from zero."""
    found, ids = languages_units(model), read_ids(TEXTS["de"][0], model)
    what = lsn.language_arithmetics(statistics, found, "en", source, mode=mode, strength=2, mlp_site=mlp_site)
    post, pre, up = look(model, what, ids, "mlp_post", "mlp_pre", "mlp_up")
    means = {label: mean_of(by_hand[mlp_site][label]).float()[:, None] for label in TEXTS}
    given = 2 * (means["en"] - (means["de"] + means["zh"]) / 2 if mode == "difference" else means["en"])
    up = up if mlp_site == "mlp_act" else torch.ones_like(up)
    acts = torch.nn.functional.silu(pre) * (1 if mlp_site == "mlp_act" else look(model, what, ids, "mlp_up")[0])
    off = found["de"].units("mlp")[:, None] if source else torch.zeros(LAYERS, 1, D_MLP, dtype=torch.bool)
    on = found["en"].units("mlp")[:, None]
    acts = torch.where(off, 0.0, acts)
    acts = torch.where(on, given if mode == "replacement" else acts + given, acts)
    close(post, acts * up)
    if source:
        assert (off & on).any() and len(what) == len(found[["de", "en"]])
    assert what.name == f"{source or ''}->en {mode} 2"


def test_difference_of_means_moves_one_mean_onto_the_other(model, statistics, by_hand):
    resid = by_hand["resid_post"]
    for layer in (0, -1):
        for source in ("de", None):
            means = {label: mean_of(resid[label])[layer] for label in TEXTS}
            start = means["de"] if source else (means["de"] + means["zh"]) / 2
            what = lsn.diffmean_steering(statistics, "en", source, layer=layer)
            moved = {
                label: mean_of([look(model, what, read_ids(text, model), "resid_post")[0] for text in TEXTS[label]])[
                    layer
                ]
                for label in ("de", "zh")
            }
            close(moved["de"] if source else (moved["de"] + moved["zh"]) / 2, means["en"])
            half = lsn.diffmean_steering(statistics, "en", source, layer=layer, strength=0.5)
            close(half.steps[0][1].values["resid"][layer], (means["en"] - start) / 2)
            assert len(what) == D_MODEL
    last = look(model, what, read_ids("The", model), "resid_post")[0]
    close(last[0], untouched(model, "The")[0])  # the layer before it


def untouched(model, text):
    seen = {}
    with model.hooks(fwd_hooks=[(SITES["resid_post"].hook_name(layer), keep(seen, layer)) for layer in range(LAYERS)]):
        model(read_ids(text, model))
    return torch.stack([seen[layer][0] for layer in range(LAYERS)])


def test_language_dimensions_are_overwritten(model, statistics, by_hand):
    method = LanguageDimensions(count=5, layer=0)
    found = method.select(method.score(statistics))
    what = lsn.dimensions_steering(statistics, found, "zh", strength=3)
    ids = read_ids("The river", model)
    after, mean = look(model, what, ids, "resid_post")[0], mean_of(by_hand["resid_post"]["zh"])
    units = found["zh"].units("resid")
    assert units.sum(1).tolist() == [5, 0]
    close(after[0][:, units[0]], 3 * mean[0, units[0]].expand(ids.shape[1], -1))
    close(after[0][:, ~units[0]], untouched(model, "The river")[0][:, ~units[0]])


def test_refusals_of_steering(model, statistics):
    found = languages_units(model)
    with pytest.raises((ValueError, TypeCheckError), match="mode"):
        lsn.language_arithmetics(statistics, found, "en", mode="multiply")
    for layer in (LAYERS, -LAYERS - 1):
        with pytest.raises(ValueError, match=f"layer {layer}: the model has the layers 0 to {LAYERS - 1}"):
            lsn.diffmean_steering(statistics, "en", layer=layer)
    for call in (
        lambda: lsn.language_arithmetics(statistics, found, "fr"),
        lambda: lsn.language_arithmetics(statistics, found, "en", "fr"),
        lambda: lsn.diffmean_steering(statistics, "fr", layer=0),
        lambda: lsn.diffmean_steering(statistics, "en", "fr", layer=0),
        lambda: lsn.dimensions_steering(statistics, found, "fr"),
    ):
        with pytest.raises(KeyError, match=r"no language .*'?fr'?.*; the languages are"):
            call()
    too_strong = lsn.diffmean_steering(statistics, "en", layer=0, strength=float("inf"))
    with (
        pytest.raises(ValueError, match="->en diffmean inf': values for 'resid' in layer 0 are not all finite"),
        lsn.intervene(model, too_strong),
    ):
        pass


# resample


def test_resampled_units_are_of_one_token(model, by_hand):
    """Both layers and both bases at a place are what one token of the text has; each row and pass gets the same."""
    documents, tokens = TEXTS["en"], 6
    action = lsn.resample(model, documents, ("mlp", "resid"), tokens=tokens, progress=False)
    rows = torch.cat(
        [
            torch.cat([by_hand[site]["en"][number][:, 1:] for site in ("mlp_post", "resid_post")], -1)
            for number in range(3)
        ],
        1,
    )
    rows = rows.transpose(0, 1).flatten(1)  # token, all layers and bases
    everything = NeuronSet(
        ("xx",),
        {
            basis: torch.ones(1, LAYERS, width, dtype=torch.bool)
            for basis, width in (("mlp", D_MLP), ("resid", D_MODEL))
        },
    )
    what = lsn.Intervention("resample", ((everything, action),))
    ids = torch.stack([read_ids(TEXTS["de"][0], model)[0][:9], read_ids(TEXTS["en"][1], model)[0][:9]])
    seen = [
        torch.cat(look(model, what, each[None], "mlp_post", "resid_post"), -1).transpose(0, 1).flatten(1)
        for each in ids
    ]
    close(seen[0], seen[1])
    distances = torch.cdist(seen[0].double(), rows.double())
    nearest = distances.argmin(1)
    assert distances.amin(1).max() < 1e-3 * distances.median(), "a row of the text, in all layers and bases at once"
    assert len(set(nearest[:tokens].tolist())) == tokens and nearest[tokens:].tolist() == nearest[: 9 - tokens].tolist()
    again = lsn.resample(model, documents, tokens=tokens, progress=False).values["mlp"]
    assert torch.equal(again, action.values["mlp"])
    other = lsn.resample(model, documents, tokens=tokens, seed=1, progress=False).values["mlp"]
    assert not torch.equal(other, again)


def test_resample_reads_no_more_than_it_needs_and_says_what_lacks(model, load):
    read = []
    lsn.resample(model, (read.append(text) or text for text in TEXTS["en"]), tokens=4, progress=False)
    assert read == TEXTS["en"][:1]
    available = sum(read_ids(text, model).shape[1] - 1 for text in TEXTS["en"])
    lsn.resample(model, TEXTS["en"], tokens=available, progress=False)
    with pytest.raises(ValueError, match=f"the documents have {available} tokens, fewer than {available + 1}"):
        lsn.resample(model, TEXTS["en"], tokens=available + 1, progress=False)
    with pytest.raises(ValueError, match="tokens=0"):
        lsn.resample(model, TEXTS["en"], tokens=0, progress=False)
    for bases in (("pattern",), ()):
        with pytest.raises(KeyError, match="expected one or more of"):
            lsn.resample(model, TEXTS["en"], bases, progress=False)
    gpt2 = load("gpt2", "bridge" if structure.is_bridge(model) else "hooked")
    with pytest.raises(ValueError, match=r"site 'mlp_up': .* has no"):
        lsn.resample(gpt2, TEXTS["en"], ("mlp_up",), progress=False)


# words


def test_words_are_the_actions_of_a_run(model, statistics):
    mean, others = action_of("mean", statistics), action_of(" Other_Mean", statistics)("en")
    assert action_of("ZERO") is lsn.zero and action_of(mean) is mean
    for given, expected in ((mean, lsn.mean_ablation), (others, lambda each: lsn.other_mean_ablation(each)("en"))):
        assert given.name == expected(statistics).name
        assert {basis: each.tolist() for basis, each in given.values.items()} == {
            basis: each.tolist() for basis, each in expected(statistics).values.items()
        }
    found = some_units(model)
    with lsn.intervene(model, found, "zero"):
        seen = read(model, SITES["mlp_post"], some_ids())
    assert all((seen[layer][..., found.units("mlp")[layer]] == 0).all() for layer in range(LAYERS))


@pytest.mark.parametrize(
    ("word", "given", "said"),
    [
        ("mean", False, r"action='mean' needs the means of a run.*lsn\.mean_ablation\(run\.statistics\)"),
        ("other mean", False, r"give lsn\.other_mean_ablation\(run\.statistics\)"),
        ("off", True, r"action='off': expected one of the words \['zero', 'mean', 'other mean'\], or .*lsn\.zero"),
        (0.5, True, "action='0.5' is of type float"),
    ],
)
def test_words_that_stand_for_nothing(statistics, word, given, said):
    with pytest.raises(ValueError, match=said):
        action_of(word, statistics if given else None)
