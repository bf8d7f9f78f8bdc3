"""What every method must keep, whatever it computes: one tiny model, one pass for all of them."""

import inspect
import re
import warnings
from dataclasses import FrozenInstanceError, fields, replace
from functools import cache
from itertools import permutations
from pathlib import Path

import jaxtyping
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens import detect, methods, score
from lsn_lens.methods.base import order_of
from lsn_lens.methods.catalogue import METHODS, get_method, named
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape
from lsn_lens.methods.selection import best_units
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sites import SITES
from lsn_lens.statistics.needs import Need, Statistic

LANGUAGES = ("de", "en", "fr", "zh")
ITEMS = (
    ("Der Fluss steht hoch.", "The river is high.", "La rivière est haute.", "河水上涨。"),
    ("Die Brücke ist nach dem Regen gesperrt.", "The bridge is closed after the rain.",
     "Le pont est fermé après la pluie.", "雨后桥已经关闭。"),
    ("Wir gehen morgen früh zum Markt und kaufen Brot.", "Tomorrow morning we go to the market and buy bread.",
     "Demain matin nous allons au marché acheter du pain.", "明天早上我们去市场买面包。"),
    ("Er schläft.", "He sleeps.", "Il dort.", "他睡了。"),
    ("Das alte Haus am See gehört meiner Tante.", "The old house by the lake belongs to my aunt.",
     "La vieille maison au bord du lac appartient à ma tante.", "湖边的老房子是我姑姑的。"),
    ("Warum nicht?", "Why not?", "Pourquoi pas ?", "为什么不呢。"),
)  # fmt: skip
NEVER = (1, 7)  # layer and unit of a neuron whose weights are zero
LAYOUT = lsn.Layout(kind="documents", shards=2, batch_tokens=1)  # a document at a time: shards cut nothing apart

# settings under which every method finds something on little data
SETTINGS = {
    "lape": {"rate": 0.3, "filter_share": 0.6, "bar_share": 0.5},
    "lap": {"rate": 0.5},
    "lave": {"rate": 0.3, "filter_share": 0.6, "bar_share": 0.5},
    "average_precision": {"rate": 0.2},
    "plnd": {"top_mlp": 0.9, "top_attention": 0.9},
    "sharing": {"rate": 0.3},
    "expert_frequency": {"size": 4, "rate": 0.5},
    "frozen_lape": {"rate": 0.3, "filter_share": 0.6, "bar_share": 0.5},
    "transfer": {"rate": 0.3},
    "diffmean": {"rate": 0.2},
    "language_dimensions": {"count": 0.2},
    "entropy_lambda": {"rate": 0.3},
    "dln": {"share": 0.3, "bins": 16},
    "act_grad": {"rate": 0.3, "filter_share": 0.6, "bar_share": 0.5},
    "random": {"like": Lape(rate=0.3, filter_share=0.6, bar_share=0.5), "seed": 3},
}
METHOD = {name: METHODS[name](**SETTINGS.get(name, {})) for name in METHODS}
every_method = pytest.mark.parametrize("name", METHODS)
# the control draws from all units, for each language by its label: what it draws says nothing about them
every_method_but_random = pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny grouped-query Llama with one neuron that never fires."""
    folder = tmp_path_factory.mktemp("methods") / "model"
    hf_model = tiny_model("llama")
    layer, unit = NEVER
    with torch.no_grad():
        mlp = hf_model.model.layers[layer].mlp
        mlp.gate_proj.weight[unit] = mlp.up_proj.weight[unit] = 0
    hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return lsn.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def collected(model):
    """`collected(languages, shards)`: one pass for all methods; a language "copy" has the text of "fr"."""

    @cache
    def collect(languages=LANGUAGES, shards=2):
        texts = {label: [item[LANGUAGES.index("fr" if label == "copy" else label)] for item in ITEMS * 2]
                 for label in languages}  # fmt: skip
        corpora = lsn.load_corpora(texts, hold_out=0.0)
        return lsn.collect(model, corpora, METHOD.values(), layout=replace(LAYOUT, shards=shards), progress=False)

    return collect


@pytest.fixture(scope="module")
def run(collected):
    return collected()


def same_scores(one, other):
    return one.values.keys() == other.values.keys() and all(
        torch.equal(value, other.values[basis]) for basis, value in one.values.items()
    )


def reordered(run, languages):
    """The same run with its languages in another order."""
    return replace(run, shards={label: run.shards[label] for label in languages},
                   documents={label: run.documents[label] for label in languages})  # fmt: skip


def test_each_method_has_settings_here():
    assert set(SETTINGS) == set(METHODS)


@every_method
def test_finds_something_and_is_deterministic(name, run):
    found = detect(run, METHOD[name])
    assert found.languages == LANGUAGES
    assert found.counts().sum() > 0
    assert detect(run, METHOD[name]) == found
    assert same_scores(score(run, METHOD[name]), score(run, METHOD[name]))
    assert found.method == repr(METHOD[name])


@every_method
def test_the_order_of_languages_does_not_matter(name, run):
    found, scores = detect(run, METHOD[name]), score(run, METHOD[name])
    for order in list(permutations(LANGUAGES))[1::5]:
        other = reordered(run, order)
        assert detect(other, METHOD[name])[LANGUAGES] == found
        index = [order.index(label) for label in LANGUAGES]
        for basis, values in score(other, METHOD[name]).values.items():
            assert torch.allclose(values[index], scores.values[basis], rtol=1e-6, atol=1e-9)


def test_a_pass_in_another_order_keeps_the_same(collected):
    order = LANGUAGES[::-1]
    one, other = collected().statistics, collected(order).statistics
    for key, value in one.constants.items():
        assert torch.equal(value, other.constants[key]), key
    for key, value in one.sums.items():
        assert torch.equal(value, other.sums[key].flip(0)), key


@pytest.mark.parametrize("shards", [1, 5])
def test_merged_shards_give_what_the_whole_gives(shards, collected):
    whole, parts = collected(), collected(shards=shards)
    assert len(parts.shards["fr"]) == shards
    for key, value in whole.statistics.sums.items():
        other = parts.statistics.sums[key]
        assert torch.allclose(value.double(), other.double(), rtol=1e-12, atol=1e-12), key  # float64 sums, regrouped
    for name, method in METHOD.items():
        assert detect(whole, method) == detect(parts, method), name


@every_method_but_random
def test_a_copied_language_gets_no_neuron_of_its_own(name, collected):
    found = detect(collected((*LANGUAGES, "copy")), METHOD[name])
    for basis in found.masks:
        assert torch.equal(found["copy"].units(basis), found["fr"].units(basis))
    assert len(found)


@every_method_but_random
def test_a_neuron_that_never_fires_is_never_chosen(name, run):
    names = {each.name for each in fields(METHODS[name])}
    generous = {"rate": 1.0, "filter_share": 0.01, "bar_share": 0.01, "top_mlp": 1.0, "high": 1.0}
    generous |= {"share": 1.0} if name == "dln" else {}
    settings = SETTINGS[name] | {key: value for key, value in generous.items() if key in names}
    for method in (METHOD[name], METHODS[name](**settings)):
        found = detect(run, method)
        for basis in {"mlp", "mlp_pre", "mlp_up"} & set(found.masks):
            assert not found.units(basis)[NEVER], basis


@every_method
def test_is_a_frozen_dataclass_rebuilt_from_its_repr(name):
    for method in (METHOD[name], METHODS[name]()):
        assert eval(repr(method), {name: getattr(methods, name) for name in methods.__all__}) == method
        with pytest.raises(FrozenInstanceError):
            setattr(method, fields(method)[0].name, 1)
        hash(method)


@every_method
def test_needs_are_known_and_named_apart(name):
    needs = METHOD[name].statistics()
    assert needs
    assert all(isinstance(each, Need) and set(each.sites) <= set(SITES) for each in needs)
    assert len({each.key for each in needs}) == len(needs)


@every_method
def test_one_language_cannot_be_compared(name, run):
    with pytest.raises(ValueError, match=r"\['fr'\].*at least two"):
        detect(reordered(run, ["fr"]), METHOD[name])


@every_method
def test_scores_can_be_saved_and_selected_from_later(name, run, tmp_path):
    scores = score(run, METHOD[name])
    loaded = NeuronScores.load(scores.save(tmp_path / "scores"))
    assert METHOD[name].select(loaded) == METHOD[name].select(scores)


@every_method
def test_a_run_without_its_statistics_is_an_error_that_names_them(name, run):
    bare = replace(run.statistics, sums={}, read=None)
    with pytest.raises(KeyError, match=r"did not collect|no values of single documents"):
        METHOD[name].score(bare)


@every_method
def test_parameters_are_documented(name):
    text = inspect.getdoc(METHODS[name]) or ""
    assert "Source:" in text
    missing = [each.name for each in fields(METHODS[name]) if f"{each.name}:" not in text]
    assert not missing


def test_the_pass_leaves_no_hook_and_no_gradient(model, collected):
    collected()
    handles = [handle for point in model.hook_dict.values() for handle in point.fwd_hooks if not handle.is_permanent]
    assert not handles
    assert all(each.grad is None and not each.requires_grad for each in model.parameters())
    assert torch.is_grad_enabled()


def test_random_matches_counts_in_every_layer_and_avoids_own_units(run):
    like = METHOD["random"].like
    found, control = detect(run, like), detect(run, METHOD["random"])
    assert control.layer_counts().equals(found.layer_counts())
    assert control.counts().equals(found.counts())
    assert len(control & found) == 0
    assert detect(run, replace(METHOD["random"], seed=4)) != control


def test_names_and_parameters(run):
    assert get_method("lape", rate=0.02) == Lape(rate=0.02)
    assert get_method(Lap()) == Lap()
    with pytest.raises(KeyError, match=r"'lapse'.*lape.*random"):
        get_method("lapse")
    with pytest.raises(ValueError, match="rate"):
        get_method(Lape(), rate=0.02)
    assert detect(run, "lape", **SETTINGS["lape"]) == detect(run, METHOD["lape"])


def test_names_as_people_type_them(run):
    assert get_method("LAPE") == get_method(" Lape ") == Lape()
    assert get_method("Average Precision") == get_method("average-precision")
    assert named(["LAPE", Lap(rate=0.5)]) == {"lape": Lape(), "Lap(rate=0.5)": Lap(rate=0.5)}
    assert named("Lape", {"lape": {"rate": 0.5}}) == named({"lape": Lape(rate=0.5)})
    with pytest.raises(KeyError, match=r"'plmd' \(did you mean 'plnd'\?\); the methods are \['lape'"):
        detect(run, "plmd")


def test_parameters_that_a_method_lacks(run):
    with pytest.raises(ValueError, match=r"lape has no parameter 'top_k'; it has \['rate', 'filter_share'"):
        detect(run, "lape", top_k=100)
    with pytest.raises(ValueError, match=r"'filter_shares' \(did you mean 'filter_share'\?\)"):
        score(run, "LAPE", filter_shares=0.9)


def test_several_methods_are_for_compare(monkeypatch, run):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: types are not checked before
    with pytest.raises(ValueError, match=r"expected one method.*got \['lape'\]; for several use lsn\.compare"):
        detect(run, ["lape"])


@pytest.mark.parametrize("path", [None, Path("runs/mine")])
def test_what_a_run_lacks_can_be_collected(run, path):
    lape = {**run.settings, "statistics": ["mlp_pre.positive"]}
    bare = replace(run, settings=lape, path=path)
    with pytest.raises(KeyError, match=r"collect\(\.\.\., methods=\['plnd'\]\)") as caught:
        detect(bare, "PLND")
    assert ("out='runs/mine'" in str(caught.value)) == (path is not None)
    with pytest.raises(KeyError, match=r"methods=\[Plnd\(variant='paper', bases=\('mlp',\)"):
        detect(bare, "plnd", bases=("mlp",))


class Loudest:
    """A method as a reader might write one: no dataclass, nothing of the package but its types."""

    def statistics(self):
        return (Statistic("mlp_post", "sum"),)

    def score(self, statistics):
        return NeuronScores(statistics.languages, {"mlp": statistics.mean("mlp_post").abs()}, "loudest")

    def select(self, scores):
        values = scores.values["mlp"]
        return lsn.NeuronSet(scores.languages, {"mlp": values > values.quantile(0.9)}, scores.method)

    def __repr__(self):
        return "Loudest()"


def test_a_method_of_ones_own_goes_wherever_a_name_does(model):
    corpora = lsn.load_corpora({label: [item[i] for item in ITEMS] for i, label in enumerate(LANGUAGES)}, hold_out=0.0)
    run = lsn.collect(model, corpora, [Loudest(), "LAP"], progress=False)
    assert len(detect(run, Loudest())) and score(run, Loudest()).method == "loudest"
    assert set(lsn.compare(run, [Loudest(), "LAP"]).found) == {"Loudest()", "lap"}
    assert set(lsn.compare(run, {"mine": Loudest()}).found) == {"mine"}
    assert set(lsn.compare(run, Loudest()).found) == {"Loudest()"}


CHOSEN_BY_COUNT = [name for name in METHODS if name != "random"]  # a random draw has the layers of another method


@pytest.mark.parametrize("name", CHOSEN_BY_COUNT)
def test_the_first_units_of_a_ranking_are_those_that_the_method_chooses(name, run):
    scores = score(run, METHOD[name])
    found = METHOD[name].select(scores)
    masks = best_units(order_of(METHOD[name], scores), found.counts())
    assert {basis: mask.sum() for basis, mask in masks.items()} == {b: m.sum() for b, m in found.masks.items()}
    assert all(torch.equal(mask, found.masks[basis]) for basis, mask in masks.items())


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_average_precision_chooses_the_first_of_its_ranking_whatever_the_side(side, count, run):
    method = methods.AveragePrecision(side=side, count=count)
    scores = score(run, method)
    masks = best_units(method.order(scores), [count] * len(LANGUAGES))
    found = method.select(scores)
    assert all(torch.equal(mask, found.masks[basis]) for basis, mask in masks.items())
    assert set(found.counts()) == {count}


@every_method
def test_fewer_of_the_first_units_are_some_of_more(name, run):
    scores = score(run, METHOD[name])
    order = order_of(METHOD[name], scores)
    less = None
    for count in (1, 3, 10, 10**6):
        masks = best_units(order, [count] * len(LANGUAGES))
        assert less is None or all(not (less[basis] & ~mask).any() for basis, mask in masks.items())
        less = masks
    ranked = sum(values.isfinite().sum((1, 2)) for values in order.values())
    assert torch.equal(sum(mask.sum((1, 2)) for mask in less.values()), ranked)


@every_method
def test_a_ranking_follows_its_language(name, run):
    order = list(permutations(LANGUAGES))[5]
    index = [order.index(label) for label in LANGUAGES]
    here, there = (order_of(METHOD[name], score(each, METHOD[name])) for each in (run, reordered(run, order)))
    for basis, mask in best_units(here, [5] * len(LANGUAGES)).items():
        assert torch.equal(best_units(there, [5] * len(LANGUAGES))[basis][index], mask)


def test_equal_scores_are_ranked_by_layer_basis_and_unit():
    order = {"a": torch.zeros(1, 2, 2), "b": torch.zeros(1, 2, 1)}
    places = [(basis, layer, unit) for layer in range(2) for basis, unit in (("a", 0), ("a", 1), ("b", 0))]
    for count in range(7):
        masks = best_units(order, [count])
        assert [place for place in places if masks[place[0]][0, place[1], place[2]]] == places[:count]


HIGHEST = ("diffmean", "transfer", "language_dimensions", "average_precision")  # their best unit is a language's
BY_SHARE = [name for name, each in METHOD.items() if hasattr(each, "rate")] + ["language_dimensions"]


@pytest.mark.parametrize("name", BY_SHARE)
def test_a_share_that_rounds_to_no_unit_is_told_with_the_least_share(name, run):
    field = "count" if name == "language_dimensions" else "rate"
    few = replace(METHOD[name], **{field: 1e-6})
    with pytest.warns(UserWarning, match=r"the share 1e-06 of .* rounds to 0 units") as told:
        assert len(detect(run, few)) == 0
    (least,) = {float(re.search(r"above (\S+) gives one", str(each.message))[1]) for each in told}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = detect(run, replace(few, **{field: 1.01 * least}))
    assert max(again.counts()) <= getattr(few, "size", 1) and (len(again) or name not in HIGHEST)
