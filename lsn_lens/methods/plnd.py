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

    A unit's importance for a document is the norm of what its removal changes: in the output of the MLP (basis "mlp":
    up, gate and down coincide), in the attention output ("v", and "z", the inputs of the o projection), or in the
    attention pattern ("q", "k"). A unit is consistent in a language when it is among the first of its layer in every
    document; specific to it when it is not consistent in all languages.

    Attributes:
        variant: "paper": closed forms of the norms. "released": what the authors' code computes in their place.
        bases: Of "mlp", "q", "k", "v", "z"; those named must be there. None takes all that the model can give: which it
            cannot is in the notes of the set, and why in `run.settings["left_out"]`.
        top_mlp: How many MLP units of a layer count as important in a document, number (int) or share (float). The
            default is the released 2000 of 14336, as a share: for a narrower layer the number would be everything.
        top_attention: The same for each attention basis; the default is the released 1000 of 4096.
        eps: The paper's rule in place of both: importance (per token) of `eps` or more in every document.
        skip_bos: Leave out the separator that a document begins with, whose values dwarf the others in many models.
        rotary: A unit of q and k is a dimension before ("pre", what removing a row of weights removes) or after
            ("post") the rotary embedding; None is "pre" for the paper's variant and "post" for the released one.
        exact: Of how many q and k units of a layer and document the importance is exact, number or share. Below 1.0
            a first-order estimate picks them, and is kept for the rest, which all rank behind: an approximation that
            saves time in documents of several hundred tokens. With 0.3, 96 % of the units of q and k found by either
            were found by both on the embedded model. The notes of the set say how many are exact. "released" finishes
            all, whatever this says: its Delta is not small, so no estimate holds (47 % in common).

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
    exact: int | float = 1.0

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
        for name in ("top_mlp", "top_attention", "exact"):
            _check_amount(name, getattr(self, name))
        if self.eps is not None and not self.eps > 0:
            raise ValueError(f"eps={self.eps}: expected an importance above 0, or None.")

    @property
    def need(self) -> Importance:
        """What is kept of each document."""
        rotary = self.rotary or ("pre" if self.variant == "paper" else "post")
        bases = tuple(basis for basis in BASES if self.bases is None or basis in self.bases)
        optional = self.bases is None
        return Importance(bases, self.variant, rotary, self._exact, self.skip_bos, optional=optional)

    @property
    def _exact(self) -> int | float:
        return 1.0 if self.variant == "released" else self.exact

    def statistics(self) -> tuple[Importance, ...]:
        """Smallest importance and worst rank over documents, and sums of importances."""
        return (self.need,)

    def score(self, statistics: Statistics) -> NeuronScores:
        """Log of the mean importance in the language over its mean in all languages; -inf where not specific.

        The number is ours, to rank by; the choice is made by what is finite.

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
        """The bases asked for, else those that the run has; else all, so that reading one says what is missing."""
        need = self.need
        had = [basis for basis in need.bases if f"{need.key}.{basis}.minimum" in statistics.sums]
        return had if self.bases is None and had else list(need.bases)

    def _consistent(
        self, basis: str, minimum: Float[Tensor, "language layer unit"], worst: Float[Tensor, "language layer unit"]
    ) -> Bool[Tensor, "language layer unit"]:
        """Which units matter in every document: an importance of 0 never does, and no document is no evidence."""
        matters = (minimum > 0) & minimum.isfinite()
        if self.eps is not None:
            return matters & (minimum >= self.eps)
        name = "top_mlp" if basis == "mlp" else "top_attention"
        top, units = getattr(self, name), minimum.shape[-1]
        if number_of(top, units) > units:
            raise ValueError(
                f"{name}={top}: basis {basis!r} has {units} units a layer. Give a smaller number, or a share (a float "
                "up to 1.0)."
            )
        if basis in ("q", "k") and number_of(top, units) > number_of(self._exact, units):
            raise ValueError(
                f"{name}={top}: of basis {basis!r} only exact={self.exact} are exact, and only these have a rank. Give "
                "a smaller number, or collect with exact=1.0."
            )
        return matters & (worst < number_of(top, units))

    def select(self, scores: NeuronScores) -> NeuronSet:
        """All with a finite score; a unit may belong to several languages.

        Notes have, for "q" and "k", of how many units of a layer the importance is exact, and how many there are; and
        "bases_left_out", which of all kinds of units the model could not give.
        """
        exact = {
            basis: [min(number_of(self._exact, each.shape[-1]), each.shape[-1]), each.shape[-1]]
            for basis, each in scores.values.items()
            if basis in ("q", "k")
        }
        masks = {basis: each.isfinite() for basis, each in scores.values.items()}
        left_out = [basis for basis in BASES if self.bases is None and basis not in scores.values]
        notes = {"exact": exact, "bases_left_out": left_out}
        return NeuronSet(scores.languages, masks, scores.method, {key: each for key, each in notes.items() if each})


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
