"""Switch off and raise the neurons that languages share, and compare with neurons of equal number and contribution.

    python experiments/sharing.py --model demo --corpus demo --out runs/sharing

takes parallel text (document i says the same in every language) and writes a folder: report.html (open it in a
browser), report.md, tables/ and provenance.json. `--sibling NAME` compares with a second model of the same shape.
`--config file.yaml` reads settings, `--print_config` shows them. In a notebook: `lsn_lens.studies.sharing_study`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.sharing import SharingSettings


@dataclass(frozen=True)
class Config(SharingSettings, Settings):
    """What shared neurons do."""

    out: Path = Path("runs/sharing")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load the models and the text."""
    sibling = None if config.sibling is None else load_model(replace(config, model=config.sibling))
    return load_model(config), load_text(config), sibling


def report(config: Config, model: Any, corpora: Any, sibling: Any) -> Path:
    """Measure, and write the report."""
    study = lsn.studies.sharing_study(model, corpora, config, sibling)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
