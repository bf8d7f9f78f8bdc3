"""From a run to a set of neurons."""

from typing import Any

from lsn_lens.methods.base import Method, scores_of, units_of
from lsn_lens.methods.catalogue import get_method
from lsn_lens.neurons import NeuronScores, NeuronSet
from lsn_lens.run import Run


def score(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronScores:
    """A method's scores on a run.

    Args:
        run: From `collect` or `load_run`.
        method: A name of `METHODS` or a method object.
        parameters: Hyper-parameters, with a name.

    Raises:
        DoesNotApply: The method cannot be had on this text.
        KeyError: No such method, or the run lacks a statistic that it needs.
        ValueError: Hyper-parameters that cannot be used, or more than one method.
    """
    chosen = get_method(method, **parameters)
    name = method if isinstance(method, str) else repr(method)
    if missing := run.lacks(chosen):
        why = run.why_not(name)
        raise KeyError(
            f"this run did not collect {', '.join(map(repr, missing))}, which {name} needs; it has "
            f"{list(run.settings['statistics'])}. "
            + (f"When it was collected, {name} did not apply: {why}" if why else f"Collect with methods=[{name!r}].")
        )
    return scores_of(chosen, run.statistics)


def detect(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronSet:
    """The units that a method finds in a run, per language.

    The set's `origin` says whose they are: model, revision, fingerprint of the weights, hash of the text, layout, what
    was read ("found") and where an intervention takes hold ("written"), versions. It goes with the set everywhere.

    Args: as `score`.

    Raises: as `score`.
    """
    chosen = get_method(method, **parameters)
    return units_of(chosen, score(run, method, **parameters))
