"""Which settings a function reads: followed through the source, into every function that is handed the settings."""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from importlib import import_module

SETTINGS, PAGES = "lsn_lens.studies.settings.", "lsn_lens.studies.pages."


@cache
def tree_of(what):
    return ast.parse(textwrap.dedent(inspect.getsource(what)))


def handed(node, name):
    """The names of the fields that are set on the way, if an expression is the settings; else None.

    The settings are `name`, `name or Default()`, and `replace(name, field=...)`.
    """
    if isinstance(node, ast.BoolOp):
        return handed(node.values[0], name)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "replace":
        inner = handed(node.args[0], name)
        return None if inner is None else inner | {each.arg for each in node.keywords}
    return set() if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) == name else None


def meant(function):
    """The function itself; that of another module where `later` imports it when called."""
    function = inspect.unwrap(function)
    if function.__qualname__ == "later.<locals>.call":
        where = inspect.getclosurevars(function).nonlocals
        return inspect.unwrap(getattr(import_module(where["module"]), where["name"]))
    return function


def called(node, known):
    """The function or class of this project that a call calls; None for others, and where the source does not say."""
    try:
        found = eval(ast.unparse(node), known)
    except Exception:
        return None  # a local name, or an attribute of one
    ours = str(getattr(found, "__module__", "")).startswith("lsn_lens") or inspect.isfunction(found)
    return meant(found) if ours and inspect.isfunction(found) else found if ours and inspect.isclass(found) else None


def reads(function, place, kind, above=frozenset()):
    """The fields of the dataclass `kind` that the function reads from its parameter at this place or of this name."""
    function = meant(function)
    parameters = list(inspect.signature(function).parameters)
    name = parameters[place] if isinstance(place, int) else place
    if (function, name) in above or name not in parameters:
        return set()
    return reads_in(tree_of(function), name, vars(sys.modules[function.__module__]), kind, above | {(function, name)})


def reads_in(tree, name, known, kind, above):
    """The same of a part of the source, in which the settings have this name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and handed(node.value, name) is not None:
            made = inspect.getattr_static(kind, node.attr, None)
            found |= reads(made.fget, 0, kind, above) if isinstance(made, property) else {node.attr}
        if not isinstance(node, ast.Call):
            continue
        for key, each in [*enumerate(node.args), *((each.arg, each.value) for each in node.keywords)]:
            where, lost = called(node.func, known), handed(each, name)
            if where is not None and lost is not None:
                found |= (kept if inspect.isclass(where) else reads)(where, key, kind, above) - lost
    return found


def kept(made, key, kind, above):
    """What the module of a class reads from the settings that its objects keep."""
    field = list(inspect.signature(made).parameters)[key] if isinstance(key, int) else key
    if (made, field) in above:
        return set()
    module, above = inspect.getmodule(made), above | {(made, field)}
    names = (field, f"self.{field}", f"subject.{field}")
    return set().union(*(reads_in(tree_of(module), name, vars(module), kind, above) for name in names))


def read_by_page(kind):
    """The settings that the page of the study reads from the study's plain settings."""
    modules = {each.__module__ for each in kind.__mro__ if each.__module__.startswith(SETTINGS)}
    sources = [inspect.getsource(import_module(each.replace(SETTINGS, PAGES))) for each in modules]
    return {name for source in sources for name in re.findall(r'(?:settings|config)\["(\w+)"\]', source)}
