"""Score methods against a known answer: units of known role, planted into a model.

    python experiments/ground_truth.py --model demo --corpus demo --out runs/ground_truth

writes a folder: report.html (open it in a browser), report.md, tables/, provenance.json, and planted/ with
the checkpoints, which a second call uses again. `--config file.yaml` reads settings, `--print_config` shows them. In a
notebook: `lsn_lens.studies.ground_truth_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Corpus, Figures, Named, Work, asked, load_text, main, run_cli
from lsn_lens.studies.settings.ground_truth import GroundTruthSettings


@dataclass(frozen=True)
class Config(GroundTruthSettings, Figures, Work, Corpus, Named):
    """Plant units of known role into a model several times and see which methods find them."""

    out: Path = Path("runs/ground_truth")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load and plant: corpora."""
    corpora = load_text(config)
    lsn.studies.plant_parts(config.model, corpora, config.out / "planted", config)
    return (corpora,)


def report(config: Config, corpora: Any) -> Path:
    """Score the methods; what was planted is opened again."""
    study = lsn.studies.ground_truth_study(config.model, corpora, config.out / "planted", config)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
