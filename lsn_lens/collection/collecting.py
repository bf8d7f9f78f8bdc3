"""One pass over the text for all methods: hooks, sums, shards, resume."""

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch.distributed as dist
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.collection.folders import check_room, claim, joined, locked, settle
from lsn_lens.collection.memory import requirements
from lsn_lens.collection.passes import Pass, Tensors, constants_of, way_of
from lsn_lens.collection.planning import plan_of
from lsn_lens.collection.wanted import (
    Fits,
    Wanted,
    check_layout,
    named_methods,
    needs_with_sums,
    refuse,
    refused_by_layout,
    refused_by_text,
)
from lsn_lens.files import write_bytes
from lsn_lens.methods.base import Method, check_methods
from lsn_lens.model import hooks, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import fingerprint
from lsn_lens.refusal import listing_parameters
from lsn_lens.runs.run import Run, layers_of, load_run, read_description
from lsn_lens.runs.shards import CONSTANTS, documents_path, is_finished, read_shard, shard_path, write_shard
from lsn_lens.statistics.needs import Need
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout, Plan, Shard, layout_of
from lsn_lens.workers import Report, mapped, shares


@listing_parameters
def collect(
    model: Model,
    corpora: Any,
    methods: Iterable[str | Method] | str | Method | None = ("lape",),
    out: str | Path | None = None,
    *,
    layout: Layout | None = None,
    extra: Iterable[Need] = (),
    progress: bool = True,
) -> Run:
    """Run the model once over the corpora's `find` part, and keep the statistics that the methods need.

    With `out`, finished shards stay on disk: the same call resumes an interrupted run, with a bit-identical result.
    Under `torchrun` the processes share the shards of one `out`. An existing run on the same text is extended by the
    statistics that it lacks, completely or not at all. Memory does not depend on the amount of text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: From `load_corpora`, or any source that it accepts; two languages or more.
        methods: Names or method objects; None for all methods that apply to the model and the text. A method that takes
            all kinds of units by default (plnd, average_precision) leaves out the bases that the model lacks. What was
            left out, and why, is in `run.settings["left_out"]`.
        out: The run's folder; None keeps the run in memory.
        layout: How text is cut into batches, with equal amounts per language. Default for all methods: one row per
            document if every document of every language fits (`Layout(kind="auto")`), else packed blocks.
        extra: Further statistics, for example `DocumentValues("mlp_post", "maximum")`.
        progress: Show a progress bar with tokens per second and the time left.

    Returns:
        The run, with the merged sums in `run.statistics`.

    Raises:
        DoesNotApply: A named method does not apply to this model, layout or text (plnd, average_precision, sharing and
            transfer take one row per document); raised before the pass.
        TypeError: An unknown parameter; the message lists the known ones.
        ValueError: Unusable corpora, layout or model; a folder made with other settings.
        FloatingPointError: NaN or infinity in the model; the message names layer, language and document.
        RuntimeError: Another process writes to `out`.
        OSError: The disk is full.
    """
    check_model(model)
    corpora, layout, extra = as_corpora(corpora), layout_of(layout, Layout(kind="auto")), list(extra)
    fits, wanted = _asked(model, methods, layout, extra)
    if len(corpora) < 2:
        raise ValueError(f"got the languages {list(corpora)}: comparing languages takes at least two.")
    rank, world = _processes(out)
    with contextlib.ExitStack() as stack:
        if out is not None and rank == 0:
            stack.enter_context(locked(Path(out)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsn_lens-")))
        plan = plan_of(model, corpora, scratch, layout, progress=progress and rank == 0)
        wanted = _fitting(fits, wanted, plan, strict=methods is not None)
        check_layout(fits.list(extra), plan.layout, plan.too_long)
        needs = fits.list(needs_with_sums([*wanted.every_need(), *extra]))
        widths = {site: fits.width(site) for need in needs for site in need.sites}
        job = _Job(model, plan, needs, widths, rank, world, progress)
        if out is None:
            settings, constants = job.settings(wanted), _constants(job, None)
            shards, documents, costs = _run_shards(job, None, constants)
            return Run(shards, settings, None, documents if settings["rows"] else {}, constants, costs)
        _collect_into(Path(out), job, wanted)
    return load_run(out)


@dataclass(frozen=True)
class _Job:
    """The needs to collect, the text, and this process's share of the work.

    `read` are hook points inside a block that other parts of the run read; they take part in choosing the forward pass.
    """

    model: Model
    plan: Plan
    needs: list[Need]
    widths: Mapping[str, int]
    rank: int
    world: int
    progress: bool
    read: Sequence[str] = ()

    def row_keys(self) -> list[str]:
        """Keys of the needs that keep values of single documents."""
        return [need.key for need in self.needs if need.rows(self.model.cfg.n_layers, self.widths)]

    def settings(self, wanted: Wanted) -> dict[str, Any]:
        """The run's settings, as plain data."""
        forward, read = way_of(self.model, self.needs, self.widths, self.read)
        return {
            "model": {**structure.describe(self.model), "fingerprint": fingerprint(self.model)},
            "text": self.plan.describe(),
            "statistics": [each.key for each in self.needs],
            "rows": bool(self.row_keys()),
            "left_out": wanted.describe(),
            "hooks": hooks.describe_hooks(self.model),  # part of the model: a run resumes only under the same hooks
            "forward": forward,
            "read": read,
        }

    def required(self) -> pd.DataFrame:
        """Bytes that the run will take, per need."""
        plan, shards = self.plan, Counter(each.language for each in self.plan.shards)
        documents = plan.rows if plan.layout.kind == "documents" else dict.fromkeys(plan.rows, 0)
        return requirements(self.needs, self.model.cfg.n_layers, self.widths, shards, documents)

    def part(self, layer: Mapping[str, Any]) -> "_Job":
        """The part of this job that belongs to one layer of a run's folder."""
        needs = [need for need in self.needs if need.key in layer["statistics"]]
        return replace(self, needs=needs, read=layer.get("read", self.read))


def _asked(
    model: Model, methods: Iterable[str | Method] | str | Method | None, layout: Layout, extra: list[Need]
) -> tuple[Fits, Wanted]:
    """The wanted methods and needs; methods that the model or the layout rules out are refused before anything slow."""
    fits = Fits(model)
    wanted = fits.wanted(named_methods(methods))
    check_methods(wanted.methods.values(), model.cfg.n_layers, model.cfg.d_model)
    wanted = wanted.without(refused_by_layout(wanted, layout))
    if methods is not None or not wanted.methods:
        refuse(fits, wanted.methods_left_out, layout)
    check_layout(fits.list(extra), layout)
    return fits, wanted


def _fitting(fits: Fits, wanted: Wanted, plan: Plan, strict: bool) -> Wanted:
    """The wanted methods that apply to the text; other methods are refused if they were asked for by name."""
    refused = refused_by_layout(wanted, plan.layout, plan.too_long) | refused_by_text(wanted, plan)
    wanted = wanted.without(refused)
    if strict or not wanted.methods:
        refuse(fits, refused, plan.layout, plan)
    return wanted


def _processes(out: str | Path | None) -> tuple[int, int]:
    """Rank and number of processes under torchrun; otherwise 0 and 1."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    if world > 1 and out is None:
        raise ValueError("several processes share a run through its folder: give out=...")
    return (dist.get_rank(), dist.get_world_size()) if world > 1 else (0, 1)


def _collect_into(folder: Path, job: _Job, wanted: Wanted) -> None:
    """Complete each layer of the folder's run, then collect the needs that no layer has as one more layer."""
    stored = read_description(folder)
    job = job if stored is None else replace(job, read=stored["settings"]["read"])
    settings = joined(folder, job.settings(wanted), job.row_keys())
    layers = [(folder / each["folder"], job.part(each), each["statistics"]) for each in layers_of(settings)]
    if job.rank == 0:
        check_room(folder, (layers[-1][1] if layers[-1][1].needs else job).required(), job.progress)
        claim(folder, job.plan, settings)
    for place, part, statistics in layers:
        if len(part.needs) < len(statistics):
            _check_finished(place, part, statistics)
            continue
        _, _, costs = _run_shards(part, place, _constants(part, place))
        if costs:  # a run that was finished already keeps its costs
            write_bytes(place / f"costs-{job.rank}.json", json.dumps(costs, indent=1).encode())
    _wait(job)
    if job.rank == 0:
        settle(folder, job.plan, settings)
    _wait(job)


def _wait(job: _Job) -> None:
    if job.world > 1:
        dist.barrier()


def _check_finished(place: Path, job: _Job, statistics: list[str]) -> None:
    """Refuse to leave unfinished shards that only a call with other methods can complete."""
    rows = (place / "documents").is_dir()
    missing = [x.name for x in job.plan.shards if not is_finished(*_files(place, x.name, rows))]
    if missing:
        have = [need.key for need in job.needs]
        raise ValueError(
            f"{place}: {len(missing)} shards ({missing[0]} ...) are unfinished or damaged. Call collect with all "
            f"methods of the first call, which also need {[each for each in statistics if each not in have]}."
        )


def _files(place: Path, name: str, rows: bool) -> tuple[Path, Path | None]:
    return shard_path(place, name), documents_path(place, name) if rows else None


def _constants(job: _Job, folder: Path | None) -> dict[str, Tensor]:
    """Constants of the recorders: computed once, by the first process, and stored with the run."""
    kept = read_shard(folder / CONSTANTS) if folder is not None and (job.rank == 0 or job.world == 1) else None
    if kept is None and job.rank == 0:
        kept = constants_of(job.model, job.needs, job.widths, job.plan)
        if folder is not None:
            write_shard(folder / CONSTANTS, kept)
    _wait(job)
    kept = read_shard(folder / CONSTANTS) if kept is None and folder is not None else kept
    if kept is None:
        raise ValueError(f"{folder} has no {CONSTANTS}, which the first process writes.")
    return kept


def _run_shards(
    job: _Job, folder: Path | None, constants: Mapping[str, Tensor]
) -> tuple[dict[str, list[Tensors]], dict[str, list[Tensors]], dict[str, float]]:
    """Process the shards that are not on disk; without a folder, sums and rows stay in memory."""
    plan, rows = job.plan, bool(job.row_keys())
    mine = plan.shards[job.rank :: job.world]
    todo = [each for each in mine if folder is None or not is_finished(*_files(folder, each.name, rows))]
    total, left = (sum(map(plan.tokens_of, each)) for each in (mine, todo))
    how: dict[str, Any] = {"unit": "tok", "unit_scale": True, "disable": not job.progress or job.rank > 0}
    with tqdm(total=total, initial=total - left, desc="collect", **how) as bar:
        parts = mapped(partial(_run_some, job, folder, constants), shares(todo), bar.update)
    kept = {name: both for found, _ in parts for name, both in found.items()}
    sums, documents = (
        {label: [kept[x.name][i] for x in todo if x.language == label and x.name in kept] for label in plan.tokens}
        for i in range(2)
    )
    seconds: Counter[str] = Counter()
    for _, each in parts:
        seconds.update(each)
    return sums, documents, dict(seconds)


def _run_some(
    job: _Job, folder: Path | None, constants: Mapping[str, Tensor], todo: Sequence[Shard], report: Report
) -> tuple[dict[str, tuple[Tensors, Tensors]], dict[str, float]]:
    """Process some shards: by name, sums and rows that stay in memory; and the seconds that each need took."""
    passing, rows, kept = Pass(job.model, job.needs, job.widths, constants, job.read), bool(job.row_keys()), {}
    with passing.attached(job.plan) as run_batch:
        for shard in todo:
            passing.reset()
            for batch in job.plan.batches(shard):
                run_batch(batch)
                report(int(batch.keep.sum()))
            if folder is None:
                kept[shard.name] = passing.sums_on_cpu(), passing.rows_on_cpu()
                continue
            sums_file, rows_file = _files(folder, shard.name, rows)
            if rows_file is not None:
                write_shard(rows_file, passing.rows_on_cpu())
            write_shard(sums_file, passing.sums_on_cpu(), rows_file)
    return kept, dict(passing.seconds)
