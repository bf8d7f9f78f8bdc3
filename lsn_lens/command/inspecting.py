"""`lsn-lens inspect`: pages of one unit, or of the units of a set."""

from dataclasses import replace
from typing import Any

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import blank, layout, load_set, texts
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import InspectConfig
from lsn_lens.inspection.reading import check_units
from lsn_lens.inspection.rendering import COLUMNS, EFFECTS, check_folder
from lsn_lens.inspection.showing import neuron_gallery, show_neuron
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.needs import Statistic
from lsn_lens.studies.experiment import load_model

PAGES = "pages"


def run(settings: InspectConfig) -> Outcome:
    """Collect a run, and write the pages."""
    corpora, pages = texts(settings), check_folder(settings.out / PAGES)
    cut, place = layout(settings), settings.place
    found: Any = None if place else load_set(settings)
    bases = [basis for basis, *_ in check_units(blank(settings), [place])] if place else list(found.masks)
    model = load_model(settings)
    extra = [Statistic(WRITE_SITE[basis], "squares") for basis in bases if basis in WRITE_SITE]
    collected = collect(model, corpora, settings.methods, settings.out / "run", layout=cut, extra=extra)
    held = replace(cut, kind="blocks", max_tokens=settings.evaluation_tokens)
    options: dict[str, Any] = {"random": settings.random, "layout": cut, "evaluation": held}
    if place:
        page = show_neuron(model, corpora, collected, *place, **options)
        effects = {"effects": page.tables["effects"]}
        return Outcome(" ".join(page.content.lead), effects, {"page": page.report(pages)}, EFFECTS)
    gallery = neuron_gallery(model, corpora, collected, found, units=settings.units, out=pages, **options)
    return Outcome(gallery.note, {"units": gallery.to_frame()}, {"pages": pages / "index.html"}, COLUMNS)
