"""The study of fine-tuning: a language's neurons alone, random neurons, LoRA and all weights, on the same documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from lsn_lens.applications.finetuning.bench import Bench, Corpora
from lsn_lens.applications.finetuning.lora import Lora, check_peft
from lsn_lens.applications.finetuning.places import entries_of
from lsn_lens.applications.finetuning.settings import Training
from lsn_lens.applications.finetuning.tables import LORA, RANDOM, against_random, summary_of
from lsn_lens.applications.finetuning.training import Diverged
from lsn_lens.applications.finetuning.tuning import FULL
from lsn_lens.bars import tqdm
from lsn_lens.collection.collecting import collect
from lsn_lens.comparison.ranked import available, first_units, rankings
from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation.stages import split_hold_out
from lsn_lens.evaluation.verdict import FEW_NEURONS
from lsn_lens.methods.catalogue import named
from lsn_lens.methods.detecting import score
from lsn_lens.model.entry import check_plain
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.studies.pages.finetuning import page as finetuning_page
from lsn_lens.studies.settings.finetuning import FinetuningSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora, load_corpora
from lsn_lens.text.plan import Layout

Arm = Callable[[int], Any]  # from a seed to what `finetune` trains


@dataclass(frozen=True, eq=False, kw_only=True)
class FinetuningStudy(Study):
    """The result of `finetuning_study`: losses before and after each training.

    Its tables: "losses", one row per training and text: `trained` (the language), `kind` (method, "random", "lora" or
    "full"), `documents`, `seed`, `parameters` (trained), `learning_rate`, `evaluated`, `text` ("own", "other" or
    "neutral"), `before`, `after`, `change` (nats per token) and `change_bits_per_byte`; "summary", one row per
    language, kind and number of documents: `own`, `others` (mean over the other languages), `neutral` and `worst` (of
    another language), each the mean change over seeds with Student's 95 % interval (`_low`, `_high`);
    "against_random", the same rows: `own` and `others` minus those of random neurons, seed by seed, with intervals at
    95 % for all rows together (Bonferroni); "rates", the losses from which learning rates were chosen; "neurons" and
    "text".
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(finetuning_page)


def finetuning_run(
    model: Model,
    corpora: Any,
    settings: FinetuningSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect the statistics for `finetuning_study`, after all checks of its arguments.

    Args:
        model: A TransformerBridge.
        corpora: At least two languages; `find` to find units and to train on. Documents longer than the context are
            left out for finding units, as methods that score documents need them whole.
        settings: Settings of the study.
        out: Folder of finished shards; an interrupted run continues from it.
        progress: Show a progress bar.

    Raises:
        DoesNotApply: A HookedTransformer.
        ImportError: LoRA without the extra `lora`.
        KeyError: A language to train without text.
        ValueError: Fewer documents than asked for, or as `collect`.
    """
    settings, corpora = settings or FinetuningSettings(), as_corpora(corpora)
    check_plain(model)
    check_peft()
    for language in _languages(settings, corpora):
        most = max(*settings.documents, settings.rate_documents)
        if (count := len(corpora[language].find)) < most:
            raise ValueError(f"{language}: {count} documents to train on, {most} asked for. Give more text.")
    layout, short = Layout("auto", max_tokens=settings.max_tokens), _within_context(model, corpora)
    methods = [*named(settings.methods, settings.parameters).values()]
    return collect(model, short, methods, out, layout=layout, progress=progress)


def finetuning_study(
    model: Model,
    corpora: Any,
    settings: FinetuningSettings | None = None,
    run: Run | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> FinetuningStudy:
    """Train each language's neurons, and the baselines, on the same documents, and measure all languages.

    Args:
        model: A TransformerBridge.
        corpora: At least two languages. Learning rates are chosen on every second hold-out document, and losses
            reported on the others.
        settings: Settings of the study.
        run: Result of `finetuning_run`; by default it is called.
        out: Folder of the losses of finished trainings; an interrupted study continues from it.
        progress: Show progress bars.

    Raises:
        Diverged: At every learning rate.
        ValueError: The errors of `finetuning_run`.
    """
    started, settings, corpora = now(), settings or FinetuningSettings(), as_corpora(corpora)
    run = finetuning_run(model, corpora, settings, progress=progress) if run is None else run
    languages = _languages(settings, corpora)
    found = _equal_sets(model, run, settings, languages)
    training = Training(
        1.0, settings.epochs, settings.batch, length=settings.length, weight_decay=settings.weight_decay
    )  # fmt: skip
    folder = None if out is None else Path(out)
    bench = Bench(model, *split_hold_out(corpora), training, settings.evaluation_tokens, folder)
    arms = {language: _arms(model, run, found, settings, language) for language in languages}
    rates, tried = _rates(bench, arms[languages[0]], languages[0], settings, progress)
    rows = []
    jobs = [
        (language, kind, documents, seed)
        for language in languages
        for documents in settings.documents
        for seed in range(settings.seeds)
        for kind in arms[language]
    ]
    for language, kind, documents, seed in tqdm(jobs, desc="trainings", disable=not progress):
        told = {"trained": language, "kind": kind, "documents": documents, "seed": seed, "learning_rate": rates[kind]}
        made = bench.losses(arms[language][kind](seed), language, documents, rates[kind], seed)
        rows += [{**told, **row} for row in made]
    losses = pd.DataFrame(rows)
    tables = {"summary": summary_of(losses), "against_random": against_random(losses), "losses": losses, "rates": tried}
    tables |= {"neurons": pd.concat([each.to_frame().assign(method=name) for name, each in found.items()])}
    tables |= {"text": run.to_frame().reset_index()}
    return FinetuningStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=bench.measured, found=found,
        started=started,
    )  # fmt: skip


def _languages(settings: FinetuningSettings, corpora: Corpora) -> list[str]:
    """The languages to train.

    Raises:
        KeyError: One without text.
    """
    wanted = list(settings.train or corpora)
    if missing := [each for each in wanted if each not in corpora]:
        raise KeyError(f"no text for {missing}; the corpora have {list(corpora)}.")
    return wanted


def _within_context(model: Model, corpora: Corpora) -> Corpora:
    """The corpora without documents that the model cannot read at once."""
    kept = {}
    for label, corpus in corpora.items():
        texts = list(corpus.find)
        sizes = map(len, model.tokenizer(texts, add_special_tokens=False)["input_ids"])
        short = [text for text, size in zip(texts, sizes, strict=True) if size < model.cfg.n_ctx]
        kept[label] = replace(corpus, find=load_corpora({label: short}, hold_out=0.0)[label].find)
    return kept


def _equal_sets(model: Model, run: Run, settings: FinetuningSettings, languages: Sequence[str]) -> dict[str, NeuronSet]:
    """The first neurons of each method, as many for all."""
    methods = named(settings.methods, settings.parameters)
    ranked = rankings(methods, {name: score(run, each) for name, each in methods.items()}, {})
    if lacking := [name for name in methods if (name, "mlp") not in ranked]:
        raise ValueError(f"{lacking} do not rank MLP neurons: leave them out of methods=.")
    asked = max(1, round(settings.units * model.cfg.n_layers * model.cfg.d_mlp))
    counts = {(name, label): available(ranked[name, "mlp"])[label] for name in methods for label in languages}
    if few := {f"{name}, {label}": count for (name, label), count in counts.items() if count < FEW_NEURONS}:
        raise ValueError(
            f"too few MLP neurons to train: {few}, expected {FEW_NEURONS} or more. Leave the method out, or give it "
            "other parameters."
        )
    sets = {name: first_units(ranked[name, "mlp"], min(asked, *counts.values())) for name in methods}
    return {name: each[languages] for name, each in sets.items() if each is not None}


def _arms(
    model: Model, run: Run, found: Mapping[str, NeuronSet], settings: FinetuningSettings, language: str
) -> dict[str, Arm]:
    """Kind -> what is trained, by seed."""
    first = next(iter(found.values()))[language]
    draws = matched_draws(first, settings.seeds, run.statistics).sets
    size = sum(map(len, entries_of(model, first).values()))
    sets: dict[str, Arm] = {name: (lambda _, own=each[language]: own) for name, each in found.items()}
    return sets | {RANDOM: lambda seed: draws[seed], LORA: lambda _: Lora(size), FULL: lambda _: FULL}


def _rates(
    bench: Bench, arms: Mapping[str, Arm], language: str, settings: FinetuningSettings, progress: bool
) -> tuple[dict[str, float], pd.DataFrame]:
    """The learning rate of each kind, and the losses that chose it."""
    rates, documents = settings.rates, settings.rate_documents
    if len(rates) == 1:
        return dict.fromkeys(arms, rates[0]), pd.DataFrame(columns=["kind", "learning_rate", "loss"])
    jobs = [(kind, rate) for kind in arms for rate in rates]
    rows = [
        {"kind": kind, "learning_rate": rate, "loss": bench.choice_loss(arms[kind](0), language, documents, rate)}
        for kind, rate in tqdm(jobs, desc="learning rates", disable=not progress)
    ]
    table = pd.DataFrame(rows)
    if lost := [str(kind) for kind, each in table.groupby("kind") if not np.isfinite(each["loss"]).any()]:
        raise Diverged(f"{lost} diverged at every learning rate of {list(rates)}: give lower ones.")
    best = table.loc[table.groupby("kind")["loss"].idxmin()].set_index("kind")["learning_rate"]
    return {kind: float(best[kind]) for kind in arms}, table
