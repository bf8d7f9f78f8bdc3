"""The protocol of a method: a frozen dataclass of hyper-parameters with three pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import Need
from lsn_lens.statistics.sums import Statistics

VERSIONS = ("lsn-lens", "torch", "transformers", "transformer-lens")


@runtime_checkable
class Method(Protocol):
    """Hyper-parameters and three functions, none of which runs a model.

    A method that compares the same document in every language sets `paired = True`: draws from a run then take the
    same documents in all languages. Its field `check_parallel`, if it has one, is False in draws, whose text is as
    parallel as the run's.

    A method whose scores are not its ranking has a function `order(scores)`, see `order_of`.
    """

    def statistics(self) -> tuple[Need, ...]:
        """The needs that `collect` must keep for the method."""
        ...

    def score(self, statistics: Statistics) -> NeuronScores:
        """The specificity of each unit for each language."""
        ...

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The units that belong to each language."""
        ...


def scores_of(method: Method, statistics: Statistics) -> NeuronScores:
    """A method's scores, with their origin.

    `origin` has the model, text and layout of the run, "found" (the sites and reductions that the method read),
    "written" (basis -> the site at which an intervention acts) and "versions".
    """
    scores = method.score(statistics)
    told = {
        "found": [need.key for need in method.statistics()],
        "written": {basis: WRITE_SITE[basis] for basis in scores.values if basis in WRITE_SITE},
        "versions": {name: version(name) for name in VERSIONS},
    }
    return replace(scores, origin={**statistics.origin, **told})


def units_of(method: Method, scores: NeuronScores) -> NeuronSet:
    """A method's selection, with the origin of the scores."""
    return replace(method.select(scores), origin=scores.origin)


def order_of(method: Method, scores: NeuronScores) -> Mapping[str, Float[Tensor, "language layer unit"]]:
    """The values by which a method ranks the units of each language, highest first.

    These are its scores, or what its function `order` makes of them. A unit without a finite value cannot belong to the
    language: a method ranks no more units than it could choose.
    """
    order = getattr(method, "order", None)
    return scores.values if order is None else order(scores)


@runtime_checkable
class ChecksModel(Protocol):
    """A method with settings that name layers or units of the model."""

    def check_model(self, layers: int, width: int) -> Any:
        """Raise ValueError for a layer or unit of the residual stream that the model lacks."""
        ...


def check_methods(methods: Iterable[object], layers: int, width: int) -> None:
    """Refuse methods that name layers or units which a model of this depth and width lacks.

    Raises:
        ValueError: The message has the range.
    """
    for each in methods:
        if isinstance(each, ChecksModel):
            each.check_model(layers, width)


@runtime_checkable
class ChecksText(Protocol):
    """A method that decides from the lengths of documents whether it applies to a text."""

    def check_text(self, lengths: Mapping[str, Int[np.ndarray, "document"]]) -> Any:
        """Raise `DoesNotApply` for text that the method cannot use."""
        ...


def check_shares(**shares: float) -> None:
    """Refuse shares outside (0, 1], by name."""
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value}: expected a share in (0, 1].")


def check_at_least(at_least: int) -> None:
    """Refuse a number of neurons below 0."""
    if at_least < 0:
        raise ValueError(f"at_least={at_least}: expected a number of neurons, 0 or more.")


def check_languages(languages: tuple[str, ...]) -> None:
    """Refuse to compare fewer than two languages."""
    if len(languages) < 2:
        raise DoesNotApply(f"got the languages {list(languages)}: comparing languages takes at least two.")
