"""LAPE, LAVE and LAP against independent implementations in NumPy, written from the formulas."""

import math

import numpy as np
import pytest
import torch

import lsn_lens as lsn
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape, Lave
from lsn_lens.methods.selection import best_first, order_statistic
from lsn_lens.statistics.sums import Statistics


def kth_smallest(values, share):
    flat = values.ravel()
    place = min(max(round(share * flat.size), 1), flat.size)
    return np.partition(flat, place - 1)[place - 1]


def entropy_of(values):
    shares = values / values.sum()
    return round(-math.fsum(share * math.log(share) for share in shares if share > 0), 12)


def survivors(values, filter_share):
    """(entropy, layer, unit) of the units above the filter in some language, best first."""
    tau = kth_smallest(values, filter_share)
    passing = np.argwhere((values > tau).any(0)).tolist()
    return sorted((entropy_of(values[:, layer, unit]), layer, unit) for layer, unit in passing)


def owners(values, chosen, bar_share):
    """For each language, the chosen units above the bar."""
    bar = kth_smallest(values, bar_share)
    return [{(layer, unit) for _, layer, unit in chosen if each[layer, unit] > bar} for each in values]


def reference(values, rate=0.01, filter_share=0.95, bar_share=0.95):
    """Which (layer, unit) belong to each language, from values `[language, layer, unit]`."""
    chosen = survivors(values, filter_share)[: round(rate * values[0].size)]
    return owners(values, chosen, bar_share)


def statistics_of(counts, tokens):
    """Labelled statistics from NumPy counts `[language, layer, unit]` and tokens `[language]`."""
    tokens = torch.tensor(tokens).long()[:, None].expand(len(counts), counts.shape[1])
    sums = {"mlp_pre.positive": torch.from_numpy(np.asarray(counts, dtype=np.int64))}
    return Statistics(tuple("abcdefgh"[: len(counts)]), sums, tokens)


def probabilities(counts, tokens):
    return np.asarray(counts) / np.asarray(tokens)[:, None, None]


def find(method, statistics):
    return method.select(method.score(statistics))


def as_sets(found):
    return [{tuple(place) for place in mask.nonzero().tolist()} for mask in found.masks["mlp"]]


def random_counts(seed):
    """Counts of some shape and kind, and tokens that differ between languages."""
    draw = np.random.default_rng(seed)
    shape = (int(draw.integers(2, 9)), int(draw.integers(1, 6)), int(draw.integers(5, 200)))
    tokens = draw.integers(50, 5000, shape[0])
    kind = seed % 4
    if kind == 0:
        shares = draw.random(shape)
    elif kind == 1:  # most neurons seldom fire
        shares = draw.beta(0.2, 2.0, shape)
    elif kind == 2:  # languages share most of their neurons
        shares = np.clip(draw.random(shape[1:]) + draw.normal(0, 0.05, shape), 0, 1)
    else:  # many ties: a few values, the same tokens everywhere
        tokens[:] = 12
        shares = draw.integers(0, 4, shape) / 12
    counts = np.round(shares * tokens[:, None, None]).astype(np.int64)
    counts[:, :, draw.random(shape[2]) < 0.1] = 0  # dead neurons
    return counts, tokens


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_formula_on_random_counts(seed):
    counts, tokens = random_counts(seed)
    statistics, values = statistics_of(counts, tokens), probabilities(counts, tokens)
    for rate in (0.01, 0.1, 0.5):
        for filter_share, bar_share in ((0.95, 0.95), (0.8, 0.6), (0.5, 0.9), (0.2, 0.2)):
            found = find(Lape(rate, filter_share, bar_share), statistics)
            assert as_sets(found) == reference(values, rate, filter_share, bar_share)


@pytest.fixture(scope="module")
def real_run(demo):
    layout = lsn.Layout(max_tokens=512, length=64)
    return lsn.collect(demo, lsn.load_corpora("demo"), ["lape", "lave"], layout=layout, progress=False)


def test_equals_the_formula_on_real_counts(real_run):
    statistics = real_run.statistics
    counts = statistics.sums["mlp_pre.positive"].numpy()
    values = probabilities(counts, statistics.tokens[:, 0].numpy())
    found = lsn.detect(real_run, "lape")
    assert as_sets(found) == reference(values)
    assert len(found) == round(0.01 * values[0].size) > 0
    for settings in ({"rate": 0.05}, {"rate": 0.3, "filter_share": 0.6, "bar_share": 0.4}, {"rate": 1.0}):
        assert as_sets(lsn.detect(real_run, "lape", **settings)) == reference(values, **settings)


def test_lave_equals_the_formula_on_real_sums(real_run):
    statistics = real_run.statistics
    means = statistics.sums["mlp_act.sum"].numpy() / statistics.tokens[:, 0].numpy()[:, None, None]
    assert (means < 0).any()
    for settings in ({}, {"rate": 0.2, "filter_share": 0.5, "bar_share": 0.7}):
        assert as_sets(lsn.detect(real_run, "lave", **settings)) == reference(means.clip(min=0), **settings)


def test_equal_entropies_go_to_the_lower_layer_then_the_lower_unit():
    counts = np.full((2, 3, 10), 3)
    private = [(2, 0), (0, 7), (1, 9), (1, 2), (0, 4)]
    for place, (layer, unit) in enumerate(private):  # entropy 0 each, whatever the count and the language
        counts[place % 2, layer, unit], counts[1 - place % 2, layer, unit] = 10 + place, 0
    for wanted in range(1, 6):
        found = find(Lape(rate=wanted / 30, filter_share=0.8, bar_share=0.8), statistics_of(counts, [20, 20]))
        assert set.union(*as_sets(found)) == set(sorted(private)[:wanted])


def test_proportional_probabilities_are_ties_whatever_the_totals():
    tokens = np.array([9, 17, 23, 31, 41]) * 1000
    counts = np.zeros((5, 1, 100), dtype=np.int64)
    for unit in range(100):  # the same shares of five languages, at different heights and in all orders
        counts[:, 0, unit] = np.roll([1, 2, 3, 5, 7], unit) * (1 + 37 * unit % 100) * tokens // 1000
    statistics = statistics_of(counts, tokens)
    method = Lape(rate=0.25, filter_share=0.001, bar_share=0.001)
    assert len(method.score(statistics).rank("mlp").unique()) == 1
    assert find(method, statistics).units("mlp")[0].nonzero()[:, 0].tolist() == list(range(25))


def test_dead_and_nearly_dead_neurons_are_never_chosen():
    draw = np.random.default_rng(0)
    counts = draw.integers(100, 900, (4, 2, 100))
    counts[:, 0, :30] = 0  # dead: entropy 0, the best there is
    counts[:, 1, :30] = 0
    counts[2, 1, :30] = 1  # fires once in one language: entropy 0 as well
    found = find(Lape(rate=1.0), statistics_of(counts, [1000] * 4))
    assert len(found) > 0
    assert not found.units("mlp")[:, :30].any()


def test_a_language_without_neurons_keeps_its_place():
    draw = np.random.default_rng(1)
    counts = draw.integers(0, 1000, (4, 2, 200))
    counts[[1, 3]] //= 100  # fires rarely: never above the bar
    found = find(Lape(rate=0.05), statistics_of(counts, [1000] * 4))
    assert found.languages == ("a", "b", "c", "d")
    assert (found.counts() > 0).tolist() == [True, False, True, False]
    assert as_sets(found) == reference(probabilities(counts, [1000] * 4), 0.05)


def test_fewer_survivors_than_asked_for():
    counts = np.full((2, 1, 1000), 5)
    counts[0, 0, [3, 40, 500]] = 900
    method = Lape(rate=0.01)
    scores = method.score(statistics_of(counts, [1000, 1000]))
    found = method.select(scores)
    assert as_sets(found) == [{(0, 3), (0, 40), (0, 500)}, set()]
    assert (found.notes["asked"], found.notes["chosen"]) == (10, 3)
    assert scores.values["mlp"].isfinite()[found.masks["mlp"]].all()


@pytest.mark.parametrize("languages", [2, 3, 7, 8])
def test_firing_alike_in_m_languages_has_entropy_ln_m(languages):
    tokens = np.arange(1, languages + 1) * 1000
    counts = np.zeros((languages, 1, languages), dtype=np.int64)
    for unit in range(languages):
        counts[: unit + 1, 0, unit] = tokens[: unit + 1] // 4
    scores = Lape(filter_share=0.001, bar_share=0.001).score(statistics_of(counts, tokens))
    expected = [math.log(languages) - math.log(m) for m in range(1, languages + 1)]
    assert scores.rank("mlp")[0].tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("seed", range(10))
def test_the_union_has_the_size_asked_for_and_every_neuron_an_owner(seed):
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 1000, (5, 4, 150))
    statistics = statistics_of(counts, [1000] * 5)
    for rate, bar_share in ((0.01, 0.95), (0.0333, 0.7), (0.1, 0.4)):
        found = find(Lape(rate=rate, bar_share=bar_share), statistics)
        assert len(found) == found.notes["chosen"] == round(rate * 600)


def test_a_bar_above_the_filter_can_leave_chosen_neurons_without_owner():
    counts = np.random.default_rng(0).integers(0, 1000, (3, 2, 100))
    found = find(Lape(rate=0.2, filter_share=0.5, bar_share=0.99), statistics_of(counts, [1000] * 3))
    assert len(found) < found.notes["chosen"] == 40
    assert as_sets(found) == reference(probabilities(counts, [1000] * 3), 0.2, 0.5, 0.99)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 999])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.55, 0.95, 1.0])
def test_the_order_statistic_is_an_element_not_an_interpolation(n, share):
    values = torch.from_numpy(np.random.default_rng(n).random(n))
    place = min(max(round(share * n), 1), n)
    assert order_statistic(values, share) == values.sort().values[place - 1]


def test_the_filter_is_strict():
    counts = np.arange(1, 41).reshape(2, 1, 20)  # distinct values: 38 is the 38th smallest of 40
    found = find(Lape(rate=1.0), statistics_of(counts, [100, 100]))
    assert as_sets(found) == [set(), {(0, 18), (0, 19)}]  # 39 and 40


@pytest.mark.parametrize("seed", range(12))
def test_at_least_takes_the_fewest_neurons_that_give_each_language_enough(seed):
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 1000, (4, 2, 100))
    values = probabilities(counts, [1000] * 4)
    ordered = survivors(values, 0.8)
    for wanted in (1, 3, 6):
        sizes = (
            size
            for size in range(2, len(ordered) + 1)  # never fewer than the rate's 2
            if min(map(len, owners(values, ordered[:size], 0.8))) >= wanted
        )
        smallest = next(sizes)
        found = find(Lape(0.01, 0.8, 0.8, at_least=wanted), statistics_of(counts, [1000] * 4))
        assert found.notes["chosen"] == smallest
        assert as_sets(found) == owners(values, ordered[:smallest], 0.8)


def test_at_least_never_lowers_the_rate():
    counts = np.random.default_rng(0).integers(0, 1000, (3, 2, 100))
    statistics = statistics_of(counts, [1000] * 3)
    assert find(Lape(rate=0.2, filter_share=0.5, at_least=1), statistics).notes["chosen"] == 40


def test_at_least_says_when_it_cannot_be_had():
    counts = np.full((2, 1, 100), 5)
    counts[0, 0, :4] = 900
    with pytest.raises(ValueError, match=r"at_least=2 .*\{'a': 4, 'b': 0\}"):
        find(Lape(at_least=2), statistics_of(counts, [1000, 1000]))
    with pytest.raises(ValueError, match=r"\{'a': 0, 'b': 0\}"):  # nothing passes the filter
        find(Lape(at_least=1), statistics_of(np.full((2, 1, 100), 5), [1000, 1000]))


@pytest.mark.parametrize("method", [Lape, Lave])
@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", 0.0), ("rate", 1.5), ("rate", math.nan), ("filter_share", -0.1), ("bar_share", 2.0), ("at_least", -1)],
)
def test_settings_out_of_range_are_refused(method, name, value):
    with pytest.raises(ValueError, match=name):
        method(**{name: value})


@pytest.mark.parametrize("seed", range(15))
def test_lave_takes_negative_means_as_zero(seed):
    draw = np.random.default_rng(seed)
    shape, tokens = (int(draw.integers(2, 7)), 3, 80), 64
    sums = np.round(draw.normal(0, 20, shape))
    statistics = Statistics(
        tuple("abcdefg"[: shape[0]]),
        {"mlp_act.sum": torch.from_numpy(sums)},
        torch.full(shape[:2], tokens),
    )
    for settings in ({}, {"rate": 0.1}, {"rate": 0.3, "filter_share": 0.4, "bar_share": 0.6}):
        assert as_sets(find(Lave(**settings), statistics)) == reference((sums / tokens).clip(min=0), **settings)


@pytest.mark.parametrize("seed", range(15))
def test_lap_takes_each_languages_most_active(seed):
    counts, tokens = random_counts(seed)
    for rate in (0.01, 0.2, 1.0):
        number = round(rate * counts[0].size / len(counts))
        expected = []
        for each in probabilities(counts, tokens):
            firing = [(-each[layer, unit], layer, unit) for layer, unit in np.argwhere(each > 0).tolist()]
            expected.append({(layer, unit) for _, layer, unit in sorted(firing)[:number]})
        assert as_sets(find(Lap(rate), statistics_of(counts, tokens))) == expected


def test_lap_gives_a_language_that_seldom_fires_fewer():
    counts = np.zeros((2, 1, 20), dtype=np.int64)
    counts[0], counts[1, 0, [2, 11]] = 7, 1
    assert find(Lap(rate=1.0), statistics_of(counts, [10, 10])).counts().to_dict() == {"a": 10, "b": 2}


def test_best_first_keeps_the_order_of_ties_and_drops_what_is_not_finite():
    ranking = torch.tensor([[1.0, -math.inf, 2.0], [2.0, math.nan, 1.0]])
    assert best_first(ranking).tolist() == [2, 3, 0, 5]
