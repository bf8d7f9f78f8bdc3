"""Recorder of inner products of MLP neurons' writes with the residual stream at the last token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lsn_lens.collection.recorders.base import Acts
from lsn_lens.collection.recorders.documents import DocumentRows, document_last
from lsn_lens.model import structure
from lsn_lens.model.mlps import check_writes
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import Writes
from lsn_lens.text.plan import Plan


class WriteProducts(DocumentRows):
    """Recorder of `Writes`."""

    need: Writes

    @staticmethod
    def fit(model: Model, need: Any, width: Callable[[str], int]) -> tuple[Any, dict[str, str]]:
        """None for a model whose MLP does not add `mlp_post @ W_out` to the stream."""
        fitted, reasons = DocumentRows.fit(model, need, width)
        if fitted is not None and structure.device_of(model).type != "meta":  # without values there is nothing to check
            try:
                check_writes(model)
            except DoesNotApply as error:
                return None, {"mlp": str(error)}
        return fitted, reasons

    @staticmethod
    @torch.no_grad()
    def prepare(model: Model, need: Writes, widths: Mapping[str, int], plan: Plan) -> dict[str, Tensor]:
        """Squared norms of the writes."""
        squares = [_down(model, layer).square().sum(1).cpu() for layer in range(model.cfg.n_layers)]
        return {f"{need.key}.squares": torch.stack(squares)}

    @property
    def sites(self) -> tuple[str, ...]:
        """The stream before the MLP and after the layer."""
        return ("resid_mid", "resid_post")

    def see(self, acts: Acts) -> None:
        """Keep each document's products before the MLP; add up those after the layer."""
        last = document_last(acts.whole, acts.view.keep)
        down = _down(self.model, acts.layer)
        if acts.site == "resid_mid":
            self.layer_values[acts.layer] = (last @ down.T).cpu()
            return
        stream = last.double().sum(0)
        self.sums[f"{self.need.key}.stream"][acts.layer] += stream
        self.sums[f"{self.need.key}.along"][acts.layer] += down @ stream.float()


def _down(model: Model, layer: int) -> Tensor:
    return model.blocks[layer].mlp.W_out.detach().float()
