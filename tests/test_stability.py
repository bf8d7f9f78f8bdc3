"""Bootstrap, leave one out, chance correction and intervals, against simulations with a known answer."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKENDS
from made_runs import synthetic_run, values_run
from oracles import loss_of, read_ids

import lsn_lens as lsn
from lsn_lens.controls.resampling import resampled, seeds, subset
from lsn_lens.controls.stability import (
    across,
    bootstrap,
    expected_jaccard,
    leave_one_out,
    percentile_interval,
    stability_table,
    stable_set,
)
from lsn_lens.evaluation.by_document import document_losses, rise_intervals
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape
from lsn_lens.neurons.sets import NeuronSet


@pytest.fixture(scope="module")
def run():
    """Three languages; units 0 to 4 are one's own each and strong, the others fire alike."""
    generator = np.random.default_rng(0)
    probabilities = np.full((3, 2, 60), 0.2)
    for language in range(3):
        probabilities[language, 0, 5 * language : 5 * language + 5] = 0.7
    return synthetic_run(generator, probabilities, shards=10)


class Everything:
    """A method whose set is every unit, so that intervals are those of units named beforehand."""

    def __init__(self, method):
        self.method = method
        self.statistics, self.score = method.statistics, method.score

    def select(self, scores):
        masks = {basis: torch.ones(each.shape, dtype=torch.bool) for basis, each in scores.values.items()}
        return NeuronSet(scores.languages, masks)


def test_frequencies_and_scores_are_those_of_single_draws(run):
    method = Lape(rate=0.2)
    result = bootstrap(run, method, replicates=12, seed=4, progress=False)
    drawn = [resampled(run, seed) for seed in seeds(4, 12)]
    sets = [lsn.detect(each, method) for each in drawn]
    share = torch.stack([each.masks["mlp"] for each in sets]).double().mean(0)
    assert torch.equal(result.frequency["mlp"], share) and result.found == lsn.detect(run, method)
    scores = torch.stack([lsn.score(each, method).values["mlp"] for each in drawn])
    chosen = scores[:, result.found.masks["mlp"]].numpy()
    assert np.array_equal(result.intervals["low"], percentile_interval(chosen, 10)[0])
    jaccard = [
        (a["b"].masks["mlp"] & result.found["b"].masks["mlp"]).sum()
        / (a["b"].masks["mlp"] | result.found["b"].masks["mlp"]).sum()
        for a in sets
    ]
    rows = result.overlaps.loc[result.overlaps["language"].eq("b")]
    np.testing.assert_allclose(rows["jaccard"], jaccard, rtol=1e-6)
    assert rows["units"].to_list() == [int(each.counts()["b"]) for each in sets]


def test_strong_units_are_stable_and_those_alike_are_not(run):
    result = bootstrap(run, Lape(rate=0.3, filter_share=0.5, bar_share=0.5), replicates=100, progress=False)
    strong = torch.stack([torch.arange(120) // 5 == language for language in range(3)]).view(3, 2, 60)
    assert (result.frequency["mlp"][strong] == 1).all()
    assert stable_set(result).masks["mlp"][strong].all()
    others = result.intervals.loc[(result.intervals["layer"] == 1) | (result.intervals["unit"] >= 15)]
    assert 0.2 < others["frequency"].mean() < 0.9
    table = stability_table(result).set_index("language")
    assert (table["stable_units"] >= 5).all() and (table["stable_units"] < table["units"]).all()
    assert (table["units_low"] <= table["units"]).all() and (table["units"] <= table["units_high"]).all()
    assert table["corrected_jaccard"].between(0.2, 0.95).all()


def test_the_interval_of_the_number_of_units_is_rounded_outwards(run, monkeypatch):
    result = bootstrap(run, Lape(rate=0.3, filter_share=0.5, bar_share=0.5), replicates=20, progress=False)
    monkeypatch.setattr("lsn_lens.controls.stability.percentile_interval", lambda *_: (6.7, 9.2))
    table = stability_table(result)
    assert (table["units_low"] == 6).all() and (table["units_high"] == 10).all()


@pytest.mark.parametrize("method", [Lape(rate=0.2), Lap(rate=0.2)])
def test_permuting_the_languages_permutes_the_result(run, method):
    one, two = (bootstrap(each, method, replicates=20, progress=False) for each in (run, subset(run, ["c", "a", "b"])))
    order = [two.found.languages.index(label) for label in one.found.languages]
    assert torch.equal(one.frequency["mlp"], two.frequency["mlp"][order])
    keys = ["language", "layer", "unit"]
    frames = [each.intervals.sort_values(keys, ignore_index=True) for each in (one, two)]
    pd.testing.assert_frame_equal(*frames)


def truth(method, probabilities):
    if isinstance(method, Lap):
        return dict(zip("abc", probabilities, strict=True))
    share = np.array(probabilities) / sum(probabilities)
    return dict.fromkeys("abc", math.log(3) + float((share * np.log(share)).sum()))


@pytest.mark.parametrize(
    ("shards", "method"),
    [(16, Lap()), (16, Lape(filter_share=1e-9, bar_share=1e-9)), (32, Lape(filter_share=1e-9, bar_share=1e-9))],
)
def test_intervals_hold_the_true_score_in_93_to_97_percent(shards, method):
    kinds = ((0.6, 0.1, 0.1), (0.3, 0.2, 0.2))
    values = np.repeat(np.array(kinds).T[:, None], 400, axis=2)  # 400 units of each kind, each a trial of its own
    run = synthetic_run(np.random.default_rng(1), values, shards=shards)
    intervals = bootstrap(run, Everything(method), replicates=400, progress=False).intervals
    for kind, probabilities in enumerate(kinds):
        rows = intervals.loc[intervals["unit"] // 400 == kind]
        true = rows["language"].map(truth(method, probabilities))
        assert 0.93 <= ((rows["low"] <= true) & (true <= rows["high"])).mean() <= 0.97


def test_plain_percentiles_of_few_shards_would_be_too_narrow():
    run = synthetic_run(np.random.default_rng(1), np.full((2, 1, 1000), 0.3), shards=8)
    counts = torch.stack([torch.stack([each["mlp_pre.positive"][0] for each in run.shards[x]]) for x in "ab"]).double()
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=1000)
    means = torch.einsum("rs,lsu->rlu", torch.from_numpy(weights).double(), counts).numpy() / 1600
    plain = np.quantile(means, [0.025, 0.975], axis=0)
    wide = percentile_interval(means, 8)
    covered = [((low <= 0.3) & (high >= 0.3)).mean() for low, high in (plain, wide)]
    assert covered[0] < 0.9 < 0.92 < covered[1] < 0.97


def test_the_percentiles_are_those_of_the_t_interval_for_a_normal_distribution():
    values = np.sort(np.random.default_rng(0).normal(size=200_001))
    low, high = percentile_interval(values, 16)
    expected = 2.1314495 * math.sqrt(16 / 15)  # Student's t, 15 degrees of freedom, 97.5 %
    assert abs(high - expected) < 0.03 and abs(low + expected) < 0.03
    assert low in values and percentile_interval(np.array([-np.inf] * 5 + [1.0] * 5), 16)[0] == -np.inf


def test_the_expected_jaccard_is_the_mean_over_all_pairs_of_sets():
    first = [set(each) for each in combinations(range(5), 2)]
    pairs = [
        (a | {9 + c}, b | {9 + d})
        for a in first
        for b in combinations_as_sets(5, 3)
        for c in range(3)
        for d in range(3)
    ]
    mean = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    ours = expected_jaccard(torch.tensor([2, 1]), torch.tensor([3, 1]), torch.tensor([5, 3]))
    assert abs(ours - mean) < 1e-12
    assert math.isnan(expected_jaccard(torch.tensor([0]), torch.tensor([0]), torch.tensor([5])))
    assert expected_jaccard(torch.tensor([2]), torch.tensor([0]), torch.tensor([5])) == 0


def combinations_as_sets(count, size):
    return [set(each) for each in combinations(range(count), size)]


def test_across_is_one_for_equal_sets_and_about_zero_for_random_ones():
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand((2, 4, 400), generator=generator) < 0.25 for _ in range(20)]
    sets = {str(i): NeuronSet(("en", "fr"), {"mlp": each}) for i, each in enumerate(masks)}
    table = across({**sets, "again": sets["0"]})
    assert abs(table.loc[table["other"] != "again", "corrected_jaccard"].mean()) < 0.005
    same = table.loc[(table["set"] == "0") & (table["other"] == "again")]
    assert same["corrected_jaccard"].to_list() == [1.0, 1.0]
    swapped = across({"x": sets["0"], "y": sets["1"][["fr", "en"]]}).drop(columns=["set", "other"])
    plain = across({"x": sets["0"], "y": sets["1"]}).drop(columns=["set", "other"])
    pd.testing.assert_frame_equal(swapped, plain)
    empty = NeuronSet(("en",), {"mlp": torch.zeros(1, 4, 400, dtype=torch.bool)})
    assert math.isnan(across({"x": empty, "y": empty})["corrected_jaccard"].item())
    with pytest.raises(ValueError, match="at least two"):
        across({"x": empty})
    with pytest.raises(ValueError, match="cannot be compared"):
        across({"x": empty, "y": NeuronSet(("en",), {"mlp": torch.zeros(1, 4, 9, dtype=torch.bool)})})


def test_leave_one_out_is_detection_on_the_rest(run):
    method = Lape(rate=0.2, filter_share=0.5, bar_share=0.5)
    table = leave_one_out(run, method, progress=False)
    assert len(table) == 6
    whole, rest = lsn.detect(run, method), lsn.detect(subset(run, ["a", "c"]), method)
    row = table.loc[table["left_out"].eq("b") & table["language"].eq("c")].iloc[0]
    new = rest["c"].masks["mlp"][0] & ~whole["c"].masks["mlp"][0]
    assert row["gained"] == int(new.sum()) and row["units"] == int(rest.counts()["c"])
    assert row["gained_from_left_out"] == int((new & whole["b"].masks["mlp"][0]).sum())
    assert row["units"] - row["gained"] + row["lost"] == row["other_units"]
    with pytest.raises(ValueError, match="three languages"):
        leave_one_out(subset(run, ["a", "b"]), method)


def test_methods_that_read_single_documents_are_drawn_too():
    run = values_run(np.random.default_rng(0), 3.0, shards=6)
    method = lsn.METHODS["average_precision"](bases=("mlp_pre",), side="top", rate=0.3)
    result = bootstrap(run, method, replicates=10, progress=False)
    again = lsn.detect(resampled(run, seeds(0, 10)[7]), method)
    assert result.overlaps.query("replicate == 7")["units"].to_list() == again.counts().to_list()


def test_bad_input_says_what_to_do(run):
    few = synthetic_run(np.random.default_rng(0), np.full((2, 1, 3), 0.5), shards=3)
    with pytest.raises(ValueError, match=r"too few shards.*Layout\(shards=16\)"):
        bootstrap(few, progress=False)
    with pytest.raises(ValueError, match="replicates=1"):
        bootstrap(run, replicates=1)
    with pytest.raises(ValueError, match="level=95"):
        bootstrap(run, level=95.0)
    with pytest.raises(KeyError, match="did not collect"):
        bootstrap(run, "lave", replicates=2, progress=False)


TEXTS = {"en": ["the rain is high", "closed bridge", "a river", "the", "after rain", "it is", "high river and rain"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_documents_are_those_of_the_model_on_each_alone(load, backend):
    model = load("llama", backend)
    corpora = {"en": lsn.load_corpora({"en": ["x", *TEXTS["en"]]}, hold_out=0.9)["en"]}
    ids = read_ids(list(corpora["en"].hold_out)[-1], model)
    found = NeuronSet(("en",), {"mlp": torch.ones(1, 2, 48, dtype=torch.bool)})
    clean = document_losses(model, corpora, progress=False)
    with lsn.intervene(model, found, lsn.zero):
        changed = document_losses(model, corpora, progress=False)
        single = loss_of(model, [ids])
    tokens = ids.shape[1] - 1
    np.testing.assert_allclose(clean["loss"].iloc[-1], loss_of(model, [ids]) * tokens, rtol=1e-4)
    np.testing.assert_allclose(changed["loss"].iloc[-1], single * tokens, rtol=1e-4)
    table = rise_intervals(clean, changed, replicates=200)
    rise = (changed["loss"].sum() - clean["loss"].sum()) / clean["tokens"].sum()
    assert table["rise"].item() == pytest.approx(rise) and table["low"].item() < rise < table["high"].item()
    with pytest.raises(ValueError, match="not of the same documents"):
        rise_intervals(clean, changed.iloc[1:])
    with pytest.raises(ValueError, match="too few documents"):
        rise_intervals(clean.iloc[:4], changed.iloc[:4])


def test_intervals_on_a_rise_hold_the_true_one():
    generator, covered = np.random.default_rng(0), []
    for seed in range(200):
        tokens = generator.integers(5, 40, size=30)
        own = generator.normal(0.5, 0.4, size=30)  # nats a token; documents differ in how much they are hurt
        frame = pd.DataFrame({"language": "en", "document": range(30), "loss": 3.0 * tokens, "tokens": tokens})
        changed = frame.assign(loss=frame["loss"] + own * tokens)
        row = rise_intervals(frame, changed, replicates=300, seed=seed).iloc[0]
        covered.append(row["low"] <= 0.5 <= row["high"])
    alike = rise_intervals(frame, frame.assign(loss=3.5 * frame["tokens"]), replicates=50).iloc[0]
    assert alike["low"] == pytest.approx(0.5) and alike["high"] == pytest.approx(0.5)  # loss and tokens go together
    assert 0.91 <= np.mean(covered) <= 0.99  # 200 trials: 95 % within two and a half standard errors
