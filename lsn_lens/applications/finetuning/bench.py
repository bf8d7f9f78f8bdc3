"""Trainings of several kinds on the same documents, and the losses after each."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from xxhash import xxh3_128

from lsn_lens.applications.finetuning.settings import Training
from lsn_lens.applications.finetuning.training import Diverged
from lsn_lens.applications.finetuning.tuning import finetune
from lsn_lens.controls.neutral import measured_neutral
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.files import write_bytes
from lsn_lens.labels import check_apart
from lsn_lens.model.structure import Model, describe
from lsn_lens.neurons.draws import generator_of
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

Corpora = Mapping[str, LanguageCorpus]


@dataclass(eq=False)
class Bench:
    """Trains, measures, and keeps the losses of finished trainings in a folder.

    Attributes:
        choice: Corpora whose hold-out part learning rates are chosen on.
        report: Corpora whose hold-out part is reported.
        training: How to train; rate and seed are given for each training.
        evaluation_tokens: Cap per language when measuring.
        out: The folder; None keeps nothing.
        measured: The text of `report`.
    """

    model: Model
    choice: Corpora
    report: Corpora
    training: Training
    evaluation_tokens: int | None
    out: Path | None
    measured: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        text = held_out(self.model, self.report, self._layout(), progress=False)
        self.measured = text.plan.describe()
        self._before = self._measure(self.model, self.report)
        text = {label: each["sha256"] for label, each in self.measured["languages"].items()}
        self._key = [
            describe(self.model)["weights_hash"],
            text,
            asdict(replace(self.training, learning_rate=1.0, seed=0)),
            self._layout(),
        ]

    def _layout(self) -> Layout:
        return Layout(length=self.training.length, max_tokens=self.evaluation_tokens)

    def _measure(self, model: Model, corpora: Corpora) -> dict[str, tuple[float, float]]:
        """Text -> loss (nats per token) and bits per byte; neutral text too."""
        text, quiet = held_out(model, corpora, self._layout(), progress=False), measured_neutral(model, progress=False)
        check_apart(corpora, [] if quiet is None else quiet.clean)
        tables = [each.unchanged for each in (text, quiet) if each is not None]
        rows = pd.concat(tables).to_dict("records")
        return {row["evaluated"]: (row["nll"], row["bits_per_byte"]) for row in rows}

    def _documents(self, language: str, count: int, seed: int) -> list[str]:
        """Documents drawn by the seed, the same for every kind."""
        texts = list(self.report[language].find)
        order = torch.randperm(len(texts), generator=generator_of("documents", language, seed))
        return [texts[place] for place in order[:count].tolist()]

    def _kept(self, make: Callable[[], Any], what: Any, *asked: Any) -> Any:
        """A result from the folder, or made and written there; `what` and `asked` say which."""
        masks = {key: each.tolist() for key, each in what.masks.items()} if isinstance(what, NeuronSet) else repr(what)
        key = xxh3_128(json.dumps([self._key, masks, *asked], default=repr).encode()).hexdigest()
        path = None if self.out is None else self.out / f"{key}.json"
        if path is not None and path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        made = make()
        if path is not None:
            write_bytes(path, json.dumps(made).encode())
        return made

    def losses(self, what: Any, language: str, documents: int, rate: float, seed: int) -> list[dict[str, Any]]:
        """One row per text of a training."""

        def make() -> list[dict[str, Any]]:
            texts = self._documents(language, documents, seed)
            made = finetune(
                self.model, what, texts, replace(self.training, learning_rate=rate, seed=seed), progress=False
            )
            rows = []
            for text, (loss, bits) in self._measure(made.model, self.report).items():
                before, bits_before = self._before[text]
                kind = "own" if text == language else "other" if text in self.report else "neutral"
                rows.append({
                    "parameters": made.delta.parameters, "evaluated": text, "text": kind, "before": before,
                    "after": loss, "change": loss - before, "change_bits_per_byte": bits - bits_before,
                })  # fmt: skip
            return rows

        return self._kept(make, what, language, documents, rate, seed)

    def choice_loss(self, what: Any, language: str, documents: int, rate: float) -> float:
        """The language's loss on the text for choosing rates, after a short training; infinite if it diverges."""

        def make() -> float:
            texts = self._documents(language, documents, 0)
            try:
                made = finetune(
                    self.model, what, texts, replace(self.training, learning_rate=rate, seed=0), progress=False
                )
            except Diverged:
                return math.inf
            return self._measure(made.model, {language: self.choice[language]})[language][0]

        return self._kept(make, what, "choice", language, documents, rate)
