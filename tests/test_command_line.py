"""Languages that YAML takes for truth values, on the command line and in a file of settings."""

import sys
from pathlib import Path

import pytest
from conftest import experiment

SCRIPTS = ("compare_methods", "ground_truth", "steer", "workflow", "working_language")


@pytest.fixture
def run_cli(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    yield __import__("command_line").run_cli
    sys.modules.pop("command_line", None)


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each != "ground_truth"])
def test_no_and_on_are_languages(script, run_cli, tmp_path):
    config = experiment(script).Config
    assert run_cli(config, args=[]) == config()
    (tmp_path / "settings.yaml").write_text("languages: [en, no, on]\n")
    for arguments in (
        ["--languages", "[en,no,on]"],
        ["--languages=en,no,on"],
        ["--languages", "[en,'no',\"on\"]"],
        ["--config", str(tmp_path / "settings.yaml")],
    ):
        assert run_cli(config, args=arguments) == config(languages=("en", "no", "on"))


def test_other_settings_are_read_as_before(run_cli):
    config = experiment("compare_methods").Config
    made = run_cli(config, args=["--rate", "1e-3", "--model", "a,b", "--methods", "[lape,lave]", "--max_tokens", "100"])
    assert made == config(rate=1e-3, model="a,b", methods=("lape", "lave"), max_tokens=100)
