"""How a study of the working language reads the layers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkingLanguageSettings:
    """How `working_language_study` tells whose a token is, and what it reads.

    Attributes:
        pivot: The language that others are compared with; the first one where the corpus has no such language.
        top_k: Most probable tokens that are looked at for each position.
        norm: Apply the final norm to every layer; without, to the last one only, as Zhao et al. 2024 do.
        by: What tells a token's language: the text it occurs in, the script of its letters, or both.
        at_least: Occurrences in the text that a token of a language needs.
        ratio: How many times as frequent as in any other language such a token is.
        kind: One row per document, or packed blocks (for documents longer than the model's context).
        length: Tokens of a block.
        separator: What each document begins with.
        max_tokens: Cap for each language of the text that says which tokens are whose.
        evaluation_tokens: Cap for each language of the text that the layers are read on.

    Raises:
        ValueError: No token to look at, or a ratio that tells no language apart.
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
