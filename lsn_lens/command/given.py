"""What subcommands are given: text, a set's files, an output folder. Refusals come before the model is loaded."""

from pathlib import Path
from typing import Any

from lsn_lens.command.settings import Cut, GivenSet
from lsn_lens.model.structure import Model
from lsn_lens.neurons.importing import IMPORTERS, NAMELESS, WITHOUT_LABELS, format_of, import_set
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.studies.experiment import Settings, load_text
from lsn_lens.text.plan import Layout

OURS = frozenset({
    "report.html", "report.md", "plotly.min.js", "provenance.json", "tables", "neurons", "figures", "run",
    "neurons.csv", "pages", "texts.csv", "run.json",
})  # fmt: skip


def texts(settings: Settings) -> Any:
    """The corpora, after the checks of the output folder and of the set's files.

    Raises:
        FileExistsError: The output folder has something else.
        FileNotFoundError: A missing file of the set.
        ValueError: An unknown format, or text that `load_corpora` refuses.
    """
    check_out(settings.out)
    if isinstance(settings, GivenSet):
        check_set(settings)
    return load_text(settings)


def check_out(folder: Path) -> None:
    """Require a new or empty folder, or one that a subcommand wrote into.

    Raises:
        FileExistsError: A file, or a folder with anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out {folder} is a file: give a folder.")
    strange = sorted({each.name for each in folder.iterdir()} - OURS) if folder.is_dir() else []
    if strange:
        raise FileExistsError(
            f"--out {folder} holds {', '.join(strange[:3])}, which no subcommand wrote there: give a new folder."
        )


def check_set(settings: GivenSet) -> None:
    """Require that the files are there, that the format is known, and the languages where the format names none.

    Raises:
        FileNotFoundError: A missing file.
        ValueError: An unknown format, one that the file does not tell, or one that names no languages.
    """
    if missing := [str(each) for each in settings.sets if not each.is_file()]:
        raise FileNotFoundError(f"--sets {', '.join(missing)}: no such file.")
    if settings.format is not None and settings.format not in IMPORTERS:
        raise ValueError(f"--format {settings.format}: expected one of {list(IMPORTERS)}.")
    if settings.sets and settings.format is None:
        format_of(settings.sets[0])
    if settings.sets and settings.labels is None and settings.format in WITHOUT_LABELS:
        raise ValueError(f"{settings.sets[0]} names no languages: {NAMELESS}")


def load_set(settings: GivenSet, model: Model) -> NeuronSet:
    """The set in the files.

    Raises:
        ValueError: No file was named, or errors of `import_set`.
    """
    if not settings.sets:
        raise ValueError("no set was given: name its file, as --sets lape.safetensors.")
    return import_set(
        settings.sets, model, format=settings.format, languages=settings.labels, count=settings.count
    )  # fmt: skip


def layout(settings: Cut) -> Layout:
    """How text becomes batches; the same whatever the methods."""
    return Layout(settings.kind or "auto", settings.length, settings.separator, settings.max_tokens)
