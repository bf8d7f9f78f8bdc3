"""The multilingual workflow: loss increases by stage of layers and structure, for English and other languages."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lsn_lens.bars import tqdm
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, held_out
from lsn_lens.evaluation.jobs import NONE, jobs_of
from lsn_lens.evaluation.stages import STRUCTURES, SWITCHES, Stages, switch_sets
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import intervene
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

COLUMNS = ["switch", "deactivated", "evaluated", "units", "before", "rise"]
TEXT_COLUMNS = {"set": "switch", "intervened": "deactivated", "nll_change": "rise"}
RISES = ["own_rise", "english_rise", "others_rise", "own_minus_english_rise", "others_minus_english_rise"]

Measure = Callable[[Model], pd.Series]
Rows = tuple[pd.DataFrame, Mapping[str, Any]]  # with `COLUMNS`, and a description of the text
Pairs = Callable[[str], list[str]]  # from the deactivated language to those to measure


def workflow_grid(
    model: Model,
    measure: Any,
    found: NeuronSet,
    stages: Stages,
    *,
    english: str = "en",
    action: Choice = zero,
    switches: Iterable[str] | None = None,
    seeds: int = verdict.RANDOM_SETS,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Turn off each language's units in one stage and structure at a time, and measure all languages.

    Args:
        model: A HookedTransformer or TransformerBridge.
        measure: Corpora, for the loss on their `hold_out` text; or a function of the model that returns a Series by
            language of a number that is higher for a worse model, such as 1 - accuracy.
        found: Units of any method, on attention and MLP bases.
        stages: How many layers understand and generate.
        english: The language to compare with; choose another one if the text has no English.
        action: The action on the units, or a function from the deactivated language to an action.
        switches: Some of `SWITCHES`; all by default.
        seeds: Random sets per switch and language, with as many units in each layer of each basis.
        layout: How text becomes batches, for corpora; packed blocks by default.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Returns:
        One row for each `switch`, `seed` (missing for the units found), `deactivated` and `evaluated` language:
        `units`, `before` (nats per token, or the function's number), `rise` (its increase), and `why_empty` ("" with
        units). A switch without units changes nothing and has no random sets. Random sets have rows for the deactivated
        language and English only. `attrs["text"]` describes the text.

    Raises:
        KeyError: No text, or no number, for English or for a deactivated language; an unknown switch.
        ValueError: Stages or a set that do not fit the model; `text` or `layout` beside a function.

    Source: Zhao et al. 2024, the released code's six switches and control. They measure task accuracy; the loss on
    hold-out text, several random sets in place of one, and the p-values among them are ours.
    """
    check_model(model)
    parts = switch_sets(found, stages)
    chosen = list(SWITCHES if switches is None else switches)
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        raise KeyError(f"unknown switches {unknown}; name some of {list(SWITCHES)}.")
    parts = {name: parts[name] for name in chosen}
    needed = dict.fromkeys((english, *found.languages))
    if isinstance(measure, Mapping) or not callable(measure):
        measure = as_corpora(measure)
        labels = _measurable(measure, needed)
        jobs_of(model, labels, parts, action)  # refuses impossible jobs before anything is measured
        text = held_out(model, measure, layout, text=text, progress=progress)
        run: Any = partial(_on_text, text, action, progress)
    else:
        if text is not None or layout is not None:
            raise ValueError("measure is a function, which reads its own text: leave out text= and layout=.")
        jobs_of(model, needed, parts, action)
        by_function: Any = measure
        clean = by_function(model)
        labels = _measurable(map(str, clean.index), needed)
        run = partial(_by_function, model, by_function, action, progress, clean)
    rows, described = run(parts, lambda _: labels)
    frames = [rows.assign(seed=pd.NA)]
    for name, part in parts.items():
        present = part[[label for label in part.languages if len(part[label])]]
        if present.languages:
            draws = {str(seed): present.random_like(seed) for seed in range(seeds)}
            drawn, _ = run(draws, lambda language: list(dict.fromkeys((language, english))))
            frames.append(drawn.assign(seed=drawn["switch"].replace("", "0").astype(int), switch=name))
    grid = pd.concat(frames, ignore_index=True)
    grid = grid.loc[grid["deactivated"].ne(NONE)].astype({"seed": "Int64"})
    grid["why_empty"] = [
        "" if units else _why_empty(found[language], name)
        for name, language, units in zip(grid["switch"], grid["deactivated"], grid["units"], strict=True)
    ]
    grid.attrs["text"] = described
    return grid.reset_index(drop=True)


def _why_empty(own: NeuronSet, switch: str) -> str:
    structure = switch.partition(" ")[2]
    if not len(own):
        return "the language has no units"
    if structure and not set(STRUCTURES[structure]) & set(own.masks):
        return f"the set has no kind of {structure} unit"
    return "none of the language's units is here"


def _measurable(labels: Iterable[str], needed: Iterable[str]) -> list[str]:
    known = list(labels)
    missing = [label for label in needed if label not in known]
    if missing:
        raise KeyError(f"nothing to measure {missing} on; there is {known}. `english` names the one to compare with.")
    return known


def _on_text(text: HeldOut, action: Choice, progress: bool, sets: Mapping[str, NeuronSet], pairs: Pairs) -> Rows:
    table = text.measure(sets, action, evaluate=pairs, progress=progress).table
    rows = table.assign(before=table["nll"] - table["nll_change"]).rename(columns=TEXT_COLUMNS)
    return rows.loc[:, COLUMNS], table.attrs["text"]


def _by_function(
    model: Model,
    measure: Measure,
    action: Choice,
    progress: bool,
    clean: pd.Series,
    sets: Mapping[str, NeuronSet],
    pairs: Pairs,
) -> Rows:
    rows = [("", NONE, label, 0, value, 0.0) for label, value in clean.items()]
    jobs = [(name, language, each[language]) for name, each in sets.items() for language in each.languages]
    for name, language, units in tqdm(jobs, desc="workflow", disable=not progress):
        with intervene(model, units, action_for(action, language)):
            after = measure(model)
        if list(after.index) != list(clean.index):
            raise ValueError(f"`measure` gave {list(after.index)}, and {list(clean.index)} without intervention.")
        rows += [(name, language, at, len(units), clean[at], after[at] - clean[at]) for at in pairs(language)]
    return pd.DataFrame(rows, columns=COLUMNS), {}


def workflow_effects(grid: pd.DataFrame, english: str = "en") -> pd.DataFrame:
    """One row per switch and deactivated language.

    Args:
        grid: From `workflow_grid`.
        english: The language to compare with.

    Returns:
        `switch`, `deactivated`, `units` (different ones), `own_rise` (of the deactivated language), `english_rise`,
        `others_rise` (mean of the other languages but English; NaN if one is NaN), `own_minus_english_rise`,
        `others_minus_english_rise`; of the random sets, the means `random_own_rise` and `random_minus_english_rise`,
        their number `seeds`, the p-values `p_own` and `p_minus_english` (`verdict.p_value`), and `q_own` and
        `q_minus_english`, adjusted for all switches and languages of the table (Benjamini-Hochberg); and `note`:
        warnings. For English itself, comparisons with English are missing.

    Raises:
        KeyError: English was not measured.

    Source: `own_minus_english_rise` is our definition of the difference that Zhao et al. 2024 report, for a loss:
    positive where the language loses more than English does. Their sign and exact definition were not at hand.
    """
    if english not in set(grid["evaluated"]):
        raise KeyError(f"english={english!r} was not measured; there is {sorted(grid['evaluated'].unique())}.")
    groups: Any = grid.groupby(["switch", "deactivated"], sort=False)
    table = pd.DataFrame([_effect(switch, language, rows, english) for (switch, language), rows in groups])
    for kind in ("own", "minus_english"):
        table[f"q_{kind}"] = verdict.adjusted(table[f"p_{kind}"])
    why = [rows["why_empty"].iloc[0] for _, rows in groups]
    notes = [_note(row, each, english) for row, each in zip(table.to_dict("records"), why, strict=True)]
    return table.assign(note=notes)


def _effect(switch: str, deactivated: str, rows: pd.DataFrame, english: str) -> dict[str, Any]:
    found = rows.loc[rows["seed"].isna()].set_index("evaluated")["rise"]
    random: Any = rows.loc[rows["seed"].notna()].pivot(index="seed", columns="evaluated", values="rise")
    own, pivot = float(found[deactivated]), float(found[english])
    is_english, units = deactivated == english, int(rows["units"].iloc[0])
    compared = {str(label): float(rise) for label, rise in found.items() if label == deactivated or label != english}
    others = verdict.own_and_others(compared, deactivated)["mean_other_rise"] if len(compared) > 1 else np.nan
    drawn = random.get(deactivated, pd.Series(dtype=float))
    drawn_apart = [] if is_english else drawn - random.get(english, pd.Series(dtype=float))
    beside = verdict.beside_random(own, drawn, units)
    apart = verdict.beside_random(own - pivot, drawn_apart, 0 if is_english else units)
    return {
        "switch": switch,
        "deactivated": deactivated,
        "units": units,
        "own_rise": own,
        "english_rise": np.nan if is_english else pivot,
        "others_rise": others,
        "own_minus_english_rise": np.nan if is_english else own - pivot,
        "others_minus_english_rise": np.nan if is_english else others - pivot,
        "random_own_rise": beside["random_mean"],
        "random_minus_english_rise": apart["random_mean"],
        "seeds": beside["seeds"],
        "p_own": beside["p"],
        "p_minus_english": apart["p"],
    }


def _note(row: Mapping[Any, Any], why_empty: str, english: str) -> str:
    if not row["units"]:
        return f"does nothing: {why_empty}"
    pivot = row["english_rise"]  # missing if English itself is turned off, not if its loss is NaN
    is_english = row["deactivated"] == english
    read = {"units": row["units"], "own_rise": row["own_rise"], "worst_other_rise": 0.0 if is_english else pivot,
            "seeds": row["seeds"], "p": row["p_own"], "q": row["q_own"]}  # fmt: skip
    reasons = {
        "not hurt": not row["own_rise"] > 0,
        f"{english} is hurt as much or more": not is_english and not row["own_rise"] > pivot,
        f"not shown to be more above {english} than random sets": not is_english
        and not _is_low(row["q_minus_english"]),
    }
    return "; ".join([*verdict.doubts(read), *(reason for reason, holds in reasons.items() if holds)])


def _is_low(q: float) -> bool:
    return bool(q <= verdict.LEVEL)


def workflow_summary(effects: pd.DataFrame, english: str = "en") -> pd.DataFrame:
    """One row per switch, means over the deactivated languages but English.

    Args:
        effects: From `workflow_effects`.
        english: The language to compare with.

    Returns:
        `switch`, `languages`, `units` (mean), the mean loss increases of `workflow_effects`, `above_random` (number of
        languages with `q_own` at most 0.05), `above_english` (number of languages with a positive difference to English
        and `q_minus_english` at most 0.05), and a `note` in words. One NaN makes a mean NaN.
    """
    others = effects.loc[effects["deactivated"].ne(english)]
    means = ["units", *RISES, "random_own_rise", "random_minus_english_rise"]
    rows = []
    for switch, each in others.groupby("switch", sort=False):
        hurt = each["own_rise"] > 0
        above = hurt & (each["q_own"] <= verdict.LEVEL)
        above_pivot = hurt & (each["own_minus_english_rise"] > 0) & (each["q_minus_english"] <= verdict.LEVEL)
        counts = {"above_random": int(above.sum()), "above_english": int(above_pivot.sum())}
        note = _summary_note(each, counts, english)
        rows.append({"switch": switch, "languages": len(each), **_means(each, means), **counts, "note": note})
    return pd.DataFrame(rows)


def _means(each: pd.DataFrame, columns: list[str]) -> dict[str, float]:
    """Means over languages; languages without units have no random sets and are left out of those means."""
    values: dict[str, float] = each[columns].mean(skipna=False).to_dict()
    some = each.loc[each["units"] > 0]
    return values | {name: float(some[name].mean(skipna=False)) for name in columns if name.startswith("random_")}


def _summary_note(each: Any, counts: Mapping[str, int], english: str) -> str:
    """The warnings about a switch, each with its number of languages."""
    if not each["units"].any():
        return "; ".join(dict.fromkeys(each["note"]))
    numbers = {
        "without units": int((each["units"] == 0).sum()),
        f"with {verdict.FEW}": sum(map(verdict.few_neurons, each["units"])),
        "not shown to be above their random sets": len(each) - counts["above_random"],
        f"where {english} is hurt as much or more": int((~(each["own_minus_english_rise"] > 0)).sum()),
    }
    return "; ".join(f"{number} of {len(each)} {what}" for what, number in numbers.items() if number)
