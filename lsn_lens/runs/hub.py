"""Runs as data sets of the Hugging Face Hub, with a card. Nothing is sent but by `push_to_hub`."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import snapshot_download

from lsn_lens.neurons.hub import DATA, card_of, reached, send, whose_facts
from lsn_lens.runs.run import DESCRIPTION, DRAWN, Run, check_run, layers_of, load_run, read_description
from lsn_lens.runs.shards import CONSTANTS, documents_path, shard_path
from lsn_lens.runs.state import run_state

FILES = ["*.json", "*.safetensors"]


def push_to_hub(
    run: Run,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    exist_ok: bool = False,
    token: str | None = None,
) -> str:
    """Upload a complete run as a data set: the files of its folder as they are, and a card that says what it is.

    The text is not in a run, and no other file of the folder is sent. What a run holds of the text: sums over tokens;
    for methods of single documents, values of each document and its number of tokens; counts and hashes.

    Args:
        run: A run of `collect` or `load_run`; a run in memory is saved to a temporary folder first.
        repo_id: "name" or "organisation/name".
        private: Make the new data set private.
        license: Identifier for the card, as "cc-by-4.0"; by default the card states none.
        exist_ok: Write into a data set that is there already. It stays as private or public as it is.
        token: By default that of `hf auth login`, or of the variable HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: The Hub cannot be reached or refuses (no token, no right to write, the data set is there).
        ValueError: Missing or damaged shards; a run drawn from another run's shards; or a `repo_id` that the Hub does
            not allow.
    """
    check_run(run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = run.path if run.path is not None and DRAWN not in run.settings else run.save(Path(scratch) / "run")
        files = {name: folder / name for name in files_of(folder)}
        card, message = _card(load_run(folder), files, repo_id, license), f"A run of {', '.join(run.languages)}"
        return send(repo_id, files, card, message, private=private, exist_ok=exist_ok, token=token)


def from_hub(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Run:
    """Read a run that `push_to_hub` uploaded, into the Hub's cache; checksums are verified as by `load_run`.

    `run.save(folder)` makes a run of one's own of it, to which `collect` adds methods.

    Args:
        repo_id: "organisation/name".
        revision: Branch, tag or commit; a commit always gives the same run.
        token: For a private data set; by default that of `hf auth login`.

    Raises:
        ConnectionError: The Hub cannot be reached and the files are not in the cache, or the Hub has no such data set.
        ValueError: The data set is not a run, or a run of another version.
    """
    folder = reached(
        repo_id,
        lambda: snapshot_download(repo_id, revision=revision, token=token, repo_type=DATA, allow_patterns=FILES),
    )
    return load_run(folder)


def files_of(folder: Path) -> list[str]:
    """The files of a complete run's folder, relative to it: all that its description names, and no other.

    Raises:
        ValueError: Missing or damaged shards.
    """
    table, settings = run_state(folder)
    every, missing = (sum(map(int, table[key])) for key in ("shards", "missing"))
    if missing:
        raise ValueError(
            f"{folder}: {missing} of {every} shards are missing or damaged. Call collect with the "
            "arguments of the run: it redoes them."
        )
    names = [name for each in (read_description(folder) or {})["shards"].values() for name in each]
    paths = [folder / DESCRIPTION]
    for layer in layers_of(settings):
        part, kinds = folder / layer["folder"], [shard_path, *([documents_path] if layer["rows"] else [])]
        paths += [part / CONSTANTS, *sorted(part.glob("costs-*.json"))]
        paths += [kind(part, name) for kind in kinds for name in names]
    return [path.relative_to(folder).as_posix() for path in paths]


def _card(run: Run, files: Mapping[str, Path], repo_id: str, license: str | None) -> str:
    """The README: on which model and text the run was made, what it holds and what it does not, and how to load it."""
    text, rows = run.settings["text"], run.settings["rows"]
    facts = {
        **whose_facts(run.origin),
        "Layout": f"{text['layout']['kind']} of {text['layout']['length']} tokens",
        "Statistics": ", ".join(f"`{key}`" for key in run.settings["statistics"]),
        "Size": f"{sum(path.stat().st_size for path in files.values()):,} bytes in {len(files):,} files",
    }
    lead = (
        "What one pass of a language model over text left: for each language, sums over tokens, from which methods "
        "find language-specific units. The text itself, its tokens and the model's weights are not here. Of the text "
        "there are the numbers of its tokens, documents and bytes, and a hash"
    )
    single = ", and, for each document, its number of tokens and the values of units on it (`documents/`)."
    used = {label: f"{each['tokens_used']:,}" for label, each in text["languages"].items()}
    rest = f"""`{DESCRIPTION}` has all settings, `shards/` the sums, each file with a checksum.

```python
import lsn_lens as lsn

run = lsn.runs.from_hub("{repo_id}")
```"""
    counts = {"language": "tokens used", "---": "---"} | used
    return card_of(repo_id, run.languages, license, f"{lead}{single if rows else '.'}", facts, counts, rest)
