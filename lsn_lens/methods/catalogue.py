"""Published ways to find a language's units, one file each."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from lsn_lens.methods.act_grad import ActGrad
from lsn_lens.methods.average_precision import AveragePrecision
from lsn_lens.methods.base import Method
from lsn_lens.methods.diffmean import DiffMean
from lsn_lens.methods.dln import Dln
from lsn_lens.methods.entropy_lambda import EntropyLambda
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.methods.frozen_lape import FrozenLape
from lsn_lens.methods.language_dimensions import LanguageDimensions
from lsn_lens.methods.lap import Lap
from lsn_lens.methods.lape import Lape, Lave
from lsn_lens.methods.plnd import Plnd
from lsn_lens.methods.random import Random
from lsn_lens.methods.sharing import Sharing
from lsn_lens.methods.transfer import Transfer
from lsn_lens.refusal import check_kind

METHODS: dict[str, type] = {
    "lape": Lape,
    "lap": Lap,
    "lave": Lave,
    "plnd": Plnd,
    "average_precision": AveragePrecision,
    "sharing": Sharing,
    "expert_frequency": ExpertFrequency,
    "frozen_lape": FrozenLape,
    "transfer": Transfer,
    "diffmean": DiffMean,
    "language_dimensions": LanguageDimensions,
    "dln": Dln,
    "entropy_lambda": EntropyLambda,
    "act_grad": ActGrad,
    "random": Random,
}


Methods = Iterable[str | Method] | Mapping[str, str | Method] | str | Method  # one method or several


def named(methods: Methods, parameters: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Method]:
    """Methods by their name in tables: the name in `METHODS`, the repr of an object, or a name chosen by the caller.

    Args:
        methods: One name or method object, several, or a mapping from the caller's names to either.
        parameters: Hyper-parameters by table name, for methods that are given by name.

    Raises:
        KeyError: An unknown name; the message lists the methods.
        ValueError: No methods, or hyper-parameters or methods that `get_method` refuses.
    """
    if isinstance(methods, Mapping):
        given: Any = dict(methods)
    else:
        alone = isinstance(methods, str) or callable(getattr(methods, "statistics", None))
        check_kind("methods", methods, object if alone else Iterable, "names, as ['lape'] (a model: model=model)")
        each: list[Any] = [methods] if alone else list(methods)  # type: ignore[arg-type]
        given = {_known(method) if isinstance(method, str) else repr(method): method for method in each}
    if not given:
        raise ValueError(f"no methods: name at least one of {list(METHODS)}.")
    return {name: get_method(method, **(parameters or {}).get(name, {})) for name, method in given.items()}


def get_method(method: str | Method, **parameters: Any) -> Method:
    """A method from its name (in any case) and hyper-parameters; a method object is returned unchanged.

    Raises:
        KeyError: An unknown name; the message lists the methods.
        ValueError: A parameter that the method lacks, a method object together with hyper-parameters, or an argument
            that is not a method.
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
    name = _known(method)
    known = signature(METHODS[name]).parameters
    if unknown := [each for each in parameters if each not in known]:
        raise ValueError(f"{name} has no parameter {unknown[0]!r}{_meant(unknown[0], known)}; it has {list(known)}.")
    return METHODS[name](**parameters)


def _known(method: str) -> str:
    name = method.strip().lower().replace("-", "_").replace(" ", "_")
    if name not in METHODS:
        raise KeyError(f"unknown method {method!r}{_meant(name, METHODS)}; the methods are {list(METHODS)}.")
    return name


def _meant(given: str, known: Iterable[str]) -> str:
    """A hint with the closest known name, if one is close."""
    near = get_close_matches(given, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
