"""Sets as data sets of the Hugging Face Hub, with a card. Nothing is sent but by `push_to_hub`."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi, errors, hf_hub_download

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
        files = {name: found.save(Path(folder) / name) for name in (TENSORS, DOCUMENT)}
        message = f"{len(found):,} units of {', '.join(found.languages)}"
        card = _card(found, repo_id, license)
        return send(repo_id, files, card, message, private=private, exist_ok=exist_ok, token=token)


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
    path = reached(repo_id, lambda: hf_hub_download(repo_id, TENSORS, revision=revision, token=token, repo_type=DATA))
    return NeuronSet.load(path, model)


def send(
    repo_id: str,
    files: Mapping[str, Path],
    card: str,
    message: str,
    *,
    private: bool,
    exist_ok: bool,
    token: str | None,
) -> str:
    """Upload files, by their names in the data set, and the card, in one commit; returns its address.

    Raises: as `push_to_hub`.
    """
    api, contents = HfApi(token=token), {**files, "README.md": card.encode()}
    reached(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=exist_ok, repo_type=DATA))
    operations = [CommitOperationAdd(name, each) for name, each in contents.items()]
    sent = reached(
        repo_id, lambda: api.create_commit(repo_id, operations, commit_message=message, repo_type=DATA)
    )  # fmt: skip
    return str(sent.commit_url)


def reached(repo_id: str, call: Callable[[], Any]) -> Any:
    """The result of a call to the Hub; what the Hub says in one line where it fails."""
    try:
        return call()
    except NETWORK as error:
        raise ConnectionError(
            f"data set {repo_id!r}: {type(error).__name__}, {' '.join(str(error).split())[:300]} Check the name, the "
            "network (HF_HUB_OFFLINE) and the token (`hf auth login`, or token=...). Without the Hub: its save(path)."
        ) from error


def card_of(
    repo_id: str,
    labels: Iterable[str],
    license: str | None,
    lead: str,
    facts: Mapping[str, Any],
    counts: Mapping[Any, str],
    rest: str,
) -> str:
    """A README for the Hub: its header, what the data set is, facts, one count per language, and how to load it."""
    tags = [tag for label in labels if (tag := tag_of(label))]
    data = DatasetCardData(language=tags or None, license=license, tags=["lsn_lens", "language-specific-neurons"])
    facts = {**facts, "Licence": license or "not stated"}
    rows = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items())
    lines = "\n".join(f"| {label} | {count} |" for label, count in counts.items())
    return f"""---
{data.to_yaml()}
---

# {repo_id.rpartition("/")[2]}

{lead}

| | |
|---|---|
{rows}

{lines}

{rest}
"""


def whose_facts(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a card that say on which model and text something was found."""
    return {
        "Model": whose(origin) if origin else "not known",
        "Revision": origin.get("revision") or "not known",
        "Hash of the weights": origin.get("fingerprint") or "not known",
        "Hash of the text": origin.get("text") or "not known",
    }


def _card(found: NeuronSet, repo_id: str, license: str | None) -> str:
    """The README: what was found, on which model and text, and how to load it."""
    facts = {
        **whose_facts(found.origin),
        "Method": f"`{found.method}`" if found.method else "not known",
        "Shapes": ", ".join(f"`{basis}` {list(mask.shape[1:])}" for basis, mask in found.masks.items()),
    }
    lead = f"{len(found):,} units of a language model, by language. Units are counted from 0; shapes are [layer, unit]."
    counts = {"language": "units", "---": "---"} | {key: f"{count:,}" for key, count in found.counts().items()}
    rest = f"""`{DOCUMENT}` is plain JSON: for each language and kind of unit, one list per layer of the units in it.

```python
import lsn_lens as lsn

found = lsn.neurons.from_hub("{repo_id}")
```"""
    return card_of(repo_id, found.languages, license, lead, facts, counts, rest)
