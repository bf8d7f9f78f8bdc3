"""The settings of the workflow study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkflowSettings:
    """The units that `workflow_study` turns off, and its text.

    Attributes:
        method: Name of a method with units in attention or MLP layers.
        english: The language to compare with.
        understand: Number of layers that understand; by default searched, like `generate`, on half of the hold-out
            documents, and reported on the other half. Give both or none.
        generate: Number of layers that generate.
        criterion: The criterion of the search: "gap" favours stages with many units, "gap_per_unit" small ones.
        seeds: Random sets per switch and language, with as many units in each layer of each kind. Below 19 no p-value
            reaches 0.05; the correction for all switches and languages needs more.
        ablation: Value to set units to: "zero", "other languages' mean" or "dataset mean".
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap per language when finding units.
        evaluation_tokens: Cap per language when measuring.
        search_tokens: Cap per language when searching the stages.

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
            raise ValueError("expected at least two seeds: a result without a control is no evidence.")
