"""All checks, and the options that choose among them."""

from dataclasses import dataclass

from lsn_lens.comparison.checking import Check
from lsn_lens.comparison.draw_checks import LEAVE_ONE_OUT, NULLS, STABILITY
from lsn_lens.comparison.model_checks import ABLATIONS, OFF_TARGET, SURVIVAL
from lsn_lens.controls.significance import LEVEL

CHECKS: tuple[Check, ...] = (STABILITY, LEAVE_ONE_OUT, NULLS, SURVIVAL, ABLATIONS, OFF_TARGET)
RANKING = (  # columns of the ranking, which no check may rank
    "method", "shown", "shown_low", "shown_high", "own_hurt_most", "own_hurt_most_low", "own_hurt_most_high",
    "compared_on", "place", "area", "area_low", "area_high", "languages", "bases", "units", "own_rise",
    "own_minus_worst_other", "share_above_random", "agreement", "seconds", "warnings",
)  # fmt: skip
FEWEST = 39  # permutations below which a p-value of two statistics cannot reach 0.05


@dataclass(frozen=True)
class Checks:
    """What `compare` does to see how far each method can be trusted.

    Attributes:
        replicates: Bootstrap replicates; each language is also left out in turn. 0 skips both checks.
        permutations: Permutations of the labels; 0 skips this check.
        without_draws: Names of methods that are not run again on draws: "average_precision" takes seconds per draw,
            others a tenth of a second.
        paired: Draw the same shards in all languages and permute labels within a position only, for parallel text.
            Methods with `paired = True`, such as "sharing", are always drawn like this.
        changed_text: Find units again on romanised text and on shuffled words (one pass over the text each) and, from
            the run alone, without other scripts. Needs a model.
        ablations: Every kind of ablation. Needs a model.
        off_target: Loss on numbers, arithmetic and code, and the generated text. Needs a model.
        seeds: Random sets for `ablations` and `off_target`.
        extra: Checks of your own.
    """

    replicates: int = 200
    permutations: int = 99
    without_draws: tuple[str, ...] = ()
    paired: bool = False
    changed_text: bool = False
    ablations: bool = False
    off_target: bool = False
    seeds: int = 2
    extra: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        if self.replicates < 0 or self.replicates == 1:
            raise ValueError(f"replicates={self.replicates}: expected 2 or more, or 0 for none.")
        if self.permutations < 0 or 0 < self.permutations < FEWEST:
            raise ValueError(
                f"permutations={self.permutations}: expected {FEWEST} or more, below which no p-value reaches {LEVEL}, "
                "or 0 for none."
            )
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected 1 random set or more.")
        if not isinstance(self.extra, tuple | list) or not all(isinstance(each, Check) for each in self.extra):
            raise ValueError(f"extra={self.extra!r}: expected checks, as in extra=(Check(name, run),).")


def asked(options: Checks) -> tuple[Check, ...]:
    """The checks that the options choose, the user's own last.

    Raises:
        ValueError: Two checks have the same name or the same column, or one ranks a column that the ranking has.
    """
    rows = (*CHECKS, *options.extra)
    names, columns = [row.table for row in rows], [name for row in rows for name in {*row.columns, *row.ranked}]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several checks are called {twice}: {[row.name for row in CHECKS]} have their names already.")
    taken = {name for row in rows for name in row.ranked if name in RANKING} | {"method", "not_done"} & {*columns}
    taken |= {name for name in columns if columns.count(name) > 1}
    if taken:
        raise ValueError(
            f"columns={sorted(taken)} or ranked= of a check: other checks or the ranking have columns of these names. "
            "Give others in summary, columns and ranked."
        )
    return (*(row for row in CHECKS if getattr(options, row.option)), *options.extra)
