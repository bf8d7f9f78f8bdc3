"""Tensors by language, layer and unit as labelled arrays of xarray, an extra."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

DIMENSIONS = ("language", "layer", "unit", "bin")
EXTRA = "pip install 'lsn-lens[xarray]' (or: pip install xarray)"


def data_array(values: Tensor, languages: Sequence[str], name: str, told: Mapping[str, str]) -> Any:
    """An `xarray.DataArray` with the dimensions language, layer, unit (and bin of a histogram), as many as there are.

    Args:
        values: The first axis is the languages.
        languages: Labels; layers, units and bins are counted from 0.
        name: The array's name.
        told: Its attributes.

    Raises:
        ValueError: xarray is not installed.
    """
    if importlib.util.find_spec("xarray") is None:
        raise ValueError(f"{name!r} as an array with labels: the package xarray is missing. {EXTRA}.")
    xarray: Any = importlib.import_module("xarray")
    labels = (list(languages), *(range(size) for size in values.shape[1:]))
    coordinates = dict(zip(DIMENSIONS, labels, strict=False))
    return xarray.DataArray(values.clone().numpy(), coordinates, tuple(coordinates), name, dict(told))
