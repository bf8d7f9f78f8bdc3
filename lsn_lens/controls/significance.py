"""Permutation tests of a method: units found on permuted labels, and units where a language stands out."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.controls.contrasts import Side, contrast_of
from lsn_lens.controls.permutations import Permutations, Tests, max_t, scores_test, values_test
from lsn_lens.controls.resampling import check_shards, load_shards, permuted, seeds
from lsn_lens.methods.base import Method, check_shares, scores_of, units_of
from lsn_lens.methods.catalogue import get_method
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run
from lsn_lens.workers import Report, mapped

LEVEL = 0.05  # default level of both tests

Values = Mapping[str, Float[Tensor, "language layer unit"]]
UnitValues = Mapping[str, Float[Tensor, "layer unit"]]
Units = dict[str, Bool[Tensor, "layer unit"]]


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """The result of `permutation_test`.

    Attributes:
        found: The method's set on the true labels.
        scores: Its scores on the true labels.
        p_values: By basis, of the language's own contrast at each unit. The null: the shards of the language and of
            another one can be exchanged (with `alike`, of more than so many others).
        family_wise: By basis, `p_values` adjusted for all units, languages and bases (max-T).
        unit_p_values: By basis, of each unit, whatever the language. The null: the shards of all languages can be
            exchanged. A small p shows that some languages differ, not which.
        unit_family_wise: By basis, `unit_p_values` adjusted for all units and bases (max-T).
        counts: Units of each language that the method finds on permuted labels.
        totals: Different units that the method finds on permuted labels.
        means: Mean score of the units found on permuted labels, as `mean_score`; not finite if none is found.
        pooled: Whether the p-values pool the null statistics of all units.
        chosen: The scores that the method chooses: "high", "low" or "both".
        alike: Number of other languages that may be like the one that stands out.
    """

    found: NeuronSet
    scores: NeuronScores
    p_values: Values
    family_wise: Values
    unit_p_values: UnitValues
    unit_family_wise: UnitValues
    counts: Int[Tensor, "permutation language"]
    totals: Int[Tensor, "permutation"]
    means: Float[Tensor, "permutation"]
    pooled: bool
    chosen: Side = "high"
    alike: int = 0

    def significant(self, q: float = LEVEL) -> NeuronSet:
        """Where a language stands out, by Benjamini-Hochberg at `q` over all units, languages and bases together."""
        return self._set(_reject(self.p_values, q), f"q <= {q:g}")

    def beyond_null(self, level: float = LEVEL) -> NeuronSet:
        """Where a language stands out more than any language at any unit in all but `level` of the permutations."""
        return self._set({basis: each <= level for basis, each in self.family_wise.items()}, f"max-T p <= {level:g}")

    def significant_units(self, q: float = LEVEL) -> Units:
        """Units at which languages differ, by Benjamini-Hochberg at `q` over all units and bases together."""
        return _reject(self.unit_p_values, q)

    def units_beyond_null(self, level: float = LEVEL) -> Units:
        """Units at which languages differ more than they do at any unit in all but `level` of the permutations."""
        return {basis: each <= level for basis, each in self.unit_family_wise.items()}

    def mean_score(self) -> float:
        """Mean score of the set; where both sides are chosen, mean distance from the language's median score."""
        return _mean_score(self.scores, self.found, self.chosen)

    def set_p_value(self) -> float:
        """The p-value of two permutation tests (number of units; mean score), the smaller one times two.

        The mean score counts as the method chooses: high, low or far from the middle. The smaller p is doubled
        (Bonferroni), at most 1. It is a p-value of the whole set, not of a unit or language: the null is that no label
        means anything anywhere.
        """
        sign = -1 if self.chosen == "low" else 1
        pairs = ((self.totals.double(), float(len(self.found))), (sign * self.means, sign * self.mean_score()))
        return min(1.0, 2 * min(float(max_t(torch.tensor(value), null)) for null, value in pairs))

    def _set(self, masks: Mapping[str, Bool[Tensor, "language layer unit"]], rule: str) -> NeuronSet:
        return NeuronSet(self.scores.languages, masks, f"{self.scores.method}, {rule}", origin=self.scores.origin)

    def to_frame(self) -> pd.DataFrame:
        """One row per member of `found`.

        Returns:
            `language`, `basis`, `layer`, `unit`, `score`; `p_value` and `family_wise` of the language at the unit;
            `unit_p_value` and `unit_family_wise` of the unit, the same for all its languages.
        """
        frame, masks = self.found.to_frame(), self.found.masks
        columns = {"score": self.scores.values, "p_value": self.p_values, "family_wise": self.family_wise}
        columns |= {
            name: {basis: each.expand_as(masks[basis]) for basis, each in values.items()}
            for name, values in (("unit_p_value", self.unit_p_values), ("unit_family_wise", self.unit_family_wise))
        }
        for name, values in columns.items():
            frame[name] = torch.cat([values[basis][mask] for basis, mask in masks.items()]).numpy()
        return frame


def permutation_test(
    run: Run,
    method: str | Method = "lape",
    *,
    permutations: int = 999,
    seed: int = 0,
    paired: bool = False,
    pool: bool = False,
    alike: int = 0,
    progress: bool = True,
) -> PermutationTest:
    """Test where a language stands out, where languages differ, and what the method finds on permuted labels.

    Three questions, three nulls:

    * Does *this language* stand out at this unit? It is contrasted with each other language in turn, and only labels of
      these two are permuted; its p is the largest of these (an intersection-union test). So it must lie beyond *every*
      other language, on the side that the method uses; differences among the others do not matter. The contrast is of
      the values that the method compares, see `contrasts.CONTRASTS`: a difference of mean probabilities, activations,
      importances or responses.
    * Do languages differ at this *unit*? Labels of all languages are permuted. A small p does not show which language
    differs.
    * Does the method find as much, or score as high, where no label means anything? `counts`, `totals`, `means`, and
      `set_p_value` of the whole set.

    p = (1 + permutations whose statistic is at least the observed one) / (1 + permutations), so never below 1 / (1 +
    permutations): with 4,608 units of 8 languages and q = 0.05, Benjamini-Hochberg at 999 permutations needs 738 pairs
    of unit and language at that smallest p to find any. A score of -inf (the unit cannot belong to the language) has p
    = 1. A statistic depends on one unit alone and has the same scale in all units, so that thresholds pooled over units
    do not matter. A small p shows that texts differ, not why.

    A method without an entry in `CONTRASTS` is tested by its scores, with the same permutations. That is valid only if
    a unit's score depends on this unit alone, and needs one scoring per permutation and pair of languages.

    Args:
        run: A run with at least 5 shards per language.
        method: A name of `lsn.METHODS` or a method object.
        permutations: Number of permutations.
        seed: Seed of the draws.
        paired: Permute labels among shards of one position only, for parallel text; always so for "sharing", and for
            "transfer" of type 1.
        pool: Compare a unit with the null statistics of all units of the basis (of the same two languages). These have
            the same standard deviation whatever the unit, but not quite the same tails; in exchange p-values can be
            small with few permutations.
        alike: Number of other languages that may be like the one that stands out, for units that a few languages share:
            the language must lie beyond all others, and p is multiplied by `alike` + 1.
        progress: Show a progress bar.

    Raises:
        KeyError: The run lacks a statistic that the method needs.
        ValueError: Too few shards or permutations, or `alike` is not below the number of other languages.

    Source: Phipson and Smyth 2010 (the form of p); Berger 1982 (intersection-union); Benjamini and Heller 2008
    (`alike`: partial conjunction, by Bonferroni); Westfall and Young 1993 (max-T, single step). Labels of two languages
    at a time, and one maximum over all pairs of languages (drawn independently, as by Sidak's inequality), are ours.
    """
    if permutations < 1:
        raise ValueError(f"permutations={permutations}: expected 1 or more, better 999.")
    if not 0 <= alike < max(1, len(run.languages) - 1):
        raise ValueError(f"alike={alike}: expected 0 or more, and fewer than the {len(run.languages) - 1} others.")
    check_shards(run, paired)
    chosen = get_method(method)
    small, declared = load_shards(run, [chosen]), contrast_of(chosen)
    scores = scores_of(chosen, small.statistics)
    side: Side = declared[0].chosen(declared[1]) if declared else "high"
    with tqdm(total=permutations, desc="permute", disable=not progress) as bar:
        measure = partial(_null, small, chosen, side, paired)
        counts, totals, means = zip(*mapped(measure, seeds(seed, permutations), bar.update), strict=True)
    tests = contrast_test(small, chosen, scores, Permutations(permutations, seed, paired, pool), alike)
    return PermutationTest(
        units_of(chosen, scores), scores, tests.p_values, tests.family_wise, tests.unit_p_values,
        tests.unit_family_wise, torch.tensor(counts), torch.tensor(totals), torch.tensor(means, dtype=torch.float64),
        pool, side, alike,
    )  # fmt: skip


def contrast_test(run: Run, method: Method, scores: NeuronScores, draws: Permutations, alike: int = 0) -> Tests:
    """The p-values of `permutation_test`: 1 where the scores say that a unit cannot belong to the language, or to any.

    Takes the arguments of `permutation_test`, and the method's `scores` on this run.
    """
    declared = contrast_of(method)
    tests = values_test(run, *declared, draws, alike) if declared else scores_test(run, method, scores, draws, alike)
    can = {basis: each > -torch.inf for basis, each in scores.values.items()}
    some = {basis: scores.rank(basis) > -torch.inf for basis in can}
    return Tests(
        *({basis: each[basis].where(where[basis], 1.0) for basis in where} for each, where in (
            (tests.p_values, can), (tests.family_wise, can),
            (tests.unit_p_values, some), (tests.unit_family_wise, some),
        ))
    )  # fmt: skip


def _null(
    run: Run, method: Method, side: Side, paired: bool, seed: int, report: Report
) -> tuple[list[int], int, float]:
    """What the method finds on labels permuted once: units per language, different units, and their mean score."""
    scores = method.score(permuted(run, seed, paired=paired).statistics)
    found = method.select(scores)
    report(1)
    return found.counts().to_list(), len(found), _mean_score(scores, found, side)


def _mean_score(scores: NeuronScores, found: NeuronSet, side: Side) -> float:
    parts = []
    if side == "both":
        bases = {basis: scores.values[basis].double().flatten(1) for basis in found.masks}
        middle = torch.cat(list(bases.values()), dim=1)
        middle = middle.where(middle > -torch.inf, torch.nan).nanmedian(1).values
        parts = [(each - middle[:, None]).abs()[found.masks[basis].flatten(1)] for basis, each in bases.items()]
    else:
        parts = [scores.values[basis][mask].double() for basis, mask in found.masks.items()]
    values = torch.cat(parts)
    return float(values.mean()) if len(values) else math.inf if side == "low" else -math.inf


def null_counts(
    run: Run,
    methods: Iterable[str | Method],
    *,
    permutations: int = 20,
    seed: int = 0,
    paired: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The number of units that each method finds on permuted labels, beside the true number.

    Many rules choose the same number whatever the labels; then the number is no evidence. `beyond_null`, `significant`
    and `differing` count what the tests of `permutation_test` find, chosen by the method or not.

    Other arguments and errors are those of `permutation_test`; a method object is named by its hyper-parameters.

    Returns:
        One row per method and language, and one with the language "all" for different units: `method`, `language`,
        `units`, `null_mean`, `null_low`, `null_high` (smallest and largest count), `fixed` (the count was the same
        under every permutation and the true labels), `beyond_null` (units at which the language stands out, max-T at
        0.05), `significant` (the same, Benjamini-Hochberg at 0.05), `differing` (only with "all": units at which
        languages differ, whichever, Benjamini-Hochberg at 0.05), `permutations`, and `needed`: how many pairs of unit
        and language must have the smallest p that so many permutations allow before Benjamini-Hochberg finds any. No
        test finds anything with fewer than 19.

    Raises: as `permutation_test`.
    """
    frames = []
    for method in [methods] if isinstance(methods, str) else methods:
        test = permutation_test(run, method, permutations=permutations, seed=seed, paired=paired, progress=progress)
        sets = {"units": test.found, "beyond_null": test.beyond_null(), "significant": test.significant()}
        columns = {name: [*each.counts().to_list(), len(each)] for name, each in sets.items()}
        null = torch.cat([test.counts, test.totals[:, None]], dim=1).double()
        frame = pd.DataFrame(
            {"method": str(method), "language": [*test.found.languages, "all"], "units": columns["units"]}
        )
        frame["null_mean"] = null.mean(0).numpy()
        frame["null_low"], frame["null_high"] = null.amin(0).int().numpy(), null.amax(0).int().numpy()
        frame["fixed"] = frame["null_low"].eq(frame["null_high"]) & frame["null_low"].eq(frame["units"])
        frame["beyond_null"], frame["significant"] = columns["beyond_null"], columns["significant"]
        differing = sum(int(mask.sum()) for mask in test.significant_units().values())
        frame["differing"] = pd.array([pd.NA] * len(test.found.languages) + [differing], dtype="Int64")
        tested = sum(each.numel() for each in test.p_values.values())
        frames.append(frame.assign(permutations=permutations, needed=math.ceil(tested / (1 + permutations) / LEVEL)))
    if not frames:
        raise ValueError("no methods: name at least one.")
    return pd.concat(frames, ignore_index=True)


def benjamini_hochberg(p_values: Float[Tensor, "*axes"], q: float = LEVEL) -> Bool[Tensor, "*axes"]:
    """Which p-values are significant at an expected share of false ones of at most `q`.

    Source: Benjamini and Hochberg 1995, through `scipy.stats.false_discovery_control`. Proved for p-values that are
    independent or positively dependent (Benjamini and Yekutieli 2001), as those of units that rise and fall together
    are; contrasts of two languages with each other are not, which `experiments/null_simulation.py` looks at.
    """
    check_shares(q=q)
    adjusted = false_discovery_control(p_values.flatten().numpy())
    return torch.from_numpy(adjusted <= q).view(p_values.shape)


def _reject(p_values: Mapping[str, Tensor], q: float) -> dict[str, Tensor]:
    """By Benjamini-Hochberg over all bases together."""
    flat = benjamini_hochberg(torch.cat([each.flatten() for each in p_values.values()]), q)
    parts = flat.split([each.numel() for each in p_values.values()])
    return {basis: part.view(each.shape) for part, (basis, each) in zip(parts, p_values.items(), strict=True)}
