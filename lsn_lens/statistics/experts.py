"""Fine-grained experts: groups of MLP neurons of equal size, by their weights, and the experts each token selects."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens import files
from lsn_lens.neurons.identity import Origin, whose
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics.needs import Need, Tensors, Widths

REFINEMENTS = 5  # rounds of new centres and new balanced assignment after k-means

Scores = Float[Tensor, "token expert"]


@dataclass(frozen=True, eq=False)
class ExpertAssignment:
    """The expert of every neuron, found on one model and kept, so that a sibling gets the same experts.

    Clusters of another model's weights are other experts, whose frequencies cannot be compared.

    Attributes:
        units: The expert of each neuron; each layer has experts 0, 1, ... of equal size.
        origin: The model whose weights were clustered.
    """

    units: Int[Tensor, "layer unit"]
    origin: Origin = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [layer.bincount() for layer in self.units] if self.units.ndim == 2 and self.units.numel() else []
        if len({tuple(each.tolist()) for each in counts}) != 1 or len(counts[0].unique()) != 1:
            raise ValueError(
                f"units {list(self.units.shape)}: expected a number per layer and neuron, experts 0, 1, ... of equal "
                "size in every layer."
            )

    @property
    def size(self) -> int:
        """Neurons per expert."""
        return int((self.units[0] == 0).sum())

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return self.units.shape[1] // self.size

    @cached_property
    def digest(self) -> str:
        """The first digits of a hash of all numbers."""
        return hashlib.sha256(self.units.long().contiguous().numpy().tobytes()).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"ExpertAssignment({len(self.units)} layers, experts of {self.size}, {self.digest})"

    def check(self, layers: int, d_mlp: int) -> None:
        """Refuse a model of another shape.

        Raises:
            DoesNotApply: The message gives both shapes.
        """
        if tuple(self.units.shape) != (layers, d_mlp):
            raise DoesNotApply(
                f"the experts are those of {whose(self.origin)}, {list(self.units.shape)} [layer, neuron]; this model "
                f"has {[layers, d_mlp]}. Give the assignment of a model of the same shape, or none."
            )

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file; returns its path."""
        return files.save_tensors(path, {"units": self.units}, {"kind": "experts", "origin": dict(self.origin)})

    @classmethod
    def load(cls, path: Path | str) -> "ExpertAssignment":
        """Read a file that `save` wrote; the path may omit `.safetensors`."""
        tensors, header = files.load_tensors(path, "experts")
        return cls(tensors["units"], header["origin"])


@dataclass(frozen=True)
class ExpertCounts(Need):
    """How many tokens select each expert; see `ExpertFrequency` for the parameters.

    Keeps `<key>.selected` `[layer expert]` and `<key>.counted` `[layer]` (tokens), with the constant
    `<key>.assignment` `[layer unit]`: the expert of each neuron.
    """

    size: int = 32
    features: Literal["gate", "up", "concat"] = "gate"
    score: Literal["l1", "pos", "l2", "contribution"] = "l1"
    select: Literal["per_layer", "cross_layer", "threshold"] = "per_layer"
    share: float = 0.2
    relative: bool = False
    skip_bos: bool = True
    seed: int = 0
    assignment: ExpertAssignment | None = None

    @property
    def key(self) -> str:
        """Names all settings."""
        flags = ("r" if self.relative else "") + ("" if self.skip_bos else "b")
        made = f"{self.features}-{self.seed}" if self.assignment is None else self.assignment.digest
        return f"experts{self.size}-{made}-{self.score}-{self.select}{self.share:g}{flags}"

    @property
    def sites(self) -> tuple[str, ...]:
        """The site that experts are scored by: the dense hidden state, or act(gate) for the score "pos"."""
        return ("mlp_act", "mlp_post") if self.score == "pos" else ("mlp_post",)

    def sums(self, layers: int, widths: Widths) -> Tensors:
        """Shapes of the counts of selections and of tokens."""
        experts = n_experts(widths["mlp_post"], self.size)
        return {
            f"{self.key}.selected": ((layers, experts), torch.int64),
            f"{self.key}.counted": ((layers,), torch.int64),
        }


def n_experts(d_mlp: int, size: int) -> int:
    """Number of experts per layer.

    Raises:
        DoesNotApply: The size does not divide the number of neurons.
    """
    if size < 1 or d_mlp % size:
        sizes = [each for each in range(1, d_mlp + 1) if d_mlp % each == 0]
        raise DoesNotApply(f"experts of {size} neurons do not divide a layer of {d_mlp}; sizes that do: {sizes}.")
    return d_mlp // size


def balanced_clusters(features: Float[Tensor, "unit feature"], size: int, seed: int = 0) -> Int[Tensor, "unit"]:
    """Clusters of exactly `size` units each, by the direction of their features.

    k-means gives the centres; units are then assigned in order of their distance to a centre, as long as the cluster
    has room. A few rounds with new centres follow, and the tightest clustering is kept.

    Source: balanced clustering of weights as in MoEfication, which Unraveling Babel builds on. That code solves the
    balanced assignment exactly; the greedy one here takes seconds at 14,336 neurons.
    """
    if size == 1:
        return torch.arange(len(features))
    rows = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    clusters = n_experts(len(rows), size)
    from sklearn.cluster import KMeans  # slow to import, and needed here only

    centres = KMeans(clusters, n_init="auto", random_state=seed).fit(rows).cluster_centers_
    best, tightest = np.zeros(len(rows), dtype=np.int64), np.inf
    for _ in range(1 + REFINEMENTS):
        distances = ((rows**2).sum(1)[:, None] - 2 * rows @ centres.T) + (centres**2).sum(1)[None]
        assignment = _closest_pairs_first(distances, size)
        spread = distances[np.arange(len(rows)), assignment].sum()
        if spread < tightest:
            best, tightest = assignment, spread
        centres = np.stack([rows[assignment == each].mean(0) for each in range(clusters)])
    return torch.from_numpy(best)


def _closest_pairs_first(distances: np.ndarray, size: int) -> np.ndarray:
    units, clusters = distances.shape
    assignment, room, left = np.full(units, -1), np.full(clusters, size), units
    for pair in distances.ravel().argsort(kind="stable"):
        unit, cluster = divmod(int(pair), clusters)
        if assignment[unit] < 0 and room[cluster]:
            assignment[unit] = cluster
            room[cluster] -= 1
            left -= 1
            if not left:
                break
    return assignment


def expert_scores(
    hidden: Float[Tensor, "token unit"], order: Int[Tensor, "unit"], size: int, score: str
) -> Float[Tensor, "token expert"]:
    """Scores of experts per token, from the hidden state (act(gate) for "pos", hidden times norms for "contribution").

    Args:
        hidden: Neurons in the order of the layer.
        order: Neurons sorted by expert, so that each expert is `size` consecutive entries.
        size: Neurons per expert.
        score: See `ExpertFrequency`.
    """
    values = UNIT_SCORES[score](hidden.float())
    return values[:, order].unflatten(1, (-1, size)).sum(2)


UNIT_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": torch.abs,
    "pos": torch.relu,
    "l2": torch.square,  # its root would give the same order
    "contribution": torch.abs,
}


def select_top(scores: Scores, count: int) -> Bool[Tensor, "token expert"]:
    """Mask of the `count` highest scores per row; ties go to the lower index."""
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


def select_mass(scores: Scores, share: float) -> Bool[Tensor, "token expert"]:
    """Mask of the fewest scores per row that hold `share` of the row's sum."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    before = values.cumsum(1) - values
    chosen = before < share * values.sum(1, keepdim=True)
    return torch.zeros_like(chosen).scatter_(1, order, chosen)


def select_experts(
    scores: Float[Tensor, "layer token expert"],
    select: str,
    share: float,
    relative: bool = False,
    among: Bool[Tensor, "layer expert"] | None = None,
) -> Bool[Tensor, "layer token expert"]:
    """Mask of the experts that each token selects, in every layer; `among` names those that it may select."""
    layers, tokens, experts = scores.shape
    if relative and select == "cross_layer":
        scores = scores / scores.mean(2, keepdim=True).clamp_min(1e-30)
    allowed = torch.ones(layers, 1, experts, dtype=torch.bool) if among is None else among[:, None]
    allowed = allowed.to(scores.device)
    scores = scores.where(allowed, -1)  # scores are never negative
    if select == "cross_layer":
        pool = scores.transpose(0, 1).flatten(1)
        chosen = select_top(pool, round(share * layers * experts)).view(tokens, layers, experts).transpose(0, 1)
    elif select == "threshold":
        chosen = select_mass(scores.clamp_min(0).flatten(0, 1), share).view(scores.shape)
    else:
        chosen = select_top(scores.flatten(0, 1), max(1, round(share * experts))).view(scores.shape)
    return chosen & allowed
