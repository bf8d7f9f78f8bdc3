"""Exact, mergeable summaries of activations: named sums over tokens.

Only sums are kept (counts in int64, sums in float64), so that merging shards is addition and
`merge(parts) == whole` holds to the bit in a fixed order. Means and probabilities are derived.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

ROWS = 512  # rows handled at once on a CPU, so that temporaries stay in the cache

Rows = Float[Tensor, "token unit"]


def count_positive(rows: Rows) -> Float[Tensor, "unit"]:
    """How many tokens have a value above zero. Exact: float32 holds integers up to 2**24."""
    total = torch.zeros(rows.shape[1], dtype=torch.float32, device=rows.device)
    step = ROWS if rows.device.type == "cpu" else max(1, len(rows))
    buffer = torch.empty((min(step, len(rows)), rows.shape[1]), dtype=torch.float32, device=rows.device)
    ones = torch.ones(len(buffer), device=rows.device)
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step]
        above = torch.gt(chunk, 0, out=buffer[: len(chunk)])
        total += ones[: len(chunk)] @ above  # faster than a sum, and exact in any order
    return total


def sum_values(rows: Rows) -> Float[Tensor, "unit"]:
    """Sum over tokens. Not a matrix product: its bits would depend on the number of threads."""
    return rows.float().sum(0)


def sum_squares(rows: Rows) -> Float[Tensor, "unit"]:
    """Sum of squares over tokens."""
    return rows.float().square().sum(0)


@dataclass(frozen=True)
class Reduction:
    """How one batch is summed over tokens, and the type the sums are kept in."""

    function: Callable[[Tensor], Tensor]
    dtype: torch.dtype


REDUCTIONS: dict[str, Reduction] = {
    "positive": Reduction(count_positive, torch.int64),
    "sum": Reduction(sum_values, torch.float64),
    "squares": Reduction(sum_squares, torch.float64),
}


@dataclass(frozen=True)
class Statistic:
    """One sum to keep: a reduction of the tensor at a site. `key` names it in files."""

    site: str
    reduction: str

    @property
    def key(self) -> str:
        """For example `mlp_pre.positive`."""
        return f"{self.site}.{self.reduction}"


Sums = dict[str, Num[Tensor, "layer *unit"]]


def merge(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Add sums key by key, in the order given.

    Raises:
        ValueError: Nothing to merge, or parts with different keys or shapes.
    """
    if not parts:
        raise ValueError("nothing to merge: expected at least one part.")
    shapes = [{key: tuple(part[key].shape) for key in sorted(part)} for part in parts]
    odd = [each for each in shapes if each != shapes[0]]
    if odd:
        raise ValueError(f"parts hold different statistics: {shapes[0]} and {odd[0]}.")
    total = {key: value.clone() for key, value in parts[0].items()}
    for part in parts[1:]:
        for key, value in part.items():
            total[key] += value
    return total


@dataclass(frozen=True, eq=False)
class Statistics:
    """Merged sums, labelled: key -> `[language layer unit]`, and tokens seen `[language layer]`."""

    languages: tuple[str, ...]
    sums: Mapping[str, Num[Tensor, "language layer unit"]]
    tokens: Int[Tensor, "language layer"]

    def probability(self, site: str) -> Float[Tensor, "language layer unit"]:
        """Share of tokens with a value above zero, in [0, 1]."""
        return self._get(site, "positive").double() / self.tokens[..., None].double()

    def mean(self, site: str) -> Float[Tensor, "language layer unit"]:
        """Mean value over tokens."""
        return self._get(site, "sum") / self.tokens[..., None].double()

    def pooled_mean(self, site: str, without: str | None = None) -> Float[Tensor, "layer unit"]:
        """Mean of the languages' means, each language counting the same, one left out if named.

        Raises:
            KeyError: `without` is not one of the languages.
        """
        kept = [i for i, label in enumerate(self.languages) if label != without]
        if without is not None and without not in self.languages:
            raise KeyError(f"no language {without!r}; the languages are {list(self.languages)}.")
        if not kept:
            raise ValueError(f"no language is left without {without!r}.")
        return self.mean(site)[kept].mean(0)

    def _get(self, site: str, reduction: str) -> Any:
        key = Statistic(site, reduction).key
        if key not in self.sums:
            raise KeyError(
                f"this run did not collect {key!r}; it has {list(self.sums)}. "
                "Collect again with a method that needs it."
            )
        return self.sums[key]
