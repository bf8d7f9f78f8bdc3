"""Shared parts of all scripts: settings of model and text, command line, loading, and output folder.

Nothing slow is imported before it is used, so that `--help` answers at once. Imported before torch, this module lets
idle threads sleep: threads that spin take the cores from other processes, and from torch's own other pools.
"""

import html
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import DefaultHelpFormatter, auto_cli, set_loader

if TYPE_CHECKING:
    from lsn_lens.model.structure import Model
    from lsn_lens.text.documents import LanguageCorpus

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch loads OpenMP
STARTED = datetime.now(UTC)
MODE = "yaml_with_languages"
BOOLEAN, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
WORDS: dict[Any, str] = {Path: "PATH", str: "TEXT", int: "INT", float: "FLOAT", bool: "{true,false}", Any: "VALUE"}
NOTHING = re.compile(r" \(default: (null|{})\)$")  # a default that the help of the option tells in words
SAID = (ValueError, KeyError, OSError, RuntimeError, ImportError, FloatingPointError)  # their messages say what to do


@dataclass(frozen=True)
class Named:
    """The name of a model.

    Attributes:
        model: "demo", a local folder or GGUF file, or a Hub id.
    """

    model: str = "demo"


@dataclass(frozen=True)
class Weights(Named):
    """The weights of a model.

    Attributes:
        dtype: Data type of the weights.
        revision: Branch, tag or commit of a Hub model; by default its main branch.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None


@dataclass(frozen=True)
class Loaded(Weights):
    """A model that is loaded.

    Attributes:
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if there is one.
        backend: TransformerLens class of the model: HookedTransformer, TransformerBridge, or what can be had.
    """

    device: str | None = None
    backend: Literal["auto", "hooked", "bridge"] = "auto"


@dataclass(frozen=True)
class Corpus:
    """Text of languages.

    Attributes:
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        languages: Languages in order, as en,fr; by default all of the corpus.
        files: Glob that picks files of a corpus folder.
        column: The field with the text, in tables and JSON.
    """

    corpus: str = "demo"
    languages: tuple[str, ...] | None = None
    files: str = "*"
    column: str = "text"


@dataclass(frozen=True)
class Work:
    """Where results go, and who shares the work.

    Attributes:
        out: Output folder.
        processes: Processes that share the work, on a CPU under Linux.
    """

    out: Path = Path("runs")
    processes: int = 1


@dataclass(frozen=True)
class Figures:
    """The figures of a report.

    Attributes:
        png: Also draw the report's figures into figures/, a quarter of a second each.
    """

    png: bool = False


@dataclass(frozen=True)
class Collected(Work, Corpus, Loaded):
    """The settings of what runs a model on text, and writes no report."""


@dataclass(frozen=True)
class Settings(Figures, Collected):
    """The settings of a study of one model, which writes a report."""


class Loader(yaml.SafeLoader):
    """YAML 1.1 as in jsonargparse, but with only true and false as truth values, as in YAML 1.2."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != BOOLEAN]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
Loader.add_implicit_resolver(FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def read_value(text: str) -> Any:
    """A value of the command line, or a file of settings; `no` and `on` are languages."""
    return yaml.load(text, Loader=Loader)


def bracketed(what: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """The command line with brackets around lists: `--languages en,fr` as `--languages [en,fr]`."""
    every = {f"--{key}": "tuple[" in str(each.annotation) for key, each in signature(what).parameters.items()}

    def takes_list(option: str) -> bool:
        """Whether the option, or the one that its beginning stands for, takes a list."""
        meant = [option] if option in every else [key for key in every if option[2:] and key.startswith(option)]
        return len(meant) == 1 and every[meant[0]]

    made: list[str] = []
    for each in arguments:
        option, equal, value = each.partition("=") if each.startswith("--") else ("", "", each)
        if not takes_list(option) and not (made and takes_list(made[-1]) and not option):
            made.append(each)
        else:
            bare = value and not value.startswith("[") and value != "null"
            made.append(f"{option}{equal}{f'[{value}]' if bare else value}")
    return made


def word_of(kind: Any) -> str:
    """What to write for a value of a type: `PATH`, `INT`, `{float32,float16}`, and `TEXT,...` for a list."""
    origin, parts = get_origin(kind), [each for each in get_args(kind) if each not in (NoneType, ...)]
    if origin is Literal:
        return f"{{{','.join(map(str, parts))}}}"
    if origin in (Union, UnionType):
        return "|".join(map(word_of, parts))
    if origin is tuple:
        return f"{word_of(parts[0])},..."
    if origin is dict:
        return f"{{NAME: {word_of(parts[1])}}}"
    return WORDS.get(kind, "VALUE")


class Help(DefaultHelpFormatter):
    """The help of options: each with its type as the word for its value, and its default as one would write it."""

    def _get_type_str(self, action: Any) -> None:
        """Nothing: the word for the value says it."""

    def _metavar_formatter(self, action: Any, default_metavar: Any) -> Callable[[int], tuple[str, ...]]:
        kind = getattr(action, "_typehint", None) or action.type
        if kind is None or not action.option_strings:
            return super()._metavar_formatter(action, default_metavar)
        return lambda count: (word_of(kind),) * count

    def _expand_help(self, action: Any) -> str:
        default = action.default
        if isinstance(default, tuple):
            action.default = ",".join(map(str, default)) or None
        elif isinstance(default, bool):
            action.default = str(default).lower()
        try:
            return NOTHING.sub("", super()._expand_help(action))
        finally:
            action.default = default


def set_languages_loader() -> None:
    """Let parsers of `MODE` read values and files of settings by `read_value`."""
    set_loader(MODE, read_value, exceptions=(yaml.YAMLError,))


def run_cli(what: Callable[..., Any], args: Sequence[str] | None = None, **options: Any) -> Any:
    """`jsonargparse.auto_cli` of a function or a dataclass of settings."""
    set_languages_loader()
    given = bracketed(what, sys.argv[1:] if args is None else args)
    return auto_cli(what, given, as_positional=False, parser_mode=MODE, formatter_class=Help, **options)


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when the function is called."""

    def call(*given: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*given)

    return call


def load_model(settings: Loaded) -> "Model":
    """The model that the settings name."""
    import torch

    from lsn_lens.model import loading

    return loading.load_model(
        settings.model, backend=settings.backend, device=settings.device, dtype=getattr(torch, settings.dtype),
        revision=settings.revision,
    )  # fmt: skip


def load_text(settings: Corpus) -> "dict[str, LanguageCorpus]":
    """The corpora that the settings name."""
    from lsn_lens.text.corpora import load_corpora

    return load_corpora(settings.corpus, settings.languages, files=settings.files, column=settings.column)


def asked(settings: Any) -> dict[str, Any]:
    """What a script's settings say to `Study.report`: the provenance (settings, start time), and whether to draw."""
    from lsn_lens.studies.study import plain

    return {"settings": plain(settings), "started": STARTED, "png": settings.png}


def main(read: Callable[[], Any], prepare: Callable[[Any], tuple[Any, ...]], report: Callable[..., Path]) -> str:
    """Read the settings, prepare and report; errors in the settings give a message of one line.

    Args:
        read: Gives the settings, for example `lambda: run_cli(Config)`.
        prepare: From the settings to the further arguments of `report`; refuses impossible settings.
        report: Measures, writes, and returns the path of the page.

    Returns:
        The report's main finding, and the path of the report.
    """
    with ExitStack() as stack:
        with one_line():
            settings = read()
            stack.enter_context(sharing(settings))
            prepared = prepare(settings)
        path = report(settings, *prepared).resolve()
    return f"{found_in(path)}\nreport: {path}"


def sharing(settings: Any) -> AbstractContextManager[None]:
    """`lsn_lens.processes`, which loads torch, where the settings ask for several."""
    if getattr(settings, "processes", 1) == 1:
        return nullcontext()
    from lsn_lens.workers import processes

    return processes(settings.processes)


@contextmanager
def one_line() -> Iterator[None]:
    """Inside, errors that say what to do end the script with their message alone."""
    try:
        yield
    except SAID as error:
        words = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        sys.exit(f"{type(error).__name__}: {' '.join(words.split())}")


def found_in(path: Path) -> str:
    """The main finding of a report: the bold paragraph of its report.md."""
    lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    return html.unescape(next(line for line in lines if line.startswith("**")).strip("*"))
