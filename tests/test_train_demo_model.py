"""The training script: a small run, its report, and going on after a kill."""

import gzip
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import train_demo_model

SMALL = {
    "tokens": 32 * 4 * 40, "layers": 1, "d_model": 16, "d_mlp": 32, "heads": 2, "vocabulary": 320, "block": 32,
    "batch": 4, "warmup": 5, "checkpoints": 5, "validation": 0.1, "repeat": {"news": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sentences = {"en": "The cat sat on the mat and slept.", "fr": "Le chat dormait sur le tapis."}
    for label, sentence in sentences.items():
        with gzip.open(folder / f"{label}.jsonl.gz", "wt", encoding="utf-8") as file:
            for i in range(120):
                row = {"source": "news" if i % 4 == 0 else "other", "text": f"{sentence} {i}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train_demo_model.train(str(corpus), out, **SMALL)
    return out


def test_it_learns_and_reports(trained):
    report = json.loads((trained / "training.json").read_text())
    assert set(report["validation_bits_per_byte"]) == {"en", "fr"}
    assert report["tokens"] == SMALL["tokens"]
    for loss in report["validation_nll_per_token"].values():
        assert loss < 0.9 * math.log(320)  # better than uniform over the vocabulary
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert model.dtype == torch.float16 and model.config.max_position_embeddings == 32
    assert len(tokenizer) == 320 and tokenizer.bos_token_id == 0
    assert tokenizer.decode(tokenizer("Été à Paris 北京")["input_ids"]) == "Été à Paris 北京"
    assert len(list(trained.glob("checkpoint-*"))) >= 5


def test_a_killed_run_goes_on_to_the_same_model(corpus, trained, tmp_path):
    steps = sorted(int(path.name.split("-")[1]) for path in trained.glob("checkpoint-*"))
    killed = tmp_path / "killed"
    shutil.copytree(trained / f"checkpoint-{steps[2]}", killed / f"checkpoint-{steps[2]}")
    (killed / f"checkpoint-{steps[3]}").mkdir()  # the kill came while this one was written
    train_demo_model.train(str(corpus), killed, **SMALL)
    first, second = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (trained, killed))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=2e-3, msg=name)
    reports = [json.loads((path / "training.json").read_text()) for path in (trained, killed)]
    for label in ("en", "fr"):
        one, two = (report["validation_nll_per_token"][label] for report in reports)
        assert one == pytest.approx(two, rel=1e-3)


def test_blocks_come_in_turn_and_cover_each_language():
    import numpy as np

    streams = [np.arange(0, 100), np.arange(1000, 1064)]
    blocks = train_demo_model.Blocks(streams, 8, 64, seed=0)
    assert len(blocks) == 64
    for index in range(64):
        ids = blocks[index]["input_ids"]
        assert bool((ids >= 1000).all()) == (index % 2 == 1)
        assert torch.equal(ids, torch.arange(int(ids[0]), int(ids[0]) + 8))
    epoch = sorted(int(blocks[index]["input_ids"][0]) for index in range(0, 22, 2))
    assert len(set(epoch)) == 11  # one epoch of the first language: each block once
