"""Report in which language the layers of a model predict, and how far that can be told.

    python experiments/working_language.py --model demo --corpus demo --out runs/working-language

writes a folder: report.html (open it in a browser), report.md, tables/, figures/ and provenance.json. With `--neurons
found.safetensors` (a saved NeuronSet) the layers are read again while each language's units are zero. `--config
file.yaml` reads settings, `--print_config` shows them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Watch the working language, layer by layer.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        pivot: The language that others are compared with; the first one where the corpus has no such language.
        top_k: Most probable tokens that are looked at for each position.
        norm: Apply the final norm to every layer; without, to the last one only, as Zhao et al. 2024 do.
        by: What tells a token's language: the text it occurs in, the script of its letters, or both.
        at_least: Occurrences in the text that a token of a language needs.
        ratio: How many times as frequent as in any other language such a token is.
        probes: "demo", a jsonl file of prompts and words (see `read_probes`), or null for none.
        neurons: A saved NeuronSet to zero, one language at a time.
        kind: One row a document, or packed blocks (for documents longer than the model's context).
        length: Tokens of a block.
        separator: What each document begins with.
        max_tokens: Cap for each language of the text that says which tokens are whose.
        evaluation_tokens: Cap for each language of the text that the layers are read on.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        device: For example "cuda"; a GPU if there is one.
        dtype: Of the weights.
        backend: TransformerLens class of the model.
        revision: Branch, tag or commit of a Hub model.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/working-language")
    languages: tuple[str, ...] | None = None
    pivot: str = "en"
    top_k: int = 10
    norm: bool = True
    by: Literal["both", "text", "script"] = "both"
    at_least: int = 3
    ratio: float = 10
    probes: str | None = "demo"
    neurons: Path | None = None
    kind: Literal["documents", "blocks"] = "documents"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = None
    files: str = "*"
    column: str = "text"
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    backend: Literal["auto", "hooked", "bridge"] = "auto"
    revision: str | None = None


STARTED = datetime.now(UTC)
CONFIG = Config()
if __name__ == "__main__":  # before the slow imports, so that --help answers at once
    from command_line import run_cli

    CONFIG = run_cli(Config)

import pandas as pd
import torch

import lsn_lens as lsn
from lsn_lens.analysis import WordProbe, read_probes, token_languages, word_probes, working_language
from lsn_lens.files import write_bytes
from lsn_lens.model import structure
from lsn_lens.report import provenance, save_tables, write_report
from lsn_lens.report.sections.working_language import Measured, own, working_language_report

Corpora = Mapping[str, lsn.LanguageCorpus]


def prepare(config: Config) -> tuple[Any, Corpora, list[WordProbe], lsn.NeuronSet | None]:
    """Load all that is needed, before anything slow begins."""
    probes = read_probes(config.probes) if config.probes else []
    found = lsn.NeuronSet.load(config.neurons) if config.neurons else None
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    if found is not None and not set(found.languages) & set(corpora):
        raise ValueError(f"{config.neurons} is for {list(found.languages)}, the corpus has {list(corpora)}.")
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    return model, corpora, [each for probe in probes if (each := among(probe, corpora))], found


def among(probe: WordProbe, corpora: Corpora) -> WordProbe | None:
    """A probe's prompts and words in the languages of the corpora; None where these are too few to compare."""
    prompts, words = ({k: v for k, v in each.items() if k in corpora} for each in (probe.prompts, probe.words))
    return WordProbe(prompts, words, probe.concept) if prompts and len(words) > 1 else None


def measure(
    config: Config, model: Any, corpora: Corpora, probes: list[WordProbe], found: lsn.NeuronSet | None
) -> Measured:
    """Read the layers."""
    labels = token_languages(
        model.tokenizer, corpora, by=config.by, at_least=config.at_least, ratio=config.ratio,
        vocabulary=structure.vocabulary_size(model), max_tokens=config.max_tokens,
    )  # fmt: skip
    layout = lsn.Layout(
        kind=config.kind, length=config.length, separator=config.separator, max_tokens=config.evaluation_tokens,
        equal=config.kind == "blocks",
    )  # fmt: skip

    def read(texts: Corpora) -> pd.DataFrame:
        return working_language(model, texts, labels, top_k=config.top_k, norm=config.norm, layout=layout)

    layers = read(corpora)
    words = word_probes(model, probes, top_k=config.top_k, norm=config.norm) if probes else None
    if found is None:
        return Measured(labels, layers, words)
    frames = []
    for units, neurons in (("found", found), ("random", found.random_like(seed=0))):
        for language in (each for each in found.languages if each in corpora):
            with lsn.intervene(model, neurons[language], lsn.zero):
                after = read({language: corpora[language]})
            frames.append(own(after).assign(units=units, neurons=len(neurons[language])))
    keys = ["text", "layer", "language"]
    before = layers[[*keys, "share", "probability"]]
    switched = before.merge(pd.concat(frames), on=keys, suffixes=("_before", "_after"))
    columns = ["share_before", "share_after", "probability_before", "probability_after"]
    return Measured(labels, layers, words, switched.reindex(columns=["units", "text", "neurons", "layer", *columns]))


def save(config: Config, model: Any, measured: Measured) -> Path:
    """Write everything; returns the path of report.html."""
    labels, text = measured.labels, measured.layers.attrs["text"]
    tables = {
        "layers": measured.layers, "coverage": labels.coverage(), "confusion": labels.confusion().reset_index(),
        "chance": labels.chance(), "scripts": labels.scripts, "words": measured.words, "switched": measured.switched,
        "words-excluded": None if measured.words is None else pd.DataFrame(measured.words.attrs["excluded"]),
        "words-tokens": None if measured.words is None else pd.DataFrame(measured.words.attrs["first_tokens"]),
    }  # fmt: skip
    save_tables({name: table for name, table in tables.items() if table is not None}, config.out / "tables")
    settings = {"model": structure.describe(model), "text": labels.text}
    said = {**asdict(config), "out": str(config.out), "neurons": config.neurons and str(config.neurons)}
    origin = provenance(settings, text, said, STARTED)
    write_bytes(config.out / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    return write_report(working_language_report(measured, config.pivot, origin), config.out)


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        model, corpora, probes, found = prepare(config)
        measured = measure(config, model, corpora, probes, found)
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {save(config, model, measured).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
