"""What is raised where something does not apply, reasons in words, and checks of arguments."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])


class DoesNotApply(ValueError):
    """A method or check cannot be computed on this model or text; the message says why."""


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Each reason once, without its full stop, and the names that it holds for, in their order."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why.rstrip("."), []).append(name)
    return names


def reasons_told(reasons: Mapping[str, str]) -> str:
    """The reasons in words, each once behind its names: "lape, lap: no MLP; plnd: no documents"."""
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason(reasons).items())


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
