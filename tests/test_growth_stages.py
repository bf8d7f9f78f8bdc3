"""Stages on made curves and on noise; the corpus plan on the paper's corpus; dependence by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from lsn_lens.applications.growth_dependence import solved_dependence
from lsn_lens.applications.growth_plan import (
    LossCurve,
    calibration,
    corpus_plan,
    own_share,
    share_of_tokens,
    tokens_of_share,
)
from lsn_lens.applications.growth_stages import StageRule, false_stages, find_stages

UP, DOWN, LOW = np.linspace(0, 1, 6), np.linspace(0.9, 0.5, 5), np.full(6, 0.5)
THREE = ("translation", "transition", "stabilisation")
CURVES = {
    "three": (np.concatenate([UP, DOWN, LOW]), THREE),
    "rise and decline": (np.concatenate([UP, np.linspace(0.9, 0.2, 8)]), THREE[:2]),
    "rise and flat end": (np.concatenate([UP, np.ones(8)]), ("translation", "stabilisation")),
    "rise": (np.linspace(0, 1, 16), ("translation",)),
    "decline": (np.linspace(1, 0, 16), ("transition",)),
    "none": (np.zeros(16), ()),
}


def curve(values):
    return pd.Series(values, index=[f"c{place}" for place in range(len(values))])


def seen(table):
    return tuple(table.loc[table["observed"], "stage"])


@pytest.mark.parametrize("name", CURVES)
def test_made_curves_with_all_numbers_of_stages(name):
    values, stages = CURVES[name]
    assert seen(find_stages(curve(values))) == stages
    assert seen(find_stages(curve(1e3 * values - 7))) == stages  # neither unit nor zero matter
    noise = np.random.default_rng(0).standard_normal((20, len(values)))
    right = [seen(find_stages(curve(values + 0.02 * each))) == stages for each in noise]
    assert np.mean(right) >= 0.9


def test_the_borders_of_three_stages():
    table = find_stages(curve(CURVES["three"][0])).set_index("stage")
    assert table["first"].to_dict() == dict(zip(THREE, ("c0", "c5", "c10"), strict=True))
    assert table["last"].to_dict() == dict(zip(THREE, ("c5", "c10", "c16"), strict=True))


def test_noise_has_no_more_stages_than_the_level():
    for length in (8, 20):
        table = false_stages(length, curves=100, seed=5).set_index("noise")
        assert table.loc["white", "any"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
        assert table.loc["random walk", "any"] > table.loc["white", "any"]  # its changes are real
    strict, loose = (false_stages(8, StageRule(level=each), curves=100).loc[0, "any"] for each in (0.01, 0.4))
    assert strict < 0.05 < loose


def test_a_decline_without_an_own_system_is_no_transition():
    values = CURVES["three"][0]
    rising = np.concatenate([np.zeros(6), np.linspace(0.1, 1, 5), np.ones(6)])
    assert seen(find_stages(curve(values), curve(rising))) == THREE
    table = find_stages(curve(values), curve(np.zeros(17)))
    assert seen(table) == ("translation", "stabilisation")
    assert "own system's share changes by +0" in table.set_index("stage").loc["transition", "why"]
    unsettled = find_stages(curve(values), curve(np.linspace(0, 1, 17)))
    assert seen(unsettled) == THREE[:2] and "share does not" in unsettled.set_index("stage").loc[THREE[2], "why"]


def test_too_few_checkpoints_and_bad_curves():
    table = find_stages(curve(UP[:5]))
    assert not table["observed"].any() and table["why"].str.startswith("not observed: 5 checkpoints").all()
    with pytest.raises(ValueError, match=r"score is not finite at \['c1'\]"):
        find_stages(curve([0.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match="the same checkpoints"):
        find_stages(curve(UP), curve(DOWN))
    with pytest.raises(ValueError, match="odd number"):
        StageRule(window=4)


def test_the_plan_of_the_papers_corpus():
    """Billions of tokens: Python 11; PHP 23 to 5 and C# 16 to 10; the shares follow from these."""
    assert share_of_tokens(5, 11) == pytest.approx(0.3125)
    assert share_of_tokens(10, 11) == pytest.approx(0.4762, abs=5e-5)
    assert share_of_tokens(23, 11) == pytest.approx(0.6765, abs=5e-5)
    assert share_of_tokens(16, 11) == pytest.approx(0.5926, abs=5e-5)
    # losses at which the linear proxy gives these shares, from 3 (start) to 1 (end)
    curves = {"php": LossCurve(3, 3 - 2 * 0.3125, 1, 23), "csharp": LossCurve(3, 3 - 2 * 10 / 21, 1, 16)}
    plan = corpus_plan(curves, 11).set_index("language")
    assert plan["planned"].to_dict() == pytest.approx({"php": 5, "csharp": 10})
    kept = {"python": 11, "go": 11, "cpp": 28}
    assert sum(kept.values()) + plan["planned"].sum() == pytest.approx(65)


def test_tokens_and_shares_are_inverse_and_ends_are_named():
    for tokens in (0, 0.1, 1, 7, 1000):
        assert tokens_of_share(share_of_tokens(tokens, 11), 11) == pytest.approx(tokens)
    assert [own_share(loss, 3, 1) for loss in (4, 3, 2, 1, 0)] == [0, 0, 0.5, 1, 1]
    whole = corpus_plan({"a": LossCurve(3, 1, 1, 20), "b": LossCurve(3, 1, 1), "c": LossCurve(3, 2, 1, 5)}, 11)
    assert whole["planned"].tolist()[0] == 20 and math.isnan(whole["planned"][1]) and whole["planned"][2] == 5
    assert whole["note"].str.contains("lowest|capped").all()
    with pytest.raises(ValueError, match="start above the end"):
        LossCurve(1, 1, 1)
    with pytest.raises(ValueError, match="unbounded"):
        tokens_of_share(1.0, 11)


def test_calibration_sees_more_than_a_common_trend():
    trend, generator = np.linspace(0, 1, 40), np.random.default_rng(0)
    noise = 0.05 * generator.standard_normal((2, 40))
    apart = calibration(curve(trend + noise[0]), curve(trend + noise[1]))
    assert apart["pearson"] > 0.9 and abs(apart["changes_pearson"]) < 0.35
    alike = calibration(curve(trend + noise[0]), curve(0.5 * (trend + noise[0])))
    assert alike["changes_pearson"] == pytest.approx(1) and alike["slope"] == pytest.approx(0.5)
    assert math.isnan(calibration(curve(np.zeros(5)), curve(trend[:5]))["pearson"])


def test_dependence_by_hand():
    def table(*right):
        return pd.DataFrame({"id": range(6), "correct": [place in right for place in range(6)]})

    found = solved_dependence(table(0, 1, 4), dominant=table(0, 1, 2, 3), own=table(3, 4))
    assert found["only_dominant"] == 3 and found["both"] == 2  # 0, 1 and 2; of these 0 and 1 are solved now
    assert found["dependence"] == pytest.approx(2 / 3) and found["chance"] == pytest.approx(0.5)
    assert math.isnan(solved_dependence(table(), table(0), table())["dependence"])
    with pytest.raises(ValueError, match="other problems"):
        solved_dependence(table(0).head(3), table(0), table())
