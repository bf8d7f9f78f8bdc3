"""Intervals of firing probabilities, and units that fire more in one language beyond them."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Num
from scipy.stats import beta, norm, t
from torch import Tensor

from lsn_lens.controls.resampling import check_shards
from lsn_lens.methods.base import check_languages
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import get_site
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import TOKENS
from lsn_lens.statistics.needs import Statistic


def jeffreys(
    successes: Num[Tensor, "*axes"], trials: Num[Tensor, "*axes"], level: float = 0.95
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Lower and upper bounds of a probability, with equal tails of a Beta(k + 1/2, n - k + 1/2).

    0 successes have the lower bound 0, and as many as trials the upper bound 1; without trials it is (0, 1). Numbers
    need not be whole (effective numbers).

    Raises:
        ValueError: More successes than trials, or fewer than none; a level outside (0, 1).

    Source: Brown, Cai and DasGupta 2001 (Statistical Science 16), with their changed limits at 0 and n successes.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share in (0, 1), for example 0.95.")
    k, n = (each.double().numpy() for each in (successes, trials))
    if (k < 0).any() or (k > n).any():
        raise ValueError("expected 0 <= successes <= trials everywhere.")
    tail = (1 - level) / 2
    low = np.where(k == 0, 0.0, beta.ppf(tail, k + 0.5, n - k + 0.5))
    high = np.where(k == n, 1.0, beta.ppf(1 - tail, k + 0.5, n - k + 0.5))
    return torch.as_tensor(low), torch.as_tensor(high)


def firing_interval(
    run: Run, site: str = "mlp_pre", *, level: float = 0.95, by: Literal["tokens", "shards"] = "shards"
) -> tuple[Float[Tensor, "language layer unit"], Float[Tensor, "language layer unit"]]:
    """Jeffreys bounds of each unit's probability to fire in each language.

    Args:
        run: A run that counted how often the site is above 0.
        site: For example "mlp_pre", whose sign is that of act(gate).
        level: Level of each interval, not adjusted.
        by: "tokens" takes tokens to be independent. They are not: those of one document go together, and the interval
            is too narrow. "shards" divides the numbers by the design effect, the variance between shards over that
            of independent tokens (1 at the least), and by the square of Student's over the normal quantile.

    Raises:
        KeyError: The run has no such counts.
        ValueError: Too few shards, or level or `by` out of range.

    Source: the effective number of tokens as in Korn and Graubard 1998 (Survey Methodology 24), who put it into the
    Clopper-Pearson interval; Jeffreys in its place is ours.
    """
    if by not in ("tokens", "shards"):
        raise ValueError(f'by={by!r}: expected "tokens" or "shards".')
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share in (0, 1), for example 0.95.")
    key = Statistic(get_site(site).name, "positive").key
    counts = run.statistics.get(key).double()
    tokens = run.statistics.tokens[..., None].double().expand_as(counts)
    if by == "shards":
        check_shards(run)
        effects = torch.stack([_design_effect(run, label, key, level) for label in run.languages])
        counts, tokens = counts / effects, tokens / effects
    return jeffreys(counts, tokens, level)


def _design_effect(run: Run, language: str, key: str, level: float) -> Float[Tensor, "layer unit"]:
    """Variance of a share between shards over that of independent tokens, with the correction for few shards."""
    pairs = [(part[key].double(), part[TOKENS][:, None].double()) for part in run.parts(language)]
    number, total = len(pairs), torch.stack([n for _, n in pairs]).sum(0)
    share = torch.stack([k for k, _ in pairs]).sum(0) / total
    between = torch.stack([(k - share * n).square() for k, n in pairs]).sum(0) * number / (number - 1) / total.square()
    ratio = (between / (share * (1 - share) / total)).nan_to_num(nan=1.0, posinf=1.0).clamp_min(1)
    tail = (1 - level) / 2
    return ratio * float(t.ppf(tail, number - 1) / norm.ppf(tail)) ** 2


def supported(
    run: Run, site: str = "mlp_pre", *, level: float = 0.95, by: Literal["tokens", "shards"] = "shards"
) -> NeuronSet:
    """Units that fire more often in one language than in any other, beyond the uncertainty of the probabilities.

    A unit belongs to the language with its highest probability if the lower bound there is above the upper bounds in
    all other languages. Bounds are for one unit and language at a time, not adjusted for their number.

    Other arguments and errors are those of `firing_interval`.

    Raises: as `firing_interval`; ValueError for fewer than two languages.
    """
    check_languages(run.languages)
    low, high = firing_interval(run, site, level=level, by=by)
    rest = torch.stack([torch.cat([high[:place], high[place + 1 :]]).amax(0) for place in range(len(high))])
    method = f"supported({site}, level={level:g}, by {by})"
    return NeuronSet(run.languages, {get_site(site).basis: low > rest}, method, origin=run.origin)
