"""The settings of the steering study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SteeringSettings:
    """The ways, strengths and counts of `steering_study`, and its texts.

    Attributes:
        counts: Units per language that average precision chooses, for forcing units to the median.
        strengths: Strengths of all other ways to steer except `released_strengths`.
        released_strengths: Strengths of language dimensions as released: the last layer's means, times this, at
            `layer`. Published: 0.4.
        rate: Share of all units for LAPE.
        layer: Layer after which the residual stream is steered; by default the middle.
        seeds: Random counterparts per way to steer; one of them at every strength or count.
        samples: Texts without a prompt, per target and strength or count.
        prompts: Prompts per language.
        prompt_tokens: Tokens per prompt.
        tokens: New tokens per text.
        temperature: Temperature of the samples.
        shown: Sample texts per language in the report.
        identifier: Language identifier: "py3langid" or "lingua".
        ruled_out: Languages that no text can be in, as ms for a model that never read Malay: else many Indonesian
            texts are identified as Malay, which is no language of the run.
        evaluation_tokens: Tokens per language at most when measuring losses.
        max_tokens: Tokens per language at most when finding units; by default all.

    Raises:
        ValueError: No seed, count, strength, sample or token to steer with, or a rate that is no share.
    """

    counts: tuple[int, ...] = (30, 100, 300, 1000)
    strengths: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
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
            raise ValueError("expected at least one seed: a result without a random counterpart is no evidence.")
        if not self.counts or not self.strengths or not self.released_strengths:
            raise ValueError("expected at least one count and one strength.")
        for name in ("samples", "tokens", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1.")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: expected a share of all units, more than 0 and at most 1.")


def check_layer(settings: SteeringSettings, layers: int) -> None:  # no method: a script would take it for a subcommand
    """Refuse a layer that a model of this depth lacks.

    Raises:
        ValueError: The message has the range.
    """
    if settings.layer is not None and not -layers <= settings.layer < layers:
        raise ValueError(f"layer={settings.layer}: the model has the layers 0 to {layers - 1}; -1 is the last.")
