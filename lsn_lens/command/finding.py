"""`lsn-lens find`: units by one or several methods, as files."""

from typing import Any

import pandas as pd

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import blank, layout, texts
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import FindConfig
from lsn_lens.comparison.doubts import FEW_TOKENS
from lsn_lens.files import write_bytes
from lsn_lens.labels import check_apart
from lsn_lens.methods.base import check_methods, units_of
from lsn_lens.methods.catalogue import get_method
from lsn_lens.methods.detecting import score
from lsn_lens.runs.run import Run
from lsn_lens.studies.experiment import load_model


def run(settings: FindConfig) -> Outcome:
    """Collect a run, and write one set per method: safetensors, the exchange format with scores, and one table."""
    corpora = texts(settings)
    methods = {
        name: get_method(name, **settings.parameters.get(name, {})) for name in dict.fromkeys(settings.methods)
    }  # fmt: skip
    cfg = blank(settings).cfg
    check_methods(methods.values(), cfg.n_layers, cfg.d_model)
    collected = collect(
        load_model(settings), corpora, list(methods.values()), settings.out / "run", layout=layout(settings)
    )
    counts, frames = [], []
    for name, method in methods.items():
        scores = score(collected, method)
        found = units_of(method, scores)
        found.save(settings.out / "neurons" / f"{name}.safetensors")
        found.save(settings.out / "neurons" / f"{name}.json", scores)
        row = {"method": name, "units": len(found)}
        check_apart(found.languages, row)
        counts.append(row | found.counts().to_dict())
        keys = ["language", "basis", "layer", "unit"]
        frame = found.to_frame().merge(scores.to_frame(), on=keys, how="left")
        frame.insert(0, "method", name)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    write_bytes(settings.out / "neurons.csv", table.to_csv(index=False).encode())
    said = "; ".join(f"{row['method']} finds {row['units']:,} different units" for row in counts)
    first = settings.out / "neurons" / f"{counts[0]['method']}.safetensors"
    paths = {"run": settings.out / "run", "sets": settings.out / "neurons", "table": settings.out / "neurons.csv"}
    words = f"{said}. {_text(collected)} Whether they matter: lsn-lens deactivate --sets {first}"
    return Outcome(words, {"counts": pd.DataFrame(counts)}, paths)


def _text(run: Run) -> str:
    """How much text the units were found on, and whether that is little."""
    text: Any = run.to_frame()
    used, least = text["tokens_used"], text["tokens_used"].min()
    rest = int((text["tokens"] - used).sum())
    most = "" if used.max() == least else f" to {used.max():,}"
    equal = f"; {rest:,} more are left over, so that each language gives as much" if rest else ""
    few = f" Fewer than {FEW_TOKENS:,} are little: chance has a part in the choice." if least < FEW_TOKENS else ""
    return f"Read: {least:,}{most} tokens per language, the least in {used.idxmin()}{equal}.{few}"
