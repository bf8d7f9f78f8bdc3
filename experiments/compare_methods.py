"""Find language-specific neurons with several methods, switch them off, and report who is hurt.

    python experiments/compare_methods.py --model demo --corpus demo --out runs/demo

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, neurons/, provenance.json, and
run/ with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli


@dataclass(frozen=True)
class Config:
    """Compare methods that find language-specific neurons.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        methods: Names of methods, as [lape,lave]; the first that can choose its rate sets the rate of all.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        rate: Share of all neurons to choose.
        at_least: Raise the rate to the smallest that gives every language this many neurons; 0 keeps the rate.
        control_seeds: Random sets for each method, as many neurons in each language and layer.
        ablations: What to set the neurons to: any of "zero", "dataset mean", "other languages' mean".
        kind: Packed blocks, or one row a document.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap for each language when finding neurons.
        evaluation_tokens: Cap for each language when measuring.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        device: For example "cuda"; a GPU if there is one.
        dtype: Of the weights.
        backend: TransformerLens class of the model.
        revision: Branch, tag or commit of a Hub model.
        seed: Of the first random control.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/demo")
    methods: tuple[str, ...] = ("lape", "lap", "lave")
    languages: tuple[str, ...] | None = None
    rate: float = 0.01
    at_least: int = 10
    control_seeds: int = 5
    ablations: tuple[Literal["zero", "dataset mean", "other languages' mean"], ...] = ("zero",)
    kind: Literal["blocks", "documents"] = "blocks"
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
    seed: int = 0


STARTED = datetime.now(UTC)
CONFIG = Config()
if __name__ == "__main__":  # before the slow imports, so that --help answers at once
    CONFIG = auto_cli(Config, as_positional=False)

import pandas as pd  # noqa: E402
import torch  # noqa: E402

import lsn_lens as lsn  # noqa: E402
from lsn_lens import sections  # noqa: E402
from lsn_lens.evaluation import effects  # noqa: E402
from lsn_lens.neurons import write_bytes  # noqa: E402
from lsn_lens.report import provenance, write_report  # noqa: E402
from lsn_lens.text_view import activations_on_text, neuron_on_text  # noqa: E402

Corpora = Mapping[str, lsn.LanguageCorpus]
Sets = dict[str, lsn.NeuronSet]
SHOWN_TEXT = 160  # characters of a document in the view of neurons on text


def prepare(config: Config) -> tuple[Any, Corpora, lsn.Run, Sets]:
    """Load, collect and detect: model, corpora, run, and each method's set."""
    check(config)
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    run = lsn.collect(model, corpora, config.methods, config.out / "run", layout=layout(config))
    return model, corpora, run, find(run, config)


def report(config: Config, model: Any, corpora: Corpora, run: lsn.Run, found: Sets) -> Path:
    """Measure and write everything; returns the path of report.html."""
    losses = measure(model, corpora, run, found, config)
    summary = effects.summarise(losses)
    tables = {
        "losses": losses,
        "languages": summary,
        "methods": effects.overall(summary),
        "controls": effects.control_points(losses),
        "sizes": sections.sizes(found),
        "text": run.to_frame().reset_index(),
    }
    save_tables(
        {**tables, **{f"neurons-{name}": each.to_frame() for name, each in found.items()}}, config.out / "tables"
    )
    for name, each in found.items():
        each.save(config.out / "neurons" / f"{name}.safetensors")
    best = tables["methods"]["method"].iloc[0]
    view = neurons_on_text(model, corpora, lsn.score(run, best), found[best])
    origin = provenance(run, losses.attrs["text"], {**asdict(config), "out": str(config.out)}, STARTED)
    write_bytes(config.out / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    return write_report(sections.comparison(tables, found, view, origin), config.out)


def check(config: Config) -> None:
    """Refuse what cannot work before anything slow begins."""
    unknown = [name for name in config.methods if name not in lsn.METHODS]
    if unknown or not config.methods:
        raise ValueError(f"unknown methods {unknown}; name some of {list(lsn.METHODS)}.")
    if config.control_seeds < 1 or not config.ablations:
        raise ValueError("expected at least one control seed and one ablation: a result without control shows nothing.")


def layout(config: Config) -> lsn.Layout:
    """How text becomes batches."""
    return lsn.Layout(kind=config.kind, length=config.length, separator=config.separator, max_tokens=config.max_tokens)


def find(run: lsn.Run, config: Config) -> Sets:
    """Each method's set, all with the rate of the first method that can raise its own."""
    names = {name: {each.name for each in fields(lsn.METHODS[name])} for name in config.methods}
    adaptive = next((name for name in names if "at_least" in names[name]), None)
    rate, first = config.rate, {}
    if adaptive:
        first = {adaptive: lsn.detect(run, adaptive, rate=config.rate, at_least=config.at_least)}
        rate = first[adaptive].notes["rate"]
    return {
        name: first.get(name) or lsn.detect(run, name, **({"rate": rate} if "rate" in names[name] else {}))
        for name in names
    }


def measure(model: Any, corpora: Corpora, run: lsn.Run, found: Sets, config: Config) -> pd.DataFrame:
    """Losses for each set and its random controls: one control on all languages, the others on their own."""
    seeds = range(config.seed, config.seed + config.control_seeds)
    draws = {effects.control_name(name, seed): each.random_like(seed) for seed in seeds for name, each in found.items()}
    first = effects.control_name(next(iter(found)), seeds[0])
    shown = {first: draws.pop(first)}
    actions = {
        "zero": lsn.zero,
        "dataset mean": lsn.mean_ablation(run.statistics),
        "other languages' mean": lsn.other_mean_ablation(run.statistics),
    }
    text = replace(layout(config), max_tokens=config.evaluation_tokens)
    whole: Any = "all", {**found, **shown}
    rest: Any = "own", draws
    frames = [
        lsn.perplexity_table(model, corpora, sets, actions[name], evaluate=evaluate, layout=text)
        for name in config.ablations
        for evaluate, sets in (whole, rest)
        if sets
    ]
    table = pd.concat(frames, ignore_index=True).drop_duplicates(["set", "action", "intervened", "evaluated"])
    table.attrs = frames[0].attrs
    return table


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Each table as parquet and csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def neurons_on_text(model: Any, corpora: Corpora, scores: lsn.NeuronScores, found: lsn.NeuronSet) -> str:
    """Where each language's highest scoring neurons fire in the first held-out document of every language."""
    keys = ["language", "basis", "layer", "unit"]
    ranked = scores.to_frame().merge(found.to_frame(), on=keys).sort_values("score", ascending=False, kind="stable")
    neurons = ranked.groupby("language", sort=False).head(2)
    neurons = neurons.set_index("language").loc[[each for each in found.languages if each in set(neurons["language"])]]
    texts = {label: next(iter(each.hold_out))[:SHOWN_TEXT] for label, each in corpora.items()}
    return neuron_on_text(activations_on_text(model, texts, neurons.reset_index())) if len(neurons) else ""


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        prepared = prepare(config)
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {report(config, *prepared).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
