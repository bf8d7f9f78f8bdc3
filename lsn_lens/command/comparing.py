"""`lsn-lens compare`, `lsn-lens demo` and `experiments/compare_methods.py`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import layout, texts
from lsn_lens.command.outcome import Outcome, of_report
from lsn_lens.command.settings import CompareConfig
from lsn_lens.comparison.checks import Checks
from lsn_lens.comparison.comparing import compare
from lsn_lens.comparison.page import COLUMNS
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.values import mean_ablation
from lsn_lens.methods.catalogue import METHODS
from lsn_lens.methods.sizing import common_rate
from lsn_lens.studies.experiment import asked, load_model, load_text

RANKING = (
    "method", "units", "shown", "shown_low", "shown_high", "languages", "own_rise", "compared_on", "place", "area",
    "area_low", "area_high",
)  # fmt: skip


def run(settings: CompareConfig) -> Outcome:
    """Compare methods, and write the report."""
    texts(settings)  # refuses what cannot be meant
    path = report(settings, *prepare(settings))
    return of_report(path, {"ranking": RANKING}, COLUMNS)


def prepare(config: CompareConfig) -> tuple[Any, ...]:
    """Load corpora and model, and collect the run."""
    text, corpora = layout(config), load_text(config)
    model = load_model(config)
    return model, corpora, collect(model, corpora, config.methods, config.out / "run", layout=text)


def report(config: CompareConfig, model: Any, corpora: Any, run: Any) -> Path:
    """Compare and write everything; returns the path of report.html."""
    parameters, words = common_rate(run, names(config), config.rate, config.at_least)
    # the third is compare's default
    actions: Mapping[str, Any] = {"zero": zero, "dataset mean": mean_ablation(run.statistics)}
    comparison = compare(
        run, config.methods, model=model, corpora=corpora, action=actions.get(config.ablation),
        seeds=config.control_seeds, control_tokens=config.control_tokens, parameters=parameters, sizes=config.sizes,
        size_seeds=config.size_seeds,
        layout=replace(layout(config), kind="blocks", max_tokens=config.evaluation_tokens), trust=checks(config, run),
    )  # fmt: skip
    return comparison.report(config.out, note=words, **asked(config))


def names(config: CompareConfig) -> list[str]:
    """Of the methods: those asked for, or all that can be compared."""
    return list(config.methods or (name for name in METHODS if name != "random"))


def checks(config: CompareConfig, run: Any) -> Checks | None:
    """The reliability checks; the embedded text is parallel, document by document."""
    if not (config.replicates or config.permutations or config.controls):
        return None
    slow: dict[str, Any] = dict.fromkeys(config.controls, True)
    return Checks(
        config.replicates, config.permutations, without_draws=config.without_draws,
        paired=config.corpus == "demo" and run.settings["text"]["layout"]["kind"] == "documents",
        **slow,
    )  # fmt: skip
