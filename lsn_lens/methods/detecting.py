"""Score a run with a method, and detect neurons."""

from typing import Any

from lsn_lens.methods.base import Method, scores_of, units_of
from lsn_lens.methods.catalogue import get_method, named
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run, check_run


def score(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronScores:
    """A method's scores on a run.

    Args:
        run: From `collect` or `load_run`.
        method: A name in `METHODS`, in any case, or a method object, including your own.
        parameters: Hyper-parameters of the named method, such as `rate=0.02`; `help(lsn.methods.Lape)` lists them.

    Raises:
        DoesNotApply: The method does not apply to this text.
        KeyError: An unknown method, or the run lacks a statistic that the method needs.
        ValueError: Invalid hyper-parameters, or more than one method.
    """
    check_run(run)
    chosen = get_method(method, **parameters)
    if missing := run.lacks(chosen):
        name = next(iter(named(method)))
        why = run.why_not(name)
        asked = repr(name) if isinstance(method, str) and not parameters else repr(chosen)
        same = f" With out={str(run.path)!r} the missing sums are added to this run." if run.path else ""
        raise KeyError(
            f"this run did not collect {', '.join(map(repr, missing))}, which {name} needs; it has "
            f"{list(run.settings['statistics'])}. "
            + (f"When it was collected, {name} did not apply: {why}" if why
               else f"Collect them: collect(..., methods=[{asked}]).{same}")
        )  # fmt: skip
    return scores_of(chosen, run.statistics)


def detect(run: Run, method: str | Method = "lape", **parameters: Any) -> NeuronSet:
    """The units that a method finds in a run, per language.

    The set's `origin` records the model, revision, fingerprint of the weights, hash of the text, layout, the sites
    read ("found"), the sites at which an intervention acts ("written"), and versions. It is saved with the set.

    Args:
        run: From `collect` or `load_run`.
        method: A name in `METHODS`, in any case, or a method object, including your own.
        parameters: Hyper-parameters of the named method, such as `rate=0.02`; `help(lsn.methods.Lape)` lists them.

    Raises:
        DoesNotApply: The method does not apply to this text.
        KeyError: An unknown method, or the run lacks a statistic that the method needs.
        ValueError: Invalid hyper-parameters, or more than one method; `compare` takes several.
    """
    chosen = get_method(method, **parameters)
    return units_of(chosen, score(run, method, **parameters))
