"""The number of neurons per language and checkpoint, by fixed thresholds."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.methods.frozen_lape import FrozenLape
from lsn_lens.runs.run import Run
from lsn_lens.text.plan import corpus_hash


def frozen_counts(runs: Mapping[str, Run], reference: str, **parameters: Any) -> pd.DataFrame:
    """The number of neurons per language and checkpoint.

    Args:
        runs: Checkpoint -> its run, all on the same text and languages.
        reference: The checkpoint whose thresholds are used for all.
        parameters: Parameters of `FrozenLape`.

    Returns:
        One row per checkpoint, in order, and language: `frozen` (neurons by the reference's thresholds), `fixed_share`
        (neurons by the checkpoint's own 1 %), and `frozen_total`, `fixed_share_total` (different neurons of all
        languages; `fixed_share_total` is constant by construction).

    Raises:
        KeyError: An unknown checkpoint.
        ValueError: Runs with different languages or different text.
    """
    if reference not in runs:
        raise KeyError(f"no checkpoint {reference!r}; the checkpoints are {list(runs)}.")
    languages = runs[reference].languages
    texts = {name: corpus_hash(run.settings["text"]) for name, run in runs.items()}
    odd = [name for name, run in runs.items() if run.languages != languages or texts[name] != texts[reference]]
    if odd:
        raise ValueError(f"{odd} have other languages or other text than {reference!r}: counts would not compare.")
    method = FrozenLape(**parameters)
    frozen = method.frozen(runs[reference].statistics)
    rows = []
    for checkpoint, run in runs.items():
        sets = {each: m.select(m.score(run.statistics)) for each, m in (("frozen", frozen), ("fixed_share", method))}
        owned = {name: found.counts().to_dict() for name, found in sets.items()}
        for language in languages:
            counts = {name: each[language] for name, each in owned.items()}
            totals = {f"{name}_total": len(found) for name, found in sets.items()}
            rows.append({"checkpoint": checkpoint, "language": language, **counts, **totals})
    return pd.DataFrame(rows)
