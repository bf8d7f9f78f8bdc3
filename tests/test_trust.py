"""Each warning appears where its number says so, and shuffled labels are told from true ones."""

import math
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SENTENCES

import lsn_lens as lsn
from lsn_lens.comparison import checks, doubts, model_checks, trust
from lsn_lens.comparison.checking import Check, Subject
from lsn_lens.comparison.checks import Checks
from lsn_lens.comparison.page import comparison_report
from lsn_lens.comparison.trust_page import TITLE, WORDS, trust_section
from lsn_lens.controls.neutral import off_target
from lsn_lens.controls.resampling import permuted
from lsn_lens.controls.significance import permutation_test
from lsn_lens.controls.stability import bootstrap, leave_one_out
from lsn_lens.methods.lape import Lape
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report import Bars, Chart, Column, Section, write_report
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import DOCUMENTS, TOKENS

LANGUAGES, LAYERS, UNITS, SHARDS, OWN = ("en", "fr", "zh"), 2, 60, 16, 2
NULL = "not distinguishable from shuffled labels"
QUICK = Checks(replicates=20, permutations=39)


def made_run(strength=0.9, seed=0, shards=SHARDS):
    """Every language has its own two units in each layer, which fire `strength` of the time, and 5 % elsewhere."""
    generator, tokens, sums = np.random.default_rng(seed), 200, {}
    for place, label in enumerate(LANGUAGES):
        share = np.full((LAYERS, UNITS), 0.05)
        share[:, OWN * place : OWN * (place + 1)] = strength
        sums[label] = [
            {
                TOKENS: torch.full((LAYERS,), tokens),
                DOCUMENTS: torch.tensor(10),
                "mlp_pre.positive": torch.tensor(generator.binomial(tokens, share)),
            }
            for _ in range(shards)
        ]
    text = {"languages": dict.fromkeys(LANGUAGES)}
    settings = {"statistics": ["mlp_pre.positive"], "model": {"name": "made"}, "text": text, "rows": False}
    return Run(sums, settings, costs={"forward": 1.0, "mlp_pre.positive": 1.0})


METHODS = {"lape": Lape(rate=0.1)}


def compared(run, checks=QUICK, methods=METHODS, **options):
    return lsn.compare(run, methods, trust=checks, progress=False, **options)


ORIGIN = {
    "corpus": {"sha256": "0" * 64, "languages": dict.fromkeys(LANGUAGES),
               "layout": {"kind": "documents", "separator": "bos"}},
    "model": {"name": "made", "class": "", "dtype": "", "layers": 2, "revision": None, "weights_hash": "0" * 64},
    "started": "2026-01-01T00:00:00", "versions": {}, "git_commit": None, "seconds": 1.0, "command": ["python"],
}  # fmt: skip


# from the run alone


@pytest.fixture(scope="module")
def planted():
    return compared(made_run())


def test_a_planted_signal_is_told_from_shuffled_labels(planted):
    row = planted.trust.iloc[0]
    assert row["null_p"] == 2 / 40  # the smallest that 39 permutations allow
    assert (row["beyond_null"], row["stable_share"]) == (1, 1)
    assert len(planted.found["lape"]) == LAYERS * OWN * len(LANGUAGES)
    assert NULL not in planted.ranking["warnings"][0]
    assert "unstable" not in planted.ranking["warnings"][0]


def test_shuffled_labels_are_not():
    said = [NULL in compared(permuted(made_run(), seed), Checks(0, 39)).ranking["warnings"][0] for seed in range(8)]
    assert sum(said) >= 7  # each is silent with a probability of at most 0.05


def test_units_that_fire_alike_everywhere_are_neither_told_nor_stable():
    found = compared(made_run(0.05))
    row = found.ranking.iloc[0]
    assert found.trust["beyond_null"][0] < 0.5
    assert NULL in row["warnings"]
    assert "unstable: under 50 % of the units are selected in 95 % of bootstrap replicates (" in row["warnings"]


def test_numbers_are_those_of_the_functions_behind_them(planted):
    run, row = made_run(), planted.trust.iloc[0]
    test, draws = (
        permutation_test(run, METHODS["lape"], permutations=39),
        bootstrap(run, METHODS["lape"], replicates=20),
    )
    assert row["null_units"] == pytest.approx(test.totals.double().mean())
    assert (row["null_low"], row["null_high"]) == (test.totals.min(), test.totals.max())
    alone = leave_one_out(run, METHODS["lape"], progress=False)
    assert row["leave_one_out_jaccard"] == pytest.approx(alone["corrected_jaccard"].mean())
    assert row["bootstrap_jaccard"] == pytest.approx(draws.overlaps["corrected_jaccard"].mean())
    assert row["stable_share"] == (draws.intervals["frequency"] >= 0.95).mean()
    assert list(planted.ranking["null_units"]) == [row["null_units"]]
    assert {"trust", "stability", "leave_one_out", "nulls", "not_done"} == set(planted) - set(
        lsn.compare(made_run(), METHODS)
    )


def test_the_p_value_of_a_set_is_counted():
    test = permutation_test(made_run(), METHODS["lape"], permutations=3)
    size, score = len(test.found), test.mean_score()
    values = test.scores.values["mlp"][test.found.masks["mlp"]]
    assert score == pytest.approx(values.mean())

    def p_value(totals, means):
        return replace(test, totals=torch.tensor(totals), means=torch.tensor(means).double()).set_p_value()

    above, below = score + 1, score - 1
    assert p_value([size, size, size], [below, below, below]) == 2 * 1 / 4
    assert p_value([size, size, size], [score, below, below]) == 2 * 2 / 4
    assert p_value([size - 1, size, size], [above, above, above]) == 1  # 2 * 3 / 4, cut
    assert p_value([0, 0, 0], [-math.inf] * 3) == 2 * 1 / 4


def test_without_checks_nothing_is_added():
    run = made_run()
    before, after = lsn.compare(run, METHODS), compared(run)
    assert not hasattr(before, "trust")
    assert set(after) - set(before) == {"trust", "stability", "leave_one_out", "nulls", "not_done"}
    for name, table in before.items():
        if name not in ("ranking", "warnings", "cost", "sizes"):
            pd.testing.assert_frame_equal(table, after[name])
    kept = [name for name in before.ranking if name not in ("seconds", "warnings")]
    pd.testing.assert_frame_equal(before.ranking[kept], after.ranking[kept])
    assert list(after.ranking.columns.drop(["stable_share", "null_units"])) == list(before.ranking.columns)


def test_what_cannot_be_done_is_said():
    few = compared(made_run(shards=4))
    assert few.trust["not_done"][0].startswith("stability, nulls: too few shards")
    assert "leave_one_out" in few
    assert not {"stability", "nulls"} & set(few)
    given = compared(made_run(), found={"lape": NeuronSet(LANGUAGES, {"mlp": torch.ones(3, LAYERS, UNITS).bool()})})
    assert given.trust["not_done"][0] == "stability, leave one out, nulls: the set was given"
    assert "stable_share" not in given.ranking


def test_methods_that_are_not_drawn_are_said():
    two = {"a": Lape(rate=0.1), "b": Lape(rate=0.2)}
    found = compared(made_run(), Checks(0, 39, without_draws=("b",)), two)
    assert list(found.nulls["method"]) == ["a"]
    table = found.trust.set_index("method")
    assert math.isnan(table["null_p"]["b"])
    assert table["not_done"]["a"] == ""
    assert table["not_done"]["b"].startswith("nulls: not asked for")
    assert NULL not in found.ranking.set_index("method")["warnings"]["b"]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"replicates": 1}, "replicates=1"),
        ({"permutations": 38}, "expected 39 or more"),
        ({"permutations": -1}, "expected 39 or more"),
        ({"seeds": 0}, "seeds=0"),
    ],
)
def test_checks_that_cannot_work_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        Checks(**values)


@pytest.mark.parametrize("check", ["changed_text", "ablations", "off_target"])
def test_checks_that_take_a_model_are_refused_without(check):
    with pytest.raises(ValueError, match="give a model"):
        compared(made_run(), Checks(0, 0, **{check: True}))


def test_every_check_has_an_option_and_a_name_of_its_own():
    options = {each.name for each in fields(Checks)}
    assert {row.option for row in checks.CHECKS} <= options
    assert checks.asked(Checks(0, 0)) == ()
    every = Checks(changed_text=True, ablations=True, off_target=True)
    assert checks.asked(every) == checks.CHECKS


def test_true_is_the_default_of_checks():
    run = made_run(shards=4)  # too few to draw from: nothing slow
    assert list(compared(run, True)) == list(compared(run, Checks()))
    assert "trust" not in compared(run, False)


# checks, methods and figures of one's own


class Loudest:
    """The unit that fires most in a language, found without the package's help; documents are parallel."""

    paired = True

    def statistics(self):
        return Lape().statistics()

    def score(self, statistics):
        rates = statistics.sums["mlp_pre.positive"].double()
        return NeuronScores(statistics.languages, {"mlp": rates}, "loudest")

    def select(self, scores):
        values = scores.values["mlp"]
        return NeuronSet(scores.languages, {"mlp": values == values.amax((1, 2), keepdim=True)}, "loudest")

    def __repr__(self):
        return "Loudest()"


def count_units(subject):
    counts = subject.units.counts()
    return pd.DataFrame({"language": list(counts.index), "found": list(counts), "paired": subject.paired})


MINE = Check(
    "units found",
    count_units,
    summary=lambda table: table.groupby("method")[["found"]].sum(),
    columns={"found": Column("units, all languages", "count")},
    ranked=("found",),
    doubts=lambda table: [("few were found", list(table.loc[table["found"] < 2, "language"]))],
    says="Counts units.",
    caption="My numbers",
    figures=lambda table: {"mine": Chart("Mine", "", "", (Bars(table.set_index("method")["found"], "units", "red"),))},
)


def test_a_check_a_method_and_a_figure_of_ones_own(tmp_path):
    found = compared(made_run(), Checks(0, 39, extra=(MINE,)), [Loudest(), "lape"], parameters={"lape": {"rate": 0.1}})
    assert list(found.units_found["found"]) == [1, 1, 1, 4, 4, 4]
    assert list(found.units_found["paired"]) == [True] * 3 + [False] * 3
    assert found.trust.set_index("method")["found"].to_dict() == {"Loudest()": 3, "lape": 12}
    ranking = found.ranking.set_index("method")
    assert ranking["found"].to_dict() == {"Loudest()": 3, "lape": 12}
    assert "few were found (en, fr, zh)" in ranking["warnings"]["Loudest()"]
    page = trust_section(found)
    assert "Counts units." in page.text
    assert list(page.tables["My numbers"]["found"]) == [3, 12]
    assert set(page.figures) == {"trust-nulls", "mine"}
    assert "units found" not in page.text[-1]
    whole = comparison_report(
        found, pd.DataFrame(), ORIGIN, more=[Section("Mine too", figures={"figure": found.plot()})]
    )
    path = write_report(whole, tmp_path)
    text = path.read_text()
    assert "Mine too" in text
    assert "units, all languages" in text
    for name in ("mine", "figure", "trust-nulls"):
        assert f'<div id="{name}"' in text


def test_a_check_that_is_not_asked_for_is_not_done():
    found = compared(made_run(), Checks(0, 39))
    with pytest.raises(AttributeError, match="no such table"):
        _ = found.units_found


@pytest.mark.parametrize(
    ("check", "match"),
    [
        (replace(MINE, name="losses"), r"called \['losses'\], as tables of every comparison"),
        (replace(MINE, name="leave one out"), r"several checks are called \['leave_one_out'\]"),
        (replace(MINE, needs_model=True), r"the checks \['units found'\] run the model"),
        (replace(MINE, asks="units"), r"the checks \['units found'\] run the model"),
        (replace(MINE, columns={"null_units": Column()}, ranked=()), r"columns=\['null_units'\].*other checks"),
        (replace(MINE, ranked=("stable_share",)), r"columns=\['stable_share'\].*other checks"),
        (replace(MINE, ranked=("seconds",)), r"columns=\['seconds'\].*or the ranking have columns"),
        (replace(MINE, ranked=("own_rise",)), r"columns=\['own_rise'\].*or the ranking have columns"),
        (replace(MINE, columns={"not_done": Column()}), r"columns=\['not_done'\]"),
    ],
)
def test_checks_of_ones_own_that_cannot_work_are_refused_before_anything_runs(check, match):
    class Untouched(Lape):
        def score(self, statistics):
            pytest.fail("this must be refused first")

    with pytest.raises(ValueError, match=match):
        compared(made_run(), Checks(0, 0, extra=(check,)), {"lape": Untouched()})


def test_numbers_of_a_check_that_others_have_too_lose_nothing():
    """Names that only the result shows: they cannot be refused before, and must not end a comparison."""

    def summary(table):
        taken = table.set_index("method")[["units_of_mine"]].assign(null_units=7, not_done=8)
        return taken.assign(method=9)

    mine = Check("mine", lambda _: pd.DataFrame({"units_of_mine": [3]}), summary=summary)
    trusted = compared(made_run(), Checks(0, 39, extra=(mine,))).trust.iloc[0]
    assert (trusted["units_of_mine"], trusted["mine_null_units"]) == (3, 7)
    assert (trusted["mine_not_done"], trusted["mine_method"]) == (8, 9)
    assert (trusted["null_units"], trusted["method"], trusted["not_done"]) != (7, 9, 8)


def test_no_column_of_the_ranking_can_be_overwritten(checked):
    ranked = {name for row in checks.CHECKS for name in row.ranked}
    assert set(checked.ranking) == set(checks.RANKING) | ranked and not ranked & set(checks.RANKING)


def test_what_is_no_check_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    with pytest.raises(ValueError, match="expected checks, as in extra="):
        Checks(extra=(count_units,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected checks, as in extra="):
        Checks(extra=MINE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="asks='set'"):
        replace(MINE, asks="set")


@pytest.mark.parametrize("fault", [KeyError, ValueError])
def test_a_fault_in_a_check_is_raised_and_what_does_not_apply_is_said(fault):
    def broken(subject):
        raise fault("a typo")

    with pytest.raises(fault, match="a typo"):
        compared(made_run(), Checks(0, 0, extra=(Check("broken", broken),)))

    def refusing(subject):
        raise lsn.DoesNotApply("not here")

    found = compared(made_run(), Checks(0, 0, extra=(Check("refusing", refusing), MINE)))
    assert list(found.trust["not_done"]) == ["refusing: not here"]
    assert "units_found" in found


@pytest.mark.parametrize("fault", [KeyError, ValueError])
@pytest.mark.parametrize("part", ["score", "select"])
def test_a_fault_in_a_method_is_raised(fault, part, monkeypatch):
    def broken(self, given):
        raise fault("a typo")

    monkeypatch.setattr(Lape, part, broken)
    with pytest.raises(fault, match="a typo"):
        lsn.compare(made_run(), progress=False)  # all methods: one that does not apply would be left out


# words, from tables with known numbers


def in_words(tables):
    return doubts.in_words(doubts.table_of(trust.doubts_of(tables, ["a", "b"]), ["a", "b"]), "a")


def words(check, **columns):
    rows = pd.DataFrame({"language": ["en", "fr"], **columns}).assign(method="a")
    return in_words({check.replace(" ", "_"): rows})


def text(survival, ceiling=0.8, note="", control="romanised"):
    return {"control": control, "survival": survival, "ceiling": ceiling, "note": note, "before": 10}


def off(own=0.5, code=0.1, collapse="", units=10):
    rises = {"own_rise": own, "numbers_rise": 0.0, "arithmetic_rise": 0.0, "code_rise": code}
    return {**rises, "collapse": collapse, "units": units}


ROMANISED, SIDE = "does not survive romanisation", "numbers, arithmetic or code are hurt as much as the own language"


@pytest.mark.parametrize(
    ("check", "columns", "expected"),
    [
        ("stability", {"stable_share": [0.49, 0.5]},
         "unstable: under 50 % of the units are selected in 95 % of bootstrap replicates (en)"),
        ("stability", {"stable_share": [math.nan, 1.0]}, ""),
        ("nulls", {"null_p": 0.05}, ""),
        ("nulls", {"null_p": 0.051}, NULL),
        ("survival", text([0.39, 0.4]), f"{ROMANISED} (en)"),
        ("survival", text([0.4, 0.9]), ""),
        ("survival", text([0.0, 0.0], note=["", "0 % change"]), f"{ROMANISED} (en)"),
        ("survival", text([0.0, math.nan], ceiling=math.nan), ""),
        ("survival", text(0.1, control=["same script", "shuffled words"]),
         "does not survive without the languages of other scripts (en)"),
        ("off target", off(), ""),
        ("off target", off(code=[0.5, 0.4]), f"{SIDE} (en)"),
        ("off target", off(own=[-0.1, 0.0], code=0.1, units=[10, 0]), f"{SIDE} (en)"),
        ("off target", off(own=-0.2, code=-0.1) | {"numbers_rise": -0.1, "arithmetic_rise": -0.1}, ""),
        ("off target", off(collapse=["", "code"]), "collapse off target: a text's loss rises by more than 3 nats (fr)"),
    ],
)  # fmt: skip
def test_warnings_of_checks_in_words(check, columns, expected):
    assert words(check, **columns) == expected


def test_an_effect_under_one_kind_of_ablation_only():
    hurt = {"zero": (True, True, False), "mean": (False, True, False), "half": (False, False, False)}
    p = {"en": 0.5, "fr": 1 / 4, "zh": 1.0}  # of three random sets, above two, all and none
    rows = [
        {"method": "a", "ablation": kind, "language": label, "own_hurt_most": most, "p": p[label], "seeds": 3}
        for kind, each in hurt.items()
        for label, most in zip(LANGUAGES, each, strict=True)
    ]
    table = pd.DataFrame(rows)
    assert in_words({"ablations": table}) == "hurt most only under one of 3 kinds of ablation: zero (en)"
    not_done = pd.DataFrame(columns=["method", "check", "reason"])
    row = trust.trust_table({"ablations": table, "not_done": not_done}, ["a"]).iloc[0]
    assert (row["hurt_most_every_kind"], row["hurt_most_some_kind"], row["above_random_every_kind"]) == (0, 2, 1)
    one = table.loc[table["ablation"].eq("zero")]
    assert not in_words({"ablations": one})


def test_the_worst_neutral_text_is_that_of_the_means():
    rises = {"numbers_rise": [0.3, -0.1], "arithmetic_rise": [-0.3, 0.3], "code_rise": [0.2, 0.2]}
    random = {f"random_{name}": 0.5 for name in rises}
    repetition = {f"repetition_{state}": each for state, each in (("before", 0.1), ("after", 0.3), ("random", 0.2))}
    table = pd.DataFrame({"method": "a", "language": ["en", "fr"], **rises, **random, **repetition})
    row = trust.main_numbers({"off_target": table}, ["a"], checks.CHECKS).loc["a"]
    assert row["neutral_rise"] == pytest.approx(0.2)  # code; 0.3 in each language alone
    assert row["random_neutral_rise"] == 0.5
    assert (row["repetition_rise"], row["random_repetition_rise"]) == (pytest.approx(0.2), pytest.approx(0.1))


def test_survival_is_averaged_over_the_languages_that_it_tests():
    rows = pd.DataFrame(
        {"method": "a", "language": LANGUAGES, **text([0.2, 0.4, 1.0], [0.8, 1.0, 0.0], ["", "", "none change"])}
    )
    not_done = pd.DataFrame([("a", "off target", "no text")], columns=["method", "check", "reason"])
    row = trust.trust_table({"survival": rows, "not_done": not_done}, ["a", "b"]).set_index("method").loc["a"]
    assert (row["romanised_survival"], row["romanised_ceiling"]) == (pytest.approx(0.3), pytest.approx(0.9))
    assert row["not_done"] == "off target: no text"


# with a model


RUSSIAN = "Лиса прыгает через собаку. "
TEXT = {"en": SENTENCES[0], "de": SENTENCES[1], "ru": RUSSIAN}


@pytest.fixture(scope="module")
def checked(load):
    model = load("llama")
    corpora = lsn.load_corpora({label: [f"{i} {each}" for i in range(30)] for label, each in TEXT.items()})
    layout = lsn.Layout(kind="documents", max_tokens=600)
    run = lsn.collect(model, corpora, ["lape"], layout=layout, progress=False)
    options = Checks(20, 39, changed_text=True, ablations=True, off_target=True, seeds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_checks, "off_target", partial(off_target, prompts=2, tokens=12))
        return lsn.compare(
            run, {"lape": Lape()}, model=model, corpora=corpora, layout=lsn.Layout(max_tokens=64), seeds=2,
            control_tokens=64, trust=options, progress=False,
        )  # fmt: skip


def test_with_a_model_every_check_has_its_columns(checked):
    table = checked.trust.set_index("method")
    assert list(table.index) == ["lape"]
    assert {row.table for row in checks.CHECKS} <= set(checked)
    assert not table["not_done"].any()
    names = ("stable_share", "null_p", "romanised_survival", "shuffled_words_ceiling", "same_script_survival",
             "hurt_most_every_kind", "neutral_rise", "random_repetition_rise")  # fmt: skip
    for name in names:
        assert table[name].notna().all(), name
    survived = checked.survival
    mine = survived.loc[survived["method"].eq("lape") & survived["control"].eq("romanised") & survived["note"].eq("")]
    assert "ru" in set(mine["language"])
    assert table.loc["lape", "romanised_survival"] == pytest.approx(mine["survival"].mean())
    assert "romanised_survival" in checked.ranking
    assert "not measured" not in repr(checked)


def test_the_page_says_what_was_and_what_was_not_done(checked, planted):
    page = trust_section(checked)
    assert page.title == TITLE
    assert set(page.figures) == {"trust-nulls", "trust-romanised", "trust-shuffled-words", "trust-same-script"}
    assert not any(each.startswith("Not checked") for each in page.text)
    for chart in page.figures.values():
        assert list(chart.marks[0].values.index) == ["lape"]
        chart.plotly()
    short = trust_section(planted)
    assert set(short.figures) == {"trust-nulls"}
    assert short.text[-1] == "Not checked for any method: changed text, kinds of ablation, side effects off target."
    assert list(short.tables[WORDS]["checks"]) == ["no warning from these checks"]
    assert len(short.text) < len(page.text)
    captions = list(dict.fromkeys(row.caption for row in checks.CHECKS))
    numbers = {name: each for name, each in page.tables.items() if name in captions}
    assert list(numbers) == captions
    shown = [column for each in numbers.values() for column in each.columns.drop("method")]
    assert sorted(shown) == sorted(checked.trust.columns.drop(["method", "not_done"]))  # each in one table, none lost
    assert set(short.tables) == {*captions[:2], WORDS}
    nothing = trust_section(compared(made_run(), Checks(0, 39, without_draws=("lape",))))
    assert list(nothing.tables[WORDS]["checks"]) == ["not checked; not done: nulls"]
    assert not nothing.figures
    assert all(a != b for a, b in pairwise(page.text))


def test_equal_sets_are_measured_once(load, monkeypatch):
    model = load("llama")
    texts = {label: [f"{i} {each}" for i in range(20)] for label, each in TEXT.items()}
    corpora = lsn.load_corpora(texts, hold_out=0.3)
    run = lsn.collect(model, corpora, ["lape"], layout=lsn.Layout(max_tokens=200), progress=False)
    methods = {"a": Lape(), "b": Lape(rate=0.3), "c": Lape()}
    alone = {name: lsn.detect(run, method) for name, method in methods.items()}
    assert len(alone["a"]) != len(alone["b"])
    asked = []
    table = pd.DataFrame({"language": ["en"], "own_hurt_most": [True], "p": 1.0, "seeds": 2, "ablation": ["zero"]})

    def measured(*given, **_):
        asked.append(given[3])
        return table

    monkeypatch.setattr(model_checks, "ablation_sensitivity", measured)

    def compare(names):
        return lsn.compare(
            run, {name: methods[name] for name in names}, model=model, corpora=corpora, seeds=2, control_tokens=64,
            layout=lsn.Layout(max_tokens=64), trust=Checks(0, 0, ablations=True), sizes=None, progress=False,
        )  # fmt: skip

    three = compare("abc")
    assert len(asked) == 2
    assert list(three.ablations["method"]) == ["a", "b", "c"]
    for name in "abc":
        single = compare(name)
        for each, column in (("losses", "set"), ("control_by_language", "method"), ("control_points", "method")):
            # corrected for other numbers of tests: q is another one
            one, other = (getattr(result, each).drop(columns="q", errors="ignore") for result in (three, single))
            rows = one.loc[one[column].isin(["", name])].reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, other.reset_index(drop=True), check_dtype=False)
    assert list(three.losses["set"].unique()) == ["", "a", "b", "c"]
    assert three.losses.attrs["text"] == compare("a").losses.attrs["text"]


def test_twins_share_units_languages_and_action():
    def units(first, labels=LANGUAGES):
        mask = torch.zeros(3, LAYERS, UNITS, dtype=torch.bool)
        mask[:, :, first] = True
        return NeuronSet(labels, {"mlp": mask})

    found = {"a": units(0), "b": units(1), "c": units(0), "d": units(0), "e": units(0, ("en", "de", "zh"))}
    actions = {"a": lsn.zero, "b": lsn.zero, "c": lsn.zero, "d": lsn.scale(0.5), "e": lsn.zero}
    assert trust.twins(found, actions) == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}


def test_units_that_cannot_be_changed_are_said(planted):
    model_less = {"lape": planted.found["lape"]}
    tables = trust.measure(Subject(made_run(), METHODS, model_less, Checks(0, 0, ablations=True)))
    assert tables["not_done"].to_dict("records") == [
        {"method": "lape", "check": "ablations", "reason": "no intervention writes to mlp"}
    ]
