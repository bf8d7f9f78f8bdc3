"""Lists the pages of methods; keeps the built site free of warnings about widgets and of scripts from elsewhere."""

import os
import re
from pathlib import Path
from typing import Any

from lsn_lens.methods.catalogue import METHODS

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm in the notebooks' kernel, where ipywidgets is missing

# nbconvert's template brings a script that would fetch mermaid; there are no such diagrams here
MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>', re.DOTALL)


def method_pages(docs: Path) -> list[str]:
    """The pages of `docs/methods`, each called by a method, in the order of `METHODS`."""
    stems = [path.stem for path in (docs / "methods").glob("*.md")]
    return [f"methods/{stem}.md" for stem in sorted(stems, key=list(METHODS).index)]


def on_config(config: Any) -> Any:
    """Called by mkdocs with the settings of the site."""
    for part in config.nav:
        if "Methods" in part:
            part["Methods"] = method_pages(Path(config.docs_dir))
    return config


def on_post_page(output: str, **_: Any) -> str:
    """Called by mkdocs with each finished page."""
    return MERMAID.sub("", output)
