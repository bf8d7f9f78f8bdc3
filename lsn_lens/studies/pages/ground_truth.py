"""The report of the ground truth study."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lsn_lens.planted.roles import ROLES
from lsn_lens.refusal import by_reason
from lsn_lens.report import plots
from lsn_lens.report.page import Report, Section
from lsn_lens.report.sections.parts import of, origin_section

Tables = Mapping[str, pd.DataFrame]
TITLES = {"mlp": "MLPs", "attention": "Attention"}
CHOSEN = 0.5  # share of a role's units from which on a method counts as finding the role
HOW_TO_READ = (
    "Units of known role were written into the model and measured; the first table lists the roles. A language needs "
    "the units of the first four roles; all other units are decoys. Planted units are MLP neurons or, in other "
    "plantings, values of new attention heads, which attend evenly to all previous positions.",
    "Average precision: whether the method's scores rank the units that a language needs above all other planted units "
    "(1 is perfect; chance is a random order). Precision at k: at equal size, of as many planted units as the language "
    "needs, those that a method ranks first, the share that is right. Precision and recall: of the method's set, at "
    "default settings, among planted units. Top recall: recall in the highest 1 % of all units, including the model's "
    "own. Intervals are 95 % t intervals over plantings.",
    "The model's own units have no known role, so only top recall includes them; the table of roles shows the share of "
    "them that a method chose. A method is evaluated only on the parts whose units it scores.",
)


def page(study: Any, origin: Mapping[str, Any]) -> Report:
    """The whole report, with `origin` from `provenance`."""
    tables = study.tables
    languages = list(dict.fromkeys(tables["by-language"]["language"]))
    plantings = tables["by-language"]["planting"].nunique()
    parts = list(dict.fromkeys(tables["methods"]["part"]))
    return Report(
        "Ground truth: which method finds what?",
        f"{plantings} plantings into {study.settings['model']} ({', '.join(parts)}), {len(languages)} languages "
        f"({', '.join(languages)}), {origin['started'][:10]}",
        lead(tables),
        facts(tables),
        (
            *(methods_section(tables, part) for part in parts),
            Section("How to read this", (*HOW_TO_READ, *left_out(study.skipped)), {"Roles": roles_table()}),
            *(roles_section(tables, part) for part in parts),
            *(sensitivity_section(tables, part) for part in parts),
            planted_section(tables),
            origin_section(origin),
        ),
    )


def roles_table() -> pd.DataFrame:
    """The roles with their descriptions, as a table."""
    return pd.DataFrame(
        [{"role": role.name, "a language needs it": "yes" if role.truth else "no", "what": role.says}
         for role in ROLES.values()]
    )  # fmt: skip


def left_out(skipped: Mapping[str, str]) -> tuple[str, ...]:
    """The methods that were left out, with the reason."""
    return tuple(f"Left out: {', '.join(names)} ({why})." for why, names in by_reason(skipped).items())


def lead(tables: Tables) -> str:
    """The best method of each part, and the roles that methods miss or wrongly choose."""
    words = []
    for part in dict.fromkeys(tables["methods"]["part"]):
        best = of(tables["methods"], part=part).iloc[0]
        words.append(
            f"{TITLES[part]}: {best['method']} ranks the planted units best, average precision "
            f"{best['average_precision']:.2f} ({best['average_precision_low']:.2f} to "
            f"{best['average_precision_high']:.2f}; chance {best['chance']:.2f})."
        )
        roles = of(tables["roles"].loc[tables["roles"]["role"].isin(list(ROLES))], part=part)
        for truth, said, column in ((True, "is found by", "own"), (False, "fools", "any")):
            for role in dict.fromkeys(roles.loc[roles["truth"].eq(truth), "role"]):
                mine = of(roles, role=role)
                who = list(mine.loc[mine[column] >= CHOSEN, "method"])
                words.append(f"{role} {said} {', '.join(who) or 'no method'}.")
    return " ".join(words)


def facts(tables: Tables) -> dict[str, str]:
    """The main numbers, for the top of the page."""
    rows = pd.concat([of(tables["methods"], part=part).head(4) for part in dict.fromkeys(tables["methods"]["part"])])
    return {
        f"average precision, {row['method']} ({row['part']})": f"{row['average_precision']:.2f}"
        for row in rows.to_dict("records")
    }


def methods_section(tables: Tables, part: str) -> Section:
    """The measures of all methods on one part."""
    methods, rows = of(tables["methods"], part=part), of(tables["by-language"], part=part)
    means: Any = rows.groupby(["method", "language"], sort=False)["average_precision"].mean()
    table = means.unstack().reindex(index=list(methods["method"]))
    return Section(
        f"{TITLES[part]}: methods against the truth",
        ("Means over plantings and languages; best average precision first.",),
        {"Scores": methods.drop(columns="part")},
        {f"by-language-{part}": plots.share_map(table, "Average precision", x="language", y="", label="share")},
    )


def roles_section(tables: Tables, part: str) -> Section:
    """Which roles each method chooses."""
    roles, methods = of(tables["roles"], part=part), of(tables["methods"], part=part)
    matrix = roles.pivot(index="method", columns="role", values="any")
    matrix = matrix.reindex(index=list(methods["method"]), columns=list(dict.fromkeys(roles["role"])))
    return Section(
        f"{TITLES[part]}: what they choose",
        (
            "Share of each role's units that a method's set contains for some language. It should be 1 for the first "
            "four roles and 0 for the others; for the model's own units the right share is unknown.",
        ),
        {"For the right language (own), for another (other), for any": roles.drop(columns="part")},
        {f"roles-{part}": plots.share_map(matrix, "Share of units chosen", x="role", y="", label="share of units")},
    )


def sensitivity_section(tables: Tables, part: str) -> Section:
    """The measures on less text and with fewer languages."""
    table, methods = of(tables["sensitivity"], part=part), of(tables["methods"], part=part)
    matrix = table.pivot(index="method", columns="text", values="average_precision")
    matrix = matrix.reindex(index=list(methods["method"]), columns=list(dict.fromkeys(table["text"])))
    return Section(
        f"{TITLES[part]}: less text, fewer languages",
        ("The first planting only; methods run on less text or on fewer languages.",),
        {"Average precision and recall": table.drop(columns="part")},
        {f"sensitivity-{part}": plots.share_map(matrix, "Average precision", x="text", y="", label="share")},
    )


def planted_section(tables: Tables) -> Section:
    """The measurements of each role, and the loss increase of the model by planting."""
    measured = ["own_rate", "other_rate", "own_value", "loudness", "writes", "own_rise", "other_rise"]
    means: Any = tables["planted"].groupby(["part", "role"], sort=False)[measured].mean()
    refused = tables["refused"]
    left = [
        f"Left out: {row['part']}, seed {row['seed']}. {row['why']}".replace("\n", " ")
        for row in refused.to_dict("records")
    ]
    return Section(
        "What was planted",
        (
            "Means over units and plantings, on hold-out text: share of tokens on which a unit fires in its languages "
            "(lowest) and in others (highest); its mean activation in its languages; the shares of the layer's units "
            "that are quieter and that write less there; and the loss increase of its languages (lowest) and of others "
            "(highest) when only this unit is switched off, in nats per token.",
            *left,
        ),
        {"Measured": means.reset_index(), "Loss increase by planting, nats per token": tables["damage"]},
    )
