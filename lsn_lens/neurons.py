"""What a detector returns: scores, and sets with their algebra."""

import contextlib
import errno
import hashlib
import html
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

Mask = Bool[Tensor, "language layer unit"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a temporary file, flushed to disk, takes the place of `path`.

    Raises:
        OSError: The disk is full, or the place cannot be written to; what was there before is kept.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where even this fails, the first error is the one to tell
            temporary.unlink()
        do = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give a place that can be written to"
        raise OSError(
            error.errno,
            f"{error.strerror or error} while writing {len(content):,} bytes. Nothing half written is left; "
            f"what was finished before is kept. {do} and run the same call again",
            str(path),
        ) from error


def _save(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    own = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    write_bytes(path, save(own, metadata={"lsn_lens": json.dumps(header)}))
    return path


def _load(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("lsn_lens", "{}"))
            if header.get("kind") != kind:
                raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected {kind!r}.")
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}).") from error


def _generator(*words: str | int) -> torch.Generator:
    """Randomness that depends on the words alone, not on what was drawn before."""
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Per language, layer and unit, on one or several bases: higher means more specific.

    A score of -inf says that the unit cannot belong to the language. `ranking` orders the units for
    rules that select them for all languages at once; by default a unit's best score.
    """

    languages: tuple[str, ...]
    values: Mapping[str, Float[Tensor, "language layer unit"]]
    method: str
    ranking: Mapping[str, Float[Tensor, "layer unit"]] = field(default_factory=dict)

    def rank(self, basis: str) -> Float[Tensor, "layer unit"]:
        """What orders the units of a basis over all languages."""
        return self.ranking.get(basis, self.values[basis].amax(0))

    def to_frame(self) -> pd.DataFrame:
        """One row for each finite score: language, basis, layer, unit, score."""
        return _frame(self.languages, {basis: each.isfinite() for basis, each in self.values.items()}, self.values)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file with a JSON header."""
        parts = {"values": self.values, "ranking": self.ranking}
        tensors = {f"{part}.{basis}": each for part, bases in parts.items() for basis, each in bases.items()}
        return _save(path, tensors, {"kind": "scores", "languages": self.languages, "method": self.method})

    @classmethod
    def load(cls, path: Path | str) -> "NeuronScores":
        """Read what `save` wrote."""
        tensors, header = _load(path, "scores")
        parts: dict[str, dict[str, Tensor]] = {"values": {}, "ranking": {}}
        for key, value in tensors.items():
            part, _, basis = key.partition(".")
            parts[part][basis] = value
        return cls(tuple(header["languages"]), parts["values"], header["method"], parts["ranking"])


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Per language, on one or several bases, a bool mask `[layer, unit]`.

    `found["fr"]` is the set of one language. `&`, `|`, `-` and `^` work language by language and need
    the same languages, bases and shapes. A language without units keeps its place.
    """

    languages: tuple[str, ...]
    masks: Mapping[str, Mask]
    method: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    __hash__ = None  # type: ignore[assignment]  # equality is by content, and tensors can be changed

    def __post_init__(self) -> None:
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"a language is named twice: {list(self.languages)}.")
        for basis, mask in self.masks.items():
            if mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != len(self.languages):
                raise ValueError(
                    f"basis {basis!r}: expected a bool mask [language={len(self.languages)}, layer, unit], "
                    f"got {mask.dtype} {tuple(mask.shape)}."
                )

    def __getitem__(self, languages: str | Iterable[str]) -> "NeuronSet":
        """The set of one language, or of several in the order given."""
        labels = (languages,) if isinstance(languages, str) else tuple(languages)
        unknown = [label for label in labels if label not in self.languages]
        if unknown:
            raise KeyError(f"no language {unknown}; the languages are {list(self.languages)}.")
        index = [self.languages.index(label) for label in labels]
        return replace(self, languages=labels, masks={basis: mask[index] for basis, mask in self.masks.items()})

    def __contains__(self, language: object) -> bool:
        return language in self.languages

    def __eq__(self, other: object) -> bool:
        """Same languages and the same units; method and notes may differ."""
        return (
            isinstance(other, NeuronSet)
            and self.languages == other.languages
            and set(self.masks) == set(other.masks)
            and all(torch.equal(mask, other.masks[basis]) for basis, mask in self.masks.items())
        )

    def __len__(self) -> int:
        """How many different units belong to at least one language."""
        return sum(int(mask.any(0).sum()) for mask in self.masks.values())

    def _combine(self, other: "NeuronSet", symbol: str) -> "NeuronSet":
        shapes = [{basis: tuple(mask.shape[1:]) for basis, mask in each.masks.items()} for each in (self, other)]
        if self.languages != other.languages or shapes[0] != shapes[1]:
            raise ValueError(
                f"sets differ in languages or shape: {self.languages} {shapes[0]} and {other.languages} {shapes[1]}."
            )
        operation = {"&": torch.bitwise_and, "|": torch.bitwise_or, "-": torch.gt, "^": torch.bitwise_xor}[symbol]
        masks = {basis: operation(mask, other.masks[basis]) for basis, mask in self.masks.items()}
        return NeuronSet(self.languages, masks, f"({self.method} {symbol} {other.method})")

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, "&")

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, "|")

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, "-")

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, "^")

    def only(self, layers: Iterable[int] | None = None, bases: Iterable[str] | None = None) -> "NeuronSet":
        """The units in these layers and of these bases; shapes stay, so that `|` of such parts gives the whole again.

        Raises:
            KeyError: A layer or basis that the set does not have.
        """
        depth = max((mask.shape[1] for mask in self.masks.values()), default=0)
        wanted, kinds = list(range(depth) if layers is None else layers), list(self.masks if bases is None else bases)
        unknown = [each for each in wanted if each not in range(depth)] + [x for x in kinds if x not in self.masks]
        if unknown:
            raise KeyError(f"no layer or basis {unknown}; the set has {depth} layers and the bases {list(self.masks)}.")
        masks = {basis: torch.zeros_like(mask) for basis, mask in self.masks.items()}
        for basis in kinds:
            masks[basis][:, wanted] = self.masks[basis][:, wanted]
        return replace(self, masks=masks)

    def units(self, basis: str) -> Bool[Tensor, "layer unit"]:
        """The units of a basis that belong to any of the languages."""
        return self.masks[basis].any(0)

    def counts(self) -> pd.Series:
        """Number of units per language."""
        totals = sum((mask.sum((1, 2)) for mask in self.masks.values()), torch.zeros(len(self.languages)).long())
        return pd.Series(totals.tolist(), index=pd.Index(self.languages, name="language"), name="neurons")

    def layer_counts(self) -> pd.DataFrame:
        """Number of units per layer (rows) and language (columns), all bases together."""
        totals = sum(mask.sum(2) for mask in self.masks.values())
        frame = pd.DataFrame(torch.as_tensor(totals).T.tolist(), columns=pd.Index(self.languages, name="language"))
        return frame.rename_axis("layer")

    def jaccard(self) -> pd.DataFrame:
        """Overlap of each pair of languages: shared units over all units of both, in [0, 1]; NaN for two empty sets."""
        rows = torch.cat([mask.flatten(1) for mask in self.masks.values()], dim=1).double()
        shared = rows @ rows.T
        sizes = rows.sum(1)
        values = (shared / (sizes[:, None] + sizes[None, :] - shared)).tolist()
        return pd.DataFrame(values, index=self.languages, columns=self.languages)

    def random_like(self, seed: int = 0) -> "NeuronSet":
        """Random units, as many in each language and layer, none of them the language's own.

        Where a layer has too few other units, its own are drawn from as well. A language's draw depends
        on its label and the seed, not on which other languages there are.
        """
        masks = {basis: torch.empty_like(mask) for basis, mask in self.masks.items()}
        for basis, mask in self.masks.items():
            for place, language in enumerate(self.languages):
                chances = torch.rand(mask.shape[1:], generator=_generator(seed, language, basis)) + mask[place]
                order = chances.argsort(-1).argsort(-1)  # own units, all above 1, come last
                masks[basis][place] = order < mask[place].sum(-1, keepdim=True)
        return NeuronSet(self.languages, masks, f"random like {self.method}, seed {seed}")

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: language, basis, layer, unit."""
        return _frame(self.languages, self.masks)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file with a JSON header; returns its path."""
        header = {"kind": "neurons", "languages": self.languages, "method": self.method, "notes": dict(self.notes)}
        return _save(path, self.masks, header)

    @classmethod
    def load(cls, path: Path | str) -> "NeuronSet":
        """Read what `save` wrote."""
        masks, header = _load(path, "neurons")
        return cls(tuple(header["languages"]), masks, header["method"], header["notes"])

    def to_lape_file(self, path: Path | str) -> None:
        """Write the format of the released LAPE masks: `list[language] of list[layer] of LongTensor`, in a `.pth`.

        Raises:
            ValueError: The set has another basis than `mlp`, which this format cannot hold.
        """
        if set(self.masks) != {"mlp"}:
            raise ValueError(f"the format holds the basis 'mlp' alone, this set has {list(self.masks)}.")
        buffer = io.BytesIO()
        torch.save([[layer.nonzero()[:, 0] for layer in mask] for mask in self.masks["mlp"]], buffer)
        write_bytes(Path(path), buffer.getvalue())

    @classmethod
    def from_lape_file(cls, path: Path | str, languages: Iterable[str], d_mlp: int) -> "NeuronSet":
        """Read the format of the released LAPE masks, which name no languages.

        Args:
            path: A `.pth` with `list[language] of list[layer] of LongTensor`.
            languages: Their labels, in the file's order (released files: en, zh, fr, es, vi, id, and ja in some).
            d_mlp: Neurons of one layer.

        Raises:
            ValueError: Another number of languages than the file has, layers that differ, an index beyond `d_mlp`.

        Source: RUCAIBox/Language-Specific-Neurons, `identify.py` and its released files.
        """
        labels = tuple(languages)
        lists = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(lists, list) or not all(isinstance(each, list) for each in lists):
            raise ValueError(f"{path}: expected a list of languages, each a list of layers of indices.")
        if len(lists) != len(labels):
            raise ValueError(f"{path} has {len(lists)} languages, but {len(labels)} were named: {list(labels)}.")
        if len({len(each) for each in lists}) != 1:
            raise ValueError(f"{path}: languages have different numbers of layers: {[len(each) for each in lists]}.")
        mask = torch.zeros(len(lists), len(lists[0]), d_mlp, dtype=torch.bool)
        for language, layers in enumerate(lists):
            for layer, indices in enumerate(layers):
                index = torch.as_tensor(indices, dtype=torch.long)
                if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < d_mlp:
                    raise ValueError(
                        f"{path}: {labels[language]}, layer {layer} has indices from {int(index.min())} to "
                        f"{int(index.max())}, but d_mlp is {d_mlp}. Is this another model's file?"
                    )
                mask[language, layer, index] = True
        return cls(labels, {"mlp": mask}, f"LAPE masks from {Path(path).name}")

    def __repr__(self) -> str:
        each = ", ".join(f"{label} {count}" for label, count in self.counts().items())
        shape = ", ".join(f"{basis} {list(mask.shape[1:])}" for basis, mask in self.masks.items())
        return f"NeuronSet({len(self)} units: {each}; {shape}; {self.method})"

    def _repr_html_(self) -> str:
        table = self.layer_counts().T
        table["all"] = self.counts()
        return f"<p><b>NeuronSet</b>: {len(self)} units, {html.escape(self.method)}</p>{table.to_html()}"


def _frame(
    languages: tuple[str, ...], masks: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
) -> pd.DataFrame:
    frames = []
    for basis, mask in masks.items():
        language, layer, unit = mask.nonzero(as_tuple=True)
        columns = {
            "language": [languages[i] for i in language.tolist()],
            "basis": basis,
            "layer": layer.tolist(),
            "unit": unit.tolist(),
        }
        if values is not None:
            columns["score"] = values[basis][language, layer, unit].tolist()
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
