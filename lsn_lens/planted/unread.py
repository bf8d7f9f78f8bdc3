"""Residual directions that later layers ignore."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.planted.reading import Text

TOKENS = 800  # tokens per language for the gradients


def unread_direction(hf_model: Any, name: str, text: Text) -> Float[Tensor, "d_model"]:
    """The output direction of the named module that changes the loss of some text least.

    The last eigenvector of the mean outer product of the loss's gradients, one per token (the empirical Fisher matrix):
    the squared change of the loss by a small step is least along it.
    """
    written: list[Tensor] = []

    def keep(module: Any, given: Any, out: Tensor) -> Tensor:
        written.append(out.detach().requires_grad_())
        return written[-1]

    handle = hf_model.get_submodule(name).register_forward_hook(keep)
    square = torch.zeros(())
    try:
        with torch.enable_grad():
            for ids, mask, _ in text.head(TOKENS).batches():
                written.clear()
                logits = hf_model(ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
                scored = mask[:, 1:]
                loss = torch.nn.functional.cross_entropy(logits[scored], ids[:, 1:][scored], reduction="sum")
                (gradient,) = torch.autograd.grad(loss, written)
                rows = gradient[mask].double()
                square = square + rows.T @ rows
    finally:
        handle.remove()
    return torch.linalg.eigh(square).eigenvectors[:, 0].float()
