"""Predicted memory and disk against what a run really takes."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

import lsn_lens as lsn
from lsn_lens.collection import Pass, needs_of, plan_run, widths_of
from lsn_lens.model import forward, unembedding
from lsn_lens.statistics.needs import DocumentValues, Histogram, Statistic

TEXTS = {label: [f"{label} sentence number {i}, and some words." for i in range(24)] for label in ("en", "fr", "zh")}


@dataclass(frozen=True)
class Everything:
    """A method that needs one statistic of each kind."""

    def statistics(self):
        return (
            Statistic("mlp_pre", "positive"), Statistic("resid_post", "sum"), Histogram("mlp_act", 40),
            DocumentValues("q", "mean"), DocumentValues("mlp_up", "last", optional=True),
        )  # fmt: skip

    def score(self, statistics):
        raise NotImplementedError

    def select(self, scores):
        raise NotImplementedError


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_disk_is_what_was_predicted(name, load, tmp_path):
    model = load(name)
    layout = lsn.Layout(kind="documents", shards=3)
    predicted = plan_run(model, [Everything()], languages=3, documents=24, layout=layout)
    run = lsn.collect(model, lsn.load_corpora(TEXTS, hold_out=0.0), [Everything()], tmp_path, layout=layout)
    written = sum(
        path.stat().st_size for path in tmp_path.rglob("*.safetensors") if path.name != "constants.safetensors"
    )
    headers = 3000 * 2 * 9  # names and shapes, for each of two files a shard
    assert predicted.loc["all", "disk"] <= written <= predicted.loc["all", "disk"] + headers
    sums = sum(value.numel() * value.element_size() for value in run.statistics.sums.values())
    assert sums == predicted.loc["all", "merged"]


def test_memory_of_the_recorders_is_what_was_predicted(load):
    model = load("llama")
    needs = [each for each in needs_of(model, [Everything()]) if not each.by_document]
    recorders = Pass(model, needs, widths_of(model, needs), {}).recorders
    held = sum(value.numel() * value.element_size() for each in recorders for value in each.sums.values())
    predicted = plan_run(model, [Everything()], layout=lsn.Layout(shards=16), documents=160)
    assert held == predicted.loc[[need.key for need in needs], "memory"].sum()


def test_a_configuration_is_enough_and_agrees_with_the_model(load):
    model = load("llama")
    if not hasattr(model, "original_model"):
        pytest.skip("a HookedTransformer keeps no Hugging Face configuration")
    config = transformers.LlamaConfig(**model.original_model.config.to_dict())
    from_model, from_config = (plan_run(each, [Everything()], languages=3, documents=24) for each in (model, config))
    assert from_model.equals(from_config)


def test_llama_7b_without_its_weights():
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    table = plan_run(config, ["lape", Everything()], languages=7, documents=500)
    assert table.loc["mlp_pre.positive", "merged"] == 7 * 32 * 11008 * 8
    assert table.loc["q.mean", "disk"] == 7 * 500 * 32 * 4096 * 4
    assert 26.9e9 < table.loc["model", "memory"] < 27.1e9  # 6.74e9 parameters in float32


class Seen:
    """The shapes of what a model is given."""

    def __init__(self, monkeypatch):
        self.shapes = []
        for name in ("logits", "body_output"):
            original = getattr(forward, name)
            monkeypatch.setattr(forward, name, self.noting(original))

    def noting(self, original):
        def note(model, ids, mask=None):
            self.shapes.append(tuple(ids.shape))
            return original(model, ids, mask)

        return note


@pytest.mark.parametrize(
    "layout",
    [
        None, lsn.Layout(), lsn.Layout(batch_tokens=100), lsn.Layout(batch_tokens=30),
        lsn.Layout(length=20, batch_tokens=70), lsn.Layout(length=64, batch_tokens=10),
        lsn.Layout(kind="documents", batch_tokens=90),
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_through_the_model_at_once_is_what_was_predicted(layout, load, monkeypatch):
    model, seen = load("llama"), Seen(monkeypatch)
    texts = {label: [f"{label} {i} {'and so on ' * (i % 3)}" for i in range(60)] for label in ("en", "fr")}
    corpora = lsn.load_corpora(texts)
    predicted = plan_run(model, ["act_grad"], layout=layout).attrs
    lsn.collect(model, corpora, ["act_grad"], layout=layout, progress=False)
    lsn.perplexity_table(
        model, corpora, lsn.NeuronSet((), {"mlp": torch.zeros(0, 2, 48).bool()}), layout=layout, progress=False
    )
    shapes = [shape for shape in seen.shapes if shape != (2, 8)]  # that of the check at the beginning
    assert shapes and all(rows * length <= predicted["tokens_at_once"] for rows, length in shapes)
    assert all(length <= predicted["row"] for _, length in shapes)
    if layout is not None and layout.length:
        assert max(rows * length for rows, length in shapes) == predicted["tokens_at_once"]


def test_a_long_context_does_not_make_long_rows():
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128_256, max_position_embeddings=131_072,
    )  # fmt: skip
    table = plan_run(config, ["lape"], dtype=torch.bfloat16)
    assert table.attrs == {"row": 2048, "tokens_at_once": 4096}
    most = unembedding.FULL  # of the 2.1 GB of logits of 4,096 tokens
    assert most <= table.loc["perplexity", "memory"] - table.loc["model", "memory"] < 3 * most + 1e9
    assert table.loc["all", "memory"] - table.loc["model", "memory"] < 2e9
    asked = plan_run(config, ["act_grad"], dtype=torch.bfloat16, layout=lsn.Layout(length=131_072))
    assert asked.attrs == {"row": 131_072, "tokens_at_once": 131_072}
    assert asked.loc["one batch", "memory"] > 131_072 * 128_256 * 4


def test_a_gradient_holds_the_logits_of_few_positions():
    """4,096 tokens: all logits of a small vocabulary, and no more of a large one than of one twice as large."""
    memory = {}
    for vocabulary in (1000, 2000, 128_000, 256_000):
        config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, vocab_size=vocabulary)
        memory[vocabulary] = plan_run(config, ["act_grad"]).loc["one batch", "memory"]
    assert memory[2000] - memory[1000] == unembedding.COPIES * 4 * 4096 * 1000 < unembedding.FULL
    assert memory[256_000] == memory[128_000] < memory[1000] + unembedding.FULL


PEAK = """
import sys
from pathlib import Path
import lsn_lens as lsn
from lsn_lens.collection import plan_run
from lsn_lens.statistics.needs import Histogram, Statistic
class Method:
    score = select = None
    def statistics(self):
        return (Histogram("mlp_act", int(sys.argv[2])),)
model = lsn.load_model(sys.argv[1])
corpora = lsn.load_corpora({label: [f"{label} text {i}" for i in range(8)] for label in ("en", "fr")}, hold_out=0.0)
layout = lsn.Layout(kind="documents", shards=1)
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS:")
run = lsn.collect(model, corpora, [Method()], sys.argv[3], layout=layout, progress=False)
print((kilobytes("VmHWM:") - before) * 1024)
planned = plan_run(model, [Method()], languages=2, documents=8, layout=layout)["memory"]
print(planned.drop(["all", "one batch", "perplexity"]).sum())
"""


def test_peak_memory_grows_as_predicted(tmp_path):
    """Two processes that differ in the number of bins alone: the difference of their peaks is the sums'."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can be measured on Linux only")
    peaks = {}
    for bins in (10, 8000):  # 6 layers x 768 units x 8002 bins x 4 bytes = 147 MB
        out = subprocess.run(
            [sys.executable, "-c", PEAK, "demo", str(bins), str(tmp_path / str(bins))],
            capture_output=True, text=True, check=True, cwd=Path(lsn.__file__).parents[1],
        ).stdout.split()  # fmt: skip
        peaks[bins] = (int(out[0]), int(out[1]))
    grown, predicted = (peaks[8000][i] - peaks[10][i] for i in (0, 1))
    assert 147e6 < predicted < 149e6
    assert 0.8 * predicted < grown < 6 * predicted  # a copy for the file, one for its checksum, one while it is written
