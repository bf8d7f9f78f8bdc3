"""The roles of planted units, and the tests of each role."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# limits on hold-out text; shares of tokens, and loss increases as shares of the requested effect
FIRES, QUIET, SCRIPT_FIRES = 0.85, 0.15, 0.2
FELT, UNFELT = 1 / 4, 1 / 2
MUCH = 0.5  # share of the mean `writes` of needed units
MANY = 20  # minimum tokens of a script in a language for a firing rate

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Role:
    """A kind of unit.

    Attributes:
        name: In tables.
        scope: One language, a group of languages, a script, or nothing.
        truth: Whether its languages need the unit; all other units are decoys.
        gate: The input of the gate (or of the only projection).
        size: Activation on its own text, relative to an ordinary unit.
        writes: "needed" moves the predictions of its languages, "ordinary" as much as other units write, "unread" much,
            where it changes next to nothing, "nothing".
        holds: From the measured row to the fault in words; empty if the role holds.
        sign: -1 where its language is marked by low values.
        says: A description.
    """

    name: str
    scope: Literal["language", "group", "script", "none"]
    truth: bool
    gate: Literal["own", "faint", "always", "rate", "never"]
    size: float | int
    writes: Literal["needed", "ordinary", "unread", "nothing", "balance"]
    holds: tuple[Callable[[Row], str], ...] = field(repr=False)
    sign: int = 1
    says: str = ""


def _fires_on_own(row: Row) -> str:
    bad = row["own_rate"] < FIRES or row["other_rate"] > QUIET
    return f"fires on {row['own_rate']:.0%} of its own tokens and {row['other_rate']:.0%} of another's" if bad else ""


def _needed(row: Row) -> str:
    bad = row["own_rise"] < FELT * row["effect"] or row["other_rise"] > UNFELT * row["own_rise"]
    return (
        f"switched off, its languages lose {row['own_rise']:.4f} nats and another {row['other_rise']:.4f}"
        if bad
        else ""
    )


def _unfelt(row: Row) -> str:
    largest = max(abs(row["own_rise"]), abs(row["other_rise"]))
    return f"switched off, a language loses {largest:.4f} nats" if largest > UNFELT * row["effect"] else ""


def _inert(row: Row) -> str:
    largest = max(abs(row["own_rise"]), abs(row["other_rise"]))
    return f"switched off, a language loses {largest:.6f} nats" if largest > 1e-4 else ""


def _writes_much(row: Row) -> str:
    return f"writes only {row['writes']:.0%} of what needed units do" if row["writes"] < MUCH else ""


def _quiet(row: Row) -> str:
    return f"louder than {row['loudness']:.0%} of the layer's units" if row["loudness"] > 0.5 else ""


def _loud(row: Row) -> str:
    return f"louder than only {row['loudness']:.0%} of the layer's units" if row["loudness"] < 0.9 else ""


def _always(row: Row) -> str:
    lowest = min(row["own_rate"], row["lowest_rate"])
    return f"fires on {lowest:.0%} of a language's tokens" if lowest < FIRES else ""


def _never(row: Row) -> str:
    highest = max(row["own_rate"], row["other_rate"])
    return f"fires on {highest:.0%} of a language's tokens" if highest > 0.01 else ""


def _rates_differ(row: Row) -> str:
    bad = row["own_rate"] < row["other_rate"] + 0.1 or row["lowest_rate"] < 0.05 or row["own_rate"] > 0.9
    return f"fires on {row['own_rate']:.0%}, and on {row['lowest_rate']:.0%} to {row['other_rate']:.0%}" if bad else ""


def _by_script(row: Row) -> str:
    bad = row["script_rate"] < 1 - SCRIPT_FIRES or row["other_script_rate"] > SCRIPT_FIRES
    return (
        f"fires on {row['script_rate']:.0%} of a language's tokens of the script and {row['other_script_rate']:.0%} of "
        "others" if bad else ""
    )  # fmt: skip


def _low(row: Row) -> str:
    bad = row["own_value"] >= row["lowest_value"] or row["own_value"] >= 0
    return f"its mean is {row['own_value']:.3g} on its own text and {row['lowest_value']:.3g} elsewhere" if bad else ""


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("specific", "language", True, "own", 1, "needed", (_fires_on_own, _needed),
             says="fires on one language, which needs it"),
        Role("shared", "group", True, "own", 1, "needed", (_fires_on_own, _needed),
             says="fires on a group of languages, which need it"),
        Role("quiet", "language", True, "faint", 0.02, "needed", (_fires_on_own, _needed, _quiet),
             says="as specific, but with tiny activations and large output weights"),
        Role("negative", "language", True, "always", 1, "needed", (_always, _needed, _low), sign=-1,
             says="always on; its language, which needs it, is marked by low values"),
        Role("loud", "language", False, "own", 5, "nothing", (_fires_on_own, _inert, _loud),
             says="fires strongly on one language, and writes nothing"),
        Role("unread", "language", False, "own", 1, "unread", (_fires_on_own, _unfelt, _writes_much),
             says="fires on one language and writes much, in a direction that later layers ignore"),
        Role("frequency", "language", False, "rate", 1, "ordinary", (_rates_differ, _unfelt),
             says="fires everywhere, on one language more often; no language needs it more"),
        Role("script", "script", False, "own", 1, "ordinary", (_by_script, _unfelt),
             says="fires on the letters of a script, whatever the language"),
        Role("silent", "none", False, "never", 1, "ordinary", (_never, _inert),
             says="never fires"),
        Role("balance", "none", False, "always", 1, "balance", (_always,),
             says="always on; takes away what the needed units of its layer add"),
    )
}  # fmt: skip

# a value is no gate: it has a size on both sides of zero, and "fires" means at least half of what it is on its own text
ATTENTION_ROLES = {
    **ROLES,
    "negative": replace(
        ROLES["negative"], gate="own", holds=(_fires_on_own, _needed, _low),
        says="low on its language, which needs it, and near zero elsewhere",
    ),
}  # fmt: skip
