"""Find language-specific neurons with every method, ablate them, and report who is hurt, beside random controls.

    python experiments/compare_methods.py --model demo --corpus demo --out runs/demo

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, neurons/, provenance.json, and
run/ with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Compare methods that find language-specific neurons.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        methods: Names of methods, as [lape,lave]; all by default, without those that the model and the text are not
            made for, which the report names with the reason.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate to the smallest that gives every language this many neurons by the first method that
            can tell (lape); 0 keeps the rate.
        control_seeds: Random sets for each method and language, as many units in each layer, as active in the language;
            three times as many where none of them reaches the rise. Below 19 no p-value reaches 0.05.
        ablation: What to set units to: "other languages' mean", "dataset mean" or "zero".
        replicates: Bootstrap draws, to see how stable each method's sets are; 0 for none.
        permutations: Of labels, to see what each method finds where there is nothing to find; 0 for none.
        without_draws: Methods left out of these two, because each draw takes them seconds.
        controls: Slow checks that run the model, by their names in `lsn_lens.Checks`: "changed_text" (romanised, words
            shuffled), "ablations" (all kinds), "off_target" (numbers, code, repetition). None by default: several more
            passes each.
        kind: Packed blocks, or one row a document; by default documents where all fit, else blocks.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap for each language when finding neurons.
        evaluation_tokens: Cap for each language when measuring each method on all languages.
        control_tokens: The same for random sets, measured on their own language only, and for sets of equal size.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        device: For example "cuda"; a GPU if there is one.
        dtype: Of the weights.
        backend: TransformerLens class of the model.
        revision: Branch, tag or commit of a Hub model.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/demo")
    methods: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    rate: float = 0.01
    at_least: int = 10
    control_seeds: int = 39
    ablation: Literal["other languages' mean", "dataset mean", "zero"] = "other languages' mean"
    replicates: int = 100
    permutations: int = 99
    without_draws: tuple[str, ...] = ("average_precision",)
    controls: tuple[str, ...] = ()
    kind: Literal["blocks", "documents"] | None = None
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = 1024
    control_tokens: int = 128
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

import torch

import lsn_lens as lsn
from lsn_lens.comparison import CHECKS, Checks

Corpora = Mapping[str, lsn.LanguageCorpus]


def prepare(config: Config) -> tuple[Any, Corpora, lsn.Run]:
    """Load and collect: model, corpora, run."""
    check(config)
    text = layout(config)
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    return model, corpora, lsn.collect(model, corpora, config.methods, config.out / "run", layout=text)


def report(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> Path:
    """Compare and write everything; returns the path of report.html."""
    parameters, rates = settings(run, config)
    actions = {
        "zero": lsn.zero,
        "dataset mean": lsn.mean_ablation(run.statistics),
        "other languages' mean": None,  # what compare does by default
    }
    text = replace(layout(config), kind="blocks", max_tokens=config.evaluation_tokens)
    comparison = lsn.compare(
        run, config.methods, model=model, corpora=corpora, action=actions[config.ablation],
        seeds=config.control_seeds, control_tokens=config.control_tokens, layout=text, parameters=parameters,
        trust=checks(config, run),
    )  # fmt: skip
    asked = {**asdict(config), "out": str(config.out)}
    return comparison.report(config.out, settings=asked, started=STARTED, note=rates)


def check(config: Config) -> list[str]:
    """Refuse what cannot work before anything slow begins; the names of the methods."""
    names = list(config.methods or (name for name in lsn.METHODS if name != "random"))
    unknown = [name for name in names if name not in lsn.METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; name some of {list(lsn.METHODS)}.")
    if config.control_seeds < 2:
        raise ValueError("expected at least two control seeds: a result without control shows nothing.")
    slow = list(dict.fromkeys(row.option for row in CHECKS if row.needs_model))
    strange = [name for name in config.controls if name not in slow]
    if strange:
        raise ValueError(f"unknown controls {strange}; name some of {slow}.")
    return names


def layout(config: Config) -> lsn.Layout:
    """How text becomes batches; the same whatever the methods."""
    kind = config.kind or "auto"
    return lsn.Layout(kind=kind, length=config.length, separator=config.separator, max_tokens=config.max_tokens)


def checks(config: Config, run: lsn.Run) -> Checks | None:
    """How far to trust each method; the embedded text is parallel, document by document."""
    if not (config.replicates or config.permutations or config.controls):
        return None
    slow: dict[str, Any] = dict.fromkeys(config.controls, True)
    return Checks(
        config.replicates,
        config.permutations,
        without_draws=config.without_draws,
        paired=config.corpus == "demo" and run.settings["text"]["layout"]["kind"] == "documents",
        **slow,
    )


def settings(run: lsn.Run, config: Config) -> tuple[dict[str, dict[str, Any]], str]:
    """Hyper-parameters of each method, all with the rate of the first that can raise its own; and why, in words."""
    had = [name for name in check(config) if not run.lacks(lsn.METHODS[name]())]
    names = {name: {each.name for each in fields(lsn.METHODS[name])} for name in had}
    rate, words = config.rate, f"Methods that choose a share of units choose {config.rate:.2%}."
    adaptive = next((name for name in names if "at_least" in names[name]), None)
    if adaptive and config.at_least:
        notes = lsn.detect(run, adaptive, rate=config.rate, at_least=config.at_least).notes
        rate = notes["rate"]
        words = (
            f"{config.rate:.2%} of all MLP neurons are {notes['asked']:,}; by {adaptive} it takes {notes['chosen']:,} "
            f"({rate:.2%}) to give every language at least {config.at_least}. Methods that choose a share choose that "
            "one, of all units of their kinds; sizes still differ, since a unit may belong to several languages and "
            "some methods divide the number evenly."
        )
    return {name: {"rate": rate} if "rate" in names[name] else {} for name in names}, words


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        prepared = prepare(config)
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {report(config, *prepared).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
