"""The settings of the working language study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkingLanguageSettings:
    """The token labels of `working_language_study`, and its text.

    Attributes:
        pivot: The language to compare with; the first language if the corpus does not have it.
        top_k: Number of most probable tokens per position.
        norm: Apply the final norm to every layer; without, to the last one only, as Zhao et al. 2024 do.
        by: Evidence for a token's language: the text where it occurs, the script of its letters, or both.
        at_least: Minimum occurrences of a token in a language's text.
        ratio: Minimum ratio of a token's frequency to that in any other language.
        kind: One row per document, or packed blocks (for documents longer than the model's context).
        length: Tokens of a block.
        separator: What each document begins with.
        max_tokens: Cap per language of the text for the token labels.
        evaluation_tokens: Cap per language of the text for reading the layers.

    Raises:
        ValueError: `top_k` or `at_least` below 1, or a ratio of at most 1.
    """

    pivot: str = "en"
    top_k: int = 10
    norm: bool = True
    by: Literal["both", "text", "script"] = "both"
    at_least: int = 3
    ratio: float = 10
    kind: Literal["documents", "blocks"] = "documents"
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.at_least < 1 or not self.ratio > 1:
            raise ValueError(
                f"top_k={self.top_k}, at_least={self.at_least}, ratio={self.ratio}: expected the first two to be 1 or "
                "more, the ratio more than 1."
            )
