"""Packed blocks that begin with the BOS: its place, its count, and the losses behind it."""

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers
from conftest import ARCHITECTURES, BACKENDS, SENTENCES, VOCABULARY, tiny_tokenizer
from test_batches import BOS, Letters, batches_of, stream, tokens_of, words
from tokenizers import processors
from torch.nn.functional import cross_entropy

import lsn_lens as lsn
from lsn_lens.analysis.lens.layers import working_language
from lsn_lens.analysis.lens.vocabulary import TokenLanguages
from lsn_lens.evaluation import baseline
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.tokens import front_id

HABIT = Letters(begins=True)
START = 5  # the BOS of `made`, which is not its EOS
TEXTS = {"en": [f"{i} {SENTENCES[0] * (1 + i % 3)}" for i in range(12)],
         "de": [f"{i} {SENTENCES[1] * (1 + i % 4)}" for i in range(12)]}  # fmt: skip


def plan_of(texts, folder, tokenizer=HABIT, **settings):
    layout = Layout(**settings)
    given = {"separator": layout.separator, "bos": layout.bos, "max_tokens": layout.max_tokens}
    return Plan({"en": tokens_of(texts, folder, tokenizer, count_bytes=False, **given)}, layout, 64)


def by_hand(ids, length, front):
    """Blocks of a stream: each begins with `front`, its own where it has one."""
    rows, at = [], 0
    while True:
        row = ids[at : at + length] if ids[at : at + 1] == [front] else [front, *ids[at : at + length - 1]]
        if len(row) < length or at >= len(ids):
            return rows, at
        rows.append(row)
        at += length - (ids[at] != front)


@pytest.mark.parametrize(("separator", "front"), [("bos", [BOS]), ("eos", [301]), ("none", [])])
@pytest.mark.parametrize("length", [2, 7, 32])
@pytest.mark.parametrize("seed", range(3))
def test_every_block_begins_with_the_bos_and_every_token_is_there_once(separator, front, length, seed, tmp_path):
    texts = [*words(seed, 40), "a" * (length - 1), "b" * (2 * length)]
    ids = stream(texts, front)
    expected, used = by_hand(ids, length, BOS)
    plan = plan_of(texts, tmp_path, separator=separator, bos=True, length=length, shards=3, batch_tokens=4 * length)
    batches = batches_of(plan, "en")
    rows = torch.cat([batch.ids for batch in batches])
    assert rows.tolist() == expected and (rows[:, 0] == BOS).all()
    blocks = plan.blocks["en"]
    places = torch.cat([blocks.positions(batch.rows) for batch in batches])
    counted = places[torch.from_numpy(~blocks.fronted)].flatten().tolist()
    counted += places[torch.from_numpy(blocks.fronted), 1:].flatten().tolist()
    assert sorted(counted) == list(range(used))
    assert all(ids[place] == token for place, token in zip(places[:, 1:].flatten(), rows[:, 1:].flatten(), strict=True))
    assert plan.rows["en"] * length == sum(map(plan.tokens_of, plan.shards)) == rows.numel()


def test_a_block_that_begins_with_a_document_gets_no_second_bos(tmp_path):
    plan = plan_of(["abc", "def", "ghijkl"], tmp_path, length=4)
    rows = torch.cat([batch.ids for batch in batches_of(plan, "en")]).tolist()
    assert rows == [[BOS, *b"abc"], [BOS, *b"def"], [BOS, *b"ghi"], [BOS, *b"jkl"]]
    assert plan.place("en", 3) == "document 2"
    crossing = plan_of(["ab", "cdefg"], tmp_path, length=4)
    rows = torch.cat([batch.ids for batch in batches_of(crossing, "en")]).tolist()
    assert rows == [[BOS, *b"ab", BOS], [BOS, *b"cde"]]
    assert crossing.place("en", 0) == "documents 0 to 1" and crossing.place("en", 1) == "document 1"


@pytest.mark.parametrize(
    ("tokenizer", "settings", "expected"),
    [
        (HABIT, {}, BOS),
        (HABIT, {"bos": False}, None),
        (HABIT, {"separator": "none"}, None),
        (HABIT, {"separator": "eos"}, None),
        (HABIT, {"separator": "none", "bos": True}, BOS),
        (Letters(), {}, None),
        (Letters(), {"bos": True}, BOS),
        (Letters(bos=None), {}, None),
        (Letters(bos=None), {"bos": True}, 301),
        (Letters(bos=None, eos=None), {"separator": "none"}, None),
    ],
)
def test_when_blocks_begin_with_the_bos(tokenizer, settings, expected, tmp_path):
    layout = Layout(length=8, **settings)
    assert front_id(tokenizer, layout.separator, layout.bos) == expected
    plan = plan_of(words(0, 40), tmp_path, tokenizer, length=8, **settings)
    assert plan.describe()["layout"]["bos"] is (expected is not None)
    if expected is None:  # as it is without this setting: the stream itself
        rows = torch.cat([batch.ids for batch in batches_of(plan, "en")])
        assert rows.flatten().tolist() == plan.tokens["en"].read(0, rows.numel()).tolist()


def test_documents_begin_with_their_separator_alone(tmp_path):
    plan = plan_of(["abc", "de"], tmp_path, kind="documents", bos=True)
    assert batches_of(plan, "en")[0].ids.tolist() == [[BOS, *b"abc"]]
    assert plan.describe()["layout"]["bos"] is None


@pytest.mark.parametrize("cap", [40, 41, 100])
def test_blocks_stay_within_the_budget(cap, tmp_path):
    plan = plan_of(["abcdefghi"] * 50, tmp_path, length=8, max_tokens=cap)
    assert sum(batch.ids.numel() for batch in batches_of(plan, "en")) == cap // 8 * 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bos": "yes"}, "bos='yes': expected True, False or None"),
        ({"bos": True, "separator": "eos", "kind": "documents"}, "bos=True with separator='eos'"),
        ({"bos": True, "separator": "none", "kind": "auto"}, "bos=True with separator='none'"),
    ],
)
def test_what_cannot_be_meant(settings, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: types are not checked before
    with pytest.raises(ValueError, match=said):
        Layout(**settings)


def test_a_block_of_one_token_would_be_the_bos(tmp_path):
    with pytest.raises(ValueError, match="length=1 leaves no room"):
        plan_of(["abc"], tmp_path, length=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer begins each text with its BOS by itself."""
    model_type, sizes = ARCHITECTURES["llama"]
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, bos_token_id=START, eos_token_id=0, pad_token_id=0, **sizes
    )
    tokenizer = tiny_tokenizer()
    own = tokenizer.convert_ids_to_tokens(START)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{own} $A", special_tokens=[(own, START)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=own, eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    return tiny.save(
        transformers.AutoModelForCausalLM.from_config(config), tmp_path_factory.mktemp("bos") / "model", tokenizer
    )


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, folder):
    return lsn.load_model(folder, backend=request.param, device="cpu")


def brute(folder, tokenizer, texts, length, rows):
    """Each document's loss and its scored tokens, by plain transformers, from blocks made by hand."""
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, owner = [], []
    for number, text in enumerate(texts):
        own = [START, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids, owner = ids + own, owner + [number] * len(own)
    losses, counts, at = np.zeros(len(texts)), np.zeros(len(texts)), 0
    for _ in range(rows):
        fronted = ids[at] != START
        row = [START] * fronted + ids[at : at + length - fronted]
        owners = [-1] * fronted + owner[at : at + length - fronted]
        with torch.no_grad():
            nats = cross_entropy(hf_model(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="none")
        for place in range(1, length):
            if row[place] != START:
                losses[owners[place]] += float(nats[place - 1])
                counts[owners[place]] += 1
        at += length - fronted
    return losses, counts


def test_losses_by_document_are_those_of_blocks_made_by_hand(model, folder):
    assert model.tokenizer("x")["input_ids"][0] == START
    corpora = lsn.load_corpora(TEXTS, hold_out=0.5)
    text = baseline.held_out(model, corpora, Layout(length=24, batch_tokens=96), progress=False)
    assert text.plan.layout.bos is True and text.unchanged.attrs["text"]["layout"]["bos"] is True
    for label, frame in text.by_document(progress=False).groupby("language"):
        documents = list(corpora[label].hold_out)
        losses, counts = brute(folder, model.tokenizer, documents, 24, text.plan.rows[label])
        seen = counts[: len(frame)]
        assert frame["tokens"].tolist() == seen.tolist() and not counts[len(frame) :].any()
        assert frame["loss"].fillna(0).to_numpy() == pytest.approx(losses[: len(frame)], abs=1e-4)
        spelt = [len(each.encode()) for each in documents]
        whole = frame["document"] < len(frame) - 1
        assert frame["bytes"][whole].tolist() == [each for each, use in zip(spelt, whole, strict=False) if use]


def test_a_run_says_it_and_is_not_mixed(model, tmp_path):
    corpora = lsn.load_corpora(TEXTS)
    layout = Layout(length=16)
    run = lsn.collect(model, corpora, ["lape"], layout=layout, out=tmp_path / "run", progress=False)
    assert run.settings["text"]["layout"]["bos"] is True
    used = run.to_frame()["tokens_used"].tolist()
    assert run.statistics.tokens[:, 0].tolist() == used and all(count % 16 == 0 for count in used)
    with pytest.raises(ValueError, match="layout bos was True, now False"):
        lsn.collect(
            model, corpora, ["lape", "lap"], layout=Layout(length=16, bos=False), out=tmp_path / "run", progress=False
        )
    more = lsn.collect(model, corpora, ["lape", "lap"], layout=layout, out=tmp_path / "run", progress=False)
    assert more.settings["text"]["layout"] == run.settings["text"]["layout"]
    stored = Layout(**run.settings["text"]["layout"])  # a run's layout can be asked for again
    assert stored.bos is True and stored.length == 16


@pytest.mark.parametrize("separator", ["bos", "eos", "none"])
def test_the_lens_leaves_it_out(model, separator):
    """As it leaves out separators: its share in the text is 0, though it is a language of its own here."""
    labels = torch.arange(VOCABULARY) % 2
    labels[START] = 2
    some = torch.ones(3, VOCABULARY, dtype=torch.long)
    known = TokenLanguages(("a", "b", "bos"), labels, labels > 2, some, some, pd.DataFrame())
    table = working_language(
        model, TEXTS, known, layout=Layout(length=16, separator=separator, bos=True), progress=False
    )
    assert (table.loc[table["language"].eq("bos"), "text_share"] == 0).all()
    assert table.attrs["text"]["layout"]["bos"] is True
