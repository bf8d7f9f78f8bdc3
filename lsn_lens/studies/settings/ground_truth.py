"""The settings of the ground truth study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GroundTruthSettings:
    """The units that `ground_truth_study` plants, and the methods and text to find them.

    Attributes:
        methods: Names of methods; all by default.
        parts: Where to plant, each by itself: "mlp", and "attention" (as values of new heads).
        roles: Names of roles; all by default.
        plantings: Plantings per part, each with its own seed; intervals come from their spread. A seed whose roles do
            not hold is left out and listed in the report.
        each: Units for each role and language.
        effect: Requested loss increase of a language when one unit that it needs is off, nats per token.
        tokens: Tokens per language for writing the weights.
        max_tokens: Cap per language when running the methods.
        less_text: Smaller caps to try on the first planting of each part.
        fewer_languages: Smaller numbers of languages to try on the first planting of each part.
        seed: Seed of the first planting.
        backend: TransformerLens class of the planted models.

    Raises:
        ValueError: An unknown method, or nothing to plant.
        KeyError: An unknown role.
    """

    methods: tuple[str, ...] | None = None
    parts: tuple[Literal["mlp", "attention"], ...] = ("mlp", "attention")
    roles: tuple[str, ...] | None = None
    plantings: int = 5
    each: int = 1
    effect: float = 0.03
    tokens: int = 3000
    max_tokens: int | None = None
    less_text: tuple[int, ...] = (500, 2000)
    fewer_languages: tuple[int, ...] = (2, 4)
    seed: int = 0
    backend: Literal["auto", "hooked", "bridge"] = "auto"

    def __post_init__(self) -> None:
        from lsn_lens.methods.catalogue import METHODS  # here, as it loads torch
        from lsn_lens.planted.roles import ROLES

        unknown = [name for name in self.methods or () if name not in METHODS]
        if unknown:
            raise ValueError(f"unknown methods {unknown}; name some of {list(METHODS)}.")
        unknown = [name for name in self.roles or () if name not in ROLES]
        if unknown:
            raise KeyError(f"no role {unknown}; the roles are {list(ROLES)}.")
        if self.plantings < 1 or not self.parts:
            raise ValueError(
                f"plantings={self.plantings}, parts={self.parts}: expected at least one; intervals take two plantings."
            )
