"""The study of steering: every way at every strength or count, random counterparts, a prompt, and deactivation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lsn_lens.collection.collecting import collect
from lsn_lens.evaluation.perplexity import loss_table
from lsn_lens.generation.steering.deactivation import deactivate, deactivation_table
from lsn_lens.generation.steering.tables import (
    choose_doses,
    dose_response,
    steering_meaning,
    steering_summary,
    steering_table,
)
from lsn_lens.generation.steering.trials import prompts_from
from lsn_lens.generation.steering.ways import (
    Steering,
    arithmetics,
    dimensions,
    direction,
    forcing,
    instruction,
    steer,
    steering_losses,
)
from lsn_lens.generation.texts.identifiers import identifier
from lsn_lens.interventions.values import language_medians
from lsn_lens.methods.detecting import detect
from lsn_lens.methods.language_dimensions import LanguageDimensions
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.studies.pages.steering import page as steering_page
from lsn_lens.studies.settings.steering import SteeringSettings, check_layer
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

METHODS = ("average_precision", "plnd", "lape", "diffmean", "language_dimensions")
RELEASED = "language_dimensions-released"
AS_RELEASED = LanguageDimensions(variant="released")
Corpora = Mapping[str, LanguageCorpus]


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeringStudy(Study):
    """The result of `steering_study`: the language of generated texts under each way to steer.

    Its tables: "doses" (`dose_response`), "steering" (`steering_table`), "summary" (`steering_summary`), "meaning"
    (`steering_meaning`, against the unsteered texts), "losses" (`steering_losses`), "deactivation"
    (`deactivation_table`), the texts behind them, "texts", "texts-doses" and "texts-deactivation", and "text"
    (`Run.to_frame`).
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(steering_page)


def steering_run(
    model: Model,
    corpora: Any,
    settings: SteeringSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect the statistics for `steering_study`, after all checks of its arguments.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages.
        settings: Settings of the study.
        out: Folder of finished shards; an interrupted run continues from it.
        progress: Show a progress bar.

    Raises:
        ValueError: A layer that the model lacks, too little text for the prompts or losses, prompts that exceed the
            model's context, or as `collect`.
        KeyError: A language that the identifier does not know.
    """
    check_model(model)
    settings = settings or SteeringSettings()
    check_layer(settings, model.cfg.n_layers)
    corpora = as_corpora(corpora)
    identifier(corpora, settings.identifier, ruled_out=settings.ruled_out)
    _texts(settings, model, corpora)
    loss_table(model, corpora, [], layout=_evaluation(settings), progress=progress)
    layout = Layout(kind="documents", max_tokens=settings.max_tokens)
    methods = [*METHODS, AS_RELEASED] if structure.has_site(model, "resid_mid") else METHODS  # none in parallel blocks
    return collect(model, corpora, methods, out, layout=layout, progress=progress)


def steering_study(
    model: Model,
    corpora: Any,
    settings: SteeringSettings | None = None,
    run: Run | None = None,
    *,
    progress: bool = True,
) -> SteeringStudy:
    """Steer from every language to every other, and switch each language off.

    Strengths and counts are chosen on texts without a prompt; the tables use other samples, and texts after prompts.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages; prompts and losses use their hold-out part.
        settings: Settings of the study.
        run: Result of `steering_run`; by default it is called.
        progress: Show progress bars.

    Raises:
        ValueError: The errors of `steering_run`.
        FloatingPointError: NaN or infinity under a steering; the message names it.
    """
    started, settings = now(), settings or SteeringSettings()
    corpora = as_corpora(corpora)
    run = steering_run(model, corpora, settings, progress=progress) if run is None else run
    targets, sets = list(corpora), find(settings, run)
    identify = identifier(targets, settings.identifier, ruled_out=settings.ruled_out)
    made: dict[str, Any] = {"tokens": settings.tokens, "temperature": settings.temperature, "progress": progress}
    prompts, words = _texts(settings, model, corpora)
    every = ways(settings, model, run, sets)
    sweep = [each for each in every if each.seed in (None, 0)]
    first = steer(model, sweep, {}, targets, identify, samples=settings.samples, **made)
    doses = dose_response(first)
    best = choose_doses(doses)
    chosen = [*(each for each in every if each.dose == best[each.name]), instruction(words)]
    texts = steer(model, chosen, prompts, targets, identify, samples=settings.samples, seed=1, **made)
    losses = steering_losses(model, corpora, chosen, targets, layout=_evaluation(settings), progress=progress)
    table = steering_table(texts, losses)
    middle = sorted(settings.counts)[len(settings.counts) // 2]
    neurons = {"average_precision": sets[_precision(middle)], "plnd": sets["plnd"], "lape": sets["lape"]}
    off = deactivate(model, neurons, prompts, identify, seeds=settings.seeds, samples=3, **made)
    tables = {
        "doses": doses, "steering": table, "summary": steering_summary(table), "losses": losses,
        "meaning": steering_meaning(texts), "deactivation": deactivation_table(off), "texts": texts,
        "texts-doses": first, "texts-deactivation": off, "text": run.to_frame().reset_index(),
    }  # fmt: skip
    return SteeringStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=losses.attrs["text"], found=sets,
        started=started,
    )  # fmt: skip


def _texts(settings: SteeringSettings, model: Model, corpora: Corpora) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Prompts in each language, and prefixes that ask for a language: texts in this language."""
    prompts = prompts_from(model, corpora, count=settings.prompts, tokens=settings.prompt_tokens)
    texts = prompts_from(model, corpora, count=3, tokens=settings.prompt_tokens, part="find")
    words = {target: "\n".join([*some, ""]) for target, some in texts.items()}
    whole = [front + each for front in words.values() for some in prompts.values() for each in some]
    longest = 1 + max(map(len, model.tokenizer(whole, add_special_tokens=False)["input_ids"]))
    if longest + settings.tokens > model.cfg.n_ctx:
        raise ValueError(
            f"the longest prompt, with three texts in front, has {longest} tokens; with {settings.tokens} new ones it "
            f"exceeds the model's context of {model.cfg.n_ctx}. Lower prompt_tokens or tokens."
        )
    return prompts, words


def _evaluation(settings: SteeringSettings) -> Layout:
    """How text becomes batches to measure losses with."""
    return Layout(max_tokens=settings.evaluation_tokens)


def _precision(count: int) -> str:
    """The name of average precision's units for a count."""
    return f"average_precision-{count}"


def find(settings: SteeringSettings, run: Run) -> dict[str, NeuronSet]:
    """Units by method; those of average precision for each count."""
    precise = {_precision(count): detect(run, "average_precision", count=count) for count in settings.counts}
    others = {name: detect(run, name) for name in ("plnd", "language_dimensions")}
    if not run.lacks(AS_RELEASED):
        others[RELEASED] = detect(run, AS_RELEASED)
    return precise | others | {"lape": detect(run, "lape", rate=settings.rate)}


def ways(settings: SteeringSettings, model: Model, run: Run, sets: Mapping[str, NeuronSet]) -> list[Steering]:
    """Every way to steer at every strength or count, with random counterparts."""
    statistics = run.statistics
    layer = model.cfg.n_layers // 2 if settings.layer is None else settings.layer
    medians = language_medians(statistics)
    every: list[Steering] = []
    for seed in (None, *range(settings.seeds)):
        for count in settings.counts:
            every.append(forcing(sets[_precision(count)], medians, name="average_precision", dose=count, seed=seed))
        for strength in settings.strengths:
            every += [
                arithmetics(statistics, sets["lape"], "additive", strength, name="lape", seed=seed),
                arithmetics(statistics, sets["plnd"], "additive", strength, name="plnd", seed=seed),
                direction(statistics, layer, strength, seed=seed),
                dimensions(statistics, sets["language_dimensions"], strength, seed=seed),
            ]
        for strength in settings.released_strengths if RELEASED in sets else ():
            last: Any = {"layer": layer, "variant": "released"}
            every.append(dimensions(statistics, sets[RELEASED], strength, name=RELEASED, seed=seed, **last))
    return every
