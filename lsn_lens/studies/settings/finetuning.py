"""The settings of the fine-tuning study."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FinetuningSettings:
    """What `finetuning_study` trains, and its text.

    Attributes:
        train: Languages to train; by default all.
        methods: Methods that find neurons; random neurons are matched to the first method's.
        parameters: Hyper-parameters by method, as {plnd: {top_mlp: 0.8}}.
        units: Share of all MLP neurons that each method's set has; fewer, in all sets, where a method ranks fewer.
        documents: Numbers of documents to train on.
        seeds: Trainings of each kind: the documents drawn, their order, the random neurons and LoRA differ.
        rates: Learning rates to choose from, for each kind by the loss on every second hold-out document.
        rate_documents: Documents to train on for this choice, which is made on the first language.
        hold_out: Share of the documents held out; units are found on the rest, which training draws from.
        epochs: Passes over the documents.
        batch: Rows per step.
        length: Tokens per row; by default the model's context, at most 512.
        weight_decay: Of AdamW, on the trained entries of matrices.
        max_tokens: Cap per language when finding units.
        evaluation_tokens: Cap per language when measuring.

    Raises:
        ValueError: An unknown method, no method, a number out of range, or fewer than two seeds.
    """

    train: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("plnd", "lape", "average_precision", "act_grad")
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    units: float = 0.01
    documents: tuple[int, ...] = (400,)
    seeds: int = 5
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    rate_documents: int = 100
    hold_out: float = 0.2
    epochs: int = 1
    batch: int = 8
    length: int | None = None
    weight_decay: float = 0.01
    max_tokens: int | None = 8192
    evaluation_tokens: int | None = 4096

    def __post_init__(self) -> None:
        from lsn_lens.methods.catalogue import METHODS  # here, as it loads torch

        if unknown := [name for name in (*self.methods, *self.parameters) if name not in METHODS]:
            raise ValueError(f"unknown methods {unknown}; name some of {list(METHODS)}.")
        if self.seeds < 2:
            raise ValueError("expected at least two seeds: one training says nothing about chance.")
        if not self.methods or not self.documents or not self.rates:
            raise ValueError("expected at least one method, one number of documents and one learning rate.")
        if min(*self.documents, self.rate_documents) < 1 or min(self.rates) <= 0:
            raise ValueError(f"documents={self.documents}, rates={self.rates}: expected numbers above 0.")
        if not 0 < self.units <= 1 or not 0 < self.hold_out < 1:
            raise ValueError(f"units={self.units}, hold_out={self.hold_out}: expected shares in (0, 1).")
