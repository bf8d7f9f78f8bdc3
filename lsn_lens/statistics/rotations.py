"""What queries and keys pass before their product: a norm of each head, and the rotary embedding."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Heads = Float[Tensor, "pos head d_head"]


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding as numbers: component j of x adds `x_j cos_j` to j and `x_j turn_j` to its partner.

    `[1 d_head]` where there is none; a dimension that is not rotated is its own partner, with turn 0.
    """

    cos: Float[Tensor, "pos d_head"]
    turn: Float[Tensor, "pos d_head"]
    partner: Int[Tensor, "d_head"]

    def apply(self, x: Heads) -> Heads:
        """The rotated vector."""
        return x * self.cos[: len(x), None] + (x * self.turn[: len(x), None])[..., self.partner]

    def components(self, x: Heads) -> Float[Tensor, "pos head d_head factor"]:
        """The terms that each dimension adds to itself and to its partner."""
        return torch.stack([x * self.cos[: len(x), None], x * self.turn[: len(x), None]], dim=-1)

    def places(self, rotated: Heads) -> Float[Tensor, "pos head d_head factor"]:
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


@dataclass(frozen=True)
class HeadNorm:
    """An RMS norm over the dimensions of each head, as numbers: `x weight / sqrt(mean(x^2) + eps)`."""

    weight: Float[Tensor, "d_head"]
    eps: Float[Tensor, ""]

    def apply(self, x: Heads) -> Heads:
        """The normed vector."""
        return x * self.weight * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def growth(self, x: Heads) -> Heads:
        """What removing each dimension of x adds to the others after the norm, as a share of them."""
        squares = x.double().square()  # in 32 bits nothing would be left of the others beside a large dimension
        others = (squares.sum(-1, keepdim=True) - squares).clamp_min(0) / x.shape[-1] + self.eps
        return ((1 + squares / x.shape[-1] / others).sqrt() - 1).to(x.dtype)
