"""Make a model write in another language, or stop writing in one: neurons, beside a direction, a prompt and chance.

    python experiments/steer.py --model demo --corpus demo --out runs/steer

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, neurons/, provenance.json, and run/
with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
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
    """Steer a model from every language to every other, and switch each language off.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        counts: Units a language that average precision chooses: the doses of forcing them to the median.
        strengths: Doses of all other ways to steer, but the next.
        released_strengths: Doses of language dimensions as they were released: the last layer's means, times this, in
            the layer of `layer`. Published: 0.4.
        rate: Share of all units that lape chooses.
        layer: After which layer the residual stream is pushed; the middle by default.
        seeds: Random counterparts of each way to steer; one of them at every dose.
        samples: Texts from nothing, for each target and dose.
        prompts: Prompts in each language.
        prompt_tokens: Tokens of a prompt.
        tokens: New tokens of a text.
        temperature: Of the samples.
        shown: Sample texts of each language in the report.
        identifier: Of the texts' language: "py3langid" or "lingua".
        ruled_out: Languages that no text can be in, as [ms] for a model that never read Malay: where it is weighed,
            many Indonesian texts are taken for Malay, and belong to no language of the run.
        evaluation_tokens: Cap for each language when measuring losses.
        max_tokens: Cap for each language when finding units.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        device: For example "cuda"; a GPU if there is one.
        dtype: Of the weights.
        backend: TransformerLens class of the model.
        revision: Branch, tag or commit of a Hub model.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/steer")
    languages: tuple[str, ...] | None = None
    counts: tuple[int, ...] = (30, 100, 300, 1000)
    strengths: tuple[float, ...] = (1, 2, 4, 8)
    released_strengths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    rate: float = 0.05
    layer: int | None = None
    seeds: int = 1
    samples: int = 30
    prompts: int = 5
    prompt_tokens: int = 10
    tokens: int = 32
    temperature: float = 0.8
    shown: int = 20
    identifier: Literal["py3langid", "lingua"] = "py3langid"
    ruled_out: tuple[str, ...] = ()
    evaluation_tokens: int = 512
    max_tokens: int | None = None
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
from lsn_lens.evaluation import loss_table
from lsn_lens.files import write_bytes
from lsn_lens.generation import (
    Steering,
    arithmetics,
    choose_doses,
    deactivate,
    deactivation_table,
    dimensions,
    direction,
    dose_response,
    forcing,
    identifier,
    instruction,
    prompts_from,
    steer,
    steering_losses,
    steering_summary,
    steering_table,
)
from lsn_lens.interventions import language_medians
from lsn_lens.methods import LanguageDimensions
from lsn_lens.model import structure
from lsn_lens.report import provenance, save_tables, write_report
from lsn_lens.report.sections.steering import steering_report

METHODS = ("average_precision", "plnd", "lape", "diffmean", "language_dimensions")
RELEASED = "language_dimensions-released"
AS_RELEASED = LanguageDimensions(variant="released")
Corpora = Mapping[str, lsn.LanguageCorpus]
Tables = dict[str, pd.DataFrame]
Sets = dict[str, lsn.NeuronSet]


def prepare(config: Config) -> tuple[Any, Corpora, lsn.Run, Sets]:
    """Load, collect and find: model, corpora, run, units by method."""
    check(config)
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    # from here to collect: what cannot work is said before anything slow
    identifier(corpora, config.identifier, ruled_out=config.ruled_out)
    texts_of(config, model, corpora)
    loss_table(model, corpora, [], layout=evaluation(config))
    layers = range(-model.cfg.n_layers, model.cfg.n_layers)
    if config.layer is not None and config.layer not in layers:
        raise ValueError(f"layer={config.layer}: the model has the layers 0 to {layers[-1]}.")
    layout = lsn.Layout(kind="documents", max_tokens=config.max_tokens)
    methods = [*METHODS, AS_RELEASED] if structure.has_site(model, "resid_mid") else METHODS  # none in parallel blocks
    run = lsn.collect(model, corpora, methods, config.out / "run", layout=layout)
    return model, corpora, run, find(config, run)


def check(config: Config) -> None:
    """Refuse what cannot work with any model."""
    if config.seeds < 1:
        raise ValueError("expected at least one seed: a result without random counterpart shows nothing.")
    if not config.counts or not config.strengths or not config.released_strengths:
        raise ValueError("expected at least one count and one strength.")
    for name in ("samples", "tokens", "shown"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 1.")


def texts_of(config: Config, model: Any, corpora: Corpora) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Prompts in each language, and the words in front of them that ask for a language: texts in it."""
    prompts = prompts_from(model, corpora, count=config.prompts, tokens=config.prompt_tokens)
    texts = prompts_from(model, corpora, count=3, tokens=config.prompt_tokens, part="find")
    words = {target: "\n".join([*some, ""]) for target, some in texts.items()}
    whole = [front + each for front in words.values() for some in prompts.values() for each in some]
    longest = 1 + max(map(len, model.tokenizer(whole, add_special_tokens=False)["input_ids"]))
    if longest + config.tokens > model.cfg.n_ctx:
        raise ValueError(
            f"the longest prompt, with three texts in front, has {longest} tokens; with {config.tokens} new ones it "
            f"exceeds the model's context of {model.cfg.n_ctx}. Lower prompt_tokens or tokens."
        )
    return prompts, words


def evaluation(config: Config) -> lsn.Layout:
    """How text becomes batches to measure losses with."""
    return lsn.Layout(max_tokens=config.evaluation_tokens)


def find(config: Config, run: lsn.Run) -> Sets:
    """Units by method; those of average precision for each count."""
    precise = {precision(count): lsn.detect(run, "average_precision", count=count) for count in config.counts}
    others = {name: lsn.detect(run, name) for name in ("plnd", "language_dimensions")}
    kept = set(run.settings["statistics"])
    if all(need.key in kept for need in AS_RELEASED.statistics()):
        others[RELEASED] = lsn.detect(run, AS_RELEASED)
    return precise | others | {"lape": lsn.detect(run, "lape", rate=config.rate)}


def precision(count: int) -> str:
    """Name of the units that average precision chooses."""
    return f"average_precision-{count}"


def ways(config: Config, model: Any, run: lsn.Run, sets: Sets) -> list[Steering]:
    """Every way to steer at every dose, and its random counterparts."""
    statistics = run.statistics
    layer = model.cfg.n_layers // 2 if config.layer is None else config.layer
    medians = language_medians(statistics)
    every: list[Steering] = []
    for seed in (None, *range(config.seeds)):
        for count in config.counts:
            every.append(forcing(sets[precision(count)], medians, name="average_precision", dose=count, seed=seed))
        for strength in config.strengths:
            every += [
                arithmetics(statistics, sets["lape"], "additive", strength, name="lape", seed=seed),
                arithmetics(statistics, sets["plnd"], "additive", strength, name="plnd", seed=seed),
                direction(statistics, layer, strength, seed=seed),
                dimensions(statistics, sets["language_dimensions"], strength, seed=seed),
            ]
        for strength in config.released_strengths if RELEASED in sets else ():
            place: Any = {"layer": layer, "variant": "released"}
            every.append(dimensions(statistics, sets[RELEASED], strength, name=RELEASED, seed=seed, **place))
    return every


def measure(config: Config, model: Any, corpora: Corpora, run: lsn.Run, sets: Sets) -> Tables:
    """Choose doses on texts from nothing, then steer from every language to every other, and switch languages off."""
    targets = list(corpora)
    identify = identifier(targets, config.identifier, ruled_out=config.ruled_out)
    settings: dict[str, Any] = {"tokens": config.tokens, "temperature": config.temperature}
    prompts, words = texts_of(config, model, corpora)
    every = ways(config, model, run, sets)
    sweep = [each for each in every if each.seed in (None, 0)]
    first = steer(model, sweep, {}, targets, identify, samples=config.samples, **settings)
    doses = dose_response(first)
    best = choose_doses(doses)
    chosen = [each for each in every if each.dose == best[each.name]]
    chosen.append(instruction(words))
    texts = steer(model, chosen, prompts, targets, identify, samples=config.samples, seed=1, **settings)
    losses = steering_losses(model, corpora, chosen, targets, layout=evaluation(config))
    table = steering_table(texts, losses)
    middle = sorted(config.counts)[len(config.counts) // 2]
    neurons = {"average_precision": sets[precision(middle)], "plnd": sets["plnd"], "lape": sets["lape"]}
    off = deactivate(model, neurons, prompts, identify, seeds=config.seeds, samples=3, **settings)
    return {
        "doses": doses, "steering": table, "summary": steering_summary(table), "losses": losses,
        "deactivation": deactivation_table(off), "texts": texts, "texts-doses": first, "texts-deactivation": off,
    }  # fmt: skip


def report(config: Config, model: Any, corpora: Corpora, run: lsn.Run, sets: Sets) -> Path:
    """Measure and write everything; returns the path of report.html."""
    tables = measure(config, model, corpora, run, sets)
    text = run.to_frame().reset_index()
    save_tables({**tables, "text": text}, config.out / "tables")
    for name, found in sets.items():
        found.save(config.out / "neurons" / f"{name}.safetensors")
    origin = provenance(
        run.settings, tables["losses"].attrs["text"], {**asdict(config), "out": str(config.out)}, STARTED
    )
    write_bytes(config.out / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    return write_report(steering_report(tables, text, origin), config.out)


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        prepared = prepare(config)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {report(config, *prepared).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
