"""The study of the multilingual workflow: find units, choose stages, turn one switch off at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lsn_lens.collection.collecting import collect
from lsn_lens.evaluation.stages import Stages, search_stages, split_hold_out
from lsn_lens.evaluation.workflow import workflow_effects, workflow_grid, workflow_summary
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.values import mean_ablation, other_mean_ablation
from lsn_lens.methods.detecting import detect
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.studies.pages.workflow import page as workflow_page
from lsn_lens.studies.settings.workflow import WorkflowSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

ABLATIONS = {
    "zero": lambda _: zero, "dataset mean": mean_ablation, "other languages' mean": other_mean_ablation
}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkflowStudy(Study):
    """The result of `workflow_study`: loss increases by switch.

    Its tables: "grid" (`workflow_grid`), "effects" (`workflow_effects`), "summary" (`workflow_summary`), "stages"
    where they were searched (`search_stages`), "neurons" (`NeuronSet.to_frame`) and "text" (`Run.to_frame`).

    Attributes:
        stages: The stages, given or searched.
        units: The units that were turned off.
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(workflow_page)
    stages: Stages
    units: NeuronSet


def workflow_run(
    model: Model,
    corpora: Any,
    settings: WorkflowSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect the statistics for `workflow_study`, after all checks of its arguments.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages, including the one to compare with.
        settings: Settings of the study.
        out: Folder of finished shards; an interrupted run continues from it.
        progress: Show a progress bar.

    Raises:
        KeyError: No text for English.
        ValueError: Stages that do not fit the model, or as `collect`.
    """
    check_model(model)
    settings = settings or WorkflowSettings()
    corpora = as_corpora(corpora)
    if settings.english not in corpora:
        raise KeyError(f"no text for english={settings.english!r}; name one of {list(corpora)} as `english`.")
    stages = _given(settings)
    if stages is not None:
        stages.layers(model.cfg.n_layers)
    layout = Layout("auto", settings.length, settings.separator, settings.max_tokens)
    return collect(model, corpora, [settings.method], out, layout=layout, progress=progress)


def workflow_study(
    model: Model,
    corpora: Any,
    settings: WorkflowSettings | None = None,
    run: Run | None = None,
    *,
    progress: bool = True,
) -> WorkflowStudy:
    """Find units, choose where the stages end, and turn one stage and structure off at a time.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages; losses use their hold-out part.
        settings: Settings of the study.
        run: Result of `workflow_run`; by default it is called.
        progress: Show progress bars.

    Raises:
        KeyError: No text for English.
        ValueError: The errors of `workflow_run`, or units outside attention and MLP layers.
    """
    started, settings = now(), settings or WorkflowSettings()
    corpora = as_corpora(corpora)
    run = workflow_run(model, corpora, settings, progress=progress) if run is None else run
    found, english, stages = detect(run, settings.method), settings.english, _given(settings)
    shared: dict[str, Any] = {
        "english": english, "action": ABLATIONS[settings.ablation](run.statistics), "progress": progress
    }  # fmt: skip
    tables = {}
    if stages is None:
        first, corpora = split_hold_out(corpora)
        layout = _evaluation(settings, settings.search_tokens)
        stages, tables["stages"] = search_stages(
            model, first, found, criterion=settings.criterion, layout=layout, **shared
        )
    layout = _evaluation(settings, settings.evaluation_tokens)
    tables["grid"] = workflow_grid(model, corpora, found, stages, seeds=settings.seeds, layout=layout, **shared)
    tables["effects"] = workflow_effects(tables["grid"], english)
    tables["summary"] = workflow_summary(tables["effects"], english)
    tables |= {"neurons": found.to_frame(), "text": run.to_frame().reset_index()}
    return WorkflowStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=tables["grid"].attrs["text"],
        found={settings.method: found}, started=started, stages=stages, units=found,
    )  # fmt: skip


def _given(settings: WorkflowSettings) -> Stages | None:
    """The stages that the settings name; None where they are to be searched."""
    if settings.understand is None or settings.generate is None:
        return None
    return Stages(settings.understand, settings.generate)


def _evaluation(settings: WorkflowSettings, tokens: int | None) -> Layout:
    """How text becomes batches to measure with."""
    return Layout(length=settings.length, separator=settings.separator, max_tokens=tokens)
