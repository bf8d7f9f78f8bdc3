"""Find, compare and test language-specific neurons, on TransformerLens."""

from lsn_lens.actions import (
    diffmean_steering,
    dimensions_steering,
    language_arithmetics,
    language_maximum,
    language_mean,
    language_median,
    mean_ablation,
    other_mean_ablation,
    resample,
)
from lsn_lens.batches import Layout
from lsn_lens.collect import collect
from lsn_lens.corpora import LanguageCorpus, load_corpora
from lsn_lens.detect import detect, score
from lsn_lens.evaluation.compare import Comparison, compare
from lsn_lens.evaluation.generation import generate, generate_each
from lsn_lens.evaluation.perplexity import perplexity_matrix, perplexity_table
from lsn_lens.export import export
from lsn_lens.interventions import Action, Intervention, add, intervene, remove_direction, scale, set_to, zero
from lsn_lens.loading import load_model
from lsn_lens.methods import METHODS
from lsn_lens.neurons import NeuronScores, NeuronSet
from lsn_lens.planning import plan_run
from lsn_lens.run import Run, load_run
from lsn_lens.statistics import Statistics

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Action",
    "Comparison",
    "Intervention",
    "LanguageCorpus",
    "Layout",
    "NeuronScores",
    "NeuronSet",
    "Run",
    "Statistics",
    "add",
    "collect",
    "compare",
    "detect",
    "diffmean_steering",
    "dimensions_steering",
    "export",
    "generate",
    "generate_each",
    "intervene",
    "language_arithmetics",
    "language_maximum",
    "language_mean",
    "language_median",
    "load_corpora",
    "load_model",
    "load_run",
    "mean_ablation",
    "other_mean_ablation",
    "perplexity_matrix",
    "perplexity_table",
    "plan_run",
    "remove_direction",
    "resample",
    "scale",
    "score",
    "set_to",
    "zero",
]
