"""A collected run: labelled statistics, where they come from, and its folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lsn_lens.neurons import write_bytes
from lsn_lens.statistics import Statistics, merge

SCHEMA = 1
TOKENS = "tokens"  # the key of the number of tokens each layer saw


@dataclass(frozen=True)
class Run:
    """What `collect` returns: everything left of the scores, without the model.

    Attributes:
        shards: language -> each shard in order, as sums in memory or the file that holds them.
        settings: Model, text and layout that the sums belong to.
        path: The run's folder; None for a run in memory.
    """

    shards: Mapping[str, Sequence[Path | Mapping[str, Tensor]]] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    path: Path | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        """Labels, in the order of the corpora."""
        return tuple(self.shards)

    @cached_property
    def statistics(self) -> Statistics:
        """All shards merged, in their order, one in memory at a time."""
        merged = [reduce(lambda total, part: merge([total, part]), self.parts(label)) for label in self.shards]
        sums = {key: torch.stack([each[key] for each in merged]) for key in merged[0]}
        return Statistics(self.languages, sums, sums.pop(TOKENS))

    def parts(self, language: str) -> Iterator[dict[str, Tensor]]:
        """The sums of a language's shards, in order.

        Raises:
            ValueError: A file that is missing or damaged.
        """
        for shard in self.shards[language]:
            sums = read_shard(shard) if isinstance(shard, Path) else dict(shard)
            if sums is None:
                raise ValueError(
                    f"{shard} is missing or damaged. Call collect with the arguments of the run: it redoes that shard."
                )
            yield sums

    def to_frame(self) -> pd.DataFrame:
        """One row a language: tokens used, tokens, documents, bytes, records skipped, shards."""
        rows = {
            label: {
                **{key: each[key] for key in ("tokens_used", "tokens", "documents", "bytes")},
                "skipped": sum(each["skipped"].values()),
                "shards": len(self.shards[label]),
            }
            for label, each in self.settings["text"]["languages"].items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("language")

    def __repr__(self) -> str:
        model, text = self.settings["model"], self.settings["text"]
        tokens = ", ".join(f"{label} {each['tokens_used']:,}" for label, each in text["languages"].items())
        keys = ", ".join(key for key in self.statistics.sums)
        return f"Run({model['name']}, {text['layout']['kind']} of {text['layout']['length']}: {tokens} tokens; {keys})"

    def _repr_html_(self) -> str:
        model, layout = self.settings["model"], self.settings["text"]["layout"]
        return (
            f"<p><b>Run</b> of {model['name']} ({model['class']}, {model['layers']} layers): "
            f"{', '.join(self.statistics.sums)}; {layout['kind']} of {layout['length']} tokens</p>"
            f"{self.to_frame().to_html()}"
        )


def checksum(sums: Mapping[str, Tensor]) -> str:
    """A hash over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(sums):
        value = sums[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def write_shard(path: Path, sums: Mapping[str, Tensor]) -> None:
    """Write one shard's sums with their checksum."""
    write_bytes(path, save(dict(sums), metadata={"checksum": checksum(sums)}))


def read_shard(path: Path) -> dict[str, Tensor] | None:
    """A shard's sums; None where the file is missing, truncated or altered."""
    try:
        with safe_open(str(path), framework="pt") as file:
            sums = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            stored = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return sums if stored == checksum(sums) else None


def shard_path(folder: Path, name: str) -> Path:
    """Where a shard lies in a run's folder."""
    return folder / "shards" / f"{name}.safetensors"


def load_run(path: str | Path) -> Run:
    """Open a run's folder.

    Raises:
        ValueError: Not a run, or one of another version.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json.")
    stored = json.loads((folder / "run.json").read_text())
    if stored.get("schema") != SCHEMA:
        raise ValueError(f"{folder} was written with schema {stored.get('schema')}, this version reads {SCHEMA}.")
    shards = {label: [shard_path(folder, name) for name in names] for label, names in stored["shards"].items()}
    return Run(shards, stored["settings"], folder)
