"""The checks that there are, and which are asked for."""

from dataclasses import dataclass

from lsn_lens.comparison.checking import Check
from lsn_lens.comparison.draw_checks import LEAVE_ONE_OUT, NULLS, STABILITY
from lsn_lens.comparison.model_checks import ABLATIONS, OFF_TARGET, SURVIVAL
from lsn_lens.controls.significance import LEVEL

CHECKS: tuple[Check, ...] = (STABILITY, LEAVE_ONE_OUT, NULLS, SURVIVAL, ABLATIONS, OFF_TARGET)
FEWEST = 39  # permutations below which a p-value of two statistics cannot reach 0.05


@dataclass(frozen=True)
class Checks:
    """What `compare` does to see how far each method can be trusted.

    Attributes:
        replicates: Of the bootstrap, beside which each language is left out in turn; 0 leaves both out.
        permutations: Of labels; 0 leaves them out.
        without_draws: Names of methods that are not asked again on draws of the run: "average_precision" takes seconds
            for each, others a tenth of one.
        paired: Draw the same shards in all languages and permute labels within a position only, for parallel text.
            Methods that say `paired = True` themselves, as "sharing" does, are always drawn so.
        changed_text: Find units again on romanised text and on shuffled words, a pass over the text each, and, from the
            run alone, without other scripts. Takes a model.
        ablations: Every kind of ablation. Takes a model.
        off_target: Numbers, arithmetic, code, and what the model writes. Takes a model.
        seeds: Random sets beside the last two.
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
        if not all(isinstance(each, Check) for each in self.extra):
            raise ValueError(f"extra={self.extra!r}: expected checks, as in extra=(Check(name, run),).")


def asked(options: Checks) -> tuple[Check, ...]:
    """The checks that the options ask for, the user's own last.

    Raises:
        ValueError: One of the user's own has the name of another.
    """
    names = [row.table for row in (*CHECKS, *options.extra)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several checks are called {twice}: {[row.name for row in CHECKS]} have their names already.")
    return (*(row for row in CHECKS if getattr(options, row.option)), *options.extra)
