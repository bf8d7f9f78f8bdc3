"""Translate with a target's units forced, beside the prompt alone, examples in the prompt, and random units.

    python experiments/translate.py --model demo --corpus demo --out runs/translate

takes parallel text (document i says the same in every language) and writes a folder: report.html (open it in a
browser), report.md, tables/, neurons/ and provenance.json. `--config file.yaml` reads settings, `--print_config` shows
them. In a notebook: `lsn_lens.studies.translation_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.translation import TranslationSettings


@dataclass(frozen=True)
class Config(TranslationSettings, Settings):
    """Translate from one language to the others."""

    out: Path = Path("runs/translate")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load the model and the text."""
    return load_model(config), load_text(config)


def report(config: Config, model: Any, corpora: Any) -> Path:
    """Translate, and write the report."""
    study = lsn.studies.translation_study(model, corpora, config)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
