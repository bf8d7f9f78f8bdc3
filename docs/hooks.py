"""Keeps the built site free of warnings about widgets and of scripts from elsewhere."""

import os
import re
from typing import Any

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm in the notebooks' kernel, where ipywidgets is missing

# nbconvert's template brings a script that would fetch mermaid; there are no such diagrams here
MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>', re.DOTALL)


def on_post_page(output: str, **_: Any) -> str:
    """Called by mkdocs with each finished page."""
    return MERMAID.sub("", output)
