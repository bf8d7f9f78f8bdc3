"""The section of a report on the reliability of its methods."""

from typing import Any

import pandas as pd

from lsn_lens.comparison import doubts
from lsn_lens.comparison.tables import TRUST, Tables
from lsn_lens.comparison.trust import NOT_DONE, doubts_of, main_numbers
from lsn_lens.report.columns import Column
from lsn_lens.report.page import Section
from lsn_lens.report.sections.parts import of

TITLE = "How far to trust this"
WORDS = "What it says, in words"


def columns_of_checks(comparison: Tables) -> dict[str, Column]:
    """Headings and formats of the main numbers of all checks."""
    return {name: column for row in comparison.rows for name, column in row.columns.items()}


def trust_section(comparison: Tables) -> Section:
    """The numbers and warnings of all checks, and the checks that were not done."""
    if TRUST not in comparison:
        return Section(TITLE, ("Nothing was checked beyond the effects above. Give compare trust=Checks(...).",))
    methods = list(comparison.ranking["method"])
    done = [row for row in comparison.rows if row.table in comparison]
    about = dict.fromkeys(row.about or row.name for row in comparison.rows if row not in done)
    missing = [f"Not checked for any method: {', '.join(about)}."] if about else []
    reasons = comparison[NOT_DONE]
    tables = {}
    for caption in dict.fromkeys(row.caption or row.name for row in done):
        rows = [row for row in done if (row.caption or row.name) == caption]
        numbers = main_numbers(comparison, methods, rows).dropna(how="all")
        tables |= {caption: numbers.reset_index()} if len(numbers.columns) else {}
    figures = {}
    for row in done:
        ordered = pd.concat([of(comparison[row.table], method=name) for name in methods])
        figures |= row.figures(ordered) if row.figures else {}
    return Section(
        TITLE,
        (
            "The effects show that the units matter. These checks show whether the same units are found again, whether "
            "as many are found where there is nothing to find, and which other explanations remain. The thresholds of "
            "the warnings are conventions of this report.",
            *(row.says for row in done if row.says),
            *missing,
        ),
        tables | {WORDS: verdicts(comparison)} | ({"What could not be done": reasons} if len(reasons) else {}),
        figures,
        columns=columns_of_checks(comparison),
    )


def verdicts(comparison: Tables) -> pd.DataFrame:
    """One row per method: the warnings of the checks."""
    methods = list(comparison.ranking["method"])
    table = doubts.table_of(doubts_of(comparison, methods, comparison.rows), methods)
    checked = {name for row in comparison.rows if row.table in comparison for name in comparison[row.table]["method"]}
    silent = {name: "no warning from these checks" if name in checked else "not checked" for name in methods}
    left: Any = comparison[NOT_DONE].groupby("method")["check"].agg(", ".join)
    words = [
        (doubts.in_words(table, name) or silent[name]) + (f"; not done: {left[name]}" if name in left else "")
        for name in methods
    ]
    return pd.DataFrame({"method": methods, "checks": words})
