"""Progress bars, named by step where the steps are known."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from tqdm.auto import tqdm as _tqdm

Called = TypeVar("Called", bound=Callable[..., Any])
_steps: ContextVar[tuple[list[str], str]] = ContextVar("steps", default=([], ""))  # all steps, and the present one


class tqdm(_tqdm):  # noqa: N801 (tqdm's own name)
    """tqdm's progress bar, switched off by `disable=True` or by the environment variable `TQDM_DISABLE=1`.

    tqdm itself reads the variable only if `disable` is not given. A bar inside a step has the step's name.
    """

    def __init__(self, *args: Any, disable: bool | None = False, **options: Any):
        names, now = _steps.get()
        options |= {"desc": f"{names.index(now) + 1} of {len(names)}: {now}"} if now else {}
        super().__init__(*args, **(options if disable is False else {**options, "disable": disable}))


def in_steps(function: Called) -> Called:
    """Let a function name its steps (`steps`, then `step` for each), which end with the function."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        before = _steps.set(([], ""))
        try:
            return function(*args, **options)
        finally:
            _steps.reset(before)

    return run  # type: ignore[return-value]


def steps(names: Iterable[str]) -> None:
    """The names of all steps to come, in order."""
    _steps.set((list(names), ""))


def step(name: str) -> None:
    """Begin a step; a name that is not among the steps to come changes nothing."""
    names, now = _steps.get()
    _steps.set((names, name if name in names else now))
