"""Find language-specific neurons with every method, ablate them, and report the loss increases, beside random controls.

    python experiments/compare_methods.py --model demo --corpus demo --out runs/demo-all

writes a folder: report.html (open it in a browser), report.md, tables/, neurons/, provenance.json, and run/ with the
collected statistics, from which an interrupted run goes on. (`make demo-all`; `make demo` with four methods.)
`--config file.yaml` reads settings, `--print_config` shows them. In a notebook: `lsn_lens.compare`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lsn_lens as lsn
from lsn_lens.studies.experiment import Settings, asked, load_model, load_text, main, run_cli


@dataclass(frozen=True)
class Config(Settings):
    """Compare methods that find language-specific neurons.

    Attributes:
        methods: Names of methods, as [lape,lave]; all by default, without those that the model and the text are not
            made for, which the report names with the reason.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate to the smallest that gives every language this many neurons by the first method with a
            count per rate (lape); 0 keeps the rate.
        control_seeds: Random sets per method and language, as many units in each layer, as active in the language;
            three times as many where none of them reaches the loss increase. Below 19 no p-value reaches 0.05.
        ablation: Value to set units to: "other languages' mean", "dataset mean" or "zero".
        replicates: Bootstrap draws, to see how stable each method's sets are; 0 for none.
        permutations: Of labels, to see what each method finds where there is nothing to find; 0 for none.
        without_draws: Methods left out of these two, because each draw takes them seconds.
        controls: Slow checks that run the model, by their names in `lsn_lens.Checks`: "changed_text" (romanised, words
            shuffled), "ablations" (all kinds), "off_target" (numbers, code, repetition). None by default: several more
            passes each.
        kind: Packed blocks, or one row per document; by default documents where all fit, else blocks.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Cap per language when finding neurons.
        evaluation_tokens: Cap per language when measuring each method on all languages.
        control_tokens: The same for random sets, measured on their own language only, and for sets of equal size.
        sizes: Units per language at which methods are compared: shares of all units of a kind, or whole numbers; [] for
            none.
        size_seeds: Random sets per method, language and size.
    """

    out: Path = Path("runs/demo-all")
    methods: tuple[str, ...] | None = None
    rate: float = 0.01
    at_least: int = 10
    control_seeds: int = 39
    ablation: Literal["other languages' mean", "dataset mean", "zero"] = "other languages' mean"
    replicates: int = 100
    permutations: int = 99
    without_draws: tuple[str, ...] = ("average_precision",)
    controls: tuple[str, ...] = ()
    kind: Literal["blocks", "documents"] | None = None
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None
    evaluation_tokens: int | None = 1024
    control_tokens: int = 128
    sizes: tuple[float | int, ...] = (0.001, 0.003, 0.01)
    size_seeds: int = 3

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods or () if name not in lsn.METHODS]
        if unknown:
            raise ValueError(f"unknown methods {unknown}; name some of {list(lsn.METHODS)}.")
        slow = list(dict.fromkeys(row.option for row in lsn.comparison.CHECKS if row.needs_model))
        strange = [name for name in self.controls if name not in slow]
        if strange:
            raise ValueError(f"unknown controls {strange}; name some of {slow}.")
        if self.control_seeds < 2:
            raise ValueError("expected at least two control seeds: a result without a control is no evidence.")


def prepare(config: Config) -> tuple[Any, ...]:
    """Load model and corpora, and collect the run."""
    text = layout(config)
    model, corpora = load_model(config), load_text(config)
    return model, corpora, lsn.collect(model, corpora, config.methods, config.out / "run", layout=text)


def report(config: Config, model: Any, corpora: Any, run: Any) -> Path:
    """Compare and write everything; returns the path of report.html."""
    parameters, words = lsn.methods.common_rate(run, names(config), config.rate, config.at_least)
    actions = {"zero": lsn.zero, "dataset mean": lsn.mean_ablation(run.statistics)}  # the third is compare's default
    comparison = lsn.compare(
        run, config.methods, model=model, corpora=corpora, action=actions.get(config.ablation),
        seeds=config.control_seeds, control_tokens=config.control_tokens, parameters=parameters, sizes=config.sizes,
        size_seeds=config.size_seeds,
        layout=replace(layout(config), kind="blocks", max_tokens=config.evaluation_tokens), trust=checks(config, run),
    )  # fmt: skip
    return comparison.report(config.out, note=words, **asked(config))


def layout(config: Config) -> Any:
    """How text becomes batches; the same whatever the methods."""
    return lsn.Layout(config.kind or "auto", config.length, config.separator, config.max_tokens)


def names(config: Config) -> list[str]:
    """Of the methods: those asked for, or all that can be compared."""
    return list(config.methods or (name for name in lsn.METHODS if name != "random"))


def checks(config: Config, run: Any) -> Any:
    """The reliability checks; the embedded text is parallel, document by document."""
    if not (config.replicates or config.permutations or config.controls):
        return None
    slow: dict[str, Any] = dict.fromkeys(config.controls, True)
    return lsn.Checks(
        config.replicates, config.permutations, without_draws=config.without_draws,
        paired=config.corpus == "demo" and run.settings["text"]["layout"]["kind"] == "documents",
        **slow,
    )  # fmt: skip


if __name__ == "__main__":
    print(main(lambda: run_cli(Config), prepare, report))
