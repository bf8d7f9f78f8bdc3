"""From a run to a set of neurons."""

from typing import Any

from lsn_lens.methods.base import Method, scores_of, units_of
from lsn_lens.methods.catalogue import get_method, named
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run


def score(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronScores:
    """A method's scores on a run.

    Args:
        run: From `collect` or `load_run`.
        method: A name of `METHODS`, in capitals or not, or a method object, which may be of your own.
        parameters: Hyper-parameters of the named method, such as `rate=0.02`; `help(lsn.methods.Lape)` says which.

    Raises:
        DoesNotApply: The method cannot be had on this text.
        KeyError: No such method, or the run lacks a statistic that it needs.
        ValueError: Hyper-parameters that cannot be used, or more than one method.
    """
    chosen = get_method(method, **parameters)
    if missing := run.lacks(chosen):
        name = next(iter(named(method)))
        why = run.why_not(name)
        asked = repr(name) if isinstance(method, str) and not parameters else repr(chosen)
        same = f" With out={str(run.path)!r} the sums that are missing are added to this run." if run.path else ""
        raise KeyError(
            f"this run did not collect {', '.join(map(repr, missing))}, which {name} needs; it has "
            f"{list(run.settings['statistics'])}. "
            + (f"When it was collected, {name} did not apply: {why}" if why
               else f"Collect them: collect(..., methods=[{asked}]).{same}")
        )  # fmt: skip
    return scores_of(chosen, run.statistics)


def detect(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronSet:
    """The units that a method finds in a run, per language.

    The set's `origin` says whose they are: model, revision, fingerprint of the weights, hash of the text, layout, what
    was read ("found") and where an intervention takes hold ("written"), versions. It goes with the set everywhere.

    Args:
        run: From `collect` or `load_run`.
        method: A name of `METHODS`, in capitals or not, or a method object, which may be of your own.
        parameters: Hyper-parameters of the named method, such as `rate=0.02`; `help(lsn.methods.Lape)` says which.

    Raises:
        DoesNotApply: The method cannot be had on this text.
        KeyError: No such method, or the run lacks a statistic that it needs.
        ValueError: Hyper-parameters that cannot be used, or more than one method; `compare` takes several.
    """
    chosen = get_method(method, **parameters)
    return units_of(chosen, score(run, method, **parameters))
