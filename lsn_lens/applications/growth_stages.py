"""Stages of a language's growth over checkpoints: translation, transition, stabilisation, or none of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lsn_lens.files import whole_number
from lsn_lens.methods.base import check_shares

STAGES = ("translation", "transition", "stabilisation")
FEWEST = 6  # checkpoints: with fewer the noise of a curve cannot be told from its shape
DRAWS = 2000  # curves of noise that set the tolerance
Curve = Float[np.ndarray, "checkpoint"]
Span = tuple[int, int]


@dataclass(frozen=True)
class StageRule:
    """How stages are told from noise. All changes are of curves smoothed by a centred moving mean.

    A change counts if it is larger than the tolerance: the range that white noise of the curve's own size (from its
    second differences) exceeds with a probability of `level`, and at least `least` of the curve's range.

    Attributes:
        window: Checkpoints of the moving mean, odd.
        level: Share of curves of pure noise in which a change may be found.
        least: Share of the curve's range below which no change counts.
        flat: Share of the checkpoints that a flat end needs, three at least.

    Raises:
        ValueError: An even window, or shares outside (0, 1).
    """

    window: int = 3
    level: float = 0.05
    least: float = 0.05
    flat: float = 0.2

    def __post_init__(self) -> None:
        check_shares(level=self.level, least=self.least, flat=self.flat)
        if not whole_number(self.window, "window", least=1) % 2:
            raise ValueError(f"window={self.window}: expected an odd number of checkpoints.")


def find_stages(score: pd.Series, own: pd.Series | None = None, rule: StageRule | None = None) -> pd.DataFrame:
    """The stages that a language's curve shows, by a rule that can also find none.

    The flat end begins at the earliest checkpoint after which the score stays within the tolerance and has no trend.
    Translation is the rise from the first checkpoint to the highest before the flat end, transition the decline from
    there, stabilisation the flat end after either. With `own`, transition and stabilisation also need what the paper
    says of the own system: its share rises while the score declines, and is flat in the end.

    Args:
        score: How well the model does the language, higher is better, by checkpoint in order; for example minus the
            loss on hold-out text, since the switch to the language.
        own: The share of the language's own system at the same checkpoints, for example the working-language share.
        rule: Settings of the rule.

    Returns:
        One row per stage: `stage`, `observed`, `first` and `last` (checkpoints; None if not observed), and `why`.
        `attrs` has the `tolerance` of the score and, with `own`, `own_tolerance`.

    Raises:
        ValueError: Values that are not finite, or `own` at other checkpoints.

    Source: the stages of "Babel Tower Hypothesis" (arXiv 2412.07298); the rule is ours, the paper's detector is not
    known to us.
    """
    rule = rule or StageRule()
    for name, curve in (("score", score), ("own", own)):
        if curve is not None and not np.isfinite(curve.to_numpy(dtype=float)).all():
            raise ValueError(f"{name} is not finite at {list(curve.index[~np.isfinite(curve)])}: leave these out.")
    if own is not None and list(own.index) != list(score.index):
        raise ValueError(f"own is at {list(own.index)}, score at {list(score.index)}: expected the same checkpoints.")
    names = list(score.index)
    spans, whys, tolerances = _found(score.to_numpy(float), None if own is None else own.to_numpy(float), rule)
    rows = []
    for stage in STAGES:
        first, last = (names[place] for place in spans[stage]) if stage in spans else (None, None)
        rows.append({"stage": stage, "observed": stage in spans, "first": first, "last": last, "why": whys[stage]})
    table = pd.DataFrame(rows).astype({"first": object, "last": object})
    table = table.where(table.notna(), None)
    table.attrs |= tolerances
    return table


def _found(score: Curve, own: Curve | None, rule: StageRule) -> tuple[dict[str, Span], dict[str, str], dict]:
    """The span of each observed stage, the reason of each stage, and the tolerances."""
    if len(score) < FEWEST:
        few = f"not observed: {len(score)} checkpoints, fewer than the {FEWEST} that the rule needs"
        return {}, {str(stage): few for stage in STAGES}, {}
    smooth, tolerance = _smoothed(score, rule.window), _tolerance(score, rule)
    tolerances = {"tolerance": tolerance}
    end = _flat_from(smooth, tolerance, rule)
    last = len(score) - 1 if end is None else end
    peak = int(smooth[: last + 1].argmax())
    rise, decline = smooth[peak] - smooth[0], smooth[peak] - smooth[last]
    spans: dict[str, Span] = {}
    whys = {str(stage): "" for stage in STAGES}
    if rise > tolerance:
        spans["translation"] = (0, peak)
    whys["translation"] = _said("a rise", rise, tolerance)
    if decline > tolerance:
        spans["transition"] = (peak, last)
    whys["transition"] = _said("a decline after the highest score", decline, tolerance)
    if end is not None and spans:
        spans["stabilisation"] = (end, len(score) - 1)
    whys["stabilisation"] = _end_said(end, bool(spans))
    if own is not None:
        tolerances["own_tolerance"] = _by_own(_smoothed(own, rule.window), _tolerance(own, rule), rule, spans, whys)
    return spans, whys, tolerances


def _by_own(own: Curve, tolerance: float, rule: StageRule, spans: dict[str, Span], whys: dict[str, str]) -> float:
    """Take back stages that the own system's share contradicts; returns its tolerance."""
    if "transition" in spans:
        first, last = spans["transition"]
        gain = own[last] - own[first]
        if not gain > tolerance:
            del spans["transition"]
            whys["transition"] = (
                f"not observed: the score declines, but the own system's share changes by {gain:+.3g}, not above the "
                f"tolerance {tolerance:.3g}"
            )
    if "stabilisation" in spans:
        start = _flat_from(own, tolerance, rule)
        if start is None:
            del spans["stabilisation"]
            whys["stabilisation"] = "not observed: the score ends flat, but the own system's share does not"
        else:
            spans["stabilisation"] = (max(start, spans["stabilisation"][0]), len(own) - 1)
    return tolerance


def _said(what: str, size: float, tolerance: float) -> str:
    words = "observed" if size > tolerance else "not observed"
    return f"{words}: {what} of {size:.3g}, tolerance {tolerance:.3g}"


def _end_said(end: int | None, any_change: bool) -> str:
    if end is None:
        return "not observed: the score still changes at the end"
    return "observed: the score ends flat" if any_change else "not observed: the score never changed"


def _flat_from(smooth: Curve, tolerance: float, rule: StageRule) -> int | None:
    """The earliest checkpoint from which on a smoothed curve stays within the tolerance, without a trend."""
    needed = max(3, math.ceil(rule.flat * len(smooth)))
    allowed = max(rule.least, rule.flat / 2) * np.ptp(smooth)
    for start in range(len(smooth) - needed + 1):
        rest = smooth[start:]
        trend = np.polyfit(np.arange(len(rest)), rest, 1)[0] * (len(rest) - 1)
        if np.ptp(rest) <= tolerance and (start == 0 or abs(trend) <= allowed):
            return start
    return None


def _smoothed(curve: Curve, window: int) -> Curve:
    """Centred moving mean; at the ends of the curve, over the values that are there."""
    weights = np.ones(window)
    counts = np.convolve(np.ones(len(curve)), weights, "same")
    return np.convolve(curve, weights, "same") / counts


def _noise(curve: Float[np.ndarray, "*curve checkpoint"]) -> Any:
    """Standard deviation of the noise of a curve, or of each, from the median size of its second differences."""
    return np.median(np.abs(np.diff(curve, n=2, axis=-1)), axis=-1) / (0.6745 * math.sqrt(6))


@lru_cache(maxsize=256)
def _ratio(length: int, window: int, level: float) -> float:
    """The range of smoothed white noise over its estimated size that is exceeded with this probability."""
    noise = np.random.default_rng(0).standard_normal((DRAWS, length))
    ranges = np.array([np.ptp(_smoothed(each, window)) for each in noise])
    return float(np.quantile(ranges / _noise(noise), 1 - level))


def _tolerance(curve: Curve, rule: StageRule) -> float:
    ratio = _ratio(len(curve), rule.window, rule.level)
    return max(ratio * float(_noise(curve)), rule.least * float(np.ptp(_smoothed(curve, rule.window))))


Draw = Callable[[np.random.Generator, int], Curve]


def _correlated(generator: np.random.Generator, length: int) -> Curve:
    values = generator.standard_normal(length)
    for place in range(1, length):
        values[place] = 0.5 * values[place - 1] + math.sqrt(0.75) * values[place]
    return values


NOISE: dict[str, Draw] = {
    "white": lambda generator, length: generator.standard_normal(length),
    "heavy-tailed": lambda generator, length: generator.standard_t(3, length),
    "correlated": _correlated,
    "random walk": lambda generator, length: generator.standard_normal(length).cumsum(),
}


def false_stages(length: int, rule: StageRule | None = None, *, curves: int = 300, seed: int = 0) -> pd.DataFrame:
    """How often the rule finds stages in curves without any.

    Args:
        length: Checkpoints of a curve.
        rule: Settings of the rule.
        curves: Curves of each kind of noise.
        seed: Seed of the curves.

    Returns:
        One row per kind of `noise` ("white", "heavy-tailed": Student's t with 3 degrees of freedom, "correlated": 0.5
        from one checkpoint to the next, "random walk", which has no stages but real changes): `curves`, and the share
        of curves with `any` stage and with each stage.
    """
    rule, rows = rule or StageRule(), []
    for kind, draw in NOISE.items():
        generator = np.random.default_rng(seed)
        found = [_found(draw(generator, length), None, rule)[0] for _ in range(curves)]
        shares = {stage: float(np.mean([stage in each for each in found])) for stage in STAGES}
        rows.append({"noise": kind, "curves": curves, "any": float(np.mean([bool(each) for each in found])), **shares})
    return pd.DataFrame(rows)
