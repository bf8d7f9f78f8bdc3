"""What was measured over the checkpoints of one training, in one result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pandas as pd

from lsn_lens.analysis.frozen_lape import frozen_counts
from lsn_lens.applications.growth_stages import StageRule, find_stages
from lsn_lens.bars import tqdm
from lsn_lens.controls.redetection import survivors
from lsn_lens.controls.resampling import FEW_SHARDS, load_shards
from lsn_lens.controls.stability import bootstrap, stability_table
from lsn_lens.methods.frozen_lape import FrozenLape
from lsn_lens.runs.run import Run

TABLES = ("losses", "layers", "dependence")


@dataclass(frozen=True, eq=False)
class Growth:
    """The result of `growth`. Every table has a column `checkpoint`.

    Attributes:
        checkpoints: Names, in order.
        dominant: The dominant language.
        reference: The checkpoint whose thresholds are frozen.
        runs: Each checkpoint's run.
        losses: One row per checkpoint and `language`: `nll` (nats per token), `bits_per_byte`, `tokens` and
            `bytes` (scored).
        units: One row per checkpoint and `language`, see `frozen_counts`; with enough shards, `frozen_low` and
            `frozen_high`, the 95 % interval of the frozen count over draws of the text.
        layers: One row per checkpoint, `text`, `layer` and `language`, see `working_language`.
        dependence: One row per checkpoint and `evaluated` language, see `dominant_rises`.
        survival: One row per `thresholds` ("frozen", "relative"), pair of neighbouring checkpoints (`checkpoint` and
            `next`) and `language`, see `redetection.survivors`.
        origin: By checkpoint, its model; and the text of the measurements.
    """

    checkpoints: tuple[str, ...]
    dominant: str
    reference: str
    runs: Mapping[str, Run] = field(repr=False)
    losses: pd.DataFrame = field(repr=False)
    units: pd.DataFrame = field(repr=False)
    layers: pd.DataFrame = field(repr=False)
    dependence: pd.DataFrame = field(repr=False)
    survival: pd.DataFrame = field(repr=False)
    origin: Mapping[str, Any] = field(repr=False)

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages."""
        return self.runs[self.reference].languages

    @property
    def working(self) -> pd.DataFrame:
        """Working-language shares: one row per checkpoint, `text` and `language`.

        `share` is the mean over the layers between the embedding and the output, each layer counting the same;
        `output_share` that of the model's output; `unigram_share` that of random tokens.
        """
        last = self.layers["layer"].max()
        keys = ["checkpoint", "text", "language"]
        inner: Any = self.layers.loc[self.layers["layer"].between(1, last - 1)].groupby(keys, sort=False)
        ends = self.layers.loc[self.layers["layer"].eq(last)].set_index(keys)
        table = inner[["share", "coverage"]].mean()
        table["output_share"], table["unigram_share"] = ends["share"], ends["unigram_share"]
        return table.reset_index()

    def score(self, language: str, since: str | None = None) -> pd.Series:
        """Minus the loss (nats per token) of a language by checkpoint, from one checkpoint on."""
        return -self._curve(self.losses, "language", language, "nll", since)

    def own_system(self, language: str, since: str | None = None) -> pd.Series:
        """The working-language share of a language on its own text by checkpoint, from one checkpoint on."""
        own: Any = self.working.loc[self.working["text"].eq(self.working["language"])]
        return self._curve(own, "language", language, "share", since)

    def stages(self, language: str, since: str | None = None, rule: StageRule | None = None) -> pd.DataFrame:
        """`find_stages` of a language's score and own system, from one checkpoint on.

        Checkpoints without a working-language share are left out: none of their most probable tokens is identified, or
        the model has one layer, so that none lies between embedding and output.

        Raises:
            KeyError: An unknown language or checkpoint.
        """
        own = self.own_system(language, since).dropna()
        return find_stages(self.score(language, since).loc[own.index], own, rule)

    def _curve(self, table: pd.DataFrame, column: str, language: str, value: str, since: str | None) -> pd.Series:
        if language not in self.languages:
            raise KeyError(f"no language {language!r}; the languages are {list(self.languages)}.")
        if since is not None and since not in self.checkpoints:
            raise KeyError(f"no checkpoint {since!r}; the checkpoints are {list(self.checkpoints)}.")
        start = self.checkpoints.index(since) if since is not None else 0
        curve = table.loc[table[column].eq(language)].set_index("checkpoint")[value]
        return curve.loc[list(self.checkpoints[start:])]


def joined(
    parts: Mapping[str, tuple[Run, Mapping[str, Any]]], dominant: str, reference: str, method: FrozenLape,
    replicates: int, progress: bool,
) -> Growth:  # fmt: skip
    """All checkpoints in one result."""
    runs = {name: run for name, (run, _) in parts.items()}
    tables = {
        each: pd.concat([_named(name, pd.DataFrame(measured[each])) for name, (_, measured) in parts.items()],
                        ignore_index=True)
        for each in TABLES
    }  # fmt: skip
    frozen = method.frozen(runs[reference].statistics)
    units = frozen_units(runs, reference, method.rate, replicates=replicates, progress=progress)
    survival = pd.concat([
        _named(one, survivors(*(each.select(each.score(runs[name].statistics)) for name in (one, two))))
        .assign(next=two, thresholds=thresholds)
        for thresholds, each in (("frozen", frozen), ("relative", method))
        for one, two in pairwise(runs)
    ], ignore_index=True)  # fmt: skip
    origin = {
        "models": {name: measured["model"] for name, (_, measured) in parts.items()},
        "text": next(iter(parts.values()))[1]["text"],
        "thresholds": repr(frozen),
    }
    return Growth(
        tuple(parts), dominant, reference, runs, tables["losses"], units, tables["layers"], tables["dependence"],
        survival, origin,
    )  # fmt: skip


def frozen_units(
    runs: Mapping[str, Run], reference: str, rate: float, *, replicates: int = 200, progress: bool = True
) -> pd.DataFrame:
    """`frozen_counts` with intervals: the units that pass the thresholds of one checkpoint, at every checkpoint.

    A reference finds most units at itself and fewer at any other checkpoint, earlier or later, since units change. A
    decline is one only if a late reference shows it too.

    Args:
        runs: Checkpoint -> its run, as `Growth.runs`.
        reference: The checkpoint whose thresholds are used.
        rate: Share of neurons to choose there.
        replicates: Bootstrap draws of the text's shards; 0 for no intervals.
        progress: Show a progress bar.

    Returns:
        The table `Growth.units`.

    Raises:
        KeyError: An unknown checkpoint.
        ValueError: Runs with different languages or text.
    """
    table = frozen_counts(runs, reference, rate=rate)
    if not replicates or min(len(each) for run in runs.values() for each in run.shards.values()) < FEW_SHARDS:
        return table
    method, frames = FrozenLape(rate=rate).frozen(runs[reference].statistics), []
    for name, run in tqdm(runs.items(), desc="intervals", disable=not progress):
        drawn = stability_table(bootstrap(load_shards(run, [method]), method, replicates=replicates, progress=False))
        drawn = drawn.rename(columns={"units_low": "frozen_low", "units_high": "frozen_high"})
        frames.append(_named(name, drawn.loc[:, ["language", "frozen_low", "frozen_high"]]))
    return table.merge(pd.concat(frames), on=["checkpoint", "language"])


def _named(checkpoint: str, table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    table.insert(0, "checkpoint", checkpoint)
    return table
