"""Activity of units, random sets of equally active units, and outliers of a layer."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.evaluation.perplexity import perplexity_table
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.words import Choice
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.plan import Layout

OUTLIER = 10.0  # multiple of the layer's median from which on a unit is an outlier
FIRING = "firing probability"

Measure = Callable[[Statistics, str], Tensor]
# name, key with {site} for the write site of a basis, reader `[language layer unit]`; the first in the run counts
MEASURES: tuple[tuple[str, str, Measure], ...] = (
    ("root mean square", "{site}.squares", lambda kept, key: (kept.get(key) / kept.tokens[..., None]).sqrt()),
    (FIRING, "mlp_pre.positive", lambda kept, key: kept.probability("mlp_pre")),
    ("size of the mean", "{site}.sum", lambda kept, key: (kept.get(key) / kept.tokens[..., None]).abs()),
)


def activity(
    statistics: Statistics, bases: Iterable[str], languages: Iterable[str] | None = None
) -> dict[str, Float[Tensor, "language layer unit"]]:
    """The activity of each unit in each language.

    The first of these that the run has for a basis: the root mean square of the value where interventions write
    (`Statistic(site, "squares")`, which `collect` keeps), the probability to fire (basis "mlp" only; a run with "lape"
    has it), the size of the mean. The last is near 0 if a unit is as often positive as negative; every run has it.

    Args:
        statistics: Of a run (`run.statistics`).
        bases: Kinds of units.
        languages: Languages in the order of the result; by default those of the run.

    Returns:
        Basis to `[language layer unit]`, higher for more active units, for `NeuronSet.random_like` with these
        languages.

    Raises:
        KeyError: The run has no measure for a basis, or lacks a language.
    """
    measured = {basis: activity_measure(statistics, basis) for basis in bases}
    lacking = [basis for basis, measure in measured.items() if measure is None]
    if lacking:
        raise KeyError(
            f"the run has neither squares, firing counts nor sums of {lacking}; it has {list(statistics.sums)}. "
            'Collect again with extra=[Statistic("mlp_post", "squares")], the write site of the basis.'
        )
    wanted = list(statistics.languages if languages is None else languages)
    unknown = [each for each in wanted if each not in statistics.languages]
    if unknown:
        raise KeyError(f"no language {unknown}; the run has {list(statistics.languages)}.")
    places = [statistics.languages.index(each) for each in wanted]
    return {basis: _read(statistics, basis, name)[places] for basis, name in measured.items() if name}


def activity_measure(statistics: Statistics, basis: str) -> str | None:
    """The measure that `activity` uses for a basis; None if the run has none."""
    return next((name for name, key, _ in MEASURES if _key(key, basis) in statistics.sums), None)


@dataclass(frozen=True, eq=False)
class Draws:
    """Random sets matched to a set.

    Attributes:
        sets: Random sets, by seed.
        matched: What the random sets share with the set, in words.
        active: By language, the mean activity of the set's units in this language, and that of the random sets' units.
            NaN without activities, with bases of different measures, or without units.
    """

    sets: dict[int, NeuronSet]
    matched: str
    active: dict[str, tuple[float, float]]


def matched_draws(
    found: NeuronSet,
    seeds: int,
    statistics: Statistics | None = None,
    *,
    first: int = 0,
    values: Mapping[str, Float[Tensor, "*language layer unit"]] | None = None,
    words: str = "the given values",
    avoid: NeuronSet | None = None,
) -> Draws:
    """Random sets with as many units in each layer and, where the run has activities, as active in the own language.

    Each unit is replaced by a unit of its layer with similar activity in the set's language, see `draws.draw_alike`.
    Found units are often the most active of all, so random units may be less active: `active` has both means.

    Args:
        found: The set to match.
        seeds: Number of random sets.
        statistics: Of a run that has the `activity` of all bases of the set in all its languages.
        first: The first seed.
        values: Basis -> what to match in place of the activity, for example the units' contributions; per language of
            the set, or one for all. `active` then has the means of these values.
        words: The name of the values, for `matched`.
        avoid: A set of the same shape, whose units are not drawn either.

    Raises:
        ValueError: Both statistics and values, or values of another shape.
    """
    if statistics is not None and values is not None:
        raise ValueError("got statistics and values: give one of them, since one measure is matched.")
    numbers, alike = range(first, first + seeds), True
    if statistics is not None:
        measures = {activity_measure(statistics, basis) for basis in found.masks}
        words, alike = ", ".join(sorted(name for name in measures if name)), len(measures) == 1
        words = f"{words} in the own language"
        values = None if None in measures else activity(statistics, found.masks, found.languages)
    if values is None:
        sets = {seed: found.random_like(seed, avoid=avoid) for seed in numbers}
        return Draws(sets, "count, layer", dict.fromkeys(found.languages, (math.nan, math.nan)))
    sets = {seed: found.random_like(seed, values, avoid) for seed in numbers}
    own = _mean_activity(found, values)
    drawn = torch.stack([_mean_activity(each, values) for each in sets.values()]).mean(0)
    pairs = zip(own.tolist(), drawn.tolist(), strict=True)
    active = {
        label: pair if alike else (math.nan, math.nan) for label, pair in zip(found.languages, pairs, strict=True)
    }
    return Draws(sets, f"count, layer, {words}", active)


def _mean_activity(
    found: NeuronSet, values: Mapping[str, Float[Tensor, "*language layer unit"]]
) -> Float[Tensor, "language"]:
    """Mean activity of a language's units in this language; NaN without units."""
    totals = sum((values[basis] * mask).sum((1, 2)) for basis, mask in found.masks.items())
    return torch.as_tensor(totals) / sum(mask.sum((1, 2)) for mask in found.masks.values())


def outliers(
    statistics: Statistics,
    found: NeuronSet | Mapping[str, NeuronSet] | None = None,
    *,
    bases: Iterable[str] | None = None,
    multiple: float | int = OUTLIER,
) -> pd.DataFrame:
    """Units whose activation is beyond a multiple of their layer's median: a few can carry a whole effect.

    Args:
        statistics: Statistics of a run.
        found: A set, or several by name, for the column `languages`.
        bases: Kinds of units; by default those of the sets, without sets "mlp".
        multiple: Smallest ratio to the median over the layer's units.

    Returns:
        One row per outlier, largest ratio first: `basis`, `layer`, `unit`, `measure` (see `activity`; never the firing
        probability), `value`, `median`, `ratio`, `languages` (whose set in `found` has the unit; "name: language" for
        several).

    Raises:
        ValueError: `multiple` is not above 1.
        KeyError: The run has neither squares nor sums of a basis.

    The rule and its default are ours.
    """
    if not 1 < multiple < math.inf:
        raise ValueError(f"multiple={multiple}: expected a finite number above 1.")
    named = {"": found} if isinstance(found, NeuronSet) else dict(found or {})
    kinds = dict.fromkeys(basis for each in named.values() for basis in each.masks) or {"mlp": None}
    rows: list[dict[str, object]] = []
    for basis in kinds if bases is None else bases:
        measure = next((n for n, key, _ in MEASURES if n != FIRING and _key(key, basis) in statistics.sums), None)
        if measure is None:
            raise KeyError(f"the run has neither squares nor sums of {basis!r}; it has {list(statistics.sums)}.")
        values = _read(statistics, basis, measure).mean(0)
        medians = values.median(-1, keepdim=True).values
        for layer, unit in (values > multiple * medians).nonzero().tolist():
            value, median = float(values[layer, unit]), float(medians[layer])
            place = {"basis": basis, "layer": layer, "unit": unit, "measure": measure, "value": value}
            ratio = value / median if median else math.inf
            holders = _holders(named, basis, layer, unit)
            rows.append({**place, "median": median, "ratio": ratio, "languages": holders})
    columns = ["basis", "layer", "unit", "measure", "value", "median", "ratio", "languages"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("ratio", ascending=False, kind="stable", ignore_index=True)


def without(found: NeuronSet, units: pd.DataFrame) -> NeuronSet:
    """A set without the units of a table with `basis`, `layer`, `unit`; `notes` has the number removed per language."""
    masks = {basis: mask.clone() for basis, mask in found.masks.items()}
    for row in units.loc[units["basis"].isin(list(masks)), ["basis", "layer", "unit"]].to_dict("records"):
        masks[row["basis"]][:, row["layer"], row["unit"]] = False
    left = replace(found, masks=masks, method=f"{found.method} without {len(units)} units")
    lost = (found.counts() - left.counts()).to_dict()
    return replace(left, notes={**found.notes, "removed": lost})


def outlier_effects(
    model: Model,
    corpora: Any,
    found: NeuronSet,
    units: pd.DataFrame,
    action: Choice = zero,
    *,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The effect of a set without its outliers, and of the outliers alone.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Corpora whose hold-out text is measured.
        found: The set to match.
        units: From `outliers`.
        action: The action on the units, or a function from the ablated language to an action.
        layout: How hold-out text becomes batches; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Returns:
        One row per language: `language`, `units` (different ones), `outliers` (of these), and the in-language loss
        increases `own_rise`, `own_rise_without` and `own_rise_of_outliers` (nats per token; `_bits_per_byte`).
    """
    check_model(model)
    left = without(found, units)
    sets = {"": found, "_without": left, "_of_outliers": found - left}
    table = perplexity_table(model, corpora, sets, action, evaluate="own", layout=layout, text=text, progress=progress)
    rows = []
    for language, count in found.counts().items():
        row: dict[str, object] = {"language": language, "units": count, "outliers": count - left.counts()[language]}
        for name in sets:
            own = table.loc[table["set"].eq(name) & table["intervened"].eq(language)].iloc[0]
            row[f"own_rise{name}"] = float(own["nll_change"])
            row[f"own_rise{name}_bits_per_byte"] = float(own["bits_per_byte_change"])
        rows.append(row)
    return pd.DataFrame(rows)


def _key(key: str, basis: str) -> str | None:
    """The key of a measure for a basis; None if the basis does not have the measure."""
    if "{site}" in key:
        return key.format(site=WRITE_SITE.get(basis))
    return key if basis == "mlp" else None


def _read(statistics: Statistics, basis: str, measure: str) -> Float[Tensor, "language layer unit"]:
    key, read = next((key, read) for name, key, read in MEASURES if name == measure)
    return torch.as_tensor(read(statistics, str(_key(key, basis)))).double()


def _holders(named: Mapping[str, NeuronSet], basis: str, layer: int, unit: int) -> str:
    found = [
        f"{name}: {language}" if name else language
        for name, each in named.items() if basis in each.masks
        for language, mask in zip(each.languages, each.masks[basis], strict=True) if bool(mask[layer, unit])
    ]  # fmt: skip
    return ", ".join(found)
