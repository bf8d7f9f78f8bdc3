"""The documents say what the code has: names, arguments, commands, methods; and nothing is fetched from elsewhere."""

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import re

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from pages import PAGES, ROOT, blocks

import lsn_lens
from lsn_lens.methods.catalogue import METHODS

HARNESS = "lsn_lens.generation.tasks.harness.HarnessModel"  # no room hands it on: it needs an optional package
ELSEWHERE = re.compile(r"(?:src|href|url|import)\s*[=(]\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)


def snippets():
    """Python of all documents: fenced blocks (also inside tabs), and the tutorials whole."""
    for path in PAGES:
        for _, source in blocks(path):
            yield pytest.param(source, id=f"{path.relative_to(ROOT)}-{source[:20]!r}")


def imports(tree):
    """Names of a document's Python that are of the package, and what each is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname, lsn_lens) for each in node.names if each.name == "lsn_lens")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lsn_lens":
            module = importlib.import_module(node.module)
            yield from ((each.asname or each.name, getattr(module, each.name)) for each in node.names)


def calls(source):
    """What a document's Python takes from the package, with the call it is part of (or None)."""
    tree = ast.parse(source)
    known = {"lsn": lsn_lens, **dict(imports(tree))}
    parts = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}

    def value(node):
        if isinstance(node, ast.Attribute):
            whole = value(node.value)
            return getattr(whole, node.attr) if inspect.ismodule(whole) or inspect.isclass(whole) else None
        return known.get(node.id) if isinstance(node, ast.Name) else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and (found := value(node)) is not None:
            yield found, parts.get(id(node))


def commands(text):
    return {
        name
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for name in re.findall(r"^make (\S+)", block, re.M)
    }


def makefile_targets():
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("source", snippets())
def test_names_and_arguments_in_documents_exist(source):
    for found, call in calls(source):
        if call is not None and not any(isinstance(each, ast.Starred) for each in call.args):
            keywords = {each.arg: each.value for each in call.keywords if each.arg}
            inspect.signature(found).bind(*call.args, **keywords)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("lsn.collect(model, corpora, method='lape')", TypeError),
        ("from lsn_lens.controls import survival\nsurvival(model, methods='lape')", TypeError),
        ("lsn.NeuronSet.from_dict({})", TypeError),
        ("lsn.find(run)", AttributeError),
        ("lsn.controls.find(run)", AttributeError),
        ("from lsn_lens.controls import find", AttributeError),
    ],
)
def test_the_check_of_documents_notices_what_is_wrong(wrong, error):
    test_names_and_arguments_in_documents_exist("lsn.collect(model, corpora, methods=['lape'])")
    with pytest.raises(error):
        test_names_and_arguments_in_documents_exist(wrong)


def resolved(path):
    """The object at a dotted path, modules imported on the way."""
    return functools.reduce(getattr, path.split(".")[1:], lsn_lens)


def public(module):
    """What a module hands on, by dotted path; in place of a module that it hands on, what that one does."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from public(value)
        else:
            yield f"{module.__name__}.{name}", value


def test_the_reference_names_everything_public_once():
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")]
    paths = [path for page in pages for path in re.findall(r"^::: (\S+)$", page, re.M) if path != HARNESS]
    named = [id(resolved(path)) for path in paths]
    assert len(named) == len(set(named))
    assert not [path for path, value in public(lsn_lens) if id(value) not in named]


def test_the_pins_are_for_every_python_that_is_promised():
    (least,) = re.findall(r'^requires-python = ">=([\d.]+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert f"Python {least} or newer" in (ROOT / "README.md").read_text("utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    asked = {}
    for name, version in pins:
        for found in importlib.metadata.distributions(name=name):
            if found.version.split("+")[0] == version:
                asked[name] = found.metadata.get("Requires-Python") or ""
    assert len(asked) > len(pins) / 2
    assert not {name: each for name, each in asked.items() if not SpecifierSet(each).contains(f"{least}.0")}


@functools.cache
def modules_named():
    """Rooms and modules by the last part of their path, which docstrings call them by."""
    found = {}
    for path in sorted((ROOT / "lsn_lens").rglob("*.py")):
        where = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
        found.setdefault(where.rpartition(".")[2], []).append(where)
    return found


def names_in(docstring):
    """Each `module.name` of the package in backticks; a file `module.py` and a call's arguments are none."""
    for whole in re.findall(r"`(?:lsn\.|lsn_lens\.)?(\w+(?:\.\w+)+)\b", docstring):
        module, name, *_ = whole.split(".")
        if module in modules_named() and name not in ("py", "json"):
            yield module, name


def has(module, name):
    """Whether a module defines the name, a room hands it on, or a class of the module has it (`run.statistics`)."""
    for place in map(importlib.import_module, modules_named()[module]):
        own = [each for each in vars(place).values() if getattr(each, "__module__", "") == place.__name__]
        classes = [each for each in own if inspect.isclass(each)]
        if any(hasattr(each, name) or name in getattr(each, "__dataclass_fields__", {}) for each in classes):
            return True
        value = getattr(place, name, None)
        if value is not None and (
            hasattr(place, "__path__") or getattr(value, "__module__", "") in ("", place.__name__)
        ):
            return True
    return False


def test_names_in_docstrings_exist():
    defined = (ast.Module, ast.ClassDef, ast.FunctionDef)
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "lsn_lens").rglob("*.py"))
    told = [ast.get_docstring(node) or "" for tree in trees for node in ast.walk(tree) if isinstance(node, defined)]
    names = [each for docstring in told for each in names_in(docstring)]
    assert len(names) > 30 and not has("stability", "percentile_interval")
    assert not sorted({f"{module}.{name}" for module, name in names if not has(module, name)})


def test_the_reference_names_every_room():
    text = (ROOT / "docs/reference/index.md").read_text(encoding="utf-8")
    rooms = {name for name in lsn_lens.__all__ if inspect.ismodule(getattr(lsn_lens, name))} - {"plots"}
    assert set(re.findall(r"^\| `lsn\.(\w+)` \|", text, re.M)) == rooms


def test_the_readme_names_two_commands_and_both_exist():
    assert commands((ROOT / "README.md").read_text(encoding="utf-8")) == {"demo", "test"} <= makefile_targets()
    assert commands((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) <= makefile_targets()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_words_on_a_method_page(method):
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs/methods").glob("*.md")]
    assert any(f'"{method}"' in page for page in pages)
    assert f"`{method}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_parameters_on_the_lape_page_are_those_of_the_code():
    page = (ROOT / "docs/methods/lape.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.M))
    assert {name: float(value) for name, value in rows.items()} == vars(METHODS["lape"]())


def test_layout_fields_on_the_text_page_are_those_of_the_code():
    page = (ROOT / "docs/corpora.md").read_text(encoding="utf-8")
    section = page[page.index("## Layout") :]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(vars(lsn_lens.Layout()))


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml: its own tags name Python objects, which matter to mkdocs only."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_the_site_fetches_nothing_from_elsewhere():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert config["strict"] is True and config["theme"]["font"] is False
    assert config["use_directory_urls"] is False and {"search", "offline"} <= set(map(str, config["plugins"]))
    for each in config["extra_css"] + config["extra_javascript"] + config["extra"]["polyfills"]:
        assert (ROOT / "docs" / each).is_file(), each
    for path in (ROOT / "docs/assets").rglob("*"):
        if path.suffix in {".css", ".svg", ".html"} or path.name in ("math.js", "iframe-worker.js"):
            assert not ELSEWHERE.search(path.read_text(encoding="utf-8")), path
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"!\[[^]]*\]\(\s*(?:https?:)?//|<(?:script|img|link|iframe)\b[^>]*//", text), path


def test_tutorials_run_when_the_site_is_built_and_errors_are_fatal():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    options = next(each["mkdocs-jupyter"] for each in config["plugins"] if "mkdocs-jupyter" in each)
    assert options["execute"] is True and options["allow_errors"] is False and options["include"] == ["tutorials/*.py"]


def test_pictures_and_pages_that_documents_point_to_exist():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" in target or path.suffix == ".py":
                continue
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_links_of_tutorials_lead_to_pages():
    """A tutorial is executed as a notebook, so mkdocs does not look at its links: they name built pages."""
    for path in (ROOT / "docs/tutorials").glob("*.py"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8").replace("\n# ", " ")):
            source = (path.parent / target).with_suffix("")
            assert target.endswith(".html"), f"{path.name}: {target}"
            assert source.with_suffix(".md").is_file() or source.with_suffix(".py").is_file(), f"{path.name}: {target}"


@functools.cache
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULTS = ["comparison", "real_model", "ground_truth", "controls", "significance", "text_dependence"]


@pytest.mark.parametrize("page", RESULTS)
def test_results_pages_have_figures_of_their_own_tables(page):
    markdown = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    drawn = hooks().on_page_markdown(markdown)
    assert drawn.count("<figure") == len(re.findall("<!-- (?:dots|cells) ", markdown)) > 0


def test_a_figure_has_the_numbers_of_its_table():
    low = "\N{MINUS SIGN}0.2"
    table = f"| method | own (95 %) |\n|---|---|\n| `lape` | **+1,000.5 ({low} to +3.25)** |\n| `lap` | |\n"
    cells = hooks().cells_of(f"{table}| `dln` | 98 % |\n")
    assert list(cells["method"]) == ["lape", "lap", "dln"]
    values = hooks().values_of(cells["own (95 %)"])
    assert values.iloc[0].tolist() == [1000.5, -0.2, 3.25] and values["value"].isna().tolist() == [False, True, False]
    wrong = f"{table}\n<!-- dots | a figure | nats | method | other -->"
    with pytest.raises(KeyError, match="other"):
        hooks().on_page_markdown(wrong)


def test_mkdocs_serves_every_page():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = {*re.findall(r"[\w/]+\.(?:md|py)", str(config["nav"])), *hooks().method_pages(ROOT / "docs")}
    pages = {
        path.relative_to(ROOT / "docs").as_posix()
        for path in PAGES
        if path.is_relative_to(ROOT / "docs") and "vendor" not in path.parts
    }
    assert listed == pages
