"""The neurons of each type in each item of parallel text, as sets to intervene on, and their random controls.

The types are those of `methods.sharing`. They belong to a neuron in one item, so each item has its own sets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.analysis.contributions import down_norms
from lsn_lens.analysis.sharing import DEFAULT, active_layers
from lsn_lens.collection.collecting import collect
from lsn_lens.controls.matched import matched_draws
from lsn_lens.methods.sharing import PRODUCT, TYPES, Sharing, members
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.draws import generator_of
from lsn_lens.neurons.identity import origin_of
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.corpora import as_corpora, load_corpora
from lsn_lens.text.plan import Layout
from lsn_lens.text.tokens import check_aligned

OWN, OTHER_ITEM = "own", "other item"
CONTROLS = ("number", "contribution", OTHER_ITEM)


class Trial(NamedTuple):
    """One set to intervene on: the item's own neurons of each type, or a control of them."""

    control: str
    seed: int
    sets: NeuronSet


@dataclass(frozen=True, eq=False)
class TypeSets:
    """Neurons by type, item by item; from `type_sets`.

    Attributes:
        sets: One set per item, whose labels are types instead of languages.
        whole: The same without the limit on their number, where there is one.
        contributions: |m| times the norm of the neuron's row of the down projection at the item's last token, mean over
            languages.
        text: By language, the items.
    """

    sets: Sequence[NeuronSet]
    whole: Sequence[NeuronSet]
    contributions: Float[Tensor, "item layer unit"]
    text: Mapping[str, Sequence[str]]

    def trials(self, item: int, seeds: int) -> list[Trial]:
        """An item's own sets, and their controls.

        "number": as many random neurons in each layer. "contribution": each neuron replaced by one of similar
        contribution in its layer (`controls.matched_draws`). Neither has neurons of the type in this item, where the
        layer has enough others. "other item": the neurons of the type in the next item, as they are.
        """
        own, whole, first = self.sets[item], self.whole[item], item * seeds
        sizes = {"mlp": self.contributions[item]}
        number = matched_draws(own, seeds, first=first, avoid=whole)
        alike = matched_draws(own, seeds, first=first, values=sizes, words="contribution", avoid=whole)
        trials = [Trial(OWN, 0, own)]
        trials += [Trial("number", seed, each) for seed, each in enumerate(number.sets.values())]
        trials += [Trial("contribution", seed, each) for seed, each in enumerate(alike.sets.values())]
        if len(self.sets) > 1:
            trials.append(Trial(OTHER_ITEM, 0, self.sets[(item + 1) % len(self.sets)]))
        return trials

    def described(self, item: int, sets: NeuronSet) -> dict[str, dict[str, float]]:
        """By type, of a trial's set: `units`; the share of all `contribution`; `of_type`, its share in the type."""
        sizes, total = self.contributions[item], float(self.contributions[item].sum())
        rows = {}
        for place, name in enumerate(sets.languages):
            mask = sets.masks["mlp"][place]
            count = int(mask.sum())
            shared = int((mask & self.whole[item].masks["mlp"][place]).sum())
            rows[name] = {
                "units": float(count),
                "contribution": float(sizes[mask].sum()) / total if total else 0.0,
                "of_type": shared / count if count else 0.0,
            }
        return rows


def check_types(types: Iterable[str], share: float | int | None) -> tuple[str, ...]:
    """Refuse unknown types, and a share outside (0, 1].

    Raises:
        ValueError: The message lists the types.
    """
    chosen = (types,) if isinstance(types, str) else tuple(types)
    unknown = [each for each in chosen if each not in TYPES]
    if unknown or not chosen:
        raise ValueError(f"types={list(chosen)}: expected one or more of {list(TYPES)}.")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a share of a layer's neurons in (0, 1], or None for whole types.")
    return tuple(dict.fromkeys(chosen))


def type_sets(
    model: Model,
    corpora: Any,
    *,
    types: Iterable[str] = TYPES,
    method: Sharing = DEFAULT,
    share: float | None = None,
    items: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TypeSets:
    """Find the neurons of each type in each item, in one pass over the text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Parallel text: the items are the documents of the `find` part. Lists of texts are taken whole.
        types: Some of "all-shared", "partial-shared", "specific", "non-activated".
        method: Defines which neurons are active.
        share: At most this share of each layer's neurons per type and item, drawn at random from the type, so that
            types are compared at the same number; None takes whole types.
        items: The first items only.
        seed: Seed of the draw for `share`.
        progress: Show a progress bar.

    Raises:
        ValueError: An unknown type, or a share outside (0, 1].
        DoesNotApply: Text that is not parallel, one language only, or no text.
    """
    check_model(model)
    chosen, corpora = check_types(types, share), as_corpora(corpora, hold_out=0.0)
    text = {label: list(islice(corpus.find, items)) for label, corpus in corpora.items()}
    if method.check_parallel:
        check_aligned({label: corpus.find.places[: len(text[label])] for label, corpus in corpora.items()})
    if len(text) < 2 or not all(text.values()):
        counts = {label: len(each) for label, each in text.items()}
        raise DoesNotApply(f"types compare the same item in two languages or more; the numbers of items are {counts}.")
    layout = Layout("documents", equal=False)
    run = collect(model, load_corpora(text, hold_out=0.0), [method], layout=layout, progress=progress)
    norms, origin, masks, sizes = down_norms(model), origin_of(model), [], []
    for layer, fires in active_layers(run.statistics, method):
        masks.append(members(fires.sum(0), len(fires))[[TYPES.index(each) for each in chosen]])
        products = torch.stack(list(run.statistics.documents(PRODUCT.key, layer).values()))
        sizes.append(products.double().abs().mean(0) * norms[layer])
    by_item = torch.stack(masks, dim=2).transpose(0, 1)
    whole = [
        NeuronSet(chosen, {"mlp": each}, f"types of item {place}", {}, origin) for place, each in enumerate(by_item)
    ]
    sets = whole if share is None else [_limited(each, share, place, seed) for place, each in enumerate(whole)]
    return TypeSets(sets, whole, torch.stack(sizes, dim=1), text)


def _limited(found: NeuronSet, share: float, item: int, seed: int) -> NeuronSet:
    """At most a share of each layer's neurons of each type, at random."""
    masks = [
        _some(mask, share, name, item, seed) for name, mask in zip(found.languages, found.masks["mlp"], strict=True)
    ]
    return replace(found, masks={"mlp": torch.stack(masks)}, method=f"{found.method}, at most {share:g} of a layer")


def _some(
    mask: Bool[Tensor, "layer unit"], share: float, name: str, item: int, seed: int
) -> Bool[Tensor, "layer unit"]:
    most = max(1, round(share * mask.shape[1]))
    order = (torch.rand(mask.shape, generator=generator_of(seed, name, item)) + ~mask).argsort(-1).argsort(-1)
    return mask & (order < most)
