import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import experiment, refused

import lsn_lens as lsn
from lsn_lens.command import comparing
from lsn_lens.studies.experiment import found_in

SCRIPT = Path(__file__).parents[1] / "experiments" / "compare_methods.py"


def command(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], check=False, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def script():
    return experiment("compare_methods")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {
        "out": tmp_path_factory.mktemp("compare"),
        "languages": ("en", "fr", "zh"),
        "methods": ("lape", "lap"),
        "at_least": 2,
        "control_seeds": 3,
        "control_tokens": 64,
        "replicates": 3,
        "permutations": 39,
        "length": 32,
        "max_tokens": 320,
        "evaluation_tokens": 64,
        "device": "cpu",
        "png": True,
    }


@pytest.fixture(scope="module")
def written(script, settings):
    config = script.Config(**settings)
    return script.report(config, *script.prepare(config)).parent


def test_the_folder_is_whole(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "plotly.min.js", "provenance.json", "run/run.json"} <= names
    assert {"neurons/lape.safetensors", "neurons/lap.safetensors"} <= names
    tables = (
        "ranking",
        "agreement",
        "sizes",
        "layers",
        "effects",
        "specificity",
        "control",
        "cost",
        "warnings",
        "trust",
    )
    for table in (*tables, "trust", "losses", "text", "stability", "nulls", "not_done", "neurons-lape", "neurons-lap"):
        assert {f"tables/{table}.csv", f"tables/{table}.parquet"} <= names
    for figure in ("methods", "agreement", "change-lape", "control-lap", "layers-lape", "overlap-lap", "trust-nulls"):
        assert f"figures/{figure}.png" in names


def test_the_numbers_fit_together(written):
    tables = {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}
    losses, mine = tables["losses"], tables["effects_by_language"].set_index(["method", "language"])
    assert set(losses["set"]) == {"", "lape", "lap"}
    assert len(losses) == 3 + 9 + 9  # none, and each method's sets on all languages
    found = lsn.NeuronSet.load(written / "neurons" / "lape.safetensors")
    assert mine.loc["lape", "units"].to_dict() == found.counts().to_dict()
    assert found.counts().min() >= 2
    assert len(tables["neurons-lape"]) == found.counts().sum()
    own = losses[(losses["set"] == "lape") & (losses["intervened"] == "fr") & (losses["evaluated"] == "fr")]
    assert mine.loc[("lape", "fr"), "own_rise"] == own["nll_change"].item()
    points = tables["control_points"]
    control = tables["control_by_language"].set_index(["method", "language"])
    assert points.groupby(["method", "language"]).size().to_dict() == control["seeds"].to_dict()
    assert set(control["seeds"]) <= {3, 3 + 8}  # more where none of the first reaches the rise
    passing = mine["passes"].groupby("method").sum()
    assert tables["ranking"].set_index("method")["shown"].to_dict() == passing.to_dict()
    page = (written / "report.html").read_text()
    assert tables["ranking"]["method"].iloc[0] in page
    assert set(tables["ranking"]["method"]) == {"lape", "lap"}


def test_the_terminal_says_what_the_report_finds(written):
    said = found_in(written / "report.html")
    best = pd.read_parquet(written / "tables" / "ranking.parquet").iloc[0]
    assert f"{best['method']} passes for {best['shown']} of 3 languages" in said
    assert said.startswith("At equal size, in-language minus worst other loss increase")
    assert ("A weak result: " in said) == (2 * best["shown"] <= 3)


def test_the_page_of_trust(written):
    page = (written / "report.md").read_text()
    assert "## How far to trust this" in page
    assert "Not checked for any method: changed text, kinds of ablation, side effects off target." in page
    table = pd.read_parquet(written / "tables" / "trust.parquet").set_index("method")
    assert (table["permutations"] == 39).all()
    assert (table["not_done"] == "").all()
    ranking = pd.read_parquet(written / "tables" / "ranking.parquet").set_index("method")
    assert ranking["stable_share"].to_dict() == table["stable_share"].to_dict()


def test_checks_that_settings_ask_for(script):
    run = lsn.Run({}, {"text": {"layout": {"kind": "documents"}}})
    assert comparing.checks(script.Config(replicates=0, permutations=0), run) is None
    asked = comparing.checks(script.Config(controls=("changed_text",), replicates=0), run)
    assert (asked.replicates, asked.permutations, asked.paired) == (0, 99, True)
    assert (asked.changed_text, asked.ablations, asked.off_target) == (True, False, False)
    blocks = replace(run, settings={"text": {"layout": {"kind": "blocks"}}})
    assert not comparing.checks(
        script.Config(), blocks
    ).paired  # a shard of blocks is not the same text in each language


def test_methods_have_comparable_sizes(written):
    sizes = pd.read_parquet(written / "tables" / "sizes.parquet").set_index("method")
    total = sizes.loc["lape", "units"]
    assert abs(sizes.loc["lap", ["en", "fr", "zh"]].sum() - total) <= 3  # lap divides the number by languages


def test_provenance(written):
    origin = json.loads((written / "provenance.json").read_text())
    assert origin["settings"]["languages"] == ["en", "fr", "zh"]
    assert origin["model"]["name"] == "demo"
    assert origin["corpus"]["layout"]["length"] == 32


def test_a_second_call_uses_the_run_and_other_settings_are_refused(script, settings, written):
    before = {path: path.stat().st_mtime_ns for path in (written / "run" / "shards").iterdir()}
    config = script.Config(**settings)
    script.prepare(config)
    assert before == {path: path.stat().st_mtime_ns for path in (written / "run" / "shards").iterdir()}
    with pytest.raises(ValueError, match="other settings"):
        script.prepare(script.Config(**{**settings, "max_tokens": 160}))


def test_what_cannot_work_is_refused_before_anything_slow(script, tmp_path):
    for wrong, message in (
        ({"methods": ("lapp",)}, r"unknown methods \['lapp'\]; name some of \['lape', 'lap', 'lave'"),
        ({"control_seeds": 1}, "at least two control seeds"),
        (
            {"controls": ("text",)},
            r"unknown controls \['text'\]; name some of \['changed_text', 'ablations', 'off_target'\]",
        ),
    ):
        assert re.search(message, refused(script, out=tmp_path / "none", **wrong))
    assert not (tmp_path / "none").exists()


def test_all_methods_by_default(script):
    every = comparing.names(script.Config())
    assert set(every) == set(lsn.METHODS) - {"random"}
    assert comparing.layout(script.Config()).kind == "auto"
    assert comparing.layout(script.Config(methods=("lape",))).kind == "auto"  # the same whatever the methods
    assert comparing.layout(script.Config(kind="blocks")).kind == "blocks"  # collect leaves out what it cannot have


def test_settings_from_the_command_line(tmp_path):
    shown = command("--print_config", "--methods", "[lave]", "--at_least", "3")
    assert shown.returncode == 0, shown.stderr
    assert "at_least: 3" in shown.stdout
    (tmp_path / "config.yaml").write_text(shown.stdout)
    again = command("--config", str(tmp_path / "config.yaml"), "--control_seeds", "5", "--print_config")
    assert again.stdout == shown.stdout.replace("control_seeds: 39", "control_seeds: 5")
    explained = command("--help")
    assert "Raise the rate to the smallest" in explained.stdout


def test_an_unknown_method_ends_with_one_clear_line(tmp_path):
    done = command("--methods", "[lapp]", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: unknown methods ['lapp']")
    assert "Traceback" not in done.stderr
