"""The plan of a run: the text in batches, and the memory and disk needed, predicted from a configuration."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PretrainedConfig

from lsn_lens.collection.memory import requirements
from lsn_lens.collection.wanted import needs_of, widths_of
from lsn_lens.methods.base import Method
from lsn_lens.model import loading, structure, unembedding
from lsn_lens.model.checkpoints import read_config, source_of
from lsn_lens.model.gguf_files import located
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import get_site
from lsn_lens.statistics.needs import Need
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout, Plan, layout_of, row_limit, tokens_at_once
from lsn_lens.text.tokens import tokenize

SAVED = 12  # tensors of d_model, and SAVED / 3 of d_mlp, that one layer holds at its peak
PATTERNS = 3  # tensors of attention weights at the peak, if a need reads attention


def plan_of(model: Model, corpora: Any, folder: Path, layout: Layout, progress: bool = True) -> Plan:
    """The batches that `collect` reads: the `find` part of every language, its tokens in files of `folder`."""
    corpora = as_corpora(corpora)
    tokens = {
        label: tokenize(
            label, corpus.find, model.tokenizer, folder, separator=layout.separator, bos=layout.bos,
            max_tokens=layout.max_tokens, d_vocab=structure.vocabulary_size(model), progress=progress,
        )
        for label, corpus in corpora.items()
    }  # fmt: skip
    return Plan(tokens, layout, context=model.cfg.n_ctx, border=structure.position_border(model))


def plan_run(
    model: Model | PretrainedConfig | str | Path,
    methods: Iterable[str | Method] | str | Method = ("lape",),
    *,
    languages: int = 7,
    documents: int = 1000,
    layout: Layout | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Predict the memory and disk that `collect` will take, without loading weights or running the model.

    Args:
        model: A loaded model, a Hugging Face configuration, or a name or folder for `load_model`.
        methods: Names or method objects; None for all methods that apply to the model.
        languages: Number of languages.
        documents: Documents per language, for methods that keep values of single documents.
        layout: The layout for `collect`, of which `shards`, `length` and `batch_tokens` count.
        dtype: The dtype of the weights.
        revision: Branch, tag or commit of a Hub model.
        options: Options of `load_model` that locate the configuration: `trust_remote_code`, `subfolder`, `token` ...

    Returns:
        Bytes, one row per need of the methods, and the rows "model" and "one batch": `memory` (while collecting),
        `disk` (the finished run), `merged` (all languages' sums in memory afterwards; document values are read
        layer by layer). The row "all" is the total. The last row, "perplexity", is for measuring held-out text
        afterwards: the model and a batch, with the most logits that are held at once. The sums and document values
        are exact; batches are rough upper bounds for a model whose logits can be made in parts. `attrs` has `row` and
        `tokens_at_once`, the assumed maximum tokens per row and per forward pass.

    Raises:
        ValueError: A model that cannot be found, a site that the model lacks, or a length beyond the model's context.
    """
    layout = layout_of(layout, Layout(kind="auto"))
    source: Any = model
    if isinstance(source, str | Path):
        source = read_config(*located(source_of(source), {**options, "revision": revision}))
    ready: Any = loading.skeleton(source) if isinstance(source, PretrainedConfig) else source
    needs = needs_of(ready, methods)
    labels = [str(each) for each in range(languages)]
    table = requirements(
        needs, ready.cfg.n_layers, widths_of(ready, needs), dict.fromkeys(labels, layout.shards),
        dict.fromkeys(labels, documents),
    )  # fmt: skip
    weights = sum(each.numel() for each in (ready.original_model if structure.is_bridge(ready) else ready).parameters())
    size = torch.empty((), dtype=dtype).element_size()
    table.loc["model"] = [weights * size, 0, 0]
    table.loc["one batch"] = [_batch_bytes(ready, needs, layout, size), 0, 0]
    table.loc["all"] = table.sum()
    measuring = replace(layout, kind="blocks")
    logits = 4 * structure.vocabulary_size(ready) * tokens_at_once(measuring, ready.cfg.n_ctx)
    logits = unembedding.COPIES * min(logits, unembedding.FULL)
    table.loc["perplexity"] = [weights * size + _batch_bytes(ready, [], measuring, size) + logits, 0, 0]
    row, together = (each(layout, ready.cfg.n_ctx) for each in (row_limit, tokens_at_once))
    table.attrs = {"row": row, "tokens_at_once": together}
    return table.astype("int64")


def _batch_bytes(model: Any, needs: Iterable[Need], layout: Layout, size: int) -> int:
    """Bytes of one forward pass: activations, tensors for the gradient, and attention patterns that a need reads."""
    cfg, tokens, needs = model.cfg, tokens_at_once(layout, model.cfg.n_ctx), list(needs)
    gradient = any(need.gradient for need in needs)
    layers = cfg.n_layers if gradient else 1
    looks = any(get_site(site).hook.startswith("attn.") for need in needs for site in need.sites)
    patterns = PATTERNS * cfg.n_heads * row_limit(layout, cfg.n_ctx) if looks else 0
    one_layer = SAVED * cfg.d_model + SAVED // 3 * (cfg.d_mlp or 4 * cfg.d_model) + patterns
    logits = unembedding.bytes_for_gradient(model, tokens) if gradient else 0
    return tokens * layers * one_layer * size + logits
