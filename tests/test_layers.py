"""Which module may import which, and what no module may do."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lsn_lens"

LAYERS = (
    {"draws", "formats", "labels", "bars", "encoding", "oddities", "readers", "identity", "refusal", "sites"},
    {"token_bytes", "hooks", "sealed", "checkpoints"},
    {"tokens", "documents", "probing"},
    {"statistics", "neurons", "corpora", "batches", "scripts", "mlps"},
    {"experts", "importance", "lettering", "marks"},
    {"models", "forward", "entry", "interventions", "actions", "run", "methods", "requirements", "recorders"},
    {"acceptance"},
    {"loading"},
    {"passes", "anatomy", "wanted"},
    {"collect"},
    {"detect", "evaluation", "applications", "planted", "text_view", "planning", "export"},
    {"charts"},
    {"plots"},
    {"report"},
    {"sections"},
)
# an import inside one layer that is meant: writing to units needs to know the model's sites
BESIDE = {
    ("interventions", "models"), ("forward", "models"), ("recorders", "models"), ("recorders", "forward"),
    ("entry", "models"), ("entry", "forward"), ("interventions", "entry"), ("actions", "entry"),
    ("actions", "models"), ("actions", "interventions"), ("actions", "methods"),
}  # fmt: skip


def modules():
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(parsed):
    """The parts of the package that a module imports, wherever in the file; "" is the package itself."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["lsn_lens"]  # a relative import hides what it takes: not used here
        elif isinstance(node, ast.ImportFrom) and node.module == "lsn_lens":
            names = [f"lsn_lens.{each.name}" for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lsn_lens":
                yield [*name.split("."), ""][1]


def layer_of(part):
    found = [height for height, names in enumerate(LAYERS) if part in names]
    assert found, f"{part or 'lsn_lens/__init__'} has no layer: it must not be imported, or needs one in {__file__}"
    return found[0]


def violations(part, parsed):
    """What a part of the package imports from beside or above it."""
    return sorted(
        {
            other
            for other in imports(parsed)
            if other != part and (part, other) not in BESIDE and layer_of(other) >= layer_of(part)
        }
    )


@pytest.mark.parametrize("module", [each for each in modules() if each != "__init__"])
def test_modules_import_from_lower_layers_only(module):
    assert violations(module.split("/")[0], tree(module)) == []


@pytest.mark.parametrize(
    ("part", "line", "expected"),
    [
        ("statistics", "from lsn_lens.methods import Lape", ["methods"]),
        ("neurons", "from lsn_lens.statistics import merge", ["statistics"]),
        ("methods", "def f():\n    import lsn_lens.models", ["models"]),
        ("methods", "from lsn_lens import neurons\nfrom lsn_lens.methods.base import Method", []),
        ("interventions", "from lsn_lens import models", []),
        ("models", "from lsn_lens import interventions", ["interventions"]),
        ("collect", "import torch\nfrom lsn_lens.batches import Plan", []),
    ],
)
def test_the_rule_itself(part, line, expected):
    assert violations(part, ast.parse(line)) == expected


@pytest.mark.parametrize("line", ["from lsn_lens import zero", "import lsn_lens", "from . import zero"])
def test_the_package_itself_is_not_imported(line):
    with pytest.raises(AssertionError, match="has no layer"):
        violations("report", ast.parse(line))


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
