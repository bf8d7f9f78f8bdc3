"""The study of ground truth: plant units of known role several times, and score which methods find them."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.files import write_bytes
from lsn_lens.methods.catalogue import METHODS
from lsn_lens.planted.detectors import DetectorScores, score_detectors
from lsn_lens.planted.measuring import RoleError
from lsn_lens.planted.parts import PartName
from lsn_lens.planted.planting import Planted, load_planted, plant
from lsn_lens.planted.roles import ROLES
from lsn_lens.report.page import Report
from lsn_lens.studies.pages.ground_truth import page as ground_truth_page
from lsn_lens.studies.settings.ground_truth import GroundTruthSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

Corpora = Mapping[str, LanguageCorpus]
REFUSED = ["part", "seed", "why"]


@dataclass(frozen=True, eq=False, kw_only=True)
class GroundTruthStudy(Study):
    """The result of `ground_truth_study`: which methods find the planted units.

    Its tables: "methods", "by-language" and "roles" (of `DetectorScores`), "planted" (`Planted.measured`), "damage"
    (`Planted.damage`), "sensitivity" (the scores on less text and fewer languages) and "refused" (seeds without valid
    roles).

    Attributes:
        plantings: The planted models.
        skipped: Methods that were left out, with the reason.
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(ground_truth_page)
    plantings: tuple[Planted, ...]
    skipped: Mapping[str, str]


def plant_parts(
    source: str | Path,
    corpora: Any,
    folder: Path | str,
    settings: GroundTruthSettings | None = None,
    *,
    progress: bool = True,
) -> tuple[list[Planted], pd.DataFrame]:
    """Plant into each part as often as the settings say, or open earlier plantings.

    Args:
        source: "demo", a local folder or a Hub id.
        corpora: At least two languages.
        folder: Folder of the checkpoints, one subfolder per part and seed.
        settings: Settings of the study.
        progress: Show a progress bar.

    Returns:
        The plantings, and one row per seed whose roles did not hold: `part`, `seed`, `why`.

    Raises:
        ValueError: Fewer languages than `fewer_languages`, a folder with other settings, or too many refused seeds.
    """
    corpora = as_corpora(corpora)
    settings = settings or GroundTruthSettings()
    wrong = [count for count in settings.fewer_languages if not 2 <= count <= len(corpora)]
    if wrong:
        raise ValueError(f"fewer_languages={wrong}: expected 2 to {len(corpora)}, as many as there are.")
    plantings: list[Planted] = []
    refused: list[dict[str, Any]] = []
    for part in settings.parts:
        seeds = itertools.count(settings.seed)
        while sum(each.part == part for each in plantings) < settings.plantings:
            seed = next(seeds)
            planted = _planting(source, corpora, Path(folder), settings, part, seed, progress)
            if isinstance(planted, Planted):
                plantings.append(planted)
                continue
            refused.append({"part": part, "seed": seed, "why": planted})
            if sum(each["part"] == part for each in refused) > settings.plantings:
                raise ValueError(f"{part}: roles did not hold with too many seeds. {planted}")
    return plantings, pd.DataFrame(refused, columns=REFUSED)


def _planting(
    source: str | Path, corpora: Corpora, folder: Path, settings: GroundTruthSettings, part: PartName, seed: int,
    progress: bool,
) -> Planted | str:  # fmt: skip
    """One planting, or why its roles do not hold."""
    roles = list(settings.roles or ROLES)
    asked = {"model": str(source), "part": part, "each": settings.each, "effect": settings.effect,
             "tokens": settings.tokens, "roles": roles, "languages": list(corpora)}  # fmt: skip
    folder = folder / f"{part}-{seed}"
    kept = folder.with_suffix(".json")
    if kept.is_file():
        before = json.loads(kept.read_text())
        if before["asked"] != asked:
            raise ValueError(f"{folder} was planted with other settings. Give another folder, or remove it.")
        return before["refused"] or load_planted(folder)
    refused, planted = "", None
    try:
        planted = plant(
            source, corpora, folder, part=part, roles=roles, each=settings.each, effect=settings.effect,
            tokens=settings.tokens, seed=seed, progress=progress,
        )  # fmt: skip
    except RoleError as error:
        refused = str(error)
    write_bytes(kept, json.dumps({"asked": asked, "refused": refused}, indent=1).encode())
    return planted or refused


def ground_truth_study(
    source: str | Path,
    corpora: Any,
    folder: Path | str,
    settings: GroundTruthSettings | None = None,
    *,
    progress: bool = True,
) -> GroundTruthStudy:
    """Plant units of known role and score how well methods find them, on all text and on less.

    Args:
        source: "demo", a local folder or a Hub id.
        corpora: At least two languages.
        folder: Folder of the checkpoints; earlier plantings are reused.
        settings: The units to plant, and the variations to try.
        progress: Show progress bars.

    Raises:
        ValueError: The errors of `plant_parts`, or no method scores the planted units.
    """
    corpora = as_corpora(corpora)
    started, settings = now(), settings or GroundTruthSettings()
    plantings, refused = plant_parts(source, corpora, folder, settings, progress=progress)
    scores = _scores(plantings, corpora, settings.methods or tuple(METHODS), settings.max_tokens, settings, progress)
    planted = [each.measured.assign(part=each.part, planting=number) for number, each in enumerate(plantings)]
    damage = pd.DataFrame([each.damage for each in plantings]).rename_axis("planting").reset_index()
    damage.insert(0, "part", [each.part for each in plantings])
    tables = {
        "methods": scores.methods, "by-language": scores.by_language, "roles": scores.roles,
        "planted": pd.concat(planted, ignore_index=True), "damage": damage,
        "sensitivity": _sensitivity(plantings, corpora, scores, settings, progress), "refused": refused,
    }  # fmt: skip
    return GroundTruthStudy(
        tables=tables, settings={"model": str(source), **plain(settings)}, used=scores.settings,
        measured=scores.settings["text"], started=started, plantings=tuple(plantings), skipped=scores.skipped,
    )  # fmt: skip


def _scores(
    plantings: list[Planted], corpora: Corpora, methods: tuple[str, ...], cap: int | None,
    settings: GroundTruthSettings, progress: bool,
) -> DetectorScores:  # fmt: skip
    layout = Layout(kind="documents", max_tokens=cap)  # works for all methods
    return score_detectors(plantings, corpora, methods, layout=layout, backend=settings.backend, progress=progress)


def _sensitivity(
    plantings: list[Planted], corpora: Corpora, whole: DetectorScores, settings: GroundTruthSettings, progress: bool
) -> pd.DataFrame:
    """The first planting of each part, on less text and in fewer languages."""
    less: list[tuple[str, Corpora, int | None]] = [(f"{cap:,} tokens", corpora, cap) for cap in settings.less_text]
    for count in settings.fewer_languages:
        some = {label: corpora[label] for label in list(corpora)[:count]}
        less.append((f"{count} languages", some, settings.max_tokens))
    rows = []
    for part in settings.parts:
        first = next(number for number, each in enumerate(plantings) if each.part == part)
        mine: Any = whole.by_language.loc[whole.by_language["planting"].eq(first)]
        rows.append(mine.assign(text="all"))
        methods = tuple(dict.fromkeys(mine["method"]))
        for text, some, cap in less if methods else ():
            scores = _scores([plantings[first]], some, methods, cap, settings, progress)
            rows.append(scores.by_language.assign(text=text))
    groups: Any = pd.concat(rows).groupby(["part", "text", "method"], sort=False)
    return groups[["average_precision", "chance", "recall"]].mean().reset_index()
