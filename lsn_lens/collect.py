"""One pass over the text for all methods: hooks, sums, shards, resume."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from lsn_lens import forward, models
from lsn_lens.batches import Batch, Layout, Plan, Tokens, tokenize
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.methods import Method, get_method
from lsn_lens.neurons import write_bytes
from lsn_lens.run import SCHEMA, TOKENS, Run, load_run, read_shard, shard_path, write_shard
from lsn_lens.statistics import REDUCTIONS, Statistic


def collect(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    methods: Iterable[str | Method] = ("lape",),
    out: str | Path | None = None,
    *,
    layout: Layout | None = None,
    progress: bool = True,
) -> Run:
    """Run the model over the corpora's `find` part once and keep what the methods need.

    With `out`, finished shards stay on disk: a run that was interrupted goes on when called again with the same
    arguments, and ends in the same bits. Under `torchrun` the processes share the shards of one `out`.
    Memory does not depend on the amount of text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: From `load_corpora`, two languages or more.
        methods: Names or method objects whose statistics are wanted.
        out: The run's folder; None keeps the run in memory.
        layout: How text becomes batches; by default packed blocks, as many tokens for each language.
        progress: Show a progress bar with tokens a second and the time left.

    Returns:
        The run.

    Raises:
        ValueError: Corpora, layout or model that cannot be used; a folder made with other settings.
        FloatingPointError: NaN or infinity in the model, named by layer, language and document.
        RuntimeError: Another process writes to `out`.
        OSError: The disk is full.
    """
    wanted = needed_statistics(methods)
    if len(corpora) < 2:
        raise ValueError(f"got the languages {list(corpora)}: comparing languages takes at least two.")
    rank, world = _processes(out)
    folder = Path(out) if out is not None else None
    with contextlib.ExitStack() as stack:
        if folder is not None and rank == 0:
            stack.enter_context(_locked(folder))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsn_lens-")))
        tokens = _tokenize(model, corpora, scratch, layout or Layout(), progress and rank == 0)
        plan = Plan(tokens, layout or Layout(), context=model.cfg.n_ctx)
        widths = {site: models.site_width(model, site) for site in dict.fromkeys(each.site for each in wanted)}
        settings = {
            "model": models.describe(model),
            "text": plan.describe(),
            "statistics": [each.key for each in wanted],
        }
        if folder is not None and rank == 0:
            _check_room(folder, len(plan.shards), model.cfg.n_layers, [widths[each.site] for each in wanted])
            _claim(folder, plan, settings)
        if world > 1:
            dist.barrier()
        shards = _run_shards(model, plan, wanted, widths, folder, rank, world, progress)
        if world > 1:
            dist.barrier()
    if folder is not None:
        return load_run(folder)
    return Run(shards, settings)


def needed_statistics(methods: Iterable[str | Method]) -> list[Statistic]:
    """What the methods need, without repeats; `mlp_post.sum` is always there, for ablating to a mean."""
    each = [get_method(method) for method in ([methods] if isinstance(methods, str) else methods)]
    if not each:
        raise ValueError("no methods: name at least one.")
    needs = [statistic for method in each for statistic in method.statistics()]
    return list(dict.fromkeys([*needs, Statistic("mlp_post", "sum")]))


def _tokenize(
    model: models.Model, corpora: Mapping[str, LanguageCorpus], folder: Path, layout: Layout, progress: bool
) -> dict[str, Tokens]:
    return {
        label: tokenize(
            label, corpus.find, model.tokenizer, folder, separator=layout.separator, max_tokens=layout.max_tokens,
            d_vocab=models.vocabulary_size(model), progress=progress,
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


def _check_room(folder: Path, shards: int, layers: int, widths: list[int]) -> None:
    """Refuse to start what the disk cannot hold."""
    needed, free = shards * 8 * layers * (sum(widths) + 1), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the run's {shards} shards need {needed:,} bytes, {free:,} are free. Make room, give another folder, "
            "or ask for fewer shards: layout=Layout(shards=...)",
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
        there = json.loads(path.read_text())
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
    model: models.Model,
    plan: Plan,
    wanted: list[Statistic],
    widths: Mapping[str, int],
    folder: Path | None,
    rank: int,
    world: int,
    progress: bool,
) -> dict[str, list[dict[str, Tensor]]]:
    """Work off the shards that are not there yet; the sums stay in memory only without a folder."""
    mine = plan.shards[rank::world]
    todo = [each for each in mine if folder is None or read_shard(shard_path(folder, each.name)) is None]
    total, left = (sum(map(plan.tokens_of, each)) for each in (mine, todo))
    done: dict[str, list[dict[str, Tensor]]] = {label: [] for label in plan.tokens}
    recorder = Recorder(model, wanted, widths)
    with (
        tqdm(
            total=total,
            initial=total - left,
            desc="collect",
            unit="tok",
            unit_scale=True,
            disable=not progress or rank > 0,
        ) as bar,
        recorder.attached(plan) as run_batch,
    ):
        for shard in todo:
            recorder.reset()
            for batch in plan.batches(shard):
                run_batch(batch)
                bar.update(int(batch.keep.sum()))
            sums = recorder.sums_on_cpu()
            if folder is not None:
                write_shard(shard_path(folder, shard.name), sums)
            else:
                done[shard.language].append(sums)
    return done


class Recorder:
    """Adds what the hooks see to sums; one forward pass at a time, each hook exactly once."""

    def __init__(self, model: models.Model, wanted: list[Statistic], widths: Mapping[str, int]):
        self.model, self.wanted = model, wanted
        self.layers, self.device = model.cfg.n_layers, models.device_of(model)
        self.shapes = {each: (self.layers, widths[each.site]) for each in wanted}
        self.fired: Counter[str] = Counter()
        self.keep: Tensor | None = None
        self.hooks = self._hooks()
        self.is_lean = forward.lean_is_exact(model, [name for name, _ in self.hooks])
        self.reset()

    def reset(self) -> None:
        """Start a new shard."""
        self.sums = {
            each.key: torch.zeros(shape, dtype=REDUCTIONS[each.reduction].dtype, device=self.device)
            for each, shape in self.shapes.items()
        }
        self.sums[TOKENS] = torch.zeros(self.layers, dtype=torch.int64, device=self.device)

    def sums_on_cpu(self) -> dict[str, Tensor]:
        """The shard's sums."""
        return {key: value.cpu() for key, value in self.sums.items()}

    def _hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """One hook for each hook point: several sites can read the same one."""
        readers: dict[str, list[tuple[Callable[[Tensor], Tensor], list[Statistic]]]] = {}
        for name in dict.fromkeys(each.site for each in self.wanted):
            site, read = models.reader(self.model, name)
            readers.setdefault(site.hook, []).append((read, [each for each in self.wanted if each.site == name]))
        return [
            (f"blocks.{layer}.{hook}", self._hook(layer, f"blocks.{layer}.{hook}", each))
            for hook, each in readers.items()
            for layer in range(self.layers)
        ]

    def _hook(self, layer: int, name: str, readers: list[Any]) -> Callable[..., None]:
        def record(acts: Tensor, hook: Any) -> None:
            self.fired[name] += 1
            for read, statistics in readers:
                rows = read(acts)
                rows = rows.flatten(0, 1) if self.keep is None else rows[self.keep]
                for each in statistics:
                    reduction = REDUCTIONS[each.reduction]
                    self.sums[each.key][layer] += reduction.function(rows).to(reduction.dtype)

        return record

    @contextlib.contextmanager
    def attached(self, plan: Plan) -> Iterator[Callable[[Batch], None]]:
        """Hooks on the model; yields the function that runs one batch."""
        names = [name for name, _ in self.hooks]
        with contextlib.ExitStack() as stack:
            if self.is_lean:
                stack.enter_context(forward.lean(self.model, names))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.model.hooks(fwd_hooks=self.hooks))

            def run_batch(batch: Batch) -> None:
                mask = batch.keep.to(self.device, torch.long) if batch.padded else None
                self.keep = batch.keep.to(self.device) if batch.padded else None
                self.fired.clear()
                hidden = forward.hidden_states(self.model, batch.ids.to(self.device), mask)
                wrong = {name: self.fired[name] for name in names if self.fired[name] != 1}
                if wrong:
                    raise RuntimeError(f"hooks must fire once a batch; these fired otherwise: {wrong}.")
                self.sums[TOKENS] += int(batch.keep.sum())
                seen = hidden if self.keep is None else hidden[self.keep]
                if not bool(seen.sum(dtype=torch.float32).isfinite()):  # NaN and infinity survive a sum
                    self._name_the_place(batch, mask, plan)

            yield run_batch

    def _name_the_place(self, batch: Batch, mask: Tensor | None, plan: Plan) -> None:
        """Run a bad batch again and say where NaN or infinity comes up first."""
        keep = batch.keep.to(self.device)
        found: list[tuple[int, int]] = []

        def look(layer: int) -> Callable[..., None]:
            def hook(acts: Tensor, hook: Any) -> None:
                bad = ~acts.isfinite().flatten(2).all(-1) & keep
                if not found and bool(bad.any()):
                    found.append((layer, int(bad.nonzero()[0, 0])))

            return hook

        with self.model.hooks(fwd_hooks=[(f"blocks.{i}.hook_resid_post", look(i)) for i in range(self.layers)]):
            self.model(batch.ids.to(self.device), attention_mask=mask)
        layer, row = found[0] if found else (self.layers - 1, 0)
        name = models.describe(self.model)["name"]
        raise FloatingPointError(
            f"NaN or infinity in {name}, layer {layer}, language {batch.language}, "
            f"{plan.place(batch.language, batch.rows[row])}. Finished shards are kept. "
            "Broken weights, or a dtype too small for this model (try torch.float32 or torch.bfloat16)."
        )
