"""What a detector returns: scores, and sets with their algebra."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens import draws, files
from lsn_lens.identity import CARRIED, Origin, check_origin, joined, origin_of, whose

Mask = Bool[Tensor, "language layer unit"]


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Per language, layer and unit, on one or several bases: higher means more specific.

    A score of -inf says that the unit cannot belong to the language. `ranking` orders the units for
    rules that select them for all languages at once; by default a unit's best score. `origin` as in `NeuronSet`.
    """

    languages: Sequence[str]
    values: Mapping[str, Float[Tensor, "language layer unit"]]
    method: str
    ranking: Mapping[str, Float[Tensor, "layer unit"]] = field(default_factory=dict)
    origin: Origin = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", files.labels_of(self.languages))
        check_origin(self.origin)
        for basis, values in self.values.items():
            if not isinstance(values, Tensor) or values.ndim != 3 or len(values) != len(self.languages):
                raise ValueError(
                    f"basis {basis!r}: expected scores [language={len(self.languages)}, layer, unit], "
                    f"got {_told(values)}."
                )

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
        header = {"kind": "scores", "languages": self.languages, "method": self.method, "origin": dict(self.origin)}
        return files.save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> "NeuronScores":
        """Read what `save` wrote."""
        tensors, header = files.load_tensors(path, "scores")
        parts: dict[str, dict[str, Tensor]] = {"values": {}, "ranking": {}}
        for key, value in tensors.items():
            part, _, basis = key.partition(".")
            parts[part][basis] = value
        origin = header.get("origin", {})
        return cls(tuple(header["languages"]), parts["values"], header["method"], parts["ranking"], origin)


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Per language, on one or several bases, a bool mask `[layer, unit]`.

    `found["fr"]` is the set of one language. `&`, `|`, `-` and `^` work language by language and need
    the same languages, bases and shapes. A language without units keeps its place.

    Attributes:
        languages: Labels, in the order of the masks.
        masks: Basis -> mask.
        method: What found them.
        notes: What the method has to say about this set.
        origin: Of what model, text and versions, see `detect`; empty for a set made by hand. A set is refused on
            other weights than it is from; `for_model` carries it over.
    """

    languages: Sequence[str]
    masks: Mapping[str, Mask]
    method: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=dict)

    __hash__ = None  # type: ignore[assignment]  # equality is by content, and tensors can be changed

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", files.labels_of(self.languages))
        check_origin(self.origin)
        if not isinstance(self.masks, Mapping):
            raise ValueError(f'masks: expected {{"mlp": mask}} or other bases, got {_told(self.masks)}.')
        for basis, mask in self.masks.items():
            is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 3
            if not is_mask or len(mask) != len(self.languages):
                raise ValueError(
                    f"basis {basis!r}: expected a bool mask [language={len(self.languages)}, layer, unit], "
                    f"got {_told(mask)}."
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
        carried = sorted({told for each in (self, other) for told in each.notes.get(CARRIED, [])})
        notes = {CARRIED: carried} if carried else {}
        method = f"({self.method} {symbol} {other.method})"
        return NeuronSet(self.languages, masks, method, notes, joined(self.origin, other.origin))

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
        wanted = list(range(depth) if layers is None else layers)
        kinds = [bases] if isinstance(bases, str) else list(self.masks if bases is None else bases)
        unknown = [each for each in wanted if isinstance(each, bool) or each not in range(depth)]
        unknown += [each for each in kinds if each not in self.masks]
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
        return pd.DataFrame(values, index=list(self.languages), columns=list(self.languages))

    def random_like(
        self, seed: int = 0, activity: Mapping[str, Float[Tensor, "*language layer unit"]] | None = None
    ) -> "NeuronSet":
        """Random units, as many in each language and layer, none of them the language's own.

        A language's draw depends on its label and the seed, not on which other languages there are.

        Args:
            seed: Of the draw.
            activity: How active each unit of each basis is, for each of the set's languages or for all alike, see
                `evaluation.controls.activity`: then each unit gives way to one of those of its layer that are nearest
                to it in activity, see `draws.draw_alike`.

        Returns:
            The set. Where a layer has too few other units, own ones are drawn as well. With `activity`, `notes` has
            "matched" on what, and for each language how many units are "own".

        Raises:
            KeyError: A basis without activity.
            ValueError: Activity of another shape, or not finite.
        """
        if activity is not None:
            self._check_activity(activity)
        masks = {basis: torch.empty_like(mask) for basis, mask in self.masks.items()}
        kept = dict.fromkeys(self.languages, 0)
        for basis, mask in self.masks.items():
            for place, language in enumerate(self.languages):
                generator = draws.generator_of(seed, language, basis)
                if activity is None:
                    masks[basis][place] = draws.draw(mask[place], generator)
                else:
                    active = activity[basis]
                    active = active[place] if active.ndim == 3 else active
                    masks[basis][place] = draws.draw_alike(mask[place], generator, active)
                kept[language] += int((masks[basis][place] & mask[place]).sum())
        notes = {"matched": "count, layer, nearest in activity", "own": kept}
        carried = {CARRIED: self.notes[CARRIED]} if CARRIED in self.notes else {}
        notes = carried | ({} if activity is None else notes)
        return replace(self, masks=masks, method=f"random like {self.method}, seed {seed}", notes=notes)

    def for_model(self, model: Any) -> "NeuronSet":
        """The same units by number, as a set of another model or of other weights: on purpose, and said so.

        For checkpoints of one training, edited weights, or weights loaded with another rounding. `notes` has "carried
        over" from which models, and goes with the set into its files.
        """
        origin = origin_of(model)
        if origin["fingerprint"] is not None and self.origin.get("fingerprint") == origin["fingerprint"]:
            return self
        told = [*self.notes.get(CARRIED, []), f"from {whose(self.origin)} to {whose(origin)}"]
        return replace(self, notes={**self.notes, CARRIED: told}, origin={**self.origin, **origin})

    def _check_activity(self, activity: Mapping[str, Tensor]) -> None:
        for basis, mask in self.masks.items():
            if basis not in activity:
                raise KeyError(f"no activity of the basis {basis!r}; there is that of {list(activity)}.")
            shape, expected = tuple(activity[basis].shape), tuple(mask.shape)
            if shape not in (expected, expected[1:]) or not bool(activity[basis].isfinite().all()):
                raise ValueError(
                    f"activity of {basis!r}: expected finite values {expected}, or {expected[1:]} for all languages, "
                    f"got {shape}."
                )

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: language, basis, layer, unit."""
        return _frame(self.languages, self.masks)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file with a JSON header; returns its path."""
        header = {
            "kind": "neurons", "languages": self.languages, "method": self.method,
            "notes": dict(self.notes), "origin": dict(self.origin),
        }  # fmt: skip
        return files.save_tensors(path, self.masks, header)

    @classmethod
    def load(cls, path: Path | str) -> "NeuronSet":
        """Read what `save` wrote."""
        masks, header = files.load_tensors(path, "neurons")
        return cls(tuple(header["languages"]), masks, header["method"], header["notes"], header.get("origin", {}))

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        shapes: Mapping[str, tuple[int, int]],
        languages: Iterable[str] | None = None,
        method: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> "NeuronSet":
        """A set from a table with one row for each unit of each language: what `to_frame` gives, read back.

        Args:
            frame: Columns `language`, `layer`, `unit` and `basis`, which may be missing where `shapes` has one.
            shapes: Basis -> layers and units of a layer. A table does not say how many there are.
            languages: In the order wanted, those without units included; by default those of the table as they come.
            method: What found them.
            notes: What to say about them.

        Raises:
            KeyError: A column that is missing, a language or basis that was not named.
            ValueError: Layers or units that are no whole numbers or lie outside the shape; a row that is there twice.
        """
        column: Any = frame.get("language", ())
        labels = files.labels_of(dict.fromkeys(column) if languages is None else languages)
        return cls(labels, files.masks_of_frame(frame, shapes, labels), method, notes or {})

    def to_lape_file(self, path: Path | str) -> None:
        """Write the format of the released LAPE masks: `list[language] of list[layer] of LongTensor`, in a `.pth`.

        Raises:
            ValueError: The set has another basis than `mlp`, which this format cannot hold.
        """
        if set(self.masks) != {"mlp"}:
            raise ValueError(f"the format holds the basis 'mlp' alone, this set has {list(self.masks)}.")
        files.write_lape_masks(path, self.masks["mlp"])

    @classmethod
    def from_lape_file(cls, path: Path | str, languages: Iterable[str], d_mlp: int) -> "NeuronSet":
        """Read the format of the released LAPE masks, which name no languages.

        Args:
            path: A `.pth` with `list[language] of list[layer]`, each a LongTensor of indices, or a bool mask of `d_mlp`
                (zeros and ones of any type, if there are `d_mlp`).
            languages: Their labels, in the file's order (released files: en, zh, fr, es, vi, id, and ja in some).
            d_mlp: Neurons of one layer.

        Raises:
            ValueError: Another number of languages than the file has, layers that differ, an index beyond `d_mlp` or
                named twice, values that are neither indices nor a mask, or a file that is damaged or holds more than
                tensors and numbers (which could run code).

        Source: RUCAIBox/Language-Specific-Neurons, `identify.py` and its released files.
        """
        labels = files.labels_of(languages)
        mask = files.read_lape_masks(path, labels, d_mlp)
        return cls(labels, {"mlp": mask}, f"LAPE masks from {Path(path).name}")

    def __repr__(self) -> str:
        each = ", ".join(f"{label} {count}" for label, count in self.counts().items())
        shape = ", ".join(f"{basis} {list(mask.shape[1:])}" for basis, mask in self.masks.items())
        return f"NeuronSet({len(self)} units: {each}; {shape}; {self.method}{self._whose()})"

    def _repr_html_(self) -> str:
        table = self.layer_counts().T
        table["all"] = self.counts()
        told = html.escape(self.method + self._whose())
        return f"<p><b>NeuronSet</b>: {len(self)} units, {told}</p>{table.to_html()}"

    def _whose(self) -> str:
        carried = f", carried over {'; '.join(self.notes[CARRIED])}" if CARRIED in self.notes else ""
        return (f"; of {whose(self.origin)}" if self.origin else "") + carried


def _told(given: Any) -> str:
    """What was given, in an error."""
    return f"{given.dtype} {tuple(given.shape)}" if hasattr(given, "dtype") else type(given).__name__


def _frame(
    languages: Sequence[str], masks: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
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
