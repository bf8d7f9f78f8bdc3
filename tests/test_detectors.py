"""Scores of detectors whose answer is known beforehand, against scikit-learn, scipy and counting by hand."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SENTENCES
from scipy import stats
from sklearn.metrics import average_precision_score

import lsn_lens as lsn
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.planted.detectors import ORDINARY, _by_language, _precision_at, score_detectors
from lsn_lens.planted.planting import Planted
from lsn_lens.statistics.needs import Statistic

LANGUAGES = ("en", "de", "fr")
LAYERS, WIDTH = 2, 48
SHAPE = (len(LANGUAGES), LAYERS, WIDTH)
CORPORA = lsn.load_corpora({label: [text] * 6 for label, text in zip(LANGUAGES, SENTENCES, strict=False)})
UNITS = [  # role, whose; two truths and two decoys for each language, one for two of them, two of nobody
    *(("specific", (label,)) for label in LANGUAGES),
    *(("quiet", (label,)) for label in LANGUAGES),
    ("shared", ("en", "de")),
    *(("loud", (label,)) for label in LANGUAGES),
    *(("frequency", (label,)) for label in LANGUAGES),
    ("silent", LANGUAGES),
    ("silent", LANGUAGES),
]  # fmt: skip
TRUE = {"specific", "quiet", "shared"}


@dataclass(frozen=True, eq=False)
class Stub(Planted):
    """A table of units on a model in which nothing was planted."""

    model: Any = None

    def load(self, **options):
        return self.model


@dataclass(frozen=True)
class Known:
    """A method with scores and units made by hand, per basis `[language layer unit]`."""

    values: dict[str, torch.Tensor]
    chosen: dict[str, torch.Tensor] = field(default_factory=dict)

    def statistics(self):
        return (Statistic("mlp_post", "sum"),)

    def score(self, statistics):
        places = [LANGUAGES.index(label) for label in statistics.languages]
        return NeuronScores(statistics.languages, {name: each[places] for name, each in self.values.items()}, "known")

    def select(self, scores):
        places = [LANGUAGES.index(label) for label in scores.languages]
        masks = {name: each[places] for name, each in self.chosen.items()}
        masks = masks or {name: torch.zeros_like(each, dtype=torch.bool) for name, each in scores.values.items()}
        return NeuronSet(scores.languages, masks)


@pytest.fixture
def make(load, tmp_path):
    def stub(seed=0, units=UNITS, part="mlp"):
        places = np.random.default_rng(seed).choice(LAYERS * WIDTH, len(units), replace=False)
        rows = [
            {"layer": int(place) // WIDTH, "unit": int(place) % WIDTH, "role": role, "concept": "+".join(labels),
             "languages": labels, "script": None, "truth": role in TRUE, "sign": 1}
            for place, (role, labels) in zip(places, units, strict=True)
        ]  # fmt: skip
        nothing = pd.Series(dtype=float)
        return Stub(
            tmp_path, part, (LAYERS, WIDTH), LANGUAGES, pd.DataFrame(rows), pd.DataFrame(), nothing, load("llama_mha")
        )

    return stub


def truth_of(planted):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    for unit in planted.units.to_dict("records"):
        if unit["truth"]:
            mask[[LANGUAGES.index(label) for label in unit["languages"]], unit["layer"], unit["unit"]] = True
    return mask


def noise(seed):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def scored(plantings, methods, corpora=CORPORA):
    return score_detectors(plantings, corpora, methods, progress=False)


def row_of(scores, method):
    return scores.methods.set_index("method").loc[method]


def test_an_oracle_its_opposite_and_one_that_says_nothing(make):
    planted = make()
    truth = truth_of(planted)
    own = truth.float() + 0.1 * noise(0)  # 15 units, of them 3 true for en and de, 2 for fr
    found = scored(
        [planted],
        {"opposite": Known({"mlp": -own}, {"mlp": ~truth}), "constant": Known({"mlp": torch.zeros(SHAPE)}),
         "oracle": Known({"mlp": own}, {"mlp": truth})},
    )  # fmt: skip
    assert list(found.methods["method"]) == ["oracle", "constant", "opposite"]
    oracle, constant, opposite = (row_of(found, name) for name in ("oracle", "constant", "opposite"))
    assert [oracle[name] for name in ("average_precision", "precision_at_k", "precision", "recall")] == [1, 1, 1, 1]
    chance = (3 / 15 + 3 / 15 + 2 / 15) / 3
    for row in (oracle, constant, opposite):
        assert row["chance"] == pytest.approx(chance)
    assert constant["average_precision"] == pytest.approx(chance)
    assert constant["precision_at_k"] == pytest.approx(chance)
    assert (constant["recall"], constant["found"], constant["top_recall"]) == (0, 0, 0)
    assert np.isnan(constant["precision"])
    assert opposite["average_precision"] < chance
    assert (opposite["precision_at_k"], opposite["precision"], opposite["recall"]) == (0, 0, 0)
    assert oracle["found"] == 8 and opposite["found"] == 3 * 15 - 8


def test_random_scores_are_near_chance(make):
    many = {str(seed): Known({"mlp": noise(seed)}) for seed in range(100)}
    found = scored([make()], many).methods
    # of a random order of 15 units, from the mean of precision at the place of each true one
    harmonic = sum(1 / place for place in range(1, 16))
    expected = np.mean([(true - 1) / 14 + (15 - true) / (15 * 14) * harmonic for true in (3, 3, 2)])
    assert found["average_precision"].mean() == pytest.approx(expected, abs=0.04)
    assert found["precision_at_k"].mean() == pytest.approx(found["chance"][0], abs=0.04)


def test_measures_by_language_are_those_of_scikit_learn(make):
    planted = make(3)
    values = (noise(5) * 6).round()  # with ties
    chosen = noise(6) > 0.6
    found = scored([planted], {"some": Known({"mlp": values}, {"mlp": chosen})})
    truth, units = truth_of(planted), planted.units
    for place, label in enumerate(LANGUAGES):
        row = found.by_language.set_index("language").loc[label]
        index = (place, torch.tensor(units["layer"]), torch.tensor(units["unit"]))
        true, own, mask = (each[index].numpy() for each in (truth, values, chosen))
        assert row["average_precision"] == pytest.approx(average_precision_score(true, own))
        assert row["chance"] == pytest.approx(true.mean())
        assert row["precision"] == pytest.approx(true[mask].mean())
        assert row["recall"] == pytest.approx(mask[true].mean())
        assert (row["true"], row["planted"], row["chosen"]) == (true.sum(), 15, mask.sum())


def test_units_that_cannot_belong_rank_last(make):
    planted = make()
    truth = truth_of(planted)
    values = torch.where(truth, -torch.inf, noise(1))
    found = scored(
        [planted], {"never": Known({"mlp": values}), "only": Known({"mlp": torch.where(truth, 1, -torch.inf)})}
    )
    assert row_of(found, "only")["average_precision"] == 1
    assert row_of(found, "never")["precision_at_k"] == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([9, 8, 1, 0], 0.5),  # one of the two highest is true
        ([9, 8, 8, 0], 0.75),  # the true one is in; for the other place a true and a false one compete
        ([7, 8, 7, 7], 1 / 3),  # a false one is in; two true ones among three for the place that is left
        ([5, 5, 5, 5], 0.5),
        ([1, 0, 1, 0], 1.0),
        ([5, -np.inf, -np.inf, -np.inf], 0.5),  # a method that ranks one unit alone misses the other true one
    ],
)
def test_precision_at_k_shares_a_tie(values, expected):
    true = np.array([True, False, True, False])
    assert _precision_at(true, np.array(values, dtype=float), 2) == pytest.approx(expected)


def test_a_method_is_scored_by_its_own_ranking(make):
    """A method that marks a language's units by low scores, too, finds units with low scores."""
    planted = make()
    truth = truth_of(planted)
    high = truth & (noise(9) > 0.5)
    assert 0 < high.sum() < truth.sum()
    values = 0.5 + 0.1 * noise(1) + 2.0 * high - 2.0 * (truth & ~high)
    found = scored([planted], {"values": Known({"mlp": values}), "both": BothEnds({"mlp": values})})
    assert row_of(found, "both")["average_precision"] == row_of(found, "both")["precision_at_k"] == 1
    assert row_of(found, "values")["precision_at_k"] < 1


class BothEnds(Known):
    """The highest and the lowest scores first."""

    def order(self, scores):
        return {basis: (values - 0.5).abs() for basis, values in scores.values.items()}


def test_recall_at_the_top_counts_all_neurons(make):
    planted = make()
    truth = truth_of(planted)
    others = torch.ones(LAYERS, WIDTH, dtype=torch.bool)
    others[torch.tensor(planted.units["layer"]), torch.tensor(planted.units["unit"])] = False
    first = {label: truth[place].nonzero()[0] for place, label in enumerate(LANGUAGES)}
    values = 0.5 * noise(2)
    for place, label in enumerate(LANGUAGES):
        values[place, *first[label]] = 2.0  # the one unit of 96 that is in the highest hundredth
    above = values + 3 * others
    found = scored([planted], {"one": Known({"mlp": values}), "own": Known({"mlp": above})})
    assert row_of(found, "one")["top_recall"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert row_of(found, "own")["top_recall"] == 0
    assert row_of(found, "own")["average_precision"] == row_of(found, "one")["average_precision"]


def test_projections_are_taken_together(make):
    planted = make()
    truth = truth_of(planted)
    half = truth & (noise(9) > 0.5)
    assert 0 < half.sum() < truth.sum()
    values = {"mlp_pre": half + 0.3 * noise(1), "mlp_up": 1000 * ((truth & ~half) + 0.3 * noise(2))}
    # where neither finds a unit its rank is middling; where one does it is among the highest
    found = scored([planted], {
        "both": Known(values, {"mlp_pre": half, "mlp_up": truth & ~half}),
        "one": Known({"mlp_pre": values["mlp_pre"]}, {"mlp_pre": half}),
    })  # fmt: skip
    assert row_of(found, "both")["recall"] == 1 == row_of(found, "both")["precision"]
    assert row_of(found, "one")["recall"] < 1
    ranks = {name: torch.from_numpy(stats.rankdata(each.reshape(3, -1), axis=1)) for name, each in values.items()}
    best = torch.maximum(ranks["mlp_pre"], ranks["mlp_up"]).view(SHAPE)
    for place, label in enumerate(LANGUAGES):
        index = (place, torch.tensor(planted.units["layer"]), torch.tensor(planted.units["unit"]))
        rows = found.by_language.loc[found.by_language["language"].eq(label)].set_index("method")
        expected = average_precision_score(truth[index].numpy(), best[index].numpy())
        assert rows["average_precision"]["both"] == pytest.approx(expected)


def test_intervals_are_students(make):
    plantings = [make(seed) for seed in range(4)]
    found = scored(plantings, {"some": Known({"mlp": noise(3)}, {"mlp": noise(4) > 0.5})})
    row = row_of(found, "some")
    assert row["plantings"] == 4
    for name in ("average_precision", "precision_at_k", "recall", "precision"):
        means = found.by_language.groupby("planting")[name].mean()
        low, high = np.clip(stats.t.interval(0.95, 3, means.mean(), stats.sem(means)), 0, 1)  # all are shares
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((means.mean(), low, high))
    single = row_of(scored(plantings[:1], {"some": Known({"mlp": noise(3)})}), "some")
    assert np.isnan([single["recall_low"], single["average_precision_high"]]).all()


def test_some_of_the_languages(make):
    planted = make()
    truth = truth_of(planted)
    pair = {label: CORPORA[label] for label in ("fr", "en")}
    found = scored([planted], {"oracle": Known({"mlp": truth.float()}, {"mlp": truth})}, pair)
    assert sorted(found.by_language["language"]) == ["en", "fr"]
    assert row_of(found, "oracle")["average_precision"] == 1
    roles = found.roles.set_index("role")
    # of each language's one unit of a kind that of German is not asked for; the shared one is English too
    assert roles["units"].drop(ORDINARY).to_dict() == {"specific": 2, "shared": 1, "quiet": 2, "loud": 2,
                                                       "frequency": 2, "silent": 2}  # fmt: skip


def test_roles_say_who_was_chosen_for_whom(make):
    planted = make()
    units = planted.units
    chosen = torch.zeros(SHAPE, dtype=torch.bool)

    def pick(role, owner, language):
        unit = units.loc[units["role"].eq(role) & units["concept"].eq(owner)].iloc[0]
        chosen[LANGUAGES.index(language), unit["layer"], unit["unit"]] = True

    pick("specific", "en", "en")
    pick("specific", "de", "fr")
    pick("loud", "en", "en")
    pick("loud", "en", "de")
    pick("shared", "en+de", "fr")
    free = torch.ones(LAYERS, WIDTH, dtype=torch.bool)
    free[torch.tensor(units["layer"]), torch.tensor(units["unit"])] = False
    chosen[0, *free.nonzero()[:8].T] = True
    roles = scored([planted, planted], {"some": Known({"mlp": noise(0)}, {"mlp": chosen})}).roles.set_index("role")
    assert list(roles.index) == ["specific", "shared", "quiet", "loud", "frequency", "silent", ORDINARY]
    assert roles[["own", "other", "any"]].loc["specific"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert roles[["own", "other", "any"]].loc["loud"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert roles[["own", "other", "any"]].loc["shared"].tolist() == [0, 1, 1]
    assert roles["any"]["quiet"] == 0
    assert roles["any"][ORDINARY] == pytest.approx(8 / (LAYERS * WIDTH - 15))
    assert roles["units"].to_dict()["specific"] == 6
    assert roles["truth"].to_dict() == {**dict.fromkeys(roles.index, False), **dict.fromkeys(TRUE, True)}


def test_methods_that_score_other_units_are_skipped_and_said_to_be(make):
    residual = Known({"resid": torch.rand(3, LAYERS, 32)})
    found = scored([make()], {"residual": residual, "some": Known({"mlp": noise(0)})})
    assert dict(found.skipped) == {"residual (mlp)": "it scores resid"}
    assert list(found.methods["method"]) == ["some"]
    with pytest.raises(ValueError, match=r"no method scores the units that were planted: .*resid"):
        scored([make()], {"residual": residual})


def test_parts_are_scored_by_themselves(make):
    mlp, attention = make(), make(part="attention")
    truth = truth_of(attention)  # as many values as neurons: only their names tell them apart
    of_heads = {
        "v": truth.float() + 0.1 * noise(0),
        "z": torch.rand(3, LAYERS, 2 * WIDTH),  # of query heads that share values: not the same units
    }
    methods = {
        "neurons": Known({"mlp": truth_of(mlp).float()}),
        "both": Known({"mlp": -truth_of(mlp).float(), **of_heads}, {"v": truth}),
    }
    found = scored([mlp, attention], methods)
    assert list(found.methods[["part", "method"]].itertuples(index=False, name=None)) == [
        ("mlp", "neurons"), ("mlp", "both"), ("attention", "both"),
    ]  # fmt: skip
    assert dict(found.skipped) == {"neurons (attention)": "it scores mlp"}
    best = found.methods.set_index(["part", "method"])["average_precision"]
    assert best["attention", "both"] == best["mlp", "neurons"] == 1 > best["mlp", "both"]
    roles = found.roles.set_index(["part", "method", "role"])
    assert roles["own"]["attention", "both", "specific"] == 1
    assert roles["own"]["mlp", "both", "specific"] == 0


def test_real_methods_by_name(make):
    found = scored([make()], ("lape", "plnd"))
    assert sorted(found.methods["method"]) == ["lape", "plnd"]
    assert "lape" in repr(found) and "lape" in found._repr_html_()
    assert found.settings["text"]["languages"].keys() == set(LANGUAGES)


def test_what_cannot_be_scored(make):
    method = {"some": Known({"mlp": noise(0)})}
    with pytest.raises(ValueError, match="no plantings"):
        scored([], method)
    with pytest.raises(KeyError, match="nope"):
        scored([make()], ("nope",))
    strange = lsn.load_corpora({"en": [SENTENCES[0]] * 6, "xx": [SENTENCES[3]] * 6})
    with pytest.raises(KeyError, match=r"\['xx'\] were not planted"):
        scored([make()], method, strange)
    with pytest.raises(ValueError, match="no unit that a language needs"):
        scored([make(units=[("loud", ("en",)), ("silent", LANGUAGES)])], method)


def test_the_top_is_a_hundredth_and_no_more(make):
    planted = dataclasses.replace(make(units=UNITS[:3]), shape=(2, 50))
    units = planted.units
    values = torch.zeros(len(LANGUAGES), 2, 50)
    values[:, units["layer"][0], units["unit"][0]] = 1.0  # of English, below another one
    values[:, units["layer"][1], units["unit"][1]] = 2.0
    none = NeuronSet(LANGUAGES, {"mlp": torch.zeros_like(values, dtype=torch.bool)})
    found = _by_language(planted, LANGUAGES, {"mlp": values}, none)
    assert found["top_recall"].tolist() == [0.0, 1.0, 0.0]
