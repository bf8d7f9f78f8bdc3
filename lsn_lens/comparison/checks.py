"""The checks that there are, and which are asked for."""

from lsn_lens.comparison.checking import Check, Checks
from lsn_lens.comparison.draw_checks import LEAVE_ONE_OUT, NULLS, STABILITY
from lsn_lens.comparison.model_checks import ABLATIONS, OFF_TARGET, SURVIVAL

CHECKS: tuple[Check, ...] = (STABILITY, LEAVE_ONE_OUT, NULLS, SURVIVAL, ABLATIONS, OFF_TARGET)


def asked(options: Checks) -> tuple[Check, ...]:
    """The checks that the options ask for, the user's own last.

    Raises:
        ValueError: One of the user's own has the name of another.
    """
    names = [row.table for row in (*CHECKS, *options.extra)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several checks are called {twice}: {[row.name for row in CHECKS]} have their names already.")
    return (*(row for row in CHECKS if getattr(options, row.option)), *options.extra)
