"""The study of the working language: the language of each layer's predictions, with and without a language's units."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pandas as pd

from lsn_lens.analysis.lens.layers import check_lens, working_language
from lsn_lens.analysis.lens.probes import WordProbe, word_probes
from lsn_lens.analysis.lens.vocabulary import TokenLanguages, token_languages
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import intervene
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.report.page import Report
from lsn_lens.studies.pages.working_language import own
from lsn_lens.studies.pages.working_language import page as working_language_page
from lsn_lens.studies.settings.working_language import WorkingLanguageSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

Corpora = Mapping[str, LanguageCorpus]


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkingLanguageStudy(Study):
    """The result of `working_language_study`: the language of each layer's predictions.

    Its tables: "layers" (`working_language`), "coverage", "confusion", "chance" and "scripts" (of `TokenLanguages`);
    with probes "words" (`word_probes`), "words-excluded" and "words-tokens"; with units "switched": for units
    ("found" or "random"), text and layer the share and probability of the text's own language, `_before` and `_after`
    the language's units are set to zero.

    Attributes:
        labels: The language of each token.
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(working_language_page)
    labels: TokenLanguages


def working_language_labels(
    model: Model, corpora: Any, settings: WorkingLanguageSettings | None = None, *, progress: bool = True
) -> TokenLanguages:
    """Token labels for `working_language_study`, by `token_languages`.

    Args:
        model: A HookedTransformer or TransformerBridge that the lens can read.
        corpora: At least two languages.
        settings: Settings of the study.
        progress: Show a progress bar.

    Raises:
        ValueError: A model that the lens cannot read, or as `token_languages`.
    """
    check_model(model)
    check_lens(model)
    settings = settings or WorkingLanguageSettings()
    return token_languages(
        model.tokenizer, as_corpora(corpora), by=settings.by, at_least=settings.at_least, ratio=settings.ratio,
        vocabulary=structure.vocabulary_size(model), max_tokens=settings.max_tokens, progress=progress,
    )  # fmt: skip


def working_language_study(
    model: Model,
    corpora: Any,
    settings: WorkingLanguageSettings | None = None,
    labels: TokenLanguages | None = None,
    *,
    probes: Iterable[WordProbe] = (),
    found: NeuronSet | None = None,
    progress: bool = True,
) -> WorkingLanguageStudy:
    """Read the layers on text of each language, and again while the language's units are zero.

    Args:
        model: A HookedTransformer or TransformerBridge that the lens can read.
        corpora: At least two languages; the layers are read on their hold-out part.
        settings: Settings of the study.
        labels: Result of `working_language_labels`; by default it is called.
        probes: From `read_probes`; prompts and words in other languages than those of the corpora are left out.
        found: Units to set to zero, one language at a time, beside as many random ones in each layer.
        progress: Show progress bars.

    Raises:
        ValueError: Units of none of the corpora's languages, or as `working_language_labels`.
    """
    started, settings = now(), settings or WorkingLanguageSettings()
    corpora = as_corpora(corpora)
    if found is not None and not set(found.languages) & set(corpora):
        raise ValueError(f"the units are for {list(found.languages)}, the corpora have {list(corpora)}.")
    labels = working_language_labels(model, corpora, settings, progress=progress) if labels is None else labels
    how = {"top_k": settings.top_k, "norm": settings.norm, "progress": progress}
    layout = Layout(
        kind=settings.kind, length=settings.length, separator=settings.separator,
        max_tokens=settings.evaluation_tokens, equal=settings.kind == "blocks",
    )  # fmt: skip
    read = partial(working_language, model, labels=labels, layout=layout, **how)
    layers = read(corpora)
    tables = {
        "layers": layers, "coverage": labels.coverage(), "confusion": labels.confusion().reset_index(),
        "chance": labels.chance(), "scripts": labels.scripts,
    }  # fmt: skip
    some = [each for probe in probes if (each := _among(probe, corpora))]
    if some:
        words = tables["words"] = word_probes(model, some, **how)
        tables["words-excluded"] = pd.DataFrame(words.attrs["excluded"])
        tables["words-tokens"] = pd.DataFrame(words.attrs["first_tokens"])
    if found is not None:
        tables["switched"] = _switched(model, read, corpora, layers, found)
    return WorkingLanguageStudy(
        tables=tables, settings=plain(settings), used={"model": structure.describe(model), "text": labels.text},
        measured=layers.attrs["text"], started=started, labels=labels,
    )  # fmt: skip


def _among(probe: WordProbe, corpora: Corpora) -> WordProbe | None:
    """A probe's prompts and words in the languages of the corpora; None where these are too few to compare."""
    prompts, words = ({k: v for k, v in each.items() if k in corpora} for each in (probe.prompts, probe.words))
    return WordProbe(prompts, words, probe.concept) if prompts and len(words) > 1 else None


def _switched(
    model: Model, read: Callable[[Corpora], pd.DataFrame], corpora: Corpora, layers: pd.DataFrame, found: NeuronSet
) -> pd.DataFrame:
    """Shares of each text's own language, while its units or random units are zero."""
    frames: list[pd.DataFrame] = []
    for units, neurons in (("found", found), ("random", found.random_like(seed=0))):
        for language in (each for each in found.languages if each in corpora):
            with intervene(model, neurons[language], zero):
                after = read({language: corpora[language]})
            frames.append(own(after).assign(units=units, neurons=len(neurons[language])))
    keys: Sequence[str] = ["text", "layer", "language"]
    before = layers[[*keys, "share", "probability"]]
    switched = before.merge(pd.concat(frames), on=keys, suffixes=("_before", "_after"))
    columns = ["share_before", "share_after", "probability_before", "probability_after"]
    return switched.reindex(columns=["units", "text", "neurons", "layer", *columns])
