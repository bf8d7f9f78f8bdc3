"""Recorder of the experts that tokens select."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.collection.recorders.base import Acts, Recorder, View
from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.experts import ExpertCounts, balanced_clusters, expert_scores, n_experts, select_experts
from lsn_lens.text.plan import Plan


def cluster_experts(model: Model, need: ExpertCounts) -> Tensor:
    """The expert of every neuron, `[layer unit]`, from the weights alone, or as given."""
    if need.assignment is not None:
        return need.assignment.units
    layers = []
    for layer in tqdm(range(model.cfg.n_layers), desc="experts", leave=False, disable=None):
        mlp = model.blocks[layer].mlp
        up, gate = mlp.W_in.detach().float(), (mlp.W_gate if structure.is_gated(model) else mlp.W_in).detach().float()
        normal = torch.nn.functional.normalize
        features = {"gate": gate, "up": up, "concat": torch.cat([normal(gate, dim=0), normal(up, dim=0)])}
        layers.append(balanced_clusters(features[need.features].T.cpu(), need.size, need.seed))
    return torch.stack(layers)


def _check(model: Model, need: ExpertCounts, d_mlp: int) -> None:
    """Refuse a model whose layers cannot be divided into these experts."""
    n_experts(d_mlp, need.size)
    if need.assignment is not None:
        need.assignment.check(model.cfg.n_layers, d_mlp)


class Experts(Recorder):
    """Recorder of `ExpertCounts`."""

    need: ExpertCounts

    @staticmethod
    def fit(model: Model, need: Any, width: Callable[[str], int]) -> tuple[Any, dict[str, str]]:
        """None for a model whose layers cannot be divided into experts of equal size."""
        fitted, reasons = Recorder.fit(model, need, width)
        if fitted is not None:
            try:
                _check(model, need, width("mlp_post"))
            except DoesNotApply as error:
                return None, {"mlp": str(error)}
        return fitted, reasons

    @staticmethod
    def prepare(model: Model, need: ExpertCounts, widths: Mapping[str, int], plan: Plan) -> dict[str, Tensor]:
        """The experts, and the norms of the neurons' output weights."""
        _check(model, need, widths["mlp_post"])
        norms = [model.blocks[i].mlp.W_out.detach().float().norm(dim=1).cpu() for i in range(model.cfg.n_layers)]
        return {f"{need.key}.assignment": cluster_experts(model, need), f"{need.key}.norms": torch.stack(norms)}

    def reset(self) -> None:
        """Start a new shard."""
        super().reset()
        self.scores: dict[int, Tensor] = {}

    @cached_property
    def order(self) -> Tensor:
        """Neurons expert by expert, `[layer unit]`."""
        return self.constants[f"{self.need.key}.assignment"].argsort(dim=1, stable=True)

    def see(self, acts: Acts) -> None:
        """Score the experts of a layer at every token that counts."""
        if acts.site != ("mlp_act" if self.need.score == "pos" else "mlp_post"):
            return
        keep = acts.view.keep_without_bos if self.need.skip_bos else acts.view.keep
        hidden = acts.whole[keep]
        if self.need.score == "contribution":
            hidden = hidden * self.constants[f"{self.need.key}.norms"][acts.layer]
        self.scores[acts.layer] = expert_scores(hidden, self.order[acts.layer], self.need.size, self.need.score)

    def end(self, view: View) -> None:
        """Select and count."""
        scores = torch.stack([self.scores[layer] for layer in range(self.layers)])
        chosen = select_experts(scores, self.need.select, self.need.share, self.need.relative)
        self.sums[f"{self.need.key}.selected"] += chosen.sum(1)
        self.sums[f"{self.need.key}.counted"] += scores.shape[1]
