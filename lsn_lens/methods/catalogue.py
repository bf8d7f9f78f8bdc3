"""Published ways to find a language's units, one file each."""

from typing import Any

from lsn_lens.methods.act_grad import ActGrad
from lsn_lens.methods.average_precision import AveragePrecision
from lsn_lens.methods.base import ChecksText, Method
from lsn_lens.methods.diffmean import DiffMean
from lsn_lens.methods.dln import Dln
from lsn_lens.methods.entropy_lambda import EntropyLambda
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.methods.language_dimensions import LanguageDimensions
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape, Lave
from lsn_lens.methods.plnd import Plnd
from lsn_lens.methods.random import Random
from lsn_lens.methods.sharing import Sharing
from lsn_lens.methods.transfer import Transfer

METHODS: dict[str, type] = {
    "lape": Lape,
    "lap": Lap,
    "lave": Lave,
    "plnd": Plnd,
    "average_precision": AveragePrecision,
    "sharing": Sharing,
    "expert_frequency": ExpertFrequency,
    "transfer": Transfer,
    "diffmean": DiffMean,
    "language_dimensions": LanguageDimensions,
    "dln": Dln,
    "entropy_lambda": EntropyLambda,
    "act_grad": ActGrad,
    "random": Random,
}


def get_method(method: str | Method, **parameters: Any) -> Method:
    """A method by name and hyper-parameters; a ready method object is passed through.

    Raises:
        KeyError: No such name; the message lists them.
        ValueError: A ready object together with hyper-parameters, or something else than a method.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not hasattr(method, "statistics"):
            raise ValueError(
                f"expected one method, a name of {list(METHODS)} or an object such as Lape(), got {method!r}; for "
                "several use lsn.compare(run, [...])."
            )
        if parameters:
            raise ValueError(f"{method!r} has its hyper-parameters already; {sorted(parameters)} cannot be added.")
        return method
    if method not in METHODS:
        raise KeyError(f"unknown method {method!r}; the methods are {list(METHODS)}.")
    return METHODS[method](**parameters)


__all__ = [
    "METHODS",
    "ActGrad",
    "AveragePrecision",
    "ChecksText",
    "DiffMean",
    "Dln",
    "EntropyLambda",
    "ExpertFrequency",
    "LanguageDimensions",
    "Lap",
    "Lape",
    "Lave",
    "Method",
    "Plnd",
    "Random",
    "Sharing",
    "Transfer",
    "get_method",
]
