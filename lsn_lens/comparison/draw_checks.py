"""Checks that run a method again on other draws of the text and on shuffled labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.comparison.checking import Check, Doubts, Subject, columns_of, where
from lsn_lens.controls.significance import permutation_test
from lsn_lens.controls.stability import STABLE, bootstrap, leave_one_out, stability_table

UNSTABLE = 0.5  # share of stable units below which a set is unstable
NULL_LEVEL = 0.05  # p-value above which a set counts as found on permuted labels, too
DRAWS = "Other text of the same kind, and one language left out"


def _stability(subject: Subject) -> pd.DataFrame:
    replicates = subject.options.replicates
    draws = bootstrap(subject.shards, subject.method, replicates=replicates, paired=subject.paired, progress=False)
    return stability_table(draws).assign(replicates=replicates)


def _stable(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    sums = groups[["stable_units", "units"]].sum()
    share = (sums["stable_units"] / sums["units"]).rename("stable_share")
    means = groups["corrected_jaccard"].mean().rename("bootstrap_jaccard")
    return pd.concat([share, means, groups["replicates"].first()], axis=1)


def _unstable(table: pd.DataFrame) -> Doubts:
    if unstable := where(table, table["stable_share"] < UNSTABLE):
        share, often = 100 * UNSTABLE, 100 * STABLE
        yield f"unstable: under {share:g} % of the units are selected in {often:g} % of bootstrap replicates", unstable


STABILITY = Check(
    "stability",
    _stability,
    option="replicates",
    summary=_stable,
    columns=columns_of("share", "stable_share")
    | columns_of("number", "bootstrap_jaccard")
    | columns_of("count", "replicates"),
    ranked=("stable_share",),
    doubts=_unstable,
    about="draws of the text",
    caption=DRAWS,
    says=(
        "Other text of the same kind: shards of documents are drawn with replacement and each method runs again on "
        "every draw. stable share: the share of units that at least 95 % of these replicates choose too. The Jaccard "
        "overlap with the replicates' sets is corrected for chance: 1 for the same set, 0 for random units."
    ),
)


def _leave_one_out(subject: Subject) -> pd.DataFrame:
    return leave_one_out(subject.shards, subject.method, progress=False)


def _overlap(table: pd.DataFrame) -> pd.DataFrame:
    groups: Any = table.groupby("method")
    return groups["corrected_jaccard"].mean().rename("leave_one_out_jaccard").to_frame()


LEAVE_ONE_OUT = Check(
    "leave one out",
    _leave_one_out,
    option="replicates",
    summary=_overlap,
    columns=columns_of("number", "leave_one_out_jaccard"),
    about="other sets of languages",
    caption=DRAWS,
    says=(
        "Another set of languages: each language is left out in turn. leave one out jaccard: the overlap of each other "
        "language's set with its set on all languages, corrected for chance."
    ),
)


def _nulls(subject: Subject) -> pd.DataFrame:
    permutations = subject.options.permutations
    test = permutation_test(
        subject.shards, subject.method, permutations=permutations, paired=subject.paired, progress=False
    )
    totals, finite = test.totals.double(), test.means[test.means.isfinite()]
    beyond, members = test.found & test.beyond_null(), int(test.found.counts().sum())
    row: dict[str, Any] = {
        "units": len(test.found),
        "null_units": float(totals.mean()),
        "null_low": int(totals.min()),
        "null_high": int(totals.max()),
        "mean_score": test.mean_score() if members else np.nan,
        "null_score": float(finite.mean()) if len(finite) else np.nan,
        "null_p": test.set_p_value(),
        "beyond_null": int(beyond.counts().sum()) / members if members else np.nan,
        "permutations": permutations,
    }
    return pd.DataFrame([row])


def _null_numbers(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("method").drop(columns=["mean_score", "null_score"])


def _no_different(table: pd.DataFrame) -> Doubts:
    if np.any(table["null_p"].to_numpy() > NULL_LEVEL):
        yield "not distinguishable from shuffled labels", []


def _null_figures(table: pd.DataFrame) -> Mapping[str, Any]:
    from lsn_lens.comparison.figures import null_chart  # which loads the figure libraries

    return {"trust-nulls": null_chart(table.set_index("method"))}


NULLS = Check(
    "nulls",
    _nulls,
    option="permutations",
    summary=_null_numbers,
    columns=columns_of("number", "null_units")
    | columns_of("p", "null_p")
    | columns_of("share", "beyond_null")
    | columns_of("count", "units", "null_low", "null_high", "permutations"),
    ranked=("null_units",),
    doubts=_no_different,
    about="shuffled labels",
    caption="Shuffled labels",
    says=(
        "Shuffled labels: the labels of shards are permuted across languages, so that there is nothing to find. Many "
        "rules choose as many units on such labels, so scores count too. null p: the p-value of two permutation tests "
        "(number of units; mean score), the smaller one times two. beyond null: the share of the set's memberships "
        "whose language differs from every other language by more than the largest difference at any unit when the "
        "labels of the two are permuted. A result that beats shuffled labels shows that the texts differ. It does not "
        "show that the unit encodes the language."
    ),
    figures=_null_figures,
)
