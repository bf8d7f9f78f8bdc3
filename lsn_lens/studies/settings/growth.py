"""The settings of the growth study."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GrowthSettings:
    """What `growth_study` measures at each checkpoint, and its text.

    Attributes:
        dominant: The language that the model was trained on first; by default the first of the corpora.
        switch: The last checkpoint before the new languages; by default the first checkpoint.
        reference: The checkpoint whose thresholds are frozen; by default the one after the switch.
        rate: Share of neurons to choose.
        dominant_tokens: Tokens of the dominant language, for the corpus plan; with 1 the plan gives multiples of them.
        best: New language -> its best checkpoint, by scores of your own; by default that with the lowest loss.
        window: Checkpoints of the moving mean that stages are told from, odd.
        seeds: Random sets that the dominant language's units are compared with.
        replicates: Bootstrap draws for the intervals of counts; 0 for none.
        top_k: Most probable tokens per position that the working language is read from.
        at_least: Minimum occurrences of a token in the language that it labels.
        ratio: Minimum ratio of a token's frequency to that in any other language.
        length: Tokens of a block; by default chosen from the model's context.
        max_tokens: Cap per language when finding.
        evaluation_tokens: Cap per language when measuring.

    Raises:
        ValueError: Fewer than two seeds, a rate outside (0, 1), or no tokens.
    """

    dominant: str | None = None
    switch: str | None = None
    reference: str | None = None
    rate: float = 0.01
    dominant_tokens: float = 1.0
    best: dict[str, str] = field(default_factory=dict)
    window: int = 3
    seeds: int = 9
    replicates: int = 200
    top_k: int = 10
    at_least: int = 3
    ratio: float = 10.0
    length: int | None = None
    max_tokens: int | None = 8192
    evaluation_tokens: int | None = 4096

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate}: expected a share of neurons in (0, 1).")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: expected at least 2; a result without a control is no evidence.")
        if not self.dominant_tokens > 0:
            raise ValueError(f"dominant_tokens={self.dominant_tokens}: expected a number of tokens above 0.")
        if self.window < 1 or not self.window % 2:
            raise ValueError(f"window={self.window}: expected an odd number of checkpoints.")
