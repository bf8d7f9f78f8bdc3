import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import experiment, refused

import lsn_lens as lsn
from lsn_lens.studies.pages.working_language import bias, curves


@pytest.fixture(scope="module")
def script():
    return experiment("working_language")


@pytest.fixture(scope="module")
def written(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("working-language")
    units = torch.rand(3, 6, 768, generator=torch.Generator().manual_seed(0)) < 0.2
    lsn.NeuronSet(("en", "fr", "ja"), {"mlp": units}, "a fifth of all").save(folder / "found.safetensors")
    config = script.Config(
        languages=("fr", "en", "ja"), neurons=folder / "found.safetensors", max_tokens=1500, evaluation_tokens=60,
        out=folder / "out", device="cpu",
    )  # fmt: skip
    return script.report(config, *script.prepare(config)).parent


def test_the_folder_is_whole(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    tables = (
        "layers",
        "coverage",
        "confusion",
        "chance",
        "scripts",
        "words",
        "words-excluded",
        "words-tokens",
        "switched",
    )
    figures = (
        "own",
        "pivot",
        "named",
        "coverage",
        "probability",
        "curve-fr",
        "words",
        "switched-found",
        "switched-random",
    )
    assert {"report.html", "report.md", "provenance.json"} <= names
    assert {f"tables/{name}.{end}" for name in tables for end in ("csv", "parquet")} <= names
    page = (written / "report.html").read_text()
    assert all(f'<div id="{name}"' in page for name in figures)
    origin = json.loads((written / "provenance.json").read_text())
    assert origin["model"]["layers"] == 6 and set(origin["corpus"]["languages"]) == {"fr", "en", "ja"}
    assert origin["corpus"]["sha256"] != origin["hold_out"]["sha256"]


def test_the_numbers_fit_together(written):
    tables = {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}
    layers, switched = tables["layers"], tables["switched"]
    assert len(layers) == 3 * 7 * 3
    assert np.allclose(layers.groupby(["text", "layer"])["share"].sum(), 1)
    own = layers[layers["text"] == layers["language"]].set_index(["text", "layer"])
    assert (own["share"].unstack()[6] > 0.6).all()  # the output speaks the language of the text
    found = switched[switched["units"] == "found"].set_index(["text", "layer"])
    assert np.allclose(found["share_before"], own.loc[found.index, "share"])
    assert (found["neurons"] > 0).all() and not np.allclose(found["share_after"], found["share_before"])
    words = tables["words"]
    assert ((words["probes"] + words["excluded"]) == 12).all()
    lead = (written / "report.md").read_text().split("**")[1]
    assert f"{own['share'].unstack()[6].mean():.0%} at the output" in lead


def test_without_probes_and_neurons(script, tmp_path):
    config = script.Config(
        languages=("en", "ja"),
        probes=None,
        max_tokens=600,
        evaluation_tokens=40,
        out=tmp_path,
        device="cpu",
        norm=False,
    )
    model, corpora, labels, *_ = script.prepare(config)
    study = lsn.studies.working_language_study(model, corpora, config, labels, progress=False)
    assert set(study.tables) == {"layers", "coverage", "confusion", "chance", "scripts"}
    assert study["layers"].attrs["norm"] is False
    titles = [section.title for section in (curves(study), bias(study))]
    assert titles == ["Language by language", "How biased the identification is"]
    assert list(curves(study).figures) == ["curve-en", "curve-ja"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"probes": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"languages": ("en",)}, "two languages"),
        ({"top_k": 0}, "top_k=0"),
        ({"ratio": 1.0}, "ratio=1.0"),
    ],
)
def test_wrong_settings_end_in_one_line(script, tmp_path, wrong, message):
    assert message in refused(script, out=tmp_path, device="cpu", **wrong)


def test_the_study_in_a_notebook(written):
    model, corpora = lsn.load_model("demo", device="cpu"), lsn.load_corpora("demo", ["fr", "en", "ja"])
    settings = lsn.studies.WorkingLanguageSettings(max_tokens=1500, evaluation_tokens=60)
    study = lsn.studies.working_language_study(model, corpora, settings, progress=False)
    before = pd.read_parquet(written / "tables" / "layers.parquet")
    pd.testing.assert_frame_equal(study["layers"], before, check_dtype=False)
    german = lsn.NeuronSet(("de",), {"mlp": torch.ones(1, 6, 768, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"the units are for \['de'\], the corpora have \['fr', 'en', 'ja'\]"):
        lsn.studies.working_language_study(model, corpora, settings, found=german)
