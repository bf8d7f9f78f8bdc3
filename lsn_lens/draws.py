"""Random units in place of given ones, by layer and by how active they are."""

import hashlib
import json

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DECILES = 10


def generator_of(*words: str | int) -> torch.Generator:
    """Randomness that depends on the words alone, not on what was drawn before."""
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def deciles(activity: Float[Tensor, "layer unit"]) -> Int[Tensor, "layer unit"]:
    """Which tenth of its layer a unit is in, the least active ones 0; ties go by index."""
    places = activity.argsort(dim=-1, stable=True).argsort(-1)
    return places * DECILES // activity.shape[-1]


def draw(own: Bool[Tensor, "layer unit"], generator: torch.Generator) -> Bool[Tensor, "layer unit"]:
    """As many other units in each layer; where there are too few, own ones too."""
    chances = torch.rand(own.shape, generator=generator) + own
    order = chances.argsort(-1).argsort(-1)  # own units, all above 1, come last
    return order < own.sum(-1, keepdim=True)


def draw_alike(
    own: Bool[Tensor, "layer unit"], generator: torch.Generator, activity: Float[Tensor, "layer unit"]
) -> tuple[Bool[Tensor, "layer unit"], int]:
    """As many other units in each layer and decile of activity.

    Returns:
        The units; and how many come from another decile (the nearest with units left, of two the less active), or are
        own ones, because too few others were left.
    """
    group = deciles(activity)
    chances = torch.rand(own.shape, generator=generator).double() + own
    members = torch.nn.functional.one_hot(group, DECILES)
    needed, sizes = (members * own[..., None]).sum(1), members.sum(1)
    order = (2 * group + chances).argsort(-1).argsort(-1)
    place = order - (sizes.cumsum(-1) - sizes).gather(-1, group)  # in its decile
    drawn = ~own & (place < needed.gather(-1, group))
    missing = needed - (members * drawn[..., None]).sum(1)
    for layer, decile in missing.nonzero().tolist():
        distance = 2 * (group[layer] - decile).abs() + (group[layer] > decile)
        key = 4 * DECILES * own[layer] + 2 * distance + chances[layer]
        nearest = key.masked_fill(drawn[layer], torch.inf).argsort()
        drawn[layer, nearest[: int(missing[layer, decile])]] = True
    return drawn, int(missing.sum())
