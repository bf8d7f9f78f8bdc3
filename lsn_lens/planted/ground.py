"""The model and text that units are planted into: its MLPs, what they read, and its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsn_lens import models
from lsn_lens.anatomy import anatomy_of, by_output, place
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.planted.reading import Inputs, Text, mlp_inputs, read_text, token_scripts
from lsn_lens.planted.weights import Mlp
from lsn_lens.sites import SITES

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")  # what configurations call the width of an MLP


@dataclass(frozen=True, eq=False)
class Ground:
    """A Hugging Face model on the CPU, its tokenizer and text.

    Attributes:
        names: For each layer the names of the MLP's projections: gate (or the only one), up (or none), down.
        find: To write weights from.
        held_out: To see whether they hold.
    """

    hf_model: Any
    tokenizer: Any
    names: Sequence[tuple[str, str | None, str]]
    activation: Any
    find: Text
    held_out: Text

    @classmethod
    def of(cls, source: str | Path, corpora: Mapping[str, LanguageCorpus], tokens: int) -> "Ground":
        """Load and look.

        Raises:
            ValueError: MLPs that are not of dense projections by themselves, or whose width cannot be changed.
        """
        name = str(models.DEMO_MODEL) if str(source) == "demo" else str(source)
        bridge = models.load_model(source, backend="bridge", device="cpu")
        names = _projections(bridge)
        activation = models.activation(bridge)
        hf_model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(name)
        context = int(bridge.cfg.n_ctx)
        ground = cls(
            hf_model, tokenizer, names, activation,
            read_text(tokenizer, corpora, "find", tokens, context),
            read_text(tokenizer, corpora, "hold_out", max(tokens // 2, 1), context),
        )  # fmt: skip
        ground.width_name  # refuse early what could not be written  # noqa: B018
        return ground

    @property
    def languages(self) -> tuple[str, ...]:
        """Labels."""
        return self.find.languages

    @cached_property
    def inputs(self) -> tuple[Inputs, Inputs]:
        """What the MLPs read on both texts."""
        gates = [gate for gate, _, _ in self.names]
        return mlp_inputs(self.hf_model, gates, self.find), mlp_inputs(self.hf_model, gates, self.held_out)

    @cached_property
    def scripts(self) -> list[str | None]:
        """The script of each token id."""
        return token_scripts(self.tokenizer, self.unembedding.shape[0])

    @property
    def unembedding(self) -> Float[Tensor, "vocabulary d_model"]:
        """What the last residual stream is multiplied with."""
        return self.hf_model.get_output_embeddings().weight.data

    @property
    def width(self) -> int:
        """Units of a layer before anything is planted."""
        return by_output(self.mlp(0).gate).shape[0]

    @property
    def width_name(self) -> str:
        """What the configuration calls it."""
        config = self.hf_model.config
        name = next((each for each in WIDTHS if getattr(config, each, None) == self.width), None)
        if name is None and hasattr(config, "n_inner"):  # None there means four times the residual stream
            name = "n_inner"
        if name is None:
            raise ValueError(
                f"{type(config).__name__} has no width of the MLP that could be changed (looked for {list(WIDTHS)})."
            )
        return name

    def mlp(self, layer: int) -> Mlp:
        """The projections of a layer."""
        gate, up, down = (None if name is None else self.hf_model.get_submodule(name) for name in self.names[layer])
        return Mlp(gate, up, down, self.activation)


@torch.no_grad()
def mean_loss(hf_model: Any, text: Text) -> float:
    """Nats a token of a Hugging Face model on some text."""
    total, count = 0.0, 0
    for ids, keep, _ in text.batches():
        logits = hf_model(ids, attention_mask=keep.long(), use_cache=False).logits[:, :-1]
        scored = keep[:, 1:]
        total += float(torch.nn.functional.cross_entropy(logits[scored], ids[:, 1:][scored], reduction="sum"))
        count += int(scored.sum())
    return total / count


def _projections(bridge: models.Model) -> list[tuple[str, str | None, str]]:
    anatomy = anatomy_of(bridge)
    sites = ("mlp_pre", "mlp_up", "mlp_post") if models.is_gated(bridge) else ("mlp_pre", "mlp_post")
    rows = []
    for layer in range(bridge.cfg.n_layers):
        names: dict[str, str] = {}
        for site in sites:
            name, _, order = place(anatomy, SITES[site].hook_name(layer), "mlp")
            if not torch.equal(order, torch.arange(models.site_width(bridge, site))) or name in names.values():
                raise ValueError(
                    f"units cannot be planted into this model: {name} is not one projection of an MLP by itself."
                )
            names[site] = name
        rows.append((names["mlp_pre"], names.get("mlp_up"), names["mlp_post"]))
    return rows
