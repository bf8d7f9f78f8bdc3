"""Convert units between masks, table rows, and pairs of layer and unit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lsn_lens import files
from lsn_lens.neurons.sites import widths_of

Mask = Bool[Tensor, "language layer unit"]


def check_masks(languages: Sequence[str], masks: Any) -> None:
    """Require a bool mask `[language, layer, unit]` for each basis.

    Raises:
        ValueError: Something else; the message says what was given.
    """
    if not isinstance(masks, Mapping):
        raise ValueError(f'masks: expected {{"mlp": mask}} or other bases, got {told(masks)}.')
    for basis, mask in masks.items():
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 3
        if not is_mask or len(mask) != len(languages):
            raise ValueError(
                f"basis {basis!r}: expected a bool mask [language={len(languages)}, layer, unit], got {told(mask)}."
            )


def only(masks: Mapping[str, Mask], layers: Iterable[int] | None, bases: Iterable[str] | None) -> dict[str, Mask]:
    """The units in these layers and of these bases, see `NeuronSet.only`."""
    depth = max((mask.shape[1] for mask in masks.values()), default=0)
    wanted = list(range(depth) if layers is None else layers)
    kinds = [bases] if isinstance(bases, str) else list(masks if bases is None else bases)
    unknown = [each for each in wanted if isinstance(each, bool) or each not in range(depth)]
    unknown += [each for each in kinds if each not in masks]
    if unknown:
        raise KeyError(f"no layer or basis {unknown}; the set has {depth} layers and the bases {list(masks)}.")
    kept = {basis: torch.zeros_like(mask) for basis, mask in masks.items()}
    for basis in kinds:
        kept[basis][:, wanted] = masks[basis][:, wanted]
    return kept


def combined(
    one: tuple[Sequence[str], Mapping[str, Tensor]], other: tuple[Sequence[str], Mapping[str, Tensor]], symbol: str
) -> dict[str, Mask]:
    """The masks of two sets combined by `&`, `|`, `-` or `^`, language by language.

    Raises:
        ValueError: The sets differ in languages, bases or shapes.
    """
    shapes = [{basis: tuple(mask.shape[1:]) for basis, mask in masks.items()} for _, masks in (one, other)]
    if one[0] != other[0] or shapes[0] != shapes[1]:
        raise ValueError(
            f"sets differ in languages or shape: {one[0]} {shapes[0]} and {other[0]} {shapes[1]}. "
            'To combine languages of one set: found.shared("fr", "en"), found.only_in("fr").'
        )
    operation = {"&": torch.bitwise_and, "|": torch.bitwise_or, "-": torch.gt, "^": torch.bitwise_xor}[symbol]
    return {basis: operation(mask, other[1][basis]) for basis, mask in one[1].items()}


def jaccard(masks: Mapping[str, Mask]) -> Float[Tensor, "language language"]:
    """Shared units over all units of both languages; NaN for two empty sets."""
    rows = torch.cat([mask.flatten(1) for mask in masks.values()], dim=1).double()
    shared, sizes = rows @ rows.T, rows.sum(1)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def told(given: Any) -> str:
    """The type and shape of a value given where a tensor was expected, for an error message."""
    return f"{given.dtype} {tuple(given.shape)}" if hasattr(given, "dtype") else type(given).__name__


def frame_of(
    languages: Sequence[str], masks: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
) -> pd.DataFrame:
    """One row per unit of each language: language, basis, layer, unit, and score if `values` are given."""
    frames = []
    for basis, mask in masks.items():
        language, layer, unit = mask.nonzero(as_tuple=True)
        columns = {
            "language": [languages[i] for i in language.tolist()],
            "basis": basis,
            "layer": layer.tolist(),
            "unit": unit.tolist(),
        }
        if values is not None:
            columns["score"] = values[basis][language, layer, unit].tolist()
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def frame_of_pairs(given: Mapping[str, Iterable[Sequence[int]]], basis: str) -> pd.DataFrame:
    """One row per pair of layer and unit of each language.

    Raises:
        ValueError: An entry that is not a pair.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f'got {told(given)}, expected {{"fr": [(layer, unit), ...]}}.')
    every = [(language, each) for language, pairs in given.items() for each in pairs]
    if odd := [each for _, each in every if not hasattr(each, "__len__") or len(each) != 2]:
        raise ValueError(f'{odd[:3]}: expected pairs (layer, unit), as {{"fr": [(5, 49)]}}.')
    rows = [(language, basis, *each) for language, each in every]
    return pd.DataFrame(rows, columns=["language", "basis", "layer", "unit"])


def shapes_of(given: Any, bases: Iterable[str]) -> Mapping[str, tuple[int, int]]:
    """Basis -> number of layers and units per layer: as given, or read from a model for the bases named.

    Raises:
        ValueError: Neither shapes nor a model.
        KeyError: An unknown basis.
    """
    if isinstance(given, Mapping):
        return given
    if not hasattr(given, "cfg"):
        raise ValueError(f'shapes={given!r}: expected {{"mlp": (layers, units)}}, or a model.')
    widths = widths_of(given.cfg)
    if unknown := [each for each in bases if each not in widths]:
        raise KeyError(f"no basis {unknown}; the bases are {list(widths)}.")
    return {each: (given.cfg.n_layers, widths[each]) for each in bases}


def masks_of_frame(
    frame: pd.DataFrame, shapes: Any, languages: Iterable[str] | None
) -> tuple[tuple[str, ...], dict[str, Mask]]:
    """Languages and masks from a table with one row per unit, see `NeuronSet.from_frame`."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"got {told(frame)}, expected a DataFrame: read a file first, as by pandas.read_csv(path).")
    column, bases = ([*dict.fromkeys(frame[each])] if each in frame else [] for each in ("language", "basis"))
    labels = files.labels_of(column if languages is None else languages)
    shapes = shapes_of(shapes, bases or ["mlp"])
    wanted = ["language", *(["basis"] if len(shapes) != 1 else []), "layer", "unit"]
    if missing := [each for each in wanted if each not in frame]:
        raise KeyError(f"the table has no columns {missing}; it has {list(frame.columns)}.")
    basis = frame["basis"] if "basis" in frame else pd.Series(next(iter(shapes)), index=frame.index)
    columns: tuple[tuple[str, Any, Any], ...] = (("language", frame["language"], labels), ("basis", basis, shapes))
    for name, given, known in columns:
        if unknown := sorted(set(given) - set(known), key=str):
            raise KeyError(f"the table has the {name} {unknown}, which were not named; named were {list(known)}.")
    for name in ("layer", "unit"):
        column: Any = frame[name]
        if len(frame) and (not pd.api.types.is_integer_dtype(column) or column.isna().any()):
            raise ValueError(
                f"column {name!r} is {column.dtype}, expected whole numbers, none missing. If all are whole: "
                f"frame.astype({{{name!r}: int}})."
            )
    masks = {}
    for each, shape in shapes.items():
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise ValueError(f"shapes[{each!r}]={shape!r}: expected two numbers, (layers, units).")
        layers, units = (files.whole_number(size, f"shapes[{each!r}]", least=1) for size in shape)
        rows: Any = frame[basis.eq(each)]
        for name, size in (("layer", layers), ("unit", units)):
            if odd := [number for number in rows[name].tolist() if not 0 <= number < size]:
                raise ValueError(f"basis {each!r}: {name} {odd[:5]}, expected 0 to {size - 1}.")
        twice = rows.duplicated(["language", "layer", "unit"])
        if twice.any():
            there = rows[twice][["language", "layer", "unit"]].values.tolist()
            raise ValueError(f"basis {each!r}: repeated rows: {there[:5]}. Expected each unit once.")
        masks[each] = torch.zeros(len(labels), layers, units, dtype=torch.bool)
        place = [labels.index(label) for label in rows["language"]]
        masks[each][place, rows["layer"].tolist(), rows["unit"].tolist()] = True
    return labels, masks
