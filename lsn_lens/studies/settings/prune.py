"""The settings of the pruning study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PruneSettings:
    """What `prune_study` removes, and its text.

    Attributes:
        rates: Shares of each layer's experts to remove, in (0, 1).
        size: Neurons per expert.
        seeds: Random plans per comparison.
        slope: For layers="level" of `prune_plan`: how far the layers' rates lie apart.
        pool: For sparse activation: share of experts removed from the pool that a token chooses from.
        active: For sparse activation: share of all experts that a token keeps.
        cut: The language whose plan is cut out and timed; by default the first of the corpora.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap per language when finding.
        evaluation_tokens: Cap per language when measuring.

    Raises:
        ValueError: No rates, a rate outside (0, 1), or fewer than three seeds.
    """

    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    size: int = 32
    seeds: int = 3
    slope: float = 0.1
    pool: float = 0.5
    active: float = 0.2
    cut: str | None = None
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = 4096
    evaluation_tokens: int | None = 1024

    def __post_init__(self) -> None:
        shares = (*self.rates, self.pool, self.active)
        if not self.rates or not all(0 < each < 1 for each in shares):
            raise ValueError(
                f"rates={self.rates}, pool={self.pool}, active={self.active}: expected one or more rates, and shares "
                "in (0, 1)."
            )
        if self.seeds < 3:
            raise ValueError(f"seeds={self.seeds}: expected three or more: one random plan says little about chance.")
