"""The folder of a run: its lock, its content, and additions to it."""

import contextlib
import errno
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from lsn_lens.bars import tqdm
from lsn_lens.files import write_bytes
from lsn_lens.runs.run import DESCRIPTION, layers_of, read_description, write_description
from lsn_lens.runs.shards import CONSTANTS, shard_path
from lsn_lens.text.plan import Plan

SAID_FROM = 1e9  # bytes on disk from which a run announces its size
ADDING = "adding.json"
Settings = dict[str, Any]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"another process is collecting into {folder}. Wait for that process, or give another folder. "
            "(A lock ends with its process, even if the process is killed.)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_room(folder: Path, required: pd.DataFrame, progress: bool) -> None:
    """Announce the size of the run, and refuse a run that the disk cannot hold."""
    disk: dict[str, int] = required["disk"].to_dict()
    needed, free, largest = sum(disk.values()), shutil.disk_usage(folder).free, max(disk, key=lambda key: disk[key])
    if progress and needed > SAID_FROM:
        tqdm.write(f"{folder}: up to {needed / 1e9:.1f} GB will be written, most of it {largest}.", file=sys.stderr)
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the run needs {needed:,} bytes (most of it {largest}: {disk[largest]:,}), {free:,} are free. "
            "Make room, give another folder, leave out a method, or ask for fewer shards: layout=Layout(shards=...)",
            str(folder),
        )


def joined(folder: Path, settings: Settings, row_keys: Collection[str]) -> Settings:
    """The settings of the folder's run after the missing statistics are added; `row_keys` keep document values.

    Raises:
        ValueError: The folder's run has another model, text, layout or other hooks.
    """
    stored, settings = read_description(folder), json.loads(json.dumps(settings))
    if stored is None:
        return settings
    old = stored["settings"]
    reasons = differences(old, settings)
    if reasons:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(reasons)}. "
            "Give another folder, or the settings it was made with."
        )
    missing = [key for key in settings["statistics"] if key not in old["statistics"]]
    if not missing:
        return old
    first = {key: old[key] for key in ("statistics", "rows", "forward", "read")}
    layers = old.get("layers") or [{"folder": "", **first}]
    here = {"rows": any(key in row_keys for key in missing), **{key: settings[key] for key in ("forward", "read")}}
    layers = [*layers, {"folder": f"added-{len(layers)}", "statistics": missing, **here}]
    left_out = {kind: {**old["left_out"][kind], **settings["left_out"][kind]} for kind in settings["left_out"]}
    statistics, read = ([*old[key], *(x for x in settings[key] if x not in old[key])] for key in ("statistics", "read"))
    together = {"statistics": statistics, "read": read, "rows": old["rows"] or settings["rows"], "left_out": left_out}
    return {**old, **together, "layers": layers}


def claim(folder: Path, plan: Plan, settings: Settings) -> None:
    """Write the description of a new run; for an addition, write the added part's description until it is complete.

    Raises:
        ValueError: Another addition was begun, or shards without a description, which may be of any model and text.
    """
    stored, last = read_description(folder), layers_of(settings)[-1]
    if stored is None:
        if (folder / CONSTANTS).exists() or any(shard_path(folder, "").parent.glob("*.safetensors")):
            raise ValueError(
                f"{folder} has shards, but no {DESCRIPTION} that says of which model and text they are. Copy the "
                "description of their run into the folder, or give a new folder."
            )
        write_description(folder, settings, _names(plan))
    elif stored["settings"] != settings:
        path = folder / last["folder"] / ADDING
        begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else last
        if begun != last:
            raise ValueError(
                f"{path.parent} holds an unfinished addition of another call: {begun['statistics']}. Repeat that "
                f"call first, or delete {path.parent}."
            )
        write_bytes(path, json.dumps(last).encode())


def settle(folder: Path, plan: Plan, settings: Settings) -> None:
    """Record a complete addition in the run's description."""
    stored = read_description(folder)
    if stored is None or stored["settings"] != settings:
        write_description(folder, settings, _names(plan))


def _names(plan: Plan) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for shard in plan.shards:
        names.setdefault(shard.language, []).append(shard.name)
    return names


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences in model, layout, text and hooks, one sentence each."""

    def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]

    hashes = ("weights_hash", "fingerprint")
    parts = [("model", old["model"], new["model"]), ("layout", old["text"]["layout"], new["text"]["layout"])]
    said = [
        f"{what} {key} was {one.get(key)!r}, now {other.get(key)!r}"
        for what, one, other in parts
        for key in changed(one, other)
        if key not in hashes
    ]
    if any(key in hashes for key in changed(old["model"], new["model"])):
        said.append("the model has other weights")
    texts = [each["text"]["languages"] for each in (old, new)]
    if list(texts[0]) != list(texts[1]):
        said.append(f"languages were {list(texts[0])}, now {list(texts[1])}")
    shared = [label for label in texts[0] if label in texts[1]]
    other = [label for label in shared if texts[0][label]["sha256"] != texts[1][label]["sha256"]]
    said += [f"{', '.join(other)}: another text"] if other else []
    tokens = [label for label in changed(*texts) if label in shared and label not in other]
    said += [f"{', '.join(tokens)}: other tokens of the same text"] if tokens and not said else []
    points = changed(old["hooks"], new["hooks"])
    said += [f"other hooks are on {', '.join(points)}"] if points else []
    same = old["statistics"] == new["statistics"] and "layers" not in old
    said += ["another way through the model"] if not said and same and old["forward"] != new["forward"] else []
    return said
