"""Sets that can be compared: the same share of all units for every method that chooses a share."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from lsn_lens.methods.catalogue import METHODS
from lsn_lens.methods.detecting import detect
from lsn_lens.runs.run import Run


def common_rate(
    run: Run, methods: Iterable[str], rate: float = 0.01, at_least: int = 10
) -> tuple[dict[str, dict[str, Any]], str]:
    """Hyper-parameters of each method, all with the rate of the first that can raise its own; and why, in words.

    Args:
        run: From `collect`; methods whose statistics it lacks are left out.
        methods: Names of `METHODS`.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate to the smallest that gives every language this many units by the first method that
            can tell (lape); 0 keeps the rate.

    Returns:
        `parameters` for `lsn.compare`, and a sentence.
    """
    had = [name for name in methods if not run.lacks(METHODS[name]())]
    names = {name: {each.name for each in fields(METHODS[name])} for name in had}
    words = f"Methods that choose a share of units choose {rate:.2%}."
    adaptive = next((name for name in names if "at_least" in names[name]), None)
    if adaptive and at_least:
        notes = detect(run, adaptive, rate=rate, at_least=at_least).notes
        words = (
            f"{rate:.2%} of all MLP neurons are {notes['asked']:,}; by {adaptive} it takes {notes['chosen']:,} "
            f"({notes['rate']:.2%}) to give every language at least {at_least}. Methods that choose a share choose "
            "that one, of all units of their kinds; sizes still differ, since a unit may belong to several languages "
            "and some methods divide the number evenly."
        )
        rate = notes["rate"]
    return {name: {"rate": rate} if "rate" in names[name] else {} for name in names}, words
