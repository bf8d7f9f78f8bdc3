"""The training itself, by the `Trainer` of transformers, of a module that holds the trained entries alone."""

import contextlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from lsn_lens.applications.finetuning.delta import Change
from lsn_lens.applications.finetuning.rows import Rows
from lsn_lens.applications.finetuning.settings import Training
from lsn_lens.bars import tqdm
from lsn_lens.evaluation.verdict import COLLAPSE


class Diverged(ValueError):
    """A training whose loss was not finite, or rose far above that of the first step."""


class Trained(nn.Module):
    """The trained values, and a model that reads them.

    The model is no part of the module: no optimiser, clipping, decay or saved state of the trainer reaches it. Values
    are kept in float32, so that small steps are not lost in half precision.
    """

    def __init__(self, values: Sequence[nn.Parameter], run: Callable[..., Any], decayed: Sequence[bool]):
        super().__init__()
        self.values = nn.ParameterList(values)
        self.__dict__["run"], self.decayed = run, list(decayed)

    def forward(self, input_ids: Tensor, labels: Tensor, **options: Any) -> Any:
        """The loss under the present values."""
        return self.__dict__["run"](input_ids=input_ids, labels=labels, use_cache=False, **options)

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """The optimiser's groups: weight decay on entries of matrices alone."""
        kinds = {
            rate: [each for each, own in zip(self.values, self.decayed, strict=True) if own == (rate == decay)]
            for rate in dict.fromkeys((decay, 0.0))
        } if decay else {0.0: [*self.values]}  # fmt: skip
        return [{"params": each, "weight_decay": rate} for rate, each in kinds.items() if each]


def of_entries(hf_model: nn.Module, entries: Mapping[str, Tensor | None]) -> tuple[Trained, Callable[[], Any]]:
    """A module that trains some entries of some parameters (None: all of them), and a function that gives the changes.

    Each forward pass puts the values into copies of the parameters, so a gradient exists for the values alone.
    """
    own = dict(hf_model.named_parameters())
    index = {name: None if each is None else each.to(own[name].device) for name, each in entries.items()}
    values = {
        name: nn.Parameter((own[name] if each is None else own[name].flatten()[each]).detach().float().clone())
        for name, each in index.items()
    }

    def weights() -> dict[str, Tensor]:
        return {name: Change(each, index[name]).into(own[name].detach()) for name, each in values.items()}

    def run(**inputs: Any) -> Any:
        return functional_call(hf_model, weights(), kwargs=inputs)

    def changes() -> dict[str, Change]:
        return {
            name: Change(each.detach().to(own[name].dtype, copy=True), index[name]) for name, each in values.items()
        }

    matrices = [own[name].ndim > 1 for name in values]
    return Trained([*values.values()], run, matrices), changes


@dataclass(eq=False)
class _Watch(TrainerCallback):
    """A progress bar, and an end to a training that diverges."""

    progress: bool
    rate: float
    first: float = math.nan
    bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first = next((row["loss"] for row in state.log_history if "loss" in row), math.nan)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="steps", disable=not self.progress)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs: Mapping[str, Any] = given["logs"]
        if "loss" not in logs:
            return
        self.first = logs["loss"] if math.isnan(self.first) else self.first
        self.check(logs["loss"], state.global_step)
        self.bar.update()
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def check(self, loss: float, step: int) -> None:
        if not loss <= self.first + COLLAPSE:
            raise Diverged(
                f"the training diverged at step {step}: the loss is {loss:.4g} nats per token, {self.first:.4g} at "
                f"the first step. The learning rate {self.rate:g} is too high for these weights: try a tenth of it. "
                "Nothing was written."
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def train(
    trained: Trained, rows: Rows, settings: Training, device: torch.device, states: Path | None, progress: bool
) -> pd.DataFrame:
    """Train the values in place; states in the folder are continued from, and removed by the caller.

    Returns:
        One row per step, see `Delta.losses`.

    Raises:
        Diverged: The loss is not finite, or far above that of the first step.
        ValueError: A device that the trainer does not use.
    """
    watch = _Watch(progress, settings.learning_rate)
    with _quiet(), _kept_random():
        arguments = _arguments(settings, len(rows), device, states)
        if arguments.device.type != device.type or device.index not in (None, arguments.device.index or 0):
            raise ValueError(f"the model is on {device}, the trainer uses {arguments.device}: move the model there.")
        groups = trained.groups(settings.weight_decay)
        optimizer: Any = (
            torch.optim.AdamW(groups, settings.learning_rate) if settings.optimizer == "adamw"
            else torch.optim.SGD(groups, settings.learning_rate, momentum=settings.momentum)
        )  # fmt: skip
        trainer = Trainer(
            trained, arguments, default_data_collator, train_dataset=rows, optimizers=(optimizer, None),  # type: ignore[arg-type]
            callbacks=[watch],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=last_state(states))
        finally:
            watch.close()
        log = [row for row in trainer.state.log_history if "loss" in row]
        watch.check(_loss(trained, rows, settings.batch, device), trainer.state.global_step)
    return pd.DataFrame(log, columns=["step", "loss", "grad_norm", "learning_rate"])


def last_state(folder: Path | None) -> str | None:
    """The newest state that was written whole: the trainer's own file is written last."""
    whole = [] if folder is None else [each.parent for each in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda each: int(each.name.split("-")[1]))) if whole else None


def _arguments(settings: Training, n_rows: int, device: torch.device, states: Path | None) -> TrainingArguments:
    steps = settings.epochs * math.ceil(math.ceil(n_rows / settings.batch) / settings.accumulation)
    arguments = TrainingArguments(
        output_dir=str(states or "not-written"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.clip,
        lr_scheduler_type=settings.schedule,
        # below 1, a share of all steps, rounded up; the first of them has rate 0, so that an only step would do nothing
        warmup_steps=settings.warmup if steps > 1 else 0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide that a training diverges
        save_strategy="no" if states is None else "steps",
        save_steps=settings.save_every,
        save_total_limit=1,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the model is on one device, and cannot be copied to others
    return arguments


@torch.no_grad()
def _loss(trained: Trained, rows: Rows, count: int, device: torch.device) -> float:
    """Mean loss of the first rows, to see what the last step did."""
    return float(trained(rows.ids[:count].to(device), rows.labels[:count].to(device)).loss)


@contextlib.contextmanager
def _kept_random() -> Iterator[None]:
    """Restore the global random generators, which the trainer seeds."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the trainer says about a module that is no model of its own."""
    names = ("transformers.trainer", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
