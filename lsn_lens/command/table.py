"""The subcommands of `lsn-lens`, one row each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lsn_lens.command import settings
from lsn_lens.studies.experiment import later


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        settings: The dataclass of its settings, which are its options.
        run: From the settings to an `Outcome`; its module is imported when it is called.
        help: One line.
    """

    settings: type
    run: Callable[[Any], Any]
    help: str


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        settings.DemoConfig, later("lsn_lens.command.comparing", "run"),
        "a first result: four methods on the embedded model, and a report",
    ),
    "find": Command(
        settings.FindConfig, later("lsn_lens.command.finding", "run"),
        "find units: one file per method, and a table",
    ),
    "compare": Command(
        settings.CompareConfig, later("lsn_lens.command.comparing", "run"),
        "compare methods: effects, random controls, agreement, cost; a report",
    ),
    "deactivate": Command(
        settings.DeactivateConfig, later("lsn_lens.command.deactivating", "run"),
        "switch the units of a set off: which languages lose, beside random units",
    ),
    "steer": Command(
        settings.SteerConfig, later("lsn_lens.command.steering", "run"),
        "steer to another language: one prompt, or the whole study with a report",
    ),
    "inspect": Command(
        settings.InspectConfig, later("lsn_lens.command.inspecting", "run"),
        "look at one unit, or at the units of a set: pages",
    ),
    "audit": Command(
        settings.AuditConfig, later("lsn_lens.command.auditing", "run"),
        "test a set, whoever found it: what holds, in words; a report",
    ),
    "plan": Command(
        settings.PlanConfig, later("lsn_lens.command.folders", "plan"),
        "memory and disk that a collection will take",
    ),
    "status": Command(
        settings.StatusConfig, later("lsn_lens.command.folders", "status"),
        "how far a run is: shards, tokens, methods",
    ),
    "merge": Command(
        settings.MergeConfig, later("lsn_lens.command.folders", "merge"),
        "one run from several on the same model and text",
    ),
    "export": Command(
        settings.ExportConfig, later("lsn_lens.command.exporting", "run"),
        "write a set for other tools, or a model without its units",
    ),
}  # fmt: skip
