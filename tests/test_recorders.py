"""Values of single documents and constants of a run: on disk, in memory, resumed, damaged."""

import errno
import shutil
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

import lsn_lens as lsn
from lsn_lens.collection.recorders.documents import document_last, document_maximum, document_mean
from lsn_lens.statistics.needs import DocumentValues, Histogram, Statistic

TEXTS = {label: [f"{label} {'word ' * (i % 5)}number {i}." for i in range(10)] for label in ("en", "fr", "zh")}
LAYOUT = lsn.Layout(kind="documents", shards=3, batch_tokens=64)


@dataclass(frozen=True)
class Rows:
    """A method that needs values of single documents, a histogram and a sum."""

    def statistics(self):
        return (DocumentValues("q"), DocumentValues("mlp_act", "last"), Histogram("mlp_act", 8), Statistic("q", "sum"))

    def score(self, statistics):
        raise NotImplementedError

    def select(self, scores):
        raise NotImplementedError


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora(TEXTS, hold_out=0.0)


@pytest.fixture(scope="module")
def whole(load, corpora):
    return lsn.collect(load("llama"), corpora, [Rows()], layout=LAYOUT, progress=False)


def with_bos(model, text):
    return torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])


def same(one, other):
    assert one.statistics.sums.keys() == other.statistics.sums.keys()
    for key, value in one.statistics.sums.items():
        assert torch.equal(value, other.statistics.sums[key]), key
    for key, value in one.constants.items():
        assert torch.equal(value, other.constants[key]), key
    for key in ("q.mean", "mlp_act.last", "length"):
        for layer in (0, 1) if key != "length" else (0,):
            mine, others = (each.statistics.documents(key, layer) for each in (one, other))
            assert all(torch.equal(value, others[label]) for label, value in mine.items())


def test_on_disk_as_in_memory_and_after_losses(load, corpora, whole, tmp_path):
    def again():
        return lsn.collect(load("llama"), corpora, [Rows()], tmp_path / "run", layout=LAYOUT, progress=False)

    same(whole, again())
    files = sorted((tmp_path / "run" / "documents").iterdir())
    assert len(files) == 9
    files[0].unlink()
    content = bytearray(files[4].read_bytes())
    content[-5] ^= 1  # one bit of one value
    files[4].write_bytes(content)
    files[7].write_bytes(files[7].read_bytes()[:-20])
    before = files[1].stat().st_mtime_ns
    same(whole, again())
    assert files[1].stat().st_mtime_ns == before  # what was whole was not done again
    same(whole, lsn.load_run(tmp_path / "run"))


def test_values_are_those_of_each_document_alone(load, whole):
    model = load("llama")
    for label, texts in TEXTS.items():
        means, lasts = (whole.statistics.documents(key, 1)[label] for key in ("q.mean", "mlp_act.last"))
        lengths = whole.statistics.documents("length", 0)[label][:, 0]
        for i, text in enumerate(texts):
            ids = with_bos(model, text)
            _, cache = model.run_with_cache(ids)
            assert lengths[i] == ids.shape[1]
            assert torch.allclose(cache["blocks.1.attn.hook_q"][0].flatten(1).mean(0), means[i], atol=1e-5)
            gate = torch.nn.functional.silu(cache["blocks.1.mlp.hook_pre"][0, -1])
            assert torch.allclose(gate, lasts[i], atol=1e-5)


def test_every_token_is_in_one_bin(whole):
    counts = whole.statistics.get("mlp_act.histogram8")
    assert torch.equal(counts.sum(-1), whole.statistics.tokens[..., None].expand(-1, -1, counts.shape[2]).int())


def test_reductions_over_documents():
    acts = torch.tensor([[[1.0], [5.0], [-2.0], [9.0]], [[3.0], [1.0], [4.0], [2.0]]])
    keep = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert document_mean(acts, keep)[:, 0].tolist() == pytest.approx([4 / 3, 2.5])
    assert document_last(acts, keep)[:, 0].tolist() == [-2.0, 2.0]
    assert document_maximum(acts, keep)[:, 0].tolist() == [5.0, 4.0]


def test_without_the_separator(load, corpora):
    @dataclass(frozen=True)
    class Skipping(Rows):
        def statistics(self):
            return (DocumentValues("q"), DocumentValues("q", skip_bos=True))

    model = load("llama")
    for separator in ("bos", "none"):
        layout = lsn.Layout(kind="documents", shards=1, separator=separator)
        run = lsn.collect(model, corpora, [Skipping()], layout=layout, progress=False)
        every, without = (run.statistics.documents(key, 0)["fr"] for key in ("q.mean", "q.mean.skip_bos"))
        assert torch.equal(every, without) == (separator == "none")
    text = TEXTS["fr"][3]
    ids = with_bos(model, text)
    run = lsn.collect(model, corpora, [Skipping()], progress=False)
    _, cache = model.run_with_cache(ids)
    expected = cache["blocks.0.attn.hook_q"][0, 1:].flatten(1).mean(0)
    assert torch.allclose(run.statistics.documents("q.mean.skip_bos", 0)["fr"][3], expected, atol=1e-5)


def test_bad_input_is_named(load, corpora, tmp_path, monkeypatch):
    model = load("llama")
    with pytest.raises(ValueError, match=r"single documents: \['q.mean', 'mlp_act.last'\].*kind=\"documents\""):
        lsn.collect(model, corpora, [Rows()], layout=lsn.Layout(kind="blocks", length=8), progress=False)
    long = lsn.load_corpora({**TEXTS, "fr": ["word " * 200] * 10}, hold_out=0.0)
    with pytest.raises(ValueError, match=r"fr: document 0 has .* more than 64"):
        lsn.collect(model, long, [Rows()], progress=False)
    room = namedtuple("room", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room(1, 1, 20_000))
    with pytest.raises(OSError, match=r"most of it .*20,000 are free.*leave out a method") as caught:
        lsn.collect(model, corpora, [Rows()], tmp_path / "run", progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "run" / "shards").exists()
    plain = lsn.collect(load("gpt2"), corpora, ["lape"], progress=False)
    with pytest.raises(KeyError, match="no values of single documents"):
        plain.statistics.documents("q.mean", 0)
    with pytest.raises(ValueError, match=r"mlp_up.*has no blocks.0.mlp.hook_pre_linear"):
        lsn.collect(load("gpt2"), corpora, [Needs(Statistic("mlp_up", "sum"))], progress=False)
    optional = [Statistic("mlp_up", "sum", optional=True)]
    skipped = lsn.collect(load("gpt2"), corpora, ["lape"], extra=optional, progress=False)
    assert "mlp_up.sum" not in skipped.statistics.sums


@dataclass(frozen=True)
class Needs(Rows):
    """A method with one need."""

    need: Statistic

    def statistics(self):
        return (self.need,)


def test_a_key_that_was_not_collected_is_named(whole):
    with pytest.raises(KeyError, match=r"'k.mean@0'.*\['length', 'mlp_act.last', 'q.mean'\]"):
        whole.statistics.documents("k.mean", 0)
