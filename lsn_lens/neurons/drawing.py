"""Who draws the figures: said by the package itself, so that no room below needs to know one above it."""

from collections.abc import Callable
from typing import Any

PLOTS: list[Callable[[], Any]] = []  # one function that imports and gives the module with the figures


FIGURES = {"layers": "layer_counts", "overlap": "overlap"}  # what may be drawn of a set


def draw(kind: str, data: Any) -> Any:
    """The figure of this kind.

    Raises:
        ValueError: Another kind.
    """
    if kind not in FIGURES:
        raise ValueError(f"kind={kind!r}: expected one of {list(FIGURES)}.")
    return getattr(PLOTS[0](), FIGURES[kind])(data)
