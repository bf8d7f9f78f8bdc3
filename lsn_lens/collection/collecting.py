"""One pass over the text for all methods: hooks, sums, shards, resume."""

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.collection.memory import requirements
from lsn_lens.collection.passes import Pass, Tensors, way_of
from lsn_lens.collection.recorders import RECORDERS
from lsn_lens.collection.wanted import (
    Fits,
    Wanted,
    check_layout,
    named_methods,
    refuse,
    refused_by_layout,
    refused_by_text,
)
from lsn_lens.files import write_bytes
from lsn_lens.identity import fingerprint
from lsn_lens.methods.base import Method
from lsn_lens.model import hooks, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.run import (
    CONSTANTS,
    SCHEMA,
    Run,
    documents_path,
    is_finished,
    load_run,
    read_shard,
    shard_path,
    write_shard,
)
from lsn_lens.sites import WRITE_SITE, get_site
from lsn_lens.statistics.needs import Need, Statistic, unique
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.tokens import Tokens, tokenize

SAID_FROM = 1e9  # bytes on disk from which a run says what it will write


def collect(
    model: Model,
    corpora: Mapping[str, LanguageCorpus],
    methods: Iterable[str | Method] | str | Method | None = ("lape",),
    out: str | Path | None = None,
    *,
    layout: Layout | None = None,
    extra: Iterable[Need] = (),
    progress: bool = True,
) -> Run:
    """Run the model over the corpora's `find` part once and keep what the methods need.

    With `out`, finished shards stay on disk: a run that was interrupted goes on when called again with the same
    arguments, and ends in the same bits. Under `torchrun` the processes share the shards of one `out`.
    Memory does not depend on the amount of text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: From `load_corpora`, two languages or more.
        methods: Names or method objects whose statistics are wanted; None for all that apply to the model and the text.
            Of a method that takes all kinds of units by default (plnd, average_precision), those that the model cannot
            give are left out. What was left out, and why, is in `run.settings["left_out"]`.
        out: The run's folder; None keeps the run in memory.
        layout: How text becomes batches, as many for each language; by default one row a document where every
            document of every language fits (`Layout(kind="auto")`), else packed blocks, whatever the methods.
        extra: Statistics that no method of these needs, for example `DocumentValues("mlp_post", "maximum")`.
        progress: Show a progress bar with tokens a second and the time left.

    Returns:
        The run.

    Raises:
        DoesNotApply: A method that was asked for cannot be had on this model, layout or text (plnd, average_precision
            and sharing take one row a document); before the pass.
        ValueError: Corpora, layout or model that cannot be used; a folder made with other settings.
        FloatingPointError: NaN or infinity in the model, named by layer, language and document.
        RuntimeError: Another process writes to `out`.
        OSError: The disk is full.
    """
    check_model(model)
    layout = layout or Layout(kind="auto")
    fits, named, extra = Fits(model), named_methods(methods), list(extra)
    wanted = fits.wanted(named)
    wanted = wanted.without(refused_by_layout(wanted, layout))  # before anything slow
    if methods is not None or not wanted.methods:
        refuse(fits, wanted.methods_left_out, layout)
    check_layout(fits.list(extra), layout)
    if len(corpora) < 2:
        raise ValueError(f"got the languages {list(corpora)}: comparing languages takes at least two.")
    rank, world = _processes(out)
    folder = Path(out) if out is not None else None
    with contextlib.ExitStack() as stack:
        if folder is not None and rank == 0:
            stack.enter_context(_locked(folder))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsn_lens-")))
        tokens = _tokenize(model, corpora, scratch, layout, progress and rank == 0)
        plan = Plan(tokens, layout, context=model.cfg.n_ctx, border=structure.position_border(model))
        refused = refused_by_layout(wanted, plan.layout, plan.too_long) | refused_by_text(wanted, plan)
        wanted = wanted.without(refused)
        if methods is not None or not wanted.methods:
            refuse(fits, refused, plan.layout, plan)
        check_layout(fits.list(extra), plan.layout, plan.too_long)
        needs = fits.list(_needs(wanted, extra))
        widths = {site: fits.width(site) for need in needs for site in need.sites}
        settings = {
            "model": {**structure.describe(model), "fingerprint": fingerprint(model)},
            "text": plan.describe(),
            "statistics": [each.key for each in needs],
            "rows": any(each.rows(model.cfg.n_layers, widths) for each in needs),
            "left_out": wanted.describe(),
            "hooks": hooks.describe_hooks(
                model
            ),  # part of the model: a run must not go on without them, or with others
            "forward": way_of(model, needs, widths),
        }
        if folder is not None and rank == 0:
            _check_room(folder, _required(needs, model, widths, plan), progress)
            _claim(folder, plan, settings)
        constants = _constants(model, plan, needs, widths, folder, rank, world)
        shards, documents, costs = _run_shards(model, plan, needs, widths, constants, folder, rank, world, progress)
        if folder is not None and costs:  # a run that was finished already keeps what it cost
            write_bytes(folder / f"costs-{rank}.json", json.dumps(costs, indent=1).encode())
        if world > 1:
            dist.barrier()
    if folder is not None:
        return load_run(folder)
    return Run(shards, settings, None, documents if settings["rows"] else {}, constants, costs)


def _needs(wanted: Wanted, extra: Iterable[Need]) -> list[Need]:
    return _with_sums([*(need for needs in wanted.needs.values() for need in needs), *extra])


def _with_sums(needs: list[Need]) -> list[Need]:
    """Without repeats, and with the sums that ablating units to a mean takes, and their squares.

    The squares say how active a unit is in each language: what random units are matched by.
    """
    written = dict.fromkeys(["mlp_post", *(WRITE_SITE[get_site(site).basis] for need in needs for site in need.sites)])
    kept = [Statistic(each, kind, optional=True) for each in written for kind in ("sum", "squares")]
    return unique([*needs, *kept])


def needs_of(model: Model, methods: Iterable[str | Method], extra: Iterable[Need] = ()) -> list[Need]:
    """What the methods need, as far as the model can give it, with the sums of `_with_sums`.

    Raises:
        DoesNotApply: A method that the model is not made for.
    """
    fits = Fits(model)
    wanted = fits.wanted(named_methods(methods))
    refuse(fits, wanted.methods_left_out, Layout(kind="auto"))
    return fits.list(_needs(wanted, extra))


def widths_of(model: Model, needs: Iterable[Need]) -> dict[str, int]:
    """Units of every site that the needs name."""
    return {site: structure.site_width(model, site) for site in dict.fromkeys(x for need in needs for x in need.sites)}


def _required(needs: list[Need], model: Model, widths: Mapping[str, int], plan: Plan) -> pd.DataFrame:
    shards = Counter(each.language for each in plan.shards)
    documents = plan.rows if plan.layout.kind == "documents" else dict.fromkeys(plan.rows, 0)
    return requirements(needs, model.cfg.n_layers, widths, shards, documents)


def _constants(
    model: Model,
    plan: Plan,
    needs: list[Need],
    widths: Mapping[str, int],
    folder: Path | None,
    rank: int,
    world: int,
) -> dict[str, Tensor]:
    """What recorders fix before the run: made once, by the first process, and kept with the run."""
    kept = read_shard(folder / CONSTANTS) if folder is not None and (rank == 0 or world == 1) else None
    if kept is None and rank == 0:
        kept = {
            key: value.cpu()
            for need in needs
            for key, value in RECORDERS[type(need)].prepare(model, need, widths, plan).items()
        }
        if folder is not None:
            write_shard(folder / CONSTANTS, kept)
    if world > 1:
        dist.barrier()
    kept = read_shard(folder / CONSTANTS) if kept is None and folder is not None else kept
    if kept is None:
        raise ValueError(f"{folder} has no {CONSTANTS}, which its first process writes.")
    return kept


def _tokenize(
    model: Model, corpora: Mapping[str, LanguageCorpus], folder: Path, layout: Layout, progress: bool
) -> dict[str, Tokens]:
    return {
        label: tokenize(
            label, corpus.find, model.tokenizer, folder, separator=layout.separator, max_tokens=layout.max_tokens,
            d_vocab=structure.vocabulary_size(model), progress=progress,
        )
        for label, corpus in corpora.items()
    }  # fmt: skip


def _processes(out: str | Path | None) -> tuple[int, int]:
    """Rank and number of processes under torchrun; 0 and 1 elsewhere."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    if world > 1 and out is None:
        raise ValueError("several processes share a run through its folder: give out=...")
    return (dist.get_rank(), dist.get_world_size()) if world > 1 else (0, 1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"another process is collecting into {folder}. Wait for it, or give another folder. "
            "(The lock goes with its process, so a killed one leaves none.)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_room(folder: Path, required: pd.DataFrame, progress: bool) -> None:
    """Say what will be written, and refuse to start what the disk cannot hold."""
    disk: dict[str, int] = required["disk"].to_dict()
    needed, free, largest = sum(disk.values()), shutil.disk_usage(folder).free, max(disk, key=lambda key: disk[key])
    if progress and needed > SAID_FROM:
        tqdm.write(f"{folder}: up to {needed / 1e9:.1f} GB will be written, most of it {largest}.", file=sys.stderr)
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the run needs {needed:,} bytes (most of it {largest}: {disk[largest]:,}), {free:,} are free. "
            "Make room, give another folder, leave out a method, or ask for fewer shards: layout=Layout(shards=...)",
            str(folder),
        )


def _claim(folder: Path, plan: Plan, settings: Mapping[str, Any]) -> None:
    """Write run.json, or check that the one there says the same."""
    names: dict[str, list[str]] = {}
    for shard in plan.shards:
        names.setdefault(shard.language, []).append(shard.name)
    path = folder / "run.json"
    content = json.loads(json.dumps({"schema": SCHEMA, "settings": settings, "shards": names}))
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8-sig"))
        if any(there.get(key) != content[key] for key in content):
            differences = _differences(there.get("settings", {}), content["settings"])
            raise ValueError(
                f"{folder} holds a run with other settings: {'; '.join(differences) or 'another version'}. "
                "Give another folder, or the settings it was made with."
            )
        return
    versions = {name: version(name) for name in ("lsn-lens", "torch", "transformers", "transformer-lens")}
    write_bytes(path, json.dumps({**content, "versions": versions}, indent=1).encode())


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [text for key in keys for text in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where} was {old!r}, now {new!r}"]


def _run_shards(
    model: Model,
    plan: Plan,
    needs: list[Need],
    widths: Mapping[str, int],
    constants: Mapping[str, Tensor],
    folder: Path | None,
    rank: int,
    world: int,
    progress: bool,
) -> tuple[dict[str, list[Tensors]], dict[str, list[Tensors]], dict[str, float]]:
    """Work off the shards that are not there yet; sums and rows stay in memory only without a folder."""
    keeps_rows = any(need.rows(model.cfg.n_layers, widths) for need in needs)

    def places(name: str) -> tuple[Path, Path | None]:
        root = folder or Path()
        return shard_path(root, name), documents_path(root, name) if keeps_rows else None

    mine = plan.shards[rank::world]
    todo = [each for each in mine if folder is None or not is_finished(*places(each.name))]
    total, left = (sum(map(plan.tokens_of, each)) for each in (mine, todo))
    sums: dict[str, list[Tensors]] = {label: [] for label in plan.tokens}
    documents: dict[str, list[Tensors]] = {label: [] for label in plan.tokens}
    passing = Pass(model, needs, widths, constants)
    with (
        tqdm(
            total=total,
            initial=total - left,
            desc="collect",
            unit="tok",
            unit_scale=True,
            disable=not progress or rank > 0,
        ) as bar,
        passing.attached(plan) as run_batch,
    ):
        for shard in todo:
            passing.reset()
            for batch in plan.batches(shard):
                run_batch(batch)
                bar.update(int(batch.keep.sum()))
            if folder is not None:
                sums_place, rows_place = places(shard.name)
                if rows_place is not None:
                    write_shard(rows_place, passing.rows_on_cpu())
                write_shard(sums_place, passing.sums_on_cpu(), rows_place)
            else:
                sums[shard.language].append(passing.sums_on_cpu())
                documents[shard.language].append(passing.rows_on_cpu())
    return sums, documents, dict(passing.seconds)
