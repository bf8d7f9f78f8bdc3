"""The script on the embedded model: the folder is whole, and its words follow from its tables."""

import dataclasses
import json

import pandas as pd
import pytest
from conftest import experiment, page_of, refused

import lsn_lens as lsn
from lsn_lens.generation.groups import share_difference, share_of, wilson
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.studies import steering as study
from lsn_lens.studies.pages import steering as section

WAYS = {
    "average_precision", "plnd", "lape", "diffmean", "language_dimensions", "language_dimensions-released",
}  # fmt: skip
SOME = {"average_precision", "plnd", "diffmean"}  # what texts are written with here: each takes its time
TABLES = {
    "doses", "steering", "summary", "losses", "deactivation", "texts", "texts-doses", "texts-deactivation", "text",
    "meaning",
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    return experiment("steer")


def small(script, out, **changed):
    return script.Config(**asked(out, **changed))


def asked(out, **changed):
    settings = {
        "languages": ("en", "fr"), "counts": (100,), "strengths": (1.0,), "seeds": 1, "samples": 5, "prompts": 1,
        "prompt_tokens": 6, "tokens": 3, "evaluation_tokens": 128, "max_tokens": 300, "shown": 3,
    }  # fmt: skip
    return {"out": out, "device": "cpu", "png": True, **settings, **changed}


def some_of(ways, names):
    return lambda *given: [each for each in ways(*given) if each.name in names]


@pytest.fixture(scope="module")
def prepared(script, tmp_path_factory):
    config = small(script, tmp_path_factory.mktemp("steer"))
    return config, script.prepare(config)


@pytest.fixture(scope="module")
def drawn():
    return set()


@pytest.fixture(scope="module")
def written(script, prepared, drawn):
    config, rest = prepared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsn_lens.report.page.save", lambda chart, path, **_: drawn.add(path.name))  # drawing is slow
        patch.setattr(study, "ways", some_of(study.ways, SOME))
        return script.report(config, *rest).parent


@pytest.fixture(scope="module")
def tables(written):
    return {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}


def test_the_folder_is_whole(written, tables, drawn):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "provenance.json"} <= names
    assert set(tables) == TABLES and {f"tables/{name}.csv" for name in TABLES} <= names
    method = section.best_deactivation(tables).replace("_", "-")
    maps = {"from-nothing", "after-prompts", "pairs", "fallback-no-intervention", f"fallback-{method}"}
    maps |= {f"fallback-random-units-like-{method}", *(f"dose-{name.replace('_', '-')}" for name in SOME)}
    assert drawn == {f"{name}.png" for name in maps}
    origin = json.loads((written / "provenance.json").read_text())
    assert origin["settings"]["counts"] == [100] and set(origin["corpus"]["languages"]) == {"en", "fr"}
    assert origin["corpus"]["sha256"] != origin["hold_out"]["sha256"]
    sets = {path.stem: NeuronSet.load(path) for path in (written / "neurons").iterdir()}
    assert set(sets) == {"average_precision-100", *WAYS} - {"average_precision", "diffmean"}
    assert sets["average_precision-100"].counts().tolist() == [100, 100]


def test_the_tables_fit_together(tables):
    summary, steering, texts = tables["summary"], tables["steering"], tables["texts"]
    assert set(summary["steering"]) == SOME | {"prompt"} and len(steering) == 4 * 4
    assert set(zip(steering["source"], steering["target"], strict=True)) == {
        ("nothing", "en"), ("nothing", "fr"), ("en", "fr"), ("fr", "en")
    }  # fmt: skip
    for row in steering.to_dict("records"):
        same = texts[texts["target"].eq(row["target"]) & texts["source"].eq(row["source"])]
        mine = same[same["steering"].eq(row["steering"])]
        real = mine[mine["seed"].isna()]
        assert row["n"] == len(real) == (5 if row["source"] == "nothing" else 1)
        assert row["share"] == pytest.approx((real["language"] == row["target"]).mean())
        drawn = mine[mine["seed"].notna()]
        assert len(drawn) == (0 if row["steering"] == "prompt" else len(real))
        assert len(drawn) == 0 or row["random_share"] == pytest.approx((drawn["language"] == row["target"]).mean())
    losses = tables["losses"].set_index(["steering", "target"])["target_nll_change"]
    for row in steering[steering["steering"].ne("prompt")].to_dict("records"):
        assert row["target_nll_change"] == pytest.approx(losses[row["steering"], row["target"]])
    assert set(tables["doses"]["steering"]) == SOME and set(tables["texts-doses"]["source"]) == {"nothing"}
    nothing = texts[texts["source"].eq("nothing") & texts["steering"].ne("prompt")]
    assert len(nothing) == len(tables["texts-doses"])
    assert not set(zip(*(each["text"] for each in (nothing, tables["texts-doses"])), strict=True)) <= {
        (text, text) for text in nothing["text"]
    }  # other samples
    assert set(tables["deactivation"]["method"]) == {"average_precision", "plnd", "lape"}


def test_the_words_are_those_of_the_tables(written, tables):
    page = (written / "report.md").read_text()
    assert page.split("**")[1] == section.lead(tables)
    best = next(name for name in tables["summary"]["steering"] if name in {"average_precision", "plnd", "lape"})
    assert f"Of all sets of neurons, {best} steers best" in page
    for other in ("diffmean", "prompt"):
        assert page.count(f" {other} (") and any(f"They {verb} {other} (" in page for verb in VERBS)


def test_every_way_has_its_random_counterparts(prepared):
    config, (model, _, run) = prepared
    config = dataclasses.replace(config, seeds=2, strengths=(1.0, 3.0))
    every = study.ways(config, model, run, study.find(config, run))
    doses = dict.fromkeys(WAYS, (1.0, 3.0)) | {
        "average_precision": (100,), "language_dimensions-released": config.released_strengths,
    }  # fmt: skip
    expected = {(name, dose, seed) for name in WAYS for dose in doses[name] for seed in (None, 0, 1)}
    assert {(each.name, each.dose, each.seed) for each in every} == expected and len(every) == len(expected)
    for each in every:
        layers = {layer for found, _ in each.make("en", "fr").steps for layer in found.to_frame()["layer"]}
        assert layers == {3} if each.name == "diffmean" else len(layers) >= 1


def test_the_study_in_a_notebook_gives_the_same_tables(prepared, tables, monkeypatch):
    config, (model, corpora, _) = prepared
    some = ["plnd"]  # the others would take long
    monkeypatch.setattr(study, "ways", some_of(study.ways, some))
    monkeypatch.setattr(study, "deactivate", lambda *_, **__: tables["texts-deactivation"])
    names = [each.name for each in dataclasses.fields(lsn.studies.SteeringSettings)]
    settings = lsn.studies.SteeringSettings(**{name: getattr(config, name) for name in names})
    found = lsn.studies.steering_study(model, corpora, settings, progress=False)
    assert found.settings["counts"] == (100,) and set(found.found) == {"average_precision-100", *WAYS} - {
        "average_precision", "diffmean"
    }  # fmt: skip
    for name in ("doses", "steering", "losses", "texts", "texts-doses"):
        before, after = (
            each[each["steering"].isin([*some, "none"])].drop(columns="ids", errors="ignore").reset_index(drop=True)
            for each in (tables[name], found[name])
        )
        pd.testing.assert_frame_equal(before, after, check_dtype=False, check_exact=True)
    page = page_of(dataclasses.replace(found, tables=tables))
    assert [each.title for each in page.sections if each.title == "Samples"]


# what the report says

VERBS = ("do better than", "lose to", "are level with")


def summary(warning="", **shares):
    rows = [
        {
            "steering": name,
            "share": share,
            "none_share": 0.125,
            "random_share": 0.25,
            "clear": 3,
            "pairs": 8,
            "n": 400,
            "warning": warning,
        }
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    frame = pd.DataFrame(rows)
    frame["low"], frame["high"] = zip(*map(wilson, frame["share"], frame["n"]), strict=True)
    return {"summary": frame}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"plnd": 0.4, "lape": 0.3, "diffmean": 0.6}, ["They lose to diffmean (60%)."]),
        ({"plnd": 0.4, "diffmean": 0.1}, ["They do better than diffmean (10%)."]),
        ({"plnd": 0.4, "diffmean": 0.4}, ["They are level with diffmean (40%)."]),
        ({"plnd": 0.4, "diffmean": 0.35}, ["They are level with diffmean (35%)."]),  # doubt: 1.96 * 0.034
        ({"plnd": 0.4, "diffmean": 0.47}, ["They lose to diffmean (47%)."]),
        (
            {"plnd": 0.4, "diffmean": 0.6, "language_dimensions": 0.2, "prompt": 0.9},
            [
                "They lose to diffmean (60%).", "They do better than language_dimensions (20%).",
                "They lose to prompt (90%).",
            ],
        ),
        ({"plnd": 0.4}, []),
    ],
)  # fmt: skip
def test_the_lead_says_who_wins(shares, words):
    said = section.lead(summary(**shares))
    first = (
        "Of all sets of neurons, plnd steers best: on average 40% of the texts are in the target language (without "
        "steering 12%, random units 25%); clearly for 3 of 8 pairs of source and target."
    )
    assert said == " ".join([first, *words])


def test_the_lead_says_what_speaks_against_the_best():
    assert "pairs of source and target. But: improbable. They" in section.lead(summary("improbable", a=0.4, prompt=0.1))


def test_facts_by_hand():
    steering = pd.DataFrame(
        [
            ("plnd", "nothing", "fr", 0.5, True), ("plnd", "nothing", "en", 0.25, False),
            ("plnd", "fr", "en", 0.1, True), ("plnd", "en", "fr", 0.3, True),
            ("diffmean", "nothing", "fr", 1.0, True), ("lape", "en", "fr", 1.0, True),
        ],
        columns=["steering", "source", "target", "share", "clear"],
    )  # fmt: skip
    deactivation = pd.DataFrame(
        [("plnd", 0.1, True), ("plnd", 0.9, True), ("lape", 0.4, False), ("lape", 0.2, True)],
        columns=["method", "share", "clear"],
    )
    tables = {**summary(plnd=0.4, lape=0.3, diffmean=0.9), "steering": steering, "deactivation": deactivation}
    assert section.facts(tables) == {
        "languages clearly raised from nothing (plnd)": "1 of 2",
        "mean share from nothing (plnd)": "38%",
        "mean share after a prompt in another language (plnd)": "20%",
        "languages clearly left when switched off (lape)": "1 of 2",
    }


def test_figures_show_the_tables(tables):
    charts = section.targets_section(tables).figures
    table = tables["steering"].set_index(["steering", "source", "target"])
    best = section.best_neurons(tables)
    shown = charts["from-nothing"].marks[0].values
    assert shown.loc["diffmean", "fr"] == table.loc[("diffmean", "nothing", "fr"), "share"]
    assert shown.loc["no steering", "en"] == pytest.approx(table.loc[(best, "nothing", "en"), "none_share"])
    assert list(shown.index) == [*tables["summary"]["steering"], "no steering"]
    after = charts["after-prompts"].marks[0].values
    assert after.loc["diffmean", "fr"] == table.loc[("diffmean", "en", "fr"), "share"]
    pairs = charts["pairs"].marks[0].values
    assert pairs.loc["en", "fr"] == table.loc[(best, "en", "fr"), "share"] and pd.isna(pairs.loc["fr", "fr"])
    samples = section.samples_section(tables, 3).tables[f"Steered to fr by {best}"]
    assert len(samples) == 3 and set(samples["source"]) == {"nothing"}
    texts = tables["texts"]
    mine = texts[texts["steering"].eq(best) & texts["seed"].isna() & texts["target"].eq("fr")]
    assert samples["text"].tolist() == [
        " ".join(text.split())[:110] for text in mine[mine["source"].eq("nothing")]["text"][:3]
    ]


def test_the_fallback_figures_are_of_the_right_texts(tables):
    texts, method = tables["texts-deactivation"], section.best_deactivation(tables)
    charts = section.deactivation_section(tables).figures
    mine, name = texts[texts["method"].eq(method)], method.replace("_", "-")
    parts = {
        f"fallback-{name}": mine[mine["seed"].isna()],
        f"fallback-random-units-like-{name}": mine[mine["seed"].notna()],
        "fallback-no-intervention": texts[texts["method"].eq("none")],
    }
    assert set(charts) == set(parts)
    for name, part in parts.items():
        shown = charts[name].marks[0].values
        for source, rows in part.groupby("source"):
            for language in ("en", "fr", "und"):
                assert shown.loc[source, language] == pytest.approx((rows["language"] == language).mean())


# settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 0}, "at least one seed: a result without a random counterpart"),
        ({"counts": ()}, "at least one count and one strength"),
        ({"tokens": 0}, "tokens=0: expected at least 1"),
        ({"samples": 0}, "samples=0: expected at least 1"),
        ({"languages": ("en", "xx")}, "xx"),
        ({"languages": ("en",)}, "expected two or more"),
        ({"prompts": 0}, "count=0, tokens=6: expected at least 1 of each"),
        ({"prompts": 1000}, "1000 are asked for"),
        ({"prompt_tokens": 15, "tokens": 70}, "exceeds the model's context of 128"),
        ({"tokens": 120}, "exceeds the model's context of 128"),
        ({"layer": 6}, "layer=6: the model has the layers 0 to 5"),
        ({"evaluation_tokens": 60}, "less than one block of 128"),
        ({"rate": 2.0}, "rate=2"),
        ({"model": "/nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_end_in_one_line(wrong, message, script, prepared, tmp_path, monkeypatch):
    if "model" not in wrong:  # loading it is slow
        monkeypatch.setattr("lsn_lens.command.steering.load_model", lambda _: prepared[1][0])
    assert message in refused(script, **asked(tmp_path, **wrong))
    assert not list(tmp_path.iterdir())


def test_the_interval_of_a_difference_is_newcombes():
    found = share_difference(share_of(56, 70), share_of(48, 80))
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)  # his table II, example (a)
    assert share_difference(share_of(0, 10), share_of(0, 10)) == pytest.approx((-0.2775, 0.2775), abs=5e-5)
