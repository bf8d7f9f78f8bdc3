"""Turn language-specific units off in one stage of layers and one structure at a time, and compare with English.

    python experiments/workflow.py --model demo --corpus demo --out runs/workflow

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and
run/ with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them. In a notebook: `lsn_lens.studies.workflow_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.command.given import blank
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.workflow import WorkflowSettings


@dataclass(frozen=True)
class Config(WorkflowSettings, Settings):
    """The multilingual workflow: understand, solve, generate; attention and FFN."""

    out: Path = Path("runs/workflow")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run; stages that do not fit the model are refused before."""
    if config.understand is not None and config.generate is not None:
        lsn.evaluation.Stages(config.understand, config.generate).layers(blank(config).cfg.n_layers)
    model, corpora = load_model(config), load_text(config)
    return model, corpora, lsn.studies.workflow_run(model, corpora, config, config.out / "run")


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Turn one switch off at a time."""
    study = lsn.studies.workflow_study(model, corpora, config, run)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
