"""What is read for a prompt, where a text ends, and that prompt and text are the decoded whole."""

import copy
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, SENTENCES, VOCABULARY, tiny_model
from jaxtyping import TypeCheckError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import lsn_lens as lsn
from lsn_lens.files import whole_number
from lsn_lens.generation import continuations, sampling
from lsn_lens.generation.steering.trials import Trial, run_trials
from lsn_lens.generation.stopping import endings
from lsn_lens.generation.tasks.items import Item
from lsn_lens.generation.tasks.scoring import evaluate_items
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.text.prompts import prompt_ids, texts_of

TURN = "<end_of_turn>"
SPECIAL = ["<unk>", "<s>", "</s>", TURN, "<|im_start|>"]
CHAT = (
    "{{ bos_token }}{% for x in messages %}<|im_start|>{{ x['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a:{% endif %}"
)
LATIN = [text for text in SENTENCES if text.isascii() or "ü" in text or "è" in text]


def tokenizer_of(kind, bos="<s>", unk=True):
    """A small tokenizer; its special tokens come first."""
    if kind == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer, alphabet = trainers.BpeTrainer, {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer, alphabet = trainers.BpeTrainer, {}
    elif kind == "sentencepiece":  # as Llama 2: the space in front is text, and the decoder strips the first
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        trainer, alphabet = trainers.BpeTrainer, {}
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer, alphabet = trainers.WordPieceTrainer, {}
    made.train_from_iterator(
        SENTENCES, trainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False, **alphabet)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=[TURN, "<|im_start|>"], chat_template=CHAT if bos else CHAT.replace("{{ bos_token }}", ""),
    )  # fmt: skip


KINDS = ("byte-level", "metaspace", "sentencepiece", "wordpiece")


@pytest.fixture(scope="module", params=BACKENDS)
def with_tokenizer(request, tmp_path_factory):
    """`with_tokenizer(kind)`: a tiny model with such a tokenizer, and no end token in its configuration."""

    @cache
    def build(kind):
        folder = tmp_path_factory.mktemp("tiny") / f"model-{KINDS.index(kind)}"
        tiny = tiny_model("llama")
        tiny.generation_config.eos_token_id = None
        tiny.save_pretrained(folder)
        tokenizer_of(kind).save_pretrained(folder)
        return lsn.load_model(folder, backend=request.param, device="cpu")

    return build


@pytest.fixture(params=BACKENDS)
def model(request, load, monkeypatch):
    """A tiny model whose configuration may be changed."""
    found = load("llama", request.param)
    where = getattr(found, "original_model", found)
    monkeypatch.setattr(where, "generation_config", copy.deepcopy(where.generation_config))
    return found


def write(model, prompts, **settings):
    return lsn.generate(model, prompts, **{"tokens": 8, "progress": False, **settings})


# what is read


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_prompt_begins_once(kind, with_tokenizer):
    model = with_tokenizer(kind)
    tokenizer = model.tokenizer
    messages = [{"role": "user", "content": "The river"}]
    for options in ({}, {"add_generation_prompt": True}):
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        assert expected.count(1) == 1 and prompt_ids(tokenizer, prompt) == expected
        assert sampling._rows(model, [prompt], 1, 1, "bos", 0)[0].ids == expected
        pairs = continuations.encode(tokenizer, prompt, [" is high", " rain"])
        assert all([*pair.context, *pair.continuation].count(1) == 1 for pair in pairs)
        (item,) = evaluate_items(model, [Item(prompt, (" rain",), (" rain", " high"))], progress=False)["scores"]
        bare = Item(prompt.removeprefix("<s>"), (" rain",), (" rain", " high"))
        assert item == pytest.approx(evaluate_items(model, [bare], progress=False)["scores"][0])
        table = lsn.generate_each(model, [Intervention("same")], [prompt], tokens=3, progress=False)
        ids = torch.tensor([expected + table["ids"][0]])
        chances = model(ids, return_type="logits")[0, len(expected) - 1 : -1].log_softmax(-1)
        scores = chances.gather(1, torch.tensor(table["ids"][0])[:, None])
        if not table["ended"][0]:
            assert table["log_probability"].tolist() == [pytest.approx(float(scores.mean()), abs=1e-4)] * 2


def test_chat_is_the_template_by_hand(with_tokenizer, monkeypatch):
    model, prompts = with_tokenizer("byte-level"), ["The river", "Der"]
    templated = [f"<s><|im_start|>{prompt}<|im_start|>a:" for prompt in prompts]
    expected = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in templated]
    seen, rows = [], sampling._rows
    monkeypatch.setattr(sampling, "_rows", lambda *given: seen.append(rows(*given)) or seen[-1])
    chat = write(model, prompts, chat=True, samples=2, temperature=1.0)
    assert [row.ids for row in seen[-1][::2]] == expected and all(ids.count(1) == 1 for ids in expected)
    pd.testing.assert_frame_equal(chat, write(model, templated, samples=2, temperature=1.0))
    write(model, prompts, chat="Be brief.")
    assert model.tokenizer.decode(seen[-1][0].ids) == "<s><|im_start|>Be brief.<|im_start|>The river<|im_start|>a:"
    monkeypatch.setattr(model.tokenizer, "chat_template", CHAT.replace("{{ bos_token }}", ""))
    write(model, prompts, chat=True)
    assert [row.ids for row in seen[-1]] == [ids[1:] for ids in expected]  # as the template has it
    items = [Item(prompt, ("high",), ("high", "low")) for prompt in prompts]
    scores = evaluate_items(model, items, chat=True, progress=False)["scores"].tolist()
    bare = [Item(text.removeprefix("<s>"), ("high",), ("high", "low")) for text in templated]
    assert scores == evaluate_items(model, bare, separator="none", progress=False)["scores"].tolist()
    trial = Trial(Intervention("same"), prompts, [{}, {}], {"chat": True})
    found = run_trials(model, [trial], lambda texts: [("und", 0.0)] * len(texts), tokens=3, progress=False)
    np.testing.assert_allclose(found["clean_log_probability"], found["log_probability"], atol=1e-4)


def test_a_chat_without_a_template_or_a_turn_is_refused(with_tokenizer, monkeypatch):
    model = with_tokenizer("wordpiece")
    with pytest.raises(ValueError, match="chat=True without prompts"):
        write(model, None, chat=True)
    with pytest.raises(ValueError, match="cut off the beginning of the chat template"):
        evaluate_items(model, [Item("a", ("b",))], chat=True, truncate=True)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}a"
    monkeypatch.setattr(model.tokenizer, "chat_template", refusing)
    with pytest.raises(ValueError, match=r"refuses it: no system role"):
        write(model, ["a"], chat="Be brief.")
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"the tokenizer of '.*' has no chat template"):
        write(model, ["a"], chat=True)


def test_what_stands_in_front():
    one, none = tokenizer_of("byte-level"), tokenizer_of("byte-level", bos=None)
    for tokenizer, text, separator, start in [
        (one, "a", "bos", [1]), (one, "<s>a", "bos", []), (one, "<s><s>a", "bos", []), (one, "", "bos", [1]),
        (one, "<|im_start|>a", "bos", [1]),  # a beginning token that the prompt lacks
        (one, "<unk>a", "bos", [1]), (one, "a", "eos", [2]), (one, "</s>a", "eos", []), (one, "<s>a", "eos", [2]),
        (one, "a", "none", []), (one, "a<s>", "bos", [1]),
        (none, "a", "bos", [2]), (none, "</s>a", "bos", []), (none, "<|im_start|>a", "bos", []),
        (none, "<unk>a", "bos", [2]), (none, "<|im_start|>a", "eos", [2]),
    ]:  # fmt: skip
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompt_ids(tokenizer, text, separator) == start + plain, (text, separator)


class Lazy:
    def __iter__(self):
        return iter(["The river", "雨"])


@pytest.mark.parametrize(
    "prompts",
    [
        ("The river", "雨"), pd.Series(["The river", "雨"], index=[7, 3]), np.array(["The river", "雨"]),
        np.array(["The river", "雨"], dtype=object), pd.Index(["The river", "雨"]), (x for x in ["The river", "雨"]),
        {"The river": 1, "雨": 2}.keys(), Lazy(), pd.Series(["The river", "雨"], dtype="string"),
    ],
)  # fmt: skip
def test_prompts_in_any_order_that_has_one(prompts, load):
    model = load("llama")
    each = lsn.generate_each(model, [Intervention("same")], list(texts := texts_of("prompts", prompts)), tokens=2,
                             progress=False)  # fmt: skip
    assert texts == ["The river", "雨"] and all(type(text) is str for text in texts)
    assert each["ids"].tolist() == 2 * write(model, texts, tokens=2)["ids"].tolist()


def test_generators_are_read_once_for_all_interventions(load):
    table = lsn.generate_each(load("llama"), [Intervention("same")], iter(["The", "La"]), tokens=2, progress=False)
    assert table["prompt"].tolist() == [0, 1, 0, 1]
    counts = {"tokens": np.int64(3), "samples": np.int32(2), "batch": np.uint8(1), "seed": np.int64(4)}
    whole = {name: int(value) for name, value in counts.items()}
    for numbers in ({}, {"temperature": np.float32(0.5), "repetition_penalty": np.float64(1.1)}):
        frames = [write(load("llama"), ["The"], **each, **numbers)["ids"].tolist() for each in (counts, whole)]
        assert frames[0] == frames[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": {"en": "The river", "fr": "La"}}, r"a mapping with the keys \['en', 'fr'\]: give a list"),
        ({"prompts": {"a", "b"}}, "prompts is a set, which has no order"),
        ({"prompts": ["a", None]}, r"prompts: number 1 \(from 0\) is None, no text"),
        ({"prompts": pd.Series(["a", np.nan])}, r"number 1 \(from 0\) is nan, no text"),
        ({"prompts": ["a", b"b"]}, r"number 1 \(from 0\) is b'b', no text"),
        ({"prompts": [["a"]]}, r"number 0 \(from 0\) is \['a'\], no text"),
        ({"prompts": ["ab\ud800c"]}, r"number 0 \(from 0\) has '\\ud800' at character 2, half of a surrogate pair"),
        ({"prompts": np.array([["a"], ["b"]])}, "a table of 2 dimensions"),
        ({"prompts": pd.DataFrame({"x": ["a"]})}, "a table of 2 dimensions"),
        ({"prompts": b"ab"}, "is one string"), ({"prompts": 3}, "prompts is int: give a list"),
        ({"stop": [None]}, "stop: number 0"), ({"tokens": 3.0}, "tokens=3.0: expected a whole number"),
        ({"tokens": True}, "tokens=True"), ({"samples": np.int64(0)}, "expected a whole number of 1 or more"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_or_count(settings, words, load):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=words):
        texts_of(name, value) if name in ("prompts", "stop") else whole_number(value, name, least=1)
    with pytest.raises((ValueError, TypeCheckError)):  # in tests, types are checked first
        write(load("llama"), **{"prompts": ["The"], **settings})


def test_a_token_that_the_model_lacks(load, monkeypatch):
    model = load("llama")
    monkeypatch.setattr(sampling, "prompt_ids", lambda tokenizer, text, separator: [0, VOCABULARY + len(text)])
    with pytest.raises(
        ValueError, match=rf"prompt 0 has the token {VOCABULARY + 1}; the model knows {VOCABULARY} only"
    ):
        write(model, ["T"])


# what is written


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_text_are_the_decoded_whole(kind, with_tokenizer):
    model = with_tokenizer(kind)
    tokenizer = model.tokenizer
    prompts = ["The river", "Der Fluss steht nach dem", "La rivi", "<s>The river is", "The river<|im_start|>"]
    frame = write(model, prompts, samples=6, temperature=1.5)
    begins = {}
    for row in frame.to_dict("records"):
        prompt = prompt_ids(tokenizer, prompts[row["prompt"]])
        head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + row["ids"]))
        if whole.startswith(head):  # WordPiece takes the space before a full stop away again
            assert head + row["text"] == whole
        else:
            assert kind != "metaspace" and whole.endswith(row["text"])
        if row["prompt"] == 0 and kind != "byte-level":
            assert head == "The river" and (kind == "wordpiece" or prompts[0] + row["text"] == whole)
        begins.setdefault(row["text"][:1] == " ", []).append(row)
    assert len(begins) == 2, "some texts begin with a space, some go on with a word"


def test_a_word_that_goes_on_is_not_cut_off(with_tokenizer):
    """By hand: tokens of the prompt, then those of the text."""
    model = with_tokenizer("metaspace")
    tokenizer = model.tokenizer
    ends = endings(model, ())
    whole = prompt_ids(tokenizer, "The river is high")
    for cut in range(2, len(whole)):
        text = ends.apply(whole[:cut], whole[cut:]).text
        assert tokenizer.decode(whole[:cut], skip_special_tokens=True) + text == "The river is high"


# where it ends


def greedy(model, prompts, **settings):
    return write(model, prompts, tokens=12, **settings)


def test_every_end_token_of_the_generation_configuration_ends_a_text(model, hugging_face):
    prompts = ["The river is high after the rain, and", "Der Fluss steht", "雨"]
    free = greedy(model, prompts)["ids"].tolist()
    ends = [0, *{ids[min(4 + place, len(ids) - 1)] for place, ids in enumerate(free)}]
    where = getattr(model, "original_model", model)
    where.generation_config.eos_token_id = ends
    frame = greedy(model, prompts)
    for prompt, row in zip(prompts, frame.to_dict("records"), strict=True):
        ids = torch.tensor([prompt_ids(model.tokenizer, prompt)])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
        written = hugging_face("llama").generate(ids, attention_mask=torch.ones_like(ids), **options)
        new = written[0, ids.shape[1] :].tolist()
        assert new[-1] in ends and row["ids"] == new[:-1] and row["ended"]
        chances = hugging_face("llama")(torch.tensor([ids[0].tolist() + new])).logits[0, ids.shape[1] - 1 : -1]
        mean = chances.log_softmax(-1).gather(1, torch.tensor(new)[:, None]).mean()
        assert row["log_probability"] == pytest.approx(float(mean.detach()), abs=1e-4)
    where.generation_config.eos_token_id = ends[1]  # one by itself
    assert not set(greedy(model, prompts)["ids"].explode()) & {ends[1]}


def test_stop_strings_that_are_special_tokens(with_tokenizer, monkeypatch):
    model = with_tokenizer("byte-level")
    tokenizer = model.tokenizer
    turn = tokenizer.convert_tokens_to_ids(TURN)
    logits = sampling._choose

    def choose(last, ids, mask, draws, temperature, penalty):
        """The end of the turn is the fourth new token of every text, and a line feed the third."""
        chosen = logits(last, ids, mask, draws, temperature, penalty)
        new = ids.shape[1] - len(prompt_ids(tokenizer, "The river"))
        forced = {2: tokenizer.convert_tokens_to_ids("Ċ"), 3: turn}
        return torch.full_like(chosen, forced[new]) if new in forced else chosen

    monkeypatch.setattr(sampling, "_choose", choose)
    plain = write(model, ["The river"])
    assert plain["ids"][0][3] == turn and len(plain["ids"][0]) == 8 and TURN not in plain["text"][0]
    stopped = write(model, ["The river"], stop=[TURN])
    assert stopped["ids"][0] == plain["ids"][0][:3] and stopped["ended"][0]
    assert stopped["text"][0] == plain["text"][0][: plain["text"][0].index("\n") + 1]
    both = write(model, ["The river"], stop=["\n" + TURN, "never"])
    assert both["text"][0] == stopped["text"][0][:-1] and both["ids"][0] == plain["ids"][0][:4] and both["ended"][0]
    for stop in ("end_of", "_turn>", "<"):  # a part of its name is no text that was written
        assert stop in plain["text"][0] or write(model, ["The river"], stop=[stop])["ids"][0] == plain["ids"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_with_a_space_in_front(kind, with_tokenizer):
    model = with_tokenizer(kind)
    frame = write(model, ["The river"], samples=12, temperature=1.5)
    spaced = frame[frame["text"].str[:1] == " "]
    assert len(spaced)
    for row in spaced.to_dict("records"):
        stop = row["text"][:3]
        again = write(model, ["The river"], samples=12, temperature=1.5, stop=[stop]).iloc[row["sample"]]
        assert (again["text"], again["ended"]) == ("", True) and again["ids"] == row["ids"][: len(again["ids"])]


# temperatures and penalties that are hardly numbers


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-30, 1e-6])
def test_hardly_any_temperature_is_greedy(temperature, load):
    prompts = ["The river", "雨", "Der Fluss"]
    assert write(load("llama"), prompts, temperature=temperature)["ids"].tolist() == write(
        load("llama"), prompts
    )["ids"].tolist()  # fmt: skip


def test_endless_temperature_is_any_token():
    logits, zero = torch.tensor([[3.0, -50.0, 1.0, 0.0]]), torch.zeros(1, 1, dtype=torch.long)
    for draw, expected in ((0.1, 0), (0.3, 1), (0.6, 2), (0.9, 3)):
        place = torch.tensor([draw], dtype=torch.float64)
        assert sampling._choose(logits, zero, zero, place, 1e308, 1.0).tolist() == [expected]


@pytest.mark.parametrize("penalty", [1e-310, 1e308])
def test_a_penalty_that_leaves_no_numbers_is_refused(penalty, load):
    with pytest.raises(FloatingPointError, match=r"repetition_penalty=1e.* makes infinite logits"):
        write(load("llama"), ["The river is high", "雨"], repetition_penalty=penalty)


# position codes that depend on the length


def long_rope(folder, border=16):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = transformers.Phi3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=border, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0,
                         "original_max_position_embeddings": border, **factors},
    )  # fmt: skip
    found, generator = transformers.Phi3ForCausalLM(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in found.parameters():
            if weight.ndim > 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    found.save_pretrained(folder)
    return found


def test_texts_that_cross_the_length_of_long_rope(tmp_path, load):
    load("llama").tokenizer.save_pretrained(tmp_path)
    original = long_rope(tmp_path)
    model = lsn.load_model(tmp_path, backend="bridge", device="cpu")
    prompts = ["雨", "The river", SENTENCES[0], "La", SENTENCES[1], "Der Fluss steht"]
    lengths = [len(prompt_ids(model.tokenizer, prompt)) for prompt in prompts]
    assert min(lengths) < 8 and max(lengths) > 16
    found = write(model, prompts, tokens=24, samples=2)
    for options in ({"cache": False}, {"batch": 1}, {"batch": 3}):
        other = write(model, prompts, tokens=24, samples=2, **options)
        assert found["ids"].tolist() == other["ids"].tolist()
        assert found["log_probability"].tolist() == pytest.approx(other["log_probability"].tolist(), abs=1e-4)
    assert found[["prompt", "sample"]].values.tolist() == [[p, s] for p in range(len(prompts)) for s in range(2)]
    for prompt, row in zip(prompts, found[found["sample"] == 0].to_dict("records"), strict=True):
        ids = prompt_ids(model.tokenizer, prompt)
        for token in row["ids"]:  # the whole text anew for each token
            assert int(original(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
