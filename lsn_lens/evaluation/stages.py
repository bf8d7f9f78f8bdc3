"""Stages of layers: the first understand, the middle solve the task, the last generate."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pandas as pd

from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.evaluation.jobs import NONE
from lsn_lens.evaluation.perplexity import perplexity_table
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.words import Choice
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.plan import Layout
from lsn_lens.text.records import Records

STAGES = ("understand", "solve", "generate")
STRUCTURES = {"attention": ("q", "k", "v", "z", "attn_out"), "FFN": ("mlp", "mlp_pre", "mlp_up", "mlp_out")}
ALL = "all"
SWITCHES = (*(f"{stage} {structure}" for stage in STAGES for structure in STRUCTURES), ALL)


@dataclass(frozen=True)
class Stages:
    """The first `understand` layers, the last `generate` layers, and between them those that solve the task.

    Source: the released code of Zhao et al. 2024 (NeurIPS, arXiv 2402.18815), which takes the two numbers.
    """

    understand: int
    generate: int

    def __post_init__(self) -> None:
        for name in ("understand", "generate"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name}={number!r}: expected a number of layers, 1 or more.")

    def layers(self, n_layers: int) -> dict[str, range]:
        """The layers of each stage.

        Raises:
            ValueError: The model has too few layers: the stages overlap, or no layer is left between them.
        """
        first, last = self.understand, n_layers - self.generate
        if first >= last:
            what = "overlap" if first > last else "leave no layer to solve the task"
            raise ValueError(
                f"{first} layers to understand and {self.generate} to generate {what}: the model has {n_layers}, so "
                f"together they may have {n_layers - 1}."
            )
        return dict(zip(STAGES, (range(first), range(first, last), range(last, n_layers)), strict=True))


def switch_sets(found: NeuronSet, stages: Stages) -> dict[str, NeuronSet]:
    """The units of the six switches, by name ("understand attention", ...), and all units ("all").

    The six are disjoint and together the whole set. Attention: q, k, v, z, attn_out; FFN: mlp, mlp_pre, mlp_up,
    mlp_out.

    Raises:
        ValueError: The set has a basis outside both, such as the residual stream, or the stages do not fit.
    """
    structures = {name: [basis for basis in bases if basis in found.masks] for name, bases in STRUCTURES.items()}
    odd = set(found.masks) - {basis for bases in structures.values() for basis in bases}
    if odd or not found.masks:
        raise ValueError(
            f"the set has the bases {list(found.masks)}; expected some of {STRUCTURES}: what belongs to no layer's "
            "attention or MLP has no switch."
        )
    stage_layers = stages.layers(_depth(found))
    parts = {
        f"{stage} {structure}": found.only(layers, bases)
        for stage, layers in stage_layers.items()
        for structure, bases in structures.items()
    }
    return {**parts, ALL: found}


def split_hold_out(
    corpora: Any,
) -> tuple[dict[str, LanguageCorpus], dict[str, LanguageCorpus]]:
    """Two corpora with every second hold-out document each: one to choose the stages, one to report."""
    corpora = as_corpora(corpora)
    halves = ({}, {})
    for label, corpus in corpora.items():
        records = Records(f"{corpus.source}, held out", partial(iter, corpus.hold_out))
        for part, second in zip(halves, (False, True), strict=True):
            part[label] = replace(corpus, hold_out=Documents(records, 0.5, held_out=second))
    return halves


def search_stages(
    model: Model,
    corpora: Any,
    found: NeuronSet,
    *,
    english: str = "en",
    understand: Iterable[int] | None = None,
    generate: Iterable[int] | None = None,
    criterion: Literal["gap", "gap_per_unit"] = "gap",
    action: Choice = zero,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> tuple[Stages, pd.DataFrame]:
    """Choose the stage boundaries by the loss increase that ablating each stage's units causes.

    The gap of a stage is the in-language loss increase minus that of English, with all structures of the stage turned
    off, mean over the languages but English. Of all pairs with a layer between them, the one with the largest sum of
    both stages' criterion is chosen; ties go to the fewest layers, then the fewest that understand.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text for the choice, other than the text of the report: see `split_hold_out`.
        found: Units of any method.
        english: The language to compare with.
        understand: Numbers of layers to try; all that leave two layers by default.
        generate: As `understand`.
        criterion: "gap", which favours stages with many units, or "gap_per_unit", which favours small ones.
        action: The action on the units, or a function from the deactivated language to an action.
        layout: How text becomes batches.
        text: `held_out(model, corpora)`, to reuse it; instead of a layout.
        progress: Show a progress bar.

    Returns:
        The stages, and one row per candidate number of layers: `stage`, `layers`, `units` (mean over languages),
        `own_rise`, `english_rise`, `gap_rise`, `gap_per_unit_rise`, `chosen`.

    Raises:
        KeyError: No text for English or another language.
        ValueError: Numbers of layers that do not fit the model, or no language but English.

    Source: ours. Zhao et al. 2024 choose the numbers on a task.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    depth = _depth(found)
    others = [label for label in found.languages if label != english]
    if english not in corpora:
        raise KeyError(f"no text for english={english!r}; the corpora have {list(corpora)}.")
    if not others:
        raise ValueError(f"the set has no language but {english!r}: nothing to compare it with.")
    tried = {
        "understand": sorted(set(range(1, depth - 1) if understand is None else understand)),
        "generate": sorted(set(range(1, depth - 1) if generate is None else generate)),
    }
    pairs = [Stages(first, last) for first in tried["understand"] for last in tried["generate"]]
    pairs = [pair for pair in pairs if pair.understand + pair.generate < depth]
    if not pairs:
        raise ValueError(f"no pair of {tried} leaves a layer between them: the model has {depth}.")
    sets = {
        f"{stage} {count}": found[others].only(range(count) if stage == "understand" else range(depth - count, depth))
        for stage, counts in tried.items()
        for count in counts
        if any(getattr(pair, stage) == count for pair in pairs)
    }
    settings: Any = {"layout": layout, "text": text, "progress": progress}
    table = perplexity_table(model, corpora, sets, action, evaluate=lambda own: [own, english], **settings)
    rows = pd.DataFrame([_candidate(name, part, table, english) for name, part in sets.items()])
    value = {(row["stage"], row["layers"]): row[f"{criterion}_rise"] for row in rows.to_dict("records")}
    best = max(
        pairs,
        key=lambda pair: (
            value["understand", pair.understand] + value["generate", pair.generate],
            -pair.understand - pair.generate,
            -pair.understand,
        ),
    )
    chosen = [getattr(best, row["stage"]) == row["layers"] for row in rows.to_dict("records")]
    return best, rows.assign(chosen=chosen)


def _candidate(name: str, part: NeuronSet, table: pd.DataFrame, english: str) -> dict[str, Any]:
    stage, _, layers = name.partition(" ")
    rows = table.loc[table["set"].eq(name) & table["intervened"].ne(NONE)]
    is_english = rows["evaluated"].eq(english)
    own, pivot = (float(rows.loc[which, "nll_change"].mean(skipna=False)) for which in (~is_english, is_english))
    units = float(part.counts().mean())
    return {
        "stage": stage, "layers": int(layers), "units": units, "own_rise": own, "english_rise": pivot,
        "gap_rise": own - pivot, "gap_per_unit_rise": (own - pivot) / units if units else 0.0,
    }  # fmt: skip


def _depth(found: NeuronSet) -> int:
    return next((mask.shape[1] for mask in found.masks.values()), 0)
