"""Languages that YAML takes for truth values, on the command line and in a file of settings."""

import pytest
from conftest import experiment

from lsn_lens.studies.experiment import run_cli

SCRIPTS = (
    "audit", "compare_methods", "finetune_neurons", "ground_truth", "growth", "prune", "real_model", "sharing", "steer",
    "text_dependence", "translate", "workflow", "working_language",
)  # fmt: skip


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each != "ground_truth"])
def test_no_and_on_are_languages(script, tmp_path):
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


def test_other_settings_are_read_as_before():
    config = experiment("compare_methods").Config
    made = run_cli(config, args=["--rate", "1e-3", "--model", "a,b", "--methods", "[lape,lave]", "--max_tokens", "100"])
    assert made == config(rate=1e-3, model="a,b", methods=("lape", "lave"), max_tokens=100)
