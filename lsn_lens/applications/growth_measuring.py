"""Languages over the checkpoints of one training: losses, units, working language, dependence, survival."""

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsn_lens.analysis.lens.layers import working_language
from lsn_lens.analysis.lens.vocabulary import TokenLanguages, token_languages
from lsn_lens.applications.growth_checkpoints import Checkpoint, check_checkpoints
from lsn_lens.applications.growth_dependence import dominant_rises
from lsn_lens.applications.growth_result import Growth, joined
from lsn_lens.bars import tqdm
from lsn_lens.collection.collecting import collect
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
    label_tokens: int | None = 2_000_000,
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
        label_tokens: Of `token_languages`, its `max_tokens`.
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
    labels = token_languages(
        tokenizer, corpora, at_least=at_least, ratio=ratio, vocabulary=size, max_tokens=label_tokens, progress=progress
    )
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
    return joined(parts, dominant, reference, job.method, replicates, progress)


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
