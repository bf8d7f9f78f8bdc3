"""What every method must keep, whatever it computes."""

from dataclasses import FrozenInstanceError, fields
from itertools import permutations

import pytest
import torch

from lsn_lens import detect, methods, score
from lsn_lens.methods import METHODS, Lap, Lape, Lave, Random, get_method
from lsn_lens.neurons import NeuronScores
from lsn_lens.run import Run
from lsn_lens.sites import SITES
from lsn_lens.statistics import REDUCTIONS, merge

LANGUAGES = ("en", "fr", "zh")
LAYERS, UNITS, TOKENS = 2, 60, 64
NEVER = (1, 7)  # layer and unit of a neuron that never fires

# settings under which every method finds something on little data
METHOD = {
    "lape": Lape(rate=0.3, filter_share=0.6, bar_share=0.5),
    "lap": Lap(rate=0.5),
    "lave": Lave(rate=0.3, filter_share=0.6, bar_share=0.5),
    "random": Random(like=Lape(rate=0.3, filter_share=0.6, bar_share=0.5), seed=3),
}
every_method = pytest.mark.parametrize("name", METHODS)
# the control draws from all units, for each language by its label: what it draws says nothing about them
every_method_but_random = pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])


@pytest.fixture(scope="module")
def acts():
    """For each language, activations `[token, layer, unit]`: multiples of 1/8, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for label in LANGUAGES:
        liking = torch.randn(LAYERS, UNITS, generator=generator)
        made[label] = ((torch.randn(TOKENS, LAYERS, UNITS, generator=generator) + liking) * 8).round() / 8
        made[label][:, *NEVER] = -1.0
    return made


def sums_of(acts, wanted):
    """What `collect` keeps of the activations; act is ReLU here, which keeps the sums exact."""
    sums = {"tokens": torch.full((LAYERS,), len(acts))}
    for each in wanted:
        values = acts.relu() if SITES[each.site].activated else acts
        reduction = REDUCTIONS[each.reduction]
        layers = [reduction.function(values[:, layer]).to(reduction.dtype) for layer in range(LAYERS)]
        sums[each.key] = torch.stack(layers)
    return sums


def run_of(acts, method, pieces=1):
    shards = {
        label: [sums_of(part, method.statistics()) for part in each.chunk(pieces)] for label, each in acts.items()
    }
    return Run(shards, settings={})


def same_scores(one, other):
    return one.values.keys() == other.values.keys() and all(
        torch.equal(value, other.values[basis]) for basis, value in one.values.items()
    )


def test_each_method_has_settings_here():
    assert set(METHOD) == set(METHODS)


@every_method
def test_finds_something_and_is_deterministic(name, acts):
    run = run_of(acts, METHOD[name])
    found = detect(run, METHOD[name])
    assert found.languages == LANGUAGES
    assert (found.counts() > 0).all()
    assert detect(run, METHOD[name]) == found
    assert same_scores(score(run, METHOD[name]), score(run, METHOD[name]))
    assert found.method == repr(METHOD[name])


@every_method
def test_the_order_of_languages_does_not_matter(name, acts):
    found = detect(run_of(acts, METHOD[name]), METHOD[name])
    for order in permutations(LANGUAGES):
        other = detect(run_of({label: acts[label] for label in order}, METHOD[name]), METHOD[name])
        assert other[LANGUAGES] == found


@every_method
@pytest.mark.parametrize("pieces", [2, 5, TOKENS])
def test_merged_shards_give_what_the_whole_gives(name, pieces, acts):
    whole, parts = run_of(acts, METHOD[name]), run_of(acts, METHOD[name], pieces)
    assert same_scores(score(whole, METHOD[name]), score(parts, METHOD[name]))
    assert detect(whole, METHOD[name]) == detect(parts, METHOD[name])
    merged = merge(parts.shards["fr"])
    assert all(torch.equal(merged[key], value) for key, value in whole.shards["fr"][0].items())


@every_method_but_random
def test_a_copied_language_gets_no_neuron_of_its_own(name, acts):
    found = detect(run_of({**acts, "copy": acts["fr"]}, METHOD[name]), METHOD[name])
    assert torch.equal(found["copy"].units("mlp"), found["fr"].units("mlp"))
    assert found["fr"].units("mlp").any()


@every_method_but_random
def test_a_neuron_that_never_fires_is_never_chosen(name, acts):
    generous = {"rate": 1.0} | {f.name: 0.01 for f in fields(METHODS[name]) if f.name in ("filter_share", "bar_share")}
    for method in (METHOD[name], METHODS[name](**generous)):
        units = detect(run_of(acts, method), method).units("mlp")
        assert units.any()
        assert not units[NEVER]


@every_method
def test_is_a_frozen_dataclass_rebuilt_from_its_repr(name):
    for method in (METHOD[name], METHODS[name]()):
        assert eval(repr(method), vars(methods)) == method
        with pytest.raises(FrozenInstanceError):
            setattr(method, fields(method)[0].name, 1)
        hash(method)


@every_method
def test_needs_known_sites_and_reductions(name):
    needs = METHOD[name].statistics()
    assert needs
    assert all(each.site in SITES and each.reduction in REDUCTIONS for each in needs)


@every_method
def test_one_language_cannot_be_compared(name, acts):
    with pytest.raises(ValueError, match=r"\['fr'\].*at least two"):
        detect(run_of({"fr": acts["fr"]}, METHOD[name]), METHOD[name])


@every_method
def test_scores_can_be_saved_and_selected_from_later(name, acts, tmp_path):
    scores = score(run_of(acts, METHOD[name]), METHOD[name])
    loaded = NeuronScores.load(scores.save(tmp_path / "scores"))
    assert METHOD[name].select(loaded) == METHOD[name].select(scores)


def test_random_matches_counts_in_every_layer_and_avoids_own_units(acts):
    like = METHOD["random"].like
    run = run_of(acts, like)
    found, control = detect(run, like), detect(run, METHOD["random"])
    assert control.layer_counts().equals(found.layer_counts())
    assert control.counts().equals(found.counts())
    assert len(control & found) == 0
    assert detect(run, Random(like=like, seed=4)) != control


def test_names_and_parameters(acts):
    assert get_method("lape", rate=0.02) == Lape(rate=0.02)
    assert get_method(Lap()) == Lap()
    with pytest.raises(KeyError, match=r"'lapse'.*lape.*random"):
        get_method("lapse")
    with pytest.raises(ValueError, match="rate"):
        get_method(Lape(), rate=0.02)
    run = run_of(acts, Lape())
    assert detect(run, "lape", rate=0.3, filter_share=0.6, bar_share=0.5) == detect(run, METHOD["lape"])
    with pytest.raises(KeyError, match=r"mlp_act\.sum.*mlp_pre\.positive"):
        detect(run, "lave")
