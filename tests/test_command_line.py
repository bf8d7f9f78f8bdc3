"""The command `lsn-lens` and the scripts: settings, refusals, exit codes, and what is written."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pandas as pd
import pytest
import torch
from conftest import experiment
from settings_read import read_by_page, reads

import lsn_lens as lsn
from lsn_lens.command import COMMANDS, main
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.program import parser
from lsn_lens.command.settings import CompareConfig, DeactivateConfig, DemoConfig, FindConfig, GivenSet
from lsn_lens.labels import COLUMNS
from lsn_lens.model import loading
from lsn_lens.neurons import IMPORTERS
from lsn_lens.studies import auditing
from lsn_lens.studies.experiment import bracketed, run_cli

SCRIPTS = (
    "audit", "compare_methods", "finetune_neurons", "ground_truth", "growth", "prune", "real_model", "sharing", "steer",
    "text_dependence", "translate", "workflow", "working_language",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
SLOW = ("torch", "transformers", "transformer_lens", "matplotlib", "plotly", "pandas", "sklearn", "datasets")
LABELS = ["en", "fr"]
SMALL = ("--languages", ",".join(LABELS), "--device", "cpu", "--length", "32", "--max_tokens", "320")
DIMENSIONS = ("find", "--methods", "language_dimensions")
FIND = ("find", *SMALL, "--methods", "lape,lap", "--parameters.lape.rate", "0.02")


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each != "ground_truth"])
def test_no_and_on_are_languages(script, tmp_path):
    config = experiment(script).Config
    assert run_cli(config, args=[]) == config()
    (tmp_path / "settings.yaml").write_text("languages: [en, no, on]\n")
    for arguments in (
        ["--languages", "[en,no,on]"],
        ["--languages=en,no,on"],
        ["--languages", "[en,'no',\"on\"]"],
        ["--languages", "en,no,on"],
        ["--config", str(tmp_path / "settings.yaml")],
    ):
        assert run_cli(config, args=arguments) == config(languages=("en", "no", "on"))


def test_other_settings_are_read_as_before():
    config = experiment("compare_methods").Config
    made = run_cli(config, args=["--rate", "1e-3", "--model", "a,b", "--methods", "[lape,lave]", "--max_tokens", "100"])
    assert made == config(rate=1e-3, model="a,b", methods=("lape", "lave"), max_tokens=100)


def test_the_beginning_of_an_option_takes_a_list_too():
    for option in ("--method", "--language"):
        assert bracketed(FindConfig, [option, "en,no"]) == [option, "[en,no]"]
    assert bracketed(FindConfig, ["--m", "a,b", "--model", "c,d"]) == ["--m", "a,b", "--model", "c,d"]


def test_the_terminal_shows_whole_cells():
    words = " ".join(["much to say"] * 20)
    lines = Outcome("", {"one": pd.DataFrame({"warnings": [words], "p": [0.5]})}).text().splitlines()
    assert max(map(len, lines)) < 60 and words.split() == [each for line in lines[2:] for each in line[:42].split()]


def test_files_are_one_or_several():
    config = experiment("audit").Config
    for given, read in (("a.pth", ["a.pth"]), ("a/en.csv,fr.csv", ["a/en.csv", "fr.csv"]), ("[]", [])):
        for arguments in (["--sets", given], [f"--sets={given}"]):
            assert run_cli(config, args=arguments) == config(sets=tuple(map(Path, read)))


def test_the_demo_is_that_of_make():
    (line,) = [each for each in (ROOT / "Makefile").read_text().splitlines() if each.endswith("--out runs/demo")]
    made = run_cli(CompareConfig, args=line.split()[1:])
    assert {each.name: getattr(made, each.name) for each in fields(made)} == vars(DemoConfig())


def test_help_imports_nothing_slow():
    for arguments in (["--help"], ["find", "--help"]):
        code = (
            "import sys\nfrom lsn_lens.command.program import main\n"
            f"try:\n    main({arguments})\nexcept SystemExit as end:\n    code = end.code\n"
            f"sys.exit(code or ', '.join(each for each in {SLOW} if each in sys.modules) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "") and "find" in done.stdout


def said(capsys, *arguments):
    """The JSON object that a subcommand writes, and what it says without --json."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module", autouse=True)
def one_model():
    """The embedded model is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", cache(loading.load_model))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `find` wrote."""
    out = tmp_path_factory.mktemp("command") / "found"
    assert main([*FIND, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def french(folder):
    """The units of one language, as a file."""
    lsn.NeuronSet.load(folder / "neurons/lape")["fr"].save(folder.parent / "fr.json")
    return str(folder.parent / "fr.json")


def test_find_writes_what_detect_finds(folder, tmp_path, capsys):
    found = lsn.detect(lsn.load_run(folder / "run"), "lape", rate=0.02)
    assert found == lsn.NeuronSet.load(folder / "neurons" / "lape") == lsn.NeuronSet.load(folder / "neurons/lape.json")
    table = pd.read_csv(folder / "neurons.csv").query("method == 'lape'")
    assert len(table) == found.counts().sum() and table["score"].notna().all()
    arguments = [*FIND, "--out", str(folder)]
    told = said(capsys, *arguments)
    assert told["counts"][0] == {"method": "lape", "units": len(found), **found.counts().to_dict()}
    assert set(told["counts"][0]) - set(LABELS) <= COLUMNS
    assert told["command"] == "find" and Path(told["paths"]["table"]) == (folder / "neurons.csv").resolve()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    used = lsn.load_run(folder / "run").to_frame()["tokens_used"]
    assert f"lape finds {len(found):,} different units" in shown and "Fewer than 2,000 are little" in shown
    assert f"Read: {used.min():,} tokens per language" in shown
    table.to_csv(tmp_path / "lape.csv", index=False)
    again = lsn.import_set(tmp_path / "lape.csv", {"mlp": (6, 768)}, languages=found.languages)
    assert again.masks["mlp"].equal(found.masks["mlp"])


def test_deactivate_measures_the_set(french, tmp_path, capsys):
    arguments = ["deactivate", *SMALL, "--sets", french, "--out", str(tmp_path), "--evaluation_tokens", "256"]
    told = said(capsys, *arguments, "--seeds", "19")
    model, corpora = loading.load_model("demo", device="cpu"), lsn.load_corpora("demo", LABELS)
    found = lsn.NeuronSet.load(french)
    matrix = lsn.perplexity_matrix(model, corpora, found, layout=lsn.Layout(length=32, max_tokens=256), progress=False)
    for row in told["matrix"]:
        assert set(row) - set(LABELS) <= COLUMNS
        expected = matrix.loc[row["units of"]].to_dict()
        assert {label: row[label] for label in expected} == pytest.approx(expected, abs=1e-5)
    for row in told["effects"]:
        assert row["own_rise"] == pytest.approx(matrix.loc[row["language"], row["language"]], abs=1e-5)
        assert row["own_rise_low"] <= row["own_rise_high"] and 1 / 20 <= row["p"] <= 1
    assert (tmp_path / "figures/matrix.png").is_file()
    assert len(pd.read_csv(tmp_path / "tables/random_points.csv")) == 19


@pytest.mark.parametrize("kind", ["resample", "half"])
def test_deactivate_has_every_kind_of_ablation(kind, french, tmp_path, capsys):
    arguments = ["deactivate", *SMALL, "--sets", french, "--out", str(tmp_path), "--evaluation_tokens", "128"]
    told = said(capsys, *arguments, "--seeds", "19", "--action", kind, "--tokens", "64", "--seed", "1")
    model, corpora = loading.load_model("demo", device="cpu"), lsn.load_corpora("demo", LABELS)
    other = lsn.interventions.resample(model, corpora["en"].find, ["mlp"], tokens=64, seed=1, progress=False)
    action = {"resample": other, "half": lsn.scale(0.5)}[kind]
    layout = lsn.Layout(length=32, max_tokens=128)
    matrix = lsn.perplexity_matrix(
        model, corpora, lsn.NeuronSet.load(french), action=action, layout=layout, progress=False
    )
    rows = {row["units of"]: {label: row[label] for label in LABELS} for row in told["matrix"]}
    assert rows["fr"] == pytest.approx(matrix.loc["fr"].to_dict(), abs=1e-5)


def test_the_actions_of_deactivate_are_the_kinds_of_ablation(folder):
    model, run = loading.load_model("demo", device="cpu"), lsn.load_run(folder / "run")
    kinds = lsn.controls.kinds_of_ablation(
        model, lsn.load_corpora("demo", LABELS), run, lsn.NeuronSet.load(folder / "neurons/lape")
    )
    assert list(kinds) == list(get_args(get_type_hints(DeactivateConfig)["action"]))


def test_inspect_writes_pages(folder, tmp_path, capsys):
    few = ("--random", "1", "--evaluation_tokens", "64", "--out", str(tmp_path))
    told = said(capsys, "inspect", *SMALL, "--unit", "mlp.5.12", *few)
    assert [row["language"] for row in told["effects"]] == LABELS
    assert "Unit 12 of layer 5" in Path(told["paths"]["page"]).read_text()
    told = said(capsys, "inspect", *SMALL, "--sets", str(folder / "neurons/lape.json"), "--units", "1", *few)
    assert len(told["units"]) == 1 and Path(told["paths"]["pages"]).is_file()


def test_steer_continues_a_prompt(folder, tmp_path, capsys):
    some = (*SMALL[:4], "--max_tokens", "320", "--tokens", "4", "--strength", "4", "--out", str(tmp_path))
    for more in ((), ("--sets", str(folder / "neurons/lape.safetensors"))):
        told = said(capsys, "steer", "--prompt", "The fish", "--to", "fr", *some, *more)
        assert len(told["texts"]) == 3 and told["texts"][0]["intervention"] == "none"
        assert told["texts"][1]["text"] != told["texts"][0]["text"]


def test_audit_and_compare_write_their_reports(french, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(auditing, "CHECKS", {"activity": auditing.CHECKS["activity"]})  # tests/test_audit.py has all
    few = ("--evaluation_tokens", "64", "--out", str(tmp_path / "audit"))
    told = said(
        capsys, "audit", *SMALL, "--sets", french, *few, "--seeds", "19", "--side_seeds",
        "1", "--prompts", "1", "--tokens", "2",
    )  # fmt: skip
    assert Path(told["paths"]["report"]).is_file() and len(told["effects"]) == 1 and told["found"]
    told = said(
        capsys, "compare", *SMALL, "--methods", "lape,lap", "--at_least", "1", "--control_seeds", "2",
        *few[:3], str(tmp_path / "compare"), "--control_tokens", "64", "--replicates", "0", "--permutations", "0",
        "--sizes", "[]",
    )  # fmt: skip
    assert {row["method"] for row in told["ranking"]} == {"lape", "lap"} and "passes for" in told["found"]


def test_plan_says_bytes(capsys):
    told = said(capsys, "plan", "--languages", "[en,fr]")
    planned = lsn.plan_run("demo", ["lape"], languages=2, layout=lsn.Layout("auto"))
    assert {row["part"]: row["memory"] for row in told["bytes"]} == planned["memory"].to_dict()


def test_status_and_merge_count_shards(folder, tmp_path, capsys):
    whole = said(capsys, "status", str(folder))
    assert {"lape", "lap", "lave"} - {row["method"] for row in whole["methods"]} == {"lave"}
    halves, run = [tmp_path / "a", tmp_path / "b"], lsn.load_run(folder / "run")
    for half, lost in zip(halves, ("fr-", "en-"), strict=True):
        shutil.copytree(folder / "run", half)
        for path in (half / "shards").glob(f"{lost}*"):
            path.unlink()
    shards = {row["language"]: row["shards"] for row in whole["languages"]}
    told = said(capsys, "status", str(halves[0]))
    assert {row["language"]: row["missing"] for row in told["languages"]} == {"en": 0, "fr": shards["fr"]}
    told = said(capsys, "merge", "--runs", ",".join(map(str, halves)), "--out", str(tmp_path / "both"))
    assert sum(row["missing"] for row in told["languages"]) == 0
    merged = lsn.load_run(tmp_path / "both").statistics
    assert all(merged.sums[key].equal(each) for key, each in run.statistics.sums.items())


def test_runs_of_different_methods_merge_into_one(tmp_path):
    model, corpora = loading.load_model("demo", device="cpu"), lsn.load_corpora("demo", ["en", "fr"])
    how = {"layout": lsn.Layout("documents", max_tokens=200, shards=2), "progress": False}
    for name in ("lape", "plnd"):
        lsn.collect(model, corpora, [name], tmp_path / name, **how)
    merged = lsn.collection.merge_runs([tmp_path / "lape", tmp_path / "plnd"], tmp_path / "both")
    assert lsn.detect(merged, "plnd") == lsn.detect(lsn.load_run(tmp_path / "plnd"), "plnd")
    assert lsn.detect(merged, "lape") == lsn.detect(lsn.load_run(tmp_path / "lape"), "lape")
    again = lsn.collect(model, corpora, ["lape", "plnd"], tmp_path / "both", **how)
    assert again.settings == merged.settings
    other = lsn.collect(model, corpora, ["lape"], tmp_path / "other", **{**how, "layout": lsn.Layout(max_tokens=200)})
    with pytest.raises(ValueError, match="no parts of one run: layout kind was 'documents', now 'blocks'"):
        lsn.collection.merge_runs([tmp_path / "lape", other.path], tmp_path / "new")


def test_merge_takes_output_folders_and_is_whole_or_not_at_all(folder, tmp_path, capsys, monkeypatch):
    outputs = [tmp_path / "a", tmp_path / "b"]
    for each in outputs:
        shutil.copytree(folder / "run", each / "run")
    runs = ",".join(map(str, outputs))
    said(capsys, "merge", "--runs", runs, "--out", str(tmp_path / "both"))
    assert lsn.load_run(tmp_path / "both").statistics.tokens.equal(lsn.load_run(folder / "run").statistics.tokens)
    module, copied = sys.modules["lsn_lens.collection.merging"], []

    def stopping(source, to):
        copied.append(to)
        if len(copied) == 3:
            raise KeyboardInterrupt
        Path(to).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(module.shutil, "copyfile", stopping)
    assert main(["merge", "--runs", runs, "--out", str(tmp_path / "new")]) == 130
    assert len(copied) == 3 and not (tmp_path / "new").exists()
    monkeypatch.undo()
    capsys.readouterr()
    told = said(capsys, "merge", "--runs", runs, "--out", str(tmp_path / "new"))
    assert sum(row["missing"] for row in told["languages"]) == 0 and not list(tmp_path.glob("*.partial"))


def test_a_run_without_its_constants_or_with_half_a_description_is_named(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "constants.safetensors").unlink()
    assert "constants.safetensors is missing or damaged" in said(capsys, "status", str(run))["found"]
    with pytest.raises(SystemExit, match=r"has constants.safetensors whole, .* the command that began the run makes"):
        main(["merge", "--runs", f"{run},{run}", "--out", str(tmp_path / "new")])
    assert not list(tmp_path.glob("new*"))
    told = said(capsys, "merge", "--runs", f"{run},{folder}", "--out", str(tmp_path / "new"))
    assert told["found"].startswith("Complete")
    (run / "run.json").write_bytes((run / "run.json").read_bytes()[:300])
    with pytest.raises(SystemExit, match=r"run.json is cut off or no JSON"):
        main(["status", str(run)])


def test_export_writes_every_format(folder, tmp_path, capsys):
    found = lsn.NeuronSet.load(folder / "neurons/lape")
    for name in ("set.csv", "set.json", "set.safetensors", "set.pth", "set.py", "checkpoint"):
        arguments = (
            "export",
            "--backend",
            "bridge",
            "--sets",
            str(folder / "neurons/lape.json"),
            "--languages",
            "[fr]",
        )
        told = said(capsys, *arguments, "--out", str(tmp_path / name))
        assert told["counts"] == [{"language": "fr", "units": int(found.counts()["fr"])}] and (tmp_path / name).exists()
    assert lsn.NeuronSet.load(tmp_path / "set") == found["fr"]
    assert (
        len(json.loads((tmp_path / "set.py").read_text().split('"""')[3])[0]["units"])
        == found["fr"].units("mlp")[0].sum()
    )
    assert json.loads((tmp_path / "checkpoint/lsn_lens.json").read_text())["units"]["mlp"]["off"] == len(found["fr"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["find", "--methods", "lapse"], "unknown methods ['lapse']"),
        (["find", "--parameters.lape.rat", "1"], "lape has no parameter 'rat'"),
        (["find", "--languages", "[en,xx]"], "no text for ['xx']"),
        (["find", "--corpus", "/nowhere"], "neither a folder nor one of"),
        (["find", "--out", "."], "no subcommand wrote there: give a new folder"),
        (["compare", "--controls", "[x]"], "unknown controls ['x']"),
        (["audit", "--sets", "/nowhere.pth"], "/nowhere.pth: no such file"),
        (["deactivate", "--seeds", "3"], "seeds=3: expected 19 or more"),
        (["deactivate", "--sets", "file.txt", "--format", "x"], "--format x: expected one of"),
        (["inspect"], "give either --unit mlp.5.12 or --sets FILE"),
        (["inspect", "--unit", "mlp.5"], "expected basis, layer and unit, as mlp.5.12"),
        (["audit", "--sets", "file.txt", "--format", "lape"], "name them in the file's order (languages=, --labels)"),
        (["audit", "--sets", "units.pth"], "name the format (format=, --format)"),
        (["find", "--languages", "en,xx"], "demo has no text for ['xx']"),
        (["steer", "--prompt", "The fish"], "give a text to continue and the language"),
        (["steer", "--prompt", "The fish", "--to", "xx"], "--to xx: the corpus has ['de', 'en'"),
        (["status", "."], "is not the folder of a run"),
        (["merge", "--runs", "a,b"], "a is not the folder of a run"),
        (
            ["export", "--sets", "units.pth", "--format", "clas_bench", "--out", "new.xyz"],
            "expected a file that ends in one of",
        ),
        (
            ["export", "--sets", "units.pth", "--format", "clas_bench", "--out", "file.txt"],
            "expected a file that ends in one of",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_the_model_is_loaded(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    torch.save([[torch.tensor([1])]], "units.pth")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert words in end.value.code and "\n" not in end.value.code
    assert {each.name for each in tmp_path.iterdir()} == {"file.txt", "units.pth"}


@pytest.fixture(scope="module")
def misfits(tmp_path_factory):
    """A set of another model, one with a unit too many, and one of other weights beside a run, by name."""
    out = tmp_path_factory.mktemp("misfits")
    lsn.NeuronSet.from_dict({"fr": [(1, 3)]}, (3, 64)).save(out / "small.json")
    (out / "beyond.csv").write_text("language,layer,unit\nfr,5,768\n")
    (out / "deep.csv").write_text("language,layer,unit\nfr,6,0\n")
    lsn.NeuronSet.from_dict({"fr": [(1, 3)], "xx": []}, (6, 768)).save(out / "xx.json")
    torch.save([[torch.tensor([1])] * 5] * 32, out / "five.pth")
    mine = lsn.NeuronSet.from_dict({"fr": [(1, 3)]}, (6, 768))
    replace(mine, origin={"model": "other", "fingerprint": "0" * 32}).save(out / "other.json")
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deactivate", "--sets", "small.json"], "basis 'mlp' has [3, 64], the model (6, 768)"),
        (["audit", "--sets", "small.json"], "basis 'mlp' has [3, 64], the model (6, 768)"),
        (["inspect", "--sets", "beyond.csv"], "unit [768], expected 0 to 767"),
        (["export", "--sets", "deep.csv", "--out", "new.json"], "layer [6], expected 0 to 5"),
        (["deactivate", "--sets", "five.pth", "--format", "clas_bench"], "has 5 layers, the model 6"),
        (["inspect", "--unit", "mlp.6.0"], "no unit 0 in layer 6 on basis 'mlp': the model has layers 0 to 5"),
        (["inspect", "--unit", "q.0.192"], "each with units 0 to 191"),
        (["inspect", "--unit", "mpl.0.0"], "no basis 'mpl'; the bases are ['mlp'"),
        (["deactivate", "--sets", "xx.json"], "no text for ['xx'] of the set in xx.json; the corpus has ['de', 'en'"),
        (["audit", "--sets", "xx.json", "--languages", "en,xx"], "demo has no text for ['xx']"),
        (["export", "--sets", "xx.json", "--languages", "en", "--out", "new.json"], "xx.json has no ['en']"),
        (["steer", "--prompt", "The", "--to", "de", "--sets", "xx.json"], "xx.json has no ['de']; its languages are"),
        (["deactivate", "--sets", "other.json", "--out", "found"], "other.json is from other (weights 00000000)"),
        (["steer", "--layer", "99"], "layer=99: the model has the layers 0 to 5"),
        (["steer", "--layer", "-7"], "layer=-7: the model has the layers 0 to 5"),
        (["steer", "--layer", "6", "--prompt", "The", "--to", "de"], "layer=6: the model has the layers 0 to 5"),
        ([*DIMENSIONS, "--parameters.language_dimensions.layer", "6"], "layer 6: the model has the layers 0 to 5"),
        (
            [*DIMENSIONS, "--parameters.language_dimensions", "{mode: monolingual, anchor_layer: 9}"],
            "layer 9: the model has the layers 0 to 5",
        ),
        (["deactivate"], "no set was given: name its file"),
        (["audit", "--model", "nowhere", "--sets", "small.json"], "'nowhere' could not be loaded"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_loaded(
    arguments, words, misfits, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.chdir(tmp_path)
    for path in misfits.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copytree(folder / "run", tmp_path / "found/run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert words in end.value.code and "\n" not in end.value.code
    assert sorted(tmp_path.rglob("*")) == before


def options_of(command):
    """The options in the help of a subcommand: name -> the word for its value."""
    whole = parser()
    text = next(each for each in whole._actions if each.dest == "subcommand").choices[command].format_help()
    assert "<class" not in text and "Optional[" not in text and "null)" not in text and "(type:" not in text
    return dict(re.findall(r"^  --(\w+) (\S.*?)(?:  |$)", text, re.M))


def test_help_says_the_type_of_every_option_in_a_word():
    shown = options_of("find")
    for name, word in {
        "model": "TEXT", "out": "PATH", "languages": "TEXT,...", "length": "INT",
        "dtype": "{float32,bfloat16,float16}", "kind": "{blocks,documents}", "parameters": "{NAME: {NAME: VALUE}}",
    }.items():  # fmt: skip
        assert shown[name] == word
    for name, command in COMMANDS.items():
        given, hints = options_of(name), get_type_hints(command.settings)
        assert set(hints) - set(given) == ({"run"} if name == "status" else set())
    shown = options_of("compare")
    assert shown["png"] == "{true,false}" and shown["sizes"] == "FLOAT|INT,..."
    assert options_of("deactivate")["sets"] == "PATH,..."


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each != "ground_truth"])
def test_the_help_of_scripts_says_types_in_words(script, capsys):
    with pytest.raises(SystemExit):
        run_cli(experiment(script).Config, args=["--help"])
    shown = capsys.readouterr().out
    assert (
        "--out PATH" in shown
        and not re.search(r"--\w+ VALUE", shown)
        and "<class" not in shown
        and "(type:" not in shown
    )


def test_help_names_every_format():
    (line,) = [each for each in inspect.getdoc(GivenSet).splitlines() if each.strip().startswith("format:")]
    assert re.findall(r"\w+", line.split(":")[1].split(";")[0].replace(" or ", ", ")) == list(IMPORTERS)


@pytest.mark.parametrize("arguments", [["fnid"], [], ["find", "--metods", "[lape]"], ["find", "--length", "long"]])
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "lsn-lens" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_subcommand_is_read(name):
    kind, run = COMMANDS[name].settings, COMMANDS[name].run
    shown = {each.name for each in fields(kind)}
    assert shown - reads(run, 0, kind) - read_by_page(kind) <= {"processes"}
    assert ("processes" in shown) == (name not in ("plan", "status", "merge", "export"))  # who shares work


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_a_script_is_read(script):
    module = experiment(script)
    kind = module.Config
    shown = {each.name for each in fields(kind) if each.init}
    known = set.union(*(reads(each, 0, kind) for each in (module.prepare, module.report)))
    assert shown - known - read_by_page(kind) <= {"processes"}
    assert ("processes" in shown) == (script != "working_language")


@pytest.mark.parametrize("name", [each for each in COMMANDS if each not in ("status", "merge")])
def test_settings_can_be_written_and_read_again(name, tmp_path, capsys, monkeypatch):
    seen, command = [], COMMANDS[name]
    stub = replace(command, run=lambda given: seen.append(given) or Outcome("fine"))
    monkeypatch.setattr("lsn_lens.command.program.COMMANDS", {name: stub})
    more = {"inspect": ["--unit", "mlp.5.12"]}.get(name, [])
    with pytest.raises(SystemExit):
        main([name, "--model", "other", *more, "--print_config"])
    (tmp_path / "settings.yaml").write_text(capsys.readouterr().out)
    for arguments in ([name, "--model", "other", *more], [name, "--config", str(tmp_path / "settings.yaml")]):
        assert main(arguments) == 0
    assert seen[0] == seen[1] and seen[0].model == "other"
