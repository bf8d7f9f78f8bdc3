"""How a study of steering steers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SteeringSettings:
    """How `steering_study` steers, and what it measures on.

    Attributes:
        counts: Units per language that average precision chooses: the doses of forcing them to the median.
        strengths: Doses of all other ways to steer, but the next.
        released_strengths: Doses of language dimensions as they were released: the last layer's means, times this, in
            the layer of `layer`. Published: 0.4.
        rate: Share of all units that lape chooses.
        layer: After which layer the residual stream is pushed; the middle by default.
        seeds: Random counterparts of each way to steer; one of them at every dose.
        samples: Texts from nothing, for each target and dose.
        prompts: Prompts in each language.
        prompt_tokens: Tokens of a prompt.
        tokens: New tokens of a text.
        temperature: Of the samples.
        shown: Sample texts of each language in the report.
        identifier: Of the texts' language: "py3langid" or "lingua".
        ruled_out: Languages that no text can be in, as [ms] for a model that never read Malay: where it is weighed,
            many Indonesian texts are taken for Malay, and belong to no language of the run.
        evaluation_tokens: Cap for each language when measuring losses.
        max_tokens: Cap for each language when finding units.

    Raises:
        ValueError: No seed, dose, sample or token to steer with, or a rate that is no share.
    """

    counts: tuple[int, ...] = (30, 100, 300, 1000)
    strengths: tuple[float, ...] = (1, 2, 4, 8)
    released_strengths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    rate: float = 0.05
    layer: int | None = None
    seeds: int = 1
    samples: int = 30
    prompts: int = 5
    prompt_tokens: int = 10
    tokens: int = 32
    temperature: float = 0.8
    shown: int = 20
    identifier: Literal["py3langid", "lingua"] = "py3langid"
    ruled_out: tuple[str, ...] = ()
    evaluation_tokens: int = 512
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError("expected at least one seed: a result without random counterpart shows nothing.")
        if not self.counts or not self.strengths or not self.released_strengths:
            raise ValueError("expected at least one count and one strength.")
        for name in ("samples", "tokens", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1.")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: expected a share of all units, more than 0 and at most 1.")
