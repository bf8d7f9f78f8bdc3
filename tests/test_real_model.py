"""The script of `make real`, with the embedded model in place of the real one."""

import pytest
from conftest import experiment


def test_methods_are_collected_into_one_run_and_compared(tmp_path, monkeypatch):
    script = experiment("real_model")
    config = script.Config(
        model="demo", out=tmp_path, languages=("en", "zh"), methods=("lape", "diffmean"), at_least=1,
        max_tokens=64, evaluation_tokens=32, control_tokens=16, control_seeds=2, device="cpu",
    )  # fmt: skip
    model, corpora, run = script.prepare(config)
    assert run.settings["text"]["layout"]["kind"] == "documents"
    page = script.report(config, model, corpora, run)
    assert page == tmp_path / "report.html"
    said = page.read_text(encoding="utf-8")
    assert "lape" in said
    assert "diffmean" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    script.prepare(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")} == before


def test_its_model_is_what_is_fetched():
    fetched = experiment("fetch_model")
    assert experiment("real_model").Config().model == (fetched.Config().folder / fetched.GEMMA.file).as_posix()


def test_without_the_model_it_says_what_to_do(tmp_path, monkeypatch):
    script = experiment("real_model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"gemma-3-270m-q4_k_m.gguf': there is no such file"):
        script.main(script.Config, script.prepare, script.report)
