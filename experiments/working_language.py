"""Report the language of a model's predictions by layer, and the errors of the identification.

    python experiments/working_language.py --model demo --corpus demo --out runs/working-language

writes a folder: report.html (open it in a browser), report.md, tables/ and provenance.json. With `--neurons
found.safetensors` (a saved NeuronSet) the layers are read again while each language's units are zero. `--config
file.yaml` reads settings, `--print_config` shows them. In a notebook: `lsn_lens.studies.working_language_study`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Corpus, Figures, Loaded, asked, load_model, load_text, main, run_cli
from lsn_lens.studies.settings.working_language import WorkingLanguageSettings


@dataclass(frozen=True)
class Config(WorkingLanguageSettings, Figures, Corpus, Loaded):
    """Watch the working language, layer by layer.

    Attributes:
        probes: "demo", a jsonl file of prompts and words (see `read_probes`), or null for none.
        neurons: A saved NeuronSet to zero, one language at a time.
    """

    out: Path = Path("runs/working-language")
    probes: str | None = "demo"
    neurons: Path | None = None


def prepare(config: Config) -> tuple[Any, ...]:
    """Load all that is needed: model, corpora, labels, probes, units."""
    probes = lsn.analysis.read_probes(config.probes) if config.probes else []
    found = lsn.NeuronSet.load(config.neurons) if config.neurons else None
    corpora = load_text(config)
    if found is not None and not set(found.languages) & set(corpora):
        raise ValueError(f"{config.neurons} is for {list(found.languages)}, the corpus has {list(corpora)}.")
    model = load_model(config)
    return model, corpora, lsn.studies.working_language_labels(model, corpora, config), probes, found


def report(config: Config, model: Any, corpora: Any, labels: Any, probes: Any, found: Any) -> Path:
    """Read the layers."""
    study = lsn.studies.working_language_study(model, corpora, config, labels, probes=probes, found=found)
    return study.report(config.out, **asked(config))


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
