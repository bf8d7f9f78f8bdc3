"""The multilingual workflow: what the units of a stage of layers do, attention and MLP apart, English and the rest."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lsn_lens import models
from lsn_lens.batches import Layout
from lsn_lens.corpora import LanguageCorpus
from lsn_lens.evaluation.causal import PERCENTILE
from lsn_lens.evaluation.effects import FEW_NEURONS
from lsn_lens.evaluation.perplexity import NONE, perplexity_table
from lsn_lens.evaluation.stages import STRUCTURES, SWITCHES, Stages, switch_sets
from lsn_lens.interventions import Action, action_for, intervene, zero
from lsn_lens.neurons import NeuronSet

COLUMNS = ["switch", "deactivated", "evaluated", "units", "before", "rise"]
TEXT_COLUMNS = {"set": "switch", "intervened": "deactivated", "neurons": "units", "nll_change": "rise"}
RISES = ["own_rise", "english_rise", "others_rise", "own_minus_english_rise", "others_minus_english_rise"]

Measure = Callable[[models.Model], pd.Series]
Choice = Action | Callable[[str], Action]
Rows = tuple[pd.DataFrame, Mapping[str, Any]]  # with `COLUMNS`, and a description of the text
Pairs = Callable[[str], list[str]]  # from the deactivated language to those to measure


def workflow_grid(
    model: models.Model,
    measure: Mapping[str, LanguageCorpus] | Measure,
    found: NeuronSet,
    stages: Stages,
    *,
    english: str = "en",
    action: Choice = zero,
    switches: Iterable[str] | None = None,
    seeds: int = 20,
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Turn off each language's units in one stage and structure at a time, and measure all languages.

    Args:
        model: A HookedTransformer or TransformerBridge.
        measure: Corpora, whose `hold_out` text the loss is measured on; or a function of the model that returns a
            Series by language of a number that is higher the worse the model does, such as 1 - accuracy.
        found: Units of any method, on attention and MLP bases.
        stages: How many layers understand and generate.
        english: The language that the others are compared with; another one where the text has no English.
        action: What to do to the units, or a function from the deactivated language to it.
        switches: Some of `SWITCHES`; all by default.
        seeds: Random sets for each switch and language: as many units in each layer of each basis.
        layout: How text becomes batches, for corpora; packed blocks by default.
        progress: Show a progress bar.

    Returns:
        One row for each `switch`, `seed` (missing for the units found), `deactivated` and `evaluated` language:
        `units`, `before` (nats a token, or the function's number), `rise`, and `why_empty` ("" with units). A switch
        without units changes nothing, and has no random sets. Random sets have rows for the deactivated language and
        English alone. `attrs["text"]` describes the text.

    Raises:
        KeyError: No text, or no number, for English or for a deactivated language; an unknown switch.
        ValueError: Stages or a set that do not fit the model.

    Source: Zhao et al. 2024, the released code's six switches and control. They measure task accuracy; the loss on
    held-out text, several random sets in place of one, and the percentiles among them are ours.
    """
    parts = switch_sets(found, stages)
    chosen = list(SWITCHES if switches is None else switches)
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        raise KeyError(f"unknown switches {unknown}; name some of {list(SWITCHES)}.")
    parts = {name: parts[name] for name in chosen}
    labels, run = _measurer(model, measure, action, layout, progress)
    missing = [label for label in dict.fromkeys((english, *found.languages)) if label not in labels]
    if missing:
        raise KeyError(f"nothing to measure {missing} on; there is {labels}. `english` names the one to compare with.")
    rows, text = run(parts, lambda _: labels)
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
    grid.attrs["text"] = text
    return grid.reset_index(drop=True)


def _why_empty(own: NeuronSet, switch: str) -> str:
    structure = switch.partition(" ")[2]
    if not len(own):
        return "the language has no units"
    if structure and not set(STRUCTURES[structure]) & set(own.masks):
        return f"the set has no kind of {structure} unit"
    return "none of the language's units is here"


def _measurer(
    model: models.Model,
    measure: Mapping[str, LanguageCorpus] | Measure,
    action: Choice,
    layout: Layout | None,
    progress: bool,
) -> tuple[list[str], Callable[[Mapping[str, NeuronSet], Pairs], Rows]]:
    """The languages that can be measured, and what measures named sets."""
    if isinstance(measure, Mapping):
        return list(measure), partial(_on_text, model, measure, action, layout, progress)
    clean = measure(model)
    return [str(label) for label in clean.index], partial(_by_function, model, measure, action, progress, clean)


def _on_text(
    model: models.Model,
    corpora: Mapping[str, LanguageCorpus],
    action: Choice,
    layout: Layout | None,
    progress: bool,
    sets: Mapping[str, NeuronSet],
    pairs: Pairs,
) -> Rows:
    table = perplexity_table(model, corpora, sets, action, evaluate=pairs, layout=layout, progress=progress)
    rows = table.assign(before=table["nll"] - table["nll_change"]).rename(columns=TEXT_COLUMNS)
    return rows.loc[:, COLUMNS], table.attrs["text"]


def _by_function(
    model: models.Model,
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
    """One row for each switch and deactivated language.

    Args:
        grid: From `workflow_grid`.
        english: As there.

    Returns:
        `switch`, `deactivated`, `units`, `own_rise` (of the deactivated language), `english_rise`, `others_rise` (mean
        of the other languages but English), `own_minus_english_rise`, `others_minus_english_rise`; of the random sets,
        the means `random_own_rise` and `random_minus_english_rise`, their number `seeds`, and the percentages of them
        that lie below, `percentile_own` and `percentile_minus_english`; and `note`: in words, why not to trust the
        row. For English itself, what compares with English is missing.

    Raises:
        KeyError: English was not measured.

    Source: `own_minus_english_rise` is our definition of the difference that Zhao et al. 2024 report, for a loss:
    positive where the language loses more than English does. Their sign and exact definition were not at hand.
    """
    if english not in set(grid["evaluated"]):
        raise KeyError(f"english={english!r} was not measured; there is {sorted(grid['evaluated'].unique())}.")
    groups: Any = grid.groupby(["switch", "deactivated"], sort=False)
    return pd.DataFrame([_effect(switch, language, rows, english) for (switch, language), rows in groups])


def _effect(switch: str, deactivated: str, rows: pd.DataFrame, english: str) -> dict[str, Any]:
    found = rows.loc[rows["seed"].isna()].set_index("evaluated")["rise"]
    random: Any = rows.loc[rows["seed"].notna()].pivot(index="seed", columns="evaluated", values="rise")
    own, pivot = float(found[deactivated]), float(found[english])
    others = float(found.drop(index=[deactivated, english], errors="ignore").mean(skipna=False))
    drawn_own = random.get(deactivated, pd.Series(dtype=float))
    drawn_difference = drawn_own - random.get(english, pd.Series(dtype=float))
    is_english = deactivated == english
    row = {
        "switch": switch,
        "deactivated": deactivated,
        "units": int(rows["units"].iloc[0]),
        "own_rise": own,
        "english_rise": np.nan if is_english else pivot,
        "others_rise": others,
        "own_minus_english_rise": np.nan if is_english else own - pivot,
        "others_minus_english_rise": np.nan if is_english else others - pivot,
        "random_own_rise": float(drawn_own.mean()),
        "random_minus_english_rise": np.nan if is_english else float(drawn_difference.mean()),
        "seeds": len(random),
        "percentile_own": _percentile(own, drawn_own),
        "percentile_minus_english": np.nan if is_english else _percentile(own - pivot, drawn_difference),
    }
    return {**row, "note": _note(row, rows["why_empty"].iloc[0], english)}


def _percentile(value: float, drawn: pd.Series) -> float:
    """Of the random sets below; NaN where there are none, or one of the numbers is none."""
    known = len(drawn) and np.isfinite(value) and drawn.notna().all()
    return 100 * float((drawn < value).mean()) if known else np.nan


def _note(row: Mapping[str, Any], why_empty: str, english: str) -> str:
    if not row["units"]:
        return f"does nothing: {why_empty}"
    reasons = {
        "the measure is not finite": not np.isfinite(row["own_rise"])
        or not (np.isfinite(row["english_rise"]) or row["deactivated"] == english),
        f"fewer than {FEW_NEURONS} units": row["units"] < FEW_NEURONS,
        "no random sets": not row["seeds"],
        "not hurt": row["own_rise"] <= 0,
        f"{english} is hurt more": row["english_rise"] >= row["own_rise"],
        f"not above {PERCENTILE} % of the random sets": not row["percentile_own"] >= PERCENTILE,
        f"no more above {english} than random sets are": row["percentile_minus_english"] < PERCENTILE,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def workflow_summary(effects: pd.DataFrame, english: str = "en") -> pd.DataFrame:
    """One row a switch, means over the deactivated languages but English.

    Args:
        effects: From `workflow_effects`.
        english: As there.

    Returns:
        `switch`, `languages`, `units` (mean), the mean rises of `workflow_effects`, how many languages are hurt more
        than by 95 % of their random sets (`above_random`), for how many the difference to English is positive and
        larger than that of 95 % of them (`above_english`), and a `note` in words.
    """
    others = effects.loc[effects["deactivated"].ne(english)]
    means = ["units", *RISES, "random_own_rise", "random_minus_english_rise"]
    rows = []
    for switch, each in others.groupby("switch", sort=False):
        hurt = each["own_rise"] > 0
        above = hurt & (each["percentile_own"] >= PERCENTILE)
        above_pivot = hurt & (each["own_minus_english_rise"] > 0) & (each["percentile_minus_english"] >= PERCENTILE)
        counts = {"above_random": int(above.sum()), "above_english": int(above_pivot.sum())}
        note = _summary_note(each, counts, english)
        rows.append({"switch": switch, "languages": len(each), **each[means].mean(), **counts, "note": note})
    return pd.DataFrame(rows)


def _summary_note(each: Any, counts: Mapping[str, int], english: str) -> str:
    """For how many languages what speaks against a switch holds."""
    if not each["units"].any():
        return "; ".join(dict.fromkeys(each["note"]))
    numbers = {
        "without units": int((each["units"] == 0).sum()),
        f"with fewer than {FEW_NEURONS} units": int(each["units"].between(1, FEW_NEURONS - 1).sum()),
        "not above their random sets": len(each) - counts["above_random"],
        f"where {english} is hurt more": int((each["own_minus_english_rise"] < 0).sum()),
    }
    return "; ".join(f"{number} of {len(each)} {what}" for what, number in numbers.items() if number)
