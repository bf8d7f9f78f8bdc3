"""The study of growth: how a language grows in a model over the checkpoints of its training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.applications.growth_checkpoints import Checkpoint
from lsn_lens.applications.growth_measuring import growth
from lsn_lens.applications.growth_plan import LossCurve, calibration, corpus_plan, own_share
from lsn_lens.applications.growth_result import Growth, frozen_units
from lsn_lens.applications.growth_stages import StageRule, false_stages
from lsn_lens.report.page import Report
from lsn_lens.studies.pages.growth import page as growth_page
from lsn_lens.studies.settings.growth import GrowthSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout


@dataclass(frozen=True, eq=False, kw_only=True)
class GrowthStudy(Study):
    """The result of `growth_study`: languages over checkpoints.

    Its tables: "losses", "units", "working", "layers", "dependence" and "survival" of `Growth`; "units-late", the units
    by the thresholds of the last checkpoint; "declines", one row per new language and reference: the counts at the
    first checkpoint after the switch and at the last one, with intervals, and `declines`: the intervals lie apart;
    "stages" (`find_stages` since the switch, by new language); "false-stages" (`false_stages` of as many checkpoints);
    "calibration" (`calibration` of the share from the loss and the working-language share, by new language), "shares"
    (both shares by checkpoint), and "plan" (`corpus_plan`).

    Attributes:
        growth: All that was measured.
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(growth_page)
    growth: Growth


def growth_of(
    checkpoints: Mapping[str, Checkpoint | str | Path],
    corpora: Any,
    settings: GrowthSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> Growth:
    """`growth` with the settings of the study.

    Args:
        checkpoints: Name -> local folder, Hub id or `Checkpoint`, in order.
        corpora: At least two languages.
        settings: Settings of the study.
        out: Folder of finished checkpoints; an interrupted call goes on after the last one.
        progress: Show progress bars.
        options: Options of `load_model`.

    Raises:
        KeyError: An unknown checkpoint, or a new language without text.
        ValueError: As `growth`; a switch at the last checkpoint.
    """
    settings, corpora = settings or GrowthSettings(), as_corpora(corpora)
    dominant = settings.dominant or next(iter(corpora))
    names = list(checkpoints)
    switch, reference = settings.switch or next(iter(names), ""), settings.reference
    for what, name in (("switch", switch), *((f"best of {k}", v) for k, v in settings.best.items())):
        if len(names) > 1 and name not in checkpoints:
            raise KeyError(f"no checkpoint {what}={name!r}; the checkpoints are {names}.")
    if strange := [label for label in settings.best if label not in corpora or label == dominant]:
        raise KeyError(f"best={settings.best}: {strange} are no new languages; the corpora have {list(corpora)}.")
    if len(names) > 1 and switch == names[-1]:
        raise ValueError(f"switch={switch!r} is the last checkpoint: expected one with checkpoints after it.")
    if reference is None and len(names) > 1:
        reference = names[names.index(switch) + 1]
    layouts = [Layout("blocks", settings.length, max_tokens=most, shards=8)
               for most in (settings.max_tokens, settings.evaluation_tokens)]  # fmt: skip
    return growth(
        checkpoints, corpora, dominant, reference, out, rate=settings.rate, layout=layouts[0], evaluation=layouts[1],
        at_least=settings.at_least, ratio=settings.ratio, top_k=settings.top_k, seeds=settings.seeds,
        replicates=settings.replicates, progress=progress, **options,
    )  # fmt: skip


def growth_study(
    checkpoints: Mapping[str, Checkpoint | str | Path],
    corpora: Any,
    settings: GrowthSettings | None = None,
    found: Growth | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> GrowthStudy:
    """Follow the languages over the checkpoints, find stages, and plan a corpus.

    Args:
        checkpoints: Name -> local folder, Hub id or `Checkpoint`, in order.
        corpora: At least two languages.
        settings: Settings of the study.
        found: Result of `growth_of` with these settings; by default it is called.
        progress: Show progress bars.
        options: Options of `load_model`.

    Raises:
        KeyError: As `growth_of`.
        ValueError: As `growth_of`.
    """
    started, settings = now(), settings or GrowthSettings()
    grown = growth_of(checkpoints, corpora, settings, progress=progress, **options) if found is None else found
    switch = settings.switch or grown.checkpoints[0]
    new = [label for label in grown.languages if label != grown.dominant]
    late = frozen_units(
        grown.runs, grown.checkpoints[-1], settings.rate, replicates=settings.replicates, progress=progress
    )  # fmt: skip
    rule = StageRule(window=settings.window)
    since = len(grown.checkpoints) - grown.checkpoints.index(switch)
    shares = pd.concat([_shares(grown, label, switch) for label in new], ignore_index=True)
    tables = {
        "losses": grown.losses, "units": grown.units, "units-late": late,
        "declines": declines_table({grown.reference: grown.units, grown.checkpoints[-1]: late}, new, switch),
        "working": grown.working, "layers": grown.layers, "dependence": grown.dependence, "survival": grown.survival,
        "stages": pd.concat([grown.stages(label, switch, rule).assign(language=label) for label in new]),
        "false-stages": false_stages(since, rule) if since >= 6 else pd.DataFrame(),
        "shares": shares,
        "calibration": pd.DataFrame([_calibration(shares, label) for label in new]),
        "plan": _plan(grown, new, switch, settings),
    }  # fmt: skip
    tables = {name: table for name, table in tables.items() if len(table)}
    used = grown.runs[grown.checkpoints[-1]].settings
    return GrowthStudy(
        tables=tables, settings=plain(settings), used=used, measured=grown.origin["text"], started=started, growth=grown
    )


def declines_table(units: Mapping[str, pd.DataFrame], languages: list[str], switch: str) -> pd.DataFrame:
    """The table "declines" of `GrowthStudy`, from tables of units by their reference."""
    rows = []
    for reference, table in units.items():
        for language in languages:
            curve = table.loc[table["language"].eq(language)].set_index("checkpoint")
            first, last = (curve.iloc[place] for place in (list(curve.index).index(switch) + 1, -1))
            row = {"language": language, "reference": reference, "first": first["frozen"], "last": last["frozen"],
                   "first_total": first["frozen_total"], "last_total": last["frozen_total"]}  # fmt: skip
            if "frozen_low" in curve:
                ends = {f"{name}_{end}": each[f"frozen_{end}"]
                        for name, each in (("first", first), ("last", last)) for end in ("low", "high")}  # fmt: skip
                row |= ends | {"declines": bool(ends["last_high"] < ends["first_low"])}
            rows.append(row)
    return pd.DataFrame(rows)


def _shares(grown: Growth, language: str, switch: str) -> pd.DataFrame:
    """The share from the loss, and the measured working-language share, at each checkpoint since the switch."""
    losses, working = -grown.score(language, switch), grown.own_system(language, switch)
    start, end = float(losses.iloc[0]), float(losses.min())
    if not start > end:  # the language only lost: the proxy is not defined
        return pd.DataFrame()
    from_loss = [own_share(float(loss), start, end) for loss in losses]
    return pd.DataFrame({"language": language, "checkpoint": losses.index, "loss": losses.to_numpy(),
                         "share_from_loss": from_loss, "working_share": working.to_numpy()})  # fmt: skip


def _calibration(shares: pd.DataFrame, language: str) -> dict[str, Any]:
    rows: Any = shares.loc[shares["language"].eq(language)].dropna() if len(shares) else shares
    if not len(rows):
        return {"language": language, "checkpoints": 0}
    rows = rows.set_index("checkpoint")
    return {"language": language, **calibration(rows["share_from_loss"], rows["working_share"])}


def _plan(grown: Growth, languages: list[str], switch: str, settings: GrowthSettings) -> pd.DataFrame:
    curves = {}
    for language in languages:
        losses = -grown.score(language, switch)
        best = losses.loc[settings.best[language]] if language in settings.best else losses.min()
        if losses.iloc[0] > losses.min():
            curves[language] = LossCurve(float(losses.iloc[0]), float(best), float(losses.min()))
    return corpus_plan(curves, settings.dominant_tokens) if curves else pd.DataFrame()
