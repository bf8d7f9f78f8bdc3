"""Switch a language's units off while the model continues prompts in this language."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from lsn_lens.generation.steering.trials import Trial, beside, groups_by, run_trials
from lsn_lens.generation.steering.ways import NONE, NOTHING
from lsn_lens.generation.texts.identifiers import UND, Identify
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.prompts import texts_of


def deactivate(
    model: Model,
    sets: Mapping[str, NeuronSet],
    prompts: Mapping[str, Iterable[str]],
    identify: Identify,
    action: Choice = zero,
    *,
    seeds: int = 3,
    samples: int = 1,
    tokens: int = 32,
    temperature: float | int = 0.8,
    chat: bool | str = False,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Continue each language's prompts with its units switched off, with random units off, and with none.

    Args:
        model: A HookedTransformer or TransformerBridge.
        sets: The units, by method.
        prompts: Language -> prompts in it.
        identify: Language identifier.
        action: The action on the units, or a function from the language to an action.
        seeds: Random sets per method and language, with as many units in each layer.
        samples: Texts per prompt.
        tokens: New tokens per text.
        temperature: See `lsn.generate`.
        chat: See `generate`.
        seed: Seed of the samples, the same for all.
        progress: Show a progress bar.

    Returns:
        One row per text: `method` ("none" without), `seed` (of random units; missing for the method's), `action`,
        `source` (the prompt's language), and the columns of `run_trials`.
    """
    check_model(model)
    prompts = {source: texts_of(f"prompts of {source!r}", some) for source, some in prompts.items()}
    trials = [_trial(NONE, None, "", each, prompts[each], Intervention(NONE)) for each in prompts]
    for method, found in sets.items():
        for drawn in (None, *range(seeds)):
            chosen = found if drawn is None else found.random_like(drawn)
            for source in prompts:
                what = action_for(action, source)
                off = Intervention(f"{method} of {source}, {what.name}", ((chosen[source], what),))
                trials.append(_trial(method, drawn, what.name, source, prompts[source], off))
    settings = {"samples": samples, "tokens": tokens, "temperature": temperature, "chat": chat}
    texts = run_trials(model, trials, identify, seed=seed, progress=progress, **settings)
    return texts.astype({"seed": "Int64"})


def _trial(
    method: str, seed: int | None, action: str, source: str, prompts: Sequence[str], what: Intervention
) -> Trial:
    label = {"method": method, "seed": seed, "action": action, "source": source}
    return Trial(what, prompts, [label] * len(prompts), {})


def deactivation_table(texts: pd.DataFrame) -> pd.DataFrame:
    """The share of texts that stay in the prompt's language, from `deactivate`.

    Returns:
        One row per method and language: `method`, `source`, the keys of `beside` for the source language; `clear`
        (`share` is below both others, see `is_larger`).
    """
    plain = groups_by(texts.loc[texts["method"] == NONE], "source")
    drawn = groups_by(texts.loc[texts["seed"].notna()], ["method", "source"])
    rows = []
    for key, group in groups_by(
        texts.loc[texts["seed"].isna() & texts["method"].ne(NONE)], ["method", "source"]
    ).items():
        method, source = key
        rows.append({"method": method, "source": source, **beside(group, plain[source], drawn.get(key), source, True)})
    return pd.DataFrame(rows)


def fallback_matrix(texts: pd.DataFrame, rows: str = "source") -> pd.DataFrame:
    """Languages of texts: rows = values of a column, columns = languages and "und", shares of the row.

    Args:
        texts: Rows of `deactivate` or `steer`, for example those of one method.
        rows: The column, "source" or "target".
    """
    shares = pd.crosstab(texts[rows], texts["language"], normalize="index")
    labels = list(dict.fromkeys(texts[rows]))
    languages = [each for each in labels if each not in (NOTHING, "")]  # no prompt, no target
    others = [each for each in sorted(set(texts["language"])) if each not in (*languages, UND)]
    return shares.reindex(index=labels, columns=[*languages, *others, UND], fill_value=0.0)
