"""The units to plant, their languages, and the layers where they can be written."""

import itertools
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lsn_lens.planted.directions import half_height, separate
from lsn_lens.planted.parts import PartName
from lsn_lens.planted.reading import Inputs
from lsn_lens.planted.roles import ROLES, Role

USABLE = (0.9, 0.1)  # minimum and maximum share of hold-out tokens inside and outside on which a direction fires
# outside a language, since no gate cuts off what is left of a value there; and of all tokens, for one that is always
# on, which is less for values, since only their means are written
OUTSIDE: Mapping[PartName, float] = {"mlp": 0.1, "attention": 0.05}
ALWAYS: Mapping[PartName, float] = {"mlp": 0.995, "attention": 0.95}
SCRIPT_SHARE = 0.05  # share of a language's letters from which on it counts as written in a script


@dataclass(frozen=True)
class Concept:
    """The concept of a unit: the tokens of some languages, or of a script.

    Attributes:
        languages: Languages of the unit; all for a unit of no language.
        script: Script of the tokens; None for any script.
    """

    languages: tuple[str, ...]
    script: str | None = None

    def __str__(self) -> str:
        return self.script or "+".join(self.languages)


@dataclass(frozen=True)
class Cell:
    """One unit to be written."""

    role: Role
    concept: Concept
    layer: int


def concepts_of(
    roles: Sequence[Role], languages: Sequence[str], scripts: Mapping[str, Mapping[str, float]], draw: random.Random
) -> dict[str, list[Concept]]:
    """The concepts of each scope: every language, every script, random groups in random order.

    Raises:
        ValueError: A scope that does not exist for these languages.
    """
    found: dict[str, list[Concept]] = {"none": [Concept(tuple(languages))], "language": [], "group": [], "script": []}
    scopes = {role.scope for role in roles}
    found["language"] = [Concept((label,)) for label in languages]
    if "group" in scopes:
        if len(languages) < 4:
            raise ValueError(f"role 'shared' takes at least four languages, got {list(languages)}. Leave it out.")
        pairs, triples = (list(itertools.combinations(languages, size)) for size in (2, 3))
        many = len(languages) // 2
        drawn = draw.sample(pairs, min(len(pairs), 2 * many))
        drawn += draw.sample(triples, many) if len(languages) > 5 else []
        draw.shuffle(drawn)
        found["group"] = [Concept(group) for group in drawn]
    if "script" in scopes:
        written = {
            script: tuple(label for label in languages if scripts[label].get(script, 0) >= SCRIPT_SHARE)
            for script in sorted({each for share in scripts.values() for each in share})
        }
        found["script"] = [Concept(who, script) for script, who in written.items() if 0 < len(who) < len(languages)]
        if not found["script"]:
            raise ValueError(
                f"role 'script' needs a script that some of {list(languages)} are written in and others are not; they "
                f"share {sorted(script for script, who in written.items() if who)}. Leave it out."
            )
    return found


def script_shares(
    inputs: Inputs, scripts: Sequence[str | None], languages: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Language -> script -> its share of the tokens with a script."""
    shares = {}
    for place, label in enumerate(languages):
        counts = Counter(filter(None, (scripts[token] for token in inputs.ids[inputs.language == place].tolist())))
        shares[label] = {script: count / counts.total() for script, count in counts.items()}
    return shares


def inside_and_known(
    concepts: Sequence[Concept], inputs: Inputs, scripts: Sequence[str | None], languages: Sequence[str]
) -> tuple[Bool[Tensor, "token concept"], Bool[Tensor, "token concept"]]:
    """The tokens of each concept, and the tokens for which this is known."""
    script_of_token = [scripts[token] for token in inputs.ids.tolist()]
    columns, known = [], []
    for concept in concepts:
        if concept.script is None:
            wanted = torch.tensor([languages.index(label) for label in concept.languages])
            columns.append(torch.isin(inputs.language, wanted))
            known.append(torch.ones_like(columns[-1]))
        else:
            columns.append(torch.tensor([each == concept.script for each in script_of_token]))
            known.append(torch.tensor([each is not None for each in script_of_token]))
    return torch.stack(columns, 1), torch.stack(known, 1)


def usable_layers(
    concepts: Sequence[Concept],
    find: Inputs,
    held_out: Inputs,
    scripts: Sequence[str | None],
    languages: Sequence[str],
    part: PartName = "mlp",
) -> tuple[dict[int, list[int]], list[str]]:
    """Per concept, the layers where a direction separates its tokens from others, and the best separation.

    A direction separates if a unit that reads it fires on nearly all tokens inside and on few outside, in each
    language's hold-out text: a gate fires if positive, a value if large.
    """
    sides = inside_and_known(concepts, find, scripts, languages)
    inside, known = inside_and_known(concepts, held_out, scripts, languages)
    layers: dict[int, list[int]] = {number: [] for number in range(len(concepts))}
    best = [(-1.0, "")] * len(concepts)
    for layer, acts in enumerate(find.layers):
        new = held_out.layers[layer]
        fires = new @ separate(acts, *sides).T > 0 if part == "mlp" else half_height(acts, *sides, new)
        for number, usable in layers.items():
            own, other = _rates(fires[:, number], inside[:, number], known[:, number], held_out.language)
            enough = USABLE[0] if bool((~inside[:, number]).any()) else ALWAYS[part]
            if own >= enough and other <= (USABLE[1] if concepts[number].script else OUTSIDE[part]):
                usable.append(layer)
            said = f"layer {layer}: fires on {own:.0%} of its tokens and {other:.0%} of others'"
            best[number] = max(best[number], (own - other, said))
    return layers, [said for _, said in best]


def _rates(
    fires: Bool[Tensor, "token"],
    inside: Bool[Tensor, "token"],
    known: Bool[Tensor, "token"],
    language: Int[Tensor, "token"],
) -> tuple[float, float]:
    """Lowest share inside and highest outside, over languages with enough such tokens."""
    own, other = [], []
    for label in language.unique():
        for side, rates in ((inside, own), (~inside, other)):
            mine = side & known & (language == label)
            if int(mine.sum()) >= 20:
                rates.append(float(fires[mine].float().mean()))
    return min(own, default=0.0), max(other, default=0.0)


def place_cells(
    roles: Sequence[Role],
    concepts: Mapping[str, Sequence[Concept]],
    layers: Mapping[Concept, Sequence[int]],
    best: Mapping[Concept, str],
    each: int,
    draw: random.Random,
    barred: Collection[tuple[str, str, int]] = (),
) -> list[Cell]:
    """Every role for every concept of its scope, in a random layer that can hold it, evenly filled.

    Layers in `barred` (role, concept, layer) are avoided if there is another layer.

    Raises:
        ValueError: A role that no layer can hold.
    """
    filled: Counter[int] = Counter()
    cells = []
    for role in (role for role in roles if role.writes != "balance"):
        for concept in concepts[role.scope]:
            can = list(layers[concept])
            if not can:
                raise ValueError(
                    f"role {role.name!r} of {concept} cannot be written into this model: no direction in the input of "
                    f"a layer tells its tokens from others well enough (at best in {best[concept]}; wanted "
                    f"{USABLE[0]:.0%} and {USABLE[1]:.0%}, for attention {OUTSIDE['attention']:.0%}). Leave the role "
                    "or the language out, or train the model."
                )
            can = [layer for layer in can if (role.name, str(concept), layer) not in barred] or can
            for _ in range(each):
                fewest = min(filled[layer] for layer in can)
                layer = draw.choice([layer for layer in can if filled[layer] <= fewest + 1])
                filled[layer] += 1
                cells.append(Cell(role, concept, layer))
    if "balance" in {role.name for role in roles}:
        cells += [
            Cell(ROLES["balance"], concepts["none"][0], layer)
            for layer in sorted({cell.layer for cell in cells if cell.role.writes == "needed"})
        ]
    return cells
