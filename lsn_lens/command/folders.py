"""`lsn-lens plan`, `status` and `merge`: what a run will need, how far it is, and several as one."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lsn_lens.collection.merging import merge_runs
from lsn_lens.collection.planning import plan_run
from lsn_lens.command.given import RUN, layout
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import MergeConfig, PlanConfig, StatusConfig
from lsn_lens.methods.catalogue import METHODS
from lsn_lens.runs.run import DESCRIPTION, Run
from lsn_lens.runs.state import lost_constants, run_state
from lsn_lens.studies.experiment import load_text


def plan(settings: PlanConfig) -> Outcome:
    """Predict memory and disk."""
    table = plan_run(
        settings.model, settings.methods, languages=len(load_text(settings)), documents=settings.documents,
        layout=layout(settings), dtype=getattr(torch, settings.dtype), revision=settings.revision,
    )  # fmt: skip
    megabytes: Any = (table / 1e6).round(1)
    whole, measuring = megabytes.loc["all"], megabytes.loc["perplexity"]
    said = (
        f"Collecting takes up to {whole['memory']:,} MB of memory and {whole['disk']:,} MB of disk; the merged sums "
        f"take {whole['merged']:,} MB; measuring loss takes up to {measuring['memory']:,} MB. Nothing was run."
    )
    return Outcome(said, {"bytes": table.rename_axis("part").reset_index()})


def status(settings: StatusConfig) -> Outcome:
    """Shards done and missing, tokens, and the methods whose statistics the run has."""
    folder = _run_in(settings.run)
    table, described = run_state(folder)
    every, missing = (sum(map(int, table[key])) for key in ("shards", "missing"))
    usable = [name for name, each in METHODS.items() if name != "random" and not Run({}, described).lacks(each())]
    gaps = [f"{missing} of {every} shards are missing"] if missing else []
    gaps += [f"{each} is missing or damaged" for each in lost_constants(folder, described)]
    said = f"{'; '.join(gaps)}: the command that began the run goes on." if gaps else f"Complete: {every} shards."
    tables = {"languages": table, "methods": pd.DataFrame({"method": usable})}
    return Outcome(f"{said} Model: {described['model']['name']}.", tables, {"run": folder})


def merge(settings: MergeConfig) -> Outcome:
    """Merge runs into a new folder."""
    merge_runs(map(_run_in, settings.runs), settings.out)
    return status(StatusConfig(run=settings.out))


def _run_in(folder: Path) -> Path:
    """The folder of a run: as given, or inside the output folder of a subcommand."""
    inside = folder / RUN
    return inside if not (folder / DESCRIPTION).is_file() and inside.is_dir() else folder
