"""Predict the memory and disk of a run from the shapes of its needs."""

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import pandas as pd
import torch

from lsn_lens.statistics.needs import Need, Tensors


def requirements(
    needs: Sequence[Need],
    layers: int,
    widths: Mapping[str, int],
    shards: Mapping[str, int],
    documents: Mapping[str, int],
) -> pd.DataFrame:
    """Bytes per need.

    Args:
        needs: From `needs_of`.
        layers: Number of layers of the model.
        widths: Site -> number of units.
        shards: Language -> number of shards.
        documents: Language -> number of documents whose values are kept.

    Returns:
        One row per need: `memory` (while collecting: one shard's sums, and the values of its documents), `disk` (all
        shards' sums, and the values of all documents), `merged` (the sums of all languages after merging).
    """
    largest = max((ceil(documents[label] / shards[label]) for label in shards), default=0)
    rows: dict[str, Any] = {}
    for need in needs:
        sums, each = (n_bytes(tensors) for tensors in (need.sums(layers, widths), need.rows(layers, widths)))
        rows[need.key] = {
            "memory": sums + largest * each,
            "disk": sum(shards.values()) * sums + sum(documents.values()) * each,
            "merged": len(shards) * sums,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("need")


def n_bytes(tensors: Tensors) -> int:
    """Bytes of tensors of these shapes and types."""
    return sum(prod(shape) * torch.empty((), dtype=dtype).element_size() for shape, dtype in tensors.values())
