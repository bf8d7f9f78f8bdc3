"""The command line of every script: jsonargparse, with YAML in which `no` and `on` are languages."""

import re
from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import auto_cli, set_loader

MODE = "yaml_with_languages"
WORDS = re.compile(r"[\w-]+(,[\w-]+)+")  # en,no: a list without brackets
BOOLEAN, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """YAML 1.1 as jsonargparse reads it, but only true and false are truth values, as in YAML 1.2."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != BOOLEAN]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def load(text: str) -> Any:
    """A value of the command line, or a file of settings."""
    value = yaml.load(text, Loader=Loader)
    return value.split(",") if isinstance(value, str) and WORDS.fullmatch(value) else value


def run_cli(what: Callable[..., Any], **options: Any) -> Any:
    """`jsonargparse.auto_cli` of a function or a dataclass of settings."""
    set_loader(MODE, load, exceptions=(yaml.YAMLError,))
    return auto_cli(what, as_positional=False, parser_mode=MODE, **options)
