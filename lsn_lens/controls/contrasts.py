"""The values by shard that each method compares between languages, for the permutation tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.controls.resampling import rearranged
from lsn_lens.methods import catalogue
from lsn_lens.methods.average_precision import bases_in, responses_of
from lsn_lens.methods.base import Method
from lsn_lens.runs.run import Run
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics

Side = Literal["high", "low", "both"]
ByBasis = dict[str, Tensor]
ShardValues = Mapping[str, Mapping[str, Float[Tensor, "shard layer unit"]]]  # by basis and language


@dataclass(frozen=True)
class Contrast:
    """The values that a method compares between languages, for tests of one language's difference.

    Attributes:
        values: From method and statistics to a value per label, `[label layer unit]` by basis. A value must depend on
            its own unit only, not on thresholds over other units.
        side: The side of the other languages' values on which a unit belongs to a language.
        chosen: The scores that the method chooses: the highest, except for average precision.
        parallel: Whether values depend on the other languages at the same position; labels then move within a position.
    """

    values: Callable[[Any, Statistics], ByBasis]
    side: Callable[[Any], Side] = lambda method: "high"
    chosen: Callable[[Any], Side] = lambda method: "high"
    parallel: Callable[[Any], bool] = lambda method: False


def _per_token(basis: str) -> Callable[[Method, Statistics], ByBasis]:
    """The mean over tokens of the first sum that the method keeps: a probability where it counts."""

    def values(method: Method, statistics: Statistics) -> ByBasis:
        key = next(need.key for need in method.statistics() if isinstance(need, Statistic))
        return {basis: statistics.get(key).double() / statistics.tokens[..., None].double()}

    return values


def _importances(method: catalogue.Plnd, statistics: Statistics) -> ByBasis:
    documents = torch.as_tensor(statistics.n_documents).clamp_min(1)[:, None, None].double()
    return {
        basis: statistics.get(f"{method.need.key}.{basis}.sum") / documents for basis in method.bases_in(statistics)
    }


def _frequencies(method: catalogue.ExpertFrequency, statistics: Statistics) -> ByBasis:
    assignment = statistics.constants[f"{method.counts().key}.assignment"]
    frequency = method.frequency(statistics)
    return {"mlp": frequency.gather(2, assignment.expand(len(frequency), -1, -1))}


def _responses(method: catalogue.AveragePrecision, statistics: Statistics) -> ByBasis:
    """Means over sentences; of the bases that `score` reads."""
    found = {}
    for basis in bases_in(statistics, method.bases, method.skip_bos):
        layers = [
            responses_of(statistics, basis, layer, method.skip_bos) for layer in range(statistics.tokens.shape[1])
        ]
        means = [torch.stack([each.double().mean(0) for each in layer]) for layer in layers]
        found[basis] = torch.stack(means, dim=1)
    return found


def _shares(method: catalogue.Sharing, statistics: Statistics) -> ByBasis:
    """Share of the items in which a unit is active in one language only."""
    fires = [method.fires(statistics, layer) for layer in range(statistics.tokens.shape[1])]
    return {"mlp": torch.stack([(each & (each.sum(0) == 1)).double().mean(1) for each in fires], dim=1)}


def _changes(method: catalogue.Transfer, statistics: Statistics) -> ByBasis:
    return {"mlp": method.changes(statistics)}


def _sides(method: catalogue.AveragePrecision) -> Side:
    sides: dict[str, Side] = {"top": "high", "bottom": "low", "both": "both"}
    return sides[method.side]


def _both(method: Method) -> Side:
    return "both"


CONTRASTS: dict[type, Contrast] = {
    catalogue.Lape: Contrast(_per_token("mlp")),
    catalogue.Lap: Contrast(_per_token("mlp")),
    catalogue.Lave: Contrast(_per_token("mlp")),
    catalogue.FrozenLape: Contrast(_per_token("mlp")),
    catalogue.EntropyLambda: Contrast(_per_token("mlp")),
    catalogue.ActGrad: Contrast(_per_token("mlp")),
    catalogue.Dln: Contrast(_per_token("mlp"), _both),
    catalogue.DiffMean: Contrast(_per_token("resid"), _both),
    catalogue.LanguageDimensions: Contrast(_per_token("resid"), _both),
    catalogue.Plnd: Contrast(_importances),
    catalogue.ExpertFrequency: Contrast(_frequencies),
    catalogue.AveragePrecision: Contrast(_responses, _sides, _sides),
    catalogue.Sharing: Contrast(_shares, parallel=lambda method: method.paired),
    catalogue.Transfer: Contrast(_changes, parallel=lambda method: method.paired),
}


def contrast_of(method: Method) -> tuple[Contrast, Method] | None:
    """A method's contrast and the method that it belongs to; None if `CONTRASTS` has none."""
    while isinstance(method, catalogue.Random):
        method = method.like
    contrast = CONTRASTS.get(type(method))
    return None if contrast is None else (contrast, method)


def shard_values(run: Run, method: Method, contrast: Contrast) -> ShardValues:
    """The method's values of every shard."""
    found: dict[str, dict[str, Tensor]] = {}
    if contrast.parallel(method):
        places = range(len(next(iter(run.shards.values()))))
        alone = [rearranged(run, {label: [(label, place)] for label in run.shards}).statistics for place in places]
        for basis, each in _stacked([contrast.values(method, one) for one in alone]).items():
            found[basis] = dict(zip(run.languages, each.unbind(1), strict=True))
        return found
    for label, shards in run.shards.items():
        alone = rearranged(run, {f"{label} {place}": [(label, place)] for place in range(len(shards))}).statistics
        for basis, each in contrast.values(method, alone).items():
            found.setdefault(basis, {})[label] = each
    return found


def _stacked(parts: list[ByBasis]) -> ByBasis:
    return {basis: torch.stack([each[basis] for each in parts]) for basis in parts[0]}
