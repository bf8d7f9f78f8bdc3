"""The study of sharing: what neurons of each type do when they are off or raised, and how a sibling model differs."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.analysis.contributions import contribution, down_norms
from lsn_lens.analysis.sharing import DEFAULT, activity, profile
from lsn_lens.analysis.siblings import compare_sharing
from lsn_lens.applications.type_effects import strengths, type_accuracy, type_losses
from lsn_lens.applications.type_log import ALL
from lsn_lens.collection.collecting import collect
from lsn_lens.generation.tasks.endings import ending_items
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.studies.pages.sharing import page as sharing_page
from lsn_lens.studies.settings.sharing import SharingSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora, load_corpora
from lsn_lens.text.plan import Layout
from lsn_lens.text.tokens import check_aligned

SHARED = "all-shared"


@dataclass(frozen=True, eq=False, kw_only=True)
class SharingStudy(Study):
    """The result of `sharing_study`.

    Its tables: "profile", "activity" and "contribution" (of `analysis`), "off" (`type_losses`; the column `neurons`
    says whether whole types or equally many neurons of each), "raised" (all-shared neurons under each factor),
    "task-off" and "task-raised" (`type_accuracy`), "claims" (what the paper claims, and whether it held), "text"
    (`Run.to_frame`); with a sibling: "siblings" (profiles side by side), "agreement", "transitions", "changed-units".
    """

    page: ClassVar[Any] = staticmethod(sharing_page)


def sharing_study(
    model: Model,
    corpora: Any,
    settings: SharingSettings | None = None,
    sibling: Model | None = None,
    *,
    progress: bool = True,
) -> SharingStudy:
    """Switch off and raise the neurons of each type, beside matched controls, on losses and on a task.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Parallel text of two languages or more: document i says the same in each. The `find` part is used.
        settings: Settings of the study.
        sibling: A second model of the same shape, to compare types with.
        progress: Show progress bars.

    Raises:
        DoesNotApply: Text that is not parallel, or too few documents.
        ValueError: As `type_losses`, `type_accuracy` or `compare_sharing`.
    """
    check_model(model)
    started, settings, corpora = now(), settings or SharingSettings(), as_corpora(corpora, hold_out=0.0)
    text, task = _split(corpora, settings)
    layout, method = Layout("documents", equal=False), replace(DEFAULT, check_parallel=settings.check_parallel)
    run = collect(model, load_corpora(text, hold_out=0.0), [method], layout=layout, progress=progress)
    tables = {
        "profile": profile(run.statistics, method),
        "activity": activity(run.statistics, method),
        "contribution": contribution(run.statistics, down_norms(model), method),
    }
    if sibling is not None:
        change = compare_sharing(model, sibling, text, method, halvings=settings.halvings, progress=progress)
        tables |= {"siblings": change.profiles, "agreement": change.agreement, "transitions": change.transitions,
                   "changed-units": change.units}  # fmt: skip
    every: dict[str, Any] = {"method": method, "seeds": settings.seeds, "progress": progress}
    sizes = {"whole type": None, f"{settings.share:.0%} of a layer": settings.share}
    off = [type_losses(model, text, share=share, **every).table.assign(neurons=name) for name, share in sizes.items()]
    raised = type_losses(model, text, actions=strengths(settings.factors), types=[SHARED], **every).table
    items = ending_items(task, choices=settings.choices)
    every["normalise"] = "bytes"
    tables |= {"off": pd.concat(off, ignore_index=True), "raised": raised}
    tables["task-off"] = type_accuracy(model, items, **every).table
    actions = strengths(settings.task_factors)
    tables["task-raised"] = type_accuracy(model, items, actions=actions, types=[SHARED], **every).table
    tables |= {"claims": claims(tables), "text": run.to_frame().reset_index()}
    return SharingStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=run.settings["text"], started=started
    )


def claims(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What the paper claims, as tested: `claim`, `tested`, `change`, `low`, `high`, and `verdict`.

    "held": the interval lies on the claimed side of 0. "did not hold": it lies on the other side. "undecided": it
    contains 0, or could not be computed.
    """
    whole = _rows(tables["off"], control="contribution", type=SHARED, neurons="whole type")
    answers = _rows(tables["task-off"], control="contribution", type=SHARED)
    rows = [
        _claim("off: all-shared neurons matter", "loss, against 0", whole, "change", 1),
        _claim("off: all-shared neurons matter", "loss, against equal number and contribution", whole, "excess", 1),
        _claim("off: all-shared neurons matter", "accuracy, against 0", answers, "change", -1),
        _claim("off: all-shared neurons matter", "accuracy, against equal number and contribution", answers,
               "excess", -1),
    ]  # fmt: skip
    for name, sign, measure in (("raised", -1, "loss"), ("task-raised", 1, "accuracy")):
        table = _rows(tables[name], control="contribution", type=SHARED)
        for action in table["action"].unique():
            if float(str(action).split()[-1]) > 1:
                words = f"{measure}, {action}"
                own = _rows(table, action=action)
                rows.append(_claim("raised: all-shared neurons help", words, own, "change", sign))
                rows.append(_claim("raised: all-shared neurons help", f"{words}, against control", own, "excess", sign))
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in {"language": ALL, **values}.items():
        table = table.loc[table[column].eq(value)]
    return table


def _claim(claim: str, tested: str, rows: pd.DataFrame, value: str, sign: int) -> dict[str, Any]:
    row = rows.iloc[0]
    low, high = (float(row[f"{value}_{end}" if value == "excess" else end]) for end in ("low", "high"))
    sides = sorted((sign * low, sign * high))
    verdict = "held" if sides[0] > 0 else "did not hold" if sides[1] < 0 else "undecided"
    return {"claim": claim, "tested": tested, "change": float(row[value]), "low": low, "high": high, "verdict": verdict}


def _split(corpora: Any, settings: SharingSettings) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The items of the losses, and behind them those of the task."""
    count = settings.items + settings.task_items
    text = {label: list(islice(corpus.find, count)) for label, corpus in corpora.items()}
    if settings.check_parallel:
        check_aligned({label: corpus.find.places[:count] for label, corpus in corpora.items()})
    few = {label: len(each) for label, each in text.items() if len(each) < count}
    if few:
        raise DoesNotApply(
            f"the study takes {settings.items} + {settings.task_items} documents of each language, and there are "
            f"{few}: give more text, or fewer items and task_items."
        )
    first, rest = ({label: each[part] for label, each in text.items()}
                   for part in (slice(settings.items), slice(settings.items, count)))  # fmt: skip
    return first, rest
