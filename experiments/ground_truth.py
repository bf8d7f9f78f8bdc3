"""Score methods against a known answer: units of known role, planted into a model.

    python experiments/ground_truth.py --model demo --corpus demo --out runs/ground_truth

writes a folder: report.html (open it in a browser), report.md, tables/, figures/, provenance.json, and planted/ with
the checkpoints, which a second call uses again. `--config file.yaml` reads settings, `--print_config` shows them.
"""

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Plant units of known role into a model several times and see which methods find them.

    Attributes:
        model: "demo", a local folder or a Hub id.
        corpus: "demo", a folder of `<language>.txt`, `.jsonl[.gz]` or `.parquet` files, or a preset ("wikipedia", ...).
        out: Folder for the report and all else.
        languages: Which languages, in which order, as [en,fr]; all that the corpus has by default.
        methods: Which methods; all by default.
        parts: Where to plant, each by itself: "mlp", and "attention" (as values of new heads).
        roles: Which roles; all by default.
        plantings: How many into each part; each has its own seed, and the intervals come from their spread. A seed
            whose roles do not hold is left out, and said to be.
        each: Units for each role and language.
        effect: By how much a language's loss is to rise when one unit that it needs is off, nats a token.
        tokens: Of each language, to write the weights from.
        max_tokens: Cap for each language when running the methods.
        less_text: Smaller caps to try on the first planting of each part.
        fewer_languages: How many of the languages to try there.
        seed: Of the first planting.
        files: Glob that picks files of a corpus folder.
        column: The field with the text.
        backend: TransformerLens class of the planted models.
    """

    model: str = "demo"
    corpus: str = "demo"
    out: Path = Path("runs/ground_truth")
    languages: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    parts: tuple[Literal["mlp", "attention"], ...] = ("mlp", "attention")
    roles: tuple[str, ...] | None = None
    plantings: int = 5
    each: int = 1
    effect: float = 0.03
    tokens: int = 3000
    max_tokens: int | None = None
    less_text: tuple[int, ...] = (500, 2000)
    fewer_languages: tuple[int, ...] = (2, 4)
    seed: int = 0
    files: str = "*"
    column: str = "text"
    backend: Literal["auto", "hooked", "bridge"] = "auto"


STARTED = datetime.now(UTC)
CONFIG = Config()
if __name__ == "__main__":  # before the slow imports, so that --help answers at once
    from command_line import run_cli

    CONFIG = run_cli(Config)

import pandas as pd

import lsn_lens as lsn
from lsn_lens.files import write_bytes
from lsn_lens.planted import ROLES, DetectorScores, PartName, Planted, RoleError, load_planted, plant, score_detectors
from lsn_lens.report import provenance, save_tables, write_report
from lsn_lens.report.sections.ground_truth import ground_truth_report

Corpora = Mapping[str, lsn.LanguageCorpus]


def prepare(config: Config) -> tuple[Corpora, list[Planted], pd.DataFrame]:
    """Plant, or open what was planted before."""
    unknown = [name for name in config.methods or () if name not in lsn.METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; name some of {list(lsn.METHODS)}.")
    if config.plantings < 1 or not config.parts:
        raise ValueError(
            f"plantings={config.plantings}, parts={config.parts}: expected at least one; intervals take two plantings."
        )
    corpora = lsn.load_corpora(config.corpus, config.languages, files=config.files, column=config.column)
    wrong = [count for count in config.fewer_languages if not 2 <= count <= len(corpora)]
    if wrong:
        raise ValueError(f"fewer_languages={wrong}: expected 2 to {len(corpora)}, as many as there are.")
    plantings, refused = [], []
    for part in config.parts:
        seeds = itertools.count(config.seed)
        while sum(each.part == part for each in plantings) < config.plantings:
            seed = next(seeds)
            planted = planting(config, corpora, part, seed)
            if isinstance(planted, Planted):
                plantings.append(planted)
                continue
            refused.append({"part": part, "seed": seed, "why": planted})
            if sum(each["part"] == part for each in refused) > config.plantings:
                raise ValueError(f"{part}: roles did not hold with too many seeds. {planted}")
    return corpora, plantings, pd.DataFrame(refused, columns=["part", "seed", "why"])


def planting(config: Config, corpora: Corpora, part: PartName, seed: int) -> Planted | str:
    """One planting, or why its roles do not hold."""
    asked = {"model": config.model, "part": part, "each": config.each, "effect": config.effect, "tokens": config.tokens,
             "roles": list(config.roles or ROLES), "languages": list(corpora)}  # fmt: skip
    folder = config.out / "planted" / f"{part}-{seed}"
    kept = folder.with_suffix(".json")
    if kept.is_file():
        before = json.loads(kept.read_text())
        if before["asked"] != asked:
            raise ValueError(f"{folder} was planted with other settings. Give another --out, or remove it.")
        return before["refused"] or load_planted(folder)
    refused, planted = "", None
    try:
        planted = plant(
            config.model, corpora, folder, part=part, roles=asked["roles"], each=config.each, effect=config.effect,
            tokens=config.tokens, seed=seed,
        )  # fmt: skip
    except RoleError as error:
        refused = str(error)
    write_bytes(kept, json.dumps({"asked": asked, "refused": refused}, indent=1).encode())
    return planted or refused


def measure(config: Config, corpora: Corpora, plantings: list[Planted]) -> tuple[DetectorScores, pd.DataFrame]:
    """Scores on everything, and on less."""
    methods = config.methods or tuple(lsn.METHODS)
    whole = score_detectors(plantings, corpora, methods, layout=layout(config.max_tokens), backend=config.backend)
    less: list[tuple[str, Corpora, int | None]] = [(f"{cap:,} tokens", corpora, cap) for cap in config.less_text]
    for count in config.fewer_languages:
        some = {label: corpora[label] for label in list(corpora)[:count]}
        less.append((f"{count} languages", some, config.max_tokens))
    rows = []
    for part in config.parts:
        first = next(number for number, each in enumerate(plantings) if each.part == part)
        mine: Any = whole.by_language.loc[whole.by_language["planting"].eq(first)]
        rows.append(mine.assign(text="all"))
        for text, some, cap in less if len(mine) else ():
            scores = score_detectors(
                [plantings[first]],
                some,
                tuple(dict.fromkeys(mine["method"])),
                layout=layout(cap),
                backend=config.backend,
            )
            rows.append(scores.by_language.assign(text=text))
    groups: Any = pd.concat(rows).groupby(["part", "text", "method"], sort=False)
    return whole, groups[["average_precision", "chance", "recall"]].mean().reset_index()


def layout(max_tokens: int | None) -> lsn.Layout:
    """One row a document: what all methods can use."""
    return lsn.Layout(kind="documents", max_tokens=max_tokens)


def report(config: Config, corpora: Corpora, plantings: list[Planted], refused: pd.DataFrame) -> Path:
    """Measure and write everything; returns the path of report.html."""
    scores, sensitivity = measure(config, corpora, plantings)
    planted = [each.measured.assign(part=each.part, planting=number) for number, each in enumerate(plantings)]
    damage = pd.DataFrame([each.damage for each in plantings]).rename_axis("planting").reset_index()
    damage.insert(0, "part", [each.part for each in plantings])
    tables = {
        "methods": scores.methods, "by-language": scores.by_language, "roles": scores.roles,
        "planted": pd.concat(planted, ignore_index=True), "damage": damage, "sensitivity": sensitivity,
        "refused": refused,
    }  # fmt: skip
    save_tables(tables, config.out / "tables")
    used = scores.settings
    origin = provenance(used, used["text"], {**asdict(config), "out": str(config.out)}, STARTED)
    write_bytes(config.out / "provenance.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    return write_report(ground_truth_report(tables, scores.skipped, origin), config.out)


def main(config: Config) -> None:
    """Do it, or say in one line what was wrong with the settings."""
    try:
        prepared = prepare(config)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:  # these say in words what to do
        sys.exit(f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"report: {report(config, *prepared).resolve()}")


if __name__ == "__main__":
    main(CONFIG)
