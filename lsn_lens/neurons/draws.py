"""Draw random units that replace given units, matched by layer and by activity."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEAREST = 20  # candidates for each unit: fewer candidates are more similar, but tell less about chance
ALTERNATIVES = 40  # candidates for a single unit: with fewer, 39 draws would repeat the same units


def generator_of(*words: str | int) -> torch.Generator:
    """A random generator seeded by the words alone; earlier draws do not change it."""
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def draw(
    own: Bool[Tensor, "layer unit"], generator: torch.Generator, avoid: Bool[Tensor, "layer unit"] | None = None
) -> Bool[Tensor, "layer unit"]:
    """Draw the same number of other units in each layer; where other units are too few, some of the given ones too.

    Units of `avoid` are drawn where no others remain, before the given ones.
    """
    chances = torch.rand(own.shape, generator=generator) + (own if avoid is None else avoid.int() + own)
    order = chances.argsort(-1).argsort(-1)  # the units to avoid, all above 1, come last
    return order < own.sum(-1, keepdim=True)


def draw_alike(
    own: Bool[Tensor, "layer unit"],
    generator: torch.Generator,
    activity: Float[Tensor, "layer unit"],
    avoid: Bool[Tensor, "layer unit"] | None = None,
) -> Bool[Tensor, "layer unit"]:
    """Draw the same number of other units in each layer, each among the 20 nearest in activity to the unit it replaces.

    A single unit has 40 candidates instead of 20. Units are drawn in random order and without repetition; where all
    candidates are taken, the nearest remaining unit is drawn. A layer with too few other units gives all of them, and
    some of the given units; units of `avoid` are not drawn.
    """
    near = max(NEAREST, -(-ALTERNATIVES // max(1, int(own.sum()))))
    drawn, taken = torch.zeros_like(own), own if avoid is None else own | avoid
    for layer in own.any(-1).nonzero()[:, 0].tolist():
        members, others = (each.nonzero()[:, 0] for each in (own[layer], ~taken[layer]))
        others = others[activity[layer, others].argsort(stable=True)]
        members = members[torch.randperm(len(members), generator=generator)]
        rest = members[len(others) :]  # no other units remain for these
        places = _places(activity[layer, members[: len(others)]], activity[layer, others], near, generator)
        drawn[layer, others[places]] = True
        drawn[layer, rest] = True
    return drawn


def _places(
    wanted: Float[Tensor, "member"], sorted_values: Float[Tensor, "other"], near: int, generator: torch.Generator
) -> Int[Tensor, "member"]:
    """For each value in turn, the index of one of its `near` nearest sorted values that is not yet taken."""
    count = len(sorted_values)
    if not len(wanted):
        return torch.zeros(0, dtype=torch.long)
    # the nearest of sorted values lie in a window around the value's own index
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
    avoid: Mapping[str, Bool[Tensor, "language layer unit"]] | None = None,
) -> tuple[dict[str, Bool[Tensor, "language layer unit"]], dict[str, int]]:
    """Random units of every language and basis (`NeuronSet.random_like`), and how many of them were given units."""
    if activity is not None:
        check_activity(masks, activity)
    drawn = {basis: torch.empty_like(mask) for basis, mask in masks.items()}
    kept = dict.fromkeys(languages, 0)
    for basis, mask in masks.items():
        for place, language in enumerate(languages):
            generator = generator_of(seed, language, basis)
            besides = avoid[basis][place] if avoid is not None else None
            if activity is None:
                drawn[basis][place] = draw(mask[place], generator, besides)
            else:
                active = activity[basis]
                active = active[place] if active.ndim == 3 else active
                drawn[basis][place] = draw_alike(mask[place], generator, active, besides)
            kept[language] += int((drawn[basis][place] & mask[place]).sum())
    return drawn, kept


def check_activity(masks: Mapping[str, Tensor], activity: Mapping[str, Tensor]) -> None:
    """Require one activity value for every unit of the masks.

    Raises:
        KeyError: A basis without activity.
        ValueError: Activity of another shape, or not finite.
    """
    for basis, mask in masks.items():
        if basis not in activity:
            raise KeyError(f"no activity for basis {basis!r}; activity has the bases {list(activity)}.")
        shape, expected = tuple(activity[basis].shape), tuple(mask.shape)
        if shape not in (expected, expected[1:]) or not bool(activity[basis].isfinite().all()):
            raise ValueError(
                f"activity of {basis!r}: expected finite values {expected}, or {expected[1:]} for all languages, "
                f"got {shape}."
            )
