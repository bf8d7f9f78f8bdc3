"""Several runs on the same model and text as one run."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lsn_lens.collection.folders import differences
from lsn_lens.runs.run import DESCRIPTION, Run, layers_of, load_run, read_description, write_description
from lsn_lens.runs.shards import CONSTANTS, documents_path, read_shard, shard_path
from lsn_lens.runs.state import has_shard

Part = tuple[dict[str, Any], list[Path]]  # a layer of the merged run, and the folders that have shards of it
STAGING = ".partial"  # end of the name that the merged folder has until it is whole


def merge_runs(folders: Iterable[Path | str], out: Path | str) -> Run:
    """Copy runs into one: parts of the same run, each with some of its shards, or runs of different methods.

    Args:
        folders: Folders of runs with the same model, text and layout, finished or not.
        out: A new or empty folder. Shards that no run has stay missing; `collect` with the same arguments makes them.

    Raises:
        FileExistsError: `out` is not empty.
        ValueError: Fewer than two runs, a folder without a run, runs of another model, text or layout, or a run whose
            constants no folder has whole. An interrupted call leaves no `out`; the same call begins again.
    """
    out, places = Path(out), [Path(each) for each in folders]
    if len(places) < 2:
        raise ValueError(f"got the runs {list(map(str, places))}: expected two or more.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already and not empty. Give a new folder.")
    stored = [_described(each) for each in places]
    for place, each in zip(places[1:], stored[1:], strict=True):
        if told := differences(stored[0]["settings"], each["settings"]):
            raise ValueError(f"{place} and {places[0]} are no parts of one run: {'; '.join(told)}.")
    parts = _parts(places, stored)
    fixed = [_constants(sources) for _, sources in parts]
    staged = out.with_name(out.name + STAGING)
    shutil.rmtree(staged, ignore_errors=True)
    for (layer, sources), constants in zip(parts, fixed, strict=True):
        for names in stored[0]["shards"].values():
            for name in names:
                _copy(name, sources, staged / layer["folder"], layer["rows"])
        _copy_file(constants, staged / layer["folder"] / CONSTANTS)
        costs = [file for source in dict.fromkeys(sources) for file in sorted(source.glob("costs-*.json"))]
        for place, file in enumerate(costs):
            _copy_file(file, staged / layer["folder"] / f"costs-{place}.json")
    settings = _settings([each["settings"] for each in stored], [layer for layer, _ in parts])
    write_description(staged, settings, stored[0]["shards"])
    if out.is_dir():
        out.rmdir()
    staged.rename(out)
    return load_run(out)


def _constants(sources: list[Path]) -> Path:
    """The constants of a layer, from the first folder that has them whole."""
    whole = next((each / CONSTANTS for each in sources if read_shard(each / CONSTANTS) is not None), None)
    if whole is None:
        raise ValueError(
            f"none of {list(map(str, sources))} has {CONSTANTS} whole, which the first shards come with: the command "
            "that began the run makes it again."
        )
    return whole


def _described(folder: Path) -> dict[str, Any]:
    stored = read_description(folder)
    if stored is None:
        raise ValueError(f"{folder} is not the folder of a run: it has no {DESCRIPTION}.")
    return stored


def _parts(places: list[Path], stored: list[dict[str, Any]]) -> list[Part]:
    """The layers of the merged run: those with the same statistics are one."""
    parts: dict[tuple[str, ...], Part] = {}
    for place, each in zip(places, stored, strict=True):
        first = {key: each["settings"][key] for key in ("forward", "read")}
        for layer in layers_of(each["settings"]):
            name = f"added-{len(parts)}" if parts else ""
            _, sources = parts.setdefault(tuple(layer["statistics"]), ({**first, **layer, "folder": name}, []))
            sources.append(place / layer["folder"])
    return list(parts.values())


def _copy(name: str, sources: list[Path], to: Path, rows: bool) -> None:
    """Copy a shard from the first folder that has it whole."""
    source = next((each for each in sources if has_shard(each, name, rows)), None)
    if source is not None:
        for path in (documents_path, shard_path) if rows else (shard_path,):
            _copy_file(path(source, name), path(to, name))


def _copy_file(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)


def _settings(every: list[Mapping[str, Any]], layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the merged run."""
    both = {key: list(dict.fromkeys(x for each in every for x in each[key])) for key in ("statistics", "read")}
    kinds = every[0]["left_out"]
    left_out = {kind: {name: why for each in every for name, why in each["left_out"][kind].items()} for kind in kinds}
    together = {**every[0], **both, "left_out": left_out, "rows": any(each["rows"] for each in every)}
    together.pop("layers", None)
    return together | ({"layers": layers} if len(layers) > 1 else {})
