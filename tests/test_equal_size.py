"""Methods at equal size: areas by hand, who may be said to lead, and a planted world in which the truth must lead."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t

import lsn_lens as lsn
from lsn_lens.comparison.curves import COLUMNS, Curves, apart_of
from lsn_lens.comparison.equal_size import (
    ALONE,
    BEHIND,
    FIRST,
    LEADS,
    NO_POINTS,
    UNCLEAR,
    equal_size_table,
    weights_of,
)
from lsn_lens.comparison.figures import curve_charts, size_charts
from lsn_lens.comparison.ranked import check_sizes, first_units, numbers_of, rankings
from lsn_lens.controls.intervals import document_draws, excess_of_largest, spread, tail_of_all_pairs
from lsn_lens.evaluation.baseline import Measured
from lsn_lens.methods.average_precision import AveragePrecision
from lsn_lens.methods.lap import Lap
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic

LANGUAGES = ("aa", "bb", "cc", "dd")
SIZES = (5, 50)


def curves_of(rises, tokens, sizes=SIZES, had=None):
    """Curves from losses alone: `rises[method, language, units, evaluated]` has the rise of each document."""
    table = []
    named = {(f"{m}, {n}", off, on): each for (m, off, n, on), each in rises.items()}
    drawn = apart_of(Measured(pd.DataFrame(), named, tokens), draws := document_draws(tokens))
    cells = dict.fromkeys((m, off, n) for m, off, n, _ in rises)
    for method, language, units in cells:
        means = {on: rises[method, language, units, on].sum() / tokens[on].sum() for on in tokens}
        own, others = means[language], [each for on, each in means.items() if on != language]
        row = {"method": method, "bases": "mlp", "language": language, "units": units, "own_rise": own}
        table.append({**row, "difference": own - max(others), "random_mean": 0.0})
    methods = dict.fromkeys(method for method, _, _ in cells)
    return Curves(
        pd.DataFrame(table).reindex(columns=COLUMNS),
        *({(m, "mlp", label, n): drawn[f"{m}, {n}", label][part] for m, label, n in cells} for part in (0, 1)), draws,
        {(m, "mlp"): dict.fromkeys(tokens, 60) for m in methods} if had is None else had, {"mlp": list(sizes)},
    )  # fmt: skip


def random_rises(generator, methods, documents=8, own=(), noise=(), languages=LANGUAGES):
    """Rises of documents of 10 tokens: a method's own language by `own` nats per token, noise everywhere."""
    tokens = {label: np.full(documents, 10.0) for label in languages}
    effect, size = dict.fromkeys(methods, 0.0) | dict(own), dict.fromkeys(methods, 1.0) | dict(noise)
    rises = {
        (method, off, units, on): generator.normal(effect[method] * 10 * (on == off), size[method], documents)
        for method in methods for off in languages for units in SIZES for on in languages
    }  # fmt: skip
    return curves_of(rises, tokens)


# areas


def test_the_area_is_the_mean_over_the_logarithm_of_the_number_of_units():
    assert weights_of([("aa", 5), ("aa", 50)]) == {("aa", 5): 0.5, ("aa", 50): 0.5}
    three = weights_of(
        [("aa", 1), ("aa", 10), ("aa", 1000), ("bb", 7)]
    )  # steps of 1 and 2 decades, and one point alone
    assert three == pytest.approx({("aa", 1): 1 / 12, ("aa", 10): 3 / 12, ("aa", 1000): 2 / 12, ("bb", 7): 1 / 2})
    places, values = np.log([3, 17, 40, 300]), np.array([0.1, 0.5, 0.2, 0.9])
    weights = weights_of([("aa", n) for n in (3, 17, 40, 300)])
    by_hand = np.trapezoid(values, places) / (places[-1] - places[0])
    assert np.dot([*weights.values()], values) == pytest.approx(by_hand)


def test_a_table_of_two_sizes_by_hand():
    tokens = {"aa": np.full(6, 10.0), "bb": np.full(6, 20.0)}
    nats = {"one": ((0.2, 0.1), (0.6, 0.2), (0.4, 0.0), (0.8, 0.4))}
    nats["two"] = ((0.1, 0.0), (0.1, 0.0), (0.0, 0.2), (0.0, 0.2))
    rises = {}
    for method, values in nats.items():
        cells = [(language, units) for language in tokens for units in SIZES]
        for (language, units), (own, other) in zip(cells, values, strict=True):
            for on, each in tokens.items():
                rises[method, language, units, on] = each * (own if on == language else other)
    table = equal_size_table(curves_of(rises, tokens)).set_index("method")
    assert table.loc["one", "area"] == pytest.approx((0.1 + 0.4 + 0.4 + 0.4) / 4)
    assert table.loc["one", "own_area"] == pytest.approx((0.2 + 0.6 + 0.4 + 0.8) / 4)
    assert table.loc["two", "area"] == pytest.approx((0.1 + 0.1 - 0.2 - 0.2) / 4)
    assert table.loc["two", "minus_leader"] == pytest.approx(table.loc["two", "area"] - table.loc["one", "area"])
    assert list(table["units"]) == ["5, 50"] * 2 and list(table["place"]) == [LEADS, BEHIND]  # no document differs


# intervals


def test_the_spread_over_one_language_is_students():
    values = np.random.default_rng(0).normal(size=12)
    draws = document_draws({"aa": values})
    found = spread(draws["aa"] @ values / 12, draws)
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=0.05)
    assert found.freedom == pytest.approx(11)
    low, high = found.interval(0.0)
    assert high == -low == pytest.approx(found.error * t.isf(0.025, 11))


def test_the_spread_over_two_languages_is_welchs():
    generator = np.random.default_rng(1)
    texts = {"aa": generator.normal(0, 1, 10), "bb": generator.normal(0, 3, 5)}
    draws = document_draws(texts)
    found = spread(sum(draws[label] @ each / len(each) for label, each in texts.items()), draws)
    parts = [(each.var(ddof=1) / len(each), len(each) - 1) for each in texts.values()]
    total = sum(each for each, _ in parts)
    assert found.error == pytest.approx(math.sqrt(total), rel=0.1)
    assert found.freedom == pytest.approx(total**2 / sum(each**2 / n for each, n in parts), rel=0.15)


def test_too_few_documents_have_no_interval():
    for counts in ((3,), (1, 30)):
        texts = {str(place): np.arange(float(count)) for place, count in enumerate(counts)}
        draws = document_draws(texts)
        found = spread(sum(draws[label] @ each for label, each in texts.items()), draws)
        assert all(map(math.isnan, found.interval(1.0)))
    many = document_draws({str(place): np.zeros(3) for place in range(8)})
    some = np.random.default_rng(0).normal(size=(8, 3))
    assert spread(sum(each @ row for each, row in zip(many.values(), some, strict=True)), many).freedom > 4
    assert spread(np.full(1000, math.nan), many).interval(1.0)[0] != 0


def test_one_pair_has_the_plain_tail_and_many_a_smaller_one():
    values = np.random.default_rng(0).normal(size=(10, 1000))
    assert tail_of_all_pairs(values[:2]) == tail_of_all_pairs(values[:1]) == pytest.approx(0.025)
    assert 0.0003 < tail_of_all_pairs(values) < 0.002  # Tukey: q(0.05; 10) / sqrt(2) = 3.16, beyond which lie 0.0008
    assert tail_of_all_pairs(np.stack([values[0]] * 3)) == pytest.approx(0.025)


# who leads


@pytest.mark.parametrize(("methods", "documents"), [("ab", 8), ("ab", 3), ("abcde", 8)])
def test_random_rankings_are_told_apart_no_more_often_than_the_level(methods, documents):
    generator, runs = np.random.default_rng(3), 150
    apart = 0
    for _ in range(runs):
        table = equal_size_table(random_rises(generator, methods, documents))
        apart += table["place"].isin([LEADS, BEHIND]).any()
    assert apart <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


@pytest.mark.parametrize("documents", [3, 10])
def test_a_noisier_method_of_equal_effect_is_neither_behind_nor_without_its_true_area(documents):
    """The largest of seven noisy rises is too high on average, and the more so the noisier they are."""
    generator, runs, languages = np.random.default_rng(8), 100, tuple("abcdefgh")
    apart = covered = 0
    for _ in range(runs):
        curves = random_rises(generator, "ab", documents, {"a": 1.0, "b": 1.0}, {"a": 5.0, "b": 1.0}, languages)
        table = equal_size_table(curves).set_index("method")
        apart += table["place"].isin([LEADS, BEHIND]).any()
        covered += table["area_low"]["a"] <= 1 <= table["area_high"]["a"]
    assert apart <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert covered >= 0.95 * runs - 3 * math.sqrt(0.05 * 0.95 * runs)


def test_the_excess_of_the_largest_by_hand():
    """Of two independent normal values it is the standard error over the root of pi."""
    generator = np.random.default_rng(9)
    drawn = {"aa": generator.normal(5, 0.3, 100_000), "bb": generator.normal(2, 0.3, 100_000)}
    found = excess_of_largest(drawn, {"aa": 4, "bb": 4})
    assert found == pytest.approx(0.3 * math.sqrt(4 / 3) / math.sqrt(math.pi), rel=0.02)
    assert excess_of_largest({"aa": drawn["aa"]}, {"aa": 4}) == 0
    assert math.isnan(excess_of_largest(drawn, {"aa": 4, "bb": 1}))
    assert math.isnan(excess_of_largest({**drawn, "cc": drawn["aa"] * math.nan}, dict.fromkeys(("aa", "bb", "cc"), 4)))


def test_a_clear_effect_leads_and_an_equal_one_does_not():
    generator = np.random.default_rng(4)
    table = equal_size_table(random_rises(generator, "abc", own={"b": 1.0}))
    assert list(table["place"]) == [LEADS, BEHIND, BEHIND] and table["method"][0] == "b"
    assert table["area_low"][0] > 0.5 and table["own_area"][0] == pytest.approx(1, abs=0.2)
    both = equal_size_table(random_rises(generator, "abc", own={"b": 1.0, "c": 1.0}))
    assert both["place"][0] == f"{FIRST} {both['method'][1]}"
    assert list(both["place"][1:]) == [UNCLEAR, BEHIND]


def test_methods_are_compared_on_points_that_they_share():
    """A method without the larger size in one language costs all that point; one with few points costs none."""
    curves = random_rises(np.random.default_rng(5), "abcd", own={"a": 1.0, "b": 0.5, "c": 2.0})
    table = curves.table
    absent = table["method"].eq("b") & table["language"].eq("aa") & table["units"].eq(50)
    absent |= table["method"].eq("c") & ~(table["language"].eq("bb") & table["units"].eq(5)) | table["method"].eq("d")
    found = equal_size_table(replace(curves, table=table.loc[~absent])).set_index("method")
    assert found["points"].to_dict() == {"a": 8, "b": 7, "c": 1, "d": 0}
    assert found["points_compared"].to_dict() == {"a": 7, "b": 7, "c": 1, "d": 0}
    assert list(found.index) == ["a", "b", "c", "d"] and found["place"]["d"] == NO_POINTS
    rows = table.set_index(["method", "language", "units"])["difference"]
    others = sum(rows["a"][label].sum() / 8 for label in ("bb", "cc", "dd"))
    assert found["area"]["a"] == pytest.approx(rows["a"]["aa"][5] / 4 + others)
    assert math.isnan(found["area"]["c"])
    assert found["minus_leader"]["c"] == pytest.approx(rows["c"]["bb"][5] - rows["a"]["bb"][5])
    assert found["place"]["c"].endswith("at 1 of 8 points")
    alone = replace(curves, table=table.loc[table["method"].eq("a")])
    assert equal_size_table(alone)["place"].to_dict() == {0: ALONE, 1: NO_POINTS, 2: NO_POINTS, 3: NO_POINTS}


def test_a_loss_that_is_no_number_does_not_lead():
    curves = random_rises(np.random.default_rng(6), "ab", own={"a": 1.0, "b": 2.0})
    broken = curves.table["method"].eq("b") & curves.table["language"].eq("aa")
    drawn = {key: each * math.nan if key[0] == "b" else each for key, each in curves.drawn.items()}
    table = curves.table.assign(difference=curves.table["difference"].mask(broken))
    found = equal_size_table(replace(curves, table=table, drawn=drawn))
    assert list(found["method"]) == ["a", "b"] and found["place"][0] != LEADS


# rankings


def scores_of(values, languages=("en", "de")):
    return NeuronScores(languages, {basis: each.double() for basis, each in values.items()}, "made")


def test_sizes_are_shares_of_a_kind_or_numbers():
    ranking = scores_of({"q": torch.rand(2, 3, 100), "v": torch.rand(2, 3, 100)})
    assert numbers_of((0.01, 6, 0.0001, 40), ranking) == [1, 6, 40]
    assert check_sizes(None, 3) == check_sizes((), 0) == ()
    for wrong in ((0,), (0.0,), (1.5,), (-1,), (True,)):
        with pytest.raises(ValueError, match=r"sizes=\(.*expected numbers of units"):
            check_sizes(wrong, 3)
    with pytest.raises(ValueError, match="no fewer than 0 random sets"):
        check_sizes((5,), -1)


def test_kinds_of_unit_and_the_methods_that_share_them():
    mlp, q, resid = torch.rand(2, 2, 30), torch.rand(2, 2, 12), torch.rand(2, 2, 8)
    scores = {
        "a": scores_of({"mlp": mlp, "q": q}),
        "b": scores_of({"mlp": mlp.flip(2)}),
        "c": scores_of({"resid": resid}),
        "d": scores_of({"mlp_pre": mlp, "mlp_up": mlp.flip(2), "attn_out": resid}),
    }
    methods = {name: AveragePrecision() if name == "d" else Lap() for name in scores}
    ranked = rankings(methods, scores, {})
    assert list(ranked) == [("a", "mlp"), ("b", "mlp"), ("c", "resid"), ("d", "mlp")]  # "q" has no other method
    own = AveragePrecision().order(scores_of({"mlp_pre": mlp, "mlp_up": mlp.flip(2)}))
    assert torch.equal(ranked["d", "mlp"].values["mlp"], torch.maximum(own["mlp_pre"], own["mlp_up"]))
    del (
        methods["a"],
        methods["b"],
        scores["a"],
        scores["b"],
    )  # without neurons beside them, projections stay projections
    assert list(rankings(methods, scores, {})) == [("c", "resid"), ("d", "mlp_pre, mlp_up"), ("d", "attn_out")]


def test_a_given_set_limits_the_ranking_and_few_units_are_no_set():
    mask = torch.zeros(2, 1, 20, dtype=torch.bool)
    mask[0, 0, :7] = mask[1, 0, :2] = True
    scores = {"a": scores_of({"mlp": torch.arange(40.0).view(2, 1, 20)})}
    ranking = rankings({"a": Lap()}, scores, {"a": NeuronSet(("de", "en"), {"mlp": mask.flip(0)})})["a", "mlp"]
    first = first_units(ranking, 3)
    assert first.languages == ("en",) and first.masks["mlp"][0, 0].nonzero()[:, 0].tolist() == [4, 5, 6]
    assert first_units(ranking, 8) is None


# with a model


@dataclass(frozen=True)
class Made:
    """Scores made by hand."""

    name: str
    values: torch.Tensor

    def statistics(self):
        return (Statistic("mlp_pre", "positive"),)

    def score(self, statistics):
        return NeuronScores(statistics.languages, {"mlp": self.values}, self.name)

    def select(self, scores):
        return NeuronSet(scores.languages, {"mlp": scores.values["mlp"] > 1}, self.name)


@pytest.fixture(scope="module")
def compared(world, planted):
    """The units that languages need, a decoy that only looks like them, and a random order of all units."""
    model = planted.load()
    run = lsn.collect(model, world.corpora, ["lap"], layout=lsn.Layout(max_tokens=500), progress=False)

    def noise(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(planted.languages), *planted.shape, generator=generator).double()

    def marked(roles, seed):
        return noise(seed) + 2 * planted.truth(roles)[run.languages].masks["mlp"]

    methods = {
        "random": Made("random", noise(0)),
        "decoy": Made("decoy", marked(("loud",), 1)),
        "truth": Made("truth", marked(None, 2)),
    }
    return lsn.compare(
        run, methods, model=model, corpora=world.corpora, action="zero", seeds=2, more_seeds=0, control_tokens=256,
        sizes=(1, 2, 4), size_seeds=2, progress=False,
    )  # fmt: skip


def test_the_truth_leads_over_a_decoy_and_over_chance(compared):
    table = compared.equal_size
    assert table["method"][0] == "truth" and table["place"][0] == LEADS
    assert set(table["place"][1:]) == {BEHIND} and table["area_low"][0] > 0
    assert table["own_area"][0] > table["random_area"][0]
    assert compared.ranking["method"][0] == "truth" and list(compared.ranking["compared_on"]) == ["mlp"] * 3


def test_all_methods_have_as_many_units_and_the_numbers_are_those_of_a_plain_measurement(compared):
    curves = compared.curves
    assert list(curves) == COLUMNS
    groups = curves.groupby(["bases", "language", "units"])
    assert set(curves["units"]) == {1, 2, 4} and (groups["method"].nunique() == 3).all()
    scores = compared.scores["truth"].values["mlp"]
    row = curves.loc[curves["method"].eq("truth") & curves["units"].eq(4)].iloc[1]
    place = compared.run.languages.index(row["language"])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[place].view(-1)[scores[place].flatten().topk(4).indices] = True
    found = NeuronSet(compared.run.languages, {"mlp": mask}, "by hand")
    layout = lsn.Layout(max_tokens=256, length=64)
    table = lsn.perplexity_table(compared.model, compared.corpora, found, "zero", layout=layout, progress=False)
    mine = table.loc[table["intervened"].eq(row["language"])].set_index("evaluated")["nll_change"]
    assert row["own_rise"] == pytest.approx(mine[row["language"]], rel=1e-3, abs=1e-5)
    assert row["worst_other_rise"] == pytest.approx(mine.drop(row["language"]).max(), rel=1e-3, abs=1e-5)
    assert row["random_low"] <= row["random_mean"] <= row["random_high"]


def test_figures_and_report(compared, tmp_path):
    chart = size_charts(compared.curves, compared.equal_size)["equal-size-mlp"]
    assert [mark.label for mark in chart.marks] == list(compared.equal_size["method"])
    rows = compared.curves.loc[compared.curves["method"].eq("truth")]
    assert chart.marks[0].values[4] == pytest.approx(rows.loc[rows["units"].eq(4), "difference"].mean())
    axis, (axes,) = chart.plotly().layout.xaxis, chart.matplotlib().axes
    assert axis.type == "log" and list(axis.tickvals) == axes.lines[0].get_xdata().tolist() == [1, 2, 4]
    assert axes.get_xscale() == "log" and [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    mine = curve_charts(rows)["curve-truth-mlp"].marks
    assert mine[0].values[4] == pytest.approx(rows.loc[rows["units"].eq(4), "own_rise"].mean())
    assert (mine[3].band["low"] <= mine[3].values).all()
    page = (compared.report(tmp_path, png=True)).with_suffix(".md").read_text()
    assert "on MLP neurons truth leads: " in page and "1, 2, 4" in page  # the sizes are in the table
    assert (tmp_path / "figures" / "equal-size-mlp.png").exists() and (tmp_path / "tables" / "curves.csv").exists()


def test_no_sizes_no_curves(compared, monkeypatch):
    monkeypatch.setattr("lsn_lens.comparison.comparing.measure_curves", None)
    found = lsn.compare(compared.run, ["lap"], model=compared.model, corpora=compared.corpora, seeds=2, more_seeds=0,
                        control_tokens=64, sizes=None, progress=False)  # fmt: skip
    assert "curves" not in found and "not ranked, as no sizes were given" in repr(found)
    with pytest.raises(KeyError, match=r"sizes=\.\.\."):
        found["equal_size"]
