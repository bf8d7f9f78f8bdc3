"""Held-out text and the unchanged model's losses on it, made once and measured on many times, document by document."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.evaluation.perplexity import NONE, _plan, perplexity_table
from lsn_lens.evaluation.scored import perplexity_of, scored_tokens, token_losses
from lsn_lens.interventions.actions import Action, zero
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.hooks import describe_hooks
from lsn_lens.model.structure import Model
from lsn_lens.neurons import NeuronSet
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Batch, Layout, Plan
from lsn_lens.text.tokens import separator_id

Hooks = list[tuple[str, Any]]
PerDocument = Float[np.ndarray, "_"]  # one value for each document of a language, each language with its own number
Losses = dict[str, PerDocument]  # by language, nats summed over a document's scored tokens


@dataclass(frozen=True, eq=False)
class Measured:
    """What interventions do to the losses of held-out text.

    Attributes:
        table: As `perplexity_table` gives it, the rows without intervention first.
        rises: By set, intervened and evaluated language, the rise of each document's summed loss (nats).
        tokens: By language, the scored tokens of each of its documents.
    """

    table: pd.DataFrame
    rises: Mapping[tuple[str, str, str], PerDocument]
    tokens: Mapping[str, PerDocument]


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
        batch_tokens: About how many tokens go through the model at once.
        in_force: The hooks that were on the model, see `hooks.describe_hooks`.
    """

    model: Model
    batches: tuple[tuple[Batch, Tensor], ...]
    clean: Losses
    tokens: Mapping[str, PerDocument]
    unchanged: pd.DataFrame
    batch_tokens: int
    in_force: Mapping[str, Any] = field(default_factory=dict)

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

        Raises:
            ValueError: Other hooks are on the model than when the unchanged model was measured.
        """
        check_model(self.model)
        now = describe_hooks(self.model)
        if now != dict(self.in_force):
            raise ValueError(
                f"the unchanged model was measured with hooks on {list(self.in_force) or 'nothing'}, now they are on "
                f"{list(now) or 'nothing'}: call held_out again, or measure under the hooks that it was called under."
            )
        named = {"": sets} if isinstance(sets, NeuronSet) else dict(sets)
        jobs = [_Job(name, language, each[language]) for name, each in named.items() for language in each.languages]
        choices: dict[str, Callable[[str], Iterable[str]]] = {"all": lambda _: self.clean, "own": lambda own: [own]}
        choose = choices[evaluate] if isinstance(evaluate, str) else evaluate
        shown = [tuple(choose(job.language)) for job in jobs]
        unknown = sorted({label for labels in shown for label in labels} - set(self.clean))
        if unknown:
            raise KeyError(f"no text for {unknown} to measure on; the corpora have {list(self.clean)}.")
        change = {each: action_for(action, each) for each in {job.language for job in jobs}}
        losses = self._under(jobs, shown, change, progress)
        clean: dict[Any, dict[str, Any]] = self.unchanged.set_index("evaluated").to_dict("index")
        rates = self.bits_per_nat
        rows, rises = [], {}
        for job, labels, each in zip(jobs, shown, losses, strict=True):
            head = {"set": job.name, "action": change[job.language].name, "intervened": job.language}
            for label in labels:
                rise = each[label] - self.clean[label]
                rises[job.name, job.language, label] = rise
                change_of_mean = float(rise.sum() / self.tokens[label].sum())
                values = _values(clean[label], change_of_mean, rates[label])
                rows.append({**head, "evaluated": label, "neurons": len(job.units), **values})
        table = pd.concat([self.unchanged, pd.DataFrame(rows)], ignore_index=True) if rows else self.unchanged.copy()
        table.attrs = self.unchanged.attrs
        return Measured(table, rises, self.tokens)

    def _under(
        self, jobs: list["_Job"], shown: list[tuple[str, ...]], change: Mapping[str, Action], progress: bool
    ) -> list[Losses]:
        """The losses under each job; several go through the model side by side where a batch leaves room."""
        losses = [self.clean] * len(jobs)  # without units nothing changes: no pass is needed to know it
        width = cache(partial(structure.site_width, self.model))
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, (job, labels) in enumerate(zip(jobs, shown, strict=True)):
            if len(job.units):
                groups.setdefault(labels, []).append(place)
        hooks = {
            place: intervention_hooks(self.model, jobs[place].units, change[jobs[place].language], width)
            for places in groups.values() for place in places
        }  # fmt: skip
        names = tuple(dict.fromkeys(name for each in hooks.values() for name, _ in each))
        with _lean(self.model, names), tqdm(total=len(hooks), desc="losses", disable=not progress) as bar:
            for labels, places in groups.items():
                mine = [(batch, at) for batch, at in self.batches if batch.language in labels]
                together = max(1, self.batch_tokens // max(batch.ids.numel() for batch, _ in mine))
                for part in (places[first : first + together] for first in range(0, len(places), together)):
                    found = _losses(self.model, mine, [hooks[place] for place in part])
                    for place, each in zip(part, found, strict=True):
                        losses[place] = each
                    bar.update(len(part))
        return losses

    @property
    def bits_per_nat(self) -> dict[str, float]:
        """By language, bits per byte for each nat per token: what tokens and bytes of this text make of it."""
        rows = self.unchanged.set_index("evaluated")
        return (rows["tokens"] / rows["bytes"] / math.log(2)).to_dict()


@dataclass(frozen=True)
class _Job:
    """One language's units of one set."""

    name: str
    language: str
    units: NeuronSet


def held_out(
    model: Model,
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
    check_model(model)
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
            rank = torch.searchsorted(names, places[number].contiguous())
            batches.append((read[number], rank.where(places[number] >= 0, -1)))
    with _lean(model, ()):
        (clean,) = _losses(model, batches, [[]])
    return HeldOut(model, tuple(batches), clean, tokens, unchanged, plan.layout.batch_tokens, describe_hooks(model))


def _documents(plan: Plan, model: Model, batch: Batch) -> Tensor:
    """The document of each token that is predicted; -1 for what is not scored."""
    separator = separator_id(model.tokenizer, plan.layout.separator)
    rows = torch.tensor(list(batch.rows))[:, None]
    if plan.layout.kind == "documents":
        documents = rows.expand_as(batch.ids)
    else:
        positions = rows * batch.ids.shape[1] + torch.arange(batch.ids.shape[1])
        ends = torch.as_tensor(plan.tokens[batch.language].ends)
        documents = torch.searchsorted(ends, positions, right=True)
    return documents[:, 1:].where(scored_tokens(batch, separator), -1)


def _lean(model: Model, names: tuple[str, ...]) -> Any:
    return forward.lean(model, names) if forward.lean_is_exact(model, names) else contextlib.nullcontext()


@torch.no_grad()
def _losses(model: Model, batches: Sequence[tuple[Batch, Tensor]], hooks: Sequence[Hooks]) -> list[Losses]:
    """Summed loss (nats) of each document under each of several hooks, which work on copies of a batch side by side."""
    device, copies = structure.device_of(model), len(hooks)
    parts: list[dict[str, list[tuple[Tensor, Tensor]]]] = [{} for _ in hooks]
    with model.hooks(fwd_hooks=_side_by_side(hooks)):
        for batch, places in batches:
            ids = batch.ids.repeat(copies, 1).to(device)
            mask = batch.keep.repeat(copies, 1).to(device, torch.long) if batch.padded else None
            losses = token_losses(forward.logits(model, ids, mask)[:, :-1], ids[:, 1:]).double().cpu()
            scored = places >= 0
            for part, each in zip(parts, losses.chunk(copies), strict=True):
                part.setdefault(batch.language, []).append((each[scored], places[scored]))
    return [{label: _summed(each) for label, each in part.items()} for part in parts]


def _side_by_side(hooks: Sequence[Hooks]) -> Hooks:
    """For each name one hook, which does to each copy of the rows what its own hooks do."""
    names = dict.fromkeys(name for each in hooks for name, _ in each)
    return [(name, partial(_in_parts, [[f for at, f in each if at == name] for each in hooks])) for name in names]


def _in_parts(functions: Sequence[Sequence[Any]], acts: Tensor, hook: Any) -> Tensor:
    return torch.cat(
        [_applied(own, part, hook) for own, part in zip(functions, acts.chunk(len(functions)), strict=True)]
    )


def _applied(functions: Sequence[Any], acts: Tensor, hook: Any) -> Tensor:
    for function in functions:
        changed = function(acts, hook=hook)
        acts = acts if changed is None else changed
    return acts


def _values(clean: Mapping[str, Any], change: float, rate: float) -> dict[str, float]:
    """A loss and its change in each unit, from the change in nats; a difference of two long means has fewer digits."""
    nll = clean["nll"] + change
    values = {"nll": nll, "perplexity": perplexity_of(nll), "bits_per_byte": nll * rate}
    perplexity_change = values["perplexity"] - clean["perplexity"]
    changes = {"nll": change, "perplexity": perplexity_change, "bits_per_byte": change * rate}
    relative = {name: value / clean[name] if clean[name] else math.nan for name, value in changes.items()}
    return {
        **values,
        **{f"{name}_change": value for name, value in changes.items()},
        **{f"{name}_relative_change": value for name, value in relative.items()},
        "tokens": clean["tokens"],
        "bytes": clean["bytes"],
    }


def _summed(parts: list[tuple[Tensor, Tensor]]) -> PerDocument:
    losses, places = (torch.cat(each) for each in zip(*parts, strict=True))
    return torch.bincount(places, weights=losses).numpy()
