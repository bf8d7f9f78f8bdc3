"""Find language-specific neurons of a real pretrained model, Gemma 3 270M, with published methods, and test them.

    make real

fetches the model (experiments/fetch_model.py says what it fetches) and runs this script. One pass collects the
statistics of all methods; an interrupted one goes on where it was. Weights of a GGUF file are dequantised: the report
says so. Another model: `--model`, another text: `--corpus`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli


@dataclass(frozen=True)
class Config(Settings):
    """Compare methods on a real pretrained model.

    Attributes:
        model: A local GGUF file or folder, or a Hub id.
        methods: Names of methods.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate until each language has this many neurons by the first method with a count per rate.
        sizes: Units per language at which methods are compared, as shares of all units of a kind.
        max_tokens: About how many tokens per language methods find neurons on, whole documents.
        evaluation_tokens: Tokens per language that each method's sets are measured on.
        control_tokens: The same for random sets, and for sets of equal size.
        control_seeds: Random sets per method and language; with 19 no p-value survives the correction for all of them.
    """

    model: str = "runs/real/gemma-3-270m-q4_k_m.gguf"
    out: Path = Path("runs/real/report")
    methods: tuple[str, ...] = (
        "lape", "frozen_lape", "entropy_lambda", "sharing", "dln", "diffmean", "act_grad", "average_precision", "plnd",
    )  # fmt: skip
    rate: float = 0.01
    at_least: int = 10
    sizes: tuple[float | int, ...] = (0.001, 0.01)
    max_tokens: int = 2048
    evaluation_tokens: int = 192
    control_tokens: int = 64
    control_seeds: int = 39


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and text, and collect the run."""
    model, corpora = load_model(config), load_text(config)
    run = lsn.collect(model, corpora, config.methods, config.out / "run", layout=layout(config.max_tokens))
    return model, corpora, run


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Compare and write everything; returns the path of report.html."""
    parameters, words = lsn.methods.common_rate(run, config.methods, config.rate, config.at_least)
    comparison = lsn.compare(
        run, config.methods, model=model, corpora=corpora, seeds=config.control_seeds, more_seeds=0,
        control_tokens=config.control_tokens, sizes=config.sizes, size_seeds=1, parameters=parameters,
        layout=layout(config.evaluation_tokens),
    )  # fmt: skip
    weights = run.settings["model"].get("weights")
    return comparison.report(config.out, note=f"{words} Weights: {weights}." if weights else words, **asked(config))


def layout(tokens: int) -> Any:
    """One row per document, each with the BOS token that the model expects at the start of a text."""
    return lsn.Layout("documents", separator="bos", max_tokens=tokens, shards=8)


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
