"""Sums over text, which are merged and never averaged."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from lsn_lens.neurons.arrays import data_array
from lsn_lens.neurons.identity import whose


def merge(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Combine parts key by key, in the order given: sums add up, `*.minimum` and `*.maximum` keep the extreme.

    Raises:
        ValueError: No parts, or parts with different keys or shapes.
    """
    total: dict[str, Tensor] | None = None
    for part in parts:
        if total is None:
            total = {key: value.clone() for key, value in part.items()}
            continue
        have, more = ({key: tuple(each[key].shape) for key in sorted(each)} for each in (total, part))
        if have != more:
            raise ValueError(f"parts hold different statistics: {have} and {more}.")
        for key, value in part.items():
            MERGES.get(key.rsplit(".", 1)[-1], torch.add)(total[key], value, out=total[key])
    if total is None:
        raise ValueError("nothing to merge: expected at least one part.")
    return total


@dataclass(frozen=True, eq=False)
class Statistics:
    """Merged sums with labels: key -> `[language layer unit]`, and numbers of tokens `[language layer]`.

    Attributes:
        languages: Labels, in the order of the first axis.
        sums: Key -> sums over tokens or documents.
        tokens: Number of tokens per language and layer.
        n_documents: Documents per language; zeros for packed blocks.
        constants: Tensors behind the sums that do not depend on the corpora (bins, experts, norms of weights).
        read: Function from `(key, layer)` to language -> values of single documents, read from disk.
        origin: Model and text, see `Run.origin`; empty if unknown.
    """

    languages: tuple[str, ...]
    sums: Mapping[str, Num[Tensor, "language *axes"]]
    tokens: Int[Tensor, "language layer"]
    n_documents: Int[Tensor, "language"] | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    read: Callable[[str, int], Mapping[str, Tensor]] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Statistics({', '.join(self.languages)}; {self.tokens.shape[1]} layers; {', '.join(self.sums)})"

    def probability(self, site: str) -> Float[Tensor, "language layer unit"]:
        """Share of tokens with a value above zero, in [0, 1]."""
        return self._get(site, "positive").double() / self.tokens[..., None].double()

    def mean(self, site: str) -> Float[Tensor, "language layer unit"]:
        """Mean value over tokens."""
        return self._get(site, "sum") / self.tokens[..., None].double()

    def pooled_mean(self, site: str, without: str | None = None) -> Float[Tensor, "layer unit"]:
        """Mean of the languages' means, with equal weight per language, without one language if named.

        Raises:
            KeyError: `without` is not one of the languages.
        """
        kept = [i for i, label in enumerate(self.languages) if label != without]
        if without is not None and without not in self.languages:
            raise KeyError(f"no language {without!r}; the languages are {list(self.languages)}.")
        if not kept:
            raise ValueError(f"no language is left without {without!r}.")
        return self.mean(site)[kept].mean(0)

    def documents(self, key: str, layer: int) -> dict[str, Float[Tensor, "document unit"]]:
        """Values of single documents in one layer: language -> `[document unit]`, in the order of the text.

        Raises:
            KeyError: The run did not collect these values.
        """
        if self.read is None:
            raise KeyError(f"this run has no values of single documents, so no {key!r}. {_AGAIN}")
        return dict(self.read(key, layer))

    def to_xarray(self, key: str) -> Any:
        """Sums by key as an `xarray.DataArray` with the dimensions language, layer, unit, and bin of a histogram.

        Divide sums over tokens by `tokens`, or take `mean` and `probability`.

        Raises:
            KeyError: The run did not collect this key.
            ValueError: xarray, an extra, is not installed.
        """
        return data_array(self.get(key), self.languages, key, {"model": whose(self.origin)})

    def _get(self, site: str, reduction: str) -> Any:
        return self.get(f"{site}.{reduction}")

    def get(self, key: str) -> Tensor:
        """Sums by key, languages first.

        Raises:
            KeyError: The run did not collect this key.
        """
        if key not in self.sums:
            raise KeyError(f"this run did not collect {key!r}; it has {list(self.sums)}. {_AGAIN}")
        return self.sums[key]


_AGAIN = "Collect again with a method that needs it."
MERGES: dict[str, Callable[..., Tensor]] = {
    # last part of a key -> function that merges two parts, where it is not addition
    "minimum": torch.minimum,
    "maximum": torch.maximum,
}
