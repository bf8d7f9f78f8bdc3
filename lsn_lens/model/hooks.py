"""What others have put on a model: TransformerLens hooks, torch hooks, replaced forwards. It is part of the model."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

# libraries whose own hooks make the model what it is; what `loading` puts on it does so too
PLUMBING = ("transformer_lens", "accelerate", "transformers")
TORCH_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
HANDLES = ("fwd_hooks", "bwd_hooks")  # attributes of a TransformerLens HookPoint with its handles


def modules_of(model: Any) -> dict[Module, str]:
    """All modules and their names: a bridge's components, and the Hugging Face modules that they wrap."""
    found: dict[Module, str] = {}
    points = sorted(model.hook_dict.items(), key=lambda pair: (pair[0].endswith(("hook_in", "hook_out")), len(pair[0])))
    for name, point in points:  # a point has several names: the most informative one counts
        found.setdefault(point, name)
    wrapped = getattr(model, "original_model", Module())
    for name, module in [*model.named_modules(), *wrapped.named_modules(prefix="original_model")]:
        found.setdefault(module, name.replace("_original_component.", "").replace("._original", ".original"))
    return found


def put_on(module: Module) -> list[Callable[..., Any]]:
    """The functions that a user, not a library, has put on a module."""
    own = module.__dict__
    if not any(own[each] for each in TORCH_HOOKS) and "forward" not in own:
        return []
    return [own[place] if key is None else own[place][key] for place, key in _theirs(module)]


def is_point(module: Module) -> bool:
    """Whether a module is a HookPoint of TransformerLens."""
    return HANDLES[0] in module.__dict__


def _theirs(module: Module) -> list[tuple[str, int | None]]:
    """The places of user hooks on a module: an attribute of torch's and the key in it, or the forward itself."""
    own = module.__dict__
    handles = [handle for each in HANDLES for handle in own.get(each, ())]
    permanent = {handle.hook.id for handle in handles if handle.is_permanent}
    found: list[tuple[str, int | None]] = [
        (place, key)
        for place in TORCH_HOOKS
        for key, hook in own[place].items()
        # hooks that a library puts on a hook point for a user, such as a cache, are not permanent
        if not (_is_plumbing(hook) and (not is_point(module) or key in permanent))
    ]
    replaced = "forward" in own and not _is_plumbing(own["forward"])
    return [*found, ("forward", None)] if replaced else found


def in_force(model: Any) -> dict[Module, list[Callable[..., Any]]]:
    """The modules of a model that have user hooks, with these hooks."""
    return {module: functions for module in modules_of(model) if (functions := put_on(module))}


def is_everywhere() -> bool:
    """Whether torch has global user hooks, which act on every module."""
    return any(not _is_plumbing(each) for hooks in _everywhere() for each in hooks.values())


class Swap(Protocol):
    """A temporary replacement of modules of a model."""

    def apply(self) -> None:
        """Put them there."""

    def undo(self) -> None:
        """Restore the replaced modules."""


swaps: WeakKeyDictionary[Module, Any] = WeakKeyDictionary()  # model -> its active `Swap`


@contextlib.contextmanager
def as_it_is(model: Any) -> Iterator[None]:
    """Undo the model's active swap inside the block."""
    around: Swap | None = swaps.pop(model, None)
    if around is not None:
        around.undo()
    try:
        yield
    finally:
        if around is not None:
            around.apply()
            swaps[model] = around


@contextlib.contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Remove user hooks and undo any swap inside the block, so that probes and hooks do not see each other."""
    with as_it_is(model), _off(model):
        yield


@contextlib.contextmanager
def _off(model: Any) -> Iterator[None]:
    kept: list[tuple[Any, Any]] = []
    try:
        for module in in_force(model):
            kept.append((module, _take_off(module)))
        for hooks in _everywhere():
            kept.append((hooks, dict(hooks)))
            for key in [key for key, hook in hooks.items() if not _is_plumbing(hook)]:
                del hooks[key]
        yield
    finally:
        for place, content in kept:
            if isinstance(place, Module):
                _put_back(place, content)
            else:
                place.clear()
                place.update(content)


def describe_hooks(model: Any) -> dict[str, list[str]]:
    """Active user hooks by module name: each function's name, and a hash of its code and of the values it holds.

    A function that holds the same tensors, numbers and texts has the same hash in another process.
    """
    names = modules_of(model)
    found = {names[module]: [_said(each) for each in functions] for module, functions in in_force(model).items()}
    if is_everywhere():
        found["every module"] = [
            _said(each) for hooks in _everywhere() for each in hooks.values() if not _is_plumbing(each)
        ]
    return dict(sorted(found.items()))


def _everywhere() -> list[dict[int, Any]]:
    names = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks",
             "_global_backward_hooks")  # fmt: skip
    return [getattr(torch_module, name) for name in names]


def _take_off(module: Module) -> dict[str, Any]:
    own, theirs = module.__dict__, _theirs(module)
    content = {each: dict(own[each]) for each in TORCH_HOOKS}
    if ("forward", None) in theirs:
        content["forward"] = own.pop("forward")
    for place, key in theirs:
        if key is not None:
            del own[place][key]
    gone = {key for _, key in theirs}
    for each in HANDLES:  # components look here for hooks
        if each in own:
            content[each] = own[each]
            own[each] = [handle for handle in own[each] if handle.hook.id not in gone]
    return content


def _put_back(module: Module, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if name in TORCH_HOOKS:
            module.__dict__[name].clear()
            module.__dict__[name].update(value)
        else:
            module.__dict__[name] = value


def _is_plumbing(function: Any) -> bool:
    module = getattr(_innermost(function), "__module__", None) or ""
    return module.split(".")[0] in PLUMBING or module == "lsn_lens.model.loading"


def _innermost(function: Any) -> Any:
    """The user's function inside partials, methods and the wrapper of a HookPoint."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif (inner := _inside_hook_point(function)) is not None:
            function = inner
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def _inside_hook_point(function: Any) -> Any:
    """The argument of `HookPoint.add_hook`, if this function is the wrapper around it."""
    if getattr(function, "__module__", None) != "transformer_lens.hook_points" or not inspect.isfunction(function):
        return None
    cells = _cells(function)
    return cells.get("hook", cells.get("full_hook"))


def _cells(function: Any) -> dict[str, Any]:
    """The closure variables of a function, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # "Cell is empty": not assigned yet
            found[name] = cell.cell_contents
    return found


def held(module: Module) -> tuple[set[int], set[int]]:
    """Ids of the modules that a module's hooks hold, and of the modules around those that the hooks hold weakly.

    Through such a reference, a library's hook on one component can make a hook point of another component fire.
    """
    functions = [hook for each in TORCH_HOOKS for hook in module.__dict__[each].values()]
    cells = [value for each in functions if inspect.isfunction(each) for value in _cells(each).values()]
    modules = [value for value in cells if isinstance(value, Module)]
    weakly = [value for value in modules if type(value) in weakref.ProxyTypes]
    near = {id(child) for value in weakly for child in value.children()}
    return {id(value) for value in modules if type(value) not in weakref.ProxyTypes}, near


def _said(function: Any) -> str:
    inner = _innermost(function)
    module = getattr(inner, "__module__", None) or "builtins"
    name = f"{module}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    held = _cells(inner).values() if inspect.isfunction(inner) else ()
    shown = [repr(each) for each in held if dataclasses.is_dataclass(each) and not isinstance(each, type)]
    digest = hashlib.sha256()
    _add(digest, function, set())
    return " ".join([name, *shown, digest.hexdigest()[:16]])


def _add(digest: Any, value: Any, seen: set[int]) -> None:
    """Update a hash with values that are equal in every process: code, tensors, numbers, texts, and containers."""
    digest.update(type(value).__qualname__.encode())
    if id(value) in seen:
        return
    if isinstance(value, None | bool | int | float | complex | str | bytes | slice | torch.dtype | torch.device):
        digest.update(repr(value).encode())
        return
    seen.add(id(value))
    for each in _parts(value):
        _add(digest, each, seen)


def _parts(value: Any) -> list[Any]:
    """The parts of a value; none for a value that changes in use, such as a list that a hook fills."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        return [str(plain.dtype), str(tuple(plain.shape)), plain.flatten().view(torch.uint8).numpy().tobytes()]
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        return [str(value.dtype), str(value.shape), value.tobytes()]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *(part for pair in sorted(value.keywords.items()) for part in pair)]
    if inspect.ismethod(value):
        return [value.__func__, *_attributes(value.__self__)]
    if inspect.isfunction(value):
        if value.__module__ == "transformer_lens.hook_points":
            return [_innermost(value)]
        plain = (value.__defaults__ or ()) + tuple((value.__kwdefaults__ or {}).values())
        return [value.__qualname__, value.__code__, *_cells(value).values(), *plain]
    if inspect.iscode(value):
        return [value.co_code, *value.co_names, *value.co_consts]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return _attributes(value) if callable(value) and not isinstance(value, type | Module) else []


def _attributes(value: Any) -> list[Any]:
    return [part for pair in sorted(getattr(value, "__dict__", {}).items()) for part in pair]
