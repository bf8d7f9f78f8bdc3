"""Exact, mergeable summaries of activations: named sums over tokens, and values of single documents.

Only sums (counts in integers, sums in float64) and extremes are stored, so `merge(parts) == whole` holds to the bit
in a fixed order. Means and probabilities are derived from them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lsn_lens.neurons.sites import SITES, WRITE_SITE

ROWS = 512  # rows processed at once on a CPU, so that temporaries stay in the cache

Rows = Float[Tensor, "token unit"]


def count_positive(rows: Rows) -> Float[Tensor, "unit"]:
    """Number of tokens with a value above zero. Exact: float32 holds integers up to 2**24."""
    total = torch.zeros(rows.shape[1], dtype=torch.float32, device=rows.device)
    step = ROWS if rows.device.type == "cpu" else max(1, len(rows))
    buffer = torch.empty((min(step, len(rows)), rows.shape[1]), dtype=torch.float32, device=rows.device)
    ones = torch.ones(len(buffer), dtype=torch.float32, device=rows.device)
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step]
        above = torch.gt(chunk, 0, out=buffer[: len(chunk)])
        total += ones[: len(chunk)] @ above  # faster than a sum, and exact in any order
    return total


def sum_values(rows: Rows) -> Float[Tensor, "unit"]:
    """Sum over tokens. Not a matrix product, whose bits depend on the number of threads."""
    return rows.float().sum(0)


def sum_squares(rows: Rows) -> Float[Tensor, "unit"]:
    """Sum of squares over tokens."""
    return rows.float().square().sum(0)


def sum_absolute(rows: Rows) -> Float[Tensor, "unit"]:
    """Sum of absolute values over tokens."""
    return rows.float().abs().sum(0)


@dataclass(frozen=True)
class Reduction:
    """A function that sums one batch over tokens, and the dtype of the sums.

    `gradient`: the rows are activation times gradient of the loss instead of the activation.
    """

    function: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    gradient: bool = False


REDUCTIONS: dict[str, Reduction] = {
    "positive": Reduction(count_positive, torch.int64),
    "sum": Reduction(sum_values, torch.float64),
    "squares": Reduction(sum_squares, torch.float64),
    "absolute": Reduction(sum_absolute, torch.float64),
    "act_grad": Reduction(sum_absolute, torch.float64, gradient=True),
}

DOCUMENT_REDUCTIONS = ("mean", "last", "maximum")


def check_need(site: str, reduction: str | None = None, reductions: Iterable[str] = ()) -> None:
    """Refuse an unknown site, a site without units, and an unknown reduction.

    Raises:
        ValueError: The message lists the sites or reductions.
    """
    sites = [name for name, each in SITES.items() if each.basis in WRITE_SITE]
    if site not in sites:
        raise ValueError(f"site={site!r}: expected a tensor with units, one of {sites}.")
    if reduction is not None and reduction not in reductions:
        raise ValueError(f"reduction={reduction!r}: expected one of {list(reductions)}.")


Widths = Mapping[str, int]  # site -> units
Tensors = dict[str, tuple[tuple[int, ...], torch.dtype]]  # key -> shape and type


@dataclass(frozen=True)
class Need:
    """A request to `collect`: what it must keep for a method. Sizes are known before the model runs.

    Attributes:
        optional: Whether the need is left out, without an error, if the model lacks its sites.
        by_document: Whether it takes one row per document, so the layout "documents".
        gradient: Whether it takes a backward pass.
    """

    optional = by_document = gradient = False

    @property
    def key(self) -> str:
        """The need's name in files; two needs with the same key are the same."""
        raise NotImplementedError

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose widths decide the sizes: by default the need's `site`."""
        return (self.site,)  # type: ignore[attr-defined]

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """Key -> shape and dtype of the tensors per shard, which merge by `merge`; by default none."""
        return {}

    def rows(self, layers: int, widths: Widths) -> Tensors:
        """Key -> shape `[layer unit]` and dtype of the tensors per document, never merged; by default none."""
        return {}


@dataclass(frozen=True)
class Statistic(Need):
    """One sum over tokens: a reduction of the tensor at a site. `key` names it in files."""

    site: str
    reduction: str
    optional: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_need(self.site, self.reduction, REDUCTIONS)

    @property
    def key(self) -> str:
        """The name in files, for example `mlp_pre.positive`."""
        return f"{self.site}.{self.reduction}"

    @property
    def gradient(self) -> bool:
        """Whether the reduction takes activation times gradient."""
        return REDUCTIONS[self.reduction].gradient

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """`[layer unit]`."""
        return {self.key: ((layers, widths[self.site]), REDUCTIONS[self.reduction].dtype)}


@dataclass(frozen=True)
class Histogram(Need):
    """A histogram of each unit's values: `bins` of equal width, and one tail bin on either side.

    The bins of a unit lie within `spread` standard deviations of its mean, both measured on the first tokens of every
    language before the run (stored as `<key>.low` and `<key>.width`), and not below `floor`.
    """

    site: str
    bins: int = 64
    spread: float = 4.0
    floor: float | None = None

    def __post_init__(self) -> None:
        check_need(self.site)
        if self.bins < 1 or not self.spread > 0:
            raise ValueError(f"bins={self.bins}, spread={self.spread}: expected at least one bin, and a width above 0.")

    @property
    def key(self) -> str:
        """The name in files, for example `mlp_act.histogram64`."""
        limits = (
            "" if self.spread == 4.0 else f"x{self.spread:g}",
            "" if self.floor is None else f"from{self.floor:g}",
        )
        return f"{self.site}.histogram{self.bins}{''.join(limits)}"

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """`[layer unit bin]`, the tails first and last. 32 bits: no language of a run has 2**31 tokens."""
        return {self.key: ((layers, widths[self.site], self.bins + 2), torch.int32)}


@dataclass(frozen=True)
class DocumentValues(Need):
    """One value per document, layer and unit: the "mean", "last" (at the last token) or "maximum" over its tokens.

    `skip_bos` leaves out the leading BOS token of each document.
    """

    site: str
    reduction: Literal["mean", "last", "maximum"] = "mean"
    skip_bos: bool = False
    optional: bool = field(default=False, compare=False)
    by_document = True

    def __post_init__(self) -> None:
        check_need(self.site, self.reduction, DOCUMENT_REDUCTIONS)

    @property
    def key(self) -> str:
        """The name in files, for example `q.mean` or `q.mean.skip_bos`."""
        return f"{self.site}.{self.reduction}" + (".skip_bos" if self.skip_bos else "")

    def rows(self, layers: int, widths: Widths) -> Tensors:
        """`[layer unit]`."""
        return {self.key: ((layers, widths[self.site]), torch.float32)}


@dataclass(frozen=True)
class Writes(Need):
    """Inner products of the MLP's writes v_j (rows of the down projection) with the last token's residual stream.

    Rows of single documents: `m . v_j` with m the stream before the MLP. Sums over documents: `<key>.stream`, of the
    stream h after the layer, and `<key>.along`, of `h . v_j`. The constant `<key>.squares` has `v_j . v_j`.
    """

    by_document = True

    @property
    def key(self) -> str:
        """The writes of the last token."""
        return "writes.last"

    @property
    def sites(self) -> tuple[str, ...]:
        """The units, and the stream before and after."""
        return ("mlp_post", "resid_mid", "resid_post")

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """`[layer d_model]` and `[layer unit]`."""
        sizes = {"stream": widths["resid_post"], "along": widths["mlp_post"]}
        return {f"{self.key}.{name}": ((layers, size), torch.float64) for name, size in sizes.items()}

    def rows(self, layers: int, widths: Widths) -> Tensors:
        """`[layer unit]`."""
        return {self.key: ((layers, widths["mlp_post"]), torch.float32)}


def unique(needs: Iterable[Need]) -> list[Need]:
    """Needs without repeats, in order; a need that any method requires is not optional."""
    kept: dict[str, Need] = {}
    for need in needs:
        if need.key not in kept or kept[need.key].optional:
            kept[need.key] = need
    return list(kept.values())


Sums = dict[str, Num[Tensor, "layer *unit"]]
