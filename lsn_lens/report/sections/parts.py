"""Sections of every report (text, origin), and helpers for sections."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.report.columns import Column
from lsn_lens.report.page import Section


def text_section(text: pd.DataFrame, origin: Mapping[str, Any]) -> Section:
    """The text of the run and of the measurements."""
    used = origin["corpus"]["layout"]
    rows = "rows of one document each" if used["kind"] == "documents" else f"blocks of {used['length']} tokens"
    return Section(
        "How it was measured",
        (
            f"Units were found on {rows}; documents begin with: {used['separator']}. Losses were measured on the "
            "hold-out part of the corpus, which the methods never saw.",
        ),
        {"Text for finding units": text},
        columns={"skipped": Column("records skipped"), "repeated": Column("documents repeated"),
                 "unknown": Column("unknown tokens", "rate")},
    )  # fmt: skip


def origin_section(origin: Mapping[str, Any]) -> Section:
    """Model, text, versions and commands: how to reproduce the report."""
    model, versions = origin["model"], ", ".join(f"{name} {each}" for name, each in origin["versions"].items())
    kind = f" {model['weights']}," if "weights" in model else ""
    return Section(
        "Provenance",
        (
            f"Model {model['name']} ({model['class']}, {model['dtype']}, {model['layers']} layers, revision "
            f"{model['revision'] or 'not given'}), weights{kind} hash {model['weights_hash'][:16]}…; "
            f"text sha256 {origin['corpus']['sha256'][:16]}…",
            f"{versions}; commit {origin['git_commit'] or 'unknown'}; {origin['seconds']:.0f} seconds.",
            "The same command gives the same numbers on the same machine. Tables are in tables/ (parquet and csv), "
            "the sets in neurons/ (load with lsn_lens.NeuronSet.load).",
        ),
        code=shlex.join(origin["command"]),
        data=origin,
    )


def of(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows with these values."""
    for column, value in values.items():
        table = table.loc[table[column].eq(value)]
    return table


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
