"""Find language-specific neurons with every method, ablate them, and report the loss increases, beside random controls.

    python experiments/compare_methods.py --model demo --corpus demo --out runs/demo-all

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. (`make demo-all`; `make demo` with four methods.)
`--config file.yaml` reads settings, `--print_config` shows them. The installed command is `lsn-lens compare`; in a
notebook: `lsn_lens.compare`.
"""

from lsn_lens.command.settings import CompareConfig as Config
from lsn_lens.studies.experiment import later, main, run_cli

prepare, report = (later("lsn_lens.command.comparing", name) for name in ("prepare", "report"))

if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
