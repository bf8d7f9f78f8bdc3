"""Which experts or neurons of the MLPs to remove for a language, by how much the language uses them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.analysis.contributions import down_norms
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.draws import generator_of
from lsn_lens.neurons.identity import check_same_model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply, check_kind
from lsn_lens.statistics.experts import ExpertAssignment
from lsn_lens.statistics.needs import Need, Statistic
from lsn_lens.statistics.sums import Statistics

Layers = Literal["uniform", "global", "level"]
ByUnit = Float[Tensor, "#language layer unit"]
ByExpert = Float[Tensor, "language layer expert"]


@dataclass(frozen=True)
class Criterion:
    """What a criterion keeps: the units with the highest `score`.

    Attributes:
        score: From the model, the statistics and the experts to a score per unit, or per expert where `whole`.
        needs: What the run must keep, beside the experts' frequencies.
        whole: Whether experts are scored as a whole; else an expert has the mean score of its neurons.
    """

    score: Callable[[Model, Statistics, ExpertFrequency], Tensor]
    needs: tuple[Need, ...] = ()
    whole: bool = False


FIRING, SQUARES, ABSOLUTE = (
    Statistic("mlp_act", "positive"), Statistic("mlp_post", "squares"), Statistic("mlp_post", "absolute")
)  # fmt: skip


def _frequency(model: Model, statistics: Statistics, method: ExpertFrequency) -> Tensor:
    return method.frequency(statistics)


def _mean(statistics: Statistics, need: Statistic) -> Tensor:
    return statistics.get(need.key).double() / statistics.tokens[..., None]


def _magnitude(model: Model, statistics: Statistics, method: ExpertFrequency) -> Tensor:
    squares = []
    for layer in range(model.cfg.n_layers):
        mlp = model.blocks[layer].mlp
        weights = [mlp.W_in.T, mlp.W_out, *([mlp.W_gate.T] if structure.is_gated(model) else [])]
        squares.append(torch.cat([each.detach().double() for each in weights], 1).square().sum(1).cpu())
    return torch.stack(squares).sqrt()[None]


def _contribution(model: Model, statistics: Statistics, method: ExpertFrequency) -> Tensor:
    return _mean(statistics, ABSOLUTE) * down_norms(model).cpu()


def _wanda(model: Model, statistics: Statistics, method: ExpertFrequency) -> Tensor:
    sizes = [model.blocks[layer].mlp.W_out.detach().double().abs().sum(1).cpu() for layer in range(model.cfg.n_layers)]
    return _mean(statistics, SQUARES).sqrt() * torch.stack(sizes)


CRITERIA: dict[str, Criterion] = {
    "frequency": Criterion(_frequency, whole=True),
    "inverted": Criterion(lambda *given: -_frequency(*given), whole=True),
    "firing": Criterion(lambda model, statistics, method: _mean(statistics, FIRING), (FIRING,)),
    "magnitude": Criterion(_magnitude),
    "contribution": Criterion(_contribution, (ABSOLUTE,)),
    "wanda": Criterion(_wanda, (SQUARES,)),
}


def prune_needs(*criteria: str) -> list[Need]:
    """What `collect(..., extra=...)` must keep for these criteria; by default for all."""
    return [need for each in criteria or CRITERIA for need in _criterion(each).needs]


def prune_scores(
    model: Model, statistics: Statistics, by: str = "frequency", method: ExpertFrequency | None = None
) -> ByExpert:
    """How much each language uses each expert; the experts with the lowest scores are removed first.

    Args:
        model: The model of the statistics.
        statistics: Statistics of a run that kept the method's experts and `prune_needs(by)`.
        by: "frequency": share of tokens that select the expert; "inverted": its negative; "firing": share of tokens at
            which a neuron's act(gate) is above 0; "magnitude": length of all weights of a neuron, the same for every
            language; "contribution": mean of |h| times the length of the neuron's output weights; "wanda": root mean
            square of h times the sum of the absolute output weights. h is the down projection's input. An expert has
            the mean score of its neurons.
        method: Defines the experts and their frequency; `ExpertFrequency(size=1)` scores single neurons.

    Raises:
        KeyError: An unknown criterion, or a run without its sums.
        ValueError: Statistics of another model.

    Source: frequency as in Liu et al. 2024 (arXiv 2402.16367), of which only the abstract could be read. "wanda" is the
    score of Sun et al. 2023 (arXiv 2306.11695), summed over a neuron's output weights.
    """
    check_model(model)
    check_kind("statistics", statistics, Statistics, "the statistics of a run, as run.statistics")
    check_same_model(model, [("the run", statistics.origin)])
    criterion, method = _criterion(by), method or ExpertFrequency()
    scores = criterion.score(model, statistics, method).double()
    scores = scores.expand(len(statistics.languages), -1, -1)
    if criterion.whole:
        return scores
    order = method.experts_of(statistics).units.argsort(dim=1, stable=True)
    return scores.gather(2, order.expand(len(scores), -1, -1)).unflatten(2, (-1, method.size)).mean(3)


def prune_plan(
    model: Model,
    statistics: Statistics,
    rate: float,
    by: str = "frequency",
    *,
    layers: Layers = "uniform",
    method: ExpertFrequency | None = None,
    slope: float = 0.1,
) -> NeuronSet:
    """The neurons to remove for each language: those of the experts with the lowest scores.

    The set is measured, saved, exported and cut out as any other. All choices of `layers` remove equally many experts:
    `floor(rate * experts)` times the number of layers. Ties go to the lower layer and expert.

    Args:
        model: The model of the statistics.
        statistics: Statistics of a run that kept the method's experts and `prune_needs(by)`.
        rate: Share of experts to remove, in (0, 1).
        by: The criterion, see `prune_scores`.
        layers: "uniform": the same number in every layer; "global": the lowest scores of all layers together; "level":
            more in layers with few selected experts, see `slope`.
        method: Defines the experts; "level" needs selection="cross_layer", which lets layers differ.
        slope: For "level": how much the rate of a layer falls if its number of selected experts per token is one
            standard deviation above the mean.

    Returns:
        A set with all languages of the run; `notes` has the rate, the criterion, and per language the experts removed
        from each layer.

    Raises:
        ValueError: A rate of 1 or more, or one that removes no expert.
        DoesNotApply: The rate and the scores leave a layer empty; "level" with equally many selected experts in every
            layer.

    Source: static pruning of Liu et al. 2024 (arXiv 2402.16367), of which only the abstract could be read. Its layers'
    rates come from "activation-level differences"; "global" and "level" are our readings.
    """
    method = method or ExpertFrequency()
    scores = prune_scores(model, statistics, by, method)
    count = _count(rate, scores.shape[2])
    if layers not in ("uniform", "global", "level"):
        raise ValueError(f"layers={layers!r}: expected 'uniform', 'global' or 'level'.")
    counts = torch.full(scores.shape[:2], count)
    if layers == "global":
        lowest = scores.flatten(1).argsort(dim=1, stable=True)[:, : count * scores.shape[1]]
        gone = torch.zeros_like(scores.flatten(1), dtype=torch.bool).scatter_(1, lowest, True)
        counts = gone.view(scores.shape).sum(2)
    elif layers == "level":
        levels = method.frequency(statistics).sum(2)
        counts = torch.stack([_by_level(each, count, scores.shape[2], slope) for each in levels])
    _check_layers(counts, scores.shape[2], statistics.languages, f"rate={rate:g} by {by}, layers={layers!r}")
    lowest = scores.argsort(dim=2, stable=True).argsort(dim=2) < counts[..., None]
    name = f"prune {rate:g} of {'neurons' if method.size == 1 else f'experts of {method.size}'} by {by}, {layers}"
    notes = {"rate": rate, "by": by, "layers": layers, "experts": method.size,
             "removed": dict(zip(statistics.languages, counts.tolist(), strict=True))}  # fmt: skip
    return _set(statistics.languages, lowest, method.experts_of(statistics), name, notes, statistics.origin)


def random_experts(plan: NeuronSet, experts: ExpertAssignment, seed: int) -> NeuronSet:
    """The control of a plan: whole random experts, as many in each layer and language as the plan removes neurons.

    Args:
        plan: From `prune_plan`.
        experts: The experts to draw from, `method.experts_of(run.statistics)`; of size 1, single neurons are drawn.
        seed: Seed of the draw, which also depends on the language's label.

    Raises:
        ValueError: A layer in which the plan's neurons are no whole number of experts, or another shape.
    """
    units = plan.masks["mlp"]
    experts.check(*units.shape[1:])
    counts = units.sum(2)
    if bool((counts % experts.size).any()):
        raise ValueError(
            f"{plan.method!r} removes {sorted(set(counts.flatten().tolist()))} neurons in its layers: expected "
            f"multiples of {experts.size}, the size of the experts to draw from."
        )
    drawn = []
    for language, each in zip(plan.languages, counts // experts.size, strict=True):
        chances = torch.rand(len(each), experts.experts, generator=generator_of(seed, language, "experts"))
        drawn.append(chances.argsort(dim=1).argsort(dim=1) < each[:, None])
    name = f"random {'neurons' if experts.size == 1 else 'experts'} like {plan.method}, seed {seed}"
    return _set(plan.languages, torch.stack(drawn), experts, name, {"seed": seed}, plan.origin)


def kept_experts(plan: NeuronSet, language: str, experts: ExpertAssignment) -> Bool[Tensor, "layer expert"]:
    """The experts that a plan leaves to a language, the pool for `only_experts(..., among=...)`.

    Raises:
        ValueError: A plan that removes parts of experts.
    """
    units = plan[language].masks["mlp"][0]
    experts.check(*units.shape)
    counts = torch.zeros(len(units), experts.experts).scatter_add_(1, experts.units, units.float())
    if not bool(((counts == 0) | (counts == experts.size)).all()):
        raise ValueError(f"{plan.method!r} removes parts of these experts of {experts.size}: give the plan's experts.")
    return counts == 0


def _criterion(name: str) -> Criterion:
    if name not in CRITERIA:
        raise KeyError(f"unknown criterion {name!r}; the criteria are {list(CRITERIA)}.")
    return CRITERIA[name]


def _count(rate: float, experts: int) -> int:
    """The experts that a rate removes from a layer."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"rate={rate!r}: expected a share of experts in (0, 1).")
    if rate >= 1:
        raise ValueError(f"rate={rate:g} leaves every layer empty: expected a share of experts in (0, 1).")
    count = math.floor(rate * experts + 1e-9)
    if not count:
        raise ValueError(
            f"rate={rate:g} removes none of a layer's {experts} experts: expected {1 / experts:g} or more."
        )
    return count


def _by_level(levels: Float[Tensor, "layer"], count: int, experts: int, slope: float) -> Int[Tensor, "layer"]:
    """Experts to remove from each layer: fewer where the level is high; on average `count`, and never all."""
    if not float(levels.std()) > 1e-9:
        raise DoesNotApply(
            "every layer has equally many selected experts per token, so layers='level' has nothing to go by: collect "
            "with ExpertFrequency(selection='cross_layer') and give it as `method`."
        )
    lean, most = -slope * (levels - levels.mean()) / levels.std(correction=0), (experts - 1) / experts
    low, high = -2 - float(lean.abs().max()), 2 + float(lean.abs().max())
    for _ in range(60):  # the offset at which the mean rate is the one asked for
        middle = (low + high) / 2
        low, high = (middle, high) if (lean + middle).clamp(0, most).mean() < count / experts else (low, middle)
    wanted = (lean + high).clamp(0, most) * experts
    counts = (wanted + 1e-9).floor().long()
    rest = count * len(levels) - int(counts.sum())
    parts = (wanted - counts).masked_fill(counts >= experts - 1, -1)
    counts[parts.argsort(descending=True, stable=True)[: max(0, rest)]] += 1  # the largest remainders
    return counts


def _check_layers(counts: Int[Tensor, "language layer"], experts: int, languages: Any, what: str) -> None:
    for language, each in zip(languages, counts.tolist(), strict=True):
        empty = [layer for layer, count in enumerate(each) if count >= experts]
        if empty:
            raise DoesNotApply(
                f"{what}: {language} would lose all {experts} experts of the layers {empty}. Give a lower rate, or "
                "layers='uniform'."
            )


def _set(
    languages: Any, gone: Bool[Tensor, "language layer expert"], experts: ExpertAssignment, name: str, notes: Any,
    origin: Any,
) -> NeuronSet:  # fmt: skip
    units = gone.gather(2, experts.units.expand(len(gone), -1, -1))
    return NeuronSet(tuple(languages), {"mlp": units}, name, notes, origin)
