"""PLND's importance: closed forms for the effect of removing one unit, and the need that keeps them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import log, prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.needs import Need, Tensors, Widths
from lsn_lens.statistics.rotations import HeadNorm, Heads, Rotation

BASES = ("mlp", "q", "k", "v", "z")
ELEMENTS = 3 << 17  # changed scores worked on at once on a CPU, so that they stay in the cache
ELEMENTS_GPU = 1 << 26
ROWS = 16  # rows of a pattern at once on a CPU: more would take more keys that the first of them do not attend to
LARGE = 57.0  # change of a score, in bits, whose squared exponential 32 bits can hold
BITS = 1 / log(2)  # per nat: on a CPU powers of two take a third of the time of powers of e

Pattern = Float[Tensor, "head query key"]
Factors = Float[Tensor, "factor head pos unit"]
Changes = Float[Tensor, "head query unit"]


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
        skip_bos: Leave out the leading BOS token of each document.
        asked: The bases in the key, where a model has only some of them.
        optional: Leave out bases that the model lacks.
    """

    bases: tuple[str, ...] = BASES
    variant: Literal["paper", "released"] = "paper"
    rotary: Literal["pre", "post"] = "pre"
    skip_bos: bool = False
    asked: tuple[str, ...] | None = None
    optional: bool = field(default=False, compare=False)
    by_document = True

    @property
    def key(self) -> str:
        """As "plnd.paper.pre" for the paper's variant."""
        parts = ["plnd", self.variant, self.rotary]
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


def worst_first_ranks(values: Float[Tensor, "document unit"]) -> Float[Tensor, "document unit"]:
    """Rank of each unit, 0 for the highest; ties by unit."""
    order = values.argsort(dim=1, descending=True, stable=True)
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
class Stretch:
    """What norms add to the change of the scores: `q k^T` times the growth of the query or key that lost a dimension.

    The first units are dimensions of queries, the others of keys; there may be none of one kind.
    """

    products: Pattern
    of_query: Float[Tensor, "head query q_unit"]
    of_key: Float[Tensor, "head key k_unit"]

    def at(self, heads: Tensor | slice) -> "Stretch":
        """The same for some heads."""
        return Stretch(self.products[heads], self.of_query[heads], self.of_key[heads])

    def where(self, pattern: Pattern, scale: float) -> "Stretch":
        """The same with products as scores, and 0 where there is no attention: nothing there may overflow."""
        return replace(self, products=self.products.masked_fill(pattern == 0, 0) * scale)

    def largest(self) -> Float[Tensor, "head unit"]:
        """A bound of what is added to any score."""
        growths = torch.cat([self.of_query.amax(1), self.of_key.amax(1)], -1)
        return growths * self.products.abs().amax((1, 2))[:, None]

    def mean(self, pattern: Pattern) -> Changes:
        """What is added to the scores of a query, on average over its attention."""
        weighted = pattern * self.products
        return torch.cat([weighted.sum(-1, keepdim=True) * self.of_query, weighted @ self.of_key], -1)

    def add_to(self, x: Float[Tensor, "head query key unit"], heads: slice, rows: slice, keys: slice) -> None:
        """Add it to a block of changes, in place."""
        products, first_keys = self.products[heads, rows, keys, None], self.of_query.shape[-1]
        x[..., :first_keys].addcmul_(products, self.of_query[heads, rows, None])
        x[..., first_keys:].addcmul_(products, self.of_key[heads, None, keys])


def delta_factors(
    q: Heads, k: Heads, rotation: Rotation, rotary: str, bases: Collection[str], norms: Mapping[str, HeadNorm]
) -> tuple[Factors, Factors, dict[str, slice], Stretch | None]:
    """Left and right factors of Delta, what a dimension adds to `q k^T`, the units of each basis, and the norms' part.

    `Delta[query, key]` of a unit is the sum over `factor` of left times right. A dimension after the rotation has one
    factor, and removing it from q or from k is the same; before the rotation it has two (itself and its partner).
    `norms`, of "q" and of "k" where they pass one before the rotation, grow the other dimensions when one is removed
    before them: Delta is then of the grown vector, and the last value is what the growth adds.
    """
    plain, d_head = {"q": q, "k": k}, q.shape[-1]
    normed = {basis: norms[basis].apply(x) if norms else x for basis, x in plain.items()}
    rotated_q, rotated_k = (rotation.apply(x) for x in normed.values())
    if rotary == "post" or not (norms or bool(rotation.turn.any())):
        units = dict.fromkeys(bases, slice(d_head))
        return _in_order(rotated_q[..., None]), _in_order(rotated_k[..., None]), units, None
    growths = {basis: norm.growth(plain[basis]) for basis, norm in norms.items()}
    grown = {basis: x * (1 + growths[basis]) if norms else x for basis, x in normed.items()}
    sides = {
        "q": (rotation.components(grown["q"]), rotation.places(rotated_k)),
        "k": (rotation.places(rotated_q), rotation.components(grown["k"])),
    }
    left, right = (torch.cat(each, dim=-2) for each in zip(*(sides[basis] for basis in bases), strict=True))
    units = {b: slice(i * d_head, (i + 1) * d_head) for i, b in enumerate(bases)}
    stretch = _stretch(rotated_q, rotated_k, growths, bases) if norms else None
    return _in_order(left), _in_order(right), units, stretch


def _in_order(each: Float[Tensor, "pos head unit factor"]) -> Factors:
    return each.permute(3, 1, 0, 2).contiguous()


def _stretch(rotated_q: Heads, rotated_k: Heads, growths: Mapping[str, Heads], bases: Collection[str]) -> Stretch:
    every = (
        growths[b].transpose(0, 1) if b in bases else growths[b].new_empty(*rotated_q.shape[1::-1], 0) for b in "qk"
    )
    return Stretch(torch.einsum("tad,sad->ats", rotated_q, rotated_k), *every)


def exact_change(
    pattern: Pattern, left: Factors, right: Factors, scale: float, first: int = 0, stretch: Stretch | None = None
) -> Float[Tensor, "head unit"]:
    """Squared norm of `softmax(log P - scale Delta) - P` for every unit, without queries and keys before `first`.

    The attention scores are not needed: P already contains terms added to them (mask, ALiBi, window). Heads whose
    scores may change so much that an exponential has no number in 32 bits take a softmax per unit, the others none.
    `stretch` is taken from Delta, see `delta_factors`.
    """
    scale = scale * BITS
    left = left * -scale
    products = left.abs().amax(2) * right.abs().amax(2)
    most, adds = products.sum(0), (products != 0).any(0)
    if stretch is not None:
        stretch = stretch.where(pattern, scale)
        most, adds = most + stretch.largest(), adds | (stretch.largest() != 0)
    wide, change = 2 * most.amax(1) > LARGE, torch.zeros_like(left[0, :, 0])
    for some, function in ((~wide, _by_sums), (wide, _by_softmax)):
        if bool(some.any()):
            heads = slice(None) if bool(some.all()) else some  # a slice copies nothing
            part = None if stretch is None else stretch.at(heads)
            change[heads] = function(pattern[heads], left[:, heads], right[:, heads], first, part)
    return change * adds  # no rounding where a unit adds nothing


def _by_sums(
    pattern: Pattern, left: Factors, right: Factors, first: int, stretch: Stretch | None
) -> Float[Tensor, "head unit"]:
    """Without a softmax: a row changes by `P (m - <P, m>) / (1 + <P, m>)`, with `m = 2**x - 1`.

    x is the change of a score less its mean under P, which keeps m small; the square of the row is three sums over
    keys, which are matrix products with P and P**2.
    """
    centre = -(left * (pattern @ right)).sum(0)
    if stretch is not None:
        centre -= stretch.mean(pattern)
    weights = torch.stack([pattern, pattern.square()], 2)
    squares = weights[:, :, 1:]
    squares[..., :first] = 0
    sizes, moves = squares.sum(-1), (pattern > 0).sum(-1, keepdim=True) > 1
    sums = pattern.new_zeros(*pattern.shape[:2], 3, left.shape[-1])
    for heads, rows, keys, x in _scores(pattern, left, right, centre, first, stretch):
        x.exp2_().sub_(1)
        sums[heads, rows, :2] = weights[heads, rows, :, keys] @ x
        sums[heads, rows, 2:] = squares[heads, rows, :, keys] @ x.square_()
    mean, once, twice = sums.unbind(2)
    moved = twice - 2 * mean * once + mean.square() * sizes
    return (moved.clamp_min_(0) / (1 + mean).square() * moves).sum(1)


def _by_softmax(
    pattern: Pattern, left: Factors, right: Factors, first: int, stretch: Stretch | None
) -> Float[Tensor, "head unit"]:
    change, logarithm = torch.zeros_like(left[0, :, 0]), pattern.log2()
    for heads, rows, keys, x in _scores(pattern, left, right, torch.zeros_like(left[0]), first, stretch):
        x.add_(logarithm[heads, rows, keys, None]).div_(BITS)
        after = x.softmax(2).sub_(pattern[heads, rows, keys, None])
        change[heads] += after[:, :, max(first - keys.start, 0) :].square_().sum((1, 2))
    return change


def _scores(
    pattern: Pattern, left: Factors, right: Factors, plus: Changes, first: int, stretch: Stretch | None
) -> Iterator[tuple[slice, slice, slice, Float[Tensor, "head query key unit"]]]:
    """The changes of scores, in blocks of heads and rows that fit the cache and share its memory.

    Each block has the keys from the first to the last one that its rows attend to.
    """
    on_cpu, (n_heads, length, _), units = pattern.device.type == "cpu", pattern.shape, left.shape[-1]
    size = ELEMENTS if on_cpu else ELEMENTS_GPU
    step = max(1, min(ROWS if on_cpu else length, size // (units * length)))
    seen = (pattern.amax(0) > 0).int()
    begins, ends = seen.argmax(1).tolist(), (length - seen.flip(1).argmax(1)).tolist()
    memory = pattern.new_empty(max(size, step * length * units))
    for start in range(first, length, step):
        rows = slice(start, min(start + step, length))
        keys = slice(min(begins[rows]), max(ends[rows]))
        shape = (rows.stop - rows.start, keys.stop - keys.start, units)
        together = max(1, size // prod(shape))
        for head in range(0, n_heads, together):
            heads = slice(head, min(head + together, n_heads))
            one, other = left[:, heads, rows, None], right[:, heads, None, keys]
            x = memory[: one.shape[1] * prod(shape)].view(-1, *shape)
            torch.addcmul(plus[heads, rows, None], one[0], other[0], out=x)
            for factor in range(1, len(left)):
                x.addcmul_(one[factor], other[factor])
            if stretch is not None:
                stretch.add_to(x, heads, rows, keys)
            yield heads, rows, keys, x
