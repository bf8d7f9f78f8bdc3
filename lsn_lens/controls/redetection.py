"""The share of a set that is found again on changed text, or among the languages of one script."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from lsn_lens.collection.collecting import collect
from lsn_lens.controls.changed_text import CONTROLS, Control, same_script
from lsn_lens.controls.resampling import halves, load_shards, subset
from lsn_lens.methods.base import Method
from lsn_lens.methods.catalogue import Methods, named
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import Run
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

FEW_CHANGED = 0.05  # share of changed documents below which a control tests nothing


def survival(
    model: Model,
    corpora: Any,
    methods: Methods = ("lape",),
    controls: Mapping[str, Control] = CONTROLS,
    *,
    run: Run | None = None,
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The share of each language's set that is found again on changed text.

    All languages are changed at once, and units are found on the changed text in the same way: one pass per control.
    The reference (`ceiling`) is the survival between two halves of the run. It is low, since each half has half the
    text, and no upper bound, since the changed text has the same content.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Corpora whose `find` text is used.
        methods: Names of `METHODS`, or method objects by names of your own.
        controls: From corpora to corpora of the same languages, by name: romanised and shuffled words by default.
        run: A run of the same model and text with the methods' statistics, to save a pass.
        layout: How text becomes batches. By default that of the run (with whole documents, as changed text can be
            longer), else that of `collect`.
        progress: Show progress bars.

    Returns:
        One row per control, method and language: `control`, `method`, `language`, `before` and `after` (units found),
        `both`, `survival` (`both` over `before`; NaN without units), `chance` (the survival of as many random units in
        each layer), `ceiling` (the share of the first half's units that the second half gives again), `changed` (share
        of documents in which letters change or move), and `note`: "" or why the row tests nothing (not for means).

    Raises:
        ValueError: No methods or controls, a control that changes the languages or does not apply to them, a run with
            one shard of a language.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    chosen = named(methods)
    if not controls:
        raise ValueError("no controls: name at least one, as {'romanised': controls.romanised}.")
    altered = {name: control(corpora) for name, control in controls.items()}
    wrong = {name: list(each) for name, each in altered.items() if list(each) != list(corpora)}
    if wrong:
        raise ValueError(f"controls gave the languages {wrong} for {list(corpora)}: expected the same.")
    if run is None:
        run = collect(model, corpora, chosen.values(), layout=layout, progress=progress)
    layout = layout or _layout_of(run, model.cfg.n_ctx)
    before, first, second = (_sets(each, chosen) for each in (run, *halves(run)))
    tables = []
    for control, text in altered.items():
        after = _sets(collect(model, text, chosen.values(), layout=layout, progress=progress), chosen)
        changed = {label: _share_changed(corpora[label].find, text[label].find) for label in corpora}
        for name in chosen:
            table = survivors(before[name], after[name])
            table["ceiling"] = list(survivors(first[name], second[name])["survival"])
            table["changed"] = [changed[label] for label in table["language"]]
            table["note"] = [_note(changed[label]) for label in table["language"]]
            table.insert(0, "method", name)
            table.insert(0, "control", control)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def same_script_survival(run: Run, corpora: Any, methods: Methods = ("lape",)) -> pd.DataFrame:
    """The share of each language's set that is found again without the languages of other scripts.

    Needs no new pass, only the run's sums for some languages. Removing any languages changes a set, so `ceiling` is the
    mean survival after removing as many languages of the *same* script, in cyclic order.

    Args:
        run: A run with the methods' statistics.
        corpora: The run's text, for the scripts.
        methods: Names of `METHODS`, or method objects by names of your own.

    Returns:
        The columns of `survival`; `changed` is the share of other languages that are removed. Languages without another
        or without enough languages of their script for a ceiling have a `note`.

    Raises:
        ValueError: All languages have the same script, or all have different scripts.
        KeyError: A language of the run without text.
    """
    corpora = as_corpora(corpora)
    missing = [label for label in run.languages if label not in corpora]
    if missing:
        raise KeyError(f"no text for the run's languages {missing}; the corpora have {list(corpora)}.")
    groups = same_script({label: corpora[label] for label in run.languages})
    if len(groups) < 2 or max(map(len, groups.values())) < 2:
        raise DoesNotApply(
            f"the scripts are {groups}: expected two or more, and one of them with two languages, so that some can be "
            "taken away and some are left."
        )
    chosen = named(methods)
    tables = []
    for name, method in chosen.items():
        small = load_shards(run, [method])
        before = _detect(small, method)
        parts = [_of_script(small, method, before, group) for group in groups.values()]
        table = pd.concat(parts).set_index("language").loc[list(run.languages)].reset_index()
        table.insert(0, "method", name)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "control", "same script")
    return table


def _sets(run: Run, methods: Mapping[str, Method]) -> dict[str, NeuronSet]:
    return {name: _detect(run, method) for name, method in methods.items()}


def _layout_of(run: Run, context: int) -> Layout:
    """The run's layout with room for longer documents."""
    stored = Layout(**run.settings["text"]["layout"])
    return replace(stored, length=context) if stored.kind == "documents" else stored


def _note(changed: float) -> str:
    return "" if changed >= FEW_CHANGED else f"letters change in {changed:.1%} of its documents only"


def survivors(before: NeuronSet, after: NeuronSet) -> pd.DataFrame:
    """How many of each language's units are found again; `after` has the same languages.

    Returns:
        One row per language: `before`, `after` and `both` (units), `survival` (`both` over `before`; NaN without
        units), and `chance` (the expected survival if `after` had as many random units in each layer).
    """
    rows = []
    for label in before.languages:
        one, two = before[label].masks, after[label].masks
        both = sum(int((one[basis] & two[basis]).sum()) for basis in one)
        sizes = [sum(int(each.sum()) for each in masks.values()) for masks in (one, two)]
        expected = sum(float((_by_layer(one[b]) * _by_layer(two[b])).sum()) / one[b].shape[-1] for b in one)
        share, chance = (each / sizes[0] if sizes[0] else np.nan for each in (both, expected))
        row: dict[str, Any] = {"language": label, "before": sizes[0], "after": sizes[1], "both": both}
        rows.append(row | {"survival": share, "chance": chance})
    return pd.DataFrame(rows)


def _by_layer(mask: Tensor) -> Int[Tensor, "layer"]:
    return mask[0].sum(-1)


def _detect(run: Run, method: Method) -> NeuronSet:
    return method.select(method.score(run.statistics))


def _of_script(run: Run, method: Method, before: NeuronSet, group: tuple[str, ...]) -> pd.DataFrame:
    """Survival of one script's languages without the languages of other scripts."""
    if len(group) < 2:
        unknown = dict.fromkeys(("after", "both", "survival", "chance", "ceiling", "changed"), np.nan)
        return survivors(before[group], before[group]).assign(**unknown, note="the only language in its script")
    away = len(run.languages) - len(group)
    stayed: dict[str, list[float]] = {label: [] for label in group}
    for start in range(len(group)) if away < len(group) else ():
        gone = {group[(start + step) % len(group)] for step in range(away)}
        found = _detect(subset(run, [label for label in run.languages if label not in gone]), method)
        rest = [label for label in group if label not in gone]
        for row in survivors(before[rest], found).to_dict("records"):
            stayed[row["language"]].append(row["survival"])
    note = "" if away < len(group) else "no ceiling: too few languages of its script to take as many of them away"
    return survivors(before[group], _detect(subset(run, group), method)).assign(
        ceiling=[float(np.mean(each)) if each else np.nan for each in stayed.values()],
        changed=away / (len(run.languages) - 1),
        note=note,
    )


def _share_changed(one: Iterable[str], two: Iterable[str]) -> float:
    pairs = list(zip(one, two, strict=False))
    letters = [["".join(filter(str.isalpha, text)) for text in pair] for pair in pairs]
    return float(np.mean([a != b for a, b in letters])) if letters else 0.0
