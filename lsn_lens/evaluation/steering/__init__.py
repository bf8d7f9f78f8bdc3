"""Make a model write in another language, or leave one: texts under interventions, and what they say."""

from lsn_lens.evaluation.steering.deactivation import deactivate, deactivation_table, fallback_matrix
from lsn_lens.evaluation.steering.tables import choose_doses, dose_response, steering_summary, steering_table
from lsn_lens.evaluation.steering.trials import prompts_from
from lsn_lens.evaluation.steering.ways import (
    Steering,
    arithmetics,
    dimensions,
    direction,
    forcing,
    instruction,
    steer,
    steering_losses,
)

__all__ = [
    "Steering",
    "arithmetics",
    "choose_doses",
    "deactivate",
    "deactivation_table",
    "dimensions",
    "direction",
    "dose_response",
    "fallback_matrix",
    "forcing",
    "instruction",
    "prompts_from",
    "steer",
    "steering_losses",
    "steering_summary",
    "steering_table",
]
