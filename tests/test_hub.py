"""Sets on the Hub, which is a local folder here: what is sent comes back, and nothing is sent but what was asked."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import D_MLP, LAYERS
from huggingface_hub import HfApi

from lsn_lens.neurons import from_hub, hub, push_to_hub
from lsn_lens.neurons.identity import origin_of
from lsn_lens.neurons.sets import NeuronSet


def made(seed=0):
    masks = {"mlp": torch.rand(2, LAYERS, D_MLP, generator=torch.Generator().manual_seed(seed)) < 0.2}
    return NeuronSet(("fr", "sr-Latn"), masks, "Lape(rate=0.01)", {"bar": 0.9}, {"model": "a/b", "text": "hash"})


@pytest.fixture
def online(tmp_path, monkeypatch):
    """The folder that stands for the Hub, and the list of what was asked of it."""
    asked = []

    def create(api, repo_id, **given):
        asked.append((repo_id, api.token, given))
        if (tmp_path / repo_id).exists() and not given["exist_ok"]:
            raise OSError("409 Conflict:\n you already created this dataset repo")
        (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)

    def upload(api, *, repo_id, folder_path, **given):
        shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo_id, name, **_: str(tmp_path / repo_id / name))
    return tmp_path, asked


def test_what_was_pushed_comes_back(online):
    folder, asked = online
    assert push_to_hub(made(), "me/lape", token="secret") == "https://hub/me/lape"
    assert asked == [("me/lape", "secret", {"private": True, "exist_ok": False, "repo_type": "dataset"})]
    again, found = from_hub("me/lape"), made()
    assert again == found and (again.method, again.notes, again.origin) == (found.method, found.notes, found.origin)
    assert NeuronSet.load(folder / "me/lape/set.json") == found
    with pytest.raises(ConnectionError, match=r"'me/lape': OSError, 409 Conflict: you already"):
        push_to_hub(made(1), "me/lape")
    push_to_hub(made(1), "me/lape", exist_ok=True, private=False)
    assert from_hub("me/lape") == made(1) != found and asked[-1][2]["private"] is False


def test_the_card_says_what_the_set_is(online, load):
    folder, _ = online
    model = load("llama")
    found = replace(made(), origin=origin_of(model))
    push_to_hub(found, "me/x", license="cc-by-4.0")
    _, head, text = (folder / "me/x/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["language"] == ["fr", "sr-Latn"] and yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert found.origin["fingerprint"] in text and "`Lape(rate=0.01)`" in text and 'from_hub("me/x")' in text
    assert all(f"| {label} | {count} |" in text for label, count in found.counts().items())
    push_to_hub(made(), "me/y")
    assert "license" not in (folder / "me/y/README.md").read_text() and from_hub("me/x", model) == found
    with pytest.raises(ValueError, match="found on another model"):
        from_hub("me/x", load("gpt2"))


def test_what_cannot_be_reached_or_written_is_said_before_anything_is_sent(monkeypatch):
    for call in (lambda: push_to_hub(made(), "me/x"), lambda: from_hub("me/x")):
        with pytest.raises(ConnectionError, match=r"data set 'me/x': .*HF_HUB_OFFLINE.*hf auth login"):
            call()
    monkeypatch.setattr(HfApi, "create_repo", None)
    with pytest.raises(ValueError, match=r"hold what JSON cannot"):
        push_to_hub(replace(made(), notes={"x": float("nan")}), "me/x")
