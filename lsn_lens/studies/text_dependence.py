"""The study of text: how sets change with the amount of text, its spelling and its domain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from lsn_lens.bars import step
from lsn_lens.collection.collecting import collect
from lsn_lens.controls.matched import matched_draws
from lsn_lens.controls.redetection import survival
from lsn_lens.controls.resampling import halves, load_shards, rearranged
from lsn_lens.controls.stability import across
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.effects import control_name
from lsn_lens.evaluation.perplexity import perplexity_table
from lsn_lens.interventions.values import other_mean_ablation
from lsn_lens.methods.catalogue import get_method
from lsn_lens.methods.detecting import detect
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import TOKENS
from lsn_lens.studies.pages.text_dependence import page as text_dependence_page
from lsn_lens.studies.settings.text_dependence import TextDependenceSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

OVERLAP = ["jaccard", "expected_jaccard", "corrected_jaccard"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TextDependenceStudy(Study):
    """The result of `text_dependence_study`.

    Its tables: "amounts", one row per method, amount and language: `tokens` of a sample, `samples`, `units`, the
    overlap of disjoint samples as in `across` (means over pairs), and `shared_with_all`, the share of a sample's units
    that the whole text gives too (the sample is part of that text); "spelling" (`survival`); "domains", one row per
    method, pair of domains and language, with the overlap of the first halves of two domains, and of the two halves of
    one domain; "domain_losses", one row per method, domain of the units, domain of the losses and language, with the
    columns of `verdict.rises`. A table is missing where nothing was asked for it.
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(text_dependence_page)


def text_dependence_run(
    model: Model,
    corpora: Any,
    settings: TextDependenceSettings | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect the largest amount of text, in shards of about the smallest amount.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages.
        settings: Settings of the study.
        out: Folder of finished shards; an interrupted run continues from it.
        progress: Show a progress bar.

    Raises:
        ValueError: The errors of `collect`.
    """
    check_model(model)
    settings = settings or TextDependenceSettings()
    largest = max(settings.amounts)
    layout = Layout("auto", max_tokens=largest, shards=max(2, largest // min(settings.amounts)))
    return collect(model, corpora, settings.methods, out, layout=layout, progress=progress)


def text_dependence_study(
    model: Model,
    corpora: Any,
    settings: TextDependenceSettings | None = None,
    run: Run | None = None,
    *,
    domains: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TextDependenceStudy:
    """Find units on more and less text, on changed spelling and on text of other domains.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: At least two languages.
        settings: Settings of the study.
        run: Result of `text_dependence_run`; by default it is called.
        domains: Corpora of the same languages by domain, at least two; None for no table of domains.
        progress: Show progress bars.

    Raises:
        ValueError: One domain only, domains of other languages, or the errors of `collect` and `survival`.
    """
    started, settings, corpora = now(), settings or TextDependenceSettings(), as_corpora(corpora)
    parts = _domains(domains, corpora)
    if run is None:
        run = text_dependence_run(model, corpora, settings, progress=progress)
    tables = {"amounts": amounts_table(run, settings)}
    if settings.spelling_tokens:
        step("changed spelling")
        layout = Layout("auto", max_tokens=settings.spelling_tokens, shards=2)
        tables["spelling"] = survival(model, corpora, settings.methods, layout=layout, progress=progress)
    found: dict[str, NeuronSet] = {name: detect(run, name) for name in settings.methods}
    measured: Mapping[str, Any] = {}
    if parts:
        layout = Layout("auto", max_tokens=settings.domain_tokens, shards=8)
        step("domains")
        runs = {
            name: collect(model, each, settings.methods, layout=layout, progress=progress)
            for name, each in parts.items()
        }
        tables["domains"] = domains_table(runs, settings.methods)
        if settings.evaluation_tokens:
            step("losses by domain")
            layout = Layout("auto", max_tokens=settings.evaluation_tokens)
            texts = {name: held_out(model, each, layout, progress=progress) for name, each in parts.items()}
            tables["domain_losses"] = domain_losses(texts, runs, settings, progress=progress)
            measured = next(iter(texts.values())).plan.describe()
    return TextDependenceStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=measured, found=found, started=started
    )


def amounts_table(run: Run, settings: TextDependenceSettings) -> pd.DataFrame:
    """The table "amounts" of `TextDependenceStudy`, from a run's shards."""
    rows = []
    for name in settings.methods:
        method = get_method(name)
        small = load_shards(run, [method])
        whole = detect(small, method)
        for amount in sorted(settings.amounts):
            samples = [rearranged(small, draw) for draw in _samples(small, amount, settings.samples)]
            sets = [detect(each, method) for each in samples]
            rows += _amount_rows({"method": name, "amount": amount}, samples, sets, whole)
    return pd.DataFrame(rows)


def domains_table(runs: Mapping[str, Run], methods: tuple[str, ...]) -> pd.DataFrame:
    """The table "domains" of `TextDependenceStudy`: units of two domains, beside those of two halves of one."""
    rows = []
    for name in methods:
        sets = {label: [detect(half, name) for half in halves(run)] for label, run in runs.items()}
        for one, other in product(sets, sets):
            if list(sets).index(one) <= list(sets).index(other):
                pair = {"one": sets[one][0], "two": sets[other][one == other]}
                table = across(pair).drop(columns=["set", "other"])
                rows.append(table.assign(method=name, found_on=one, again_on=other))
    table: Any = pd.concat(rows, ignore_index=True)
    return table[["method", "found_on", "again_on", "language", "units", "other_units", *OVERLAP]]


def domain_losses(
    texts: Mapping[str, HeldOut], runs: Mapping[str, Run], settings: TextDependenceSettings, *, progress: bool = True
) -> pd.DataFrame:
    """The table "domain_losses" of `TextDependenceStudy`: units of one domain, losses on another."""
    rows = []
    for name, (found_on, run) in product(settings.methods, runs.items()):
        found, action = detect(run, name), other_mean_ablation(run.statistics)
        draws = matched_draws(found, settings.seeds, run.statistics).sets
        controls = {control_name(name, seed): each for seed, each in draws.items()}
        for measured_on, text in texts.items():
            shared: dict[str, Any] = {"action": action, "text": text, "progress": progress}
            table = perplexity_table(text.model, text.corpora, found, **shared)
            random = perplexity_table(text.model, text.corpora, controls, evaluate="own", **shared)
            for language in found.languages:
                own = table.loc[table["intervened"].eq(language)]
                drawn = random.loc[random["intervened"].eq(language)]
                row = {"method": name, "found_on": found_on, "measured_on": measured_on, "language": language}
                rows.append(row | {"units": len(found[language])} | verdict.rises(own, language, drawn))
    return pd.DataFrame(rows)


def _domains(domains: Mapping[str, Any] | None, corpora: Mapping[str, Any]) -> dict[str, Any]:
    """The domains' corpora, checked."""
    if domains is None:
        return {}
    if len(domains) < 2:
        raise ValueError(f"domains={list(domains)}: expected at least two, to compare them.")
    parts = {name: as_corpora(each) for name, each in domains.items()}
    wrong = {name: list(each) for name, each in parts.items() if list(each) != list(corpora)}
    if wrong:
        raise ValueError(f"domains with the languages {wrong}: expected {list(corpora)} in each, in this order.")
    return parts


def _samples(run: Run, amount: int, most: int) -> list[dict[str, list[tuple[str, int]]]]:
    """Disjoint samples of consecutive shards with about this many tokens in each language; all shards if too few."""
    counts = {label: [_tokens(shard) for shard in shards] for label, shards in run.shards.items()}
    cuts = {label: _cuts(np.cumsum(each), amount) for label, each in counts.items()}
    samples = min(most, *(len(each) - 1 for each in cuts.values()))
    return [
        {label: [(label, place) for place in range(cut[index], cut[index + 1])] for label, cut in cuts.items()}
        for index in range(samples)
    ]


def _cuts(tokens: np.ndarray, amount: int) -> list[int]:
    """Where samples begin and end, in shards: the number of shards nearest to each multiple of the amount."""
    multiples = range(1, max(1, round(tokens[-1] / amount)) + 1)
    cuts = [0, *(int(np.abs(tokens - amount * each).argmin()) + 1 for each in multiples)]
    return sorted(set(cuts))


def _tokens(shard: Any) -> int:
    return int(shard[TOKENS].max())


def _amount_rows(row: Mapping[str, Any], samples: list[Run], sets: list[NeuronSet], whole: NeuronSet) -> list[dict]:
    """One row per language: means over samples, and over pairs of neighbouring samples."""
    pairs = [across({"one": one, "two": two}) for one, two in pairwise(sets)]
    overlaps = pd.concat(pairs) if pairs else pd.DataFrame(columns=["language", *OVERLAP], dtype=float)
    rows = []
    for place, language in enumerate(whole.languages):
        units = [len(each[language]) for each in sets]
        kept = [len(each[language] & whole[language]) / count for each, count in zip(sets, units, strict=True) if count]
        tokens = [int(each.statistics.tokens[place].max()) for each in samples]
        own = overlaps.loc[overlaps["language"].eq(language), OVERLAP].mean()
        found = {"language": language, "tokens": np.mean(tokens), "samples": len(sets), "units": np.mean(units)}
        rows.append({**row, **found, **own, "shared_with_all": np.mean(kept) if kept else np.nan})
    return rows
