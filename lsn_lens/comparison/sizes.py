"""The number of units that each method finds, and the cost of finding them."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from torch import Tensor

from lsn_lens.comparison.overlaps import mean_jaccard
from lsn_lens.evaluation.verdict import FEW_NEURONS
from lsn_lens.labels import check_apart
from lsn_lens.methods.base import Method
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.columns import in_words
from lsn_lens.runs.run import Run


def sizes_table(found: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """One row per method, fewest languages below 10 units first; see `Comparison.sizes`."""
    rows = []
    for name, each in found.items():
        before = {"method": name, "bases": ", ".join(each.masks)}
        after = {
            "units": len(each),
            "rate": len(each) / sum(mask[0].numel() for mask in each.masks.values()),
            "mean_jaccard": mean_jaccard(each),
            "notes": "; ".join(f"{key.replace('_', ' ')} {in_words(value)}" for key, value in each.notes.items()),
        }
        check_apart(each.languages, before | after)
        rows.append(before | each.counts().to_dict() | after)
    few = [int((each.counts() < FEW_NEURONS).sum()) for each in found.values()]
    order = sorted(range(len(rows)), key=lambda place: few[place])
    return pd.DataFrame([rows[place] for place in order])


def layers_table(found: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """One row per method and layer, one column per language."""
    for each in found.values():
        check_apart(each.languages, ("method", "layer"))
    frames = {name: each.layer_counts() for name, each in found.items()}
    return pd.concat(frames, names=["method"]).reset_index().rename_axis(columns=None)


def cost_table(run: Run, methods: Mapping[str, Method], seconds: Mapping[str, float]) -> pd.DataFrame:
    """One row per method, cheapest first; `seconds` are those of scoring and selecting. See `Comparison.cost`."""
    stored = stored_bytes(run)
    rows = []
    for name, method in methods.items():
        needs = [need for need in method.statistics() if need.key in run.settings["statistics"]]
        passing = [run.costs.get(need.key, math.nan) for need in needs]
        gradients = any(need.gradient for need in needs)
        passing += [run.costs.get("backward", math.nan)] * gradients
        rows.append(
            {
                "method": name,
                "seconds": sum(passing) + seconds[name],
                "seconds_in_pass": sum(passing),
                "seconds_scoring": seconds[name],
                "bytes": sum(stored[need.key] for need in needs),
                "gradients": gradients,
                "single_documents": any(need.by_document for need in needs),
                "statistics": ", ".join(need.key for need in needs),
            }
        )
    frame = pd.DataFrame(rows).sort_values(["seconds", "seconds_scoring"], kind="stable", ignore_index=True)
    frame.attrs["forward"] = run.costs.get("forward", math.nan)
    return frame


def stored_bytes(run: Run) -> Counter[str]:
    """Bytes of the run's tensors by need: the longest key of a need that begins a tensor's key."""
    keys = sorted(run.settings["statistics"], key=len, reverse=True)
    total: Counter[str] = Counter()
    for parts in (*run.shards.values(), *run.documents.values()):
        for part in parts:
            for name, size in _sizes_of(part).items():
                need = next(
                    (key for key in keys if name.startswith(key) and name[len(key) :][:1] in ("", ".", "@")), ""
                )
                total[need] += size
    return total


def _sizes_of(part: Path | Mapping[str, Tensor]) -> dict[str, int]:
    if not isinstance(part, Path):
        return {name: each.numel() * each.element_size() for name, each in part.items()}
    with open(part, "rb") as file:  # the header alone: its length in 8 bytes, then JSON
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    ranges = {name: each["data_offsets"] for name, each in header.items() if name != "__metadata__"}
    return {name: last - first for name, (first, last) in ranges.items()}
