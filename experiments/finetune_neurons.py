"""Train only a language's neurons, and compare with random neurons, LoRA and all weights on the same documents.

    python experiments/finetune_neurons.py --model demo --corpus FOLDER --train [fr] --out runs/finetune

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ and
trainings/ with what was measured so far, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them. LoRA needs the extra `lora`. In a notebook: `lsn_lens.studies.finetuning_study`; for one
training `lsn_lens.applications.finetune`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, main, run_cli
from lsn_lens.studies.settings.finetuning import FinetuningSettings


@dataclass(frozen=True)
class Config(FinetuningSettings, Settings):
    """Neuron-only fine-tuning against random neurons, LoRA and full fine-tuning."""

    out: Path = Path("runs/finetune")
    backend: Literal["auto", "hooked", "bridge"] = field(default="bridge", init=False)  # what can be trained: no option


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run."""
    corpora = lsn.load_corpora(
        config.corpus, config.languages, files=config.files, column=config.column, hold_out=config.hold_out
    )
    model = load_model(config)
    return model, corpora, lsn.studies.finetuning_run(model, corpora, config, config.out / "run")


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Train, measure and write."""
    study = lsn.studies.finetuning_study(model, corpora, config, run, config.out / "trainings")
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
