"""Methods side by side: what `compare` gives back."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lsn_lens.comparison import doubts
from lsn_lens.comparison.tables import OF_MODEL, Tables


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Tables):
    """One table for each question: `comparison["losses"]`, `comparison.losses`, `list(comparison)`.

    Rises are in nats per token unless they say otherwise. `units` counts different units in `ranking`, `sizes`, `nulls`
    and `trust`; in tables of effects and losses memberships, in which a unit of two languages counts twice.

    No table is in the order of how large an effect is: effects follow how many units a set has, so that order would not
    be one of methods. `equal_size` has effects of as many units of each.

    Tables, those from `effects` to `equal_size` with a model, `trust` and those behind it where it was asked for:
        ranking: One row per method: the main number of each table, and the warnings in words. Read this first. `shown`:
            how many languages pass, which takes an own rise beyond that of random sets (`q` at most 0.05) and the own
            language surely hurt most; `shown_low`, `shown_high`: between which numbers it would be on other documents
            (95 %, against the same random sets). `own_hurt_most`: for how many languages the own one is hurt most as
            measured, in nats per token and in bits per byte, with the same interval. Most shown first; without a model
            those of `shown` to `share_above_random` are absent, and methods are not ranked.
        agreement: One row per pair of methods, averaged over languages; see `agreement.agreement` for the columns.
        agreement_by_language: The same, language by language.
        sizes: Units of each language, different units (`units`), their share of all units of the method's bases
            (`rate`), the mean Jaccard overlap of two languages' sets, and the set's notes. Methods with the fewest
            languages below 10 units come first.
        layers: Units in each layer (rows: method and layer) and language (columns).
        cost: Seconds in the pass (the method's own statistics; those that several methods need count for each, the
            model's forward pass, `attrs["forward"]`, for none, its backward pass for those with gradients), seconds
            for scoring and selecting, bytes of the run
            that hold its statistics, and whether these need gradients or single documents. Cheapest first.
        warnings: Why not to trust a number: `method`, `warning`, `languages`.
        skipped: Methods that were left out, and why; and of methods that were not, the kinds of units (`bases`) that
            the model could not give them. `bases` is empty where the method was left out.
        effects: What ablating a language's units does to it on all held-out text: the counts of the ranking, and means
            over languages in total and per neuron, those without units counting as 0 in total and not at all per
            neuron. A rise that is no number makes its mean none.
        effects_by_language: The same, language by language, with what `verdict.rises` says of the others, the intervals
            of `certainty.certainty` (of the own rise, of its `difference` to the worst other's, `hurt_most_share`,
            `surely_hurt_most`), and the verdict: `p` and `q` of `control_by_language`, `above_random`, `passes`. Its
            `units` are different ones, those of tables with one row per method memberships.
        specificity: The rise of the own language against that of the worst other one: means over languages, their
            difference and ratio (NaN where the worst other does not rise).
        control: How a language's rise compares to that of random sets with as many units in each layer and, where the
            run has it, as active in that language (`matched` in `control_by_language`), on the first tokens of its
            held-out text: mean z, mean p, the share of languages above their random sets (`share_above_random`: q at
            most 0.05), and the mean `activity` of the units found and of random ones (`random_activity`).
        control_by_language: The same, language by language: `own_rise`, `random_mean`, `random_sd`, `z`, `p`
            (`verdict.p_value`: the share of sets, its own among them, that do as much; NaN without units), `q` (the
            same adjusted for all methods and languages of the table, Benjamini-Hochberg), `seeds`, `activity`,
            `random_activity` (see `controls.Draws.active`), `matched` (in words).
        control_points: The random sets' rises one by one.
        losses: What `perplexity_table` measures, for `effects` and `specificity`.
        equal_size: Effects of the best units of each method, as many for all on the same kind of unit (`units` of a
            language, mean), measured on the short text; the largest mean difference first. Empty where no two methods
            can be compared so.
        trust: One row per method, the main number of each check that was done; see `trust.trust_table`.
        stability, leave_one_out, nulls, survival, ablations, off_target, not_done: The tables behind it, and one for
            each check of your own; see `trust.measure`.

    Attributes:
        tables: By name.
        found: Each method's set.
        scores: Each method's scores.
        run: What was compared on.
        model: The run's model; None where effects were not measured.
        corpora: The text that was measured on; None without a model.
        rows: The checks that there are, asked for or not.
        started: When the comparison began.
    """

    def plot(self) -> Any:
        """The figure to look at first, as a `Chart`, which a notebook shows.

        Each method's mean rise of the own language, of other languages and under random units; without a model, how far
        methods agree beyond chance.
        """
        from lsn_lens.comparison.figures import first_figure  # which loads what draws figures

        return first_figure(self)

    def report(
        self,
        folder: Path | str,
        *,
        settings: Mapping[str, Any] | None = None,
        started: datetime | None = None,
        note: str = "",
        sections: Sequence[Any] = (),
    ) -> Path:
        """Write report.html, report.md, provenance.json, tables/, figures/ and neurons/ into a folder.

        Args:
            folder: Made where it is not there.
            settings: What was asked for, as plain data, for the provenance.
            started: When the work began, with a time zone; when `compare` did by default.
            note: A paragraph beside the ranking, for example how sizes were chosen.
            sections: `report.Section`s of your own, with figures and tables, after those of the methods.

        Returns:
            The path of report.html.
        """
        from lsn_lens.comparison import page

        return page.write(self, folder, settings or {}, started or self.started, note, sections)

    def _about(self) -> list[str]:
        lines = [f"tables: {', '.join(self)}"]
        if absent := [name for name in OF_MODEL if name not in self]:
            lines.append(f"not measured: {', '.join(absent)}. Give compare a model and corpora.")
        for row in self.skipped.to_dict("records"):
            lines.append(f"left out: {row['method']}{row['bases'] and ' on ' + row['bases']}, {row['reason']}")
        lines += [f"{doubts.EVERY}: {words}" for words in [doubts.in_words(self.warnings, doubts.EVERY)] if words]
        return lines

    def _head(self) -> str:
        """How many methods, and in which order."""
        order = "those that pass for most languages first" if "effects" in self else "not ranked, as no model was given"
        return f"{len(self.ranking)} methods, {order}"

    def __repr__(self) -> str:
        table = self.ranking.to_string(index=False, float_format="{:.3g}".format, max_colwidth=60)
        return "\n".join([f"Comparison of {self._head()}", table, *self._about()])

    def _repr_html_(self) -> str:
        about = "".join(f"<p>{html.escape(line)}</p>" for line in self._about())
        table = self.ranking.to_html(index=False, float_format="{:.3g}".format)
        return f"<p><b>Comparison</b> of {self._head()}</p>{table}{about}"
