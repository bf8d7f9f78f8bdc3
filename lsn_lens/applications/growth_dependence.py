"""Dependence on the dominant language: by the units of that language, and by problems that are solved."""

import math
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.controls.matched import matched_draws
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.interventions.actions import zero
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics


def dominant_rises(
    text: HeldOut, found: NeuronSet, statistics: Statistics, seeds: int, *, progress: bool = True
) -> pd.DataFrame:
    """The loss increase of every language while the dominant language's units are zero, beside random units.

    Args:
        text: Hold-out text of the model.
        found: The set of the dominant language alone.
        statistics: Of the model's run, for random units as many in each layer and as active.
        seeds: Random sets.
        progress: Show a progress bar.

    Returns:
        One row per `evaluated` language: `units`, `rise` (nats per token), and the keys of `verdict.beside_random`. A
        language that needs the dominant language's units has a rise above `random_mean`.
    """
    (dominant,) = found.languages
    draws = matched_draws(found, seeds, statistics).sets
    sets = {"found": found, **{f"random {seed}": each for seed, each in draws.items()}}
    table = text.measure(sets, zero, progress=progress).table
    table = table.loc[table["intervened"].eq(dominant)]
    rows = []
    for language, each in table.groupby("evaluated", sort=False):
        changes = each.set_index("set")["nll_change"]
        rise, random = float(changes["found"]), changes.drop("found")
        row = {"evaluated": language, "units": len(found), "rise": rise}
        rows.append(row | verdict.beside_random(rise, random, len(found)))
    return pd.DataFrame(rows)


def solved_dependence(current: Any, dominant: Any, own: Any) -> dict[str, Any]:
    """The share of a language's solved problems that only a model of the dominant language is known to solve.

    P: problems that the model of the dominant language alone solves and the model of the new language alone does not.
    C: problems that the checkpoint solves. The dependence is |P and C| / |C|.

    Args:
        current: Table of `evaluate_items` (`language`, `id`, `correct`), of a checkpoint, on problems in the new
            language.
        dominant: The same problems (by `id`) in the dominant language, by the model trained on it alone.
        own: The same problems in the new language, by a model trained on it alone.

    Returns:
        `dependence` (NaN if nothing is solved), `both` (|P and C|), `solved` (|C|), `only_dominant` (|P|), `problems`,
        and `chance`: |P| over all problems, the dependence if the checkpoint solved problems at random. P also holds
        problems that are hard for another reason than the language.

    Raises:
        KeyError: A table without the columns.
        ValueError: Other problems in one table than in another, or a problem twice.

    Source: "Babel Tower Hypothesis" (arXiv 2412.07298): the sets as its reviews describe them, the ratio as a digest
    gives it.
    """
    solved = [_solved(table) for table in (current, dominant, own)]
    if any(set(each.index) != set(solved[0].index) for each in solved):
        raise ValueError("the tables hold other problems: expected the same ids in all three, each once.")
    now, before, alone = (each.reindex(solved[0].index).to_numpy() for each in solved)
    only = before & ~alone
    both, count, problems = int((only & now).sum()), int(now.sum()), len(now)
    return {
        "dependence": both / count if count else math.nan,
        "both": both,
        "solved": count,
        "only_dominant": int(only.sum()),
        "problems": problems,
        "chance": float(np.mean(only)) if problems else math.nan,
    }


def _solved(table: Any) -> pd.Series:
    missing = [name for name in ("id", "correct") if name not in table]
    if missing:
        raise KeyError(f"the table has no columns {missing}; it has {list(table)}.")
    if table["id"].duplicated().any():
        raise ValueError("a problem is there twice: give the items of one language.")
    return table.set_index("id")["correct"].astype(bool)
