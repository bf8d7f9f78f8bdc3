"""The settings of a training."""

import math
from dataclasses import dataclass
from typing import Literal

from lsn_lens.files import whole_number


@dataclass(frozen=True)
class Training:
    """How `finetune` trains.

    Attributes:
        learning_rate: Its peak.
        epochs: Passes over the documents.
        batch: Rows per forward pass.
        accumulation: Forward passes per step.
        length: Tokens per row; by default the model's context, at most 512.
        separator: What each document begins with; it is never predicted.
        optimizer: "adamw" (betas 0.9 and 0.999), or "sgd" with `momentum`.
        momentum: Of "sgd".
        weight_decay: On the trained entries of matrices.
        clip: Largest norm of the trained entries' gradient.
        schedule: How the learning rate ends.
        warmup: Share of the steps in which the learning rate rises from 0; an only step has the full rate.
        seed: Of the order of rows, and of LoRA's ranks and first values.
        save_every: Steps between two states from which an interrupted training goes on.

    Raises:
        ValueError: A number out of range.
    """

    learning_rate: float = 1e-3
    epochs: int = 1
    batch: int = 8
    accumulation: int = 1
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = 0.05
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulation", "save_every"):
            whole_number(getattr(self, name), name, least=1)
        if self.length is not None:
            whole_number(self.length, "length", least=2)
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer={self.optimizer!r}: expected 'adamw' or 'sgd'.")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number above 0.")
        for name, most in (("weight_decay", math.inf), ("momentum", 1.0), ("warmup", 1.0)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more, below {most:g}.")
