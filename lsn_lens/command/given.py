"""What subcommands are given: text, a set, an output folder. Refusals come before the model's weights are loaded."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lsn_lens.command.settings import Cut, GivenSet
from lsn_lens.model import loading
from lsn_lens.model.checkpoints import read_config, source_of
from lsn_lens.model.gguf_files import located
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import whose
from lsn_lens.neurons.importing import IMPORTERS, NAMELESS, WITHOUT_LABELS, format_of, import_set
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run, read_description
from lsn_lens.studies.experiment import Collected, Weights, load_text
from lsn_lens.text.plan import Layout

OURS = frozenset({
    "report.html", "report.md", "plotly.min.js", "provenance.json", "tables", "neurons", "figures", "run",
    "neurons.csv", "pages", "texts.csv", "run.json",
})  # fmt: skip
RUN = "run"  # the folder of the run inside the output folder


def texts(settings: Collected) -> Any:
    """The corpora, after the checks of the output folder.

    Raises:
        FileExistsError: The output folder has something else.
        ValueError: Text that `load_corpora` refuses.
    """
    check_out(settings.out)
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


def load_set(settings: Any, *, wanted: Iterable[str] = (), corpora: Iterable[str] | None = None) -> NeuronSet:
    """The set in the files; what of it does not fit the model's sizes, the text or the earlier run is refused here.

    Args:
        settings: Settings with a `GivenSet`.
        wanted: Languages that the set must have.
        corpora: Languages with text, where each language of the set needs some.

    Raises:
        ValueError: No file was named; a set found on other weights than the run in the output folder; errors of
            `import_set`.
        KeyError: A language that the set lacks, or one without text.
    """
    check_set(settings)
    if not settings.sets:
        raise ValueError("no set was given: name its file, as --sets lape.safetensors.")
    found = import_set(
        settings.sets, blank(settings), format=settings.format, languages=settings.labels, count=settings.count
    )  # fmt: skip
    if lacking := [label for label in wanted if label not in found]:
        raise KeyError(f"the set in {settings.sets[0]} has no {lacking}; its languages are {list(found.languages)}.")
    known = list(found.languages if corpora is None else corpora)
    if missing := [label for label in found.languages if label not in known]:
        raise KeyError(f"no text for {missing} of the set in {settings.sets[0]}; the corpus has {known}.")
    earlier = read_description(settings.out / RUN)
    origin = {} if earlier is None else Run({}, earlier["settings"]).origin
    if origin.get("fingerprint") and found.origin.get("fingerprint") not in (None, origin["fingerprint"]):
        raise ValueError(
            f"the set in {settings.sets[0]} is from {whose(found.origin)}, the run in {settings.out / RUN} from "
            f"{whose(origin)}: give the set's model, and another --out."
        )
    return found


def blank(settings: Weights) -> Model:
    """The model without weights, from its configuration: it tells which units there are, at once.

    Raises:
        ValueError: No configuration of a causal language model.
    """
    return loading.skeleton(read_config(*located(source_of(settings.model), {"revision": settings.revision})))


def layout(settings: Cut) -> Layout:
    """How text becomes batches; the same whatever the methods."""
    return Layout(settings.kind or "auto", settings.length, settings.separator, settings.max_tokens)
