"""`lsn-lens audit` and `experiments/audit.py`."""

from pathlib import Path
from typing import Any

from lsn_lens.command.given import load_set, texts
from lsn_lens.command.outcome import Outcome, of_report
from lsn_lens.command.settings import AuditConfig
from lsn_lens.studies.auditing import audit, audit_run
from lsn_lens.studies.experiment import asked, load_model
from lsn_lens.studies.pages.audit import COLUMNS, EFFECTS


def run(settings: AuditConfig) -> Outcome:
    """Audit a set, and write the report."""
    return of_report(report(settings, *prepare(settings)), {"effects": EFFECTS}, COLUMNS)


def prepare(config: AuditConfig) -> tuple[Any, ...]:
    """Load corpora, model and the set, and collect the run."""
    corpora = texts(config)
    found, model = load_set(config, corpora=corpora), load_model(config)
    return found, model, corpora, audit_run(model, corpora, found, config, config.method, config.out / "run")


def report(config: AuditConfig, found: Any, model: Any, corpora: Any, run: Any) -> Path:
    """Measure everything and write the page."""
    study = audit(found, model, corpora, config, method=config.method, run=run)
    return study.report(config.out, **asked(config))
