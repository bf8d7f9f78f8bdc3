"""How much a method finds where there is nothing to find, and which units are more than chance."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.evaluation.resampling import check_shards, load_shards, permuted, seeds
from lsn_lens.methods import Method, get_method
from lsn_lens.methods.base import check_shares, scores_of, units_of
from lsn_lens.neurons import NeuronScores, NeuronSet
from lsn_lens.run import Run

LEVEL = 0.05  # of both tests, where no other is asked for

Values = Mapping[str, Float[Tensor, "language layer unit"]]


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """What `permutation_test` returns.

    Attributes:
        found: The method's set on the true labels.
        scores: Its scores on the true labels.
        p_values: By basis, how often a unit's score on permuted labels is at least the one on the true labels.
        family_wise: By basis, the same against the largest score of all units, languages and bases: p-values that
            are adjusted for all of them (max-T).
        counts: Units of each language that the method finds on permuted labels.
        totals: Different units that it finds there.
        means: Mean score of what it finds there, over all languages; -inf where it finds nothing.
        pooled: Whether the p-values pool the null scores of a language's units.
    """

    found: NeuronSet
    scores: NeuronScores
    p_values: Values
    family_wise: Values
    counts: Int[Tensor, "permutation language"]
    totals: Int[Tensor, "permutation"]
    means: Float[Tensor, "permutation"]
    pooled: bool

    def significant(self, q: float = LEVEL) -> NeuronSet:
        """Units by Benjamini-Hochberg at `q`, over all units, languages and bases together."""
        return self._set(_split(benjamini_hochberg(_flat(self.p_values), q), self.p_values), f"q <= {q:g}")

    def beyond_null(self, level: float = LEVEL) -> NeuronSet:
        """Units whose score beats what chance gives the best of all units, in all but `level` of the permutations."""
        return self._set({basis: each <= level for basis, each in self.family_wise.items()}, f"max-T p <= {level:g}")

    def mean_score(self) -> float:
        """Mean score of the set on the true labels, as `means` has it on permuted ones."""
        return _mean_score(self.scores, self.found)

    def set_p_value(self) -> float:
        """How often permuted labels give as many units, or units that score as high on average: the smaller p, doubled.

        Doubled (Bonferroni) because either is enough to tell true labels from permuted ones. At most 1.
        """
        pairs = ((self.totals, float(len(self.found))), (self.means, self.mean_score()))
        tail = min(float(max_t(torch.tensor(value), null.double())) for null, value in pairs)
        return min(1.0, 2 * tail)

    def _set(self, masks: Mapping[str, Bool[Tensor, "language layer unit"]], rule: str) -> NeuronSet:
        return NeuronSet(self.scores.languages, masks, f"{self.scores.method}, {rule}", origin=self.scores.origin)

    def to_frame(self) -> pd.DataFrame:
        """One row for each unit of `found`: `language`, `basis`, `layer`, `unit`, `score`, `p_value`, `family_wise`."""
        frame = self.found.to_frame()
        columns = {"score": self.scores.values, "p_value": self.p_values, "family_wise": self.family_wise}
        for name, values in columns.items():
            frame[name] = torch.cat([values[basis][mask] for basis, mask in self.found.masks.items()]).numpy()
        return frame


def permutation_test(
    run: Run,
    method: str | Method = "lape",
    *,
    permutations: int = 999,
    seed: int = 0,
    paired: bool = False,
    pool: bool = False,
    progress: bool = True,
) -> PermutationTest:
    """Each unit's p-values, and what the method finds, when shards' labels are permuted across languages.

    p = (1 + permutations whose score is at least the observed one) / (1 + permutations). The null is that a unit's
    shards are alike in all languages; a small p says that the language stands out among such mixtures, not why. A
    score of -inf (the unit cannot belong to the language) has p = 1. Scores that hang on other units (a pooled
    threshold) make the null one of all units together. No p is below 1 / (1 + permutations): with 4,608 units of 8
    languages and q = 0.05, Benjamini-Hochberg at 999 permutations needs 738 units at that smallest p to find any.

    Args:
        run: With 5 shards a language or more.
        method: A name of `lsn.METHODS` or a method object.
        permutations: Draws.
        seed: Of the draws.
        paired: Permute labels among shards of one place only, for parallel text.
        pool: Compare a unit with the null scores of all units of the language and basis. This takes their null
            distributions to be the same, which they are not where units differ in spread; in exchange p-values can
            be small with few permutations.
        progress: Show a progress bar.

    Raises:
        KeyError: The run lacks a statistic that the method needs.
        ValueError: Too few shards or permutations.

    Source: Phipson and Smyth 2010 (the form of p); Westfall and Young 1993 (max-T, single step).
    """
    if permutations < 1:
        raise ValueError(f"permutations={permutations}: expected 1 or more, better 999.")
    check_shards(run, paired)
    chosen = get_method(method)
    small = load_shards(run, [chosen])
    scores = scores_of(chosen, small.statistics)
    at_least = {basis: torch.zeros(each.shape, dtype=torch.int64) for basis, each in scores.values.items()}
    maxima, counts, totals, means = [], [], [], []
    for null in tqdm(_null_scores(small, chosen, permutations, seed, paired), total=permutations, desc="permute",
                     disable=not progress):  # fmt: skip
        for basis, values in null.values.items():
            at_least[basis] += (_pooled if pool else torch.ge)(values, scores.values[basis])
        maxima.append(max(float(values.max()) for values in null.values.values()))
        found = chosen.select(null)
        counts.append(torch.stack([mask.sum((1, 2)) for mask in found.masks.values()]).sum(0))
        totals.append(len(found))
        means.append(_mean_score(null, found))
    size = {basis: each[0].numel() if pool else 1 for basis, each in scores.values.items()}
    p_values = {basis: (1 + each).double() / (1 + permutations * size[basis]) for basis, each in at_least.items()}
    family_wise = {basis: max_t(each, torch.tensor(maxima)) for basis, each in scores.values.items()}
    true = units_of(chosen, scores)
    return PermutationTest(true, scores, p_values, family_wise, torch.stack(counts), torch.tensor(totals),
                           torch.tensor(means, dtype=torch.float64), pool)  # fmt: skip


def _null_scores(run: Run, method: Method, permutations: int, seed: int, paired: bool) -> Iterator[NeuronScores]:
    for each in seeds(seed, permutations):
        yield method.score(permuted(run, each, paired=paired).statistics)


def _mean_score(scores: NeuronScores, found: NeuronSet) -> float:
    values = torch.cat([scores.values[basis][mask].double() for basis, mask in found.masks.items()])
    return float(values.mean()) if len(values) else -math.inf


def _pooled(null: Tensor, observed: Tensor) -> Tensor:
    """How many null scores of a language are at least each observed one."""
    ordered = null.flatten(1).sort().values
    below = torch.searchsorted(ordered, observed.flatten(1).contiguous())
    return (ordered.shape[1] - below).view(observed.shape)


def null_counts(
    run: Run,
    methods: Iterable[str | Method],
    *,
    permutations: int = 20,
    seed: int = 0,
    paired: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """How many units each method finds on permuted labels, beside the true count.

    Many rules choose the same number whatever the labels say; for them the number says nothing, and only the scores
    can: `beyond_null` and `significant` count those.

    Args: as `permutation_test`, for each of `methods`; a method object is named by its hyper-parameters.

    Returns:
        One row a method and language, and one with the language "all" for different units: `method`, `language`,
        `units`, `null_mean`, `null_low`, `null_high` (smallest and largest count), `fixed` (the count was the same
        under every permutation and the true labels), `beyond_null` (max-T at 0.05), `significant` (Benjamini-Hochberg
        at 0.05), `permutations`, and `needed`: how many units of all languages must have the smallest p that so many
        permutations allow before Benjamini-Hochberg finds any. Both tests find nothing with fewer than 19.

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
        tested = sum(each.numel() for each in test.p_values.values())
        frames.append(frame.assign(permutations=permutations, needed=math.ceil(tested / (1 + permutations) / LEVEL)))
    if not frames:
        raise ValueError("no methods: name at least one.")
    return pd.concat(frames, ignore_index=True)


def benjamini_hochberg(p_values: Float[Tensor, "*axes"], q: float = LEVEL) -> Bool[Tensor, "*axes"]:
    """Which p-values are significant with an expected share of false ones of at most `q`, over all of them.

    Source: Benjamini and Hochberg 1995, through `scipy.stats.false_discovery_control`; holds for independent or
    positively dependent p-values.
    """
    check_shares(q=q)
    adjusted = false_discovery_control(p_values.flatten().numpy())
    return torch.from_numpy(adjusted <= q).view(p_values.shape)


def max_t(observed: Float[Tensor, "*axes"], maxima: Float[Tensor, "permutation"]) -> Float[Tensor, "*axes"]:
    """Family-wise p-values: how often the largest score on permuted labels is at least the observed one.

    Args:
        observed: Scores on the true labels.
        maxima: The largest score of all units under each permutation. Units count alike only where their scores
            have the same scale.

    Source: Westfall and Young 1993, single step.
    """
    ordered = maxima.double().sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, observed.double().contiguous())
    return (1 + at_least).double() / (1 + len(ordered))


def _flat(values: Values) -> Float[Tensor, "all"]:
    return torch.cat([each.flatten() for each in values.values()])


def _split(flat: Tensor, like: Values) -> dict[str, Tensor]:
    parts = flat.split([each.numel() for each in like.values()])
    return {basis: part.view(each.shape) for part, (basis, each) in zip(parts, like.items(), strict=True)}
