"""An audit of anybody's set of units: what holds of it on a model that one has."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.bars import step
from lsn_lens.collection.collecting import collect
from lsn_lens.controls.causal import measure_effects
from lsn_lens.controls.changed_text import CONTROLS
from lsn_lens.controls.matched import outlier_effects, outliers
from lsn_lens.controls.neutral import measured_neutral, off_target
from lsn_lens.controls.redetection import survival
from lsn_lens.evaluation import effects as summaries
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import jobs_of
from lsn_lens.interventions.words import action_of
from lsn_lens.methods.base import Method
from lsn_lens.methods.catalogue import METHODS, get_method
from lsn_lens.methods.detecting import detect
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.exchange import method_parts
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.refusal import DoesNotApply, check_kind
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.statistics.needs import Statistic
from lsn_lens.studies.claims import claims, responses
from lsn_lens.studies.pages.audit import page as audit_page
from lsn_lens.studies.set_effects import set_effects
from lsn_lens.studies.settings.audit import AuditSettings, EffectSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

Sets = NeuronSet | Mapping[str, NeuronSet]
CLASSES = {each.__name__: each for each in METHODS.values()}


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditStudy(Study):
    """The result of `audit`.

    Its tables, each with a column `set`: "claims" (what holds of each set, in words: `verdict`, `words`), "effects"
    (one row per language: as `Comparison.effects_by_language`, with `percentile`, the share of random sets that hurt
    the language less, and `warnings`), "losses" (`perplexity_table`), "random" and "random_points" (the matched random
    sets), "activity" (units most active in their own language), "outliers", "off_target", "survival" (where a method
    can find again), "domains" (where other text is given), "neurons", "text", and "skipped" (checks that do not apply,
    with reasons).
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(audit_page)


def audit_run(
    model: Model,
    corpora: Any,
    sets: Sets,
    settings: EffectSettings | None = None,
    method: str | Method | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Run:
    """Collect what `audit` needs of the `find` text: activities of the units, and the method's statistics.

    Arguments and errors are those of `audit`; `out` is a folder for finished shards.
    """
    check_model(model)
    corpora, settings = as_corpora(corpora), settings or EffectSettings()
    named = _named(model, corpora, sets)
    again = _method(named, method)
    bases = dict.fromkeys(basis for each in named.values() for basis in each.masks)
    layout = Layout("auto", settings.length, settings.separator, settings.max_tokens)
    extra = [Statistic(WRITE_SITE[basis], "squares") for basis in bases]
    simple = "lape" if "mlp" in bases else "diffmean"  # which every model can have, a mixture of experts too
    return collect(model, corpora, [again or simple], out, layout=layout, extra=extra, progress=progress)


def audit(
    sets: Sets,
    model: Model,
    corpora: Any,
    settings: AuditSettings | None = None,
    *,
    method: str | Method | None = None,
    domains: Mapping[str, Any] | None = None,
    run: Run | None = None,
    progress: bool = True,
) -> AuditStudy:
    """What holds of a set of units, whoever found it: effects, random sets, side effects, changed text, in words.

    Args:
        sets: One set, or several by name, such as from `import_set`.
        model: A HookedTransformer or TransformerBridge.
        corpora: Text of the sets' languages, and at least one more language to compare with: losses use the hold-out
            part, activities the other part.
        settings: Settings of the audit.
        method: The method that found the units, to find units again on changed text; by default the set's own, where it
            is one of `METHODS`. Without one, survival is not tested.
        domains: Further text by name, each like `corpora`; its hold-out part is measured.
        run: Result of `audit_run`; by default it is called.
        progress: Show progress bars.

    Raises:
        ValueError: No set; sets of another model, other weights or another shape; text of one language.
        KeyError: A language of a set without text, or a basis that no intervention can write to.
    """
    started, settings = now(), settings or AuditSettings()
    check_model(model)
    corpora = as_corpora(corpora)
    named, elsewhere = _named(model, corpora, sets), {name: as_corpora(each) for name, each in (domains or {}).items()}
    again = _method(named, method)
    run = audit_run(model, corpora, sets, settings, method, progress=progress) if run is None else run
    layout = Layout(length=settings.length, separator=settings.separator, max_tokens=settings.evaluation_tokens)
    text = held_out(model, corpora, layout, progress=progress)
    subject = _Subject(named, run, text, corpora, settings, layout, again, elsewhere, progress)
    step("effects")
    tables = set_effects(text, named, subject.action, settings.seeds, run.statistics, progress=progress)
    for name, check in CHECKS.items():
        step(name)
        if parts := [part for each in named for part in subject.attempt(name, each, check)]:
            tables[name] = pd.concat(parts, ignore_index=True)
    columns = ["set", "check", "reason"]
    tables["skipped"] = pd.DataFrame(subject.skipped, columns=columns)
    active = tables.get("activity", pd.DataFrame(columns=["set"]))
    tables = {"claims": claims(tables["effects"], active), **tables}
    neurons = [each.to_frame().assign(set=name) for name, each in named.items()]
    tables |= {"neurons": pd.concat(neurons, ignore_index=True), "text": run.to_frame().reset_index()}
    return AuditStudy(
        tables=tables, settings=plain(settings), used=run.settings, measured=text.unchanged.attrs["text"],
        found=named, started=started,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Subject:
    """What the checks are given."""

    named: Mapping[str, NeuronSet]
    run: Run
    text: HeldOut
    corpora: Mapping[str, LanguageCorpus]
    settings: AuditSettings
    layout: Layout
    method: Method | None
    domains: Mapping[str, Mapping[str, LanguageCorpus]]
    progress: bool
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def action(self) -> Any:
        """The action on the units."""
        return action_of(self.settings.action, self.run.statistics)

    @cached_property
    def neutral(self) -> HeldOut | None:
        """Text of no language, measured once for all sets."""
        return measured_neutral(self.text.model, progress=self.progress)

    def attempt(self, check: str, name: str, function: Callable[..., pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """The table of a check on one set; what does not apply goes into the table of skipped checks."""
        with self.skipping(check, name):
            table: Any = function(self, name, self.named[name])
            yield table if "set" in table else table.assign(set=name)[["set", *table]]

    @contextlib.contextmanager
    def skipping(self, check: str, name: str) -> Iterator[None]:
        """Note a refusal instead of raising it."""
        try:
            yield
        except DoesNotApply as why:
            self.skipped.append({"set": name, "check": check, "reason": str(why)})


def _named(model: Model, corpora: Mapping[str, LanguageCorpus], sets: Sets) -> dict[str, NeuronSet]:
    """The sets by name; impossible ones are refused before anything is measured."""
    named = {"set": sets} if isinstance(sets, NeuronSet) else sets
    check_kind("sets", named, Mapping, "a NeuronSet, or several by name")
    if not named or len(corpora) < 2:
        raise ValueError(f"sets {list(named)}, text of {list(corpora)}: expected a set, and text of two languages.")
    for name, each in named.items():
        check_kind(f"sets[{name!r}]", each, NeuronSet, "a NeuronSet")
        if missing := [label for label in each.languages if label not in corpora]:
            raise KeyError(f"no text for {missing} of the set {name!r}; the corpora have {list(corpora)}.")
    jobs_of(model, corpora, named)
    return dict(named)


def _method(named: Mapping[str, NeuronSet], method: str | Method | None) -> Method | None:
    """The method to find units again with: as given, or that of the sets, if all were found by the same one."""
    if method is not None:
        return get_method(method)
    told = {each.method for each in named.values()}
    name, parameters = method_parts(told.pop()) if len(told) == 1 else ("", None)
    return CLASSES[name](**parameters) if name in CLASSES and parameters is not None else None


def _activity(subject: _Subject, name: str, found: NeuronSet) -> pd.DataFrame:
    return responses(subject.run.statistics, name, found)


def _outliers(subject: _Subject, name: str, found: NeuronSet) -> pd.DataFrame:
    loud = outliers(subject.run.statistics, found, multiple=subject.settings.multiple)
    return outlier_effects(
        subject.text.model, subject.corpora, found, loud, subject.action, text=subject.text, progress=subject.progress
    )


def _off_target(subject: _Subject, name: str, found: NeuronSet) -> pd.DataFrame:
    settings = subject.settings
    return off_target(
        subject.text.model, subject.corpora, found, subject.action, statistics=subject.run.statistics,
        seeds=settings.side_seeds, neutral=subject.neutral,
        prompts=settings.prompts, tokens=settings.tokens, text=subject.text, progress=subject.progress,
    ).table  # fmt: skip


def _survival(subject: _Subject, name: str, found: NeuronSet) -> pd.DataFrame:
    """Survival of the method's own units, and `found_again`: the share of the set that the method finds here at all."""
    if subject.method is None:
        raise DoesNotApply(
            f"no method is known that found {name!r} and could find it again ({found.method or 'none'})."
        )
    usable, run = {}, subject.run
    for control, change in CONTROLS.items():
        with subject.skipping(f"survival, {control}", name):
            change(subject.corpora)
            usable[control] = change
    if not usable:
        raise DoesNotApply("no change of the text applies to these languages.")
    table = survival(
        subject.text.model, subject.corpora, {"method": subject.method}, usable, run=run, progress=subject.progress
    )
    here = detect(run, subject.method)
    both = found & here[found.languages] if set(found.masks) == set(here.masks) else None
    counts = found.counts()
    share = (both.counts() / counts.where(counts > 0)).to_dict() if both is not None else {}
    table["found_again"] = [share.get(label, float("nan")) for label in table["language"]]
    return table.loc[table["language"].isin(found.languages)].drop(columns="method").reset_index(drop=True)


def _domains(subject: _Subject, name: str, found: NeuronSet) -> pd.DataFrame:
    if not subject.domains:
        raise DoesNotApply("no other domain was given: domains={'news': corpora}.")
    parts = []
    for domain, corpora in subject.domains.items():
        labels = [label for label in found.languages if label in corpora]
        if not labels or len(corpora) < 2:
            raise DoesNotApply(
                f"the domain {domain!r} has text of {list(corpora)}: expected two languages, one of the set."
            )
        text = held_out(subject.text.model, corpora, subject.layout, progress=subject.progress)
        measured = measure_effects(text, {name: found[labels]}, {name: subject.action}, subject.progress)
        rows = summaries.summarise(measured.table).rename(columns={"method": "set"})
        parts.append(rows.assign(domain=domain)[["domain", *rows]])
    return pd.concat(parts, ignore_index=True)


CHECKS: Mapping[str, Callable[[_Subject, str, NeuronSet], pd.DataFrame]] = {
    "activity": _activity,
    "off_target": _off_target,
    "outliers": _outliers,
    "survival": _survival,
    "domains": _domains,
}
