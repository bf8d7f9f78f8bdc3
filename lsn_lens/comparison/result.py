"""The result of `compare`."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lsn_lens import sketches
from lsn_lens.comparison import doubts
from lsn_lens.comparison.tables import OF_MODEL, OF_SIZES, Tables
from lsn_lens.refusal import by_reason

# the first of these that a ranking has -> what it is
SKETCHED = {
    "area": "effect at equal size: in-language minus worst other, nats per token",
    "shown": "languages that pass, with each method's own set",
    "units": "distinct units",
}
SHOWN = (
    "method", "compared_on", "place", "area", "area_low", "area_high", "shown", "languages", "units", "own_rise",
    "own_minus_worst_other", "agreement", "seconds",
)  # fmt: skip  # columns of the ranking in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Tables):
    """One table for each question: `comparison["losses"]`, `comparison.losses`, `list(comparison)`.

    Loss increases (`rise`) are in nats per token unless the column's name says otherwise. `units` counts different
    units in `ranking`, `sizes`, `nulls` and `trust`, but memberships in tables of effects and losses: a unit of two
    languages counts twice there.

    Methods are ranked at equal size alone, within each kind of unit; no table is sorted by the effects of sets of
    different sizes.

    Tables (those from `effects` to `equal_size` need a model, the last two also sizes; `trust` and the tables after it
    need `compare(trust=)`):
        ranking: One row per method: the main number of each table, and the warnings in words. Read this first. `shown`:
            the number of languages that pass, see `compare`; `shown_low`, `shown_high`: its 95 % interval over
            documents, against the same random sets. `own_hurt_most`: the number of languages that their own units hurt
            most as measured, in nats per token and in bits per byte, with the same interval. `compared_on`, `place`,
            `area`: the method's row of `equal_size`, on the kind of unit on which it has most points; rows come in the
            order of that table. Without a model these columns and `shown` to `share_above_random` are absent, and
            methods are not ranked.
        agreement: One row per pair of methods, averaged over languages; see `overlaps.agreement` for the columns.
        agreement_by_language: The same, language by language.
        sizes: Units of each language, different units (`units`), their share of all units of the method's bases
            (`rate`), the mean Jaccard overlap of two languages' sets, and the set's notes. Methods with the fewest
            languages below 10 units come first.
        layers: Units in each layer (rows: method and layer) and language (columns).
        cost: Seconds in the pass (the method's own statistics; statistics of several methods count for each, the
            model's forward pass, `attrs["forward"]`, for none, its backward pass for methods with gradients), seconds
            for scoring and selecting, bytes of these statistics in the run, and whether these need gradients or single
            documents. Cheapest first.
        warnings: Reasons not to trust a number: `method`, `warning`, `languages`.
        skipped: Methods that were left out (`bases` is empty), and kinds of units (`bases`) that the model could not
            give to the other methods, with the reason.
        effects: In-language effects of ablation on all hold-out text: the counts of the ranking, and means over
            languages in total and per neuron; languages without units count as 0 in total and not at all per neuron.
            One NaN makes a mean NaN.
        effects_by_language: The same, language by language, with the columns of `verdict.rises`, the intervals of
            `certainty` (of `own_rise`, of its `difference` to `worst_other_rise`, `hurt_most_share`,
            `surely_hurt_most`), and the verdict: `p` and `q` of `control_by_language`, `above_random`, `passes`. Here
            `units` counts different units; in tables with one row per method, memberships.
        specificity: The in-language loss increase against the largest other-language one: means over languages, their
            difference and ratio (NaN where the largest is not positive).
        control: The in-language loss increase against that of random sets with as many units in each layer and, where
            the run has activities, as active in that language (`matched` in `control_by_language`), on the first tokens
            of the hold-out text: mean z, mean p, the share of languages above their random sets (`share_above_random`:
            q at most 0.05), and the mean `activity` of the units found and of random ones (`random_activity`).
        control_by_language: The same, language by language: `own_rise`, `random_mean`, `random_sd`, `z`, `p`
            (`verdict.p_value`: the share of sets, including the language's own, with at least this loss increase; NaN
            without units), `q` (`p` adjusted for all methods and languages of the table, Benjamini-Hochberg; methods
            with the same set count once), `seeds`,
            `activity`, `random_activity` (see `controls.Draws.active`), `matched` (in words).
        control_points: The loss increase of each random set.
        losses: The rows of `perplexity_table` behind `effects` and `specificity`.
        curves: Effects of each method's first units, by their number, on the short text: one row per method, kind of
            unit (`bases`), language and number of units, for the languages in which the method ranks as many
            (`available`). `own_rise`, `difference` (to the largest other-language loss increase), both with the
            intervals of `certainty`, and the in-language loss increase of random sets with as many units in each layer,
            about as active: `random_mean`, `random_low`, `random_high` (the least and the most).
        equal_size: One row per kind of unit and method, the largest `area` first: the mean of the difference over the
            logarithm of the number of units (area under the curve, over its range) and over languages, with a 95 %
            interval over documents; `own_area` and `random_area`: the same of the in-language loss increase, also
            of random units. `minus_leader`: the distance to the first method, with a 95 % interval for all pairs of
            methods together. `place` in words: only a method whose distance from all others excludes 0 leads. A point
            is a language and a number of units: a method with fewer than half of `points_asked` has no area and is
            compared with the leader on the points that both have (`points_compared`, at the sizes `units`).
            `fewest_available`: the units that the method ranks in the language with the fewest.
        trust: One row per method with the main numbers of the checks that were done.
        stability, leave_one_out, nulls, survival, ablations, off_target, not_done: The tables of the checks, and one
            for each check of your own.

    Attributes:
        tables: All tables, by name.
        found: Each method's set.
        scores: Each method's scores.
        run: The run of the comparison.
        model: The run's model; None where effects were not measured.
        corpora: The text of the measurements; None without a model.
        rows: All known checks, whether or not they ran.
        started: When the comparison began.
    """

    def plot(self) -> Any:
        """The main figure, as a `Chart`, which a notebook shows.

        The effect of each method by its number of units, on the first kind of unit; without sizes, the mean
        in-language loss increase per method, beside other languages and random units; without a model, the agreement of
        methods beyond chance.
        """
        from lsn_lens.comparison.figures import first_figure  # which loads the figure libraries

        return first_figure(self)

    def report(
        self,
        folder: Path | str,
        *,
        settings: Mapping[str, Any] | None = None,
        started: datetime | None = None,
        note: str = "",
        sections: Sequence[Any] = (),
        png: bool = False,
    ) -> Path:
        """Write report.html, report.md, provenance.json, tables/ and neurons/ into a folder.

        Args:
            folder: Output folder; it is created if missing.
            settings: Settings for the provenance, as plain data.
            started: Start time, with a time zone; by default the start of `compare`.
            note: A paragraph beside the ranking, for example how sizes were chosen.
            sections: `report.Section`s of your own, with figures and tables, after those of the methods.
            png: Also draw every figure into figures/, a quarter of a second each.

        Returns:
            The path of report.html.
        """
        from lsn_lens.comparison import page

        return page.write(self, folder, settings or {}, started or self.started, note, sections, png)

    def _about(self) -> list[str]:
        lines = [f"tables: {', '.join(self)}"]
        if absent := [name for name in (*OF_MODEL, *OF_SIZES) if name not in self and self.model is None]:
            lines.append(f"not measured: {', '.join(absent)}. Give compare a model and corpora.")
        units = [f"{name} ({bases})" if bases else name for name, bases in self.skipped[["method", "bases"]].to_numpy()]
        left_out = by_reason(dict(zip(units, self.skipped["reason"], strict=True)))
        lines += [f"left out: {', '.join(names)}: {why}" for why, names in left_out.items()]
        lines += [f"{doubts.EVERY}: {words}" for words in [doubts.in_words(self.warnings, doubts.EVERY)] if words]
        return lines

    def _head(self) -> str:
        """The number of methods and their order."""
        why = "no model was given" if "effects" not in self else "no sizes were given"
        order = "by their effect at equal size on one kind of unit" if "equal_size" in self else f"not ranked, as {why}"
        return f"{len(self.ranking)} methods, {order}"

    def __repr__(self) -> str:
        table = self.ranking.to_string(index=False, float_format="{:.3g}".format, max_colwidth=60)
        return "\n".join([f"Comparison of {self._head()}", table, *self._about()])

    def _repr_html_(self) -> str:
        about = "".join(f"<p>{html.escape(line)}</p>" for line in self._about())
        columns = [each for each in SHOWN if each in self.ranking]
        table = self.ranking[columns].to_html(index=False, float_format="{:.3g}".format, na_rep="n/a")
        doubted: Any = zip(self.ranking["method"], self.ranking["warnings"], strict=True)
        about += "".join(f"<p>{html.escape(f'{name}: {words}')}</p>" for name, words in doubted if words)
        name = next(each for each in SKETCHED if each in self.ranking)
        figure = sketches.bars(self.ranking.set_index("method")[name].to_dict(), SKETCHED[name])
        folded = f"<details><summary>warnings, tables, what was left out</summary>{about}</details>"
        return f"<p><b>Comparison</b> of {self._head()}</p>{figure}{table}{folded}"
