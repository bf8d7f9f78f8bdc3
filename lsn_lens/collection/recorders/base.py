"""The base of recorders: a recorder sees the tensors of a batch and updates its need's sums and document rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.plan import Batch, Plan


@dataclass
class View:
    """The current batch, on the model's device."""

    batch: Batch
    keep: Bool[Tensor, "batch pos"]
    has_bos: bool  # documents begin with a separator

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each row."""
        return self.keep.sum(1)

    @cached_property
    def keep_without_bos(self) -> Bool[Tensor, "batch pos"]:
        """`keep` without each document's leading BOS token; a document that is only a BOS token keeps it."""
        keep = self.keep.clone()
        if self.has_bos:
            keep[:, 0] = self.lengths == 1
        return keep


@dataclass
class Acts:
    """One site's tensor in one layer: `whole` as `[batch pos unit]`, `tokens` without padding as `[token unit]`.

    `raw` is the tensor at the hook point itself, with a separate axis for heads, as part of the autograd graph.
    """

    site: str
    layer: int
    whole: Float[Tensor, "batch pos *unit"]
    raw: Tensor
    view: View
    _tokens: Tensor | None = field(default=None, repr=False)

    @property
    def tokens(self) -> Float[Tensor, "token unit"]:
        """Values at tokens that count, computed once for all recorders."""
        if self._tokens is None:
            self._tokens = self.whole.flatten(0, 1) if not self.view.batch.padded else self.whole[self.view.keep]
        return self._tokens


class Recorder:
    """Computes one need. Subclasses define the sites they read and the computation.

    Attributes:
        sums: The shard's sums so far, by key.
        rows: Values of the shard's documents so far, by key: lists of `[document layer unit]`.
    """

    def __init__(self, model: Model, need: Any, widths: Mapping[str, int], constants: Mapping[str, Tensor]):
        self.model, self.need, self.widths = model, need, widths
        self.layers, self.device = model.cfg.n_layers, structure.device_of(model)
        self.constants = {key: value.to(self.device) for key, value in constants.items() if key.startswith(need.key)}
        self.reset()

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites to read."""
        return self.need.sites

    @staticmethod
    def fit(model: Model, need: Any, width: Callable[[str], int]) -> tuple[Any, dict[str, str]]:
        """The part of the need that the model supports (None for no part), and why not the rest, by kind of unit.

        `width` gives the number of units of a site, and raises `DoesNotApply` for a site that the model lacks.
        """
        reasons = missing_sites(need.sites, width)
        return (None if reasons else need), reasons

    @staticmethod
    def prepare(model: Model, need: Any, widths: Mapping[str, int], plan: Plan) -> dict[str, Tensor]:
        """Constants computed before the run, with keys that begin with the need's key; equal in every process."""
        return {}

    def reset(self) -> None:
        """Start a new shard."""
        tensors: Any = self.need.sums(self.layers, self.widths)
        self.sums = {
            key: _start(key, torch.zeros(shape, dtype=dtype, device=self.device))
            for key, (shape, dtype) in tensors.items()
        }
        self.rows: dict[str, list[Tensor]] = {key: [] for key in self.need.rows(self.layers, self.widths)}

    def see(self, acts: Acts) -> None:
        """Process the tensor of one site in one layer."""
        raise NotImplementedError

    def end(self, view: View) -> None:
        """Finish a batch, after all layers."""


def missing_sites(sites: Iterable[str], width: Callable[[str], int]) -> dict[str, str]:
    """The sites that a model lacks: site -> reason."""
    reasons = {}
    for site in sites:
        try:
            width(site)
        except DoesNotApply as error:
            reasons[site] = str(error)
    return reasons


def _start(key: str, zeros: Tensor) -> Tensor:
    """The neutral element of the key's merge."""
    ends = {"minimum": torch.inf, "maximum": -torch.inf}
    return zeros.fill_(ends[key.rsplit(".", 1)[-1]]) if key.rsplit(".", 1)[-1] in ends else zeros
