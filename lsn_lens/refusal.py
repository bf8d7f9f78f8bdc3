"""Errors for methods that do not apply, for arguments of another type, and for unknown parameters."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])


class DoesNotApply(ValueError):
    """A method or check cannot be computed on this model or text; the message says why."""


def check_kind(name: str, value: Any, kind: Any, expected: str) -> None:
    """Refuse an argument of another type.

    Raises:
        ValueError: The message says what was given and, in the words of `expected`, what to give.
    """
    if not isinstance(value, kind):
        text = repr(value) if isinstance(value, str | int | float) else ""
        given = f"{text[:60]}, a {type(value).__name__}" if text else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {given}: expected {expected}.")


def listing_parameters(function: Called) -> Called:
    """Wrap a function so that an unknown parameter raises a `TypeError` that lists its parameters."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        if strange := [name for name in named if name not in names]:
            raise TypeError(f"{function.__name__}() has no parameter {', '.join(strange)}; it has {', '.join(names)}.")
        return function(*arguments, **named)

    return checked  # type: ignore[return-value]
