"""Models whose position codes depend on the longest row of a batch ("longrope"): no row changes another one's."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import LAYERS, SENTENCES
from oracles import read_ids
from tiny import checkpoint

import lsn_lens as lsn
from lsn_lens.analysis import representations
from lsn_lens.analysis.lens.probes import WordProbe, word_probes
from lsn_lens.evaluation.by_document import document_losses
from lsn_lens.generation import continuations
from lsn_lens.methods.plnd import Plnd
from lsn_lens.model.structure import position_border
from lsn_lens.text.plan import Layout, Plan, row_ranges
from lsn_lens.text.tokens import tokenize

BORDER, CONTEXT = 40, 96
ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip
LONG = {
    "max_position_embeddings": CONTEXT, "original_max_position_embeddings": BORDER, "rope_parameters": ROPE,
}  # fmt: skip
LAYOUT = Layout(kind="documents", length=CONTEXT, equal=False, shards=2)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The model in TransformerLens and in transformers."""
    folder = checkpoint("phi3", tmp_path_factory.mktemp("long"), **LONG)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return lsn.load_model(folder, backend="bridge", device="cpu"), plain


@pytest.fixture(scope="module")
def texts(both):
    """Documents of each language on both sides of the border, two of them next to it."""
    tokenizer, found = both[0].tokenizer, {}
    digits = "".join(str(number * number % 97) for number in range(99))  # a token each
    for label, some in (("en", SENTENCES[0]), ("de", SENTENCES[1])):
        whole = some[:20] + digits
        exact = {len(tokenizer(whole[:end])["input_ids"]): whole[:end] for end in range(1, len(whole))}
        found[label] = [exact[size] for size in (9, BORDER - 1, BORDER, 20, 61, 12, 77, 30)]
        assert [len(tokenizer(text)["input_ids"]) + 1 > BORDER for text in found[label]] == [
            False, False, True, False, True, False, True, False,
        ]  # fmt: skip
    return found


@pytest.fixture(scope="module")
def corpora(texts):
    return {
        label: lsn.load_corpora({label: [text for each in some for text in (each, each + "!")]}, hold_out=0.5)[label]
        for label, some in texts.items()
    }


@torch.no_grad()
def nats_of(plain, ids, first=1):
    chances = plain(ids).logits[0, first - 1 : -1].double().log_softmax(-1)
    return -float(chances.gather(-1, ids[0, first:, None]).sum())


def test_rows_on_two_sides_of_the_border_are_apart():
    assert list(row_ranges([3, 4, 5, 9, 2, 2, 2], 2, 4)) == [range(2), range(2, 4), range(4, 6), range(6, 7)]
    assert list(row_ranges([3, 4, 5, 9, 2, 2, 2], 4)) == [range(4), range(4, 7)]
    assert list(row_ranges([5, 6], 4, 4)) == list(row_ranges([1, 4], 4, 4)) == [range(2)]
    assert list(row_ranges([], 4, 4)) == []


@pytest.mark.parametrize("border", [None, 4, 12])
def test_a_plan_keeps_rows_in_order(border, both, tmp_path):
    words = ["a b", "a b c", "river " * 9, "a", "Brücke " * 4, "x"] * 3
    made = {"en": tokenize("en", words, both[0].tokenizer, tmp_path, progress=False)}
    plan = Plan(made, Layout(kind="documents", shards=2, batch_tokens=200), 2048, border=border)
    plain = Plan(made, Layout(kind="documents", shards=2, batch_tokens=200), 2048)
    assert plan.shards == plain.shards
    assert ("border" in plan.describe()) == (border is not None)
    for shard in plan.shards:
        batches = list(plan.batches(shard))
        assert [row for batch in batches for row in batch.rows] == list(range(shard.first, shard.last))
        assert (len(batches) > len(list(plain.batches(shard)))) == (border is not None)
        for batch in batches:
            assert border is None or len(set((batch.keep.sum(1) > border).tolist())) == 1
    blocks = Plan(made, Layout(length=8, shards=2, batch_tokens=16), 2048, border=border)
    assert "border" not in blocks.describe()
    assert len(next(blocks.batches(blocks.shards[0])).rows) == 2


def test_the_border_is_the_models_own(both, load):
    assert position_border(both[0]) == BORDER
    assert position_border(load("llama")) is None


def test_every_plan_gets_the_border():
    package = Path(lsn.__file__).parent
    calls = [
        node
        for path in (*package.rglob("*.py"), *(package.parent / "experiments").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Plan"
    ]
    assert len(calls) >= 3
    assert all("border" in [each.arg for each in call.keywords] for call in calls)


def test_losses_are_those_of_one_document_at_a_time(both, corpora):
    model, plain = both
    table = lsn.perplexity_table(model, corpora, {}, layout=LAYOUT, progress=False).set_index("evaluated")
    documents = document_losses(model, corpora, progress=False)
    for label, corpus in corpora.items():
        every = [read_ids(text, model) for text in corpus.hold_out]
        nats = [nats_of(plain, ids) for ids in every]
        assert table["nll"][label] == pytest.approx(sum(nats) / sum(ids.shape[1] - 1 for ids in every), rel=1e-5)
        found = documents.loc[documents["language"].eq(label)]
        assert found["document"].tolist() == list(range(len(nats)))
        assert found["loss"].tolist() == pytest.approx(nats, rel=1e-5)


@torch.no_grad()
def test_sums_are_those_of_one_document_at_a_time(both, corpora):
    model, plain = both
    run = lsn.collect(model, corpora, ["lape"], layout=LAYOUT, progress=False)
    seen = {}
    for layer in range(LAYERS):
        plain.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda module, given, layer=layer: seen.update({layer: given[0][0].double()})
        )
    for place, label in enumerate(run.statistics.languages):
        total = 0
        for text in corpora[label].find:
            plain(read_ids(text, model))
            total = total + torch.stack([seen[layer].sum(0) for layer in range(LAYERS)])
        torch.testing.assert_close(run.statistics.sums["mlp_post.sum"][place], total, rtol=1e-4, atol=1e-4)


def test_continuations_embeddings_and_probes_do_not_depend_on_their_batch(both, texts):
    model, plain = both
    ids = [read_ids(text, model)[0].tolist() for each in texts.values() for text in each]
    scores = continuations.score(model, [continuations.Pair(row[:5], row[5:]) for row in ids], progress=False)
    for row, score in zip(ids, scores, strict=True):
        expected = -nats_of(plain, torch.tensor([row[:-1]]), 5)  # the last token is not read
        with torch.no_grad():
            expected += float(plain(torch.tensor([row[:-1]])).logits[0, -1].double().log_softmax(-1)[row[-1]])
        assert score.log_probability == pytest.approx(expected, rel=1e-5)
    together = representations.sentence_embeddings(model, texts, progress=False).values
    alone = [
        representations.sentence_embeddings(model, {label: [each[number]] for label, each in texts.items()},
                                            progress=False).values for number in range(len(texts["en"]))
    ]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-4, atol=1e-4)
    probes = [WordProbe({str(i): text}, {"en": "q", "de": "z"}) for i, text in enumerate(texts["en"])]
    measured = word_probes(model, probes, progress=False)["log_odds"]
    one = [word_probes(model, [probe], progress=False)["log_odds"] for probe in probes]
    assert measured.tolist() == pytest.approx(np.concatenate(one).tolist(), abs=1e-4)


def test_importances_use_the_codes_of_the_documents_side(both, texts):
    model, plnd = both[0], Plnd(bases=("q", "k"))

    def sums(keep):
        some = {label: [text for text in each if keep(text)] for label, each in texts.items()}
        corpora = lsn.load_corpora(some, hold_out=0.0)
        statistics = lsn.collect(model, corpora, [plnd], layout=LAYOUT, progress=False).statistics
        return torch.cat([statistics.get(f"{plnd.need.key}.{basis}.sum") for basis in "qk"], -1)

    def is_short(text):
        return read_ids(text, model).shape[1] <= BORDER

    parts = sums(is_short) + sums(lambda text: not is_short(text))
    torch.testing.assert_close(sums(lambda text: True), parts, rtol=1e-4, atol=1e-4)
