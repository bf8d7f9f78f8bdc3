"""Read the sets of other tools: one importer per file format.

A format is read as the released code of its source writes it. No file is unpickled but tensors, numbers and texts.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lsn_lens import files
from lsn_lens.neurons import tables, units
from lsn_lens.neurons.sets import NeuronSet

# the order of its lape_identify.py
CLAS_BENCH = "en ar bo da de es fr hi it ja ko mt nl no pl pt ru sv tr zh sk el kk sw ka uk fa th id vi cs ro"
WITHOUT_LABELS = ("lape", "entropy_lambda")
NAMELESS = "name them in the file's order (languages=, --labels)."
KINIT = {"mlp": "mlp", "attn_q_proj": "q", "attn_k_proj": "k", "attn_v_proj": "v"}  # begin of a result's name -> basis


@dataclass(frozen=True)
class Source:
    """A file to import, and what its format may not tell.

    Attributes:
        path: The file; for `expertise` also one file per language.
        shapes: A model, or basis -> number of layers and units per layer.
        languages: Labels, if given.
        count: Units per language to take from a table of all units.
    """

    path: Path | tuple[Path, ...]
    shapes: Any
    languages: tuple[str, ...] | None = None
    count: int | None = None

    @property
    def file(self) -> Path:
        """The only file.

        Raises:
            ValueError: Several files.
        """
        if isinstance(self.path, tuple):
            raise ValueError(
                f"got {len(self.path)} files: only tables of the format 'expertise' come one per language."
            )
        return self.path


def import_set(
    path: Path | str | Sequence[Path | str],
    shapes: Any,
    *,
    format: str | None = None,
    languages: Iterable[str] | None = None,
    count: int | None = None,
) -> NeuronSet:
    """Read units that another tool found.

    Args:
        path: The file; for `expertise` also a list of files, one per language.
        shapes: The model, or basis -> number of layers and units per layer, as `{"mlp": (32, 11008)}`.
        format: A key of `IMPORTERS`; by default told by the file.
        languages: Labels in the file's order, for formats that name none (`lape`, `entropy_lambda`); others must name
            these. `clas_bench` has the order of its released code.
        count: For tables of all units (`expertise`): units per language, half of them with the highest average
            precision and half with the lowest, as in the released code.

    Returns:
        The set. It has no fingerprint of weights, so it is accepted by every model whose shape fits.

    Raises:
        ValueError: An unknown format, or one that the file does not tell; a damaged file, or one with objects other
            than tensors and numbers; languages or shapes that do not fit; a count for units that are chosen already.
        KeyError: A unit of a language or basis that was not named.
    """
    paths = (path,) if isinstance(path, str | Path) else tuple(path)
    if not paths:
        raise ValueError("no file to import.")
    several = tuple(map(Path, paths))
    labels = None if languages is None else files.labels_of(languages)
    source = Source(several[0] if len(several) == 1 else several, shapes, labels, count)
    chosen = format_of(several[0]) if format is None else format
    if chosen not in IMPORTERS:
        raise ValueError(f"format={chosen!r}: expected one of {list(IMPORTERS)}.")
    if count is not None and chosen != "expertise":
        raise ValueError(
            f"count={count}: {several[0]} is of the format {chosen!r}, which has chosen units. Leave count out."
        )
    return IMPORTERS[chosen](source)


def format_of(path: Path) -> str:
    """The format that a file has.

    Raises:
        ValueError: Several formats look like it, or none.
    """
    if path.suffix == ".safetensors":
        return "lsn_lens"
    if path.suffix == ".csv":
        columns = set(pd.read_csv(path, nrows=0))
        return "table" if "language" in columns and not set(tables.EXPERTISE) <= columns else "expertise"
    if path.suffix == ".json":
        return "dln" if {"neurons", "languages", "tau"} <= set(_json(path)) else "lsn_lens"
    content = files.load_torch(path)
    if isinstance(content, dict):
        return "kinit"
    raise ValueError(
        f"{path} may be of the formats 'lape', 'clas_bench' or 'entropy_lambda', which look the same and differ in the "
        "order of their languages: name the format (format=, --format) and, but for 'clas_bench', the languages in the "
        "file's order (languages=, --labels)."
    )


def _own(source: Source) -> NeuronSet:
    found = NeuronSet.load(source.file)
    _same_labels(source, found.languages)
    shapes = units.shapes_of(source.shapes, found.masks)
    for basis, mask in found.masks.items():
        if tuple(mask.shape[1:]) != tuple(shapes[basis]):
            raise ValueError(f"{source.file}: basis {basis!r} has {list(mask.shape[1:])}, the model {shapes[basis]}.")
    return found


def _lists(method: str, known: tuple[str, ...] | None = None) -> Callable[[Source], NeuronSet]:
    """Importer of `list[language] of list[layer] of LongTensor`, which names no language."""

    def read(source: Source) -> NeuronSet:
        labels = source.languages or known
        if labels is None:
            raise ValueError(f"{source.file} names no languages: {NAMELESS}")
        layers, width = units.shapes_of(source.shapes, ["mlp"])["mlp"]
        found = NeuronSet.from_lape_file(source.file, labels, width)
        if found.masks["mlp"].shape[1] != layers:
            raise ValueError(
                f"{source.file} has {found.masks['mlp'].shape[1]} layers, the model {layers}: another model's file."
            )
        return replace(found, method=f"{method}, {source.file.name}")

    return read


def _dln(source: Source) -> NeuronSet:
    """`populations.json`: neurons with the languages of their cluster."""
    given = _json(source.file)
    if lacking := {"model", "languages", "pct", "tau", "neurons"} - set(given):
        raise ValueError(f"{source.file} is no populations.json: it lacks {sorted(lacking)}.")
    if odd := [each for each in given["neurons"] if not _is_population(each)]:
        raise ValueError(
            f"{source.file}: {str(odd[0])[:80]} is no neuron of populations.json: expected layer, neuron, and the list "
            "of languages cluster."
        )
    rows = [(label, "mlp", each["layer"], each["neuron"]) for each in given["neurons"] for label in each["cluster"]]
    frame = pd.DataFrame(rows, columns=["language", "basis", "layer", "unit"])
    shapes = {"mlp": units.shapes_of(source.shapes, ["mlp"])["mlp"]}
    found = NeuronSet.from_frame(frame, shapes, _same_labels(source, given["languages"]), "DLN, populations.json")
    return replace(found, notes={"pct": given["pct"], "tau": given["tau"]}, origin={"model": given["model"]})


def _is_population(given: Any) -> bool:
    return isinstance(given, dict) and {"layer", "neuron"} <= set(given) and isinstance(given.get("cluster"), list)


def _units(source: Source) -> NeuronSet:
    """One row per language and unit, as `lsn-lens find` and `export` write it, or anybody's spreadsheet."""
    frame, found = tables.unit_rows(source.file)
    bases = list(dict.fromkeys(frame["basis"])) or ["mlp"]
    shapes = {each: size for each, size in units.shapes_of(source.shapes, bases).items() if each in bases}
    labels = _same_labels(source, list(dict.fromkeys(frame["language"])))
    return NeuronSet.from_frame(frame, shapes, labels, found)


def _expertise(source: Source) -> NeuronSet:
    """`expertise*.csv`: one row per unit, the outputs of each Linear as a layer, the language as the concept."""
    paths = source.path if isinstance(source.path, tuple) else (source.path,)
    frame = pd.concat([tables.expertise_rows(path, source.count) for path in paths], ignore_index=True)
    shapes = units.shapes_of(source.shapes, dict.fromkeys(frame["basis"]))
    bases = [each for each in shapes if each in set(frame["basis"])]
    sizes = {each: shapes[each] for each in bases}
    full: Any = frame.groupby(["language", "basis"]).size()
    for (label, basis), rows in full.items():
        if basis in sizes and rows == sizes[basis][0] * sizes[basis][1]:
            raise ValueError(
                f"{label!r} has a row for every unit of {basis!r}: give count=, the units to choose from it."
            )
    labels = _same_labels(source, list(dict.fromkeys(frame["language"])))
    return NeuronSet.from_frame(frame, sizes, labels, f"expertise, {paths[0].name}")


def _kinit(source: Source) -> NeuronSet:
    """`lape_selected_neurons.pt`: masks `[language, layer, unit]` for the MLP and the projections of attention."""
    given = files.load_torch(source.file)
    if not isinstance(given, dict) or not {"languages", "params", "results"} <= set(given):
        raise ValueError(
            f"{source.file} is no lape_selected_neurons.pt, which has languages, params and results; it has "
            f"{str(list(given) if isinstance(given, dict) else type(given).__name__)[:80]}. Masks by language: save a "
            "list with one list of layers per language, and name format='lape' and the languages in this order."
        )
    labels, masks = _same_labels(source, given["languages"]), {}
    for name, result in given["results"].items():
        basis = next((basis for begin, basis in KINIT.items() if name.startswith(f"{begin}_")), None)
        if basis is None or basis in masks or "selected_mask" not in result:
            raise ValueError(
                f"{source.file}: result {name!r} is unknown, repeated or without selected_mask; results begin with "
                f"{list(KINIT)}."
            )
        layers, width = units.shapes_of(source.shapes, [basis])[basis]
        mask = torch.as_tensor(result["selected_mask"])
        if tuple(mask.shape) != (len(labels), layers, width):
            raise ValueError(
                f"{source.file}: {name!r} has {list(mask.shape)}, expected [language={len(labels)}, layer={layers}, "
                f"unit={width}]. Is this another model's file?"
            )
        rows = [files.unit_mask(row, width, f"{source.file}: {name}") for row in mask.flatten(0, 1)]
        masks[basis] = torch.stack(rows).view(mask.shape)
    notes = {"params": given["params"]}
    return NeuronSet(labels, masks, f"{given.get('method', 'LAPE')} by kinit", notes)


def plnd_set(given: Mapping[str, Sequence[Mapping[int, Iterable[int]]]], model: Any) -> NeuronSet:
    """A set from the five dictionaries that the released PLND code finds for each language.

    How that code writes them to disk is not known here, so they are given in memory.

    Args:
        given: Language -> layer to units, for the up projection, the down projection, queries, keys and values.
        model: The model: keys and values are counted in the space of query heads, which grouped heads share.

    Returns:
        A set on the bases `mlp` (up and down projection together), `q`, `k` and `v`.

    Raises:
        ValueError: Not five dictionaries; a layer or unit outside the model.
    """
    config = model.cfg
    heads, size = config.n_heads, config.d_head
    group = heads // (getattr(config, "n_key_value_heads", None) or heads)
    rows = set()
    for label, parts in given.items():
        if len(parts) != 5:
            raise ValueError(f"{label!r}: got {len(parts)} dictionaries, expected up, down, queries, keys and values.")
        for basis, part in zip(("mlp", "mlp", "q", "k", "v"), parts, strict=True):
            for layer, indices in part.items():
                for unit in map(int, indices):
                    shared = basis in ("k", "v") and group > 1
                    rows.add((label, basis, int(layer), unit // size // group * size + unit % size if shared else unit))
    frame = pd.DataFrame(sorted(rows), columns=["language", "basis", "layer", "unit"])
    shapes = units.shapes_of(model, ["mlp", "q", "k", "v"])
    return NeuronSet.from_frame(frame, shapes, list(given), "PLND, released code")


def _same_labels(source: Source, told: Sequence[str]) -> tuple[str, ...]:
    """The labels of the file, in the order asked for.

    Raises:
        ValueError: Other languages were asked for.
    """
    labels = files.labels_of(told)
    if source.languages is not None and set(source.languages) != set(labels):
        raise ValueError(f"{source.path} has the languages {list(labels)}, but {list(source.languages)} were named.")
    return labels


def _json(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is cut off or no JSON ({error}).") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds a {type(given).__name__}, expected an object.")
    return given


IMPORTERS: dict[str, Callable[[Source], NeuronSet]] = {
    "lsn_lens": _own,
    "lape": _lists("LAPE"),
    "clas_bench": _lists("LAPE of CLaS-Bench", tuple(CLAS_BENCH.split())),
    "entropy_lambda": _lists("entropy-lambda"),
    "dln": _dln,
    "table": _units,
    "expertise": _expertise,
    "kinit": _kinit,
}
