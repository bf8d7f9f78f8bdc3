"""The plan of a run: the text in batches, and how much memory and disk it will take, from a configuration alone."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PretrainedConfig

from lsn_lens.collection.memory import requirements
from lsn_lens.collection.wanted import needs_of, widths_of
from lsn_lens.methods.base import Method
from lsn_lens.model import loading, structure
from lsn_lens.model.checkpoints import read_config, source_of
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import get_site
from lsn_lens.statistics.needs import Need
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout, Plan, row_limit, tokens_at_once
from lsn_lens.text.tokens import tokenize

SAVED = 12  # tensors of d_model, and SAVED / 3 of d_mlp, that one layer holds at its busiest
LOGITS = 3  # tensors of the size of the logits, in float32, that a loss or its gradient holds at its busiest
PATTERNS = 3  # the same for attention weights, where something looks into attention


def plan_of(
    model: Model, corpora: Mapping[str, LanguageCorpus], folder: Path, layout: Layout, progress: bool = True
) -> Plan:
    """The batches that `collect` reads: the `find` part of every language, its tokens in files of `folder`."""
    tokens = {
        label: tokenize(
            label, corpus.find, model.tokenizer, folder, separator=layout.separator, max_tokens=layout.max_tokens,
            d_vocab=structure.vocabulary_size(model), progress=progress,
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
    """Predict what `collect` will take; no weights are loaded and nothing is run.

    Args:
        model: A loaded model, a Hugging Face configuration, or what `load_model` takes.
        methods: As for `collect`.
        languages: How many.
        documents: Of each language, kept one by one where a method looks at single documents.
        layout: As for `collect`; its `shards`, `length` and `batch_tokens` count.
        dtype: Of the weights.
        revision: Of a Hub model.
        options: Where to find its configuration, as for `load_model`: `trust_remote_code`, `subfolder`, `token` ...

    Returns:
        Bytes, one row for each need of the methods and one for "model" and "one batch": `memory` (while collecting),
        `disk` (the finished run), `merged` (all languages' sums in memory afterwards; document values are read
        layer by layer). The row "all" is their total. The last row, "perplexity", is what measuring held-out text
        takes afterwards: the model and a batch with its logits. The sums and document values are exact; batches
        are rough upper bounds. `attrs` has the `row` and the `tokens_at_once` that these were worked out for: the
        most tokens of a row and of a forward pass.

    Raises:
        ValueError: A model that cannot be found, or that the methods cannot read (a site that it lacks), or a length
            beyond its context.
    """
    layout = layout or Layout(kind="auto")
    source: Any = model
    if isinstance(source, str | Path):
        source = read_config(source_of(source), {**options, "revision": revision})
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
    logits = LOGITS * 4 * structure.vocabulary_size(ready) * tokens_at_once(measuring, ready.cfg.n_ctx)
    table.loc["perplexity"] = [weights * size + _batch_bytes(ready, [], measuring, size) + logits, 0, 0]
    row, together = (each(layout, ready.cfg.n_ctx) for each in (row_limit, tokens_at_once))
    table.attrs = {"row": row, "tokens_at_once": together}
    return table.astype("int64")


def _batch_bytes(model: Any, needs: Iterable[Need], layout: Layout, size: int) -> int:
    """Activations of one forward pass, and what its gradient and a look into attention hold."""
    cfg, tokens, needs = model.cfg, tokens_at_once(layout, model.cfg.n_ctx), list(needs)
    gradient = any(need.gradient for need in needs)
    layers = cfg.n_layers if gradient else 1
    looks = any(get_site(site).hook.startswith("attn.") for need in needs for site in need.sites)
    patterns = PATTERNS * cfg.n_heads * row_limit(layout, cfg.n_ctx) if looks else 0
    one_layer = SAVED * cfg.d_model + SAVED // 3 * (cfg.d_mlp or 4 * cfg.d_model) + patterns
    logits = LOGITS * structure.vocabulary_size(model) if gradient else 0
    return tokens * (layers * one_layer * size + logits * 4)
