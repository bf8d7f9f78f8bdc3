"""What removing one unit changes: PLND's closed forms, and the need that keeps them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.needs import Need, Tensors, Widths

BASES = ("mlp", "q", "k", "v", "z")
ELEMENTS = 1 << 18  # pattern entries worked on at once on a CPU, so that temporaries stay in the cache
ELEMENTS_GPU = 1 << 26

Pattern = Float[Tensor, "head query key"]
Factors = Float[Tensor, "pos head d_head factor"]


@dataclass(frozen=True)
class Importance(Need):
    """Importance of each unit for each document, kept as what "in every document" takes.

    Of each basis: `<key>.<basis>.minimum`, the smallest importance over the documents; `<key>.<basis>.rank.maximum`,
    the worst rank within its layer (0 is the most important; ties go to the lower unit); `<key>.<basis>.sum`. A unit
    is among the first n of every document when its worst rank is below n, whatever n is. Importance is per token:
    norms are divided by the root of the number of tokens, sums by the number. Documents in which no unit of the basis
    has any importance (attention in a single token) are left out of minimum and rank.

    Attributes:
        bases: Of "mlp", "q", "k", "v", "z".
        variant: "paper" or "released".
        rotary: Whether a dimension of q or k is one before or after the rotary embedding.
        exact: Of how many q and k units a document and layer the importance is exact, share or number. Below all of
            them, a first-order estimate picks these and is kept for the rest.
        skip_bos: Leave out the separator that a document begins with.
        asked: The bases that name it in files, where a model gives only some of them.
        optional: What the model cannot give is left out.
    """

    bases: tuple[str, ...] = BASES
    variant: Literal["paper", "released"] = "paper"
    rotary: Literal["pre", "post"] = "pre"
    exact: int | float = 1.0
    skip_bos: bool = False
    asked: tuple[str, ...] | None = None
    optional: bool = field(default=False, compare=False)
    by_document = True

    @property
    def key(self) -> str:
        """For example `plnd.paper.pre.exact1.0`."""
        parts = ["plnd", self.variant, self.rotary, f"exact{self.exact!r}"]
        asked = self.asked or self.bases
        parts += ["_".join(asked)] if asked != BASES else []
        return ".".join(parts + (["skip_bos"] if self.skip_bos else []))

    def without(self, bases: Collection[str]) -> "Importance":
        """The same of fewer bases, under the same name."""
        kept = tuple(basis for basis in self.bases if basis not in bases)
        return replace(self, bases=kept, asked=self.asked or self.bases)

    @property
    def sites(self) -> tuple[str, ...]:
        """One site of each basis's width."""
        return tuple(WRITE_SITE[basis] for basis in self.bases)

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """`[layer unit]` three times for each basis."""
        kinds = {"minimum": torch.float32, "rank.maximum": torch.float32, "sum": torch.float64}
        return {
            f"{self.key}.{basis}.{kind}": ((layers, widths[WRITE_SITE[basis]]), dtype)
            for basis in self.bases
            for kind, dtype in kinds.items()
        }


def number_of(amount: int | float, units: int) -> int:
    """A number of units from a number (int) or a share (float) of them; a share gives one or more."""
    return amount if isinstance(amount, int) else max(1, round(amount * units))


def worst_first_ranks(
    values: Float[Tensor, "document unit"], is_exact: Bool[Tensor, "document unit"] | None = None
) -> Float[Tensor, "document unit"]:
    """Rank of each unit, 0 for the highest; ties by unit. Units finished exactly come before all others."""
    order = values.argsort(dim=1, descending=True, stable=True)
    if is_exact is not None:
        order = order.gather(1, is_exact.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
    places = torch.arange(order.shape[1], dtype=torch.float32, device=values.device)
    return torch.empty_like(values, dtype=torch.float32).scatter_(1, order, places.expand_as(values))


def gram_of_heads(w_o: Float[Tensor, "head d_head d_model"], groups: int) -> Float[Tensor, "group d_head n n"]:
    """Inner products of the rows of W_O that one dimension of a key/value head writes through: n query heads."""
    rows = w_o.float().unflatten(0, (groups, -1))
    return torch.einsum("gajm,gbjm->gjab", rows, rows)


def value_change(
    z: Float[Tensor, "document pos head d_head"], gram: Float[Tensor, "group d_head n n"]
) -> Float[Tensor, "document group d_head"]:
    """Norm of what a dimension of a value head adds to the attention output.

    Its query heads' outer products of z and a row of W_O are summed before the norm, without building them.
    """
    grouped = z.float().unflatten(2, (len(gram), -1))
    inner = torch.einsum("dtgaj,dtgbj->dgjab", grouped, grouped)
    return (inner * gram).sum((-1, -2)).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding as numbers: component j of x adds `x_j cos_j` to j and `x_j turn_j` to its partner.

    `[1 d_head]` where there is none; a dimension that is not rotated is its own partner, with turn 0.
    """

    cos: Float[Tensor, "pos d_head"]
    turn: Float[Tensor, "pos d_head"]
    partner: Int[Tensor, "d_head"]

    def apply(self, x: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_head"]:
        """The rotated vector."""
        return x * self.cos[: len(x), None] + (x * self.turn[: len(x), None])[..., self.partner]

    def components(self, x: Float[Tensor, "pos head d_head"]) -> Factors:
        """For each dimension alone, what it adds to its own place and to its partner's."""
        return torch.stack([x * self.cos[: len(x), None], x * self.turn[: len(x), None]], dim=-1)

    def places(self, rotated: Float[Tensor, "pos head d_head"]) -> Factors:
        """What meets `components` in an inner product."""
        return torch.stack([rotated, rotated[..., self.partner]], dim=-1)


def no_rotation(d_head: int) -> Rotation:
    """Leaves everything as it is."""
    return Rotation(torch.ones(1, d_head), torch.zeros(1, d_head), torch.arange(d_head))


def pairings(d_head: int) -> Iterator[Int[Tensor, "d_head"]]:
    """Partners of each dimension when the first n are paired, as halves or as neighbours."""
    for n in range(d_head // 2 * 2, 0, -2):
        first = torch.arange(n // 2)
        for one, other in ((first, first + n // 2), (2 * first, 2 * first + 1)):
            partner = torch.arange(d_head)
            partner[one], partner[other] = other, one
            yield partner


def fit_rotation(
    plain: Float[Tensor, "pos head d_head"], rotated: Float[Tensor, "pos head d_head"], partner: Int[Tensor, "d_head"]
) -> Rotation:
    """The rotation that comes nearest (least squares over heads) to making one tensor of the other."""
    squares = (plain.square() + plain[..., partner].square()).sum(1).clamp_min(1e-30)
    along = (plain * rotated + plain[..., partner] * rotated[..., partner]).sum(1) / squares
    across = (plain * rotated[..., partner] - plain[..., partner] * rotated).sum(1) / squares
    return Rotation(along, across, partner)


def table_rotation(
    cos: Float[Tensor, "pos rotated"], sin: Float[Tensor, "pos rotated"], partner: Int[Tensor, "d_head"]
) -> Rotation:
    """From a model's own tables, which hold each pair's number twice and leave out what is not rotated."""
    whole = no_rotation(len(partner))
    every_cos, turn = (each.expand(len(cos), -1).clone() for each in (whole.cos, whole.turn))
    every_cos[:, : cos.shape[1]] = cos
    turn[:, : sin.shape[1]] = sin
    return Rotation(every_cos, turn * (partner - torch.arange(len(partner))).sign(), partner)


def delta_factors(
    q: Tensor, k: Tensor, rotation: Rotation, rotary: str
) -> tuple[tuple[Factors, Factors], tuple[Factors, Factors]]:
    """Left and right factors of Delta, what removing a dimension of q, then of k, takes from `q k^T`.

    `Delta[query, key]` of a dimension is the inner product over `factor`; there is one factor where the unit is a
    dimension after the rotation, two (its own place and its partner's) where it is one before.
    """
    rotated_q, rotated_k = rotation.apply(q), rotation.apply(k)
    if rotary == "post" or not bool(rotation.turn.any()):
        pair = rotated_q[..., None], rotated_k[..., None]
        return pair, pair
    return (
        (rotation.components(q), rotation.places(rotated_k)),
        (rotation.places(rotated_q), rotation.components(k)),
    )


def first_order_change(pattern: Pattern, left: Factors, right: Factors, first: int = 0) -> Float[Tensor, "head d_head"]:
    """Squared norm of the pattern's change to first order in Delta: `P (Delta - <P, Delta>)`, row by row.

    Queries and keys before `first` are left out of the norm. No tensor of all units' Deltas is built.
    """
    values = right.permute(1, 0, 2, 3)
    mean = torch.einsum("hts,hsjm->htjm", pattern, values)
    squares = pattern[:, first:, first:].square()
    values, mean, left = values[:, first:], mean[:, first:], left[first:].permute(1, 0, 2, 3)
    total = torch.zeros_like(left[:, 0, :, 0])
    once = torch.einsum("hts,hsjm->htjm", squares, values)
    weight = squares.sum(-1)[..., None]
    for a in range(left.shape[-1]):
        for b in range(left.shape[-1]):
            twice = squares @ (values[..., a] * values[..., b])
            spread = twice - mean[..., a] * once[..., b] - mean[..., b] * once[..., a]
            total += (left[..., a] * left[..., b] * (spread + mean[..., a] * mean[..., b] * weight)).sum(1)
    return total.clamp_min(0)


def exact_change(
    pattern: Pattern,
    left: Factors,
    right: Factors,
    heads: Int[Tensor, "unit"],
    dims: Int[Tensor, "unit"],
    scale: float,
    first: int = 0,
) -> Float[Tensor, "unit"]:
    """Squared norm of `softmax(log P - scale Delta) - P` for the dimensions named by head and dimension.

    The scores themselves are not needed: whatever was added to them (mask, ALiBi, window) is in P. Rows are taken in
    blocks that stay in the cache, each with the keys that any of its queries sees.
    """
    logarithm, change = pattern.log(), torch.zeros(len(heads), device=pattern.device, dtype=pattern.dtype)
    left, right = left.permute(1, 3, 2, 0) * -scale, right.permute(1, 3, 2, 0).contiguous()  # [head factor dim pos]
    blocks = list(_blocks(pattern, left.shape[2], first))
    for head in heads.unique().tolist():
        units = (heads == head).nonzero()[:, 0]
        lefts = left[head].index_select(1, dims[units])[..., None]  # [factor unit query 1]
        rights = right[head].index_select(1, dims[units])[..., None, :]
        for rows, keys in blocks:
            scores = logarithm[head, rows, keys]
            after = torch.addcmul(scores, lefts[0, :, rows], rights[0, ..., keys])
            for a, b in zip(lefts[1:], rights[1:], strict=True):
                after.addcmul_(a[:, rows], b[..., keys])
            moved = after.softmax(-1).sub_(scores.softmax(-1))[..., max(first - keys.start, 0) :]
            change[units] += torch.linalg.vector_norm(moved, dim=(1, 2)).square()
    return change


def _blocks(pattern: Pattern, units: int, first: int) -> Iterator[tuple[slice, slice]]:
    """Rows from `first` on, some at once, with the first to the last key that one of them attends to."""
    size = ELEMENTS if pattern.device.type == "cpu" else ELEMENTS_GPU
    step = max(1, size // (units * pattern.shape[-1]))
    seen = pattern.amax(0).cpu() > 0
    for start in range(first, len(seen), step):
        keys = seen[start : start + step].any(0).nonzero()
        if len(keys):
            yield slice(start, start + step), slice(int(keys[0]), int(keys[-1]) + 1)
