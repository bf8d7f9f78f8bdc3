"""A collected run: labelled statistics, their origin, and the run's folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lsn_lens import sketches
from lsn_lens.files import write_bytes
from lsn_lens.refusal import check_kind
from lsn_lens.runs.shards import (
    CONSTANTS,
    DOCUMENTS,
    REDO,
    TOKENS,
    Layered,
    documents_path,
    layered,
    read_shard,
    row_key,
    shard_path,
    write_shard,
)
from lsn_lens.statistics.sums import Statistics, merge
from lsn_lens.text.plan import Shard, corpus_hash

SCHEMA = 2
DESCRIPTION = "run.json"
DRAWN = "drawn"  # in the settings of a run whose shards are not, or not all, those that its settings describe


@dataclass(frozen=True)
class Run:
    """The result of `collect`: all statistics that scores need, without the model.

    Attributes:
        shards: Language -> shards in order, each as sums in memory or as the file that holds them.
        settings: Model, text and layout of the run.
        path: The run's folder; None for a run in memory.
        documents: Language -> values of single documents per shard, in memory or as files, with keys of `row_key`.
        constants: Tensors behind the sums that do not depend on the corpora, in memory or as files.
        costs: Seconds per need while collecting, and "forward" and "backward" for the model itself. A resumed run has
            the seconds of its last call. On a GPU, the seconds only cover queuing the work.
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
        """The merged sums of all shards; one shard is in memory at a time."""
        merged = [merge(self.parts(label)) for label in self.shards]
        sums = {key: torch.stack([each[key] for each in merged]) for key in merged[0]}
        read = self.read_documents if any(self.documents.values()) else None
        tokens, documents = sums.pop(TOKENS), sums.pop(DOCUMENTS, None)
        return Statistics(self.languages, sums, tokens, documents, self.constants, read, self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of all results from this run: the model and its weights, the text, the layout."""
        model, text = self.settings.get("model", {}), self.settings.get("text")
        kept = ("revision", "weights", "fingerprint", "class", "dtype", "layers")
        known = {"model": model["name"], **{key: model[key] for key in kept if key in model}} if model else {}
        return known | ({"text": corpus_hash(text), "layout": text["layout"]} if text and "layout" in text else {})

    def read_documents(self, key: str, layer: int) -> dict[str, Tensor]:
        """Values of single documents in one layer, `[document unit]` for each language.

        Raises:
            KeyError: The run did not collect these values.
            ValueError: A missing or damaged file.
        """
        name = row_key(key, layer)
        return {
            label: torch.cat([_read_rows(shard, name) for shard in shards]) for label, shards in self.documents.items()
        }

    def lacks(self, method: Any) -> list[str]:
        """Keys of a method's needs that the run lacks; optional needs count only if the run has none of them."""
        if "statistics" not in self.settings:  # a run made by hand: scoring reports missing sums
            return []
        kept = set(self.settings["statistics"])
        missing = [need for need in method.statistics() if need.key not in kept]
        there = {type(need) for need in method.statistics() if need.key in kept}
        return [need.key for need in missing if not need.optional or type(need) not in there]

    def why_not(self, name: str) -> str | None:
        """Why a method was left out when the run was collected; None if it was not."""
        return self.settings.get("left_out", {}).get("methods", {}).get(name)

    def left_out(self, method: Any) -> dict[str, str]:
        """The method's bases that the model lacks: basis -> reason."""
        bases = self.settings.get("left_out", {}).get("bases", {})
        return {basis: why for need in method.statistics() for basis, why in bases.get(need.key, {}).items()}

    def parts(self, language: str) -> Iterator[dict[str, Tensor]]:
        """The sums of a language's shards, in order.

        Raises:
            ValueError: A file that is missing or damaged.
        """
        yield from map(_whole, self.shards[language])

    def save(self, folder: str | Path) -> Path:
        """Write the run to a folder; `load_run` reads it, and `collect(..., out=folder)` adds methods to it.

        Raises:
            FileExistsError: The folder is not empty.
            ValueError: A missing or damaged file of the run; a run that `collect` did not make, or shards drawn from
                another run (`resampled`, `permuted`, `rearranged`, `load_shards`).
        """
        folder, names = Path(folder), dict[str, list[str]]()
        if DRAWN in self.settings or "statistics" not in self.settings:
            raise ValueError(
                "this run was drawn from another run's shards, or made by hand: its settings do not describe it, so "
                "collect could not extend it. Save the run that collect returned; draw again after load_run."
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already and not empty. Give a new folder.")
        settings = {"rows": any(self.documents.values()), **self.settings}
        layers = layers_of(settings)
        with_rows = [each["folder"] for each in layers if each["rows"]]
        for place, layer in enumerate(layers):  # kept apart, as each has a forward pass of its own
            within = folder / layer["folder"]
            for label, shards in self.shards.items():
                names[label] = [Shard(label, index, 0, 0).name for index in range(len(shards))]
                for index, name in enumerate(names[label]):
                    rows = documents_path(within, name) if layer["rows"] else None
                    if rows is not None:
                        row_place = with_rows.index(layer["folder"])
                        write_shard(rows, _whole(_of_layer(self.documents[label][index], row_place)))
                    write_shard(shard_path(within, name), _whole(_of_layer(shards[index], place)), rows)
            write_shard(within / CONSTANTS, self.constants)
        write_bytes(folder / "costs-0.json", json.dumps(dict(self.costs)).encode())
        write_description(folder, settings, names)
        return folder

    def to_frame(self) -> pd.DataFrame:
        """One row per language: tokens used, and properties of the text.

        Columns: `tokens_used`; `tokens`, `documents` and `bytes` read; records `skipped`; documents `repeated`;
        `control_tokens` spelled out in the text; `unknown`, the share of tokens unknown to the tokenizer; `shards`.
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
        table, keys = self.to_frame(), self.statistics.sums
        return (
            f"<p><b>Run</b> of {model['name']} ({model['class']}, {model['layers']} layers): "
            f"{layout['kind']} of {layout['length']} tokens</p>"
            f"<details><summary>{len(keys)} statistics</summary>{', '.join(keys)}</details>"
            f"{sketches.bars(table['tokens_used'].to_dict(), 'tokens of each language')}{table.to_html()}"
        )


def check_run(run: Any) -> None:
    """Refuse what is not a run."""
    check_kind("run", run, Run, "a run, from lsn.collect(model, corpora) or lsn.load_run(folder)")


def _of_layer(shard: Path | Mapping[str, Tensor], place: int) -> Path | Mapping[str, Tensor]:
    return shard.paths[place] if isinstance(shard, Layered) else shard


def _whole(shard: Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(shard, Layered):
        shard.check()
    tensors = read_shard(shard) if isinstance(shard, Path) else dict(shard)
    if tensors is None:
        raise ValueError(f"{shard} is missing or damaged. {REDO}")
    return tensors


def _read_rows(shard: Path | Mapping[str, Tensor], name: str) -> Tensor:
    try:
        if isinstance(shard, Path):
            with safe_open(str(shard), framework="pt") as file:
                keys = list(file.keys())
                if name in keys:
                    return file.get_tensor(name)
        elif name in shard:
            return shard[name]
        else:
            keys = list(shard)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{shard} is missing or damaged ({error}). {REDO}") from error
    raise KeyError(
        f"this run did not collect {name!r} of single documents; it has "
        f"{sorted({key.rsplit('@', 1)[0] for key in keys})}. Collect again with a method that needs it."
    )


def write_description(folder: Path, settings: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> None:
    """Write the description of a run, which makes the folder a run."""
    versions = {name: version(name) for name in ("lsn-lens", "torch", "transformers", "transformer-lens")}
    content = {"schema": SCHEMA, "settings": settings, "shards": names, "versions": versions}
    write_bytes(folder / DESCRIPTION, json.dumps(content, indent=1).encode())


def read_description(folder: Path) -> dict[str, Any] | None:
    """Read the description of a run; None if the folder has none.

    Raises:
        ValueError: A description that is cut off, or of another version.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is cut off or no JSON ({error}). Copy it again, or give another folder.") from None
    if stored.get("schema") != SCHEMA:
        raise ValueError(f"{folder} was written with schema {stored.get('schema')}, this version reads {SCHEMA}.")
    return stored


def layers_of(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a run, in the order collected, each with its `folder` inside the run's, `statistics` and `rows`."""
    return settings.get("layers") or [{"folder": "", **{key: settings[key] for key in ("statistics", "rows")}}]


def load_run(path: str | Path) -> Run:
    """Open a run's folder.

    Raises:
        ValueError: The folder is not a run, or a run of another version.
    """
    folder = Path(path)
    stored = read_description(folder)
    if stored is None:
        raise ValueError(f"{folder} is not the folder of a run: it has no {DESCRIPTION}.")
    settings, constants, costs = stored["settings"], dict[str, Tensor](), dict[str, float]()
    files, every = stored["shards"], {folder / each["folder"]: each["rows"] for each in layers_of(settings)}
    shards, documents = (
        {label: [layered([at(each, name) for each in places]) for name in names] for label, names in files.items()}
        for at, places in ((shard_path, list(every)), (documents_path, [each for each, rows in every.items() if rows]))
    )
    for each in every:
        fixed = read_shard(each / CONSTANTS)
        if fixed is None:
            raise ValueError(f"{each / CONSTANTS} is missing or damaged: call collect with the arguments of the run.")
        constants |= fixed
        for file in sorted(each.glob("costs-*.json")):
            for key, seconds in json.loads(file.read_text(encoding="utf-8-sig")).items():
                costs[key] = costs.get(key, 0.0) + seconds
    return Run(shards, settings, folder, documents if settings["rows"] else {}, constants, costs)
