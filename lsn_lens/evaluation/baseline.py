"""Hold-out text and the unchanged model's losses on it, computed once for many measurements, by document.

Every function that measures hold-out text builds a `HeldOut` from `model`, `corpora` and `layout`. Each function also
takes a `HeldOut` as `text=`: then nothing is tokenised, and the unchanged model is not measured again.
"""

import math
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.bars import tqdm
from lsn_lens.evaluation import scored
from lsn_lens.evaluation.jobs import NONE, Evaluate, Job, jobs_for, jobs_of
from lsn_lens.evaluation.scored import Losses, PerDocument, Scored, document_losses, measures
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.interventions.words import Choice
from lsn_lens.model import forward, resuming, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.hooks import describe_hooks
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import fingerprint
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import check_kind
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.plan import Layout, Plan, layout_of
from lsn_lens.text.tokens import separator_id, tokenize
from lsn_lens.workers import Report, mapped, shares


@dataclass(frozen=True, eq=False)
class Measured:
    """Losses of hold-out text under interventions.

    Attributes:
        table: The table of `perplexity_table`, rows without intervention first.
        rises: By set, intervened and evaluated language, the increase of each document's summed loss (nats).
        tokens: By language, the scored tokens of each of its documents.
    """

    table: pd.DataFrame
    rises: Mapping[tuple[str, str, str], PerDocument]
    tokens: Mapping[str, PerDocument]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Hold-out text of all languages in batches, and the unchanged model's losses; from `held_out`.

    Only documents with a scored token are included; in packed blocks a token counts for its document. The temporary
    files with the tokens exist as long as this object.

    Attributes:
        model: The model.
        plan: The text in batches.
        scored: By language, its documents with their scored tokens and bytes.
        clean: By language, the unchanged model's loss of each document (nats, summed over its scored tokens).
        in_force: The hooks on the model at that time, see `hooks.describe_hooks`.
        weights: The model's `fingerprint` at that time.
        corpora: The source of the text.
    """

    model: Model
    plan: Plan
    scored: Mapping[str, Scored]
    clean: Losses
    in_force: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    corpora: Mapping[str, LanguageCorpus] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = ", ".join(f"{label} {int(each.tokens.sum())}" for label, each in self.scored.items())
        return f"HeldOut(scored tokens: {counts})"

    @property
    def tokens(self) -> dict[str, PerDocument]:
        """By language, the scored tokens of each document."""
        return {label: each.tokens for label, each in self.scored.items()}

    @cached_property
    def bits_per_nat(self) -> dict[str, float]:
        """By language, bits per byte that equal one nat per token on this text."""
        sums = {label: (each.tokens.sum(), each.n_bytes.sum()) for label, each in self.scored.items()}
        return {label: float(count / n / math.log(2)) if n else math.nan for label, (count, n) in sums.items()}

    @cached_property
    def _width(self) -> Callable[[str], int]:  # the weights stay, or nothing is measured
        return cache(partial(structure.site_width, self.model))

    @cached_property
    def unchanged(self) -> pd.DataFrame:
        """The rows of `perplexity_table` without intervention."""
        nothing = Job("", NONE, NONE, 0, [], tuple(self.clean))
        table = pd.DataFrame(self._rows(nothing, self.clean))
        table.attrs["text"] = self.plan.describe()
        return table

    def measure(
        self,
        sets: NeuronSet | Mapping[str, NeuronSet],
        action: Choice = zero,
        *,
        evaluate: Evaluate = "all",
        progress: bool = True,
    ) -> Measured:
        """`perplexity_table` on this text, without tokenising or measuring the unchanged model again.

        Bits per byte are nats times the language's bits per nat on this text.

        Takes the sets, action and options of `perplexity_table`.

        Raises:
            ValueError: The model has other hooks than when the unchanged model was measured.
        """
        jobs = jobs_of(self.model, self.clean, sets, action, evaluate, self._width)
        return self.measure_jobs(jobs, progress=progress)

    def measure_jobs(self, jobs: Sequence[Job], *, progress: bool = True) -> Measured:
        """The losses under each job of `jobs_of` or `jobs_for`."""
        rows, rises = [], {}
        for job, losses in zip(jobs, self._under(jobs, progress), strict=True):
            rows += self._rows(job, losses)
            rises |= {(job.name, job.language, label): losses[label] - self.clean[label] for label in job.labels}
        table = pd.concat([self.unchanged, pd.DataFrame(rows)], ignore_index=True) if rows else self.unchanged.copy()
        table.attrs = self.unchanged.attrs
        return Measured(table, rises, self.tokens)

    def by_document(self, intervention: Intervention | None = None, *, progress: bool = True) -> pd.DataFrame:
        """The loss of each document, of the unchanged model or under an intervention; see `document_losses`."""
        jobs = [] if intervention is None else jobs_for(self.model, self.clean, [intervention])
        losses = next(iter(self._under(jobs, progress)), self.clean)
        frames = []
        for label, each in self.scored.items():
            last = int(each.documents[-1]) + 1 if len(each.documents) else 0
            count = self.plan.rows[label] if self.plan.layout.kind == "documents" else last
            columns = {"document": np.arange(count), "loss": np.full(count, np.nan)}
            columns |= {"tokens": np.zeros(count, dtype=int), "bytes": np.zeros(count)}
            for name, values in (("loss", losses[label]), ("tokens", each.tokens), ("bytes", each.n_bytes)):
                columns[name][each.documents] = values
            frames.append(pd.DataFrame({"language": label, **columns}))
        return pd.concat(frames, ignore_index=True)

    def _under(self, jobs: Sequence[Job], progress: bool) -> list[Losses]:
        """The losses under each job; several jobs share a forward pass where a batch leaves room."""
        check_model(self.model)
        now = describe_hooks(self.model)
        if now != dict(self.in_force):
            raise ValueError(
                f"the unchanged model was measured with hooks on {list(self.in_force) or 'nothing'}, now they are on "
                f"{list(now) or 'nothing'}: call held_out again, or measure under the hooks that it was called under."
            )
        if self.weights is not None and fingerprint(self.model) != self.weights:
            raise ValueError("the model's weights changed since the unchanged model was measured: call held_out again.")
        losses = [self.clean] * len(jobs)
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, job in enumerate(jobs):
            if job.hooks:
                groups.setdefault(job.labels, []).append(place)
        names = tuple(dict.fromkeys(name for job in jobs for name, _ in job.hooks))
        total = sum(len(places) * _size(self.plan, labels) for labels, places in groups.items())
        work = [(labels, some) for labels, places in groups.items() for some in self._shares(jobs, labels, places)]

        def under(some: tuple[Any, Any], report: Report) -> list[Losses]:
            every = [[jobs[place].hooks for place in part] for part in some[1]]
            return document_losses(self.model, self.plan, self.scored, some[0], every, report)

        with forward.lean_where_exact(self.model, names), _bar(total, progress) as bar:
            measured = mapped(under, work, bar.update)
        for (_, some), found in zip(work, measured, strict=True):
            for place, each in zip(chain(*some), found, strict=True):
                losses[place] = each
        return losses

    def _shares(self, jobs: Sequence[Job], labels: Sequence[str], places: Iterable[int]) -> list[Any]:
        """Each process's jobs, by place: those that share a forward pass, which begin at about the same layer."""
        widest = max(self.scored[label].widest for label in labels)
        together = max(1, scored.at_once(self.model, self.plan.layout, copies=2) // widest)
        order = sorted(places, key=lambda place: resuming.first_layer(name for name, _ in jobs[place].hooks))
        return shares([order[first : first + together] for first in range(0, len(order), together)])

    def _rows(self, job: Job, losses: Losses) -> list[dict[str, Any]]:
        """The rows of one job; all changes come from the change in nats, which keeps most digits."""
        head = {"set": job.name, "action": job.action, "intervened": job.language}
        rows = []
        for label in job.labels:
            count, rate = float(self.scored[label].tokens.sum()), self.bits_per_nat[label]
            nats, rise = self.clean[label].sum(), (losses[label] - self.clean[label]).sum()
            change = float(rise / count) if count else math.nan
            before = measures(float(nats / count) if count else math.nan, rate)
            after = measures(before["nll"] + change, rate)
            changes = {"nll": change, "perplexity": after["perplexity"] - before["perplexity"],
                       "bits_per_byte": change * rate}  # fmt: skip
            rows.append({
                **head, "evaluated": label, "units": job.units, **after,
                **{f"{name}_change": value for name, value in changes.items()},
                **{f"{name}_relative_change": value / before[name] if before[name] else math.nan
                   for name, value in changes.items()},
                "tokens": int(count), "bytes": float(self.scored[label].n_bytes.sum()),
            })  # fmt: skip
        return rows


def held_out(
    model: Model,
    corpora: Any,
    layout: Layout | None = None,
    *,
    text: HeldOut | None = None,
    progress: bool = True,
) -> HeldOut:
    """Tokenise the `hold_out` text of all languages and measure the unchanged model on it.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text to measure on, from `load_corpora`, or what it takes.
        layout: How text becomes batches; packed blocks by default.
        text: A `HeldOut` of the same model and languages, which is returned unchanged.
        progress: Show progress bars.

    Raises:
        ValueError: `text` has another model or other languages, or a layout is also given; no text.

    Warns:
        UserWarning: A language without scored tokens has NaN losses; a tokenizer that does not give the bytes of its
            tokens makes bits per byte NaN.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    if text is not None:
        return _fitting(text, model, corpora, layout)
    plan = _plan(model, corpora, layout_of(layout, Layout()), progress)
    known = scored.scored_text(plan, separator_id(model.tokenizer, plan.layout.separator))
    for label, each in known.items():
        if not len(each.tokens):
            warnings.warn(scored.nothing_scored(label, plan), stacklevel=3)
    unknown = [label for label, each in known.items() if np.isnan(each.n_bytes).any()]
    if unknown:
        warnings.warn(scored.unknown_bytes(model.tokenizer, unknown), stacklevel=3)
    with forward.lean_where_exact(model, ()), _bar(_size(plan, corpora), progress) as bar:
        (clean,) = document_losses(model, plan, known, tuple(corpora), [[[]]], bar.update)
    return HeldOut(model, plan, known, clean, describe_hooks(model), fingerprint(model), corpora)


def _fitting(text: HeldOut, model: Model, corpora: Mapping[str, LanguageCorpus], layout: Layout | None) -> HeldOut:
    check_kind("text", text, HeldOut, "hold-out text, as lsn.evaluation.held_out(model, corpora)")
    if text.model is not model or set(text.clean) != set(corpora) or layout is not None:
        raise ValueError(
            f"text= is hold-out text of {list(text.clean)}; got {'this' if text.model is model else 'another'} "
            f"model, layout={layout} and {list(corpora)}. Give the model and corpora of held_out, and no layout."
        )
    if text.corpora and not all(_same(each.hold_out, text.corpora[label].hold_out) for label, each in corpora.items()):
        raise ValueError("text= was made from other hold-out documents than these corpora have: call held_out again.")
    return text


def _same(one: Documents, other: Documents) -> bool:
    return one is other or (one.records.is_finite and other.records.is_finite and list(one) == list(other))


def _plan(model: Model, corpora: Mapping[str, LanguageCorpus], layout: Layout, progress: bool) -> Plan:
    """The text in batches; its files are removed with the plan."""
    folder = Path(tempfile.mkdtemp(prefix="lsn_lens-"))
    try:
        tokens = {
            label: tokenize(
                label, corpus.hold_out, model.tokenizer, folder, separator=layout.separator, bos=layout.bos,
                max_tokens=layout.max_tokens, d_vocab=structure.vocabulary_size(model), count_bytes=True,
                progress=progress,
            )
            for label, corpus in corpora.items()
        }  # fmt: skip
        at_once = scored.at_once(model, layout)
        border = structure.position_border(model)
        plan = Plan(tokens, replace(layout, shards=1), context=model.cfg.n_ctx, at_once=at_once, border=border)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(plan, shutil.rmtree, folder, ignore_errors=True)
    return plan


def _size(plan: Plan, labels: Collection[str]) -> int:
    """Tokens of these languages' text."""
    return sum(plan.tokens_of(shard) for shard in plan.shards if shard.language in labels)


def _bar(total: int, progress: bool) -> Any:
    return tqdm(total=total, desc="losses", unit="tok", unit_scale=True, disable=not progress)
