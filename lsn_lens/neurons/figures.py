"""Figures of sets and scores. The package names the module that draws them, so that this room imports no later one."""

from collections.abc import Callable
from typing import Any

PLOTS: list[Callable[[], Any]] = []  # one function, which imports and returns the module with the figures


FIGURES = {"layers": "layer_counts", "overlap": "overlap"}  # kind of figure -> function of that module


def draw(kind: str, data: Any) -> Any:
    """Draw a set: `kind` is a key of `FIGURES`.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in FIGURES:
        raise ValueError(f"kind={kind!r}: expected one of {list(FIGURES)}.")
    return getattr(PLOTS[0](), FIGURES[kind])(data)
