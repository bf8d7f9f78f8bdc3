"""The settings of the text dependence study."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDependenceSettings:
    """The methods of `text_dependence_study`, and the texts on which they find units.

    Attributes:
        methods: Names of methods.
        amounts: Tokens per language to find units on.
        samples: Most disjoint samples of each amount.
        spelling_tokens: Tokens per language of romanised text, and of text with shuffled words; 0 for none.
        domain_tokens: Tokens per language of each domain.
        evaluation_tokens: Tokens per language of each domain to measure losses on; 0 for no losses.
        seeds: Random sets per language and domain, as many units in each layer, as active in the language.

    Raises:
        ValueError: An unknown method, no amount, or fewer than two samples.
    """

    methods: tuple[str, ...] = ("lape",)
    amounts: tuple[int, ...] = (1000, 4000)
    samples: int = 8
    spelling_tokens: int = 2000
    domain_tokens: int = 2000
    evaluation_tokens: int = 256
    seeds: int = 5

    def __post_init__(self) -> None:
        from lsn_lens.methods.catalogue import METHODS  # here, as it loads torch

        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods={list(self.methods)}: expected names of {list(METHODS)}.")
        if not self.amounts or min(self.amounts) < 1:
            raise ValueError(f"amounts={list(self.amounts)}: expected numbers of tokens, as [1000, 4000].")
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: expected at least 2, whose sets are compared with each other.")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: expected at least 2; a result without a control is no evidence.")
