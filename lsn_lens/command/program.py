"""The program `lsn-lens`: reads the settings, runs a subcommand, and writes what it found."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from lsn_lens.command.settings import StatusConfig
from lsn_lens.command.table import COMMANDS
from lsn_lens.studies.experiment import MODE, Help, bracketed, one_line, set_languages_loader, sharing

ABOUT = "Find, compare and test language-specific neurons in language models."
AFTER = "Exit codes: 0 done, 1 refused (one line says why), 2 wrong usage."
USAGE = "lsn-lens SUBCOMMAND [options]"
EACH = "lsn-lens SUBCOMMAND --help lists the options of one."
FILE = "A file of settings in YAML, as --print_config writes it; options behind it replace its values."
INTERRUPTED = 130  # as shells count it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result goes to the standard output, everything else to the standard error.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit code, 0 or 130 (interrupted).

    Raises:
        SystemExit: Code 1, with a message of one line: what was given cannot be used. Code 2: wrong usage.
    """
    with one_line():
        line = list(sys.argv[1:] if arguments is None else arguments)
        if line and line[0] in COMMANDS:
            line = bracketed(COMMANDS[line[0]].settings, line)
        given = parser().parse_args(line)
        name, command = given.subcommand, COMMANDS[given.subcommand]
        options = given[name].as_dict()
        as_json = options.pop("json")
        options.pop("config", None)
        try:
            settings = command.settings(**options)
            with contextlib.redirect_stdout(sys.stderr), sharing(settings):
                outcome = command.run(settings)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted: finished parts of a run are kept, the same command goes on from them.\n")
            return INTERRUPTED
    sys.stdout.write(outcome.json(name) if as_json else outcome.text())
    return 0


def parser() -> ArgumentParser:
    """The parser: one subcommand per row of `COMMANDS`, with its settings as options."""
    set_languages_loader()
    set_parsing_settings(add_print_completion_argument=True)
    how: dict[str, Any] = {"parser_mode": MODE, "formatter_class": Help}
    whole = ArgumentParser(prog="lsn-lens", usage=USAGE, description=ABOUT, epilog=AFTER, **how)
    every: Any = whole.add_subcommands(required=True, description=EACH)
    for name, command in COMMANDS.items():
        usage = f"lsn-lens {name} [options]{' RUN' if command.settings is StatusConfig else ''}"
        one = ArgumentParser(description=command.help, usage=usage, **how)
        one.add_argument("--config", action="config", metavar="FILE", help=FILE)
        one.add_argument("--json", action="store_true", help="Write one JSON object instead of text.")
        one.add_class_arguments(command.settings, as_positional=command.settings is StatusConfig)
        every.add_subcommand(name, one, help=command.help)
    return whole
