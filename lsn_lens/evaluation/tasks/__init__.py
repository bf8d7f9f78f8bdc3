"""Tasks: accuracy on items of a file or a Hub data set, with and without an intervention."""

from lsn_lens.evaluation.tasks.generated import evaluate_generated
from lsn_lens.evaluation.tasks.items import Item, load_items
from lsn_lens.evaluation.tasks.presets import load_task
from lsn_lens.evaluation.tasks.scoring import accuracy, accuracy_change, evaluate_items

__all__ = ["Item", "accuracy", "accuracy_change", "evaluate_generated", "evaluate_items", "load_items", "load_task"]
