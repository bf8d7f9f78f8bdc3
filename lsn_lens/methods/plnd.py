"""PLND: units that matter in every document of a language, without those that matter in every language."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens.methods.base import check_languages
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.importance import BASES, Importance, number_of
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class Plnd:
    """Parallel language-specific neuron detection.

    A unit's importance for a document is the norm of the change that its removal causes: in the MLP output (basis
    "mlp": up, gate and down coincide), in the attention output ("v", and "z", the inputs of the o projection), or in
    the attention pattern ("q", "k"). A unit is consistent in a language if it is among the most important of its layer
    in every document; a consistent unit is specific if it is not consistent in all languages.

    Attributes:
        variant: "paper": closed forms of the norms. "released": the numbers that the authors' code computes instead.
        bases: Some of "mlp", "q", "k", "v", "z", which the model must have. None takes all that the model has: the
            set's notes list the missing bases, and `run.settings["left_out"]` gives the reasons.
        top_mlp: Number (int) or share (float) of a layer's MLP units that count as important in a document. The
            default is the released 2000 of 14336, as a share: in a narrower layer, 2000 could be all units.
        top_attention: Number or share for each attention basis; the default is the released 1000 of 4096.
        eps: The paper's rule, in place of both numbers: importance (per token) of `eps` or more in every document.
        skip_bos: Leave out each document's leading BOS token, whose values are far larger in many models.
        rotary: Units of q and k are dimensions before ("pre": a row of weights is removed) or after ("post") the
            rotary embedding; None is "pre" for the paper's variant and "post" for the released one.

    Source: Zhao et al. 2024 (NeurIPS, arXiv 2402.18815) and the released code. Choosing the first of a layer in every
    document, and leaving out only what all languages share, are the released code's rules. Ours: shares for numbers,
    importance per token, the scores, and that a unit without any importance is never consistent.
    """

    variant: Literal["paper", "released"] = "paper"
    bases: tuple[str, ...] | None = None
    top_mlp: int | float = 2000 / 14336
    top_attention: int | float = 1000 / 4096
    eps: float | int | None = None
    skip_bos: bool = False
    rotary: Literal["pre", "post"] | None = None

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "released"):
            raise ValueError(f'variant={self.variant!r}: expected "paper" or "released".')
        if self.rotary not in ("pre", "post", None):
            raise ValueError(f'rotary={self.rotary!r}: expected "pre", "post" or None.')
        bases = self.bases
        if bases is not None and not (
            isinstance(bases, tuple) and bases and len(set(bases)) == len(bases) and set(bases) <= set(BASES)
        ):
            raise ValueError(f"bases={bases!r}: expected None, or a tuple with some of {BASES}, each once.")
        for name in ("top_mlp", "top_attention"):
            _check_amount(name, getattr(self, name))
        if self.eps is not None and not self.eps > 0:
            raise ValueError(f"eps={self.eps}: expected an importance above 0, or None.")

    @property
    def need(self) -> Importance:
        """The need: the importance of each unit, over documents."""
        rotary = self.rotary or ("pre" if self.variant == "paper" else "post")
        bases = tuple(basis for basis in BASES if self.bases is None or basis in self.bases)
        optional = self.bases is None
        return Importance(bases, self.variant, rotary, self.skip_bos, optional=optional)

    def statistics(self) -> tuple[Importance, ...]:
        """Smallest importance and worst rank over documents, and sums of importances."""
        return (self.need,)

    def score(self, statistics: Statistics) -> NeuronScores:
        """Log of the mean importance in the language over its mean in all languages; -inf where not specific.

        The number is ours and only ranks units; selection takes all finite scores.

        Raises:
            KeyError: The run has no such importances.
            ValueError: Fewer than two languages; a number of units larger than a layer.
        """
        check_languages(statistics.languages)
        values = {}
        for basis in self.bases_in(statistics):
            key = f"{self.need.key}.{basis}"
            minimum, worst, total = (statistics.get(f"{key}.{kind}") for kind in ("minimum", "rank.maximum", "sum"))
            has_text = (statistics.tokens > 0).any(1)
            consistent = self._consistent(basis, minimum, worst)
            specific = consistent & ~consistent[has_text].all(0)
            mean = total / _documents(statistics).clamp_min(1)[:, None, None].double()
            relative = mean.log() - mean[has_text].sort(0).values.mean(0).log()
            values[basis] = relative.where(specific, -torch.inf)
        return NeuronScores(statistics.languages, values, repr(self))

    def bases_in(self, statistics: Statistics) -> list[str]:
        """The bases asked for, else the run's bases, else all bases, so that reading one reports what is missing."""
        need = self.need
        had = [basis for basis in need.bases if f"{need.key}.{basis}.minimum" in statistics.sums]
        return had if self.bases is None and had else list(need.bases)

    def _consistent(
        self, basis: str, minimum: Float[Tensor, "language layer unit"], worst: Float[Tensor, "language layer unit"]
    ) -> Bool[Tensor, "language layer unit"]:
        """Mask of the units that matter in every document; an importance of 0, or no document at all, never counts."""
        matters = (minimum > 0) & minimum.isfinite()
        if self.eps is not None:
            return matters & (minimum >= self.eps)
        name = "top_mlp" if basis == "mlp" else "top_attention"
        top, units = getattr(self, name), minimum.shape[-1]
        if number_of(top, units) > units:
            raise ValueError(
                f"{name}={top}: basis {basis!r} has {units} units per layer. Give a smaller number, or a share (float "
                "up to 1.0)."
            )
        return matters & (worst < number_of(top, units))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """All units with a finite score; a unit may belong to several languages.

        `notes` has "bases_left_out", the bases that the model lacks.
        """
        masks = {basis: each.isfinite() for basis, each in scores.values.items()}
        left_out = [basis for basis in BASES if self.bases is None and basis not in scores.values]
        return NeuronSet(scores.languages, masks, scores.method, {"bases_left_out": left_out} if left_out else {})


def _documents(statistics: Statistics) -> Tensor:
    if statistics.n_documents is None:
        raise KeyError("this run did not collect single documents. Collect again with a method that needs it.")
    return statistics.n_documents


def _check_amount(name: str, amount: int | float) -> None:
    number = isinstance(amount, int) and not isinstance(amount, bool)
    if not (amount >= 1 if number else isinstance(amount, float) and 0 < amount <= 1):
        raise ValueError(
            f"{name}={amount!r}: expected a number of units (int, 1 or more) or a share (float in (0, 1])."
        )
