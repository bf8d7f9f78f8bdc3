"""Make a model write in another language, or stop writing in one: neurons, beside a direction, a prompt and chance.

    python experiments/steer.py --model demo --corpus demo --out runs/steer

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/
with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them. In a notebook: `lsn_lens.studies.steering_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.steering import SteeringSettings


@dataclass(frozen=True)
class Config(SteeringSettings, Settings):
    """Steer a model from every language to every other, and switch each language off."""

    out: Path = Path("runs/steer")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run."""
    model, corpora = load_model(config), load_text(config)
    return model, corpora, lsn.studies.steering_run(model, corpora, config, config.out / "run")


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Steer."""
    study = lsn.studies.steering_study(model, corpora, config, run)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
