"""The study of pruning: what it costs to remove a language's rare experts, and other choices of equally many."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from lsn_lens.applications.prune import Layers, prune_needs, prune_plan, random_experts
from lsn_lens.applications.prune_measuring import PruneLosses, prune_losses, sparse_losses
from lsn_lens.applications.slice_timing import slice_ratios
from lsn_lens.applications.slicing import slice_checkpoint
from lsn_lens.bars import tqdm
from lsn_lens.collection.collecting import collect
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import Run
from lsn_lens.statistics.sums import Statistics
from lsn_lens.studies.pages.prune import page as prune_page
from lsn_lens.studies.settings.prune import PruneSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout


class Variant(NamedTuple):
    """One way to choose what is removed: the experts' definition, the criterion, and the layers' rates."""

    experts: str
    by: str
    layers: Layers = "uniform"


VARIANTS = {
    "frequency": Variant("experts", "frequency"),
    "frequency, global": Variant("experts", "frequency", "global"),
    "cross-layer frequency": Variant("cross-layer", "frequency"),
    "cross-layer frequency, global": Variant("cross-layer", "frequency", "global"),
    "cross-layer frequency, level": Variant("cross-layer", "frequency", "level"),
    "inverted frequency": Variant("experts", "inverted"),
    "magnitude": Variant("experts", "magnitude"),
    "contribution": Variant("experts", "contribution"),
    "wanda": Variant("experts", "wanda"),
    "neurons: frequency": Variant("neurons", "frequency"),
    "neurons: firing": Variant("neurons", "firing"),
    "neurons: contribution": Variant("neurons", "contribution"),
    "neurons: wanda": Variant("neurons", "wanda"),
}
LAYERED = {name: name.split(", ")[0] for name, each in VARIANTS.items() if each.layers != "uniform"}


@dataclass(frozen=True, eq=False, kw_only=True)
class PruneStudy(Study):
    """The result of `prune_study`: losses with experts removed.

    Its tables: "losses" (`prune_losses` at every rate), "against-random" (`PruneLosses.against`, whole random experts,
    or random neurons for plans of neurons, as many in each layer), "against-languages" (the plan by frequency of each
    language against those of the other languages), "layers" (layer-varying against uniform rates), "summary" (means
    over languages), "sparse" (`sparse_losses`, frequent experts against random ones and against all), "text"
    (`Run.to_frame`); where they apply, "sliced" (`slice_ratios`) and "left-out" (plans that would leave a layer empty).
    """

    page: ClassVar[Any] = staticmethod(prune_page)


def methods_of(settings: PruneSettings) -> dict[str, ExpertFrequency]:
    """The definitions of experts that the study compares."""
    return {
        "experts": ExpertFrequency(size=settings.size),
        "cross-layer": ExpertFrequency(size=settings.size, selection="cross_layer"),
        "neurons": ExpertFrequency(size=1),
    }


def prune_run(
    model: Model,
    corpora: Any,
    settings: PruneSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect the statistics for `prune_study`, after all checks of its arguments.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages.
        settings: Settings of the study.
        out: Folder of finished shards; an interrupted run continues from it.
        progress: Show a progress bar.

    Raises:
        KeyError: No text for the language to cut.
        ValueError: As `collect`.
    """
    check_model(model)
    settings, corpora = settings or PruneSettings(), as_corpora(corpora)
    if settings.cut is not None and settings.cut not in corpora:
        raise KeyError(f"no text for cut={settings.cut!r}; name one of {list(corpora)}.")
    layout = Layout("blocks", settings.length, settings.separator, settings.max_tokens)
    methods = list(methods_of(settings).values())
    return collect(model, corpora, methods, out, layout=layout, extra=prune_needs(), progress=progress)


def prune_study(
    model: Model,
    corpora: Any,
    settings: PruneSettings | None = None,
    run: Run | None = None,
    source: str | Path | None = None,
    *,
    progress: bool = True,
) -> PruneStudy:
    """Remove experts and neurons at each rate, by frequency and by each baseline, and measure every language.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages; losses use their hold-out part.
        settings: Settings of the study.
        run: Result of `prune_run`; by default it is called.
        source: The name or folder of the model, to cut out one language's plans and time the smaller models; by default
            nothing is cut out.
        progress: Show progress bars.

    Raises:
        ValueError: The errors of `prune_run`.
    """
    started, settings, corpora = now(), settings or PruneSettings(), as_corpora(corpora)
    run = prune_run(model, corpora, settings, progress=progress) if run is None else run
    layout = Layout(length=settings.length, separator=settings.separator, max_tokens=settings.evaluation_tokens)
    text = held_out(model, corpora, layout, progress=progress)
    parts: dict[str, list[pd.DataFrame]] = {}
    found: dict[str, NeuronSet] = {}
    for rate in tqdm(settings.rates, desc="rates", disable=not progress):
        plans, left_out = _plans(model, run.statistics, settings, rate)
        found[f"frequency-{rate:g}"] = plans["frequency"]
        for name, table in _measured(model, corpora, text, plans, settings).items():
            parts.setdefault(name, []).append(table.assign(rate=rate))
        parts.setdefault("left-out", []).append(left_out)
    tables = {name: pd.concat(each, ignore_index=True) for name, each in parts.items()}
    tables = {name: each for name, each in tables.items() if len(each)}
    tables["summary"] = _summary(tables)
    tables["sparse"] = _sparse(model, corpora, run.statistics, settings, layout)
    if source is not None:
        tables["sliced"] = _sliced(source, found, settings.cut or next(iter(corpora)), progress)
    tables["text"] = run.to_frame().reset_index()
    return PruneStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=text.plan.describe(), found=found,
        started=started,
    )  # fmt: skip


def _plans(
    model: Model, statistics: Statistics, settings: PruneSettings, rate: float
) -> tuple[dict[str, NeuronSet], pd.DataFrame]:
    """All plans at one rate, each followed by its random controls; and those that would leave a layer empty."""
    methods, plans, left_out = methods_of(settings), dict[str, NeuronSet](), []
    first = prune_plan(model, statistics, rate, method=methods["experts"])
    share = (
        int(first.masks["mlp"][0].sum()) / first.masks["mlp"][0].numel()
    )  # a whole number of experts, which plans of neurons match
    for name, (kind, by, layers) in VARIANTS.items():
        make = partial(prune_plan, model, statistics, by=by, layers=layers, method=methods[kind], slope=settings.slope)
        try:
            plans[name] = make(rate=share if kind == "neurons" else rate)
        except DoesNotApply as why:
            left_out.append({"rate": rate, "plan": name, "why": str(why)})
            continue
        for seed in range(settings.seeds):
            control = _control(name, seed)
            if control not in plans:
                plans[control] = random_experts(plans[name], methods[kind].experts_of(statistics), seed)
    return plans, pd.DataFrame(left_out)


def _control(name: str, seed: int) -> str:
    """The name of a plan's random control; plans with as many experts in each layer share theirs."""
    kind, _, layers = VARIANTS[name]
    like = f" like {name}" if layers != "uniform" else ""
    return f"random {'neurons' if kind == 'neurons' else 'experts'}{like} {seed}"


def _measured(
    model: Model, corpora: Any, text: HeldOut, plans: dict[str, NeuronSet], settings: PruneSettings
) -> dict[str, pd.DataFrame]:
    """Losses and comparisons at one rate."""
    evaluate: Any = {name: "all" if name == "frequency" else "own" for name in plans}
    losses: PruneLosses = prune_losses(model, corpora, plans, evaluate=evaluate, text=text, progress=False)
    seeds, real = range(settings.seeds), [name for name in VARIANTS if name in plans]
    random = [losses.against(name, [_control(name, seed) for seed in seeds]) for name in real]
    layers = [losses.against(name, [uniform]) for name, uniform in LAYERED.items() if name in plans]
    return {
        "losses": losses.table, "against-random": pd.concat(random),
        "against-languages": losses.against_languages("frequency"),
        "layers": pd.concat(layers) if layers else pd.DataFrame(),
    }  # fmt: skip


def _summary(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Means over languages, and how many languages a plan is clearly better or worse for than its random control."""
    own = tables["losses"].loc[tables["losses"]["language"].eq(tables["losses"]["evaluated"])]
    columns = ["rate", "plan", "language", "kept_parameters", "bits_per_byte_change"]
    rows = tables["against-random"].merge(own[columns], on=["rate", "plan", "language"])
    rows["clearly_better"], rows["clearly_worse"] = rows["gain_low"].gt(0), rows["gain_high"].lt(0)
    means = dict.fromkeys(("kept_parameters", "rise", "bits_per_byte_change", "others_rise", "gain"), "mean")
    counts = dict.fromkeys(("clearly_better", "clearly_worse"), "sum")
    groups: Any = rows.groupby(["rate", "plan"], sort=False)
    return groups.agg({**means, **counts, "language": "size"}).reset_index().rename(columns={"language": "languages"})


def _sparse(
    model: Model, corpora: Any, statistics: Statistics, settings: PruneSettings, layout: Layout
) -> pd.DataFrame:
    """Sparse activation out of a language's frequent experts, out of random ones, and out of all."""
    method = methods_of(settings)["experts"]
    experts, plan = method.experts_of(statistics), prune_plan(model, statistics, settings.pool, method=method)
    pools = {"frequent experts": plan}
    pools |= {f"random experts {seed}": random_experts(plan, experts, seed) for seed in range(settings.seeds)}
    tables = []
    for selection in ("per_layer", "cross_layer"):
        losses = sparse_losses(
            model, corpora, pools, experts, settings.active, selection=selection, layout=layout, progress=False
        )
        random = losses.against("frequent experts", [name for name in pools if name.startswith("random")])
        every = losses.against("frequent experts", ["all experts"]).set_index("language")
        beside = {f"all_{name}": every[name].to_numpy() for name in ("gain_low", "gain_high")}
        rises = every["others_rise"].to_numpy()
        tables.append(random.assign(all_rise=rises, **beside, selection=selection).drop(columns="plan"))
    return pd.concat(tables, ignore_index=True)


def _sliced(source: str | Path, found: dict[str, NeuronSet], language: str, progress: bool) -> pd.DataFrame:
    """Size and speed of the checkpoints without one language's rare experts; the checkpoints are not kept."""
    tables = []
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        for name, plan in tqdm(found.items(), desc="cutting", disable=not progress):
            try:
                place = slice_checkpoint(source, plan[language], Path(folder) / name)
            except DoesNotApply as why:
                return pd.DataFrame({"plan": [name], "language": language, "measure": f"not cut: {why}"})
            ratios = slice_ratios(source, place, progress=False)
            tables.append(ratios.reset_index().assign(plan=name, language=language))
    return pd.concat(tables, ignore_index=True)
