"""Held-out text and the unchanged model's losses on it, made once and measured on many times, document by document."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lsn_lens import forward, models
from lsn_lens.batches import Batch, Layout, Plan, separator_id
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.evaluation.perplexity import NONE, _plan, perplexity_table, token_losses
from lsn_lens.interventions import Action, intervention_hooks, zero
from lsn_lens.neurons import NeuronSet

Choice = Action | Callable[[str], Action]
Hooks = list[tuple[str, Any]]
Losses = dict[str, Float[np.ndarray, "document"]]  # by language, nats summed over a document's scored tokens


@dataclass(frozen=True, eq=False)
class Measured:
    """What interventions do to the losses of held-out text.

    Attributes:
        table: As `perplexity_table` gives it, the rows without intervention first.
        rises: By set, intervened and evaluated language, the rise of each document's summed loss (nats).
        tokens: By language, the scored tokens of each of its documents.
    """

    table: pd.DataFrame
    rises: Mapping[tuple[str, str, str], Float[np.ndarray, "document"]]
    tokens: Mapping[str, Float[np.ndarray, "document"]]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Text of all languages in batches, and the unchanged model's losses; from `held_out`.

    Documents are those that have a scored token; in packed blocks a token counts for the document that it is of.

    Attributes:
        model: Whose losses these are.
        batches: Each with the places, among its language's documents, of the tokens predicted (-1: not scored).
        clean: The losses of each document.
        tokens: By language, the scored tokens of each document.
        unchanged: The rows of `perplexity_table` without intervention.
    """

    model: models.Model
    batches: tuple[tuple[Batch, Tensor], ...]
    clean: Losses
    tokens: Mapping[str, Float[np.ndarray, "document"]]
    unchanged: pd.DataFrame

    def measure(
        self,
        sets: NeuronSet | Mapping[str, NeuronSet],
        action: Choice = zero,
        *,
        evaluate: Literal["all", "own"] | Callable[[str], Iterable[str]] = "all",
        progress: bool = True,
    ) -> Measured:
        """What `perplexity_table` measures, without tokenising the text or measuring the unchanged model again.

        Bits per byte are nats times the language's bits per nat on this text.

        Args: as `perplexity_table`.
        """
        named = {"": sets} if isinstance(sets, NeuronSet) else dict(sets)
        jobs = [(name, each, language) for name, each in named.items() for language in each.languages]
        choices: dict[str, Callable[[str], Iterable[str]]] = {"all": lambda _: self.clean, "own": lambda own: [own]}
        choose = choices[evaluate] if isinstance(evaluate, str) else evaluate
        shown = [list(choose(language)) for _, _, language in jobs]
        unknown = sorted({label for labels in shown for label in labels} - set(self.clean))
        if unknown:
            raise KeyError(f"no text for {unknown} to measure on; the corpora have {list(self.clean)}.")
        width = cache(partial(models.site_width, self.model))
        is_exact = cache(partial(forward.lean_is_exact, self.model))
        change = cache(lambda language: action if isinstance(action, Action) else action(language))
        rises, rows = {}, []
        bar = tqdm(zip(jobs, shown, strict=True), total=len(jobs), desc="losses", disable=not progress)
        for (name, each, language), labels in bar:
            what = change(language)
            hooks = intervention_hooks(self.model, each[language], what, width)
            some = len(each[language])  # without units nothing changes: no pass is needed to know it
            losses = _losses(self.model, self.batches, hooks, labels, is_exact) if some else self.clean
            rows += [self._row(name, what.name, language, label, len(each[language]), losses) for label in labels]
            rises |= {(name, language, label): losses[label] - self.clean[label] for label in labels}
        table = pd.concat([self.unchanged, pd.DataFrame(rows)], ignore_index=True) if rows else self.unchanged.copy()
        table.attrs = self.unchanged.attrs
        return Measured(table, rises, self.tokens)

    def _row(self, name: str, action: str, off: str, on: str, neurons: int, losses: Losses) -> dict[str, Any]:
        clean = self.unchanged.set_index("evaluated").loc[on]
        # the change is summed by itself: a difference of two means of many tokens has fewer digits
        change = float((losses[on] - self.clean[on]).sum() / self.tokens[on].sum()) if len(losses[on]) else math.nan
        nll, bits = float(clean["nll"]) + change, self.bits_per_nat[on]
        values = {"nll": nll, "perplexity": _exp(nll), "bits_per_byte": nll * bits}
        changes = {
            "nll_change": change,
            "perplexity_change": values["perplexity"] - float(clean["perplexity"]),
            "bits_per_byte_change": change * bits,
        }
        labels = {"set": name, "action": action, "intervened": off, "evaluated": on, "neurons": neurons}
        return {**labels, **values, **changes}

    @property
    def bits_per_nat(self) -> dict[str, float]:
        """By language, bits per byte for each nat per token: what tokens and bytes of this text make of it."""
        rows = self.unchanged.set_index("evaluated")
        return (rows["bits_per_byte"] / rows["nll"]).to_dict()


def held_out(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    layout: Layout | None = None,
    *,
    progress: bool = True,
) -> HeldOut:
    """Tokenise the `hold_out` text of all languages and measure the unchanged model on it.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on.
        layout: How text becomes batches; packed blocks by default.
        progress: Show progress bars.
    """
    layout = layout or Layout()
    unchanged = perplexity_table(model, corpora, {}, layout=layout, progress=progress)
    unchanged = unchanged.loc[unchanged["intervened"].eq(NONE)]
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        plan = _plan(model, corpora, Path(folder), layout, progress)
        read = [batch for shard in plan.shards for batch in plan.batches(shard)]
        places = [_documents(plan, model, batch) for batch in read]
    batches, tokens = [], {}
    for label in corpora:
        mine = [number for number, batch in enumerate(read) if batch.language == label]
        every = torch.cat([places[number].flatten() for number in mine])
        names, counts = every[every >= 0].unique(return_counts=True)
        tokens[label] = counts.double().numpy()
        for number in mine:  # places among the documents that are scored
            rank = torch.searchsorted(names, places[number])
            batches.append((read[number], rank.where(places[number] >= 0, -1)))
    is_exact = cache(partial(forward.lean_is_exact, model))
    clean = _losses(model, batches, [], list(corpora), is_exact)
    return HeldOut(model, tuple(batches), clean, tokens, unchanged)


def _documents(plan: Plan, model: models.Model, batch: Batch) -> Tensor:
    """The document of each token that is predicted; -1 for what is not scored."""
    separator = separator_id(model.tokenizer, plan.layout.separator)
    rows = torch.tensor(list(batch.rows))[:, None]
    if plan.layout.kind == "documents":
        documents = rows.expand_as(batch.ids)
    else:
        positions = rows * batch.ids.shape[1] + torch.arange(batch.ids.shape[1])
        ends = torch.as_tensor(plan.tokens[batch.language].ends)
        documents = torch.searchsorted(ends, positions, right=True)
    scored = batch.keep if separator is None else batch.keep & (batch.ids != separator)
    return documents.where(scored, -1)[:, 1:]


@torch.no_grad()
def _losses(
    model: models.Model,
    batches: Iterable[tuple[Batch, Tensor]],
    hooks: Hooks,
    labels: list[str],
    is_exact: Callable[[tuple[str, ...]], bool],
) -> Losses:
    """Summed loss (nats) of each document of the languages named."""
    device = models.device_of(model)
    names = tuple(name for name, _ in hooks)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {label: [] for label in labels}
    with forward.lean(model, names) if is_exact(names) else contextlib.nullcontext(), model.hooks(fwd_hooks=hooks):
        for batch, places in batches:
            if batch.language not in parts:
                continue
            mask = batch.keep.to(device, torch.long) if batch.padded else None
            logits = forward.logits(model, batch.ids.to(device), mask)
            losses = token_losses(logits[:, :-1], batch.ids[:, 1:].to(device)).double().cpu()
            parts[batch.language].append((losses[places >= 0], places[places >= 0]))
    return {label: _summed(each) for label, each in parts.items()}


def _summed(parts: list[tuple[Tensor, Tensor]]) -> Float[np.ndarray, "document"]:
    losses, places = (torch.cat(each) for each in zip(*parts, strict=True))
    return torch.bincount(places, weights=losses).numpy()


def _exp(nll: float) -> float:
    """Infinite where a broken model's loss is beyond what a float can hold."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
