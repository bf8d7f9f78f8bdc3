"""What a study of ground truth plants, and which methods are to find it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GroundTruthSettings:
    """What `ground_truth_study` plants, and on how much text methods are to find it.

    Attributes:
        methods: Which methods; all by default.
        parts: Where to plant, each by itself: "mlp", and "attention" (as values of new heads).
        roles: Which roles; all by default.
        plantings: How many into each part; each has its own seed, and the intervals come from their spread. A seed
            whose roles do not hold is left out, and said to be.
        each: Units for each role and language.
        effect: By how much a language's loss is to rise when one unit that it needs is off, nats per token.
        tokens: Of each language, to write the weights from.
        max_tokens: Cap for each language when running the methods.
        less_text: Smaller caps to try on the first planting of each part.
        fewer_languages: How many of the languages to try there.
        seed: Of the first planting.
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
