"""Sets of units by language, and set algebra."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens import files, sketches
from lsn_lens.neurons import draws, exchange, figures, units
from lsn_lens.neurons.identity import CARRIED, Origin, check_origin, check_same_model, joined, origin_of, whose
from lsn_lens.neurons.units import Mask


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Units per language: on one or several bases, a bool mask `[layer, unit]` for each language.

    `found["fr"]` is the set of one language. `&`, `|`, `-` and `^` work language by language; both sets need the same
    languages, bases and shapes. A language without units stays in the set.

    Attributes:
        languages: Labels, in the order of the masks.
        masks: Basis -> mask.
        method: The method that found the units.
        notes: The method's remarks about this set.
        origin: Model, text and versions, see `detect`; empty for a set made by hand. A model with other weights
            refuses the set; `for_model` carries it over.
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
        units.check_masks(self.languages, self.masks)

    def __getitem__(self, languages: str | Iterable[str]) -> "NeuronSet":
        """The set of one language, or of several in the order given."""
        if not isinstance(languages, str) and not isinstance(languages, Iterable):
            raise KeyError(f"{languages!r} is not a label: found['fr'] is the set of one of {list(self.languages)}.")
        labels = (languages,) if isinstance(languages, str) else tuple(languages)
        unknown = [label for label in labels if label not in self.languages]
        if unknown:
            raise KeyError(f"no language {unknown}; the languages are {list(self.languages)}.")
        index = [self.languages.index(label) for label in labels]
        return replace(self, languages=labels, masks={basis: mask[index] for basis, mask in self.masks.items()})

    def __iter__(self) -> Iterator[tuple[str, "NeuronSet"]]:
        """Pairs of a language and its set, like `dict.items()`; `dict(found)` makes a dictionary."""
        return ((language, self[language]) for language in self.languages)

    def __contains__(self, language: object) -> bool:
        return language in self.languages

    def __eq__(self, other: object) -> bool:
        """Whether both sets have the same languages and units; method and notes may differ."""
        return (
            isinstance(other, NeuronSet)
            and self.languages == other.languages
            and set(self.masks) == set(other.masks)
            and all(torch.equal(mask, other.masks[basis]) for basis, mask in self.masks.items())
        )

    def __len__(self) -> int:
        """Number of different units that belong to at least one language."""
        return sum(int(mask.any(0).sum()) for mask in self.masks.values())

    def _combine(self, other: "NeuronSet", symbol: str) -> "NeuronSet":
        masks = units.combined((self.languages, self.masks), (other.languages, other.masks), symbol)
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

    def shared(self, *languages: str) -> "NeuronSet":
        """The units that belong to all of these languages (default: all of the set), as one language "fr & en"."""
        return self._together("shared", languages or self.languages)

    def only_in(self, language: str, *more: str) -> "NeuronSet":
        """The units that belong to all of these languages and to no other language of the set."""
        languages = (language, *more)
        rest = [each for each in self.languages if each not in languages]
        return self._together("only in", languages, rest)

    def _together(self, words: str, languages: Sequence[str], rest: Sequence[str] = ()) -> "NeuronSet":
        label = " & ".join(dict.fromkeys(languages))
        own, others = self[languages].masks, self[rest].masks
        masks = {basis: (own[basis].all(0) & ~others[basis].any(0))[None] for basis in self.masks}
        return NeuronSet((label,), masks, f"{self.method}, {words} {label}", self._carried(), self.origin)

    def _carried(self) -> dict[str, Any]:
        return {CARRIED: self.notes[CARRIED]} if CARRIED in self.notes else {}

    def only(self, layers: Iterable[int] | None = None, bases: Iterable[str] | None = None) -> "NeuronSet":
        """The units in these layers and of these bases; shapes stay, so that `|` of all parts gives the whole set.

        Raises:
            KeyError: A layer or basis that the set does not have.
        """
        return replace(self, masks=units.only(self.masks, layers, bases))

    def plot(self, kind: Literal["layers", "overlap"] = "layers") -> Any:
        """Draw the units per layer ("layers") or the overlap of languages ("overlap"); `report.plots` has more."""
        return figures.draw(kind, self)

    def units(self, basis: str) -> Bool[Tensor, "layer unit"]:
        """The units of a basis that belong to at least one language."""
        return self.masks[basis].any(0)

    def counts(self) -> pd.Series:
        """Number of units per language."""
        totals = sum((mask.sum((1, 2)) for mask in self.masks.values()), torch.zeros(len(self.languages)).long())
        return pd.Series(totals.tolist(), index=pd.Index(self.languages, name="language"), name="units")

    def layer_counts(self) -> pd.DataFrame:
        """Number of units per layer (rows) and language (columns), all bases together."""
        totals = sum(mask.sum(2) for mask in self.masks.values())
        frame = pd.DataFrame(torch.as_tensor(totals).T.tolist(), columns=pd.Index(self.languages, name="language"))
        return frame.rename_axis("layer")

    def jaccard(self) -> pd.DataFrame:
        """Overlap of each pair of languages: shared units over all units of both, in [0, 1]; NaN for two empty sets."""
        values = units.jaccard(self.masks).tolist()
        return pd.DataFrame(values, index=list(self.languages), columns=list(self.languages))

    def random_like(
        self, seed: int = 0, activity: Mapping[str, Float[Tensor, "*language layer unit"]] | None = None,
        avoid: "NeuronSet | None" = None,
    ) -> "NeuronSet":  # fmt: skip
        """A random set with as many units in each language and layer as this set, but none of this set's units.

        Args:
            seed: Seed of the draw, which for a language depends on its label, not on the other languages of the set.
            activity: Basis -> activity of each unit, per language or one for all languages, see
                `controls.matched.activity`: each unit is then replaced by one of the units of its layer that are
                nearest in activity, see `draws.draw_alike`.
            avoid: A set of the same shape, whose units are not drawn either.

        Returns:
            The set. A layer with too few other units draws some of the language's own units too. With `activity`,
            `notes` has the matching criteria ("matched") and the number of a language's own units drawn ("own").

        Raises:
            KeyError: A basis without activity.
            ValueError: Activity of another shape, or not finite.
        """
        masks, kept = draws.draw_sets(self.languages, self.masks, seed, activity, avoid.masks if avoid else None)
        matched = {"matched": "count, layer, nearest in activity", "own": kept}
        notes = self._carried() | ({} if activity is None else matched)
        return replace(self, masks=masks, method=f"random like {self.method}, seed {seed}", notes=notes)

    def for_model(self, model: Any) -> "NeuronSet":
        """The same unit numbers as a set of another model or of other weights, recorded in `notes`.

        Meant for checkpoints of one training, edited weights, or weights loaded with another rounding. `notes` lists
        the earlier models under "carried over" and is saved with the set.
        """
        origin = origin_of(model)
        if origin["fingerprint"] is not None and self.origin.get("fingerprint") == origin["fingerprint"]:
            return self
        told = [*self.notes.get(CARRIED, []), f"from {whose(self.origin)} to {whose(origin)}"]
        return replace(self, notes={**self.notes, CARRIED: told}, origin={**self.origin, **origin})

    def to_frame(self) -> pd.DataFrame:
        """One row per unit of each language: language, basis, layer, unit."""
        return units.frame_of(self.languages, self.masks)

    def save(self, path: Path | str, scores: Any | None = None) -> Path:
        """Write one file; returns its path. Ending in `.json`: the exchange format; else safetensors.

        Args:
            path: A path without `.json` gets the ending `.safetensors`.
            scores: `NeuronScores` to write beside the units, in JSON alone; `neurons.read_scores` reads them.
        """
        return exchange.save(path, (self.languages, self.masks, self.method, self.notes, self.origin), scores)

    @classmethod
    def load(cls, path: Path | str, model: Any | None = None) -> "NeuronSet":
        """Read a file that `save` wrote; the path may omit `.safetensors`. Errors: see `exchange.load`.

        With `model`, a set of another model or of other weights is refused here, and not only where it is used.
        """
        found = cls(*exchange.load(path))
        if model is not None:
            check_same_model(model, [(f"the set in {path}", found.origin)])
        return found

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        shapes: Mapping[str, tuple[int, int]] | Any,
        languages: Iterable[str] | None = None,
        method: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> "NeuronSet":
        """A set from a table with one row per unit of each language, as `to_frame` returns it.

        Args:
            frame: Columns `language`, `layer`, `unit` and `basis`; `basis` may be missing where `shapes` has one basis
                or is a model (then "mlp"). Read a CSV file with `pandas.read_csv`.
            shapes: Basis -> number of layers, units per layer; or the model. The table alone does not tell them.
            languages: Labels in order, including languages without units; by default the table's, as they appear.
            method: The method that found the units.
            notes: Remarks about the set.

        Raises:
            KeyError: A missing column; a language or basis that was not named.
            ValueError: Layers or units that are not whole numbers or lie outside the shape; a repeated row.
        """
        labels, masks = units.masks_of_frame(frame, shapes, languages)
        return cls(labels, masks, method, notes or {})

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Iterable[Sequence[int]]], shape: tuple[int, int] | Any, basis: str = "mlp"
    ) -> "NeuronSet":
        """A set made by hand: `NeuronSet.from_dict({"fr": [(layer, unit), ...]}, shape=(layers, units))`.

        Args:
            given: Language -> pairs of layer and unit; an empty list for a language without units.
            shape: Number of layers and units per layer; or the model.
            basis: The basis of all units.

        Raises:
            ValueError: An entry that is not a pair; a layer or unit outside the shape, or a repeated unit.
        """
        shapes = {basis: shape} if isinstance(shape, tuple | list) else units.shapes_of(shape, [basis])
        return cls.from_frame(units.frame_of_pairs(given, basis), shapes, list(given), "by hand")

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
            languages: Labels, in the file's order (released files: en, zh, fr, es, vi, id, and ja in some).
            d_mlp: Neurons per layer.

        Raises:
            ValueError: A wrong number of languages, languages with different numbers of layers, an index beyond
                `d_mlp` or repeated, values that are neither indices nor a mask, or a file that is damaged or holds
                objects other than tensors and numbers (which could run code).

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
        figure = sketches.cells(self.layer_counts().T, "units of each language by layer")
        return f"<p><b>NeuronSet</b>: {len(self)} units, {told}</p>{figure}{table.to_html()}"

    def _whose(self) -> str:
        carried = f", carried over {'; '.join(self.notes[CARRIED])}" if CARRIED in self.notes else ""
        return (f"; of {whose(self.origin)}" if self.origin else "") + carried
