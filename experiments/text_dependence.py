"""How far found neurons depend on the text: its amount, its spelling, its domain.

    python experiments/text_dependence.py --model demo --corpus demo --out runs/text-dependence

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. `--domains '{news: FOLDER, manuals: FOLDER}'` compares
corpora of the same languages. `--config file.yaml` reads settings, `--print_config` shows them. In a notebook:
`lsn_lens.studies.text_dependence_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.text_dependence import TextDependenceSettings


@dataclass(frozen=True)
class Config(TextDependenceSettings, Settings):
    """Find units on more and less text, on changed spelling, and on other domains.

    Attributes:
        domains: Folders or presets by the name of their domain, with all of their files.
    """

    out: Path = Path("runs/text-dependence")
    domains: dict[str, str] | None = None


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run."""
    corpora = load_text(config)
    domains = None
    if config.domains:
        read = {"languages": list(corpora), "column": config.column}
        domains = {name: lsn.load_corpora(source, **read) for name, source in config.domains.items()}
    model = load_model(config)
    return model, corpora, lsn.studies.text_dependence_run(model, corpora, config, config.out / "run"), domains


def report(config: Config, model: Any, corpora: Any, run: Any, domains: Any) -> Path:
    """Compare the sets."""
    study = lsn.studies.text_dependence_study(model, corpora, config, run, domains=domains)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
