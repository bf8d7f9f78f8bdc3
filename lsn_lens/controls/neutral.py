"""Side effects of an intervention on one language's units: other languages, numbers, code, repetition."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import jobs_of
from lsn_lens.evaluation.verdict import COLLAPSE
from lsn_lens.generation.sampling import generate
from lsn_lens.generation.texts.identifiers import UND, Identify
from lsn_lens.generation.texts.measures import measure_texts
from lsn_lens.generation.texts.strings import distinct
from lsn_lens.interventions.actions import Action, zero
from lsn_lens.interventions.intervening import intervene
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.corpora import as_corpora, load_corpora
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout

NEUTRAL = Path(__file__).parents[1] / "demo" / "neutral.jsonl"
BLOCK = 128  # tokens per block of neutral text, so that little is left over
BEFORE, AFTER, RANDOM = "before", "after", "random"


@dataclass(frozen=True, eq=False)
class OffTarget:
    """The result of `off_target`.

    Attributes:
        table: One row per language whose units were changed: `language`, `units` (different ones); the loss increases
            `own_rise` (the claimed effect), `worst_other` and its `worst_other_rise`, `mean_other_rise`, `<kind>_rise`
            per kind of neutral text, each in the scales of `verdict.rises`, and with `random_` their means over the
            random sets; `repetition` and `distinct_2` of generated text in the language, with `_before` (unchanged),
            `_after` and `_random` (one random set); `own_language_` with the same endings, where there is an identifier
            (share of the texts in the language); `collapse`: texts with a loss increase above 3 nats, which means a
            broken model, "" if none.
        losses: One row per text: `set` ("found", or the seed of a random set), `intervened`, `evaluated`, `kind`
            ("own", "other", "neutral") and the columns of `perplexity_table`.
        texts: The generated texts: `asked` (the language of the prompt), `state` ("before", "after", "random") and the
            columns of `measure_texts`.
        matched: What the random sets share with the language's set.
    """

    table: pd.DataFrame
    losses: pd.DataFrame
    texts: pd.DataFrame
    matched: str


def neutral_text() -> dict[str, LanguageCorpus]:
    """Text of no language, written for this project: "numbers", "arithmetic" and "code" (Python), all hold-out.

    A mapping of your own for `off_target` looks the same: `load_corpora({"logs": [...]}, hold_out=0.99)`.
    """
    rows = [json.loads(line) for line in NEUTRAL.read_text(encoding="utf-8").splitlines()]
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["kind"], []).append(row["text"])
    loaded = load_corpora(texts, hold_out=0.0)  # all text is in `find`, which becomes the hold-out part
    return {kind: LanguageCorpus(kind, each.hold_out, each.find) for kind, each in loaded.items()}


def off_target(
    model: Model,
    corpora: Any,
    found: NeuronSet,
    action: Choice = zero,
    *,
    statistics: Statistics | None = None,
    seeds: int = 3,
    neutral: Mapping[str, LanguageCorpus] | HeldOut | None = None,
    identify: Identify | None = None,
    prompts: int = 16,
    words: int = 3,
    tokens: int = 40,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> OffTarget:
    """All side effects of an intervention, for the set and for matched random sets.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Corpora whose hold-out text is measured; the model continues the beginnings of its documents.
        found: The set; the units of one language at a time are changed.
        action: The action on the units, or a function from the intervened language to an action.
        statistics: Of the run, to match random sets by activity (`controls.matched_draws`).
        seeds: Random sets.
        neutral: Text of no language, by kind; its `hold_out` is measured. `neutral_text()` by default; or a result of
            `measured_neutral`, to reuse it.
        identify: Language identifier for the generated texts: `generation.identifier(languages)`.
        prompts: Hold-out documents per language whose beginning is continued greedily.
        words: Words per beginning; at most a third of the document (for scripts without spaces).
        tokens: New tokens per text.
        layout: How hold-out text becomes batches; packed blocks by default. Neutral text comes in blocks of 128 tokens.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show progress bars.

    Returns:
        The tables of `OffTarget`.

    Raises:
        ValueError: Neutral text with the name of a language, no seed or prompt, or text of one language only.
        KeyError: A language of the set without text.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    neutral = neutral_text() if neutral is None else neutral
    kinds = list(neutral.clean if isinstance(neutral, HeldOut) else neutral)
    _check(corpora, found, kinds, seeds, prompts)
    draws = matched_draws(found, seeds, statistics)
    named = {"found": found, **{str(seed): each for seed, each in draws.sets.items()}}
    jobs_of(model, corpora, found, action)  # refuses impossible jobs before anything is measured
    text = held_out(model, corpora, layout, text=text, progress=progress)
    quiet = neutral if isinstance(neutral, HeldOut) else measured_neutral(model, neutral, progress=progress)
    losses = _losses(text, quiet, named, action, progress)
    blank = identify or (lambda texts: [(UND, 0.0)] * len(texts))
    written = []
    for language in found.languages:
        starts = _beginnings(corpora[language].hold_out, prompts, words)
        what = action_for(action, language)
        for state, units in ((BEFORE, None), (AFTER, found[language]), (RANDOM, draws.sets[0][language])):
            frame = _write(model, starts, units, what, tokens)
            frame.insert(0, "state", state)
            frame.insert(0, "asked", language)
            written.append(frame)
    texts = measure_texts(pd.concat(written, ignore_index=True), blank)
    rows = [_row(language, found, losses, texts, kinds, identify is not None) for language in found.languages]
    return OffTarget(pd.DataFrame(rows), losses, texts, draws.matched)


def measured_neutral(
    model: Model, neutral: Mapping[str, LanguageCorpus] | None = None, *, progress: bool = True
) -> HeldOut | None:
    """Neutral text with the unchanged model's losses, to reuse in `off_target`; None without text."""
    neutral = neutral_text() if neutral is None else neutral
    layout = Layout(length=min(BLOCK, model.cfg.n_ctx), equal=False)
    return held_out(model, neutral, layout, progress=progress) if neutral else None


def _check(
    corpora: Mapping[str, LanguageCorpus], found: NeuronSet, neutral: Sequence[str], seeds: int, prompts: int
) -> None:
    missing = [label for label in found.languages if label not in corpora]
    if missing:
        raise KeyError(f"no text for the set's languages {missing}; the corpora have {list(corpora)}.")
    same = sorted(set(neutral) & set(corpora))
    if same or len(corpora) < 2 or min(seeds, prompts) < 1:
        raise ValueError(
            f"neutral text named as a language: {same}; text of {list(corpora)}; seeds={seeds}, prompts={prompts}: "
            "expected names of their own, text of two languages or more, and at least one seed and prompt."
        )


def _losses(
    text: HeldOut, neutral: HeldOut | None, sets: Mapping[str, NeuronSet], action: Choice, progress: bool
) -> pd.DataFrame:
    """Losses of all languages and, in another pass, of all neutral text, under each language's units."""
    table = text.measure(sets, action, progress=progress).table
    is_own = table["intervened"].eq(table["evaluated"])
    table = table.assign(kind=np.where(is_own, "own", "other"))
    if neutral is None:
        return table
    every = list(neutral.clean)
    beside = neutral.measure(sets, action, evaluate=lambda _: every, progress=progress).table
    return pd.concat([table, beside.assign(kind="neutral")], ignore_index=True)


def _beginnings(documents: Iterable[str], prompts: int, words: int) -> list[str]:
    starts = []
    for document in islice(iter(documents), prompts):
        start = " ".join(document.split()[:words])
        starts.append(start if 3 * len(start) <= len(document) else document[: max(1, len(document) // 3)])
    return starts


def _write(model: Model, starts: Sequence[str], units: NeuronSet | None, action: Action, tokens: int) -> pd.DataFrame:
    if units is None or not len(units):  # without units nothing changes
        return generate(model, starts, tokens=tokens, progress=False)
    with intervene(model, units, action):
        return generate(model, starts, tokens=tokens, progress=False)


def _row(
    language: str, found: NeuronSet, losses: pd.DataFrame, texts: pd.DataFrame, neutral: list[str], identified: bool
) -> dict[str, Any]:
    changed = losses.loc[losses["intervened"].eq(language)]
    row: dict[str, Any] = {"language": language, "units": len(found[language])}
    own, drawn = changed.loc[changed["set"].eq("found")], changed.loc[changed["set"].ne("found")]
    row |= _rises(own, neutral, language)
    each = pd.DataFrame([_rises(part, neutral, language) for _, part in drawn.groupby("set")])
    random = each.mean(numeric_only=True, skipna=False)
    row |= random.add_prefix("random_").to_dict()
    for state in (BEFORE, AFTER, RANDOM):
        mine = texts.loc[texts["asked"].eq(language) & texts["state"].eq(state)]
        row[f"repetition_{state}"] = float(mine["repetition"].mean())
        row[f"distinct_2_{state}"] = distinct(mine["text"], 2)
        if identified:
            row[f"own_language_{state}"] = float(mine["language"].eq(language).mean())
    broken = own.loc[own["nll_change"].gt(COLLAPSE) | ~np.isfinite(own["nll_change"]), "evaluated"]
    return row | {"collapse": ", ".join(broken)}


def _rises(rows: pd.DataFrame, neutral: list[str], language: str) -> dict[str, Any]:
    """The loss increases of one set under one language's units, in nats and in bits."""
    said = verdict.rises(rows.loc[rows["kind"].ne("neutral")], language)
    names = ("own_rise", "worst_other", "worst_other_rise", "mean_other_rise")
    by_text = rows.set_index("evaluated")
    values: dict[str, Any] = {}
    for ending, column in verdict.SCALES.items():
        values |= {f"{name}{ending}": said[f"{name}{ending}"] for name in names}
        values |= {f"{kind}_rise{ending}": float(by_text.at[kind, column]) for kind in neutral}
    return values
