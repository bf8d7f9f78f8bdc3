"""A method's scores: how specific every unit is for each language."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens import files, sketches
from lsn_lens.neurons import units
from lsn_lens.neurons.arrays import data_array
from lsn_lens.neurons.identity import Origin, check_origin, whose

SKETCHED = 50  # units of each language in the figure of a notebook


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Scores per language, layer and unit, on one or several bases; a higher score is more specific.

    A unit with the score -inf cannot belong to the language. `ranking` orders the units for rules that select units
    for all languages at once; by default it is a unit's highest score. `origin`: see `NeuronSet`.
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
                    f"got {units.told(values)}."
                )

    def rank(self, basis: str) -> Float[Tensor, "layer unit"]:
        """The values that order a basis's units over all languages: `ranking`, or each unit's highest score."""
        return self.ranking.get(basis, self.values[basis].amax(0))

    def to_frame(self) -> pd.DataFrame:
        """One row per finite score: language, basis, layer, unit, score."""
        finite = {basis: each.isfinite() for basis, each in self.values.items()}
        return units.frame_of(self.languages, finite, self.values)

    def to_xarray(self, basis: str = "mlp") -> Any:
        """The scores of a basis as an `xarray.DataArray` with the dimensions language, layer and unit.

        Raises:
            KeyError: An unknown basis.
            ValueError: xarray, an extra, is not installed.
        """
        if basis not in self.values:
            raise KeyError(f"no scores on {basis!r}; there are scores on {list(self.values)}.")
        told = {"method": self.method, "model": whose(self.origin)}
        return data_array(self.values[basis], self.languages, basis, told)

    def top(self, language: str, count: int = 10, basis: str | None = None) -> pd.DataFrame:
        """The highest-scoring units of a language, highest first: layer, unit, basis, score, and rank from 1.

        Units with equal scores are ordered by basis, layer and unit. Units with the score -inf are left out.

        Args:
            language: A label of `languages`.
            count: Maximum number of units.
            basis: One basis; by default all bases are ranked together.

        Raises:
            KeyError: An unknown language or basis.
        """
        bases = list(self.values) if basis is None else [basis]
        if language not in self.languages or bases[0] not in self.values:
            raise KeyError(f"no {language!r} on {bases}; there are {list(self.languages)} on {list(self.values)}.")
        frames = []
        for name in bases:
            flat = self.values[name][self.languages.index(language)].flatten()
            order = flat.where(flat.isfinite(), -torch.inf).argsort(descending=True, stable=True)[: max(0, count)]
            order, width = order[flat[order].isfinite()], self.values[name].shape[2]
            best = {"layer": order // width, "unit": order % width, "basis": name, "score": flat[order].double()}
            frames.append(pd.DataFrame({key: x if key == "basis" else x.numpy() for key, x in best.items()}))
        table = pd.concat(frames).sort_values("score", ascending=False, kind="stable", ignore_index=True)[:count]
        return table.assign(rank=range(1, len(table) + 1))

    def __repr__(self) -> str:
        shape = ", ".join(f"{basis} {list(each.shape)}" for basis, each in self.values.items())
        return f"NeuronScores({', '.join(self.languages)}; {shape} [language, layer, unit]; {self.method})"

    def _repr_html_(self) -> str:
        best = pd.concat({each: self.top(each, 5) for each in self.languages}, names=["language"]).droplevel(1)
        told = f"<p><b>NeuronScores</b>: the best of each language, {html.escape(self.method)}</p>"
        layers = range(max(each.shape[1] for each in self.values.values()))
        tops = {each: self.top(each, SKETCHED)["layer"].value_counts() for each in self.languages}
        where = pd.DataFrame(tops).T.reindex(columns=layers).fillna(0).rename_axis(columns="layer")
        return told + sketches.cells(where, f"layers of the best {SKETCHED} units of each language") + best.to_html()

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file with a JSON header; returns its path."""
        parts = {"values": self.values, "ranking": self.ranking}
        tensors = {f"{part}.{basis}": each for part, bases in parts.items() for basis, each in bases.items()}
        header = {"kind": "scores", "languages": self.languages, "method": self.method, "origin": dict(self.origin)}
        return files.save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> "NeuronScores":
        """Read a file that `save` wrote; the path may omit `.safetensors`."""
        tensors, header = files.load_tensors(path, "scores")
        parts: dict[str, dict[str, Tensor]] = {"values": {}, "ranking": {}}
        for key, value in tensors.items():
            part, _, basis = key.partition(".")
            parts[part][basis] = value
        origin = header.get("origin", {})
        return cls(tuple(header["languages"]), parts["values"], header["method"], parts["ranking"], origin)
