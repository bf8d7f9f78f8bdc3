"""Recorder of one value a document, layer and unit."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.collection.recorders.base import Acts, Recorder, View

Values = Float[Tensor, "batch pos unit"]
Keep = Bool[Tensor, "batch pos"]


def document_mean(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """Mean over the tokens kept."""
    return (acts.float() * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


def document_last(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """The value at the last token kept."""
    last = keep.shape[1] - 1 - keep.flip(1).long().argmax(1)
    return acts[torch.arange(len(acts), device=acts.device), last].float()


def document_maximum(acts: Values, keep: Keep) -> Float[Tensor, "batch unit"]:
    """The largest value over the tokens kept."""
    return acts.float().masked_fill(~keep[..., None], -torch.inf).amax(1)


DOCUMENT_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": document_mean,
    "last": document_last,
    "maximum": document_maximum,
}


class DocumentRows(Recorder):
    """Keeps `DocumentValues`."""

    def reset(self) -> None:
        """Start a new shard."""
        super().reset()
        self.layer_values: dict[int, Tensor] = {}

    def see(self, acts: Acts) -> None:
        """Reduce each row of the batch."""
        keep = acts.view.keep_without_bos if self.need.skip_bos else acts.view.keep
        self.layer_values[acts.layer] = DOCUMENT_REDUCTIONS[self.need.reduction](acts.whole, keep).cpu()

    def end(self, view: View) -> None:
        """Put the layers together."""
        values = [self.layer_values[layer] for layer in range(self.layers)]
        self.rows[self.need.key].append(torch.stack(values, dim=1))
