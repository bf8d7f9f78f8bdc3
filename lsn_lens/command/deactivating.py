"""`lsn-lens deactivate`: the change matrix of a set, beside matched random units."""

from lsn_lens.command.given import load_set, texts
from lsn_lens.command.outcome import Outcome
from lsn_lens.command.settings import DeactivateConfig
from lsn_lens.controls.ablations import kinds_of_ablation
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.perplexity import as_matrix
from lsn_lens.report import plots
from lsn_lens.report.page import save_tables
from lsn_lens.studies.auditing import audit_run
from lsn_lens.studies.experiment import load_model
from lsn_lens.studies.pages.audit import COLUMNS, EFFECTS
from lsn_lens.studies.set_effects import set_effects
from lsn_lens.text.plan import Layout

NAME = "set"


def run(settings: DeactivateConfig) -> Outcome:
    """Measure all languages without the units of each, and write tables and figures."""
    corpora = texts(settings)
    found, model = load_set(settings, corpora=corpora), load_model(settings)
    collected = audit_run(model, corpora, found, settings, out=settings.out / "run")
    layout = Layout(length=settings.length, separator=settings.separator, max_tokens=settings.evaluation_tokens)
    kinds = kinds_of_ablation(model, corpora, collected, found, tokens=settings.tokens, seed=settings.seed)
    text, action = held_out(model, corpora, layout), kinds[settings.action]
    tables = set_effects(text, {NAME: found}, action, settings.seeds, collected.statistics)
    matrix = as_matrix(tables["losses"])
    tables["matrix"] = matrix.rename_axis("units of").reset_index()
    tables["matrix"].attrs = {}
    save_tables(tables, settings.out / "tables")
    figures = {
        "matrix": plots.change_matrix(matrix, "Loss increase"),
        "random": plots.control(tables["effects"], tables["random_points"], "Own language and random units"),
    }
    paths = {name: chart.save(settings.out / "figures" / f"{name}.png") for name, chart in figures.items()}
    effects = tables["effects"]
    passing, tested = effects.loc[effects["passes"], "language"], sum(units > 0 for units in effects["units"])
    said = (
        f"Without its units, {len(passing)} of {tested} languages ({', '.join(passing) or 'none'}) lose clearly more "
        f"than without random units (q at most 0.05, {settings.seeds} sets), and surely more than every other language."
    )
    shown = {"effects": effects[[each for each in EFFECTS if each in effects]], "matrix": tables["matrix"]}
    return Outcome(said, shown, {"tables": settings.out / "tables", **paths}, COLUMNS)
