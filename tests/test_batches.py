"""From documents to tokens on disk to a plan of batches in shards."""

import errno
import hashlib
import json
import os
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import jaxtyping
import numpy as np
import pytest
import torch

from lsn_lens.text import tokens
from lsn_lens.text.plan import Layout, Plan, corpus_hash, tokens_at_once
from lsn_lens.text.tokens import separator_id, tokenize

BOS, EOS = 300, 301


class Letters:
    """A tokenizer with one token a UTF-8 byte; "#" has none. With `begins`, it begins texts with its BOS by itself."""

    def __init__(self, bos=BOS, eos=EOS, begins=False):
        self.bos_token_id, self.eos_token_id, self.begins = bos, eos, begins

    def __call__(self, texts, add_special_tokens=True):
        front = [self.bos_token_id] if self.begins and add_special_tokens else []
        return {"input_ids": [[*front, *text.replace("#", "").encode()] for text in texts]}


class Documents(list):
    """A list of texts with counts of what was left out."""

    skipped = {"not JSON": 2}  # noqa: RUF012


def words(seed, n, longest=30):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return ["".join(chr(97 + (seed + i + j) % 26) for j in range(size)) for i, size in enumerate(sizes)]


def tokens_of(texts, folder, tokenizer=None, language="en", **settings):
    return tokenize(language, texts, tokenizer or Letters(), folder, progress=False, **settings)


def plan_of(texts, folder, context=32, **settings):
    """A plan over a mapping of language to texts."""
    layout = Layout(**settings)
    made = {
        label: tokens_of(each, folder, language=label, separator=layout.separator, max_tokens=layout.max_tokens)
        for label, each in texts.items()
    }
    return Plan(made, layout, context)


def stream(texts, front=(BOS,)):
    """The ids that a language's stream must have."""
    return [token for text in texts for token in [*front, *text.encode()]]


def batches_of(plan, language):
    return [batch for shard in plan.shards if shard.language == language for batch in plan.batches(shard)]


# tokens


@pytest.mark.parametrize(
    ("separator", "tokenizer", "expected"),
    [
        ("bos", Letters(), BOS),
        ("eos", Letters(), EOS),
        ("none", Letters(), None),
        ("bos", Letters(bos=None), EOS),
        ("none", Letters(bos=None, eos=None), None),
        ("bos", Letters(bos=0), 0),
    ],
)
def test_separators(separator, tokenizer, expected, tmp_path):
    assert separator_id(tokenizer, separator) == expected
    made = tokens_of(["ab", "c"], tmp_path, tokenizer, separator=separator)
    assert made.read(0, made.n_tokens).tolist() == stream(["ab", "c"], () if expected is None else (expected,))


@pytest.mark.parametrize(("separator", "tokenizer"), [("eos", Letters(eos=None)), ("bos", Letters(bos=None, eos=None))])
def test_a_separator_that_the_tokenizer_lacks(separator, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=rf"no '{separator}' token; use separator='none'"):
        tokens_of(["ab"], tmp_path, tokenizer, separator=separator)


def test_tokens_on_disk(tmp_path):
    texts = [*words(0, 700), "Üñï 字"]  # more than are encoded at once
    made = tokens_of(texts, tmp_path)
    ids = stream(texts)
    assert made.n_tokens == len(ids)
    assert made.read(0, len(ids)).tolist() == ids
    assert made.read(100, 105).tolist() == ids[100:105]
    assert made.n_bytes == sum(len(text.encode()) for text in texts)
    assert np.diff(made.ends, prepend=0).tolist() == [1 + len(text.encode()) for text in texts]
    positions = [made.document_of(position) for position in range(len(ids))]
    assert positions == [i for i, text in enumerate(texts) for _ in range(1 + len(text.encode()))]
    assert made.path.stat().st_size == 4 * len(ids)
    other = tokens_of(["x"], tmp_path, language="fr")
    assert other.path != made.path


def test_max_tokens_stops_at_the_document_that_reaches_it(tmp_path):
    texts = ["abcd", "efgh", "ijkl"]  # 5 tokens each, with the separator
    for cap, expected in ((1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (1000, 3)):
        made = tokens_of(texts, tmp_path, max_tokens=cap)
        assert (len(made.ends), made.n_tokens) == (expected, 5 * expected)
        assert made.n_bytes == 4 * expected


def test_no_more_documents_are_read_than_needed(tmp_path):
    def endless():
        while True:
            yield "abcd"

    assert tokens_of(endless(), tmp_path, max_tokens=10_000).n_tokens == 10_000


@pytest.mark.parametrize(
    "other", [["ab", "c "], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", "d"], ["ab"], ["ab", "C"]]
)
def test_the_hash_changes_with_the_text(other, tmp_path):
    texts = ["ab", "c"]
    made, again, changed = (tokens_of(each, tmp_path) for each in (texts, texts, other))
    assert made.sha256 == again.sha256 != changed.sha256
    assert made.sha256 == hashlib.sha256(b"\2" + b"\0" * 7 + b"ab" + b"\1" + b"\0" * 7 + b"c").hexdigest()


def test_no_text_is_an_error_that_says_what_was_left_out(tmp_path):
    with pytest.raises(ValueError, match=r"^en: no text\. .* for this part\.$"):
        tokens_of([], tmp_path)
    with pytest.raises(ValueError, match=r"en: no text.*Records left out: \{'not JSON': 2\}"):
        tokens_of(Documents(), tmp_path)


def test_documents_without_tokens_are_counted(tmp_path):
    made = tokens_of(Documents(["ab", "##", "c"]), tmp_path, separator="none")
    assert made.ends.tolist() == [2, 3]
    assert made.skipped == {"not JSON": 2, "no tokens": 1}
    with pytest.raises(ValueError, match="no tokens"):
        tokens_of(["#", "##"], tmp_path, separator="none")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    assert tokens_of(["z"], tmp_path, separator="none", d_vocab=ord("z") + 1).n_tokens == 1
    with pytest.raises(ValueError, match=r"en: the tokenizer gives id 122, but the model knows 122 tokens"):
        tokens_of(["az"], tmp_path, separator="none", d_vocab=ord("z"))


def test_a_full_disk_while_tokenising(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lsn_lens.text.tokens.open", lambda *_: FullFile(no_space), raising=False)
    with pytest.raises(OSError, match=r"No space left .* tokens of en\. Make room, or set TMPDIR") as caught:
        tokens_of(["ab"], tmp_path)
    assert caught.value.errno == errno.ENOSPC


class FullFile:
    """A file that cannot be written to."""

    def __init__(self, write):
        self.write = write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


# layouts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lines"}, r"kind='lines': expected one of \('blocks', 'documents', 'auto'\)"),
        ({"separator": "pad"}, r"separator='pad'"),
        ({"length": 0}, "length=0: expected a whole number of 1 or more"),
        ({"length": 1.5}, "length=1.5"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"batch_tokens": None}, "batch_tokens=None"),
        ({"shards": "4"}, "shards='4'"),
    ],
)
def test_layouts_that_cannot_be(settings, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: types are not checked before
    with pytest.raises(ValueError, match=message):
        Layout(**settings)


# blocks


@pytest.mark.parametrize("length", [1, 7, 32])
@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
@pytest.mark.parametrize("shards", [1, 3, 10_000])
@pytest.mark.parametrize("separator", ["bos", "none"])
def test_blocks_are_the_stream_cut_into_whole_pieces(length, batch_tokens, shards, separator, tmp_path):
    texts = words(1, 25)
    plan = plan_of(
        {"en": texts}, tmp_path, length=length, batch_tokens=batch_tokens, shards=shards, separator=separator
    )
    ids = stream(texts, (BOS,) if separator == "bos" else ())
    made = batches_of(plan, "en")
    assert all(batch.ids.shape[1] == length and not batch.padded and batch.keep.all() for batch in made)
    assert all(batch.ids.numel() <= max(batch_tokens, length) for batch in made)
    used = torch.cat([batch.ids.flatten() for batch in made]).tolist()
    assert used == ids[: len(ids) // length * length]
    assert [row for batch in made for row in batch.rows] == list(range(len(ids) // length))


def test_max_tokens_cuts_blocks_to_the_cap(tmp_path):
    texts = {"en": ["abcdefghi"] * 50, "fr": ["x" * 25] * 50}  # 10 and 26 tokens a document
    plan = plan_of(texts, tmp_path, length=8, max_tokens=100, equal=False)
    assert plan.tokens["en"].n_tokens == 100
    assert plan.tokens["fr"].n_tokens == 104  # the document that reached the cap is whole on disk
    assert plan.rows == {"en": 12, "fr": 12}
    assert sum(batch.ids.numel() for batch in batches_of(plan, "fr")) == 96


def test_languages_get_the_same_budget_unless_asked_otherwise(tmp_path):
    texts = {"en": words(1, 90), "fr": words(2, 40), "zh": ["字" * 9] * 60}
    plan = plan_of(texts, tmp_path, length=16)
    smallest = min(each.n_tokens for each in plan.tokens.values()) // 16
    assert set(plan.rows.values()) == {smallest}
    described = plan.describe()["languages"]
    assert {each["tokens_used"] for each in described.values()} == {16 * smallest}
    free = plan_of(texts, tmp_path, length=16, equal=False)
    assert free.rows == {label: each.n_tokens // 16 for label, each in free.tokens.items()}
    documents = plan_of(texts, tmp_path, kind="documents")
    assert set(documents.rows.values()) == {40}


@pytest.mark.parametrize(
    ("n_tokens", "context", "shards", "expected"),
    [
        (16 * 512, 512, 16, 512),  # enough for the context
        (16 * 512 - 1, 512, 16, 256),
        (16 * 200, 512, 16, 128),
        (200, 512, 16, 128),  # never below 128 by itself
        (4000, 200, 100, 128),
        (300, 64, 100, 64),  # unless the context is
        (512, 512, 1, 512),
    ],
)
def test_the_length_of_a_block_by_default(n_tokens, context, shards, expected, tmp_path):
    plan = plan_of({"en": ["x" * n_tokens]}, tmp_path, context=context, shards=shards, separator="none")
    assert plan.length == plan.describe()["layout"]["length"] == expected


BIG = 3_000_000


def big(folder, n=BIG, languages=("en", "fr")):
    """Much text, without its tokens."""
    return {label: tokens.Tokens(label, folder, np.array([n // 3, n]), n, "") for label in languages}


@pytest.mark.parametrize("context", [131_072, 10**9, 10**30, None, 0, -1])
@pytest.mark.parametrize("n", [20_000, 100_000, BIG])
@pytest.mark.parametrize("shards", [1, 16])
@pytest.mark.parametrize("at_once", [None, 512])
def test_rows_by_default_stay_short_whatever_the_context(context, n, shards, at_once, tmp_path):
    layout = Layout(shards=shards)
    plan = Plan(big(tmp_path, n), layout, context, at_once)
    assert plan.length <= 2048 and plan.length * plan.batch_rows <= tokens_at_once(layout, context) == 4096
    assert plan.length == Plan(big(tmp_path, n), layout, context).length  # the same on every device
    assert plan.describe() == Plan(big(tmp_path, n), layout, context).describe()


@pytest.mark.parametrize("batch_tokens", [130, 500, 2048, 5000])
def test_no_block_by_default_is_longer_than_a_batch(batch_tokens, tmp_path):
    layout = Layout(batch_tokens=batch_tokens)
    plan = Plan(big(tmp_path), layout, 131_072)
    assert plan.length == min(2048, batch_tokens)
    assert plan.length * plan.batch_rows <= tokens_at_once(layout, 131_072)


def test_a_length_that_is_asked_for_is_had(tmp_path):
    layout = Layout(length=65_536)
    for at_once in (None, 512):
        plan = Plan(big(tmp_path), layout, 131_072, at_once)
        assert (plan.length, plan.batch_rows) == (65_536, 1)
    assert tokens_at_once(layout, 131_072) == 65_536
    assert Plan(big(tmp_path), replace(layout, kind="documents", length=10**7), None).length == BIG * 2 // 3


def test_documents_beyond_the_default_are_had_by_asking(tmp_path):
    made = big(tmp_path, 9000)
    with pytest.raises(ValueError, match=r"en: document 1 has 6000 tokens, more than 2048.*length=.*context of 131072"):
        Plan(made, Layout(kind="documents"), 131_072)
    assert Plan(made, Layout(kind="documents", length=8000), 131_072).length == 6000
    with pytest.raises(ValueError, match=r"more than 2048\. Cut the documents, or use the layout .blocks.\.$"):
        Plan(made, Layout(kind="documents"), 2048)


def test_auto_is_documents_where_all_fit(tmp_path):
    texts = {"en": ["a" * 5, "b" * 31], "fr": ["c" * 9] * 9}
    assert plan_of(texts, tmp_path, kind="auto").layout.kind == "documents"
    blocks = plan_of({**texts, "zh": ["d" * 32]}, tmp_path, kind="auto", length=8)
    assert blocks.layout.kind == "blocks" and blocks.length == 8
    assert blocks.too_long.startswith("zh: document 0 has 33 tokens, more than 8")
    assert blocks.describe()["layout"]["kind"] == "blocks"


def test_a_document_that_was_cut_off_is_no_row(tmp_path):
    cut = {label: replace(each, is_cut=label == "fr") for label, each in big(tmp_path, 900).items()}
    assert Plan(cut, Layout(kind="auto"), 2048).layout.kind == "blocks"
    with pytest.raises(ValueError, match="fr: document 1 is so long"):
        Plan(cut, Layout(kind="documents"), 2048)


def test_the_cap_counts_when_a_length_is_chosen(tmp_path):
    """One long document is read beyond the cap, but no block lies beyond it."""
    plan = Plan(big(tmp_path), Layout(max_tokens=1000, shards=1), 2048)
    assert (plan.length, plan.rows) == (512, {"en": 1, "fr": 1})


def test_text_shorter_than_a_block(tmp_path):
    with pytest.raises(ValueError, match=r"fr: 9 tokens are less than one block of 16\. Give more text, a smaller"):
        plan_of({"en": ["a" * 40], "fr": ["b" * 8]}, tmp_path, length=16)


def test_a_length_beyond_the_context(tmp_path):
    for kind in ("blocks", "documents"):
        with pytest.raises(ValueError, match="length=33 is beyond the model's context of 32"):
            plan_of({"en": ["a" * 40]}, tmp_path, kind=kind, length=33)


def test_place_names_the_documents_of_a_block(tmp_path):
    plan = plan_of({"en": ["a" * 7, "b" * 3, "c", "d" * 8]}, tmp_path, length=8, separator="none")
    assert [plan.place("en", row) for row in range(2)] == ["documents 0 to 1", "documents 1 to 3"]
    plan = plan_of({"en": ["a" * 7, "b" * 3]}, tmp_path, length=4)  # 8 and 4 tokens with the separator
    assert [plan.place("en", row) for row in range(3)] == ["document 0", "document 0", "document 1"]
    assert plan_of({"en": ["a", "b"]}, tmp_path, kind="documents").place("en", 1) == "document 1"


# documents


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
@pytest.mark.parametrize("shards", [1, 7, 10_000])
def test_documents_are_rows_padded_on_the_right(batch_tokens, shards, tmp_path):
    texts = words(3, 50)
    plan = plan_of({"en": texts}, tmp_path, kind="documents", batch_tokens=batch_tokens, shards=shards)
    rows = []
    for batch in batches_of(plan, "en"):
        sizes = batch.keep.sum(1)
        assert torch.equal(batch.keep, torch.arange(batch.ids.shape[1])[None] < sizes[:, None])
        assert batch.ids.shape[1] == sizes.max()
        assert not batch.ids[~batch.keep].any()
        assert batch.padded == (len(set(sizes.tolist())) > 1)
        rows += [ids[keep].tolist() for ids, keep in zip(batch.ids, batch.keep, strict=True)]
    assert rows == [stream([text]) for text in texts]


def test_a_document_longer_than_the_context(tmp_path):
    texts = {"en": ["a", "b"], "fr": ["c", "d" * 40, "e" * 35]}
    with pytest.raises(ValueError, match=r"fr: document 1 has 41 tokens, more than 32\. Cut the documents, or"):
        plan_of(texts, tmp_path, kind="documents")
    with pytest.raises(ValueError, match="fr: document 1 has 41 tokens, more than 20"):
        plan_of(texts, tmp_path, kind="documents", length=20)


# shards


@pytest.mark.parametrize("kind", ["blocks", "documents"])
@pytest.mark.parametrize(
    ("n", "shards", "expected"), [(100, 16, 16), (100, 1, 1), (5, 16, 5), (1, 16, 1), (16, 16, 16)]
)
def test_shards_divide_the_rows_evenly(kind, n, shards, expected, tmp_path):
    plan = plan_of({"en": ["a" * 7] * n}, tmp_path, kind=kind, length=8, shards=shards)
    assert len(plan.shards) == expected
    edges = [plan.shards[0].first, *(shard.last for shard in plan.shards)]
    assert (edges[0], edges[-1]) == (0, n)
    assert all(shard.first == last.last for last, shard in pairwise(plan.shards))
    sizes = [shard.last - shard.first for shard in plan.shards]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert [shard.name for shard in plan.shards][:2] == ["en-00000", "en-00001"][:expected]


@pytest.mark.parametrize("kind", ["blocks", "documents"])
def test_every_token_of_the_plan_is_in_one_batch_of_one_shard(kind, tmp_path):
    texts = {"en": words(1, 80), "fr": words(2, 70), "zh": ["字" * 5] * 75}
    plan = plan_of(texts, tmp_path, kind=kind, batch_tokens=100, shards=6)
    for label, each in plan.tokens.items():
        kept = torch.cat([batch.ids[batch.keep] for batch in batches_of(plan, label)])
        assert torch.equal(kept, each.read(0, len(kept)))
        shards = [shard for shard in plan.shards if shard.language == label]
        assert sum(map(plan.tokens_of, shards)) == len(kept) == plan.describe()["languages"][label]["tokens_used"]
        for shard in shards:
            assert sum(int(batch.keep.sum()) for batch in plan.batches(shard)) == plan.tokens_of(shard)
        assert {batch.language for batch in batches_of(plan, label)} == {label}


@pytest.mark.parametrize("kind", ["blocks", "documents"])
def test_a_plan_is_a_function_of_its_input(kind, tmp_path):
    texts = {"en": words(1, 80), "fr": words(2, 70)}
    one, two = (plan_of(texts, tmp_path, kind=kind, batch_tokens=100) for _ in range(2))
    assert one.shards == two.shards
    assert one.describe() == two.describe()
    for label in texts:
        for first, second in zip(batches_of(one, label), batches_of(two, label), strict=True):
            assert torch.equal(first.ids, second.ids)
            assert torch.equal(first.keep, second.keep)


def test_a_plan_describes_itself_in_plain_data(tmp_path):
    plan = plan_of({"en": ["a" * 7] * 9, "fr": ["é" * 3] * 10}, tmp_path, length=8, max_tokens=70)
    described = plan.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["layout"]["max_tokens"] == 70
    french = described["languages"]["fr"]
    assert (french["tokens_used"], french["tokens"], french["documents"], french["bytes"]) == (64, 70, 10, 60)
    other = plan_of({"en": ["a" * 7] * 9, "fr": ["e" * 6] * 10}, tmp_path, length=8, max_tokens=70).describe()
    assert corpus_hash(described) == corpus_hash(plan.describe()) != corpus_hash(other)


def test_memory_does_not_grow_with_the_text(tmp_path):
    def peak(n):
        tracemalloc.start()
        made = tokens_of(("a" * 49 for _ in range(n)), tmp_path)
        plan = Plan({"en": made}, Layout(length=50, batch_tokens=2000), context=50)
        seen = sum(int(batch.keep.sum()) for shard in plan.shards for batch in plan.batches(shard))
        assert seen == 50 * n
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(512)  # warm up
    assert peak(5120) < 1.1 * peak(512) + 3 * 8 * 5120  # where each document ends is kept in memory
