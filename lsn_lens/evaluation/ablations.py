"""Does a finding hold for every kind of ablation? Zero, means, other text's values and half as much, in one table."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens import models
from lsn_lens.actions import mean_ablation, other_mean_ablation, resample
from lsn_lens.batches import Layout
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.entry import check_model
from lsn_lens.evaluation.controls import matched_draws
from lsn_lens.evaluation.perplexity import perplexity_table
from lsn_lens.interventions import Action, scale, zero
from lsn_lens.neurons import NeuronSet
from lsn_lens.run import Run

Choice = Action | Callable[[str], Action]
UNITS = {"": "nll_change", "_bits_per_byte": "bits_per_byte_change"}  # ending of a column -> column of a loss table


def kinds_of_ablation(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    run: Run,
    found: NeuronSet,
    *,
    tokens: int = 256,
    seed: int = 0,
) -> dict[str, Choice]:
    """The usual ways to take units out, by name.

    "zero"; "mean" over all languages; "other mean", over the other languages; "resample": values of single tokens of
    the other languages' `find` text, taken in turn (`tokens` of them); "half": half of what they are.

    Raises:
        ValueError: The run has no means of a basis of the set, or the others' text has fewer tokens.
    """
    check_model(model)
    other = other_mean_ablation(run.statistics)
    known = other(run.languages[0]).values
    lacking = [basis for basis in found.masks if basis not in (known if isinstance(known, Mapping) else {})]
    if lacking:
        raise ValueError(
            f"the run has no means of {lacking}, to which units could be set: collect with a method that needs "
            "them, or give ablation_sensitivity the actions to compare."
        )

    def other_tokens(language: str) -> Action:
        documents = _in_turn(corpus.find for label, corpus in corpora.items() if label != language)
        return resample(model, documents, list(found.masks), tokens=tokens, seed=seed, progress=False)

    return {
        "zero": zero,
        "mean": mean_ablation(run.statistics),
        "other mean": other,
        "resample": other_tokens,
        "half": scale(0.5),
    }


def ablation_sensitivity(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    run: Run,
    found: NeuronSet,
    *,
    actions: Mapping[str, Choice] | None = None,
    seeds: int = 5,
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The effect of a set under several kinds of ablation, beside other languages and the same random units.

    Args:
        model: The run's model.
        corpora: Their held-out text is measured; the `find` text of others is resampled from.
        run: For the means, and for how active units are.
        found: The set.
        actions: Kinds of ablation by name; `kinds_of_ablation` by default.
        seeds: Random sets, matched as by `controls.matched_draws`; the same for each kind.
        layout: How held-out text becomes batches; packed blocks by default.
        progress: Show progress bars.

    Returns:
        One row for each kind and language: `ablation`, `language`, `neurons`; `own_rise`, `worst_other`,
        `worst_other_rise`, `own_rank` (1: no language rises more; ties count against it), `random_rise` (mean over the
        random sets), `share_above_random`; the same with `_bits_per_byte`, which can name another worst language;
        `own_hurt_most` (the own loss rises, and most, in both units), `matched` (what random sets share), `seeds`.
        Rises are in nats a token.

    Raises:
        ValueError: No kinds, no seed, a set of one language on text of one, or as `kinds_of_ablation`.
    """
    check_model(model)
    kinds = kinds_of_ablation(model, corpora, run, found) if actions is None else dict(actions)
    if not kinds or seeds < 1 or len(corpora) < 2:
        raise ValueError(
            f"{len(kinds)} kinds of ablation, {seeds} seeds, text of {list(corpora)}: expected one or more kinds and "
            "seeds, and text of two languages or more."
        )
    draws, matched = matched_draws(found, seeds, run.statistics)
    measure = partial(perplexity_table, model, corpora, layout=layout, progress=progress)
    rows = []
    for name, action in kinds.items():
        table = measure({"": found}, action)
        random = measure({str(seed): each for seed, each in draws.items()}, action, evaluate="own")
        for language, count in found.counts().items():
            beside = random.loc[random["intervened"].eq(language)]
            row: dict[str, Any] = {"ablation": name, "language": language, "neurons": count}
            for ending in UNITS:
                row |= _rises(table.loc[table["intervened"].eq(language)], str(language), beside, ending)
            most = [row[f"own_rank{ending}"] == 1 and row[f"own_rise{ending}"] > 0 for ending in UNITS]
            rows.append(row | {"own_hurt_most": all(most), "matched": matched, "seeds": seeds})
    return pd.DataFrame(rows)


def _rises(changed: pd.DataFrame, language: str, random: pd.DataFrame, ending: str) -> dict[str, Any]:
    """One language's rises in one unit, from the rows in which its units are changed."""
    by_language: dict[str, float] = dict(zip(changed["evaluated"], changed[UNITS[ending]], strict=True))
    own = by_language.pop(language)
    worst = max(by_language, key=lambda label: np.nan_to_num(by_language[label], nan=np.inf))
    drawn = random[UNITS[ending]].to_numpy()
    values = {
        "own_rise": own,
        "worst_other": worst,
        "worst_other_rise": by_language[worst],
        "own_rank": 1 + sum(not own > rise for rise in by_language.values()),
        "random_rise": float(drawn.mean()),
        "share_above_random": float((drawn < own).mean()),
    }
    return {f"{key}{ending}": value for key, value in values.items()}


def _in_turn(sources: Iterable[Iterable[str]]) -> Iterator[str]:
    """The first document of each source, then the second of each, and so on."""
    for row in zip_longest(*sources):
        yield from (document for document in row if document is not None)
