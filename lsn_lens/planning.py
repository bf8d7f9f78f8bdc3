"""How much memory and disk a run will take, from a configuration alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PretrainedConfig

from lsn_lens import loading, models
from lsn_lens.batches import Layout
from lsn_lens.checkpoints import read_config, source_of
from lsn_lens.collect import needs_of, widths_of
from lsn_lens.methods import Method
from lsn_lens.requirements import requirements

SAVED = 12  # tensors of d_model, and SAVED / 3 of d_mlp, that one layer holds at its busiest


def plan_run(
    model: models.Model | PretrainedConfig | str | Path,
    methods: Iterable[str | Method] = ("lape",),
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
        layout: Its `shards` and `batch_tokens` count.
        dtype: Of the weights.
        revision: Of a Hub model.
        options: Where to find its configuration, as for `load_model`: `trust_remote_code`, `subfolder`, `token` ...

    Returns:
        Bytes, one row for each need of the methods and one for "model" and "one batch": `memory` (while collecting),
        `disk` (the finished run), `merged` (all languages' sums in memory afterwards; document values are read
        layer by layer). The sums and document values are exact, "one batch" is a rough upper bound for the
        activations. The last row is the total.

    Raises:
        ValueError: A model that cannot be found, or that the methods cannot read (a site that it lacks).
    """
    layout = layout or Layout()
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
    weights = sum(each.numel() for each in (ready.original_model if models.is_bridge(ready) else ready).parameters())
    size = torch.empty((), dtype=dtype).element_size()
    table.loc["model"] = [weights * size, 0, 0]
    table.loc["one batch"] = [_batch_bytes(ready, layout, size, any(need.gradient for need in needs)), 0, 0]
    table.loc["all"] = table.sum()
    return table.astype("int64")


def _batch_bytes(model: Any, layout: Layout, size: int, gradient: bool) -> int:
    cfg = model.cfg
    one_layer = SAVED * cfg.d_model + SAVED // 3 * (cfg.d_mlp or 4 * cfg.d_model)
    layers = cfg.n_layers if gradient else 1
    logits = 3 * models.vocabulary_size(model) if gradient else 0
    return layout.batch_tokens * (layers * one_layer * size + logits * 4)
