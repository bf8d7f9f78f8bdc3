"""Long documents in pieces: the tokens of the whole, at bounded memory."""

import random

import pytest
import transformers
from conftest import SENTENCES, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lsn_lens.text import encoding
from lsn_lens.text.encoding import encoded
from lsn_lens.text.tokens import tokenize


def trained(model, trainer, before=None, normalizer=None):
    tokenizer = Tokenizer(model)
    if before is not None:
        tokenizer.pre_tokenizer = before
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


SPECIAL = {"special_tokens": ["<unk>", "<s>"], "show_progress": False}
TOKENIZERS = {
    "byte-level": tiny_tokenizer,
    "metaspace": lambda: trained(
        models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=400, **SPECIAL), pre_tokenizers.Metaspace()
    ),
    "no pre-tokenizer": lambda: trained(
        models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=400, **SPECIAL),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "unigram": lambda: trained(
        models.Unigram(), trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **SPECIAL),
        pre_tokenizers.Metaspace(), normalizers.NFKC(),
    ),
    "word pieces": lambda: trained(
        models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=400, **SPECIAL),
        pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(),
    ),
}  # fmt: skip


def long_text(kind):
    draw = random.Random(0)
    return {
        "sentences": " ".join(draw.choice(SENTENCES) for _ in range(300)),
        "lines": "\n\n".join(draw.choice(SENTENCES)[: draw.randrange(1, 60)] + "  \n" for _ in range(400)),
        "one letter": "a" * 15_000 + " the river",
        "no spaces": "".join(draw.choice("abcdefgé河😀") for _ in range(9_000)),
        "blanks": "river" + " " * 9_000 + "bridge" + "\n" * 5_000,
        "accents": "e\u0301" * 4_000 + "<s>" * 500 + "ﬁ" * 3_000,
    }[kind]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", ["sentences", "lines", "one letter", "no spaces", "blanks", "accents"])
def test_pieces_give_the_tokens_of_the_whole(name, kind, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 1000)
    monkeypatch.setattr(encoding, "OVERLAP", 256)
    tokenizer, text = TOKENIZERS[name](), long_text(kind)
    [(whole, pieces)] = encoded([text], tokenizer)
    pieces = list(pieces)
    assert whole == text == "".join(part for part, _, _ in pieces)
    assert [i for _, ids, _ in pieces for i in ids] == tokenizer(text, add_special_tokens=False)["input_ids"]
    if kind == "sentences":
        assert len(pieces) > 10 and max(len(part) for part, _, _ in pieces) < 3000


def test_documents_of_all_lengths_keep_their_order(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 1000)
    monkeypatch.setattr(encoding, "OVERLAP", 256)
    tokenizer = tiny_tokenizer()
    texts = [SENTENCES[0], long_text("sentences"), *SENTENCES * 90, long_text("lines"), SENTENCES[1]]
    made = [(text, [i for _, ids, _ in pieces for i in ids]) for text, pieces in encoded(texts, tokenizer)]
    assert made == [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_no_more_of_a_long_document_is_encoded_than_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(encoding, "PIECE", 1000)
    monkeypatch.setattr(encoding, "OVERLAP", 256)
    tokenizer, text = tiny_tokenizer(), long_text("sentences")
    whole = tokenize("en", [text, "b"], tokenizer, tmp_path, progress=False)
    capped = tokenize("en", [text, "b"], tokenizer, tmp_path, max_tokens=300, progress=False)
    assert 300 <= capped.n_tokens < 1500 < whole.n_tokens
    assert capped.is_cut and not whole.is_cut
    assert capped.read(0, 300).tolist() == whole.read(0, 300).tolist()
    assert whole.n_bytes == len(text.encode()) + 1 and capped.n_bytes < 5000


def test_a_tokenizer_that_tells_no_offsets_says_what_it_costs(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 10)

    def slow(texts, add_special_tokens):
        return {"input_ids": [[1] * len(text) for text in texts]}

    with pytest.warns(UserWarning, match="encoded whole"):
        assert [list(pieces) for _, pieces in encoded(["a" * 20], slow)] == [[("a" * 20, [1] * 20, None)]]
