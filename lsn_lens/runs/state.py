"""How far a run's folder is."""

from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens.runs.run import DESCRIPTION, layers_of, read_description
from lsn_lens.runs.shards import CONSTANTS, documents_path, is_finished, read_shard, shard_path


def run_state(path: Path | str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Which shards of a run are complete on disk; an unfinished run has its description from the start.

    Returns:
        One row per language: `shards`, `done` (complete in every part of the run), `missing`, and `tokens_used` of the
        whole run; and the run's settings.

    Raises:
        FileNotFoundError: The folder has no run.
        ValueError: A run of another version.
    """
    folder = Path(path)
    stored = read_description(folder)
    if stored is None:
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {DESCRIPTION}.")
    settings, rows = stored["settings"], []
    parts = [(folder / each["folder"], each["rows"]) for each in layers_of(settings)]
    for label, names in stored["shards"].items():
        done = sum(all(has_shard(part, name, kept) for part, kept in parts) for name in names)
        tokens = settings["text"]["languages"][label]["tokens_used"]
        rows.append((label, len(names), done, len(names) - done, tokens))
    return pd.DataFrame(rows, columns=["language", "shards", "done", "missing", "tokens_used"]), settings


def lost_constants(folder: Path, settings: dict[str, Any]) -> list[Path]:
    """The files of constants that are missing or damaged; `collect` with the run's arguments makes them again."""
    places = [folder / each["folder"] / CONSTANTS for each in layers_of(settings)]
    return [each for each in places if read_shard(each) is None]


def has_shard(part: Path, name: str, rows: bool) -> bool:
    """Whether a part of a run has a shard, whole; `rows`: with its values of single documents."""
    return is_finished(shard_path(part, name), documents_path(part, name) if rows else None)
