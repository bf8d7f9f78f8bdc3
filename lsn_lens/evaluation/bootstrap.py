"""Intervals from bootstrap replicates."""

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t


def check_replicates(replicates: int, level: float) -> None:
    """Refuse fewer than two replicates, and a level outside (0, 1)."""
    if replicates < 2:
        raise ValueError(f"replicates={replicates}: expected 2 or more, better 1,000.")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share in (0, 1), for example 0.95.")


def percentile_interval(
    replicates: Float[np.ndarray, "replicate *value"], draws: int, level: float = 0.95
) -> tuple[Float[np.ndarray, "*value"], Float[np.ndarray, "*value"]]:
    """Expanded percentile interval of bootstrapped values.

    Plain percentiles of few draws are too narrow for two reasons: replicates vary as if divided by n instead of n - 1,
    and like a normal distribution instead of Student's t. Percentiles further out correct both. They are not
    interpolated: the outer value that occurred is taken.

    Args:
        replicates: Values, replicates first.
        draws: Number of items to draw from (shards, documents), 2 or more.
        level: Share of such intervals that should contain the true value.

    Returns:
        Lower and upper bounds.

    Source: Hesterberg 2015 (The American Statistician 69, arXiv 1411.5279), "expanded percentile".
    """
    tail = norm.cdf(np.sqrt(draws / (draws - 1)) * t.ppf((1 - level) / 2, draws - 1))
    low = np.quantile(replicates, tail, axis=0, method="lower")
    high = np.quantile(replicates, 1 - tail, axis=0, method="higher")
    return np.asarray(low), np.asarray(high)


def mean_interval(values: Float[np.ndarray, "value"], level: float = 0.95) -> tuple[float, float, float]:
    """The mean of a few independent values, and Student's t interval around it (NaN for a single value)."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - reach, mean + reach
