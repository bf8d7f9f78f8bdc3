"""`lsn-lens find`: units by one or several methods, as files."""

import pandas as pd

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import layout, texts
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import FindConfig
from lsn_lens.files import write_bytes
from lsn_lens.methods.base import units_of
from lsn_lens.methods.catalogue import get_method
from lsn_lens.methods.detecting import score
from lsn_lens.studies.experiment import load_model


def run(settings: FindConfig) -> Outcome:
    """Collect a run, and write one set per method: safetensors, the exchange format with scores, and one table."""
    corpora = texts(settings)
    methods = {
        name: get_method(name, **settings.parameters.get(name, {})) for name in dict.fromkeys(settings.methods)
    }  # fmt: skip
    collected = collect(
        load_model(settings), corpora, list(methods.values()), settings.out / "run", layout=layout(settings)
    )
    counts, frames = [], []
    for name, method in methods.items():
        scores = score(collected, method)
        found = units_of(method, scores)
        found.save(settings.out / "neurons" / f"{name}.safetensors")
        found.save(settings.out / "neurons" / f"{name}.json", scores)
        counts.append({"method": name, "units": len(found), **found.counts().to_dict()})
        keys = ["language", "basis", "layer", "unit"]
        frame = found.to_frame().merge(scores.to_frame(), on=keys, how="left")
        frame.insert(0, "method", name)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    write_bytes(settings.out / "neurons.csv", table.to_csv(index=False).encode())
    said = "; ".join(f"{row['method']} finds {row['units']:,} different units" for row in counts)
    paths = {"run": settings.out / "run", "sets": settings.out / "neurons", "table": settings.out / "neurons.csv"}
    return Outcome(f"{said}.", {"counts": pd.DataFrame(counts)}, paths)
