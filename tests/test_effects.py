import math

import pandas as pd
import pytest

from lsn_lens.evaluation import effects, verdict


def rows(name, changes, units=20, action="zero"):
    """Rows of a table: `changes[intervened][evaluated]` is the change in nats."""
    return [
        {
            "set": name,
            "action": action,
            "intervened": off,
            "evaluated": on,
            "units": units if isinstance(units, int) else units[off],
            "nll": 3 + change,
            "perplexity": math.exp(3 + change),
            "bits_per_byte": 1 + change / 2,
            "nll_change": change,
            "perplexity_change": math.exp(3 + change) - math.exp(3),
            "bits_per_byte_change": change / 2,
            "nll_relative_change": change / 3,
        }
        for off, each in changes.items()
        for on, change in each.items()
    ]


NONE = rows("", {"none": {"en": 0.0, "fr": 0.0, "zh": 0.0}}, 0, "none")
FOUND = {
    "en": {"en": 0.30, "fr": 0.10, "zh": 0.02},
    "fr": {"en": 0.00, "fr": 0.20, "zh": 0.25},
    "zh": {"en": 0.00, "fr": 0.00, "zh": 0.00},
}
RANDOM = [{"en": 0.01, "fr": 0.30, "zh": 0.00}, {"en": 0.03, "fr": -0.02, "zh": 0.02}]


def own(changes):
    return {language: {language: change} for language, change in changes.items()}


@pytest.fixture
def table():
    controls = [row for seed, each in enumerate(RANDOM) for row in rows(f"lape random {seed}", own(each))]
    counts = {"en": 20, "fr": 9, "zh": 0}
    return pd.DataFrame([*NONE, *rows("lape", FOUND, counts), *controls])


def test_a_row_for_each_language(table):
    summary = effects.summarise(table)
    assert list(summary["language"]) == ["en", "fr", "zh"]
    en = summary.iloc[0]
    assert (en["method"], en["action"], en["units"]) == ("lape", "zero", 20)
    assert en["own_rise"] == pytest.approx(0.30)
    assert en["own_rise_bits_per_byte"] == pytest.approx(0.15)
    assert en["own_rise_relative"] == pytest.approx(0.10)
    assert en["own_rise_perplexity"] == pytest.approx(math.exp(3.3) - math.exp(3))
    assert (en["worst_other"], en["worst_other_rise"]) == ("fr", pytest.approx(0.10))
    assert en["mean_other_rise"] == pytest.approx(0.06)
    assert list(summary["hurt_most_in"]) == ["both", "neither", "neither"]


def test_doubts_say_why_not_to_trust(table):
    rows = effects.summarise(table).set_index("language")
    beside = effects.control_points(table).set_index("language")["own_rise"]
    said = {
        language: verdict.doubts({**row, **verdict.beside_random(row["own_rise"], beside[language], row["units"])})
        for language, row in rows.to_dict("index").items()
    }
    above = "not shown to hurt more than random sets (p above 0.05)"  # two controls say no more
    assert said["en"] == [above]
    assert said["fr"] == ["fewer than 10 neurons", above, "not hurt, or another language hurt as much or more"]
    assert said["zh"] == ["no neurons"]


def test_a_loss_that_is_no_number_is_a_warning(table):
    table.loc[(table["set"] == "lape") & (table["intervened"] == "en") & (table["evaluated"] == "zh"), "nll_change"] = (
        math.nan
    )
    en = effects.summarise(table).iloc[0]
    assert en["worst_other"] == "zh"
    assert verdict.doubts(en.to_dict())[0] == "the loss is not finite"
    assert en["hurt_most_in"] == "bits"  # where the loss is a number, it still is; "both" is what counts
    assert not en["own_hurt_most"]


def test_the_control_of_random_is_no_method():
    table = pd.DataFrame([*rows("random", FOUND), *rows("random random 3", own(RANDOM[0]))])
    assert set(effects.summarise(table)["method"]) == {"random"}
    points = effects.control_points(table)
    assert list(points["seed"]) == [3, 3, 3]
    assert list(points["own_rise"]) == [0.01, 0.30, 0.00]
    assert effects.control_name("random", 3) == "random random 3"


def test_controls_measured_everywhere_count_their_own_language_only():
    everywhere = {off: dict.fromkeys(FOUND, 0.9) | {off: 0.01} for off in FOUND}
    table = pd.DataFrame([*rows("lape", FOUND), *rows("lape random 0", everywhere)])
    assert list(effects.control_points(table)["own_rise"]) == [0.01, 0.01, 0.01]


def test_tables_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="evaluate='all'"):
        effects.summarise(pd.DataFrame(rows("lape", own(RANDOM[0]))))
    with pytest.raises(ValueError, match="no set but controls"):
        effects.summarise(pd.DataFrame(rows("lape random 0", own(RANDOM[0]))))
