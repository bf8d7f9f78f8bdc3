"""One pass over the text that keeps, for each unit and language, its strongest rows and a random sample."""

import heapq
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.collection.planning import plan_of
from lsn_lens.files import whole_number
from lsn_lens.inspection.excerpts import KINDS, ORDER, Excerpt, TopTexts, Unit
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.draws import generator_of
from lsn_lens.neurons.identity import fingerprint
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Batch, Layout, Plan, corpus_hash, layout_of
from lsn_lens.text.tokens import separator_id

AROUND = 16  # tokens on each side of the token in the middle of an excerpt


def top_texts(
    model: Model,
    corpora: Any,
    units: Iterable[Unit],
    *,
    top: int = 4,
    random: int = 2,
    around: int = AROUND,
    layout: Layout | None = None,
    part: tuple[int, int] = (0, 1),
    seed: int = 0,
    progress: bool = True,
) -> TopTexts:
    """Read the `find` part of the corpora once, and keep the rows of text on which each unit is strongest.

    A unit's value is the one that an intervention changes (for an MLP, what the down projection reads), and a row's
    strength is its largest size. Separators do not count. Memory depends on the numbers of units, languages and
    excerpts, not on the text.

    Args:
        model: A HookedTransformer or TransformerBridge.
        corpora: From `load_corpora`, or what it takes.
        units: `(basis, layer, unit)`.
        top: Strongest rows to keep for each unit and language.
        random: Rows drawn at random in each language, for comparison.
        around: Tokens to keep on each side of the strongest (or a random) token.
        layout: How text is cut into rows; by default one row per document where all fit, else packed blocks.
        part: `(0, 3)` reads the first of three parts of the text; `merge_texts` combines parts.
        seed: Seed of the random rows.
        progress: Show a progress bar.

    Raises:
        DoesNotApply: The model lacks the site of a basis.
        KeyError: A unit that the model does not have.
        ValueError: No units, no text, or a part that is out of range.
        FloatingPointError: NaN or infinity in the model.
    """
    check_model(model)
    corpora, layout = as_corpora(corpora), layout_of(layout, Layout(kind="auto"))
    units = check_units(model, units)
    sizes = {"top": top, "random": random, "around": around}
    sizes = {name: whole_number(each, name) for name, each in sizes.items()}
    number, of = whole_number(part[0], "part[0]"), whole_number(part[1], "part[1]", least=1)
    if number >= of:
        raise ValueError(f"part={part}: expected (i, n) with i from 0 to n - 1.")
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as scratch:
        plan = plan_of(model, corpora, Path(scratch), layout, progress=progress)
        reading = _Reading(model, plan, units, sizes, seed)
        shards = plan.shards[number::of]
        names = list(reading.hooks)
        how: dict[str, Any] = {"unit": "tok", "unit_scale": True, "disable": not progress, "desc": "top texts"}
        with (
            torch.no_grad(), forward.lean_where_exact(model, names), model.hooks(fwd_hooks=[*reading.hooks.items()]),
            tqdm(total=sum(map(plan.tokens_of, shards)), **how) as bar,
        ):  # fmt: skip
            for shard in shards:
                for batch in plan.batches(shard):
                    reading.read(batch)
                    bar.update(int(batch.keep.sum()))
        return reading.result([each.name for each in shards])


def check_units(model: Model, units: Iterable[Unit]) -> list[Unit]:
    """The units, as a list without repetition.

    Raises:
        DoesNotApply: The model lacks the site of a basis.
        KeyError: An unknown basis, or a unit that the model does not have.
        ValueError: No units, or an entry of another form.
    """
    found: list[Unit] = []
    for each in units:
        if not isinstance(each, tuple | list) or len(each) != 3:
            raise ValueError(f"units: got {each!r}, expected (basis, layer, unit).")
        basis, layer, unit = each
        if basis not in WRITE_SITE:
            raise KeyError(f"no basis {basis!r}; the bases are {list(WRITE_SITE)}.")
        found.append((basis, whole_number(layer, "layer"), whole_number(unit, "unit")))
    if not found:
        raise ValueError("no units to show: expected one (basis, layer, unit) or more.")
    layers = model.cfg.n_layers
    widths = {basis: structure.site_width(model, WRITE_SITE[basis]) for basis in {each[0] for each in found}}
    for basis, layer, unit in found:
        if layer >= layers or unit >= widths[basis]:
            raise KeyError(
                f"no unit {unit} in layer {layer} on basis {basis!r}: the model has layers 0 to {layers - 1}, each "
                f"with units 0 to {widths[basis] - 1}."
            )
    return list(dict.fromkeys(found))


class _Reading:
    """Values of the units in the current batch, and what is kept so far."""

    def __init__(self, model: Model, plan: Plan, units: Sequence[Unit], sizes: dict[str, int], seed: int):
        self.model, self.plan, self.units, self.sizes = model, plan, units, sizes
        self.separator = separator_id(model.tokenizer, plan.layout.separator)
        self.heaps: dict[tuple[Unit, str], list[tuple[float, int, Excerpt]]] = defaultdict(list)
        self.drawn: dict[tuple[Unit, str], list[Excerpt]] = defaultdict(list)
        self.random = {label: self._random_rows(label, rows, seed) for label, rows in plan.rows.items()}
        self.settings = {
            "model": fingerprint(model), "text": corpus_hash(plan.describe()), "layout": plan.describe()["layout"],
            "languages": list(plan.rows), "shards": len(plan.shards), "seed": seed, **sizes,
        }  # fmt: skip
        self.columns: dict[str, list[tuple[int, int]]] = defaultdict(list)  # hook point -> units by place and number
        self.hooks: dict[str, Any] = {}
        self.seen: dict[str, Tensor] = {}
        for place, (basis, layer, unit) in enumerate(units):
            site, read = structure.reader(model, WRITE_SITE[basis])
            name = site.hook_name(layer)
            self.columns[name].append((place, unit))
            self.hooks[name] = self._hook(name, layer, read)

    def _random_rows(self, label: str, rows: int, seed: int) -> dict[int, float]:
        """Row -> where in the row the excerpt lies, as a share; a function of the whole text, whatever part is read."""
        generator = generator_of("random texts", label, seed)
        chosen = torch.randperm(rows, generator=generator)[: self.sizes["random"]].tolist()
        return dict(zip(chosen, torch.rand(len(chosen), generator=generator).tolist(), strict=True))

    def _hook(self, name: str, layer: int, read: Any) -> Any:
        def keep(acts: Tensor, hook: Any) -> None:
            numbers = [unit for _, unit in self.columns[name]]
            self.seen[name] = read(acts.detach(), layer)[..., numbers].float().cpu()

        return keep

    def read(self, batch: Batch) -> None:
        """Run one batch, and keep what is stronger than what is kept."""
        device = structure.device_of(self.model)
        self.seen.clear()
        mask = batch.keep.long().to(device) if batch.padded else None
        forward.hidden_states(self.model, batch.ids.to(device), mask)
        counted = batch.keep if self.separator is None else batch.keep & (batch.ids != self.separator)
        for name, columns in self.columns.items():
            values = self.seen[name] * counted[..., None]
            if not bool(values.isfinite().all()):
                raise FloatingPointError(f"NaN or infinity at {name}, language {batch.language}.")
            sizes, places = values.abs().masked_fill(~counted[..., None], -1).max(1)
            for column, (place, _) in enumerate(columns):
                self._keep(self.units[place], batch, values[..., column], sizes[:, column], places[:, column])

    def _keep(self, unit: Unit, batch: Batch, values: Tensor, sizes: Tensor, places: Tensor) -> None:
        """Update one unit's heap, whose first entry is the weakest kept, and its random rows."""
        heap = self.heaps[unit, batch.language]
        for index, row in enumerate(batch.rows):
            size = float(sizes[index])
            if size < 0:  # a row without a token that counts
                continue
            full = len(heap) >= self.sizes["top"]
            share = self.random[batch.language].get(row)
            if share is not None:
                middle = int(share * int(batch.keep[index].sum()))
                self.drawn[unit, batch.language].append(self._excerpt(batch, values, places, index, middle))
            if not self.sizes["top"] or (full and (size, -row) <= heap[0][:2]):
                continue
            entry = (size, -row, self._excerpt(batch, values, places, index, int(places[index])))
            (heapq.heapreplace if full else heapq.heappush)(heap, entry)

    def _excerpt(self, batch: Batch, values: Tensor, places: Tensor, index: int, middle: int) -> Excerpt:
        first = max(0, middle - self.sizes["around"])
        last = min(int(batch.keep[index].sum()), middle + self.sizes["around"] + 1)
        ids, some = batch.ids[index, first:last].tolist(), values[index, first:last].tolist()
        return Excerpt(batch.rows[index], float(values[index, places[index]]), first, tuple(ids), tuple(some))

    def result(self, shards: list[str]) -> TopTexts:
        """What was kept, in order."""
        kept = {
            "top": lambda unit, label: [each for _, _, each in self.heaps[unit, label]],
            "random": lambda unit, label: self.drawn[unit, label],
        }
        found = {
            kind: {
                unit: {label: tuple(sorted(kept[kind](unit, label), key=ORDER[kind])) for label in self.plan.rows}
                for unit in self.units
            }
            for kind in KINDS
        }
        return TopTexts(found["top"], found["random"], self.settings, tuple(sorted(shards)))
