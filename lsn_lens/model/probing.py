"""Run a model on a few tokens without user hooks, and read its tensors."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lsn_lens.model.hooks import set_aside

Hooks = list[tuple[str, Callable[..., Any]]]
TOKENS = 7


def is_bridge(model: Any) -> bool:
    """Whether a model is a TransformerBridge (else a HookedTransformer)."""
    return hasattr(model, "original_model")


def vocabulary_size(model: Any) -> int:
    """Number of tokens with an embedding."""
    return model.original_model.get_input_embeddings().weight.shape[0] if is_bridge(model) else model.cfg.d_vocab


def device_of(model: Any) -> torch.device:
    """The device of the model's input."""
    return next(model.parameters()).device


def probe_ids(vocabulary: int, *lengths: int) -> list[Tensor]:
    """Fixed ids of texts with these lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def probe(
    model: Any,
    names: Iterable[str] = (),
    hooks: Hooks | None = None,
    under: contextlib.AbstractContextManager[Any] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors at these hook points for one text of `TOKENS` tokens, and the text's logits.

    The model runs without user hooks, with `hooks`, and inside the context `under`.

    Raises:
        ValueError: A model without weights that needs their values to run.
    """
    seen: dict[str, Tensor] = {}
    ids = probe_ids(vocabulary_size(model), TOKENS)[0][None].to(device_of(model))
    every = [*((name, _keep(seen, name)) for name in names), *(hooks or [])]
    try:
        with set_aside(model), under or contextlib.nullcontext(), model.hooks(fwd_hooks=every):
            return seen, model(ids, return_type="logits")
    except (NotImplementedError, RuntimeError) as error:
        if ids.device.type != "meta":
            raise
        raise ValueError(
            f"the sizes of {model.cfg.model_name} cannot be told from its configuration alone ({type(error).__name__}: "
            "it cannot be run without weights): load the model, and give the loaded model."
        ) from error


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(acts: Tensor, hook: Any) -> None:
        seen[name] = acts.detach()

    return hook
