"""The study of sharing and its script, on a tiny model."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from conftest import SENTENCES, experiment, refused

import lsn_lens as lsn
from lsn_lens.studies.sharing import claims

pytestmark = pytest.mark.filterwarnings("ignore:.*items are too few")


@pytest.fixture(scope="module")
def script():
    return experiment("sharing")


@pytest.fixture(scope="module")
def written(script, tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    for place, label in enumerate(("en", "de")):
        lines = [f"{number} {SENTENCES[place][: 20 + number]}" for number in range(16)]
        folder.joinpath(f"{label}.txt").write_text("\n".join(lines))
    name = str(tiny_model_folder("llama"))
    config = script.Config(
        model=name, sibling=name, corpus=str(folder), files="*.txt", items=5, task_items=5, choices=2, seeds=1,
        share=0.2, factors=(0.5, 1.5), task_factors=(1.5,), halvings=2, out=folder / "out", device="cpu",
    )  # fmt: skip
    return script.report(config, *script.prepare(config)).parent


def test_the_folder_is_whole_and_its_tables_agree(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    tables = ("profile", "activity", "contribution", "off", "raised", "task-off", "task-raised", "claims", "siblings",
              "agreement", "transitions", "changed-units", "text")  # fmt: skip
    assert {"report.html", "report.md", "provenance.json"} <= names
    assert {f"tables/{name}.parquet" for name in tables} <= names
    page = (written / "report.html").read_text()
    assert all(f'<div id="{name}"' in page for name in ("types", "activity", "off-0", "off-1", "raised", "task-off"))
    assert json.loads((written / "provenance.json").read_text())["settings"]["share"] == 0.2
    read = {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}
    assert set(read["off"]["neurons"]) == {"whole type", "20% of a layer"}
    few = read["off"].query("neurons == '20% of a layer' and type == 'non-activated'")["units"]
    assert few.le(2 * round(0.2 * 48)).all()
    row = (
        read["off"]
        .query("neurons == 'whole type' and type == 'all-shared' and control == 'contribution' and language == '(all)'")
        .iloc[0]
    )
    told = read["claims"].iloc[1]
    assert (told["change"], told["low"], told["high"]) == (row["excess"], row["excess_low"], row["excess_high"])
    assert set(read["raised"]["action"]) == {"scale 0.5", "scale 1.5"} and set(read["raised"]["type"]) == {"all-shared"}
    assert not any("0.5" in each for each in read["claims"]["tested"])  # lowering is no claim
    assert (read["agreement"]["same_items"] == 1).all() and not len(read["changed-units"])


def test_a_claim_holds_only_where_its_interval_does():
    def rows(change, low, high, **more):
        each = {"change": change, "low": low, "high": high, "excess": -change, "excess_low": -high,
                "excess_high": -low, "control": "contribution", "type": "all-shared", "language": "(all)"}  # fmt: skip
        return pd.DataFrame([each | more])

    found = claims({
        "off": rows(0.3, 0.1, 0.5, neurons="whole type"),
        "raised": rows(-0.2, -0.3, -0.1, action="scale 1.5"),
        "task-off": rows(-0.1, -0.3, 0.1),
        "task-raised": rows(0.1, float("nan"), float("nan"), action="scale 2"),
    })  # fmt: skip
    assert found["verdict"].tolist() == [
        "held", "did not hold", "undecided", "undecided", "held", "did not hold", "undecided", "undecided"
    ]  # fmt: skip


def test_settings_and_text_that_cannot_be_meant(script, load):
    for settings, words in (
        ({"items": 3}, "expected 5 items or more"),
        ({"factors": (float("inf"),)}, "finite factors"),
        ({"share": 2.0}, "a share in (0, 1]"),
    ):
        assert words in refused(script, **settings)
    texts = {label: [f"{i} {SENTENCES[0]}" for i in range(8)] for label in ("en", "de")}
    with pytest.raises(lsn.DoesNotApply, match=r"takes 40 \+ 20 documents of each language, and there are \{'en': 8"):
        lsn.studies.sharing_study(load("llama"), texts, progress=False)
    texts["en"][3], texts["de"][6] = " ", " "
    with pytest.raises(lsn.DoesNotApply, match=r"document 3 is not the same record.*\{'en': 4, 'de': 3\}"):
        lsn.studies.sharing_study(load("llama"), texts, progress=False)


def test_text_that_does_not_look_parallel_is_taken_on_request(load):
    ends = ("Then it rains.", "So it goes on.", "They went home.", "All is well.", "It is late.")
    texts = {
        label: [f"{place} {'b c ' * length}. {ends[place % 5]}" for place, length in enumerate(lengths)]
        for label, lengths in {"en": range(13), "de": range(12, -1, -1)}.items()
    }
    texts["en"][9] = " "  # left out in one language alone
    texts["de"].pop()
    few = {"items": 7, "task_items": 5, "seeds": 1, "halvings": 2, "factors": (2.0,), "task_factors": (2.0,)}
    model, settings = load("llama"), lsn.studies.SharingSettings(**few)
    with pytest.raises(lsn.DoesNotApply, match=r"document 9 is not the same.*or give check_parallel=False"):
        lsn.studies.sharing_study(model, texts, settings, progress=False)
    texts = {label: [text for text in each if text.strip()][:12] for label, each in texts.items()}
    with pytest.raises(lsn.DoesNotApply, match=r"7 items do not look parallel.*or give check_parallel=False"):
        lsn.studies.sharing_study(model, texts, settings, progress=False)
    settings = replace(settings, check_parallel=False)
    study = lsn.studies.sharing_study(model, texts, settings, model, progress=False)
    assert study.settings["check_parallel"] is False and {"task-raised", "siblings"} <= set(study.tables)
