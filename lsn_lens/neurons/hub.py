"""Sets as data sets of the Hugging Face Hub, with a card. Nothing is sent but by `push_to_hub`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi, errors, hf_hub_download

from lsn_lens.neurons.exchange import tag_of
from lsn_lens.neurons.identity import whose
from lsn_lens.neurons.sets import NeuronSet

TENSORS, DOCUMENT = "set.safetensors", "set.json"
NETWORK: Any = (OSError, *errors.HfHubHTTPError.__bases__)  # the Hub's own errors, and those of its HTTP library
DATA = "dataset"


def push_to_hub(
    found: NeuronSet,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    exist_ok: bool = False,
    token: str | None = None,
) -> str:
    """Upload a set as a data set: as safetensors, in the exchange format, and a card that says what it is.

    Args:
        found: The set; its notes must be such that JSON can hold them.
        repo_id: "name" or "organisation/name".
        private: Make the new data set private.
        license: Identifier for the card, as "cc-by-4.0"; by default the card states none.
        exist_ok: Write into a data set that is there already. It stays as private or public as it is.
        token: By default that of `hf auth login`, or of the variable HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: The Hub cannot be reached or refuses (no token, no right to write, the data set is there).
        ValueError: Notes that JSON cannot hold, or a `repo_id` that the Hub does not allow.
    """
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / TENSORS)
        found.save(Path(folder) / DOCUMENT)
        (Path(folder) / "README.md").write_text(_card(found, repo_id, license), encoding="utf-8")
        api = HfApi(token=token)
        _reached(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=exist_ok, repo_type=DATA))
        message = f"{len(found):,} units of {', '.join(found.languages)}"
        sent: Any = _reached(
            repo_id,
            lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type=DATA),
        )
    return str(sent.commit_url)


def from_hub(
    repo_id: str, model: Any | None = None, *, revision: str | None = None, token: str | None = None
) -> NeuronSet:
    """Read a set that `push_to_hub` uploaded.

    Args:
        repo_id: "organisation/name".
        model: A model that must be the set's, as for `NeuronSet.load`.
        revision: Branch, tag or commit; a commit always gives the same set.
        token: For a private data set; by default that of `hf auth login`.

    Raises:
        ConnectionError: The Hub cannot be reached and the file is not in the cache, or the Hub has no such set.
        ValueError: A file of another kind, or a set of another model.
    """
    path = _reached(repo_id, lambda: hf_hub_download(repo_id, TENSORS, revision=revision, token=token, repo_type=DATA))
    return NeuronSet.load(path, model)


def _reached(repo_id: str, call: Callable[[], Any]) -> Any:
    """The result of a call to the Hub; what the Hub says in one line where it fails."""
    try:
        return call()
    except NETWORK as error:
        raise ConnectionError(
            f"data set {repo_id!r}: {type(error).__name__}, {' '.join(str(error).split())[:300]} Check the name, the "
            "network (HF_HUB_OFFLINE) and the token (`hf auth login`, or token=...). Without the Hub: found.save(path)."
        ) from error


def _card(found: NeuronSet, repo_id: str, license: str | None) -> str:
    """The README: what was found, on which model and text, and how to load it."""
    tags = [tag for label in found.languages if (tag := tag_of(label))]
    data = DatasetCardData(language=tags or None, license=license, tags=["lsn_lens", "language-specific-neurons"])
    origin = found.origin
    rows = {
        "Model": whose(origin) if origin else "not known",
        "Revision": origin.get("revision") or "not known",
        "Hash of the weights": origin.get("fingerprint") or "not known",
        "Method": f"`{found.method}`" if found.method else "not known",
        "Hash of the text": origin.get("text") or "not known",
        "Shapes": ", ".join(f"`{basis}` {list(mask.shape[1:])}" for basis, mask in found.masks.items()),
        "Licence": license or "not stated",
    }
    table = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items())
    counts = "\n".join(f"| {label} | {count:,} |" for label, count in found.counts().items())
    return f"""---
{data.to_yaml()}
---

# {repo_id.rpartition("/")[2]}

{len(found):,} units of a language model, by language. Units are counted from 0; shapes are [layer, unit].

| | |
|---|---|
{table}

| language | units |
|---|---|
{counts}

`{DOCUMENT}` is plain JSON: for each language and kind of unit, one list per layer of the units in it.

```python
import lsn_lens as lsn

found = lsn.neurons.from_hub("{repo_id}")
```
"""
