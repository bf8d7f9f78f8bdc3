"""Measures of what texts say: against references, by embeddings and by a judge, beside the share in the target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lsn_lens.evaluation.bootstrap import check_replicates, percentile_interval
from lsn_lens.files import whole_number
from lsn_lens.generation.groups import column_of, groups_of, names_of
from lsn_lens.generation.texts.languages import scripts_of
from lsn_lens.generation.texts.strings import count_letters
from lsn_lens.text.scripts import script_of

Embed = Callable[[list[str]], Any]  # texts -> an array [text, dimension]
Judge = Callable[[str, str], float]  # prompt, text -> relevance in [0, 1]
CHARACTERS = ("ja", "th", "lo", "km", "my", "bo")  # no spaces, and no segmenter without a further package
MEASURES = (
    "accuracy", "word_pass_rate", "chrf", "bleu", "bleu_in_target", "accuracy_bleu", "similarity", "relevance",
    "harmonic_mean",
)  # fmt: skip


@dataclass(frozen=True)
class _Measure:
    """Sums over texts, and a function from rows of sums to scores; so that draws of prompts are scored alike."""

    each: Float[np.ndarray, "text sum"]
    score: Callable[[np.ndarray], np.ndarray]


def meaning_table(
    measured: pd.DataFrame,
    target: str,
    by: str | Sequence[str] = (),
    *,
    reference: str | None = None,
    prompt: str = "prompt",
    embed: Embed | None = None,
    judge: Judge | None = None,
    tokenize: str | Mapping[str, str] | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What the texts of each group and target say, with intervals over prompts.

    Args:
        measured: From `measure_texts`, one row per text.
        target: The column with each text's target language.
        by: Columns that form groups, for example the way to steer.
        reference: The column with a reference for each text: a translation, or the answer without steering.
        prompt: The column that names the prompt: all texts of a prompt are drawn together. For `judge`, its text.
        embed: Texts -> array [text, dimension], for example `sentence_encoder("folder")`. Needs `reference`.
        judge: (prompt, text) -> relevance in [0, 1]; a scale of 0 to 2 is divided by 2.
        tokenize: sacrebleu's tokenizer for BLEU, one for all or by target. By default "zh" for Chinese, "char" for
            Japanese, Thai, Lao, Khmer, Burmese and Tibetan, "13a" for others.
        replicates: Bootstrap draws of prompts.
        level: Of the intervals.
        seed: Of the draws.

    Returns:
        One row per group and target: the columns of `by`, `target`, `n` texts, `prompts`; and of each measure its value
        and interval, `<measure>_low` and `<measure>_high` (NaN with one prompt, or where a draw has no value).
        `accuracy`: share of texts identified as the target. `word_pass_rate`: share of texts without `foreign_words`,
        of those with a letter. `chrf`, `bleu`: of all texts as one corpus, in [0, 100]. `bleu_in_target`: mean BLEU of
        single texts, of those in the target. `accuracy_bleu`: `accuracy` times `bleu_in_target`; 0 where no text is in
        the target. `similarity`: mean cosine of the embeddings of text and reference. `relevance`: mean of the judge.
        `harmonic_mean`: of `accuracy` and `relevance`, 0 where one is 0.
        `attrs["signatures"]` has sacrebleu's signatures by measure and target.

    Raises:
        KeyError: A column that is missing.
        ValueError: References or prompts that are not text, `embed` without references, embeddings of another shape,
            a judgement outside [0, 1], or too few replicates.

    Source: `accuracy_bleu` and `bleu_in_target` as in the released code of arXiv 2510.07213, with another identifier;
    `harmonic_mean` as the steering score in the released code of CLaS-Bench (arXiv 2601.08331), there times 100, with
    fastText and a judge of 0 to 2. chrF and BLEU are sacrebleu's. The word-level rate is ours.
    """
    check_replicates(replicates, level)
    draws = whole_number(replicates, "replicates", least=2)
    texts, _ = _strings(measured, "text"), _strings(measured, target)
    found, prompts = column_of(measured, "language"), column_of(measured, prompt)
    references = None if reference is None else _strings(measured, reference)
    if embed is not None and references is None:
        raise ValueError("embed= compares texts with references: name their column in reference=.")
    similar = None if embed is None or references is None else _cosines(embed, texts, references)
    judged = None if judge is None else _judged(judge, _strings(measured, prompt), texts)
    signatures: dict[str, dict[str, str]] = {}
    rows = []
    names = [name for name in names_of(by) if name != target]
    for key, here in groups_of(measured, [*names, target], ["n", "prompts", *MEASURES]):
        label = key[target]
        parts = [None if each is None else each[here] for each in (references, similar, judged)]
        measures = _measures(texts[here], found[here] == label, label, _tokenizer(tokenize, label), parts, signatures)
        number, names_here = pd.factorize(prompts[here])
        row = {**{name: key[name] for name in names}, "target": label, "n": len(here), "prompts": len(names_here)}
        times = np.random.default_rng(seed).multinomial(
            len(names_here), np.full(len(names_here), 1 / len(names_here)), size=draws
        )
        for name, measure in measures.items():
            row |= _with_interval(name, measure, number, times, level)
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["signatures"] = signatures
    return table


def foreign_words(text: str, language: str) -> list[str]:
    """The words of a text, between spaces, with a letter of a script that the language is not written in.

    Words of another language in the same script are not found: "the" is no foreign word in French text. Where words are
    not spaced, a word is what stands between two spaces.

    Args:
        text: Any text.
        language: Label of the language ("ja", "sr-Latn").
    """
    ours = scripts_of(language)
    return [word for word in text.split() if not ours.issuperset(filter(None, map(script_of, word)))]


def _measures(
    texts: np.ndarray, hits: np.ndarray, label: str, tokenizer: str, parts: list[Any], signatures: dict[str, Any]
) -> dict[str, _Measure]:
    from sacrebleu.metrics import BLEU, CHRF  # slow to import, and needed here only

    references, similar, judged = parts
    one, hits = np.ones(len(texts)), hits.astype(float)
    some = np.array([count_letters(text) > 0 for text in texts], dtype=float)
    clean = np.array([not foreign_words(text, label) for text in texts]) * some
    measures = {"accuracy": _ratio(hits, one), "word_pass_rate": _ratio(clean, some)}
    if references is not None:
        single = BLEU(tokenize=tokenizer, effective_order=True, force=True)
        for name, metric in (("chrf", CHRF()), ("bleu", BLEU(tokenize=tokenizer, force=True))):
            measures[name] = _corpus(metric, texts, references)
            signatures.setdefault(name, {})[label] = str(metric.get_signature())
        each = np.array(
            [single.sentence_score(*pair).score for pair in zip(texts, references[:, None].tolist(), strict=True)]
        )
        signatures.setdefault("bleu_in_target", {})[label] = str(single.get_signature())
        measures["bleu_in_target"] = _ratio(each * hits, hits)
        measures["accuracy_bleu"] = _ratio(each * hits, one)
    if similar is not None:
        measures["similarity"] = _ratio(similar, one)
    if judged is not None:
        measures["relevance"] = _ratio(judged, one)
        measures["harmonic_mean"] = _Measure(np.stack([hits, judged, one], axis=1), _harmonic)
    return measures


def _corpus(metric: Any, texts: np.ndarray, references: np.ndarray) -> _Measure:
    """The library's own sums of each text, and its score of sums."""
    each = np.array(metric._extract_corpus_statistics(texts.tolist(), [references.tolist()]), dtype=float)
    return _Measure(each, lambda sums: np.array([metric._compute_score_from_stats(row.tolist()).score for row in sums]))


def _ratio(above: np.ndarray, below: np.ndarray) -> _Measure:
    def score(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)

    return _Measure(np.stack([above, below], axis=1), score)


def _harmonic(sums: np.ndarray) -> np.ndarray:
    share, relevance = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
    both = share + relevance
    return np.divide(2 * share * relevance, both, out=np.zeros_like(both), where=both != 0)


def _with_interval(
    name: str, measure: _Measure, number: np.ndarray, times: np.ndarray, level: float
) -> dict[str, float]:
    """The value of all texts, and its interval over draws of prompts; `times` [draw, prompt] counts them."""
    by_prompt = np.zeros((times.shape[1], measure.each.shape[1]))
    np.add.at(by_prompt, number, measure.each)
    value = float(measure.score(measure.each.sum(0, keepdims=True))[0])
    low = high = float("nan")
    if times.shape[1] > 1:
        drawn = measure.score(times @ by_prompt)
        if not np.isnan(drawn).any():
            low, high = map(float, percentile_interval(drawn, times.shape[1], level))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _tokenizer(given: str | Mapping[str, str] | None, label: str) -> str:
    if isinstance(given, str):
        return given
    code = label.lower().replace("_", "-").partition("-")[0]
    return (given or {}).get(label, "zh" if code == "zh" else "char" if code in CHARACTERS else "13a")


def _strings(frame: pd.DataFrame, name: str) -> np.ndarray:
    values = column_of(frame, name)
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{len(wrong)} rows have no text in the column {name!r}, as {wrong[0]!r}: put texts there.")
    return values


def _cosines(embed: Embed, texts: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosines of pairs; 0 with an embedding that is zero."""
    both = list(dict.fromkeys([*texts, *references]))
    found = np.asarray(embed(both), dtype=float)
    if found.ndim != 2 or len(found) != len(both) or not np.isfinite(found).all():
        raise ValueError(f"embed gave an array {found.shape} for {len(both)} texts: expected finite [text, dimension].")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit = np.divide(found, length, out=np.zeros_like(found), where=length != 0)
    place = {text: row for row, text in enumerate(both)}
    return (unit[[place[each] for each in texts]] * unit[[place[each] for each in references]]).sum(1)


def _judged(judge: Judge, prompts: np.ndarray, texts: np.ndarray) -> np.ndarray:
    found = np.array([float(judge(*pair)) for pair in zip(prompts, texts, strict=True)])
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"the judge gave numbers from {found.min()} to {found.max()}: expected numbers in [0, 1].")
    return found
