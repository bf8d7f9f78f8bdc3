"""The study of translation: a target's units forced, beside the prompt alone, examples in the prompt, and chance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from lsn_lens.collection.collecting import collect
from lsn_lens.generation.steering.tables import steering_meaning
from lsn_lens.generation.steering.ways import forcing, instruction, steer
from lsn_lens.generation.texts.identifiers import identifier
from lsn_lens.interventions.values import language_medians
from lsn_lens.methods.detecting import detect
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply
from lsn_lens.report.page import Report
from lsn_lens.runs.run import Run
from lsn_lens.studies.pages.translation import page as translation_page
from lsn_lens.studies.settings.translation import TranslationSettings
from lsn_lens.studies.study import Study, now, plain
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout
from lsn_lens.text.prompts import as_chat
from lsn_lens.text.tokens import check_aligned

METHOD, EXAMPLES = "average_precision", "examples"
PAIR = "Sentence: {}\nTranslation:"
ASK = "Translate the sentence into another language.\n" + PAIR  # the target is not named
Corpora = Mapping[str, LanguageCorpus]


@dataclass(frozen=True, eq=False, kw_only=True)
class TranslationStudy(Study):
    """The result of `translation_study`.

    Its tables: "translation" (`steering_meaning` against the reference translations; `steering` is "none" for the
    prompt alone, "examples" for translated sentences in front, "average_precision" for forced units, `dose` their
    count), "texts" (`steer`) and "text" (`Run.to_frame`).
    """

    page: ClassVar[Callable[..., Report]] = staticmethod(translation_page)


def translation_study(
    model: Model,
    corpora: Any,
    settings: TranslationSettings | None = None,
    run: Run | None = None,
    *,
    progress: bool = True,
) -> TranslationStudy:
    """Translate hold-out sentences to every language by a prompt that names none, with the target's units forced.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Parallel text of two languages or more: document i says the same in each, in both parts.
        settings: Settings of the study.
        run: A run with average precision on the same text; by default it is collected.
        progress: Show progress bars.

    Raises:
        DoesNotApply: Text that is not parallel, or too few sentences.
        KeyError: No text in the source language, or a language that the identifier does not know.
        ValueError: Prompts that exceed the model's context.
        FloatingPointError: NaN or infinity under forced units.

    Source: units forced to their median in a prompt that does not name the target, Kojima et al. 2024 (arXiv
    2404.02431), released code. Wording, examples, random units and intervals are ours.
    """
    check_model(model)
    started, settings, corpora = now(), settings or TranslationSettings(), as_corpora(corpora)
    if settings.source not in corpora:
        raise KeyError(f"source={settings.source!r}: no text in it; there is {list(corpora)}.")
    targets = [each for each in corpora if each != settings.source]
    identify = identifier(corpora, settings.identifier, ruled_out=settings.ruled_out)
    sentences = parallel(corpora, settings, "hold_out", settings.sentences)
    words = examples(parallel(corpora, settings, "find", settings.shots), settings.source)
    prompts = [ASK.format(each) for each in sentences[settings.source]]
    _check_length(model, prompts, words, settings)
    if run is None:
        layout = Layout("documents", max_tokens=settings.max_tokens)
        run = collect(model, corpora, [METHOD], layout=layout, progress=progress)
    medians = language_medians(run.statistics)
    found = {f"{METHOD}-{count}": detect(run, METHOD, count=count) for count in settings.counts}
    ways = [
        forcing(found[f"{METHOD}-{count}"], medians, name=METHOD, dose=count, seed=seed)
        for count in settings.counts
        for seed in (None, *range(settings.seeds))
    ]
    if settings.shots:
        ways.append(instruction(words, name=EXAMPLES))
    texts = steer(
        model, ways, {settings.source: prompts}, targets, identify, samples=0,
        tokens=settings.tokens, temperature=0.0, chat=settings.chat, stop=["\n"], progress=progress,
    )  # fmt: skip
    references = {target: dict(zip(prompts, sentences[target], strict=True)) for target in targets}
    table = steering_meaning(texts, references, replicates=settings.replicates)
    return TranslationStudy(
        tables={"translation": table, "texts": texts, "text": run.to_frame().reset_index()}, settings=plain(settings),
        used=run.settings, measured=run.settings["text"], found=found, started=started,
    )  # fmt: skip


def parallel(corpora: Corpora, settings: TranslationSettings, part: str, count: int) -> dict[str, list[str]]:
    """The first sentences of a part that are short enough in every language; one place says the same in each."""
    whole = {label: list(getattr(corpus, part)) for label, corpus in corpora.items()}
    if settings.check_parallel:
        check_aligned({label: getattr(corpus, part).places for label, corpus in corpora.items()})
    if len({len(each) for each in whole.values()}) > 1:
        numbers = {label: len(each) for label, each in whole.items()}
        raise DoesNotApply(
            f"translation needs parallel text, and {part} has {numbers} documents: give as many of each."
        )
    short = (row for row in zip(*whole.values(), strict=True) if max(map(len, row)) <= settings.longest)
    rows = [[" ".join(text.split()) for text in row] for row in islice(short, count)]
    if len(rows) < count:
        raise DoesNotApply(
            f"{part} has {len(rows)} documents of at most {settings.longest} characters in every language, and {count} "
            "are asked for: ask for fewer, or raise longest."
        )
    return {label: [row[place] for row in rows] for place, label in enumerate(whole)}


def examples(sentences: Mapping[str, list[str]], source: str) -> dict[str, str]:
    """Translated sentences as they stand in front of a prompt, by target."""
    return {
        target: "".join(f"{PAIR.format(a)} {b}\n\n" for a, b in zip(sentences[source], some, strict=True))
        for target, some in sentences.items()
        if target != source
    }


def _check_length(model: Model, prompts: list[str], words: Mapping[str, str], settings: TranslationSettings) -> None:
    whole = [front + each for front in words.values() for each in prompts]
    whole, _ = as_chat(model.tokenizer, whole, settings.chat, "bos")
    longest = 1 + max(map(len, model.tokenizer(whole, add_special_tokens=False)["input_ids"]))
    if longest + settings.tokens > model.cfg.n_ctx:
        raise ValueError(
            f"the longest prompt, with {settings.shots} examples, has {longest} tokens; with {settings.tokens} new "
            f"ones it exceeds the model's context of {model.cfg.n_ctx}. Lower shots, longest or tokens."
        )
