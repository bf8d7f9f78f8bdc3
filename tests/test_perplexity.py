"""Losses are those of the tokens that were scored, and bits per byte of the bytes that these stand for."""

import math
import warnings
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from conftest import D_MLP, LAYERS, SENTENCES, VOCABULARY, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import lsn_lens as lsn
from lsn_lens.evaluation import baseline, perplexity
from lsn_lens.evaluation.by_document import document_losses, rise_intervals
from lsn_lens.model import unembedding
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Layout, Plan
from lsn_lens.text.token_bytes import UNKNOWN, TokenBytes, is_byte_level
from lsn_lens.text.tokens import tokenize

TEXTS = (
    "The river is high after the rain.",
    "  two spaces before, a tab\tand three after   ",
    "雨后河水上涨,桥已经关闭。",
    "กำแพงเมืองเก่า",  # Thai, with a vowel that NFKC takes apart
    "👩‍🚀 flies to 🌍!\n\nA new line.",
    "re\u0301sume\u0301 and résumé, ﬁne ①",
    "Ünïcödé İstanbul \u017f",
    "x",
    "\u200bzero width\u00ad and a control \x07 here",
)
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def trained(tokenizer, kind, special=(), **settings):
    settings = {"vocab_size": VOCABULARY - 2, "special_tokens": ["<s>", *special], "show_progress": False, **settings}
    tokenizer.train_from_iterator(SENTENCES, kind(**settings))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def byte_level(normalizer=None, add_prefix_space=False, trim=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=ALPHABET)


def sentencepiece(prepend=True):
    """As Llama 2's (with a space in front) and Gemma's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prepend else space
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return trained(tokenizer, trainers.BpeTrainer, ["<unk>", *fallback])


def unigram():
    """As T5's and XLM-R's: NFKC, several spaces are one, none at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer, ["<unk>"], unk_token="<unk>")


def wordpiece():
    """As BERT's: lower case, accents and control characters dropped."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer, ["[UNK]"])


class Slow:
    """A tokenizer without offsets; `lower` keeps its tokens from spelling the text."""

    is_fast, bos_token_id, eos_token_id, pad_token_id, added_tokens_decoder = False, 0, 0, 0, {}
    padding_side = "right"

    def __init__(self, lower=False):
        self.lower = lower

    def __call__(self, texts, add_special_tokens=True):
        ids = [[1 + ord(letter) % 250 for letter in (text.lower() if self.lower else text)] for text in texts]
        return {"input_ids": ids}

    def convert_ids_to_tokens(self, token):
        return chr(token - 1)


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, space in front": lambda: byte_level(add_prefix_space=True),
    "byte-level, trimmed offsets": lambda: byte_level(add_prefix_space=True, trim=True),
    "byte-level, NFC": lambda: byte_level(normalizers.NFC()),
    "byte-level, NFKC and trimmed": lambda: byte_level(normalizers.NFKC(), trim=True),
    "sentencepiece, space in front": sentencepiece,
    "sentencepiece": lambda: sentencepiece(prepend=False),
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def counted(tokenizer, text):
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    sizes = TokenBytes(tokenizer).of(text, ids, encoded["offset_mapping"])
    return tokenizer.convert_ids_to_tokens(ids), sizes.tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_of_a_text_sum_to_its_bytes(name):
    tokenizer = TOKENIZERS[name]()
    for text in (*TEXTS, *SENTENCES, "".join(TEXTS)):
        tokens, sizes = counted(tokenizer, text)
        assert len(tokens) == len(sizes) > 0 and min(sizes) >= 0
        assert sum(sizes) == len(text.encode()), (text, tokens, sizes)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith("byte-level")])
def test_each_letter_of_a_byte_level_token_is_a_byte(name):
    """Also where a normaliser is there but had nothing to do, and where offsets leave spaces out."""
    for text in (TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[4].strip()):
        tokens, sizes = counted(TOKENIZERS[name](), text)
        expected = [len(token) for token in tokens]
        expected[0] -= sum(expected) - len(text.encode())  # the space that the tokenizer puts in front
        if "NFKC" not in name:
            assert sizes == expected
    assert is_byte_level(TOKENIZERS[name]())


def test_parts_of_a_character_share_its_bytes():
    """Where the text was normalised elsewhere, so that only offsets say what a token is."""
    tokens, sizes = counted(byte_level(normalizers.NFC()), "e\u0301 😀")
    assert tokens == ["Ã", "©", "Ġ", "ð", "Ł", "ĺ", "Ģ"]
    assert sizes == [1, 2, 1, 1, 1, 1, 1]  # e and its accent are three bytes
    tokens, sizes = counted(sentencepiece(), "▁ x😀")  # a text with sentencepiece's own letter
    assert sum(sizes) == 3 + 1 + 1 + 4
    assert sizes[-4:] == [1, 1, 1, 1] and tokens[-1] == "<0x80>"


def test_what_a_normaliser_drops_is_counted_with_a_neighbour():
    tokens, sizes = counted(wordpiece(), "  The re\u0301gen 雨  ")
    assert (tokens[0], sizes[0]) == ("the", 5)  # spaces in front
    assert tokens[-1] == "雨" and sizes[-1] == 1 + 3 + 2  # a space before, and those at the end, where nothing follows
    assert sum(sizes[1:-1]) == 1 + len("re\u0301gen".encode())
    tokens, sizes = counted(wordpiece(), "e\u0301 x")
    assert sizes == [3, 2]  # the accent belongs to its letter, the space to what comes after


def test_slow_tokenizers_are_exact_or_say_that_they_do_not_know():
    assert TokenBytes(Slow()).of("abc", [98, 99, 100], None).tolist() == [1, 1, 1]
    assert TokenBytes(Slow()).of("ABC", [98, 99, 100], None).tolist() == [UNKNOWN] * 3


# by hand


def give_tokenizer(monkeypatch, model, tokenizer):
    """Past a bridge's own setter, which would load the tokenizer anew."""
    monkeypatch.setattr(model, "_tokenizer" if hasattr(model, "_tokenizer") else "tokenizer", tokenizer)


def corpora_of(texts):
    loaded = lsn.load_corpora(texts, hold_out=0.0)
    return {label: LanguageCorpus(label, each.hold_out, each.find) for label, each in loaded.items()}


def no_units(languages=("x",)):
    return lsn.NeuronSet(languages, {"mlp": torch.zeros(len(languages), LAYERS, D_MLP, dtype=torch.bool)})


def all_units(languages=("x",)):
    return lsn.NeuronSet(languages, {"mlp": torch.ones(len(languages), LAYERS, D_MLP, dtype=torch.bool)})


def bytes_by_hand(tokenizer, text):
    """From the names of the tokens, written apart: a letter is a byte, or "▁" a space and `<0xNN>` a byte."""
    tokens = tokenizer.tokenize(text)
    if "ByteLevel" in str(tokenizer.backend_tokenizer.pre_tokenizer):
        return [len(token) for token in tokens]
    sizes = [1 if token.startswith("<0x") else len(token.replace("▁", " ").encode()) for token in tokens]
    sizes[0] -= tokenizer.backend_tokenizer.normalizer.normalize_str("x").startswith("▁")
    return sizes


@torch.no_grad()
def by_hand(model, documents, layout, rows):
    """Nats and bytes of the scored tokens, row by row and without padding."""
    stream, tokenizer = [], model.tokenizer
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        front = [] if layout.separator == "none" else [(tokenizer.bos_token_id, 0)]
        stream.append([*front, *zip(ids, bytes_by_hand(tokenizer, text), strict=True)])
    if layout.kind == "blocks":
        flat = [each for row in stream for each in row]
        stream = [flat[first : first + layout.length] for first in range(0, len(flat), layout.length)]
    nats = size = count = 0
    for row in stream[:rows]:
        ids = torch.tensor([[token for token, _ in row]])
        logs = model(ids, return_type="logits")[0].double().log_softmax(-1)
        for place, (token, n_bytes) in enumerate(row):
            if place and not (layout.separator != "none" and token == tokenizer.bos_token_id):
                nats, size, count = nats - float(logs[place - 1, token]), size + n_bytes, count + 1
    return nats, size, count


MIXED = {  # lengths and bytes per token differ much within a language: a cut is no sample of the whole
    "en": [*TEXTS[:2], TEXTS[4].strip(), *TEXTS[2:4]],
    "zh": [SENTENCES[3] * 2, TEXTS[0], TEXTS[5]],
}
LAYOUTS = [
    Layout(length=16),
    Layout(length=16, equal=False, separator="none"),
    Layout(length=8, max_tokens=50, separator="eos"),
    Layout(kind="documents"),
    Layout(kind="documents", equal=False, separator="none", max_tokens=60),
]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bits_per_byte_by_hand(make, layout, load, monkeypatch, tmp_path):
    model = load("neox")
    give_tokenizer(monkeypatch, model, make())
    texts = {label: [text.replace("e\u0301", "é") for text in each] for label, each in MIXED.items()}
    if layout.kind == "documents":  # the tiny model's context is short
        texts = {label: [text[:9] for text in each] for label, each in texts.items()}
    corpora = corpora_of(texts)
    table = lsn.perplexity_table(model, corpora, no_units(), layout=layout, progress=False)
    made = {
        label: tokenize(
            label, each.hold_out, model.tokenizer, tmp_path, separator=layout.separator, max_tokens=layout.max_tokens,
            progress=False,
        )
        for label, each in corpora.items()
    }  # fmt: skip
    plan = Plan(made, layout, model.cfg.n_ctx)
    for row in table.iloc[:2].to_dict("records"):
        nats, size, count = by_hand(
            model, list(corpora[row["evaluated"]].hold_out), layout, plan.rows[row["evaluated"]]
        )
        assert (row["tokens"], row["bytes"]) == (count, size)
        assert row["nll"] == pytest.approx(nats / count, rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(row["nll"] * count / size / math.log(2), rel=1e-9)


def test_relative_changes(load):
    table = lsn.perplexity_table(load("llama"), corpora_of(MIXED), all_units(), layout=LAYOUTS[0], progress=False)
    clean, changed = (table.loc[table["intervened"].eq(name)].reset_index() for name in ("none", "x"))
    for name in ("nll", "perplexity", "bits_per_byte"):
        assert (clean[f"{name}_relative_change"] == 0).all()
        expected = (changed[name] - clean[name]) / clean[name]
        assert changed[f"{name}_relative_change"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)
        assert expected.abs().min() > 0
    ones = perplexity.loss_table(
        load("llama"), corpora_of(MIXED), [lsn.Intervention("off", ((all_units(), lsn.zero),))], layout=LAYOUTS[0],
        progress=False,
    )  # fmt: skip
    same = ones.loc[ones["intervention"].eq("off"), "bits_per_byte_relative_change"].to_numpy()
    assert same == pytest.approx(changed["bits_per_byte_relative_change"].to_numpy(), rel=1e-12)


def test_documents_and_their_bytes(load):
    model, corpora = load("llama"), corpora_of({"en": ["a river", "x"], "zh": [SENTENCES[3][:5], "雨"]})
    table = document_losses(model, corpora, progress=False)
    assert table["bytes"].tolist() == [7, 1, 15, 3]
    whole = lsn.perplexity_table(model, corpora, no_units(), layout=Layout(kind="documents"), progress=False)
    sums = table.groupby("language", sort=False)[["loss", "bytes"]].sum()
    expected = (sums["loss"] / sums["bytes"] / math.log(2)).tolist()
    assert whole["bits_per_byte"].iloc[:2].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_slow_tokenizer_without_spelling_has_no_bits_per_byte(load, monkeypatch):
    model = load("llama")
    for lower, known in ((False, True), (True, False)):
        give_tokenizer(monkeypatch, model, Slow(lower))
        corpora = corpora_of({"en": ["A Small Text", "Another One"], "de": ["ein text", "noch einer"]})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            table = lsn.perplexity_table(model, corpora, no_units(), layout=Layout(kind="documents"), progress=False)
        by_label = table.iloc[:2].set_index("evaluated")
        assert math.isfinite(by_label.at["en", "nll"]) and math.isfinite(by_label.at["de", "bits_per_byte"])
        assert math.isnan(by_label.at["en", "bits_per_byte"]) != known
        words = [str(each.message) for each in said if "bits per byte are NaN" in str(each.message)]
        assert bool(words) != known
        assert all("['en']" in each and "Slow is a slow tokenizer" in each for each in words)


# nothing scored


@pytest.mark.parametrize(
    "layout",
    [Layout(kind="documents", separator="none"), Layout(length=1), Layout(length=1, separator="none")],
    ids=str,
)
def test_nothing_scored_is_no_perfect_model(layout, load):
    model, corpora = load("llama"), corpora_of({"en": list("abc"), "fr": list("xyz")})
    with pytest.warns(UserWarning, match=r"en: no token is scored.*NaN.*first token"):
        table = lsn.perplexity_table(model, corpora, all_units(), layout=layout, progress=False)
    measured = table.drop(columns=["set", "action", "intervened", "evaluated", "units", "tokens", "bytes"])
    assert measured.isna().all(axis=None) and (table["tokens"] == 0).all()
    with pytest.warns(UserWarning, match="fr: no token is scored"):
        matrix = lsn.perplexity_matrix(model, corpora, all_units(("en", "fr")), layout=layout, progress=False)
    assert matrix.isna().all(axis=None)


def test_documents_of_which_nothing_is_scored(load):
    model = load("llama")
    corpora = corpora_of({"en": ["a", *["a river is long"] * 5], "fr": list("abcdef")})
    with pytest.warns(UserWarning, match="fr: no token is scored"):
        clean = document_losses(model, corpora, separator="none", progress=False)
    by_language = clean.set_index("language")["loss"]
    assert by_language["fr"].isna().all() and by_language["en"].isna().tolist() == [True, *[False] * 5]
    with pytest.raises(ValueError, match=r"scored tokens.*'fr': 0"):
        rise_intervals(clean, clean)
    english = clean.loc[clean["language"].eq("en")]
    assert rise_intervals(english, english).iloc[0][["documents", "rise"]].tolist() == [5, 0.0]


# what cannot be meant is refused before anything is measured


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails where text is tokenised or a loss is computed."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: types are not checked before

    def measured(*args, **kwargs):
        raise AssertionError("text was read or measured before the refusal")

    monkeypatch.setattr(unembedding, "next_token_losses", measured)
    monkeypatch.setattr(baseline, "tokenize", measured)
    return SimpleNamespace(corpora=corpora_of({"en": [SENTENCES[0]], "de": [SENTENCES[1]]}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"measure": "ppl"}, r"measure='ppl'.*nll_change"),
        ({"action": "off"}, r"action='off'.*\['zero', 'mean', 'other mean'\].*lsn\.zero"),
        ({"action": lambda language: "off"}, r"action='off'.*lsn\.zero"),
        ({"action": "mean"}, r"action='mean' needs .* lsn\.mean_ablation\(run\.statistics\)"),
        ({"action": "Other_Mean"}, r"lsn\.other_mean_ablation\(run\.statistics\)"),
        ({"action": lsn.set_to({"mlp": torch.ones(1, 3)})}, r"shape \[1, 3\]"),
        ({"found": no_units(("none", "en"))}, "called 'none'"),
    ],
)
def test_refused_before_anything_runs(given, said, load, unmeasured):
    given = {"found": all_units(("en", "de")), **given}
    with pytest.raises(ValueError, match=said):
        lsn.perplexity_matrix(load("llama"), unmeasured.corpora, layout=LAYOUTS[0], progress=False, **given)


def test_a_word_is_the_action_that_it_names(load):
    found, corpora = all_units(("en", "de")), corpora_of({"en": [SENTENCES[0]], "de": [SENTENCES[1]]})
    tables = [
        lsn.perplexity_table(load("llama"), corpora, found, each, layout=LAYOUTS[0], progress=False)
        for each in ("zero", lsn.zero, lambda language: "zero")
    ]
    assert tables[0].equals(tables[1]) and tables[2].equals(tables[1])
    assert list(tables[0]["action"].unique()) == ["none", "zero"]


def test_the_tokenizer_of_all_tests_is_byte_level():
    assert is_byte_level(tiny_tokenizer()) and not is_byte_level(wordpiece())
