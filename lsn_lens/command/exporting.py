"""`lsn-lens export`: a set for other tools, or a checkpoint without its units."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lsn_lens.command.given import load_set
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import ExportConfig
from lsn_lens.files import write_bytes
from lsn_lens.interventions.exporting import check_places, export
from lsn_lens.interventions.other_tools import recipe
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.studies.experiment import load_model

FORMATS: Mapping[str, Callable[[NeuronSet, Path], object]] = {
    ".json": NeuronSet.save,
    ".safetensors": NeuronSet.save,
    ".pth": NeuronSet.to_lape_file,
    ".csv": lambda found, path: write_bytes(path, found.to_frame().to_csv(index=False).encode()),
}
RECIPE = ".py"
ENDINGS = (*FORMATS, RECIPE)


def run(settings: ExportConfig) -> Outcome:
    """Write the set, or the checkpoint."""
    out = settings.out
    if out.suffix and out.suffix not in ENDINGS:
        raise ValueError(
            f"--out {out}: expected a file that ends in one of {list(ENDINGS)}, or a folder for a checkpoint."
        )
    if out.suffix and out.exists():
        raise FileExistsError(f"--out {out} is there already: give another name.")
    if not out.suffix:
        check_places(settings.model, out)
    found = load_set(settings, wanted=settings.languages or ())
    found = found if settings.languages is None else found[settings.languages]
    if out.suffix == RECIPE:
        write_bytes(out, str(recipe(load_model(settings), found, tool=settings.tool)).encode())
    elif out.suffix:
        FORMATS[out.suffix](found, out)
    else:
        export(settings.model, found, out, revision=settings.revision, dtype=getattr(torch, settings.dtype))
    return Outcome(
        f"{len(found):,} different units of {found.method}.", {"counts": found.counts().reset_index()}, {"export": out}
    )
