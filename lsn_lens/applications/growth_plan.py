"""The corpus plan: how much text of each language to train on, from its loss; and how far the plan can be trusted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

MOST = 1 - 1e-9  # an own share from which on the plan needs unbounded text
FEWEST = 3


@dataclass(frozen=True)
class LossCurve:
    """The three losses of a language that the plan needs, all on the same text, from training on this language.

    Attributes:
        start: Loss when the training on the language starts.
        best: Loss at the checkpoint with the best score.
        end: Loss after convergence, or the lowest that was seen.
        available: Tokens of the language that exist; None for no limit.

    Raises:
        ValueError: Losses that are not finite, a start that is not above the end, or no tokens.
    """

    start: int | float
    best: int | float
    end: int | float
    available: int | float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.start, self.best, self.end))) or not self.start > self.end:
            raise ValueError(
                f"{self!r}: expected finite losses, and a start above the end: the share of the own system is where "
                "the best loss lies between them."
            )
        if self.available is not None and not self.available > 0:
            raise ValueError(f"available={self.available}: expected a number of tokens above 0, or None.")


def own_share(loss: int | float, start: int | float, end: int | float) -> float:
    """The share of a language's own system, in [0, 1], from its loss: where the loss lies between start and end.

    Raises:
        ValueError: A start that is not above the end.

    Source: the linear proxy P ~ (alpha - l) / (alpha - beta) of "Babel Tower Hypothesis" (arXiv 2412.07298). Whether
    the paper's P is the share of the new or of the dominant language could not be verified; here it is the new one's.
    """
    curve = LossCurve(start, loss, end)
    return float(min(1.0, max(0.0, (curve.start - loss) / (curve.start - curve.end))))


def share_of_tokens(tokens: int | float, dominant_tokens: int | float) -> float:
    """The share of a language beside the dominant one, if it has these numbers of tokens: P ~ eta_j / sum of eta.

    Raises:
        ValueError: Negative numbers, or no tokens at all.
    """
    if not (tokens >= 0 and dominant_tokens >= 0 and 0 < tokens + dominant_tokens < math.inf):
        raise ValueError(f"tokens={tokens}, dominant_tokens={dominant_tokens}: expected numbers of tokens, not all 0.")
    return tokens / (tokens + dominant_tokens)


def tokens_of_share(share: int | float, dominant_tokens: int | float) -> float:
    """The tokens of a language that give it this share beside the dominant one; the inverse of `share_of_tokens`.

    Raises:
        ValueError: A share outside [0, 1), which no number of tokens gives, or no tokens of the dominant language.
    """
    if not 0 <= share < MOST:
        raise ValueError(f"share={share}: expected [0, 1); a share of 1 needs unbounded text.")
    if not 0 < dominant_tokens < math.inf:
        raise ValueError(f"dominant_tokens={dominant_tokens}: expected a number of tokens above 0.")
    return dominant_tokens * share / (1 - share)


def corpus_plan(curves: Mapping[str, LossCurve], dominant_tokens: int | float) -> pd.DataFrame:
    """The tokens of each new language: its share from its best loss, its tokens from its share.

    Each language is planned beside the dominant language alone: that new languages do not act on each other is assumed.

    Args:
        curves: New language -> its losses.
        dominant_tokens: Tokens of the dominant language, which the plan leaves as they are.

    Returns:
        One row per language: `language`, `own_share`, `wanted` tokens (infinite for a share of 1), `available`,
        `planned` (the smaller of both; NaN for a share of 1 without a limit), and `note`.

    Raises:
        ValueError: No languages, or no tokens of the dominant language.

    Source: algorithm 1 of "Babel Tower Hypothesis" (arXiv 2412.07298), as its reviews describe it.
    """
    if not curves:
        raise ValueError("no languages to plan: give at least one LossCurve.")
    rows = []
    for language, each in curves.items():
        share = own_share(each.best, each.start, each.end)
        wanted = tokens_of_share(share, dominant_tokens) if share < MOST else math.inf
        available = math.inf if each.available is None else each.available
        planned, note = min(wanted, available), ""
        if share >= MOST:
            note = "the best loss is the lowest: the plan gives all that is available"
            planned = planned if planned < math.inf else math.nan
        elif wanted > available:
            note = "capped at what is available"
        rows.append({"language": language, "own_share": share, "wanted": wanted, "available": each.available,
                     "planned": planned, "note": note})  # fmt: skip
    return pd.DataFrame(rows)


def calibration(shares: pd.Series, working: pd.Series) -> dict[str, Any]:
    """How well the share from the loss agrees with the measured working-language share, over checkpoints.

    Checkpoints of one training depend on each other, so that no interval or p-value is given: two curves that both
    rise correlate whatever they measure. `changes_pearson` is the correlation of their changes, which does not profit
    from a common trend.

    Args:
        shares: `own_share` by checkpoint.
        working: Working-language share at the same checkpoints.

    Returns:
        `checkpoints`, `pearson`, `spearman`, `changes_pearson` (NaN for constant values or fewer than three
        checkpoints), `slope` of the working share on the share from the loss, and `mean_difference` and
        `largest_difference` (absolute).

    Raises:
        ValueError: Other checkpoints in one than in the other.
    """
    if list(shares.index) != list(working.index):
        raise ValueError(f"shares at {list(shares.index)}, working at {list(working.index)}: expected the same.")
    one, two = shares.to_numpy(float), working.to_numpy(float)
    moved = [np.diff(each) for each in (one, two)]
    can = len(one) >= FEWEST and np.ptp(one) > 0 and np.ptp(two) > 0
    apart = np.abs(one - two)
    return {
        "checkpoints": len(one),
        "pearson": _first(pearsonr(one, two)) if can else math.nan,
        "spearman": _first(spearmanr(one, two)) if can else math.nan,
        "changes_pearson": _first(pearsonr(*moved)) if can and all(np.ptp(each) > 0 for each in moved) else math.nan,
        "slope": float(np.polyfit(one, two, 1)[0]) if can else math.nan,
        "mean_difference": float(apart.mean()) if len(apart) else math.nan,
        "largest_difference": float(apart.max()) if len(apart) else math.nan,
    }


def _first(result: Any) -> float:
    """The correlation of a result of SciPy."""
    return float(result[0])
