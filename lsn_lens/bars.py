"""Progress bars."""

from typing import Any

from tqdm.auto import tqdm as _tqdm


class tqdm(_tqdm):  # noqa: N801 (tqdm's own name)
    """tqdm's progress bar, switched off by `disable=True` or by the environment variable `TQDM_DISABLE=1`.

    tqdm itself reads the variable only if `disable` is not given.
    """

    def __init__(self, *args: Any, disable: bool | None = False, **options: Any):
        super().__init__(*args, **(options if disable is False else {**options, "disable": disable}))
