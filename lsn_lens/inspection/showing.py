"""Look at single units of a model: one in a notebook, or a gallery of a set."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens.bars import tqdm
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.files import whole_number
from lsn_lens.inspection import words
from lsn_lens.inspection.activity import Activity, scored_by
from lsn_lens.inspection.effects import effect_of
from lsn_lens.inspection.excerpts import TopTexts, Unit
from lsn_lens.inspection.pages import Content, effect_note, shown_texts
from lsn_lens.inspection.reading import check_units, top_texts
from lsn_lens.inspection.rendering import check_folder, index_table, inline, write_pages
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.words import Choice, action_of
from lsn_lens.model.entry import check_model
from lsn_lens.model.mlps import named
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import check_same_model
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply, check_kind, reasons_told
from lsn_lens.runs.run import Run, check_run
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

MEASURED = Layout(max_tokens=2048)  # hold-out text of each language on which effects are measured
WEIGHTS = {"writes": words.written_tokens, "reads": words.read_tokens, "similar": words.similar_neurons}
ABOUT = {
    "activity": "Over the text of the run; intervals: 95 %, over shards of text.",
    "scores": "rank: among the units of the basis, from 1, for the language; n/a: it cannot belong to the language.",
    "writes": "Output weights times the unembedding, past the final norm's gain: the direct effect alone. For values "
    "below 0 the sides change places. spread: standard deviation over the vocabulary.",
    "reads": "Embeddings times the input weights (the gate's, where there is one), without norms and earlier layers.",
    "similar": "Cosine of the output weights, over all layers. spread: its standard deviation over all neurons.",
}


@dataclass(frozen=True)
class Gallery:
    """Pages of several units. A notebook shows the index; `gallery[0]` is a page.

    Attributes:
        pages: One for each unit.
        title: Heading of the index.
        note: What is shown, and what was left out.
    """

    pages: tuple["NeuronPage", ...]
    title: str
    note: str

    def __getitem__(self, place: int) -> "NeuronPage":
        return self.pages[place]

    def __len__(self) -> int:
        return len(self.pages)

    def to_frame(self) -> pd.DataFrame:
        """The index: one row per unit."""
        return index_table([each.content for each in self.pages])

    def report(self, folder: Path | str) -> Path:
        """Write one page per unit, and an index with search, sort and filter; returns the path of index.html.

        The folder opens offline. Pages of an earlier call in the folder are replaced.

        Raises:
            FileExistsError: The folder has something else.
        """
        return write_pages(folder, [each.content for each in self.pages], self.title, self.note)

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.title)}</b>: {html.escape(self.note)}</p>{self.to_frame().to_html()}"


@dataclass(frozen=True)
class NeuronPage:
    """One unit from all sides; a notebook shows the page.

    Attributes:
        content: What the page shows.
        excerpts: The texts, as token ids with the unit's values.
    """

    content: Content
    excerpts: TopTexts = field(repr=False)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The page's tables: "activity", "effects", "texts", "scores", "writes", "reads", "similar", as far as made."""
        rows = [(x.kind, x.language, x.row, x.peak, "".join(x.pieces)) for x in self.content.texts]
        texts = pd.DataFrame(rows, columns=["kind", "language", "row", "peak", "text"])
        return {**self.content.tables, "texts": texts}

    @property
    def notes(self) -> dict[str, str]:
        """For each table, how it was made, or why it is missing."""
        return dict(self.content.notes)

    def report(self, folder: Path | str) -> Path:
        """Write the page into a folder that opens offline; returns the path of the page.

        Raises:
            FileExistsError: The folder has something other than pages.
        """
        return Gallery((self,), self.content.title, "One unit.").report(folder).with_name(self.content.file)

    def _repr_html_(self) -> str:
        return inline(self.content)


def show_neuron(
    model: Model, corpora: Any, run: Run, basis: str, layer: int, unit: int, **options: Any
) -> NeuronPage:  # fmt: skip
    """Look at one unit: scores, activity, effect beside random units, texts, and what its weights read and write.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: Text; strongest texts are of its `find` part, effects of its `hold_out` part.
        run: A run of the model, for scores, activities and random units that are as active.
        basis: The unit's basis, such as "mlp".
        layer: Its layer.
        unit: Its number.
        options: Those of `neuron_gallery`: `methods`, `action`, `random`, `top`, `random_texts`, `layout`,
            `evaluation`, `progress`.

    Returns:
        The page: `.tables` by name, `.report(folder)`; a notebook shows it.

    Raises:
        DoesNotApply: The model lacks the basis.
        KeyError: The model has no such unit.
        ValueError: No text, or a run of another model.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    return _pages(model, corpora, run, check_units(model, [(basis, layer, unit)]), **options)[0]


def neuron_gallery(
    model: Model, corpora: Any, run: Run, found: NeuronSet, *, units: int = 30, scores: NeuronScores | None = None,
    out: Path | str | None = None, **options: Any,
) -> Gallery:  # fmt: skip
    """The pages of a set's units, with an index to search, sort and filter.

    The text is read once for all units. The effect of each takes `random` + 1 measurements of the hold-out text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: As in `show_neuron`.
        run: As in `show_neuron`.
        found: The set.
        units: Number of units at most: of each language in turn, by score if `scores` are given, else by layer and
            unit. The index says how many were left out.
        scores: Of the method that found the set.
        out: A folder to write the pages to.
        options: `methods`: names or method objects whose scores are shown, by default all that the run allows;
            `action`: on the unit, zero by default; `random`: number of random units, 19 by default; `top` and
            `random_texts`: texts of each language, 4 and 2 by default; `layout`: of the text that is read;
            `evaluation`: layout of the hold-out text, 2,048 tokens of each language by default; `progress`.

    Raises:
        FileExistsError: `out` has something other than pages.
        ValueError: An empty set, no text, or a set or a run of another model.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    check_kind("found", found, NeuronSet, "a set, from lsn.detect(run)")
    if out is not None:
        check_folder(out)
    check_same_model(model, [("the set", found.origin)])
    every = units_in_turn(found, scores)
    shown = every[: whole_number(units, "units", least=1)]
    pages = _pages(model, corpora, run, check_units(model, shown), found=found, **options)
    left = f" {len(every) - len(shown)} are left out: raise units=." if len(every) > len(shown) else ""
    gallery = Gallery(
        tuple(pages), found.method or "Units", f"{len(shown)} of the {len(every)} units of the set.{left}"
    )
    if out is not None:
        gallery.report(out)
    return gallery


def units_in_turn(found: NeuronSet, scores: NeuronScores | None = None) -> list[Unit]:
    """The different units of a set: the first of each language, the second of each, and so on."""
    frame = found.to_frame()
    if scores is not None:
        keys = ["language", "basis", "layer", "unit"]
        frame = frame.merge(scores.to_frame(), on=keys, how="left").sort_values("score", ascending=False, kind="stable")
    lists: list[list[Unit]] = [
        list(frame.loc[frame["language"].eq(label), ["basis", "layer", "unit"]].itertuples(index=False, name=None))
        for label in found.languages
    ]
    return list(dict.fromkeys(unit for turn in zip_longest(*lists) for unit in turn if unit is not None))


def _pages(
    model: Model, corpora: Any, run: Run, units: Sequence[Unit], *, methods: Any = None, action: Choice = zero,
    random: int = 19, top: int = 4, random_texts: int = 2, layout: Layout | None = None,
    evaluation: Layout | None = None, progress: bool = True, found: NeuronSet | None = None,
) -> list[NeuronPage]:  # fmt: skip
    """The pages of some units: everything that they share is made once."""
    check_run(run)
    check_same_model(model, [("the run", run.origin)])
    random, chosen = whole_number(random, "random", least=1), action_of(action, run.statistics)
    scored, activity = scored_by(run, methods), Activity(run)
    texts = top_texts(model, corpora, units, top=top, random=random_texts, layout=layout, progress=progress)
    held = held_out(model, corpora, evaluation or MEASURED, progress=progress)
    pages = []
    for unit in tqdm(units, desc="effects of units", disable=not progress or len(units) < 2):
        effect = effect_of(held, run.statistics, unit, chosen, random, progress=progress and len(units) < 2)
        tables = {"activity": activity.of(*unit), "effects": effect.table, "scores": scored.of(*unit)}
        notes = {**ABOUT, "effects": effect_note(effect, getattr(chosen, "name", str(action)))}
        notes["activity"] = _about_activity(tables["activity"], activity.few_shards)
        left_out = reasons_told(scored.without(unit[0]))
        notes["scores"] += f" Methods without scores: {left_out}." if left_out else ""
        for name, read in WEIGHTS.items():
            try:
                tables[name] = read(model, unit[1], unit[2], basis=unit[0])
            except DoesNotApply as error:
                notes[name] = str(error)
        content = Content(
            unit, named(model), tuple(held.clean), _found(tables["scores"], unit, found), tables, notes,
            shown_texts(texts, unit, model.tokenizer),
        )  # fmt: skip
        pages.append(NeuronPage(content, texts))
    return pages


def _about_activity(table: pd.DataFrame, few_shards: str) -> str:
    if table.empty:
        return "The run has neither firing counts nor sums of this basis: collect with lape or diffmean."
    return ABOUT["activity"] + (f" No intervals: {few_shards}" if few_shards else "")


def _found(scores: pd.DataFrame, unit: Unit, given: NeuronSet | None) -> dict[str, list[str]]:
    """Name of each set that has the unit -> languages: the methods' sets, and the one that the gallery shows."""
    inside: Iterable[Any] = scores.loc[scores["found"].astype(bool)].groupby("method", sort=False)
    found = {name: list(rows["language"]) for name, rows in inside}
    if given is not None:
        own = [label for label, each in given if bool(each.units(unit[0])[unit[1], unit[2]])]
        found = {"this set": own, **found}
    return found
