"""Audit a set of units, whoever found it: what holds of it on a model that one has.

    python experiments/audit.py --sets [mask.pth] --format lape --labels [en,zh,fr] --corpus texts --out runs/audit

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings, `--print_config` shows
them. In a notebook: `lsn_lens.audit`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.audit import AuditSettings


@dataclass(frozen=True)
class Config(AuditSettings, Settings):
    """Audit of a set of units.

    Attributes:
        sets: The file with the units; for tables of expertise, one file per language.
        format: A key of `lsn_lens.neurons.IMPORTERS`; by default told by the file.
        labels: Languages in the file's order, for formats that name none.
        count: For tables of all units: units per language.
        method: The method that found the units, to find units again on changed text.
    """

    sets: tuple[Path, ...] = ()
    format: str | None = None
    labels: tuple[str, ...] | None = None
    count: int | None = None
    method: str | None = None
    out: Path = Path("runs/audit")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model, corpora and the set, and collect the run."""
    if not config.sets:
        raise ValueError("no set to audit: give its file, as --sets [mask.pth].")
    model, corpora = load_model(config), load_text(config)
    found = lsn.import_set(config.sets, model, format=config.format, languages=config.labels, count=config.count)
    run = lsn.studies.audit_run(model, corpora, found, config, config.method, config.out / "run")
    return found, model, corpora, run


def report(config: Config, found: Any, model: Any, corpora: Any, run: Any) -> Path:
    """Measure everything and write the page."""
    study = lsn.audit(found, model, corpora, config, method=config.method, run=run)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
