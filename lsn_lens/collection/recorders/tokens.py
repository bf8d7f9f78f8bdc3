"""Recorders of sums over tokens: plain reductions, activation times gradient, histograms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lsn_lens.collection.recorders.base import Acts, Recorder, View
from lsn_lens.model import forward, structure
from lsn_lens.model.structure import Model
from lsn_lens.statistics.needs import REDUCTIONS, Histogram
from lsn_lens.text.plan import Plan

PROBE_TOKENS = 256  # tokens per language that decide the bins of a histogram
CHUNK = 512  # tokens binned at once


class TokenSums(Recorder):
    """Recorder of a `Statistic`. At `mlp_pre`, a value above zero means an active unit: act(gate) > 0."""

    def __init__(self, model: Model, need: Any, widths: Mapping[str, int], constants: Mapping[str, Tensor]):
        super().__init__(model, need, widths, constants)
        self.firing = structure.firing(model) if need.key == "mlp_pre.positive" else None
        self.reached = set[int]()  # layers that the batch's gradient has reached

    def see(self, acts: Acts) -> None:
        """Add the reduction of the batch; for gradient statistics, from a hook in the backward pass."""
        if self.need.gradient:
            acts.raw.register_hook(lambda grad: self._add_product(acts, grad))
        else:
            self._add(acts.layer, self.firing[acts.layer](acts.tokens) if self.firing else acts.tokens)

    def _add(self, layer: int, rows: Tensor) -> None:
        reduction = REDUCTIONS[self.need.reduction]
        self.sums[self.need.key][layer] += reduction.function(rows).to(reduction.dtype)

    def _add_product(self, acts: Acts, grad: Tensor) -> None:
        self.reached.add(acts.layer)
        product = (acts.raw.detach() * grad).view(acts.whole.shape)
        self._add(acts.layer, product[acts.view.keep])

    def end(self, view: View) -> None:
        """Refuse a gradient that did not reach every layer: its sums would be 0."""
        if self.need.gradient and len(self.reached) < self.layers:
            missed = sorted(set(range(self.layers)) - self.reached)
            raise RuntimeError(
                f"{structure.named(self.model)}: the gradient of the loss did not reach {self.need.site} in the layers "
                f"{missed}, so {self.need.key} cannot be measured. Leave out the methods that need it."
            )
        self.reached.clear()


class Histograms(Recorder):
    """Recorder of a `Histogram`."""

    need: Histogram

    @staticmethod
    @torch.no_grad()
    def prepare(model: Model, need: Histogram, widths: Mapping[str, int], plan: Plan) -> dict[str, Tensor]:
        """The start and width of each unit's bins, from the first tokens of every language."""
        site, read = structure.reader(model, need.site)
        seen: dict[int, list[Tensor]] = {layer: [] for layer in range(model.cfg.n_layers)}
        for label in sorted(plan.tokens):  # the same bits for every order of the languages
            first = next(shard for shard in plan.shards if shard.language == label)
            batch = next(plan.batches(first))
            rows = max(1, PROBE_TOKENS // batch.ids.shape[1])
            ids, keep = (each[:rows].to(structure.device_of(model)) for each in (batch.ids, batch.keep))

            def look(acts: Tensor, hook: object, layer: int, keep: Tensor = keep) -> None:
                seen[layer].append(read(acts, layer)[keep].double())

            hooks = [(site.hook_name(layer), lambda acts, hook, layer=layer: look(acts, hook, layer)) for layer in seen]
            with model.hooks(fwd_hooks=hooks):
                forward.hidden_states(model, ids, keep.long())
        values = [torch.cat(each) for each in seen.values()]
        middle = torch.stack([each.mean(0) for each in values])
        spread = need.spread * torch.stack([each.std(0) for each in values])
        low = middle - spread if need.floor is None else (middle - spread).clamp_min(need.floor)
        width = ((middle + spread - low) / need.bins).clamp_min(1e-12)  # a silent unit has no spread
        return {f"{need.key}.low": low.float(), f"{need.key}.width": width.float()}

    def see(self, acts: Acts) -> None:
        """Count values into `bins + 2` bins per unit."""
        low, width = (self.constants[f"{self.need.key}.{each}"][acts.layer] for each in ("low", "width"))
        counts, bins = self.sums[self.need.key][acts.layer], self.need.bins + 2
        first = torch.arange(len(low), device=self.device) * bins
        for rows in acts.tokens.split(CHUNK if self.device.type == "cpu" else 1 << 16):
            place = ((rows.float() - low) / width).floor_().clamp_(-1, self.need.bins).add_(1).long().add_(first)
            counts += torch.bincount(place.flatten(), minlength=counts.numel()).view(counts.shape).to(counts.dtype)
