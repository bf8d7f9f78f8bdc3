"""Recorder of one value per document, layer and unit."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.collection.recorders.base import Acts, Recorder, View

Values = Float[Tensor, "batch pos unit"]
Keep = Bool[Tensor, "batch pos"]


def document_mean(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """Mean over the tokens that count, per document."""
    return (acts.float() * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


def document_last(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """Value at the last token that counts, per document."""
    last = keep.shape[1] - 1 - keep.flip(1).long().argmax(1)
    return acts[torch.arange(len(acts), device=acts.device), last].float()


def document_maximum(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """Largest value over the tokens that count, per document."""
    return acts.float().masked_fill(~keep[..., None], -torch.inf).amax(1)


DOCUMENT_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": document_mean,
    "last": document_last,
    "maximum": document_maximum,
}


class DocumentRows(Recorder):
    """Recorder of `DocumentValues`."""

    def reset(self) -> None:
        """Start a new shard."""
        super().reset()
        self.layer_values: dict[int, Tensor] = {}

    def see(self, acts: Acts) -> None:
        """Reduce each row of the batch to one value per unit."""
        keep = acts.view.keep_without_bos if self.need.skip_bos else acts.view.keep
        self.layer_values[acts.layer] = DOCUMENT_REDUCTIONS[self.need.reduction](acts.whole, keep).cpu()

    def end(self, view: View) -> None:
        """Stack the layers of the batch's documents."""
        values = [self.layer_values[layer] for layer in range(self.layers)]
        self.rows[self.need.key].append(torch.stack(values, dim=1))
