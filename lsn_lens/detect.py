"""From a run to a set of neurons."""

from typing import Any

from lsn_lens.methods import Method, get_method
from lsn_lens.neurons import NeuronScores, NeuronSet
from lsn_lens.run import Run


def score(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronScores:
    """A method's scores on a run.

    Args:
        run: From `collect` or `load_run`.
        method: A name of `METHODS` or a method object.
        parameters: Hyper-parameters, with a name.
    """
    return get_method(method, **parameters).score(run.statistics)


def detect(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronSet:
    """The units that a method finds in a run, per language.

    Args: as `score`.

    Raises:
        KeyError: No such method, or the run lacks a statistic that it needs.
        ValueError: Hyper-parameters that cannot be used.
    """
    chosen = get_method(method, **parameters)
    return chosen.select(chosen.score(run.statistics))
