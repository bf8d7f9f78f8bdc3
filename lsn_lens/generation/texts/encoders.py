"""Sentence embeddings of a Hugging Face encoder."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from lsn_lens.files import whole_number


def sentence_encoder(
    name: str | Path, *, prefix: str = "", batch: int = 32, device: str = "cpu"
) -> Callable[[list[str]], Float[np.ndarray, "text dimension"]]:
    """A function from texts to embeddings: the mean of the last layer over a text's tokens.

    Args:
        name: Folder or Hub id of an encoder, loaded by `AutoModel`; it should be trained for sentences and for the
            languages compared.
        prefix: Put before each text, as some encoders expect ("query: ").
        batch: Texts at once.
        device: Where it runs.

    Raises:
        OSError: No such model.

    Warns:
        UserWarning: Texts longer than the encoder reads, which are cut; the message says how many.
    """
    from transformers import AutoModel, AutoTokenizer  # slow to import, and needed here only

    batch = whole_number(batch, "batch", least=1)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModel.from_pretrained(name).to(device).eval()
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", tokenizer.model_max_length))

    @torch.no_grad()
    def embed(texts: list[str]) -> Float[np.ndarray, "text dimension"]:
        whole = [prefix + text for text in texts]
        long = sum(len(ids) > most for ids in tokenizer(whole, verbose=False)["input_ids"])
        if long:
            warnings.warn(f"{long} of {len(whole)} texts have more than {most} tokens and are cut.", stacklevel=2)
        found = []
        for first in range(0, len(whole), batch):
            some = tokenizer(
                whole[first : first + batch], padding=True, truncation=True, max_length=most, return_tensors="pt"
            ).to(device)
            mask = some["attention_mask"][..., None]
            states = model(**some).last_hidden_state * mask
            found.append((states.sum(1) / mask.sum(1).clamp_min(1)).float().cpu())
        return torch.cat(found).numpy()

    return embed
