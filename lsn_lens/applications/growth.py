"""Languages over the checkpoints of one training: losses, units, working language, dependence, survival."""

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens.analysis.frozen_lape import frozen_counts
from lsn_lens.analysis.lens.layers import working_language
from lsn_lens.analysis.lens.vocabulary import TokenLanguages, token_languages
from lsn_lens.applications.growth_checkpoints import Checkpoint, check_checkpoints
from lsn_lens.applications.growth_dependence import dominant_rises
from lsn_lens.applications.growth_stages import StageRule, find_stages
from lsn_lens.bars import tqdm
from lsn_lens.collection.collecting import collect
from lsn_lens.controls.redetection import survivors
from lsn_lens.controls.resampling import FEW_SHARDS, load_shards
from lsn_lens.controls.stability import bootstrap, stability_table
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.files import whole_number, write_bytes
from lsn_lens.methods.base import check_shares
from lsn_lens.methods.frozen_lape import FrozenLape
from lsn_lens.model import structure
from lsn_lens.model.loading import load_model
from lsn_lens.runs.run import Run, load_run
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout, layout_of

MEASURED = "measured.json"
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

        Raises:
            KeyError: An unknown language or checkpoint.
        """
        return find_stages(self.score(language, since), self.own_system(language, since), rule)

    def _curve(self, table: pd.DataFrame, column: str, language: str, value: str, since: str | None) -> pd.Series:
        if language not in self.languages:
            raise KeyError(f"no language {language!r}; the languages are {list(self.languages)}.")
        if since is not None and since not in self.checkpoints:
            raise KeyError(f"no checkpoint {since!r}; the checkpoints are {list(self.checkpoints)}.")
        start = self.checkpoints.index(since) if since is not None else 0
        curve = table.loc[table[column].eq(language)].set_index("checkpoint")[value]
        return curve.loc[list(self.checkpoints[start:])]


@dataclass(frozen=True)
class _Job:
    """What is measured at each checkpoint, beside the model."""

    corpora: Mapping[str, Any]
    dominant: str
    method: FrozenLape
    layout: Layout
    evaluation: Layout
    labels: TokenLanguages
    seeds: int
    top_k: int
    options: Mapping[str, Any]
    progress: bool

    def key(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What a stored result must have been measured with."""
        texts = {label: each.source for label, each in self.corpora.items()}
        given = {"dominant": self.dominant, "method": repr(self.method), "layout": repr(self.layout), "texts": texts,
                 "evaluation": repr(self.evaluation), "seeds": self.seeds, "top_k": self.top_k,
                 "labels": self.labels.text, "options": {k: str(v) for k, v in self.options.items()}}  # fmt: skip
        return json.loads(json.dumps(given | {"checkpoint": checkpoint.state()}))


def growth(
    checkpoints: Mapping[str, Checkpoint | str | Path],
    corpora: Any,
    dominant: str,
    reference: str | None = None,
    out: Path | str | None = None,
    *,
    rate: float = 0.01,
    layout: Layout | None = None,
    evaluation: Layout | None = None,
    at_least: int = 3,
    ratio: int | float = 10,
    top_k: int = 10,
    seeds: int = 9,
    replicates: int = 200,
    progress: bool = True,
    **options: Any,
) -> Growth:
    """Follow every language over the checkpoints of one training; one model is in memory at a time.

    Units are those of LAPE, by the thresholds that the reference checkpoint has (`FrozenLape`), and by each
    checkpoint's own. With two languages, at most half of ln 2 separates an even unit from one of one language.

    Args:
        checkpoints: Name -> local folder, Hub id or `Checkpoint(source, revision)`, in order; see `checkpoints_in`.
        corpora: At least two languages: units are found on `find`, all else is measured on `hold_out`.
        dominant: The language that the model was trained on first.
        reference: The checkpoint whose thresholds are frozen; by default the first.
        out: Folder of finished checkpoints; an interrupted call goes on after the last one. None keeps all in memory.
        rate: Share of neurons to choose, at the reference and by relative thresholds.
        layout: How text to find units on becomes batches; packed blocks in 8 shards by default.
        evaluation: How hold-out text becomes batches; packed blocks by default.
        at_least: Of `token_languages`, the labels that the working language is read with.
        ratio: Of `token_languages`.
        top_k: Of `working_language`.
        seeds: Random sets that the dominant language's units are compared with.
        replicates: Bootstrap draws for the interval of each count; 0 for none.
        progress: Show progress bars.
        options: Options of `load_model` for all checkpoints, as `device=`, `dtype=`, `backend=`.

    Raises:
        KeyError: An unknown dominant language or reference; raised, as all below, before a model is loaded.
        ValueError: Fewer than two checkpoints or languages, other shapes or another tokenizer, settings out of range,
            no token of one language alone, or a folder of results that were measured otherwise.
        DoesNotApply: No neuron passes on the reference; raised after the measurements, which are kept.

    Source: "Babel Tower Hypothesis" (arXiv 2412.07298), which follows loss, working language and LAPE's neurons over
    checkpoints. Frozen thresholds, survival, and dependence by ablation are ours.
    """
    corpora = as_corpora(corpora)
    if len(corpora) < 2:
        raise ValueError(f"got the languages {list(corpora)}: growth compares at least two.")
    if dominant not in corpora:
        raise KeyError(f"no text for the dominant language {dominant!r}; the corpora have {list(corpora)}.")
    check_shares(rate=rate)
    whole_number(seeds, "seeds", least=2)
    whole_number(replicates, "replicates")
    reference = next(iter(checkpoints), "") if reference is None else reference
    if len(checkpoints) > 1 and reference not in checkpoints:
        raise KeyError(f"no checkpoint reference={reference!r}; the checkpoints are {list(checkpoints)}.")
    given, tokenizer, size = check_checkpoints(checkpoints, corpora, options)
    labels = token_languages(tokenizer, corpora, at_least=at_least, ratio=ratio, vocabulary=size, progress=progress)
    job = _Job(
        corpora, dominant, FrozenLape(rate=rate), layout_of(layout, Layout("blocks", shards=8)),
        layout_of(evaluation, Layout("blocks")), labels, seeds, top_k, options, progress,
    )  # fmt: skip
    folders = {name: None if out is None else Path(out) / name for name in given}
    kept = {name: _kept(folders[name], job.key(each)) for name, each in given.items()}
    parts: dict[str, tuple[Run, dict[str, Any]]] = {}
    for name, each in tqdm(given.items(), desc="checkpoints", disable=not progress):
        parts[name] = _measure(job, name, each, folders[name], kept[name])
        gc.collect()  # a model is a cycle of hooks; the next one needs its room
    return _joined(parts, dominant, reference, job.method, replicates, progress)


def _kept(folder: Path | None, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finished result in a folder; None if there is none."""
    if folder is None or not (folder / MEASURED).is_file():
        return None
    stored = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    if stored["key"] != key:
        other = [name for name, value in key.items() if stored["key"].get(name) != value]
        raise ValueError(f"{folder} was measured with other {other}: give another output folder, or the same settings.")
    return stored


def _measure(
    job: _Job, name: str, checkpoint: Checkpoint, folder: Path | None, stored: dict[str, Any] | None
) -> tuple[Run, dict[str, Any]]:
    """The run and the tables of one checkpoint; a finished one needs no model."""
    if stored is not None and folder is not None:
        return load_run(folder / "run"), stored
    revision = {} if checkpoint.revision is None else {"revision": checkpoint.revision}
    model = load_model(checkpoint.source, **{**job.options, **revision})
    run = collect(
        model, job.corpora, [job.method], None if folder is None else folder / "run", layout=job.layout,
        progress=job.progress,
    )  # fmt: skip
    text = held_out(model, job.corpora, job.evaluation, progress=job.progress)
    layers = working_language(
        model, job.corpora, job.labels, top_k=job.top_k, layout=job.evaluation, progress=job.progress
    )  # fmt: skip
    losses = text.unchanged.rename(columns={"evaluated": "language"})
    found = job.method.select(job.method.score(run.statistics))[job.dominant]
    tables = {
        "losses": losses[["language", "nll", "bits_per_byte", "tokens", "bytes"]],
        "layers": layers,
        "dependence": dominant_rises(text, found, run.statistics, job.seeds, progress=job.progress),
    }
    measured = {
        "key": job.key(checkpoint), "model": structure.describe(model), "text": text.plan.describe(),
        **{each: table.to_dict("records") for each, table in tables.items()},
    }  # fmt: skip
    if folder is not None:
        write_bytes(folder / MEASURED, json.dumps(measured, indent=1).encode())
    return run, measured


def _joined(
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
        frames.append(_named(name, drawn[["language", "frozen_low", "frozen_high"]]))
    return table.merge(pd.concat(frames), on=["checkpoint", "language"])


def _named(checkpoint: str, table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    table.insert(0, "checkpoint", checkpoint)
    return table
