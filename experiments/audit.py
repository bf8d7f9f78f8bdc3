"""Audit a set of units, whoever found it: what holds of it on a model that one has.

    python experiments/audit.py --sets mask.pth --format lape --labels [en,zh,fr] --corpus texts --out runs/audit

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings, `--print_config` shows
them. The installed command is `lsn-lens audit`; in a notebook: `lsn_lens.audit`.
"""

from lsn_lens.command.settings import AuditConfig as Config
from lsn_lens.studies.experiment import later, main, run_cli

prepare, report = (later("lsn_lens.command.auditing", name) for name in ("prepare", "report"))

if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
