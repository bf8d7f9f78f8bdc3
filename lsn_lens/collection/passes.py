"""One forward pass for all recorders: hooks, checks, and the gradient if a recorder needs it."""

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lsn_lens.collection.recorders import RECORDERS, make_recorder
from lsn_lens.collection.recorders.base import Acts, Recorder, View
from lsn_lens.model import forward, structure, unembedding
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.runs.shards import DOCUMENTS, LENGTH, TOKENS, row_key
from lsn_lens.statistics.needs import Need
from lsn_lens.text.plan import Batch, Plan
from lsn_lens.text.tokens import separator_id

Tensors = dict[str, Tensor]
Reader = tuple[str, Callable[[Tensor, int], Tensor], list[Recorder]]
ENTRY = "hook_resid_pre"  # before the first block: weights need no gradient


def _leaf(acts: Tensor, hook: Any) -> Tensor:
    return acts.detach().requires_grad_()


def _entry(model: Model, needs: Iterable[Need]) -> str:
    """The hook point of the first block at which the graph begins: where the only gradient is read, if it can be."""
    sites = {site for need in needs if need.gradient for site in need.sites}
    points = {structure.reader(model, site)[0].hook for site in sites}
    return points.pop() if len(points) == 1 and sites <= set(WRITE_SITE.values()) else ENTRY


def way_of(
    model: Model, needs: list[Need], widths: Mapping[str, int], read: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The kind of forward pass for these needs (`forward.how`), and the hook points of a block that they read."""
    passing = Pass(model, needs, widths, {}, read)
    points = sorted({name.split(".", 2)[2] for name in passing.every_name})
    return forward.how(model, passing.is_lean, passing.every_name), points


def constants_of(model: Model, needs: Iterable[Need], widths: Mapping[str, int], plan: Plan) -> Tensors:
    """The constants that the needs' recorders compute before a pass over this text."""
    made = [RECORDERS[type(need)].prepare(model, need, widths, plan) for need in needs]
    return {key: value.cpu() for each in made for key, value in each.items()}


class Pass:
    """Passes hooked tensors to the recorders; each hook fires exactly once per forward pass.

    The kind of forward pass is chosen as if the hook points of a block in `read` were hooked too.
    """

    def __init__(
        self, model: Model, needs: list[Need], widths: Mapping[str, int], constants: Mapping[str, Tensor],
        read: Iterable[str] = (),
    ):  # fmt: skip
        self.model, self.layers, self.device = model, model.cfg.n_layers, structure.device_of(model)
        self.recorders = [make_recorder(model, need, widths, constants) for need in needs]
        self.gradient = any(need.gradient for need in needs)
        if self.gradient and any(each.is_inference() for each in model.parameters()):
            raise ValueError(
                f"{type(model).__name__}: its weights were made inside torch.inference_mode(), so no gradient "
                "can pass through them. Load the model outside torch.inference_mode()."
            )
        self.fired: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.view: View | None = None
        self.hooks = self._hooks()
        self.names = [name for name, _ in self.hooks]
        if self.gradient:
            self.hooks = [(f"blocks.0.{_entry(model, needs)}", _leaf), *self.hooks]
        beside = [f"blocks.{layer}.{point}" for point in read for layer in range(self.layers)]
        self.every_name = list(dict.fromkeys([*(name for name, _ in self.hooks), *beside]))
        self.is_lean = forward.lean_is_exact(model, self.every_name)
        self.reset()

    def reset(self) -> None:
        """Start a new shard."""
        for each in self.recorders:
            each.reset()
        self.tokens, self.lengths = torch.zeros(self.layers, dtype=torch.int64), list[Tensor]()

    def sums_on_cpu(self) -> Tensors:
        """The shard's sums."""
        sums = {key: value.cpu() for each in self.recorders for key, value in each.sums.items()}
        return {**sums, TOKENS: self.tokens, DOCUMENTS: torch.tensor(sum(map(len, self.lengths)))}

    def rows_on_cpu(self) -> Tensors:
        """The values of the shard's documents, layer by layer."""
        if not self.lengths:
            return {}
        whole = {key: torch.cat(each) for recorder in self.recorders for key, each in recorder.rows.items()}
        rows = {row_key(key, i): each[:, i].contiguous() for key, each in whole.items() for i in range(self.layers)}
        return {**rows, row_key(LENGTH, 0): torch.cat(self.lengths)[:, None].float()}

    def _hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """One hook per hook point, which several sites can share."""
        readers: dict[str, list[Reader]] = {}
        for name in dict.fromkeys(site for each in self.recorders for site in each.sites):
            site, read = structure.reader(self.model, name)
            readers.setdefault(site.hook, []).append((name, read, [r for r in self.recorders if name in r.sites]))
        return [
            (f"blocks.{layer}.{hook}", self._hook(layer, f"blocks.{layer}.{hook}", each))
            for hook, each in readers.items()
            for layer in range(self.layers)
        ]

    def _hook(self, layer: int, name: str, readers: list[Reader]) -> Callable[..., Tensor | None]:
        def record(acts: Tensor, hook: Any) -> Tensor | None:
            view = self.view
            if view is None:  # a forward pass outside this run
                return None
            self.fired[name] += 1
            with torch.no_grad():
                for site, read, recorders in readers:
                    seen = Acts(site, layer, read(acts.detach(), layer), acts, view)
                    for each in recorders:
                        started = time.perf_counter()
                        each.see(seen)
                        self.seconds[each.need.key] += time.perf_counter() - started
            return acts if self.gradient else None  # a hook may see a view, which is in the graph only if handed back

        return record

    @contextlib.contextmanager
    def attached(self, plan: Plan) -> Iterator[Callable[[Batch], None]]:
        """Hooks on the model; yields the function that runs one batch."""
        separator = separator_id(self.model.tokenizer, plan.layout.separator)
        by_document = plan.layout.kind == "documents"
        with contextlib.ExitStack() as stack:
            if self.is_lean:
                stack.enter_context(forward.lean(self.model, self.every_name))
            if self.gradient:
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(self.gradient))
            stack.enter_context(self.model.hooks(fwd_hooks=self.hooks))

            def run_batch(batch: Batch) -> None:
                started, before = time.perf_counter(), sum(self.seconds.values())
                keep = batch.keep.to(self.device)
                self.view = View(batch, keep, by_document and separator is not None)
                self.fired.clear()
                out, loss = self._forward(batch, keep, separator)
                wrong = {name: self.fired[name] for name in self.names if self.fired[name] != 1}
                if wrong:
                    raise RuntimeError(f"hooks must fire once per batch; these did not: {wrong}.")
                for each in self.recorders:
                    each.end(self.view)
                self.view = None
                self.tokens += int(batch.keep.sum())
                if by_document:
                    self.lengths.append(batch.keep.sum(1))
                seen = out if not batch.padded else out[keep]
                total = seen.sum(dtype=torch.float32) + (0.0 if loss is None else loss)
                if not bool(total.isfinite()):  # NaN and infinity survive a sum
                    self._name_the_place(batch, keep.long() if batch.padded else None, plan)
                recording = sum(self.seconds.values()) - before
                self.seconds["forward"] += time.perf_counter() - started - recording

            yield run_batch

    def _forward(self, batch: Batch, keep: Tensor, separator: int | None) -> tuple[Tensor, Tensor | None]:
        """The last residual stream; with a gradient, the summed loss too, after its backward pass."""
        ids, mask = batch.ids.to(self.device), keep.long() if batch.padded else None
        if not self.gradient:
            return forward.hidden_states(self.model, ids, mask), None
        targets = ids[:, 1:]
        scored = keep[:, 1:] & (targets != (-1 if separator is None else separator))
        at = pad(scored, (0, 1))
        out, backward = unembedding.forward_for_gradient(self.model, ids, mask, at, targets[scored])
        started, before = time.perf_counter(), sum(self.seconds.values())
        loss = backward()
        recording = sum(self.seconds.values()) - before
        self.seconds["backward"] += time.perf_counter() - started - recording
        return out, loss

    def _name_the_place(self, batch: Batch, mask: Tensor | None, plan: Plan) -> None:
        """Run a bad batch again and report the first NaN or infinity."""
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
        name = structure.named(self.model)
        raise FloatingPointError(
            f"NaN or infinity in {name}, layer {layer}, language {batch.language}, "
            f"{plan.place(batch.language, batch.rows[row])}. Finished shards are kept. "
            "The weights are broken, or the dtype is too small for this model (try torch.float32 or torch.bfloat16)."
        )
