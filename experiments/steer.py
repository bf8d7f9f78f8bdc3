"""Make a model write in another language, or stop writing in one: neurons, beside a direction, a prompt and chance.

    python experiments/steer.py --model demo --corpus demo --out runs/steer

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/
with the collected statistics, from which an interrupted run goes on. `--config file.yaml` reads settings,
`--print_config` shows them. The installed command is `lsn-lens steer`; in a notebook:
`lsn_lens.studies.steering_study`.
"""

from lsn_lens.command.settings import SteeringConfig as Config
from lsn_lens.studies.experiment import later, main, run_cli

prepare, report = (later("lsn_lens.command.steering", name) for name in ("prepare", "report"))

if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
