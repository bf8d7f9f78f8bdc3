"""`lsn-lens steer` and `experiments/steer.py`: the study, or one prompt."""

from pathlib import Path
from typing import Any

from lsn_lens.collection.collecting import collect
from lsn_lens.command.given import blank, load_set, texts
from lsn_lens.command.outcome import Outcome, of_report
from lsn_lens.command.settings import SteerConfig, SteeringConfig
from lsn_lens.files import write_bytes
from lsn_lens.generation.sampling import generate_each
from lsn_lens.generation.steering.ways import arithmetics, direction
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.statistics.needs import Statistic
from lsn_lens.studies.experiment import asked, load_model, load_text
from lsn_lens.studies.settings.steering import check_layer
from lsn_lens.studies.steering import steering_run, steering_study
from lsn_lens.text.plan import Layout

SUMMARY = ("steering", "dose", "n", "share", "low", "high", "none_share", "random_share", "warning")


def run(settings: SteerConfig) -> Outcome:
    """Steer one prompt, or from every language to every other, with a report."""
    corpora = texts(settings)
    if settings.prompt is not None:
        return continued(settings, corpora)
    return of_report(report(settings, *prepare(settings)), {"summary": SUMMARY})


def prepare(config: SteeringConfig) -> tuple[Any, ...]:
    """Load corpora and model, and collect the run."""
    check_layer(config, blank(config).cfg.n_layers)
    corpora, model = load_text(config), load_model(config)
    return model, corpora, steering_run(model, corpora, config, config.out / "run")


def report(config: SteeringConfig, model: Any, corpora: Any, run: Any) -> Path:
    """Steer."""
    study = steering_study(model, corpora, config, run)
    return study.report(config.out, **asked(config))


def continued(settings: SteerConfig, corpora: Any) -> Outcome:
    """The prompt's most probable continuation without steering, steered, and with a random counterpart."""
    if settings.to not in corpora:
        raise KeyError(f"--to {settings.to}: the corpus has {list(corpora)}.")
    check_layer(settings, blank(settings).cfg.n_layers)
    found = load_set(settings, wanted=[str(settings.to)]) if settings.sets else None
    model = load_model(settings)
    sites = [] if found is None else [WRITE_SITE[basis] for basis in found.masks]
    statistics = collect(
        model, corpora, ["diffmean"], settings.out / "run", extra=[Statistic(site, "sum") for site in sites],
        layout=Layout("documents", max_tokens=settings.max_tokens),
    ).statistics  # fmt: skip
    layer = model.cfg.n_layers // 2 if settings.layer is None else settings.layer
    steps = []
    for seed in (None, 0):
        way = (
            direction(statistics, layer, settings.strength, seed=seed) if found is None
            else arithmetics(statistics, found, "replacement", settings.strength, name="set", seed=seed)
        )  # fmt: skip
        made = way.make(None, str(settings.to))
        steps.append(made if seed is None else type(made)(f"{made.name}, random", made.steps))
    made = generate_each(model, steps, [str(settings.prompt)], tokens=settings.tokens)
    table: Any = made[["intervention", "units", "text"]]
    path = settings.out / "texts.csv"
    write_bytes(path, table.to_csv(index=False).encode())
    words = f"Steered to {settings.to}: {settings.prompt}{made['text'][1]}"
    return Outcome(words, {"texts": table}, {"texts": path})
