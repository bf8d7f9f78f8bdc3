"""The model and text for planting: projections, their inputs, and the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsn_lens.model import loading, structure
from lsn_lens.model.checkpoints import source_of
from lsn_lens.planted.parts import Names, PartName, Room, projections, room_of
from lsn_lens.planted.reading import Inputs, Text, inputs_of, read_text, token_scripts
from lsn_lens.planted.weights import Projections
from lsn_lens.text.documents import LanguageCorpus


@dataclass(frozen=True, eq=False)
class Ground:
    """A Hugging Face model on the CPU, its tokenizer and text.

    Attributes:
        part: The part to widen; `room` says how.
        names: The model's projections in each layer.
        activations: Activation functions of the MLPs by layer; empty for another part.
        find: Text for writing the weights.
        held_out: Text for testing the roles.
    """

    hf_model: Any
    tokenizer: Any
    part: PartName
    names: Sequence[Names]
    room: Room
    activations: Sequence[Callable[[Tensor], Tensor]]
    find: Text
    held_out: Text

    @classmethod
    def of(
        cls, source: str | Path, corpora: Mapping[str, LanguageCorpus], tokens: int, part: PartName = "mlp"
    ) -> "Ground":
        """Load the model and read both texts.

        Raises:
            ValueError: Projections that are not separate dense matrices, a width that cannot be changed, or MLPs whose
                units are active below zero.
        """
        name, bridge = source_of(source), loading.load_model(source, backend="bridge", device="cpu")
        names, activations = projections(bridge, part), structure.activations(bridge) if part == "mlp" else []
        if part == "mlp" and structure.firing(bridge):
            raise ValueError("units cannot be planted into the mlp of this model: they are active below zero, too.")
        hf_model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
        context = min(int(bridge.cfg.n_ctx), structure.position_border(bridge) or int(bridge.cfg.n_ctx))
        return cls(
            hf_model.eval(), tokenizer, part, names, room_of(hf_model, names[0], part), activations,
            read_text(tokenizer, corpora, "find", tokens, context),
            read_text(tokenizer, corpora, "hold_out", max(tokens // 2, 1), context),
        )  # fmt: skip

    @property
    def languages(self) -> tuple[str, ...]:
        """The labels of the languages."""
        return self.find.languages

    @cached_property
    def inputs(self) -> tuple[Inputs, Inputs]:
        """The inputs of the layers on both texts."""
        return self.read(self.hf_model, self.find), self.read(self.hf_model, self.held_out)

    def read(self, hf_model: Any, text: Text) -> Inputs:
        """The inputs of the named projections of a model."""
        return inputs_of(hf_model, [names.gate for names in self.names], text)

    @cached_property
    def scripts(self) -> list[str | None]:
        """The script of each token id."""
        return token_scripts(self.tokenizer, self.unembedding.shape[0])

    @property
    def unembedding(self) -> Float[Tensor, "vocabulary d_model"]:
        """The unembedding matrix of the model."""
        return self.hf_model.get_output_embeddings().weight.data

    def projections(self, layer: int) -> Projections:
        """The projections of a layer."""
        gate, up, down = (name and self.hf_model.get_submodule(name) for name in self.names[layer][:3])
        return Projections(gate, up, down, self.activations[layer] if self.part == "mlp" else None)


@torch.no_grad()
def mean_loss(hf_model: Any, text: Text) -> float:
    """Loss of a Hugging Face model on some text, nats per token."""
    total, count = 0.0, 0
    for ids, keep, _ in text.batches():
        logits = hf_model(ids, attention_mask=keep.long(), use_cache=False).logits[:, :-1]
        scored = keep[:, 1:]
        total += float(torch.nn.functional.cross_entropy(logits[scored], ids[:, 1:][scored], reduction="sum"))
        count += int(scored.sum())
    return total / count
