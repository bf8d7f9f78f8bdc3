"""How a study of the multilingual workflow measures."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkflowSettings:
    """What `workflow_study` turns off, and what it measures on.

    Attributes:
        method: What finds the units: one whose units belong to attention or MLP layers.
        english: The language that the others are compared with.
        understand: How many layers understand; searched by default, as `generate`, on half of the hold-out documents,
            so that the other half can be reported. Give both or none.
        generate: How many layers generate.
        criterion: What the search makes large: "gap" favours stages with many units, "gap_per_unit" small ones.
        seeds: Random sets for each switch and language, as many units in each layer of each kind. Below 19 no
            p-value reaches 0.05, and correcting for all switches and languages takes more.
        ablation: What to set units to: "zero", "other languages' mean" or "dataset mean".
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap for each language when finding units.
        evaluation_tokens: Cap for each language when measuring.
        search_tokens: Cap for each language when searching the stages.

    Raises:
        ValueError: An unknown method, one of the stages without the other or without layers, or fewer than two seeds.
    """

    method: str = "plnd"
    english: str = "en"
    understand: int | None = None
    generate: int | None = None
    criterion: Literal["gap", "gap_per_unit"] = "gap"
    seeds: int = 39
    ablation: Literal["zero", "other languages' mean", "dataset mean"] = "zero"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = 1024
    search_tokens: int | None = 1024

    def __post_init__(self) -> None:
        from lsn_lens.methods.catalogue import METHODS  # here, as it loads torch

        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; name one of {list(METHODS)}.")
        if (self.understand is None) != (self.generate is None):
            raise ValueError("give both understand and generate, or none of them to have both searched.")
        if self.seeds < 2:
            raise ValueError("expected at least two seeds: a result without control shows nothing.")
