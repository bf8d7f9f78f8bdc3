"""Which module may import which, what no module may do, and how long they may be."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lsn_lens"
LONGEST_FILE, LONGEST_FUNCTION = 300, 40


def ranks():
    """Module -> (row, place in the row), from the table in CONTRIBUTING.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    order = {}
    for height, (room, names) in enumerate(rows):
        inside = [f"{room}/{name}" for name in re.findall(r"`([\w/]+)`", names)] or [room]
        order |= {name: (height, place) for place, name in enumerate(inside)}
    return order


RANKS = ranks()
ROOMS = {name.split("/")[0] for name in RANKS}


def modules():
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def named(module):
    """As the table names it: a package by its folder."""
    return module.removesuffix("/__init__")


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(parsed):
    """The modules of the package that a module imports, wherever in the file."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names = [(each.name, "") for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [("lsn_lens", "")]  # a relative import hides what it takes: not used here
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, each.name) for each in node.names]
        else:
            continue
        for module, name in names:
            if module.split(".")[0] == "lsn_lens":
                path = "/".join(module.split(".")[1:])
                longer = f"{path}/{name}".strip("/")
                yield longer if longer in RANKS else path


def violations(module, parsed):
    """What a module imports from beside or above it; a room as a whole, and the package itself, are never imported."""
    own = RANKS[module]
    return sorted({other for other in imports(parsed) if other != module and RANKS.get(other, (99, 0)) >= own})


def test_the_table_has_every_module_and_no_other():
    rooms = {each.parent.name for each in PACKAGE.glob("*/__init__.py")}
    hollow = {named(each) for each in modules() if each.endswith("/__init__")} - set(RANKS)
    assert {named(each) for each in modules()} - hollow - {"__init__"} == set(RANKS)
    assert rooms < ROOMS
    for each in hollow:
        assert not list(imports(tree(f"{each}/__init__"))), f"{each} is imported by nothing, so it imports nothing"


@pytest.mark.parametrize("module", [each for each in modules() if named(each) in RANKS])
def test_modules_import_from_earlier_modules_only(module):
    assert violations(named(module), tree(module)) == []


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("statistics/needs", "from lsn_lens.methods.lape import Lape", ["methods/lape"]),
        ("neurons/sets", "from lsn_lens.statistics.sums import merge", ["statistics/sums"]),
        ("statistics/needs", "from lsn_lens.statistics.sums import merge", ["statistics/sums"]),
        ("methods/lape", "def f():\n    from lsn_lens.collection import passes", ["collection/passes"]),
        ("methods/lape", "from lsn_lens.neurons import sets\nfrom lsn_lens.methods.base import Method", []),
        ("interventions/actions", "from lsn_lens.model import structure", []),
        ("collection/passes", "import torch\nfrom lsn_lens.text.plan import Plan", []),
        ("report/page", "from lsn_lens.text import Layout", ["text"]),
        ("report/page", "from lsn_lens import zero", [""]),
        ("report/page", "import lsn_lens", [""]),
        ("report/page", "from . import zero", [""]),
    ],
)
def test_the_rule_itself(module, line, expected):
    assert violations(module, ast.parse(line)) == expected


@pytest.mark.parametrize("room", sorted(each.parent.name for each in PACKAGE.glob("*/__init__.py")))
def test_no_public_name_hides_a_module(room):
    public = ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8"))
    names = {
        each.name for node in public.body if isinstance(node, ast.ImportFrom) and node.module for each in node.names
    }
    assert not names & {path.stem for path in (PACKAGE / room).iterdir()}
    assert names <= set(dir(importlib.import_module(f"lsn_lens.{room}")))


def test_files_and_functions_are_short():
    files, functions = {}, {}
    for module in modules():
        files[module] = len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines())
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                functions[f"{module}.{node.name}"] = (node.end_lineno or 0) - first.lineno + 1
    assert {name: size for name, size in files.items() if size > LONGEST_FILE} == {}
    assert {name: size for name, size in functions.items() if size > LONGEST_FUNCTION} == {}


def forbidden(parsed):
    """Prints, asserts, pickles, and torch.load without weights_only=True."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            if any(word in name.split(".") for name in names for word in ("pickle", "cloudpickle", "dill", "joblib")):
                yield node.lineno, "pickle"
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            safe = any(each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in node.keywords)
            if call == "print":
                yield node.lineno, "print"
            if call == "torch.load" and not safe:
                yield node.lineno, "torch.load without weights_only=True"
            if call.endswith(("read_pickle", "to_pickle")) or any(each.arg == "allow_pickle" for each in node.keywords):
                yield node.lineno, "pickle"


@pytest.mark.parametrize("module", modules())
def test_modules_do_nothing_forbidden(module):
    assert list(forbidden(tree(module))) == []


@pytest.mark.parametrize(
    "line",
    [
        "print(1)", "assert x", "import pickle", "from pickle import loads", "torch.load(path)", "data.to_pickle(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_forbidden_is_found(line):
    assert list(forbidden(ast.parse(line)))
    assert not list(forbidden(ast.parse("torch.load(path, map_location='cpu', weights_only=True)")))
