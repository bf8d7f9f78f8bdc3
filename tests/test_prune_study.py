"""The study of pruning and its script, on a tiny model."""

import json

import pandas as pd
import pytest
from conftest import SENTENCES, experiment, page_of, refused

import lsn_lens as lsn
from lsn_lens.studies.pages.prune import lead
from lsn_lens.studies.prune import VARIANTS


@pytest.fixture(scope="module")
def script():
    return experiment("prune")


@pytest.fixture(scope="module")
def written(script, tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prune")
    for place, label in enumerate(("en", "de")):
        lines = [f"{number} {SENTENCES[place]} {number + 1}" for number in range(40)]
        folder.joinpath(f"{label}.txt").write_text("\n".join(lines))
    config = script.Config(
        model=str(tiny_model_folder("llama")), corpus=str(folder), files="*.txt", size=4, rates=(0.3, 0.5),
        max_tokens=200, evaluation_tokens=200, length=32, out=folder / "out", device="cpu",
    )  # fmt: skip
    return script.report(config, *script.prepare(config)).parent


def test_the_folder_is_whole(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    tables = ("losses", "against-random", "against-languages", "layers", "summary", "sparse", "sliced", "text")
    assert {"report.html", "report.md", "provenance.json"} <= names
    assert {f"tables/{name}.{end}" for name in tables for end in ("csv", "parquet")} <= names
    assert {"neurons/frequency-0.3.safetensors", "neurons/frequency-0.5.safetensors"} <= names
    page = (written / "report.html").read_text()
    assert all(f'<div id="{name}"' in page for name in ("curves", "matrix-0-3", "matrix-0-5"))
    assert json.loads((written / "provenance.json").read_text())["settings"]["size"] == 4


def test_the_tables_agree(written):
    read = {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}
    losses, left_out = read["losses"], read.get("left-out", pd.DataFrame(columns=["rate", "plan"]))
    real = losses.loc[losses["plan"].isin(VARIANTS)]
    assert len(real.groupby(["rate", "plan"])) + len(left_out) == 2 * len(VARIANTS)
    assert real.groupby("rate")["neurons"].nunique().eq(1).all()  # equally many, whatever the plan
    random = losses.loc[losses["plan"].str.match(r"random experts \d") & losses["rate"].eq(0.5)]
    row = read["against-random"].query("rate == 0.5 and plan == 'frequency' and language == 'de'").iloc[0]
    others = random.loc[random["language"].eq("de"), "rise"]
    assert row["others_rise"] == pytest.approx(others.mean()) and row["others"] == len(others) == 3
    own = real.query("rate == 0.5 and plan == 'frequency' and language == 'de' and evaluated == 'de'").iloc[0]
    assert row["rise"] == pytest.approx(own["rise"])
    mean = read["summary"].query("rate == 0.5 and plan == 'frequency'").iloc[0]
    both = read["against-random"].query("rate == 0.5 and plan == 'frequency'")
    assert mean["gain"] == pytest.approx(both["gain"].mean()) and mean["languages"] == 2
    assert set(real.query("plan == 'frequency'")["evaluated"]) == {"en", "de"}
    sliced = read["sliced"].query("plan == 'frequency-0.5' and measure == 'parameters'").iloc[0]
    assert sliced["ratio"] == pytest.approx(mean["kept_parameters"], abs=2e-3)
    found = lsn.NeuronSet.load(written / "neurons" / "frequency-0.5")
    assert found.notes["rate"] == 0.5 and found["de"].counts().item() == own["neurons"] == 48


def test_the_lead_says_what_the_tables_say():
    rows = [
        {"rate": rate, "plan": plan, "rise": rise, "others_rise": 1.0, "languages": 4, "clearly_better": better,
         "clearly_worse": worse}
        for rate in (0.1, 0.2)
        for plan, rise, better, worse in (
            ("frequency", 0.5, 3, 1), ("inverted frequency", 2.0, 0, 4), ("wanda", 0.2, 4, 0)
        )
    ]  # fmt: skip
    said = lead({"summary": pd.DataFrame(rows)})
    assert "for 6 of 8 pairs of language and rate, clearly more for 2; at 20% the loss rises by 0.50" in said
    assert "costs clearly more than random for 8 of 8" in said and "Cheapest: wanda at 10%, wanda at 20%." in said


def test_settings_that_cannot_be_meant(script, load):
    for settings, words in (
        ({"rates": ()}, "expected one or more rates"),
        ({"rates": (0.2, 1.0)}, "and shares in (0, 1)"),
        ({"seeds": 1}, "expected three or more"),
        ({"cut": "xx"}, "no text for cut='xx'"),
    ):
        assert words in refused(script, **settings)


def test_a_study_without_a_source_cuts_nothing(load):
    texts = {label: [f"{i} {SENTENCES[place]}" for i in range(40)] for place, label in enumerate(("en", "de"))}
    settings = lsn.studies.PruneSettings(rates=(0.5,), size=8, length=32, max_tokens=100, evaluation_tokens=100)
    study = lsn.studies.prune_study(load("gpt2", "bridge"), texts, settings, progress=False)
    assert "sliced" not in study.tables and "Cut out" not in {each.title for each in page_of(study).sections}
