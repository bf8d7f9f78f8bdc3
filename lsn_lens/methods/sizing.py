"""Comparable sizes of sets: one share of all units for every method that chooses a share."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from lsn_lens.methods.catalogue import METHODS
from lsn_lens.methods.detecting import detect
from lsn_lens.runs.run import Run


def common_rate(
    run: Run, methods: Iterable[str], rate: float = 0.01, at_least: int = 10
) -> tuple[dict[str, dict[str, Any]], str]:
    """Hyper-parameters per method, with one common rate, set by the first method that can raise it; and the reason.

    Args:
        run: From `collect`; methods whose statistics the run lacks are left out.
        methods: Names in `METHODS`.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate to the smallest that gives every language this many units by the first method with
            this parameter (lape); 0 keeps the rate.

    Returns:
        `parameters` for `lsn.compare`, and a sentence that explains the rate.
    """
    had = [name for name in methods if not run.lacks(METHODS[name]())]
    names = {name: {each.name for each in fields(METHODS[name])} for name in had}
    words = f"Methods that choose a share of units choose {rate:.2%}."
    adaptive = next((name for name in names if "at_least" in names[name]), None)
    if adaptive and at_least:
        notes = detect(run, adaptive, rate=rate, at_least=at_least).notes
        words = (
            f"{rate:.2%} of all MLP neurons are {notes['asked']:,}; {adaptive} needs {notes['chosen']:,} "
            f"({notes['rate']:.2%}) to give every language at least {at_least}. Other methods that choose a share use "
            "the same share of their units; sizes still differ, since a unit may belong to several languages and some "
            "methods divide the number evenly."
        )
        rate = notes["rate"]
    return {name: {"rate": rate} if "rate" in names[name] else {} for name in names}, words
