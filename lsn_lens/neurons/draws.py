"""Random units in place of given ones, by layer and by how active they are."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEAREST = 20  # units, of which one is drawn in place of each: fewer are more alike, but say less about chance
ALTERNATIVES = 40  # in place of a single unit: among fewer, 39 draws would be few units many times


def generator_of(*words: str | int) -> torch.Generator:
    """Randomness that depends on the words alone, not on what was drawn before."""
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def draw(own: Bool[Tensor, "layer unit"], generator: torch.Generator) -> Bool[Tensor, "layer unit"]:
    """As many other units in each layer; where there are too few, own ones too."""
    chances = torch.rand(own.shape, generator=generator) + own
    order = chances.argsort(-1).argsort(-1)  # own units, all above 1, come last
    return order < own.sum(-1, keepdim=True)


def draw_alike(
    own: Bool[Tensor, "layer unit"], generator: torch.Generator, activity: Float[Tensor, "layer unit"]
) -> Bool[Tensor, "layer unit"]:
    """As many other units in each layer: for each unit one of the 20 that are nearest to it in activity.

    For a single unit one of 40, for two units as well 20. Units are drawn one after the other in random order, none
    twice; where all of the nearest are taken, the nearest that is left. A layer with too few others gives all of
    them, and own ones.
    """
    near = max(NEAREST, -(-ALTERNATIVES // max(1, int(own.sum()))))
    drawn = torch.zeros_like(own)
    for layer in own.any(-1).nonzero()[:, 0].tolist():
        members, others = (each.nonzero()[:, 0] for each in (own[layer], ~own[layer]))
        others = others[activity[layer, others].argsort(stable=True)]
        members = members[torch.randperm(len(members), generator=generator)]
        rest = members[len(others) :]  # no others are left for these
        places = _places(activity[layer, members[: len(others)]], activity[layer, others], near, generator)
        drawn[layer, others[places]] = True
        drawn[layer, rest] = True
    return drawn


def _places(
    wanted: Float[Tensor, "member"], sorted_values: Float[Tensor, "other"], near: int, generator: torch.Generator
) -> Int[Tensor, "member"]:
    """For each value, in turn, a place among the `near` nearest of sorted ones that nobody has taken."""
    count = len(sorted_values)
    if not len(wanted):
        return torch.zeros(0, dtype=torch.long)
    # of sorted values, the nearest lie in a window around the place of the value itself
    first = (torch.searchsorted(sorted_values, wanted) - near).clamp(0, max(0, count - 2 * near))
    window = first[:, None] + torch.arange(min(2 * near, count))
    distance = (sorted_values[window] - wanted[:, None]).abs()
    nearest = window.gather(1, distance.argsort(stable=True)[:, :near])
    order = torch.rand(nearest.shape, generator=generator).argsort()
    free = torch.ones(count, dtype=torch.bool)
    chosen = []
    for value, places in zip(wanted, nearest.gather(1, order).tolist(), strict=True):
        place = next((each for each in places if free[each]), None)
        if place is None:
            place = int((sorted_values - value).abs().masked_fill(~free, torch.inf).argmin())
        free[place] = False
        chosen.append(place)
    return torch.tensor(chosen)


def draw_sets(
    languages: Sequence[str],
    masks: Mapping[str, Bool[Tensor, "language layer unit"]],
    seed: int,
    activity: Mapping[str, Float[Tensor, "*language layer unit"]] | None,
) -> tuple[dict[str, Bool[Tensor, "language layer unit"]], dict[str, int]]:
    """Random units of every language and basis, see `NeuronSet.random_like`; and how many of them are own ones."""
    if activity is not None:
        check_activity(masks, activity)
    drawn = {basis: torch.empty_like(mask) for basis, mask in masks.items()}
    kept = dict.fromkeys(languages, 0)
    for basis, mask in masks.items():
        for place, language in enumerate(languages):
            generator = generator_of(seed, language, basis)
            if activity is None:
                drawn[basis][place] = draw(mask[place], generator)
            else:
                active = activity[basis]
                active = active[place] if active.ndim == 3 else active
                drawn[basis][place] = draw_alike(mask[place], generator, active)
            kept[language] += int((drawn[basis][place] & mask[place]).sum())
    return drawn, kept


def check_activity(masks: Mapping[str, Tensor], activity: Mapping[str, Tensor]) -> None:
    """Refuse activity that is not of all units of the masks.

    Raises:
        KeyError: A basis without activity.
        ValueError: Activity of another shape, or not finite.
    """
    for basis, mask in masks.items():
        if basis not in activity:
            raise KeyError(f"no activity of the basis {basis!r}; there is that of {list(activity)}.")
        shape, expected = tuple(activity[basis].shape), tuple(mask.shape)
        if shape not in (expected, expected[1:]) or not bool(activity[basis].isfinite().all()):
            raise ValueError(
                f"activity of {basis!r}: expected finite values {expected}, or {expected[1:]} for all languages, "
                f"got {shape}."
            )
