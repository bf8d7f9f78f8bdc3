"""Texts under many interventions, with measures, for steering and deactivation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any, Literal

import pandas as pd

from lsn_lens.bars import tqdm
from lsn_lens.generation import continuations
from lsn_lens.generation.groups import is_larger, share_of
from lsn_lens.generation.sampling import generate, under
from lsn_lens.generation.texts.identifiers import UND, Identify
from lsn_lens.generation.texts.measures import measure_texts
from lsn_lens.interventions.intervening import Intervention, check_steps
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.prompts import as_chat, prompt_ids


@dataclass(frozen=True)
class Trial:
    """Prompts to continue under one intervention.

    Attributes:
        intervention: The change of the model.
        prompts: Prompts; None for texts without a prompt.
        labels: Columns of the result, one row per prompt; one row for all texts without a prompt.
        settings: Arguments of `generate`, for example `samples`.
    """

    intervention: Intervention
    prompts: Sequence[str] | None
    labels: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]


def prompts_from(
    model: Model,
    corpora: Any,
    *,
    count: int = 20,
    tokens: int = 10,
    part: Literal["find", "hold_out"] = "hold_out",
) -> dict[str, list[str]]:
    """The first tokens of each language's first documents that are at least three times as long.

    Raises:
        ValueError: A language with fewer such documents, or no prompts or tokens requested.
    """
    check_model(model)
    if count < 1 or tokens < 1:
        raise ValueError(f"count={count}, tokens={tokens}: expected at least 1 of each.")
    prompts = {}
    for label, corpus in as_corpora(corpora).items():
        documents = (model.tokenizer(each, add_special_tokens=False)["input_ids"] for each in getattr(corpus, part))
        starts = list(islice((ids[:tokens] for ids in documents if len(ids) >= 3 * tokens), count))
        if len(starts) < count:
            raise ValueError(
                f"{label}: {len(starts)} documents of {part} have {3 * tokens} tokens or more, {count} are asked for. "
                "Ask for fewer, or for shorter prompts."
            )
        # a token may end inside a character
        prompts[label] = [model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd") for ids in starts]
    return prompts


def run_trials(
    model: Model,
    trials: Sequence[Trial],
    identify: Identify,
    *,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Generate and measure the texts of all trials.

    Args:
        model: A HookedTransformer or TransformerBridge.
        trials: Trials, each with its intervention.
        identify: Language identifier.
        seed: Seed of the samples; all trials get the same random numbers.
        progress: Show a progress bar.
        settings: Arguments of `generate`; a trial's own settings come first.

    Returns:
        One row per text: the trial's labels, `units`, the columns of `generate` and `measure_texts`, and
        `clean_log_probability`: mean log-probability per token after the prompt, under the unchanged model.

    Raises:
        ValueError: No trials.
        FloatingPointError: NaN or infinity; the message names the intervention.

    Warns:
        UserWarning: An intervention has no units.
    """
    check_model(model)
    if not trials:
        raise ValueError("no text to write: give prompts, or ask for samples from nothing.")
    check_steps(model, (step for trial in trials for step in trial.intervention.steps))
    width = cache(partial(structure.site_width, model))
    frames = []
    for trial in tqdm(trials, desc="texts", disable=not progress):
        what = trial.intervention
        with under(model, what, width, level=5):
            frame = generate(model, trial.prompts, seed=seed, progress=False, **{**settings, **trial.settings})
        prompts = frame.pop("prompt")
        labels = pd.DataFrame([{**trial.labels[number], "units": len(what)} for number in prompts])
        clean = _clean(model, trial, prompts.tolist(), frame["ids"].tolist(), {**settings, **trial.settings})
        frames.append(pd.concat([labels, frame.assign(clean_log_probability=clean)], axis=1))
    return measure_texts(pd.concat(frames, ignore_index=True), identify)


def _clean(
    model: Model, trial: Trial, prompts: list[int], ids: list[list[int]], settings: Mapping[str, Any]
) -> list[float]:
    """Mean log-probability per token of each text under the unchanged model; NaN for a text without tokens."""
    wanted = settings.get("chat", False), settings.get("separator", "bos")
    texts, separator = as_chat(model.tokenizer, list(trial.prompts or [""]), *wanted)
    heads = [prompt_ids(model.tokenizer, each, separator) for each in texts]
    pairs = [continuations.Pair(heads[number], each) for number, each in zip(prompts, ids, strict=True)]
    some = [pair for pair in pairs if pair.continuation]
    found = iter(continuations.score(model, some, batch_size=64, progress=False))
    return [
        next(found).log_probability / len(pair.continuation) if pair.continuation else float("nan") for pair in pairs
    ]


def groups_by(texts: pd.DataFrame, keys: str | list[str]) -> dict[Any, pd.DataFrame]:
    """The rows of each key, in the order of their first rows."""
    return dict(iter(texts.groupby(keys, sort=False)))  # pyright: ignore[reportArgumentType]


def beside(
    group: pd.DataFrame, plain: pd.DataFrame, drawn: pd.DataFrame | None, language: str, less: bool = False
) -> dict[str, Any]:
    """Measures of texts under an intervention, without it, and under random units.

    Returns:
        `units`, `n` texts, `share` of them in the language and its Wilson 95 % interval `low`, `high`; `none_share` and
        `random_share` (NaN without any); `fallback` (the language most frequent among the other texts), `und` (the
        share without a language); `repetition`, `text_nll` (nats per token under the unchanged model), and both without
        intervention, `none_repetition` and `none_text_nll`; `clear`: whether the share is above both others (`less`:
        below both) by `is_larger`.
    """
    one: Any = group
    found, was = one["language"], _means(plain)
    missed = found[(found != language) & (found != UND)]
    mine, others = _count(group, language), [_count(each, language) for each in (plain, drawn) if each is not None]
    now = _means(group)
    return {
        "units": int(one["units"].iloc[0]),
        "n": len(group),
        **share_of(*mine),
        "none_share": _share(plain, language),
        "random_share": float("nan") if drawn is None else _share(drawn, language),
        "fallback": str(missed.mode().min()) if len(missed) else "",
        "und": _share(group, UND),
        "repetition": now["repetition"],
        "none_repetition": was["repetition"],
        "text_nll": -now["clean_log_probability"],
        "none_text_nll": -was["clean_log_probability"],
        "clear": all(is_larger(*each, *mine) if less else is_larger(*mine, *each) for each in others),
    }


def _count(texts: Any, language: str) -> tuple[int, int]:
    return int((texts["language"] == language).sum()), len(texts)


def _share(texts: Any, language: str) -> float:
    return float((texts["language"] == language).mean())


def _means(texts: Any) -> dict[str, float]:
    return texts[["repetition", "clean_log_probability"]].mean().to_dict()
