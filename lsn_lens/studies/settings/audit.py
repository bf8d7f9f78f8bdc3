"""The settings of an audit, and of the effects of any set."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EffectSettings:
    """How the effect of a set is measured.

    Attributes:
        action: Value to set units to, in words: "zero", "mean" or "other mean" (of the other languages).
        seeds: Matched random sets per language; the correction for many languages needs more than one language does.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Tokens per language at most for activities and for finding again; by default all.
        evaluation_tokens: Tokens per language at most when measuring; null for all.

    Raises:
        ValueError: Fewer than 19 random sets, of which no p-value reaches 0.05.
    """

    action: Literal["zero", "mean", "other mean"] = "zero"
    seeds: int = 39
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = 4096

    def __post_init__(self) -> None:
        if self.seeds < 19:
            raise ValueError(f"seeds={self.seeds}: expected 19 or more: with fewer no p-value reaches 0.05.")


@dataclass(frozen=True)
class AuditSettings(EffectSettings):
    """How `audit` measures.

    Attributes:
        side_seeds: Random sets beside which side effects are measured.
        multiple: Smallest ratio to the layer's median from which on a unit is an outlier.
        prompts: Texts per language that the model continues.
        tokens: New tokens per continued text.

    Raises:
        ValueError: Fewer than 19 random sets, no side seed, prompt or token, or a multiple of 1 or less.
    """

    side_seeds: int = 3
    multiple: float = 10.0
    prompts: int = 8
    tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.side_seeds, self.prompts, self.tokens) < 1 or not self.multiple > 1:
            raise ValueError(
                f"side_seeds={self.side_seeds}, prompts={self.prompts}, tokens={self.tokens}, "
                f"multiple={self.multiple}: expected at least one each, and a multiple above 1."
            )
