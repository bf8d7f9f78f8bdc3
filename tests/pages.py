"""The documents, and the Python in them."""

import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs/tutorials").glob("*.py")])


def blocks(path):
    """Line number and source of each fenced block of Python, also inside tabs; a script is one block."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [(1, text)]
    found = re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.M | re.S)
    return [(text.count("\n", 0, each.start(2)) + 1, inspect.cleandoc("\n" + each[2])) for each in found]
