"""The report of methods against planted units: what each section shows and says."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens import plots
from lsn_lens.planted.roles import ROLES
from lsn_lens.report import Report, Section
from lsn_lens.sections.parts import of, origin_section

Tables = Mapping[str, pd.DataFrame]
CHOSEN = 0.5  # share of a role's units that a method chose, from which on it is said to find it
HOW_TO_READ = (
    "Units of known role were written into the MLPs of the model, and measured: each row of the first table says what "
    "they are. A language needs the first four; all others are decoys.",
    "Average precision: how far the method's scores rank the units that a language needs above all other planted ones "
    "(1 is perfect; chance is that of a random order). Precision and recall are of the method's own set, at its "
    "default settings, among planted units; top recall: of the highest 1 % of all neurons, the model's own included. "
    "Intervals are 95 % t intervals over plantings.",
    "The model's own neurons have no known role, so they are in no score but top recall; what share of them a method "
    "chose is in the table of roles. Methods that score other things than neurons of MLPs are left out.",
)


def ground_truth_report(tables: Tables, skipped: Mapping[str, str], origin: Mapping[str, Any]) -> Report:
    """The whole report.

    Args:
        tables: "methods", "by-language", "roles", "planted", "sensitivity".
        skipped: Methods that were left out, and why.
        origin: From `provenance`.
    """
    languages = list(dict.fromkeys(tables["by-language"]["language"]))
    plantings = tables["by-language"]["planting"].nunique()
    return Report(
        "Ground truth: which method finds what?",
        f"{plantings} plantings into {origin['settings']['model']}, {len(languages)} languages "
        f"({', '.join(languages)}), {origin['started'][:10]}",
        lead(tables),
        facts(tables),
        (
            methods_section(tables, skipped),
            Section("How to read this", HOW_TO_READ, {"Roles": roles_table()}),
            roles_section(tables),
            sensitivity_section(tables),
            planted_section(tables),
            origin_section(origin),
        ),
    )


def roles_table() -> pd.DataFrame:
    """What each role is."""
    return pd.DataFrame(
        [{"role": role.name, "a language needs it": "yes" if role.truth else "no", "what": role.says}
         for role in ROLES.values()]
    )  # fmt: skip


def lead(tables: Tables) -> str:
    """Who comes first, and what everybody misses or falls for."""
    best = tables["methods"].iloc[0]
    words = [
        f"{best['method']} ranks the planted units best: average precision {best['average_precision']:.2f} "
        f"({best['average_precision_low']:.2f} to {best['average_precision_high']:.2f}; chance {best['chance']:.2f})."
    ]
    roles = tables["roles"].loc[tables["roles"]["role"].isin(list(ROLES))]
    for truth, said, column in ((True, "is found by", "own"), (False, "fools", "any")):
        for role in dict.fromkeys(roles.loc[roles["truth"].eq(truth), "role"]):
            mine = of(roles, role=role)
            who = list(mine.loc[mine[column] >= CHOSEN, "method"])
            words.append(f"{role} {said} {', '.join(who) or 'nobody'}.")
    return " ".join(words)


def facts(tables: Tables) -> dict[str, str]:
    """The numbers in short."""
    return {
        f"average precision, {row['method']}": f"{row['average_precision']:.2f}"
        for row in tables["methods"].head(4).to_dict("records")
    }


def methods_section(tables: Tables, skipped: Mapping[str, str]) -> Section:
    """Methods side by side."""
    means: Any = tables["by-language"].groupby(["method", "language"], sort=False)["average_precision"].mean()
    table = means.unstack().reindex(index=list(tables["methods"]["method"]))
    words = [f"Left out: {name} ({why})." for name, why in skipped.items()]
    return Section(
        "Methods against the truth",
        ("Means over plantings and languages, best average precision first.", *words),
        {"Scores": tables["methods"]},
        {"by-language": plots.share_map(table, "Average precision", x="language", y="", label="average precision")},
    )


def roles_section(tables: Tables) -> Section:
    """Which roles each method chooses."""
    roles = tables["roles"]
    matrix = roles.pivot(index="method", columns="role", values="any")
    matrix = matrix.reindex(index=list(tables["methods"]["method"]), columns=list(dict.fromkeys(roles["role"])))
    return Section(
        "What they choose",
        (
            "Share of the units of each role that a method's set holds for some language. The first four should be 1, "
            "the others 0; what the model's own should be, nobody knows.",
        ),
        {"For the right language (own), for another (other), for any": roles},
        {"roles": plots.share_map(matrix, "Share of units chosen", x="role", y="", label="share of units")},
    )


def sensitivity_section(tables: Tables) -> Section:
    """Less text, fewer languages."""
    table = tables["sensitivity"]
    matrix = table.pivot(index="method", columns="text", values="average_precision")
    matrix = matrix.reindex(index=list(tables["methods"]["method"]), columns=list(dict.fromkeys(table["text"])))
    return Section(
        "Less text, fewer languages",
        ("The first planting alone, with the methods run on part of the text, or on some of its languages.",),
        {"Average precision and recall": table},
        {"sensitivity": plots.share_map(matrix, "Average precision", x="text", y="", label="average precision")},
    )


def planted_section(tables: Tables) -> Section:
    """What was measured of each role, and what planting did to the model."""
    measured = ["own_rate", "other_rate", "own_value", "loudness", "own_rise", "other_rise"]
    means: Any = tables["planted"].groupby("role", sort=False)[measured].mean()
    return Section(
        "What was planted",
        (
            "Means over units and plantings, on held-out text: share of tokens that a unit fires on in its languages "
            "(the lowest) and others (the highest), its mean activation on its own, the share of the layer's units "
            "that are quieter there, and by how much the loss of its languages (the lowest) and of others (the "
            "highest) rises when it alone is switched off, in nats a token.",
        ),
        {"Measured": means.reset_index(), "Rise of the loss by planting, nats a token": tables["damage"]},
    )
