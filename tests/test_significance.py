"""Permutation p-values, corrections for many units, Jeffreys intervals: against simulations with a known answer."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from test_resampling import synthetic_run, values_run

import lsn_lens as lsn
from lsn_lens.evaluation.resampling import load_shards, permuted, seeds, shuffled_labels, subset
from lsn_lens.evaluation.significance import (
    benjamini_hochberg,
    max_t,
    null_counts,
    permutation_test,
)
from lsn_lens.evaluation.support import firing_interval, jeffreys, supported
from lsn_lens.methods import Lap, Lape
from lsn_lens.methods.diffmean import DiffMean
from lsn_lens.neurons import NeuronScores
from lsn_lens.run import Run


class Contrast:
    """A language's mean less the others' mean: continuous scores, so that no two are equal."""

    def statistics(self):
        return lsn.METHODS["language_dimensions"]().statistics()

    def score(self, statistics):
        means = statistics.mean("resid_post")
        others = (means.sum(0) - means) / (len(means) - 1)
        return NeuronScores(statistics.languages, {"resid": means - others}, "contrast")

    def select(self, scores):
        masks = {basis: each == each.amax((1, 2), keepdim=True) for basis, each in scores.values.items()}
        return lsn.NeuronSet(scores.languages, masks)


def normal_run(generator, means, shards=5, correlation=0.0):
    """Sums of one token a shard, normal around `means` [language, unit]; units of a shard may go together."""
    parts = {}
    for label, each in zip("abcd", means, strict=False):
        common = generator.normal(size=(shards, 1))
        values = (
            each
            + math.sqrt(correlation) * common
            + math.sqrt(1 - correlation) * generator.normal(size=(shards, len(each)))
        )
        parts[label] = [{"resid_post.sum": torch.from_numpy(row)[None], "tokens": torch.tensor([1])} for row in values]
    return Run(parts, {})


def test_p_values_are_uniform_where_labels_mean_nothing():
    p_values = []
    for seed in range(80):  # one unit of each: tests of one run hang together, runs do not
        run = normal_run(np.random.default_rng(seed), np.zeros((2, 1)))
        test = permutation_test(run, Contrast(), permutations=19, seed=1000 + seed, progress=False)
        p_values.append(test.p_values["resid"][0, 0, 0].item())
    assert set(np.round(np.array(p_values) * 20).astype(int)) <= set(range(1, 21))
    spread = np.array(p_values) - np.random.default_rng(0).uniform(size=80) / 20  # steps of 1/20 made continuous
    assert kstest(spread, "uniform").pvalue > 0.01
    assert kstest(spread**1.7, "uniform").pvalue < 0.01  # the test would notice


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_false_discovery_rate_and_the_family_wise_error_are_held(correlation):
    false_shares, any_false, power = [], [], []
    means = np.zeros((2, 60))
    means[0, :20] = 3.0
    for seed in range(20):
        run = normal_run(np.random.default_rng(seed), means, correlation=correlation)
        test = permutation_test(run, Contrast(), permutations=59, seed=1000 + seed, progress=False)
        found = benjamini_hochberg(test.p_values["resid"][0, 0], 0.1)
        false_shares.append(int(found[20:].sum()) / max(int(found.sum()), 1))
        power.append(float(found[:20].double().mean()))
        any_false.append(bool(test.beyond_null(0.1).masks["resid"][0, 0, 20:].any()))
    slack = 2 * np.std(false_shares) / math.sqrt(20)
    assert np.mean(false_shares) <= 0.1 + slack and np.mean(power) > 0.6
    assert np.mean(any_false) <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 20)


def test_benjamini_hochberg_is_the_step_up_rule():
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = generator.uniform(size=30) ** generator.uniform(1, 5)
        order = np.argsort(p)
        below = np.flatnonzero(p[order] <= 0.1 * np.arange(1, 31) / 30)
        expected = np.zeros(30, dtype=bool)
        expected[order[: below[-1] + 1 if len(below) else 0]] = True
        ours = benjamini_hochberg(torch.from_numpy(p).view(5, 6), 0.1)
        assert np.array_equal(ours.flatten().numpy(), expected)
    with pytest.raises(ValueError, match="q=2"):
        benjamini_hochberg(torch.ones(3), 2.0)


def test_p_values_count_the_permutations_one_by_one():
    run = normal_run(np.random.default_rng(0), np.zeros((2, 4)))
    test = permutation_test(run, Contrast(), permutations=30, seed=2, progress=False)
    nulls = torch.stack([lsn.score(permuted(run, each), Contrast()).values["resid"] for each in seeds(2, 30)])
    observed = lsn.score(run, Contrast()).values["resid"]
    assert torch.equal(test.p_values["resid"], (1 + (nulls >= observed).sum(0)) / torch.tensor(31.0).double())
    largest = nulls.flatten(1).amax(1)
    assert torch.equal(test.family_wise["resid"], max_t(observed, largest))
    expected = (1 + (largest[:, None] >= observed.flatten()).sum(0)) / torch.tensor(31.0).double()
    assert torch.equal(max_t(observed, largest).flatten(), expected)
    pooled = permutation_test(run, Contrast(), permutations=30, seed=2, pool=True, progress=False)
    at_least = (nulls[:, 0, 0, :, None] >= observed[0, 0]).sum((0, 1))
    torch.testing.assert_close(pooled.p_values["resid"][0, 0], (1 + at_least) / (1 + 30 * 4.0), check_dtype=False)
    assert pooled.pooled and not test.pooled
    assert test.counts.shape == (30, 2) and (test.counts == 1).all()


def test_the_permutation_p_value_is_near_that_of_all_permutations():
    run = synthetic_run(np.random.default_rng(3), np.array([[[0.35]], [[0.25]]]), shards=5)
    counts = [int(each["mlp_pre.positive"]) for label in "ab" for each in run.shards[label]]
    observed = sum(counts[:5])
    sums = [sum(counts[i] for i in each) for each in combinations(range(10), 5)]
    exact = np.mean([each >= observed for each in sums])
    test = permutation_test(run, Lap(rate=1.0), permutations=499, progress=False)
    assert 0.003 < exact < 0.5 and abs(test.p_values["mlp"][0, 0, 0].item() - exact) < 0.04


def test_permuting_the_languages_permutes_the_p_values():
    generator = np.random.default_rng(0)
    run = synthetic_run(generator, generator.uniform(0.1, 0.6, size=(3, 2, 20)), shards=5)
    one, two = (permutation_test(x, Lape(rate=0.2), permutations=20, progress=False) for x in (run, subset(run, "cab")))
    order = [two.scores.languages.index(label) for label in one.scores.languages]
    assert torch.equal(one.p_values["mlp"], two.p_values["mlp"][order])


def test_a_score_of_minus_infinity_has_a_p_value_of_one():
    generator = np.random.default_rng(0)
    run = synthetic_run(generator, generator.uniform(0.1, 0.6, size=(3, 2, 20)), shards=5)
    test = permutation_test(run, Lape(rate=0.2), permutations=5, progress=False)
    outside = ~test.scores.values["mlp"].isfinite()
    assert (
        outside.any() and (test.p_values["mlp"][outside] == 1).all() and (test.family_wise["mlp"][outside] == 1).all()
    )
    assert set(test.to_frame().columns) == {"language", "basis", "layer", "unit", "score", "p_value", "family_wise"}


def test_null_counts_match_the_true_count_where_labels_are_shuffled_and_not_elsewhere():
    generator = np.random.default_rng(0)
    probabilities = np.full((3, 1, 80), 0.2)
    for language in range(3):
        probabilities[language, 0, 8 * language : 8 * language + 8] = 0.6
    run = synthetic_run(generator, probabilities, shards=8)
    free = lsn.METHODS["transfer"](largest_entropy=math.log(3) - 0.05, filter_bar=0.0, bar=0.25)
    true = null_counts(run, [free], permutations=20, progress=False).set_index("language")
    shuffled = null_counts(permuted(run, 77), [free], permutations=20, progress=False).set_index("language")
    assert true.loc["all", "units"] == 24 > true.loc["all", "null_high"]
    assert shuffled.loc["all", "null_low"] <= shuffled.loc["all", "units"] <= shuffled.loc["all", "null_high"]
    assert true.loc["all", "beyond_null"] == 24 and shuffled.loc["all", "beyond_null"] <= 1
    assert not true["fixed"].any()
    rule = null_counts(run, [Lape(rate=0.1), "lap"], permutations=20, progress=False).set_index(["method", "language"])
    assert rule.loc[(str(Lape(rate=0.1)), "all"), "fixed"] and rule.loc[("lap", "a"), "fixed"]
    assert rule.loc[("lap", "a"), "needed"] == math.ceil(240 / 21 / 0.05)


def test_parallel_text_is_permuted_within_its_places():
    run = values_run(np.random.default_rng(0), 0.5)
    test = permutation_test(run, Contrast(), permutations=10, seed=1, paired=True, progress=False)
    nulls = torch.stack(
        [lsn.score(permuted(run, each, paired=True), Contrast()).values["resid"] for each in seeds(1, 10)]
    )
    observed = lsn.score(run, Contrast()).values["resid"]
    assert torch.equal(test.p_values["resid"], (1 + (nulls >= observed).sum(0)).double() / 11)


def test_jeffreys_has_the_values_and_edges_of_the_literature():
    low, high = jeffreys(torch.tensor([0, 10, 3, 0]), torch.tensor([10, 10, 10, 0]))
    assert low[0] == 0 and high[1] == 1 and (low[3], high[3]) == (0, 1)
    assert high[0] == pytest.approx(beta.ppf(0.975, 0.5, 10.5)) and high[0] == pytest.approx(0.2172, abs=1e-4)
    assert low[1].item() == pytest.approx(1 - high[0].item())
    assert (low[2].item(), high[2].item()) == pytest.approx((0.0927, 0.6058), abs=1e-4)
    for k, n in ((11, 10), (-1, 10)):
        with pytest.raises(ValueError, match="0 <= successes <= trials"):
            jeffreys(torch.tensor([k]), torch.tensor([n]))
    with pytest.raises(ValueError, match="level=1"):
        jeffreys(torch.tensor([1]), torch.tensor([2]), 1.0)


def coverage(run, true, by):
    low, high = firing_interval(run, by=by)
    return ((low <= true) & (true <= high)).double().mean().item()


def test_intervals_of_probabilities_cover_by_tokens_only_where_tokens_are_independent():
    generator, values = np.random.default_rng(0), np.full((2, 1, 2000), 0.2)
    alone = synthetic_run(generator, values, shards=16, spread=None)
    together = synthetic_run(generator, values, shards=16, spread=50.0)
    assert 0.93 <= coverage(alone, 0.2, "tokens") <= 0.97
    assert coverage(together, 0.2, "tokens") < 0.75
    assert 0.93 <= coverage(together, 0.2, "shards") <= 0.97


@pytest.mark.parametrize("by", ["tokens", "shards"])
def test_supported_units_are_those_whose_intervals_are_apart(by):
    probabilities = np.full((3, 2, 40), 0.2)
    probabilities[1, 0, :10] = 0.6
    probabilities[:2, 1, :10] = 0.6  # two languages share these: no single one is above the rest
    run = synthetic_run(np.random.default_rng(0), probabilities, spread=None)
    found = supported(run, by=by)
    assert found.masks["mlp"][1, 0, :10].all() and not found.masks["mlp"][:, 1, :10].any()
    assert found.masks["mlp"].sum() <= 12 and found.counts()["b"] >= 10
    low, high = firing_interval(run, by=by)
    for place in range(3):
        rest = [i for i in range(3) if i != place]
        assert torch.equal(found.masks["mlp"][place], (low[place] > high[rest]).all(0))


def test_bad_input_says_what_to_do():
    run = synthetic_run(np.random.default_rng(0), np.full((2, 1, 3), 0.5), shards=4)
    with pytest.raises(ValueError, match=r"too few shards.*Layout\(shards=16\)"):
        permutation_test(run, progress=False)
    with pytest.raises(ValueError, match="too few shards"):
        supported(run)
    with pytest.raises(ValueError, match="permutations=0"):
        permutation_test(run, permutations=0)
    with pytest.raises(ValueError, match="no methods"):
        null_counts(run, [])
    with pytest.raises(KeyError, match="unknown site"):
        supported(run, "mlp")


def test_collecting_on_shuffled_labels_leaves_no_language(load):
    words = {"en": "the rain closed the bridge", "fr": "la pluie ferme le pont"}
    texts = {label: [f"{each} {i}" for i in range(60)] for label, each in words.items()}
    corpora = lsn.load_corpora(texts, hold_out=0.0)
    layout, model = lsn.Layout(kind="documents", shards=10), load("llama")
    runs = [lsn.collect(model, x, ["lape"], layout=layout, progress=False) for x in (corpora, shuffled_labels(corpora))]
    apart = [
        (each.statistics.probability("mlp_pre")[0] - each.statistics.probability("mlp_pre")[1]).abs() for each in runs
    ]
    assert apart[1].mean() < 0.3 * apart[0].mean()
    true, shuffled = (len(supported(load_shards(each, [Lape()]))) for each in runs)
    assert true > 30 and shuffled < 0.2 * true


def test_scores_of_directions_are_permuted_too():
    run = values_run(np.random.default_rng(0), 0.0)
    for parts in run.shards.values():
        for part in parts:
            part["resid_post.squares"] = 3 + part["resid_post.sum"].square()
    assert permutation_test(run, DiffMean(), permutations=5, progress=False).totals.shape == (5,)
