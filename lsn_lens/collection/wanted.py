"""The needs of methods, and the methods and needs that a model or text rules out, known before anything slow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lsn_lens.collection.recorders import RECORDERS
from lsn_lens.methods.base import ChecksText, Method
from lsn_lens.methods.catalogue import METHODS, named
from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import WRITE_SITE, get_site
from lsn_lens.refusal import DoesNotApply, by_reason
from lsn_lens.statistics.needs import Need, Statistic, unique
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.tokens import check_aligned


@dataclass(frozen=True)
class Wanted:
    """Methods by name, and their needs as far as the model supports them.

    Attributes:
        methods: The methods that apply.
        needs: Name of a method -> its needs.
        methods_left_out: Name of a method that does not apply -> reason.
        bases_left_out: Key of a need -> basis that the model lacks -> reason.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    needs: Mapping[str, tuple[Need, ...]] = field(default_factory=dict)
    methods_left_out: Mapping[str, str] = field(default_factory=dict)
    bases_left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def without(self, refused: Mapping[str, str]) -> "Wanted":
        """The same without the refused methods, whose reasons are kept."""
        kept = {name: method for name, method in self.methods.items() if name not in refused}
        return Wanted(
            kept, {name: self.needs[name] for name in kept}, {**self.methods_left_out, **refused}, self.bases_left_out
        )

    def every_need(self) -> list[Need]:
        """All needs, method by method."""
        return [need for needs in self.needs.values() for need in needs]

    def describe(self) -> dict[str, Any]:
        """The `methods` and `bases` left out, with reasons, for a run's settings."""
        return {
            "methods": dict(self.methods_left_out),
            "bases": {key: dict(why) for key, why in self.bases_left_out.items()},
        }


class Fits:
    """Fits needs to a model: finds the parts that the model supports. Widths of sites are measured once."""

    def __init__(self, model: Model):
        self.model = model
        self._widths: dict[str, int | DoesNotApply] = {}
        self._needs: dict[tuple[str, bool], tuple[Need | None, dict[str, str]]] = {}

    def width(self, site: str) -> int:
        """Number of units of a site.

        Raises:
            DoesNotApply: The model lacks the site.
        """
        if site not in self._widths:
            try:
                self._widths[site] = structure.site_width(self.model, site)
            except DoesNotApply as error:
                self._widths[site] = error
        width = self._widths[site]
        if isinstance(width, DoesNotApply):
            raise width
        return width

    def need(self, need: Need) -> tuple[Need | None, dict[str, str]]:
        """The part of a need that the model supports (None for no part), and why not the rest, by basis."""
        place = (need.key, need.optional)
        if place not in self._needs:
            self._needs[place] = RECORDERS[type(need)].fit(self.model, need, self.width)
        return self._needs[place]

    def wanted(self, methods: Mapping[str, Method]) -> Wanted:
        """The methods that apply to the model, with their needs, and the reasons for the others."""
        needs: dict[str, tuple[Need, ...]] = {}
        refused: dict[str, str] = {}
        bases: dict[str, dict[str, str]] = {}
        for name, method in methods.items():
            asked = method.statistics()
            fitting = [(need, *self.need(need)) for need in asked]
            missing = {basis: why for _, _, reasons in fitting for basis, why in reasons.items()}
            had = tuple(fitted for _, fitted, _ in fitting if fitted is not None)
            if any(fitted is None and not need.optional for need, fitted, _ in fitting) or (asked and not had):
                refused[name] = _together(missing)
                continue
            needs[name] = had
            bases |= {need.key: reasons for need, _, reasons in fitting if reasons}
        kept = {name: method for name, method in methods.items() if name in needs}
        return Wanted(kept, needs, refused, bases)

    def list(self, needs: Iterable[Need]) -> list[Need]:
        """Needs without repeats, and without optional needs that the model does not support.

        Raises:
            DoesNotApply: The model does not support a need that is not optional.
        """
        kept = []
        for need in unique(needs):
            fitted, reasons = self.need(need)
            if fitted is not None:
                kept.append(fitted)
            elif not need.optional:
                raise DoesNotApply(_together(reasons))
        return kept


def _together(reasons: Mapping[str, str]) -> str:
    """The reasons of one method's bases, each once."""
    return "; ".join(by_reason(reasons))


def every_method() -> dict[str, Method]:
    """All methods, with their defaults."""
    return {name: make() for name, make in METHODS.items()}


def named_methods(methods: Iterable[str | Method] | str | Method | None) -> dict[str, Method]:
    """Methods by name, objects by their repr; for None, every method.

    Raises:
        ValueError: An empty list, or an element that is not a method.
        KeyError: An unknown name.
    """
    return every_method() if methods is None else named(methods)


BLOCKS = "the layout cuts them into blocks"


def refused_by_layout(wanted: Wanted, layout: Layout, why: str = BLOCKS) -> dict[str, str]:
    """Methods that need single documents, if the layout cuts blocks: name -> reason."""
    if layout.kind != "blocks":
        return {}
    keys = {name: [need.key for need in needs if need.by_document] for name, needs in wanted.needs.items()}
    return {name: _no_documents(each, why) for name, each in keys.items() if each}


def check_layout(needs: Iterable[Need], layout: Layout, why: str = BLOCKS) -> None:
    """Refuse statistics of single documents in a layout of blocks.

    Raises:
        DoesNotApply: A need takes one row per document.
    """
    by_document = [need.key for need in needs if need.by_document]
    if by_document and layout.kind == "blocks":
        raise DoesNotApply(_no_documents(by_document, why))


def _no_documents(keys: list[str], why: str) -> str:
    return (
        f"it needs single documents: {keys}, but the rows are not documents: {why.rstrip('.')}. Cut the documents and "
        'give layout=Layout(kind="documents"), with length= if the model can read longer documents'
    )


def refused_by_text(wanted: Wanted, plan: Plan) -> dict[str, str]:
    """Methods that do not apply to the text, by the numbers of tokens of its documents or blocks: name -> reason."""
    if plan.layout.kind == "documents":
        lengths = {label: np.diff(each.ends[: plan.rows[label]], prepend=0) for label, each in plan.tokens.items()}
    else:
        lengths = {label: np.full(plan.rows[label], plan.length) for label in plan.tokens}
    unscored = [label for label, each in lengths.items() if each.max() < 2]
    refused = {
        name: f"it takes the gradient of the loss, but no token of {unscored} has a token before it to predict it from"
        for name, needs in wanted.needs.items()
        if unscored and any(need.gradient for need in needs)
    }
    if plan.layout.kind != "documents":
        return refused
    for name, method in wanted.methods.items():
        if isinstance(method, ChecksText):
            try:
                if getattr(method, "check_parallel", False):
                    places = {label: each.places[: plan.rows[label]] for label, each in plan.tokens.items()}
                    check_aligned(places)
                method.check_text(lengths)
            except DoesNotApply as error:
                refused[name] = str(error)
    return refused


def refuse(fits: Fits, refused: Mapping[str, str], layout: Layout, plan: Plan | None = None) -> None:
    """Raise for requested methods that do not apply; the message lists the methods that apply.

    Raises:
        DoesNotApply: `refused` is not empty.
    """
    if not refused:
        return
    others = fits.wanted(every_method())
    others = others.without(refused_by_layout(others, layout))
    others = others if plan is None else others.without(refused_by_text(others, plan))
    reasons = "; ".join(
        f"{', '.join(names)} {'does' if len(names) == 1 else 'do'} not apply: {why}"
        for why, names in by_reason(refused).items()
    )
    raise DoesNotApply(f"{reasons}. The methods that apply are {list(others.methods)}.")


def needs_with_sums(needs: Iterable[Need]) -> list[Need]:
    """Needs without repeats, plus sums for ablation of their units to a mean, and squares.

    The squares give each unit's activity per language, by which random units are matched.
    """
    needs = list(needs)
    written = dict.fromkeys(["mlp_post", *(WRITE_SITE[get_site(site).basis] for need in needs for site in need.sites)])
    kept = [Statistic(each, kind, optional=True) for each in written for kind in ("sum", "squares")]
    return unique([*needs, *kept])


def needs_of(model: Model, methods: Iterable[str | Method] | str | Method, extra: Iterable[Need] = ()) -> list[Need]:
    """The methods' needs with sums (`needs_with_sums`), as far as the model supports them.

    Raises:
        DoesNotApply: A method that does not apply to the model.
    """
    fits = Fits(model)
    wanted = fits.wanted(named_methods(methods))
    refuse(fits, wanted.methods_left_out, Layout(kind="auto"))
    return fits.list(needs_with_sums([*wanted.every_need(), *extra]))


def widths_of(model: Model, needs: Iterable[Need]) -> dict[str, int]:
    """Number of units of every site that the needs name."""
    return {site: structure.site_width(model, site) for site in dict.fromkeys(x for need in needs for x in need.sites)}
