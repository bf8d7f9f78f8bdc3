"""Sets and runs on the Hub, a local folder here: what is sent comes back, and nothing is sent but what was asked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import D_MLP, LAYERS, SENTENCES
from huggingface_hub import HfApi

import lsn_lens as lsn
from lsn_lens.neurons import from_hub, hub, push_to_hub
from lsn_lens.neurons.identity import origin_of
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs import hub as runs_hub
from lsn_lens.runs.run import DRAWN


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

    def commit(api, repo_id, operations, *, commit_message, repo_type):
        for each in operations:
            path, given = tmp_path / repo_id / each.path_in_repo, each.path_or_fileobj
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(given if isinstance(given, bytes) else Path(given).read_bytes())
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo_id, name, **_: str(tmp_path / repo_id / name))
    monkeypatch.setattr(
        runs_hub, "snapshot_download", lambda repo_id, **given: asked.append(given) or tmp_path / repo_id
    )
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


# runs

TEXTS = {
    label: [f"{place}. {text}" for place in range(6)] for label, text in zip(("en", "de"), SENTENCES, strict=False)
}


@pytest.fixture
def run(tmp_path, load):
    """A run in a folder: single documents, and a method added later; beside it a file that is none of its own."""
    model, out, layout = load("llama"), tmp_path / "run", lsn.Layout("documents", shards=2)
    lsn.collect(model, TEXTS, ["average_precision"], out, layout=layout, progress=False)
    made = lsn.collect(model, TEXTS, ["average_precision", "dln"], out, layout=layout, progress=False)
    (out / "corpus.txt").write_text(SENTENCES[0])
    (out / "shards/notes.safetensors").write_text(SENTENCES[0])
    return made


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_sent_as_it_is_without_its_text(online, run):
    folder, asked = online
    assert lsn.runs.push_to_hub(run, "me/run", token="secret") == "https://hub/me/run"
    assert asked == [("me/run", "secret", {"private": True, "exist_ok": False, "repo_type": "dataset"})]
    sent, own = files_in(folder / "me/run"), files_in(run.path)
    card = sent.pop("README.md").decode()
    others = ("corpus.txt", "shards/notes.safetensors", ".lock", "added-1/adding.json")
    assert sent == {name: own[name] for name in own if name not in others}
    assert {name.split("/")[0] for name in sent} >= {"run.json", "shards", "documents", "added-1"}
    assert not [name for name, each in sent.items() if any(text[:20].encode() in each for text in SENTENCES)]
    assert str(folder).encode() not in b"".join(sent.values())
    again = lsn.runs.from_hub("me/run", revision="abc", token="secret")
    assert asked[-1] == {
        "revision": "abc", "token": "secret", "repo_type": "dataset", "allow_patterns": ["*.json", "*.safetensors"],
    }  # fmt: skip
    assert again.settings == run.settings and again.origin == run.origin
    assert all(again.statistics.sums[key].equal(each) for key, each in run.statistics.sums.items())
    assert lsn.detect(again, "average_precision") == lsn.detect(run, "average_precision") and lsn.detect(
        again, "dln"
    ) == lsn.detect(run, "dln")
    assert "The text itself, its tokens and the model's weights are not here" in card and "each document" in card
    assert 'runs.from_hub("me/run")' in card and run.origin["fingerprint"] in card and run.origin["text"] in card
    used = run.to_frame()["tokens_used"]
    assert all(f"| {label} | {used[label]:,} |" in card for label in TEXTS)


def test_a_run_in_memory_is_sent_too(online, load):
    made = lsn.collect(load("llama"), TEXTS, ["lape"], layout=lsn.Layout(length=16), progress=False)
    lsn.runs.push_to_hub(made, "me/memory", license="cc-by-4.0")
    again, card = lsn.runs.from_hub("me/memory"), (online[0] / "me/memory/README.md").read_text()
    assert all(again.statistics.sums[key].equal(each) for key, each in made.statistics.sums.items())
    assert "license: cc-by-4.0" in card and "each document" not in card


def test_an_incomplete_or_drawn_run_is_refused_before_anything_is_sent(online, run):
    folder, asked = online
    with pytest.raises(ValueError, match="drawn from another run's shards"):
        lsn.runs.push_to_hub(replace(run, settings={**run.settings, DRAWN: True}), "me/run")
    for part in ("documents", "shards"):
        path = next((run.path / part).glob("de-*"))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="1 of 4 shards are missing or damaged"):
            lsn.runs.push_to_hub(run, "me/run")
    assert not asked and not (folder / "me").exists()


def test_what_came_from_the_hub_is_verified(online, run):
    lsn.runs.push_to_hub(run, "me/run")
    shard = next((online[0] / "me/run/shards").glob("de-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="is missing or damaged"):
        lsn.runs.from_hub("me/run").statistics
    with pytest.raises(ValueError, match="is not the folder of a run"):
        lsn.runs.from_hub("me/other")


def test_a_hub_out_of_reach_is_said(run):
    for call in (lambda: lsn.runs.push_to_hub(run, "me/x"), lambda: lsn.runs.from_hub("me/x")):
        with pytest.raises(ConnectionError, match=r"data set 'me/x': .*HF_HUB_OFFLINE.*hf auth login"):
            call()
