"""`lsn-lens inspect`: pages of one unit, or of the units of a set."""

from dataclasses import replace

import pandas as pd

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import layout, load_set, texts
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import InspectConfig
from lsn_lens.inspection.reading import check_units
from lsn_lens.inspection.rendering import COLUMNS, check_folder
from lsn_lens.inspection.showing import neuron_gallery, show_neuron
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.needs import Statistic
from lsn_lens.studies.experiment import load_model

PAGES = "pages"


def run(settings: InspectConfig) -> Outcome:
    """Collect a run, and write the pages."""
    corpora, pages = texts(settings), check_folder(settings.out / PAGES)
    model = load_model(settings)
    given = None if settings.place else load_set(settings, model)
    bases = given.masks if given is not None else {check_units(model, [settings.place])[0][0]}
    extra = [Statistic(WRITE_SITE[basis], "squares") for basis in bases if basis in WRITE_SITE]
    collected = collect(
        model, corpora, settings.methods, settings.out / "run", layout=layout(settings), extra=extra
    )  # fmt: skip
    most = settings.evaluation_tokens
    options = {"random": settings.random, "evaluation": replace(layout(settings), kind="blocks", max_tokens=most)}
    if given is None:
        page = show_neuron(model, corpora, collected, *settings.place, **options)
        said = [*page.content.lead]
        return Outcome(" ".join(said), {"effects": page.tables["effects"]}, {"page": page.report(pages)}, COLUMNS)
    gallery = neuron_gallery(model, corpora, collected, given, units=settings.units, out=pages, **options)
    table: pd.DataFrame = gallery.to_frame()
    return Outcome(gallery.note, {"units": table}, {"pages": pages / "index.html"}, COLUMNS)
