"""Permutation p-values, corrections for many units, Jeffreys intervals: against simulations with a known answer."""

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from conftest import experiment
from made_runs import synthetic_run, values_run
from scipy.stats import beta, kstest

import lsn_lens as lsn
from lsn_lens.controls.contrasts import contrast_of
from lsn_lens.controls.permutations import Permutations, max_t
from lsn_lens.controls.resampling import load_shards, permuted, seeds, shuffled_labels, subset
from lsn_lens.controls.significance import benjamini_hochberg, contrast_test, null_counts, permutation_test
from lsn_lens.controls.support import firing_interval, jeffreys, supported
from lsn_lens.methods.diffmean import DiffMean
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.runs.run import Run

nulls = experiment("null_simulation")
QUICK = Permutations(999, 0, False, False)


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
    one, two = (
        permutation_test(x, Lape(rate=0.2), permutations=20, progress=False) for x in (run, subset(run, list("cab")))
    )
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
    never = ~outside.logical_not().any(0)
    assert never.any() and (test.unit_p_values["mlp"][never] == 1).all()
    columns = {"language", "basis", "layer", "unit", "score", "p_value", "family_wise"}
    assert set(test.to_frame().columns) == columns | {"unit_p_value", "unit_family_wise"}


def test_null_counts_match_the_true_count_where_labels_are_shuffled_and_not_elsewhere():
    generator = np.random.default_rng(0)
    probabilities = np.full((3, 1, 80), 0.2)
    for language in range(3):
        probabilities[language, 0, 8 * language : 8 * language + 8] = 0.6
    run = synthetic_run(generator, probabilities, shards=8)
    free = lsn.METHODS["frozen_lape"](largest_entropy=math.log(3) - 0.05, filter_bar=0.0, bar=0.25)
    true = null_counts(run, [free], permutations=20, progress=False).set_index("language")
    shuffled = null_counts(permuted(run, 77), [free], permutations=20, progress=False).set_index("language")
    assert true.loc["all", "units"] == 24 > true.loc["all", "null_high"]
    assert shuffled.loc["all", "null_low"] <= shuffled.loc["all", "units"] <= shuffled.loc["all", "null_high"]
    assert true.loc["all", "beyond_null"] == 24 and shuffled.loc["all", "beyond_null"] <= 1
    assert not true["fixed"].any()
    rule = null_counts(run, [Lape(rate=0.1), "lap"], permutations=20, progress=False).set_index(["method", "language"])
    assert rule.loc[(str(Lape(rate=0.1)), "all"), "fixed"] and rule.loc[("lap", "a"), "fixed"]
    assert rule.loc[("lap", "a"), "needed"] == math.ceil(240 / 21 / 0.05)


def test_scores_of_a_method_that_says_nothing_else_are_permuted_between_two_languages_at_a_time():
    run, draws = values_run(np.random.default_rng(0), 0.5), seeds(1, 10)
    test = permutation_test(run, Contrast(), permutations=10, seed=1, paired=True, progress=False)
    observed = lsn.score(run, Contrast()).values["resid"]
    expected = torch.zeros_like(observed)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        among = [run.languages[i], run.languages[j]]
        nulls = torch.stack(
            [lsn.score(permuted(run, each, paired=True, among=among), Contrast()).values["resid"] for each in draws]
        )
        p = (1 + (nulls >= observed).sum(0)).double() / 11
        expected[[i, j]] = torch.maximum(expected[[i, j]], p[[i, j]])
    assert torch.equal(test.p_values["resid"], expected)
    everyone = torch.stack([lsn.score(permuted(run, each, paired=True), Contrast()).rank("resid") for each in draws])
    at_least = (everyone >= observed.amax(0)).sum(0)
    assert torch.equal(test.unit_p_values["resid"], (1 + at_least).double() / 11)


def counted_p_values(values, languages, paired):
    """p of "the first language is above the second", over all permutations of the labels of these two."""
    one, other = (values[label] for label in languages)
    n, both = len(one), np.concatenate([one, other])
    if paired:
        flips = np.array(list(product([1, -1], repeat=n)))
        return ((flips @ (one - other)) >= (one - other).sum(0) - 1e-9).mean(0)
    sums = np.stack([both[list(each)].sum(0) for each in combinations(range(2 * n), n)])
    return (sums >= one.sum(0) - 1e-9).mean(0)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("alike", [0, 1])
def test_a_languages_p_value_is_the_largest_of_its_contrasts_over_all_permutations(alike, paired):
    run = synthetic_run(np.random.default_rng(1), np.full((3, 1, 12), [[[0.34]], [[0.32]], [[0.3]]]), shards=5)
    values = {label: np.stack([each["mlp_pre.positive"][0] for each in run.shards[label]]) for label in "abc"}
    tests = contrast_test(run, Lap(), lsn.score(run, Lap()), Permutations(3999, 0, paired, False), alike)
    for place, label in enumerate("abc"):
        others = [counted_p_values(values, (label, other), paired) for other in "abc" if other != label]
        exact = np.max(others, axis=0) if alike == 0 else np.minimum(1, 2 * np.min(others, axis=0))
        assert np.abs(tests.p_values["mlp"][place, 0].numpy() - exact).max() < 0.04
        assert exact.min() < 0.9


def one_language_high(generator, high=0.8):
    """Only "a" differs, in 40 of 400 units, where the others often pass the bar."""
    rates = np.full((4, 1, 400), 0.15)
    rates[:, 0, :40], rates[0, 0, :40] = 0.22, high
    return synthetic_run(generator, rates, shards=16)


@pytest.mark.parametrize(
    "method",
    [Lape(), Lape(bar_share=0.5), lsn.METHODS["frozen_lape"](), lsn.METHODS["entropy_lambda"](bar_share=0.5)],
    ids=lambda each: type(each).__name__,
)
def test_a_unit_where_one_language_differs_is_significant_for_no_other(method):
    shares, any_false, eligible = [], [], 0
    for seed in range(3):
        run = one_language_high(np.random.default_rng(seed))
        scores = lsn.score(run, method)
        tests = contrast_test(run, method, scores, Permutations(999, seed, False, False))
        eligible += int(scores.values["mlp"][1:, 0, :40].isfinite().sum())
        found, beyond = benjamini_hochberg(tests.p_values["mlp"])[:, 0], tests.family_wise["mlp"][:, 0] <= 0.05
        assert found[0, :40].all() and beyond[0, :40].all()
        shares.append((found.sum() - 40).item() / found.sum().item())
        any_false.append(bool(beyond.sum() > 40))
        units = tests.unit_family_wise["mlp"][0] <= 0.05
        assert units[:40].all() and units[40:].sum() <= 1
    assert eligible > 50 and np.mean(shares) < 0.05 and sum(any_false) <= 1


def test_the_sets_are_those_of_the_p_values_of_languages_and_of_units():
    run = one_language_high(np.random.default_rng(0))
    test = permutation_test(run, Lape(bar_share=0.5), permutations=19, progress=False)
    assert test.beyond_null().masks["mlp"][0, 0, :40].all() and test.beyond_null().masks["mlp"].sum() <= 41
    assert torch.equal(test.beyond_null(0.2).masks["mlp"], test.family_wise["mlp"] <= 0.2)
    assert torch.equal(test.units_beyond_null()["mlp"], test.unit_family_wise["mlp"] <= 0.05)
    assert torch.equal(test.significant(0.5).masks["mlp"], benjamini_hochberg(test.p_values["mlp"], 0.5))
    assert torch.equal(test.significant_units(0.5)["mlp"], benjamini_hochberg(test.unit_p_values["mlp"], 0.5))
    frame = test.to_frame()
    several = frame.groupby(["layer", "unit"]).filter(lambda rows: len(rows) > 1).groupby(["layer", "unit"])
    assert len(several) and (several["unit_p_value"].nunique() == 1).all()
    assert (several["score"].nunique() == 1).all() and (several["family_wise"].nunique() > 1).any()


@pytest.mark.parametrize("shift", ["one high", "one low", "two high", "ladder"])
def test_errors_are_at_the_level_where_only_some_languages_differ(shift):
    names = ["lape", "dln", "plnd", "average_precision, bottom"]
    rows = [row for seed in range(5) for row in nulls.simulate(seed, shift, names, units=60, draws=QUICK)]
    table = nulls.summary(rows)
    slack = 2 * math.sqrt(0.05 * 0.95 / (5 * len(names)))
    assert (table.groupby("test")[["false discovery", "family-wise"]].mean() <= 0.05 + slack).all(axis=None)
    languages = table.loc["languages"]["found"].unstack()[shift]
    expected = {"one high": ["lape", "dln"], "one low": ["dln", "average_precision, bottom"], "two high": [],
                "ladder": ["average_precision, bottom"]}[shift]  # fmt: skip
    assert (languages[expected] > 0.25).all()
    assert (table.loc["units"]["found"].unstack().loc["dln"] > 0.5).all()


def test_the_simulation_notices_p_values_of_units_given_to_languages(monkeypatch):
    def repeated(*args):
        tests = contrast_test(*args)
        each = {basis: p.expand_as(tests.p_values[basis]) for basis, p in tests.unit_p_values.items()}
        adjusted = {basis: p.expand_as(tests.p_values[basis]) for basis, p in tests.unit_family_wise.items()}
        return replace(tests, p_values=each, family_wise=adjusted)

    monkeypatch.setattr(nulls, "contrast_test", repeated)
    rows = [row for seed in range(3) for row in nulls.simulate(seed, "one high", ["lap"], units=60, draws=QUICK)]
    table = nulls.summary(rows).loc["languages"]
    assert (table["false discovery"] > 0.5).all() and (table["family-wise"] == 1).all()


@pytest.mark.parametrize("shift", ["none", "two high", "ladder"])
def test_transfer_neurons_are_simulated_too(shift):
    """Where languages differ some units are found; a language that is alike another one never, at the level."""
    rows = [row for seed in range(5) for row in nulls.simulate(seed, shift, ["transfer"], units=60, draws=QUICK)]
    table = nulls.summary(rows)
    assert (table[["false discovery", "family-wise"]] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 5)).all(axis=None)
    found = table.loc["units"]["found, family-wise"].iloc[0]
    assert math.isnan(found) if shift == "none" else found > 0.01


@pytest.mark.parametrize("pool", [False, True])
def test_units_alike_everywhere_are_not_significant_where_others_move_a_pooled_threshold(pool):
    """The bar of LAPE is an order statistic over all units, and another one where labels are permuted."""
    false, method = [], Lape(filter_share=0.7, bar_share=0.7)
    for seed in range(6):
        generator = np.random.default_rng(seed)
        rates = np.full((4, 1, 200), 0.3)
        rates[:, 0, :100] = 0.05
        rates[0, 0, :100] = 0.6
        run = synthetic_run(generator, rates, shards=8)
        tests = contrast_test(run, method, lsn.score(run, method), Permutations(59, seed, False, pool))
        false.append((tests.unit_p_values["mlp"][0, 100:] <= 0.05).double().mean().item())
    assert np.mean(false) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


def test_what_all_languages_but_one_share_is_found_with_alike():
    rates = np.full((4, 1, 60), 0.2)
    rates[:2, 0, :20] = 0.6
    run = synthetic_run(np.random.default_rng(0), rates, shards=16)
    alone, shared = (permutation_test(run, Lap(), permutations=299, alike=each, progress=False) for each in (0, 1))
    assert not alone.beyond_null().masks["mlp"].any()
    assert shared.beyond_null().masks["mlp"][:2, 0, :20].all() and not shared.beyond_null().masks["mlp"][2:].any()
    with pytest.raises(ValueError, match=r"alike=3: expected 0 or more, and fewer than the 3 others"):
        permutation_test(run, Lap(), alike=3)


@pytest.mark.parametrize(("side", "sign"), [("top", 1), ("bottom", -1), ("both", -1)])
def test_average_precision_is_tested_on_the_side_it_chooses(side, sign):
    generator = np.random.default_rng(0)
    shifts = np.zeros((4, 60))
    shifts[0, :20] = 1.5 * sign
    method = lsn.METHODS["average_precision"](side, count=10, bases=("mlp_pre",))
    test = permutation_test(nulls.made_run(generator, shifts), method, permutations=39, progress=False)
    assert test.beyond_null().masks["mlp_pre"][0, 0, :20].all() and test.set_p_value() == 2 / 40
    assert not test.beyond_null().masks["mlp_pre"][1:].any()
    members = test.to_frame().query("language == 'a' and unit < 20")
    assert len(members) >= 5 and (members["family_wise"] == 1 / 40).all()
    other = {"top": "bottom", "bottom": "top", "both": "top"}[side]
    wrong = permutation_test(
        nulls.made_run(np.random.default_rng(0), shifts), lsn.METHODS["average_precision"](other, bases=("mlp_pre",)),
        permutations=39, progress=False,
    )  # fmt: skip
    assert not wrong.beyond_null().masks["mlp_pre"][0, 0, :20].any()


def test_the_set_of_one_side_is_compared_on_it():
    run = nulls.made_run(np.random.default_rng(3), np.zeros((4, 60)))
    method = lsn.METHODS["average_precision"]("bottom", count=10, bases=("mlp_pre",))
    test = permutation_test(run, method, permutations=39, progress=False)
    assert test.set_p_value() > 0.05
    test = replace(test, totals=torch.full((39,), 99))
    lowest = replace(test, means=torch.full((39,), test.mean_score() + 0.01).double())
    assert lowest.set_p_value() == 2 / 40
    assert replace(test, means=lowest.means - 0.02).set_p_value() == 1


@pytest.mark.parametrize("name", [name for name in lsn.METHODS if name != "random"])
def test_every_method_says_what_it_compares(name):
    declared = contrast_of(lsn.METHODS[name]())
    assert declared is not None and declared[0].side(declared[1]) in ("high", "low", "both")
    assert contrast_of(lsn.METHODS["random"](like=lsn.METHODS[name]())) == declared


def test_with_two_languages_a_unit_differs_where_either_stands_out():
    run = values_run(np.random.default_rng(0), 0.6)
    for parts in run.shards.values():
        for part in parts:
            part["resid_post.squares"] = 3 + part["resid_post.sum"].square()
    test = permutation_test(subset(run, ["a", "b"]), DiffMean(), permutations=999, progress=False)
    assert (test.unit_p_values["resid"] - test.p_values["resid"].amin(0)).abs().max() < 0.06


def test_a_unit_with_the_same_value_everywhere_is_never_significant():
    run = synthetic_run(np.random.default_rng(0), np.full((3, 1, 4), 0.3), shards=5)
    for shards in run.shards.values():
        for shard in shards:
            shard["mlp_pre.positive"][:, 0] = 37
    for pool in (False, True):
        test = permutation_test(run, Lap(), permutations=19, pool=pool, progress=False)
        assert (test.p_values["mlp"][:, 0, 0] > (0.3 if pool else 0.999)).all()  # half of what is pooled is below 0
        assert test.unit_p_values["mlp"][0, 0] == 1 and (test.family_wise["mlp"][:, 0, 0] == 1).all()


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
