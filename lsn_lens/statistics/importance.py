"""PLND's importance: closed forms for the effect of removing one unit, and the need that keeps them."""

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
    """Importance of each unit over the documents, kept as extremes and sums.

    Per basis: `<key>.<basis>.minimum`, the smallest importance over the documents; `<key>.<basis>.rank.maximum`, the
    worst rank within the layer (0 is the most important; ties go to the lower unit); `<key>.<basis>.sum`. A unit is
    among the first n of every document if and only if its worst rank is below n. Importance is per token: norms are
    divided by the root of the number of tokens, sums by the number. Documents in which every unit of the basis has
    importance 0 (attention in a single token) are left out of minimum and rank.

    Attributes:
        bases: Some of "mlp", "q", "k", "v", "z".
        variant: "paper" or "released".
        rotary: Whether units of q and k are dimensions before or after the rotary embedding.
        exact: Share or number of q and k units per document and layer with exact importance. If not all are, a
            first-order estimate picks these units and is kept for the others.
        skip_bos: Leave out the leading BOS token of each document.
        asked: The bases in the key, where a model has only some of them.
        optional: Leave out bases that the model lacks.
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
        """As "plnd.paper.pre.exact1.0" for the paper's variant."""
        parts = ["plnd", self.variant, self.rotary, f"exact{self.exact!r}"]
        asked = self.asked or self.bases
        parts += ["_".join(asked)] if asked != BASES else []
        return ".".join(parts + (["skip_bos"] if self.skip_bos else []))

    def without(self, bases: Collection[str]) -> "Importance":
        """The same need with fewer bases, under the same key."""
        kept = tuple(basis for basis in self.bases if basis not in bases)
        return replace(self, bases=kept, asked=self.asked or self.bases)

    @property
    def sites(self) -> tuple[str, ...]:
        """One site per basis, of the basis's width."""
        return tuple(WRITE_SITE[basis] for basis in self.bases)

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """Three tensors `[layer unit]` per basis."""
        kinds = {"minimum": torch.float32, "rank.maximum": torch.float32, "sum": torch.float64}
        return {
            f"{self.key}.{basis}.{kind}": ((layers, widths[WRITE_SITE[basis]]), dtype)
            for basis in self.bases
            for kind, dtype in kinds.items()
        }


def number_of(amount: int | float, units: int) -> int:
    """The number of units, from a number (int) or a share (float); a share gives at least one unit."""
    return amount if isinstance(amount, int) else max(1, round(amount * units))


def worst_first_ranks(
    values: Float[Tensor, "document unit"], is_exact: Bool[Tensor, "document unit"] | None = None
) -> Float[Tensor, "document unit"]:
    """Rank of each unit, 0 for the highest; ties by unit. Units with exact importance rank before all others."""
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
    """Norm of the term that a dimension of a value head adds to the attention output.

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
        """The terms that each dimension adds to itself and to its partner."""
        return torch.stack([x * self.cos[: len(x), None], x * self.turn[: len(x), None]], dim=-1)

    def places(self, rotated: Float[Tensor, "pos head d_head"]) -> Factors:
        """The factors that pair with `components` in an inner product."""
        return torch.stack([rotated, rotated[..., self.partner]], dim=-1)


def no_rotation(d_head: int) -> Rotation:
    """The identity as a `Rotation`, for heads of size `d_head`."""
    return Rotation(torch.ones(1, d_head), torch.zeros(1, d_head), torch.arange(d_head))


def pairings(d_head: int) -> Iterator[Int[Tensor, "d_head"]]:
    """Candidates for the partner of each dimension: the first n dimensions paired as halves or as neighbours."""
    for n in range(d_head // 2 * 2, 0, -2):
        first = torch.arange(n // 2)
        for one, other in ((first, first + n // 2), (2 * first, 2 * first + 1)):
            partner = torch.arange(d_head)
            partner[one], partner[other] = other, one
            yield partner


def fit_rotation(
    plain: Float[Tensor, "pos head d_head"], rotated: Float[Tensor, "pos head d_head"], partner: Int[Tensor, "d_head"]
) -> Rotation:
    """The rotation that maps one tensor to the other best, by least squares over heads."""
    squares = (plain.square() + plain[..., partner].square()).sum(1).clamp_min(1e-30)
    along = (plain * rotated + plain[..., partner] * rotated[..., partner]).sum(1) / squares
    across = (plain * rotated[..., partner] - plain[..., partner] * rotated).sum(1) / squares
    return Rotation(along, across, partner)


def table_rotation(
    cos: Float[Tensor, "pos rotated"], sin: Float[Tensor, "pos rotated"], partner: Int[Tensor, "d_head"]
) -> Rotation:
    """The rotation in a model's own tables, which hold each pair's number twice and omit unrotated dimensions."""
    whole = no_rotation(len(partner))
    every_cos, turn = (each.expand(len(cos), -1).clone() for each in (whole.cos, whole.turn))
    every_cos[:, : cos.shape[1]] = cos
    turn[:, : sin.shape[1]] = sin
    return Rotation(every_cos, turn * (partner - torch.arange(len(partner))).sign(), partner)


def delta_factors(
    q: Tensor, k: Tensor, rotation: Rotation, rotary: str
) -> tuple[tuple[Factors, Factors], tuple[Factors, Factors]]:
    """Left and right factors of Delta, the change of `q k^T` when a dimension of q, or of k, is removed.

    `Delta[query, key]` of a dimension is the inner product over `factor`. A dimension after the rotation has one
    factor; a dimension before the rotation has two (the dimension itself and its partner).
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

    The norm leaves out queries and keys before `first`. The Deltas of all units are never built as one tensor.
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
    """Squared norm of `softmax(log P - scale Delta) - P`, for dimensions given as pairs of head and dimension.

    The attention scores are not needed: P already contains terms added to them (mask, ALiBi, window). Rows are
    processed in blocks that fit the cache, each with all keys that its queries attend to.
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
    """Blocks of rows from `first` on, each with its range of keys from the first to the last one attended to."""
    size = ELEMENTS if pattern.device.type == "cpu" else ELEMENTS_GPU
    step = max(1, size // (units * pattern.shape[-1]))
    seen = pattern.amax(0).cpu() > 0
    for start in range(first, len(seen), step):
        keys = seen[start : start + step].any(0).nonzero()
        if len(keys):
            yield slice(start, start + step), slice(int(keys[0]), int(keys[-1]) + 1)
