"""Turn language-specific units off in one stage of layers and one structure at a time: who is hurt, English or not?

    python experiments/workflow.py --model demo --corpus demo --out runs/workflow

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, neurons/, provenance.json, and
run/ with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them.
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
    """The multilingual workflow: understand, solve, generate; attention and FFN.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        method: What finds the units: one whose units belong to attention or MLP layers.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        english: The language that the others are compared with.
        understand: How many layers understand; searched by default, as `generate`, on half of the held-out documents,
            so that the other half can be reported. Give both or none.
        generate: How many layers generate.
        criterion: What the search makes large: "gap" favours stages with many units, "gap_per_unit" small ones.
        seeds: Random sets for each switch and language, as many units in each layer of each kind. Below 19 no
            p-value reaches 0.05, and correcting for all switches and languages takes more.
        ablation: What to set units to: "zero", "other languages' mean" or "dataset mean".
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap for each language when finding units.
        evaluation_tokens: Cap for each language when measuring.
        search_tokens: Cap for each language when searching the stages.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        device: For example "cuda"; a GPU if there is one.
        dtype: Of the weights.
        backend: TransformerLens class of the model.
        revision: Branch, tag or commit of a Hub model.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/workflow")
    method: str = "plnd"
    languages: tuple[str, ...] | None = None
    english: str = "en"
    understand: int | None = None
    generate: int | None = None
    criterion: Literal["gap", "gap_per_unit"] = "gap"
    seeds: int = 39
    ablation: Literal["zero", "other languages' mean", "dataset mean"] = "zero"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = 1024
    search_tokens: int | None = 1024
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
from lsn_lens.evaluation import Stages, search_stages, split_hold_out, workflow_effects, workflow_grid, workflow_summary
from lsn_lens.files import write_bytes
from lsn_lens.report import provenance, save_tables, write_report
from lsn_lens.report.sections.workflow import workflow_report

Corpora = Mapping[str, lsn.LanguageCorpus]
Tables = dict[str, pd.DataFrame]


def prepare(config: Config) -> tuple[Any, Corpora, lsn.Run]:
    """Load and collect: model, corpora, run."""
    check(config)
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    if config.english not in corpora:
        raise KeyError(f"no text for english={config.english!r}; name one of {list(corpora)} as --english.")
    if config.understand and config.generate:
        Stages(config.understand, config.generate).layers(model.cfg.n_layers)
    return model, corpora, lsn.collect(model, corpora, [config.method], config.out / "run", layout=layout(config))


def check(config: Config) -> None:
    """Refuse what cannot work before anything slow begins."""
    if config.method not in lsn.METHODS:
        raise ValueError(f"unknown method {config.method!r}; name one of {list(lsn.METHODS)}.")
    if (config.understand is None) != (config.generate is None):
        raise ValueError("give both understand and generate, or none of them to have both searched.")
    if config.understand is not None and config.generate is not None:
        Stages(config.understand, config.generate)
    if config.seeds < 2:
        raise ValueError("expected at least two seeds: a result without control shows nothing.")


def layout(config: Config) -> lsn.Layout:
    """How text becomes batches to find units with."""
    return lsn.Layout(kind="auto", length=config.length, separator=config.separator, max_tokens=config.max_tokens)


def measure(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> tuple[lsn.NeuronSet, Stages, Tables]:
    """Find units, choose stages, turn switches off: the units, the stages and all tables."""
    found = lsn.detect(run, config.method)
    action = {
        "zero": lsn.zero,
        "dataset mean": lsn.mean_ablation(run.statistics),
        "other languages' mean": lsn.other_mean_ablation(run.statistics),
    }[config.ablation]
    tables: Tables = {}
    if config.understand is None or config.generate is None:
        first, corpora = split_hold_out(corpora)
        stages, tables["stages"] = search_stages(
            model, first, found, english=config.english, criterion=config.criterion, action=action,
            layout=evaluation(config, config.search_tokens),
        )  # fmt: skip
    else:
        stages = Stages(config.understand, config.generate)
    tables["grid"] = workflow_grid(
        model, corpora, found, stages, english=config.english, action=action, seeds=config.seeds,
        layout=evaluation(config, config.evaluation_tokens),
    )  # fmt: skip
    tables["effects"] = workflow_effects(tables["grid"], config.english)
    tables["summary"] = workflow_summary(tables["effects"], config.english)
    return found, stages, tables


def evaluation(config: Config, tokens: int | None) -> lsn.Layout:
    """How text becomes batches to measure with."""
    return lsn.Layout(length=config.length, separator=config.separator, max_tokens=tokens)


def report(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> Path:
    """Measure and write everything; returns the path of report.html."""
    found, stages, tables = measure(config, model, corpora, run)
    text = run.to_frame().reset_index()
    save_tables({**tables, "neurons": found.to_frame(), "text": text}, config.out / "tables")
    found.save(config.out / "neurons" / f"{config.method}.safetensors")
    settings = {**asdict(config), "out": str(config.out)}
    origin = provenance(run.settings, tables["grid"].attrs["text"], settings, STARTED)
    write_bytes(config.out / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    return write_report(workflow_report(found, stages, tables, text, origin), config.out)


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        prepared = prepare(config)
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {report(config, *prepared).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
