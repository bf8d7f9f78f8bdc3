"""Progress bars."""

from typing import Any

from tqdm.auto import tqdm as _tqdm


class tqdm(_tqdm):  # noqa: N801 (tqdm's own name)
    """tqdm's bar, which a caller switches off by `disable=True` and anybody by `TQDM_DISABLE=1`.

    tqdm itself heeds the variable only where `disable` is not given.
    """

    def __init__(self, *args: Any, disable: bool | None = False, **options: Any):
        super().__init__(*args, **(options if disable is False else {**options, "disable": disable}))
