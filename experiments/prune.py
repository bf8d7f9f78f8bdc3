"""Remove a language's rare experts and neurons, and compare with random ones, other criteria and other languages.

    python experiments/prune.py --model demo --corpus demo --out runs/prune

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/ with the plans, provenance.json, and
run/ with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them. In a notebook: `lsn_lens.studies.prune_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.prune import PruneSettings


@dataclass(frozen=True)
class Config(PruneSettings, Settings):
    """Pruning by language frequency."""

    out: Path = Path("runs/prune")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run."""
    model, corpora = load_model(config), load_text(config)
    return model, corpora, lsn.studies.prune_run(model, corpora, config, config.out / "run")


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Remove experts and neurons at each rate; a model in a folder is also cut and timed."""
    source = config.model if Path(lsn.model.source_of(config.model)).is_dir() else None
    study = lsn.studies.prune_study(model, corpora, config, run, source)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
