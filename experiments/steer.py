"""Make a model write in another language, or stop writing in one: neurons, beside a direction, a prompt and chance.

    python experiments/steer.py --model demo --corpus demo --out runs/steer

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings, `--print_config`
shows them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli


@dataclass(frozen=True)
class Config:
    """Steer a model from every language to every other, and switch each language off.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        counts: Units a language that average precision chooses: the doses of forcing them to the median.
        strengths: Doses of all other ways to steer.
        rate: Share of all units that lape chooses.
        layer: After which layer the residual stream is pushed; the middle by default.
        seeds: Random counterparts of each way to steer.
        samples: Texts from nothing, for each target and dose.
        prompts: Prompts in each language.
        prompt_tokens: Tokens of a prompt.
        tokens: New tokens of a text.
        temperature: Of the samples.
        shown: Sample texts of each language in the report.
        identifier: Of the texts' language: "py3langid" or "lingua".
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
    counts: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    strengths: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    rate: float = 0.05
    layer: int | None = None
    seeds: int = 2
    samples: int = 40
    prompts: int = 8
    prompt_tokens: int = 10
    tokens: int = 32
    temperature: float = 0.8
    shown: int = 20
    identifier: Literal["py3langid", "lingua"] = "py3langid"
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
    CONFIG = auto_cli(Config, as_positional=False)

import pandas as pd  # noqa: E402
import torch  # noqa: E402

import lsn_lens as lsn  # noqa: E402
from lsn_lens.actions import language_medians  # noqa: E402
from lsn_lens.evaluation.steering import (  # noqa: E402
    Steering,
    arithmetics,
    dimensions,
    direction,
    forcing,
    instruction,
    steer,
    steering_losses,
)
from lsn_lens.evaluation.steering.deactivation import deactivate, deactivation_table  # noqa: E402
from lsn_lens.evaluation.steering.tables import choose_doses, dose_response, steering_summary, steering_table  # noqa: E402
from lsn_lens.evaluation.steering.trials import prompts_from  # noqa: E402
from lsn_lens.evaluation.texts import identifier  # noqa: E402
from lsn_lens.neurons import write_bytes  # noqa: E402
from lsn_lens.report import provenance, save_tables, write_report  # noqa: E402
from lsn_lens.sections.steering import steering_report  # noqa: E402

METHODS = ("average_precision", "plnd", "lape", "diffmean", "language_dimensions")
Corpora = Mapping[str, lsn.LanguageCorpus]
Tables = dict[str, pd.DataFrame]


def prepare(config: Config) -> tuple[Any, Corpora, lsn.Run]:
    """Load and collect: model, corpora, run."""
    if config.seeds < 1:
        raise ValueError("expected at least one seed: a result without random counterpart shows nothing.")
    if not config.counts or not config.strengths:
        raise ValueError("expected at least one count and one strength.")
    model = lsn.load_model(
        config.model, backend=config.backend, device=config.device, dtype=getattr(torch, config.dtype),
        revision=config.revision,
    )  # fmt: skip
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    identifier(corpora, config.identifier)  # languages that it does not know are said before anything slow begins
    prompts_from(model, corpora, count=config.prompts, tokens=config.prompt_tokens)
    layout = lsn.Layout(kind="documents", max_tokens=config.max_tokens)
    return model, corpora, lsn.collect(model, corpora, METHODS, config.out / "run", layout=layout)


def ways(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> list[Steering]:
    """Every way to steer at every dose, and its random counterparts."""
    statistics = run.statistics
    layer = model.cfg.n_layers // 2 if config.layer is None else config.layer
    plnd, dims = (lsn.detect(run, name) for name in ("plnd", "language_dimensions"))
    lape = lsn.detect(run, "lape", rate=config.rate)
    medians = language_medians(statistics)
    found: list[Steering] = []
    precise = {count: lsn.detect(run, "average_precision", count=count) for count in config.counts}
    for seed in (None, *range(config.seeds)):
        for count, units in precise.items():
            found.append(forcing(units, medians, name="average_precision", dose=count, seed=seed))
        for strength in config.strengths:
            found += [
                arithmetics(statistics, lape, "additive", strength, name="lape", seed=seed),
                arithmetics(statistics, plnd, "additive", strength, name="plnd", seed=seed),
                direction(statistics, layer, strength, seed=seed),
                dimensions(statistics, dims, strength, seed=seed),
            ]
    return found


def measure(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> Tables:
    """Choose doses on texts from nothing, then steer from every language to every other, and switch languages off."""
    targets = list(corpora)
    identify = identifier(targets, config.identifier)
    settings: dict[str, Any] = {"tokens": config.tokens, "temperature": config.temperature}
    prompts = prompts_from(model, corpora, count=config.prompts, tokens=config.prompt_tokens)
    every = ways(config, model, corpora, run)
    first = steer(model, every, {}, targets, identify, samples=config.samples, **settings)
    doses = dose_response(first)
    best = choose_doses(doses)
    chosen = [each for each in every if each.dose == best[each.name]]
    words = prompts_from(model, corpora, count=3, tokens=config.prompt_tokens, part="find")
    chosen.append(instruction({target: "\n".join([*texts, ""]) for target, texts in words.items()}))
    texts = steer(model, chosen, prompts, targets, identify, samples=config.samples, seed=1, **settings)
    layout = lsn.Layout(max_tokens=config.evaluation_tokens)
    losses = steering_losses(model, corpora, chosen, targets, layout=layout)
    table = steering_table(texts, losses)
    sets = {
        "average_precision": lsn.detect(run, "average_precision", count=sorted(config.counts)[len(config.counts) // 2]),
        "plnd": lsn.detect(run, "plnd"),
        "lape": lsn.detect(run, "lape", rate=config.rate),
    }
    off = deactivate(model, sets, prompts, identify, seeds=config.seeds, samples=3, **settings)
    return {
        "doses": doses, "steering": table, "summary": steering_summary(table), "losses": losses,
        "deactivation": deactivation_table(off), "texts": texts, "texts-doses": first, "texts-deactivation": off,
    }  # fmt: skip


def report(config: Config, model: Any, corpora: Corpora, run: lsn.Run) -> Path:
    """Measure and write everything; returns the path of report.html."""
    tables = measure(config, model, corpora, run)
    text = run.to_frame().reset_index()
    save_tables({**tables, "text": text}, config.out / "tables")
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
