"""What says that something does not apply here, or that a function has no such parameter."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])


class DoesNotApply(ValueError):
    """A method or check that cannot be had on this model or text; the message says why."""


def listing_parameters(function: Called) -> Called:
    """A function that says which parameters it has where it is called with one that it has not."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        if strange := [name for name in named if name not in names]:
            raise TypeError(f"{function.__name__}() has no parameter {', '.join(strange)}; it has {', '.join(names)}.")
        return function(*arguments, **named)

    return checked  # type: ignore[return-value]
