"""A collected run: labelled statistics, where they come from, and its folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lsn_lens.files import write_bytes
from lsn_lens.statistics.sums import Statistics, merge
from lsn_lens.text.plan import corpus_hash

SCHEMA = 2
TOKENS = "tokens"  # the key of the number of tokens each layer saw
DOCUMENTS = "documents"  # the key of the number of documents, in the layout "documents"
CONSTANTS = "constants.safetensors"
LENGTH = "length"  # the key of the number of tokens of each document


@dataclass(frozen=True)
class Run:
    """What `collect` returns: everything left of the scores, without the model.

    Attributes:
        shards: language -> each shard in order, as sums in memory or the file that holds them.
        settings: Model, text and layout that the sums belong to.
        path: The run's folder; None for a run in memory.
        documents: language -> each shard's values of single documents, likewise; keys are those of `row_key`.
        constants: What the sums were made with and no text changes, likewise.
        costs: Seconds that each need took while collecting, and "forward" and "backward" for the model itself. For
            a resumed run, those of the last call. On a GPU, work is only queued in that time.
    """

    shards: Mapping[str, Sequence[Path | Mapping[str, Tensor]]] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    path: Path | None = None
    documents: Mapping[str, Sequence[Path | Mapping[str, Tensor]]] = field(default_factory=dict, repr=False)
    constants: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    costs: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def languages(self) -> tuple[str, ...]:
        """Labels, in the order of the corpora."""
        return tuple(self.shards)

    @cached_property
    def statistics(self) -> Statistics:
        """All shards merged, in their order, one in memory at a time."""
        merged = [merge(self.parts(label)) for label in self.shards]
        sums = {key: torch.stack([each[key] for each in merged]) for key in merged[0]}
        read = self.read_documents if any(self.documents.values()) else None
        tokens, documents = sums.pop(TOKENS), sums.pop(DOCUMENTS, None)
        return Statistics(self.languages, sums, tokens, documents, self.constants, read, self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """What goes with everything found in this run: the model and its weights, the text, the layout."""
        model, text = self.settings.get("model", {}), self.settings.get("text")
        kept = ("revision", "fingerprint", "class", "dtype", "layers")
        known = {"model": model["name"], **{key: model[key] for key in kept if key in model}} if model else {}
        return known | ({"text": corpus_hash(text), "layout": text["layout"]} if text and "layout" in text else {})

    def read_documents(self, key: str, layer: int) -> dict[str, Tensor]:
        """Values of single documents in one layer, `[document unit]` for each language.

        Raises:
            KeyError: The run did not collect them.
            ValueError: A file that is missing or damaged.
        """
        name = row_key(key, layer)
        return {
            label: torch.cat([_read_rows(shard, name) for shard in shards]) for label, shards in self.documents.items()
        }

    def lacks(self, method: Any) -> list[str]:
        """Keys of what a method needs and the run did not collect; of what is optional, only where it has none."""
        if "statistics" not in self.settings:  # made by hand: scoring says what is missing
            return []
        kept = set(self.settings["statistics"])
        missing = [need for need in method.statistics() if need.key not in kept]
        there = {type(need) for need in method.statistics() if need.key in kept}
        return [need.key for need in missing if not need.optional or type(need) not in there]

    def why_not(self, name: str) -> str | None:
        """Why a method was left out when the run was collected; None if it was not."""
        return self.settings.get("left_out", {}).get("methods", {}).get(name)

    def left_out(self, method: Any) -> dict[str, str]:
        """Bases that a method would take and the model could not give, and why."""
        bases = self.settings.get("left_out", {}).get("bases", {})
        return {basis: why for need in method.statistics() for basis, why in bases.get(need.key, {}).items()}

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
        """One row a language: tokens used, and what its text is like.

        Columns: `tokens_used`; `tokens`, `documents` and `bytes` that were read; records `skipped`; documents
        `repeated`; `control_tokens` spelled out in the text; `unknown`, the share of tokens that the tokenizer does
        not know; `shards`.
        """
        rows = {label: self._row(label, each) for label, each in self.settings["text"]["languages"].items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("language")

    def _row(self, label: str, text: Mapping[str, Any]) -> dict[str, Any]:
        noticed = text.get("noticed", {})
        return {
            **{key: text[key] for key in ("tokens_used", "tokens", "documents", "bytes")},
            "skipped": sum(text["skipped"].values()),
            "repeated": noticed.get("repeated", 0),
            "control_tokens": noticed.get("control", 0),
            "unknown": noticed.get("unknown", 0) / text["tokens"],
            "shards": len(self.shards[label]),
        }

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


def row_key(key: str, layer: int) -> str:
    """The name of a document value in one layer."""
    return f"{key}@{layer}"


def _read_rows(shard: Path | Mapping[str, Tensor], name: str) -> Tensor:
    try:
        if isinstance(shard, Path):
            with safe_open(str(shard), framework="pt") as file:
                keys = list(file.keys())
                if name in keys:
                    return file.get_tensor(name)
        else:
            keys = list(shard)
            if name in shard:
                return shard[name]
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{shard} is missing or damaged ({error}). "
            "Call collect with the arguments of the run: it redoes that shard."
        ) from error
    raise KeyError(
        f"this run did not collect {name!r} of single documents; it has "
        f"{sorted({key.rsplit('@', 1)[0] for key in keys})}. Collect again with a method that needs it."
    )


def checksum(sums: Mapping[str, Tensor]) -> str:
    """A hash over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(sums):
        value = sums[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def write_shard(path: Path, sums: Mapping[str, Tensor], documents: Path | None = None) -> None:
    """Write one shard's sums with their checksum, and that of the file with its documents' values."""
    metadata = {"checksum": checksum(sums)} | ({"documents": _file_hash(documents)} if documents else {})
    write_bytes(path, save(dict(sums), metadata=metadata))


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(path: Path, documents: Path | None) -> bool:
    """Whether a shard's sums, and the values of its documents where there are any, are whole on disk."""
    if read_shard(path) is None:
        return False
    if documents is None:
        return True
    with safe_open(str(path), framework="pt") as file:
        stored = (file.metadata() or {}).get("documents")
    return documents.is_file() and stored == _file_hash(documents)


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


def documents_path(folder: Path, name: str) -> Path:
    """Where the values of a shard's documents lie in a run's folder."""
    return folder / "documents" / f"{name}.safetensors"


def load_run(path: str | Path) -> Run:
    """Open a run's folder.

    Raises:
        ValueError: Not a run, or one of another version.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json.")
    stored = json.loads((folder / "run.json").read_text(encoding="utf-8-sig"))
    if stored.get("schema") != SCHEMA:
        raise ValueError(f"{folder} was written with schema {stored.get('schema')}, this version reads {SCHEMA}.")
    shards, documents = (
        {label: [place(folder, name) for name in names] for label, names in stored["shards"].items()}
        for place in (shard_path, documents_path)
    )
    constants = read_shard(folder / CONSTANTS)
    if constants is None:
        raise ValueError(f"{folder / CONSTANTS} is missing or damaged: call collect with the arguments of the run.")
    costs: dict[str, float] = {}
    for file in sorted(folder.glob("costs-*.json")):
        for key, seconds in json.loads(file.read_text(encoding="utf-8-sig")).items():
            costs[key] = costs.get(key, 0.0) + seconds
    return Run(shards, stored["settings"], folder, documents if stored["settings"]["rows"] else {}, constants, costs)
