"""Follow the languages of a model over the checkpoints of its training.

    python experiments/growth.py --model FOLDER --corpus FOLDER --languages [en,de] --switch checkpoint-800

reads FOLDER/<checkpoint> (or, with `--revisions [step1000,step2000]`, revisions of a Hub model), and writes a folder:
report.html (open it in a browser), report.md, tables/, provenance.json, and checkpoints/ with the finished checkpoints,
from which an interrupted run goes on. `--config file.yaml` reads settings, `--print_config` shows them. In a notebook:
`lsn_lens.studies.growth_study`. `train_growth_model.py` makes checkpoints to try it on.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_text, main, run_cli
from lsn_lens.studies.settings.growth import GrowthSettings


@dataclass(frozen=True)
class Config(GrowthSettings, Settings):
    """Languages over checkpoints.

    Attributes:
        model: A folder with one subfolder per checkpoint, or a Hub id with `revisions`.
        revisions: Branches, tags or commits of the Hub model, in order.
    """

    out: Path = Path("runs/growth")
    revision: None = field(default=None, init=False)  # each checkpoint has its own: no option
    revisions: tuple[str, ...] = ()


def prepare(config: Config) -> tuple[Any, ...]:
    """Measure all checkpoints, after all checks."""
    make = lsn.applications
    corpora = load_text(config)
    given = make.revisions_of(config.model, config.revisions) if config.revisions else make.checkpoints_in(config.model)
    options = {"device": config.device, "dtype": config.dtype, "backend": config.backend}
    return given, corpora, lsn.studies.growth_of(given, corpora, config, config.out / "checkpoints", **options)


def report(config: Config, checkpoints: Any, corpora: Any, found: Any) -> Path:
    """Find stages, plan a corpus, write."""
    study = lsn.studies.growth_study(checkpoints, corpora, config, found)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
