"""What a run will take, before it starts: memory and disk, from the needs' shapes alone."""

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
    """Bytes for each need.

    Args:
        needs: From `needs_of`.
        layers: Of the model.
        widths: Site -> units.
        shards: Language -> shards of its text.
        documents: Language -> documents that are kept one by one.

    Returns:
        One row a need: `memory` (while collecting: one shard's sums, and the values of its documents), `disk` (all
        shards' sums, and the values of all documents), `merged` (the sums of all languages once merged).
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
