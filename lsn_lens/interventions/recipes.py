"""Published combinations of changes that steer a model from one language to another."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.interventions.actions import Action, MlpSite, Values, add, set_to, zero
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.interventions.values import language_means, measured, place_of, pooled_means
from lsn_lens.methods.diffmean import directions
from lsn_lens.methods.language_dimensions import Variant, stream_means
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics


def language_arithmetics(
    statistics: Statistics,
    found: NeuronSet,
    target: str,
    source: str | None = None,
    *,
    mode: Literal["additive", "replacement", "difference"] = "additive",
    strength: float | int = 1.0,
    mlp_site: MlpSite = "mlp_post",
) -> Intervention:
    """Switch one language's units off and another language's units on.

    Args:
        statistics: Statistics of the run in which the units were found.
        found: The units, by language.
        target: The language to steer to.
        source: The language whose units are set to zero first; None sets no units to zero.
        mode: "additive": add `strength` times the target language's mean to its units; "replacement": set its units
            to this value; "difference": add `strength` times this mean minus the other languages' mean.
        strength: The factor in `mode`.
        mlp_site: "mlp_post", or "mlp_act" for act(gate) alone; see `Action.on`.

    Raises:
        ValueError: An unknown mode.
        KeyError: An unknown language.

    Source: arXiv 2507.22608 and its released code.
    """
    makers: dict[str, Callable[[Values, str], Action]] = {"additive": add, "replacement": set_to, "difference": add}
    if mode not in makers:
        raise ValueError(f"mode={mode!r}: expected one of {list(makers)}.")
    means = language_means(statistics, target, mlp_site)
    if mode == "difference":
        others = pooled_means(statistics, target, mlp_site)
        means = {basis: each - others[basis] for basis, each in means.items()}
    on = makers[mode]({basis: strength * each for basis, each in means.items()}, f"{mode} {strength:g}")
    on = measured(statistics, on if mlp_site == "mlp_post" else on.on(mlp_site))
    off = [(found[source], zero)] if source is not None else []
    name = f"{source or ''}->{target} {mode} {strength:g}"
    return Intervention(name, (*off, (found[target], on)))


def diffmean_steering(
    statistics: Statistics, target: str, source: str | None = None, *, layer: int, strength: float | int = 1.0
) -> Intervention:
    """Steer the residual stream after one layer along the difference of means, from a source to a target language.

    Args:
        statistics: Statistics of a run with "diffmean".
        target: The language to steer to.
        source: The language to steer from; None takes the mean of all other languages.
        layer: The layer after which to steer; negative numbers count from the last.
        strength: Multiples of the difference: 1 moves the source's mean onto the target's.

    Source: arXiv 2601.08331 and its released code, which adds alpha times the difference scaled to length 1; here
    alpha is the strength times the difference's length, since lengths differ from model to model.
    """
    place = place_of(statistics, target)
    if source is None:
        difference = directions(statistics)[place]
    else:
        means = statistics.mean("resid_post")
        difference = means[place] - means[place_of(statistics, source)]
    name = f"{source or ''}->{target} diffmean {strength:g}"
    push = measured(statistics, add({"resid": strength * difference.float()}, name))
    return Intervention(name, ((_layer(difference, layer), push),))


def dimensions_steering(
    statistics: Statistics,
    found: NeuronSet,
    target: str,
    *,
    strength: float | int = 1.0,
    layer: int | None = None,
    variant: Variant = "output",
) -> Intervention:
    """Overwrite a language's dimensions of the residual stream with a multiple of its mean.

    Args:
        statistics: Statistics of the run in which the dimensions were found.
        found: A set found by "language_dimensions", in the same variant.
        target: The language to steer to.
        strength: Multiples of the mean.
        layer: The layer after which to write; negative numbers count from the last. By default the set's layer.
        variant: The variant of `LanguageDimensions`, which says where in the set's layer the means are taken.

    Raises:
        KeyError: An unknown language, or the run lacks the means.
        ValueError: An unknown layer, or a set of several layers together with `layer`.

    Source: arXiv 2510.07213 and its released code, which writes the *last* layer's means into a *middle* layer:
    `variant="released"`, `strength=0.4` and `layer=18` of 32. Our default writes into the layer that the means are
    from.
    """
    place, units = place_of(statistics, target), found[target]
    layers, name = statistics.tokens.shape[1], f"->{target} dimensions {strength:g}"
    own = units.units("resid").any(1).nonzero()[:, 0].tolist()
    if layer is not None:
        if len(own) > 1:
            raise ValueError(f"the set has dimensions of the layers {own}: expected one, to write to layer {layer}.")
        if not -layers <= layer < layers:
            raise ValueError(f"layer {layer}: the model has the layers 0 to {layers - 1}.")
        name = f"{name} at layer {layer % layers}"
    values = torch.zeros(units.masks["resid"].shape[1:])
    masks = torch.zeros_like(units.masks["resid"])
    for each in own:
        at = each if layer is None else layer % layers
        values[at] = strength * stream_means(statistics, each, variant)[place].float()
        masks[:, at] = units.masks["resid"][:, each]
    moved = (
        units if layer is None else replace(units, masks={"resid": masks}, method=f"{units.method} at layer {layer}")
    )
    return Intervention(name, ((moved, measured(statistics, set_to({"resid": values}, name))),))


def _layer(values: Float[Tensor, "layer unit"], layer: int) -> NeuronSet:
    """All residual dimensions of one layer, as a set."""
    if not -len(values) <= layer < len(values):
        raise ValueError(f"layer {layer}: the model has the layers 0 to {len(values) - 1}.")
    mask = torch.zeros(1, *values.shape, dtype=torch.bool)
    mask[0, layer] = True
    return NeuronSet(("all",), {"resid": mask}, f"layer {layer % len(values)}")
