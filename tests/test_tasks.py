import gzip
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BACKENDS, parts
from scipy.stats import binom
from sklearn.metrics import accuracy_score

import lsn_lens as lsn
from lsn_lens.generation.continuations import encode
from lsn_lens.generation.tasks.generated import evaluate_generated, last_number, rouge_l, token_f1, units
from lsn_lens.generation.tasks.items import Item, load_items
from lsn_lens.generation.tasks.parallel import load_parallel
from lsn_lens.generation.tasks.presets import TASKS, load_task
from lsn_lens.generation.tasks.scoring import accuracy, accuracy_change, evaluate_items
from lsn_lens.model.checkpoints import DEMO_MODEL

PAIRS = [(each, backend) for each in ("llama", "gpt2", "bloom") for backend in BACKENDS] + [("gemma2", "bridge")]
ITEMS = [
    Item("The river is high after the", (" rain",), (" rain", " bridge is closed", " x"), "en", "0"),
    Item("Der Fluss", (" ist gesperrt",), (" steht nach dem Regen hoch", " ist gesperrt"), "de", "0"),
    Item("雨后", ("河水",), ("河水", "桥", "已经关闭。"), "zh", "0"),
    Item("La rivière est haute et le pont", (" est", " fermé"), (), "fr", "0"),
]


@torch.no_grad()
def by_hugging_face(model, tokenizer, prompt, text, bos=0):
    """Sum of log-probabilities of all tokens that end behind the prompt, one text at a time, by character offsets."""
    encoded = tokenizer(prompt + text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([[bos, *encoded["input_ids"]]])
    chances = model(ids).logits[0].double().log_softmax(-1)
    return sum(
        float(chances[place, ids[0, place + 1]])
        for place, (_, end) in enumerate(encoded["offset_mapping"])
        if end > len(prompt)
    )


@pytest.mark.parametrize(("architecture", "backend"), PAIRS)
def test_scores_are_those_of_hugging_face(load, hugging_face, architecture, backend):
    model, original = load(architecture, backend), hugging_face(architecture)
    table = evaluate_items(model, ITEMS, batch_size=4, progress=False)
    for item, row in zip(ITEMS, table.to_dict("records"), strict=True):
        texts = item.choices or item.answers
        expected = [by_hugging_face(original, model.tokenizer, item.prompt, text) for text in texts]
        assert row["log_probabilities"] == pytest.approx(expected, abs=2e-4)
        assert row["scores"] == row["log_probabilities"]
        if item.choices:
            assert row["chosen"] == texts[int(np.argmax(expected))]
            assert row["correct"] == (row["chosen"] in item.answers)
            assert row["log_probability"] == pytest.approx(expected[texts.index(item.answers[0])], abs=2e-4)
    one_by_one = evaluate_items(model, ITEMS, batch_size=1, progress=False)
    assert np.allclose(np.concatenate(table["scores"]), np.concatenate(one_by_one["scores"]), atol=2e-4)
    assert not any(
        point.fwd_hooks and not all(h.is_permanent for h in point.fwd_hooks) for point in model.hook_dict.values()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuted_choices_have_permuted_scores(load, backend):
    model = load("llama", backend)
    turned = [Item(each.prompt, each.answers[::-1], each.choices[::-1], each.language, each.id) for each in ITEMS]
    first, second = (evaluate_items(model, items, progress=False) for items in (ITEMS, turned))
    for one, other in zip(first["scores"], second["scores"], strict=True):
        assert other[::-1] == pytest.approx(one, abs=1e-4)
    for name in ("chosen", "correct", "first_token_correct", "answer"):
        assert list(first[name]) == list(second[name])


def test_normalising_divides_by_tokens_and_bytes(load):
    model = load("gpt2", "bridge")
    plain, tokens, octets = (
        evaluate_items(model, ITEMS, normalise=each, progress=False) for each in ("none", "tokens", "bytes")
    )
    for item, row in zip(ITEMS, range(len(ITEMS)), strict=True):
        texts = item.choices or item.answers
        counts = [
            len(model.tokenizer(item.prompt + t, add_special_tokens=False)["input_ids"])
            - len(model.tokenizer(item.prompt, add_special_tokens=False)["input_ids"])
            for t in texts
        ]
        sums = plain["log_probabilities"][row]
        assert tokens["scores"][row] == pytest.approx([a / b for a, b in zip(sums, counts, strict=True)])
        assert octets["scores"][row] == pytest.approx([a / len(t.encode()) for a, t in zip(sums, texts, strict=True)])
        assert tokens["log_probabilities"][row] == sums
    ranks = [
        evaluate_items(model, [Item("The", (" b",), (" b", " the bridge is closed."))], normalise=each, progress=False)[
            "chosen"
        ][0]
        for each in ("none", "bytes")
    ]
    assert ranks == [" b", " the bridge is closed."]


def test_a_space_counts_the_same_on_either_side(demo):
    """Only the text as a whole counts: where the prompt ends with the space, it is scored with the choices."""
    inside, outside = (
        evaluate_items(
            demo,
            [Item(f"The child went{end}", (f"{start}to",), (f"{start}to", f"{start}home", f"{start}12"))],
            progress=False,
        )
        for end, start in ((" ", ""), ("", " "))
    )
    assert inside["scores"][0] == pytest.approx(outside["scores"][0], abs=1e-4)


def test_all_choices_follow_the_same_tokens():
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    for prompt, texts in [
        ("The child went ", ["to", "12", "。"]),
        ("prévi", ["sion", " x", "en"]),
        ("", ["a", "bc"]),
        ("雨", ["后", "水"]),
    ]:
        pairs = encode(tokenizer, prompt, texts)
        assert len({tuple(pair.context) for pair in pairs}) == 1
        for pair, text in zip(pairs, texts, strict=True):
            assert pair.context[0] == tokenizer.bos_token_id
            assert [*pair.context[1:], *pair.continuation] == tokenizer(prompt + text, add_special_tokens=False)[
                "input_ids"
            ]
            assert prompt.startswith(tokenizer.decode(pair.context[1:]))
    with pytest.raises(ValueError, match="no token to condition on"):
        encode(tokenizer, "", ["a"], separator="none", name="item 7")


def test_cloze_items_are_right_where_greedy_decoding_writes_the_answer(demo):
    original = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()
    tokenizer = demo.tokenizer
    right = wrong = 0
    for prompt in ("The", "Le", "Der Mann", "El", "昨天"):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        for _ in range(3):
            ids = torch.cat([ids, original(ids).logits[:, -1].argmax(-1)[:, None]], dim=1)
        text = tokenizer.decode(ids[0, 1:])[len(prompt) :]
        if tokenizer(prompt + text, add_special_tokens=False)["input_ids"] != ids[0, 1:].tolist():
            continue  # the written tokens are not those of the text
        items = [
            Item(prompt, (text,)),
            Item(prompt, (text + " qq",)),
            Item(prompt, ("qqq",)),
            Item(prompt, ("qqq", text)),
        ]
        table = evaluate_items(demo, items, progress=False)
        assert list(table["correct"]) == [True, False, False, True]
        assert list(table["first_token_correct"]) == [True, True, False, True]
        assert set(table["chosen"]) == {tokenizer.decode([int(ids[0, -3])])}
        assert table["log_probability"][3] == pytest.approx(table["log_probability"][0], abs=1e-4)
        assert table["answer"][3] == text
        right, wrong = right + 1, wrong + 1
    assert right >= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy_under_an_intervention_is_that_of_the_edited_model(load, hugging_face, backend):
    model, edited = load("llama", backend), hugging_face("llama")
    units = torch.zeros(2, 48, dtype=torch.bool)
    units[0, 5:30] = units[1, ::2] = True
    with torch.no_grad():
        for layer in range(2):
            parts("llama", edited, layer).down.weight[:, units[layer]] = 0
    neurons = lsn.NeuronSet(("xx",), {"mlp": units[None]})
    before = evaluate_items(model, ITEMS, progress=False)
    with lsn.intervene(model, neurons, lsn.zero):
        during = evaluate_items(model, ITEMS, progress=False)
    after = evaluate_items(model, ITEMS, progress=False)
    pd.testing.assert_frame_equal(before, after)
    for item, scores in zip(ITEMS, during["scores"], strict=True):
        expected = [
            by_hugging_face(edited, model.tokenizer, item.prompt, text) for text in item.choices or item.answers
        ]
        assert scores == pytest.approx(expected, abs=2e-4)
    assert during["scores"][0] != pytest.approx(before["scores"][0], abs=1e-2)
    with lsn.intervene(model, neurons, lsn.scale(1e38)), pytest.raises(FloatingPointError, match="item '0'"):
        evaluate_items(model, ITEMS, progress=False)
    pd.testing.assert_frame_equal(before, evaluate_items(model, ITEMS, progress=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_that_are_too_long(load, hugging_face, backend):
    model = load("llama", backend)
    prompt = "The river is high after the rain, and " * 12
    item = Item(prompt + "the", (" bridge",), (" bridge", " rain is closed"), "en", "long")
    with pytest.raises(ValueError, match=r"item 'long' \(en\): .* the context has 64"):
        evaluate_items(model, [*ITEMS, item], progress=False)
    row = evaluate_items(model, [*ITEMS, item], truncate=True, progress=False).iloc[-1]
    wholes = [model.tokenizer(item.prompt + text, add_special_tokens=False)["input_ids"] for text in item.choices]
    over = max(map(len, wholes)) - 64  # with the separator, without the last token
    assert row["dropped_tokens"] == over > 0
    original = hugging_face("llama").requires_grad_(False)
    for ids, text, value in zip(wholes, item.choices, row["scores"], strict=True):
        count = len(ids) - len(model.tokenizer(item.prompt, add_special_tokens=False)["input_ids"])
        read = torch.tensor([[0, *ids[over:]]])
        chances = original(read).logits[0, :-1].double().log_softmax(-1).gather(1, read[0, 1:, None])
        assert value == pytest.approx(float(chances[-count:].sum()), abs=2e-4), text
    fits = Item("The", (" a",), (" a", prompt))
    with pytest.raises(ValueError, match="text alone has more tokens"):
        evaluate_items(model, [fits], truncate=True, progress=False)


def test_exactly_as_long_as_the_context(load):
    model = load("llama", "bridge")
    ids = model.tokenizer("The river is high after the rain. " * 12, add_special_tokens=False)["input_ids"]
    for extra in (0, 1):
        prompt, text = (model.tokenizer.decode(each) for each in (ids[: 62 + extra], ids[62 + extra : 64 + extra]))
        assert len(model.tokenizer(prompt + text, add_special_tokens=False)["input_ids"]) == 64 + extra
        if extra:
            with pytest.raises(ValueError, match="have 66 tokens, the context has 64"):
                evaluate_items(model, [Item(prompt, (text,))], progress=False)
        else:
            evaluate_items(model, [Item(prompt, (text,))], progress=False)


def test_bad_settings(load):
    model = load("llama", "bridge")
    with pytest.raises(ValueError, match="no items"):
        evaluate_items(model, [], progress=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate_items(model, ITEMS, batch_size=0, progress=False)


# items


GOOD = [
    {"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1, "language": "en", "id": 7},
    {"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": " 4", "language": "fr", "id": "7"},
    {"prompt": "Paris is in", "answer": " France"},
    {"prompt": "Paris is in", "answers": [" France", " the north"], "language": "en"},
]
EXPECTED = [
    Item("2 + 2 =", (" 4",), (" 3", " 4"), "en", "7"),
    Item("2 + 2 =", (" 4",), (" 3", " 4"), "fr", "7"),
    Item("Paris is in", (" France",), (), "", "2"),
    Item("Paris is in", (" France", " the north"), (), "en", "3"),
]


def test_items_from_files_and_lists(tmp_path):
    text = "\ufeff" + "\n".join(json.dumps(each) for each in GOOD) + "\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    for source in (GOOD, tmp_path / "a.jsonl", str(tmp_path / "a.jsonl.gz")):
        assert load_items(source) == EXPECTED


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "either 'answer' or 'answers'"),
        ({"prompt": "a", "answer": "b", "answers": ["c"]}, "either 'answer' or 'answers'"),
        ({"answer": "b"}, "'prompt' is None"),
        ({"prompt": 3, "answer": "b"}, "'prompt' is 3"),
        ({"prompt": "a", "answer": "b", "language": 3}, "'language' is 3"),
        ({"prompt": "a", "answer": 3}, "answers are .3."),
        ({"prompt": "a", "answer": ""}, "is empty"),
        ({"prompt": "a", "answers": "b"}, "answers are 'b'"),
        ({"prompt": "a", "answers": []}, "at least one"),
        ({"prompt": "a", "answer": 0, "choices": []}, "choices are"),
        ({"prompt": "a", "answer": 0, "choices": "bc"}, "choices are 'bc'"),
        ({"prompt": "a", "answer": 0, "choices": ["b"]}, "one choice only"),
        ({"prompt": "a", "answer": 2, "choices": ["b", "c"]}, "answer 2 is not the number of one of 2"),
        ({"prompt": "a", "answer": -1, "choices": ["b", "c"]}, "answer -1 is not the number"),
        ({"prompt": "a", "answer": True, "choices": ["b", "c"]}, "answers are .True."),
        ({"prompt": "a", "answer": "d", "choices": ["b", "c"]}, "'d' is not one of the choices"),
        ({"prompt": "a", "answer": "b", "choice": ["b", "c"]}, r"unknown fields \['choice'\]"),
        (["a"], "list instead of an object"),
        (GOOD[0], r"item '7' \(en\) is there already, in .*line 1"),
    ],
)
def test_bad_items_are_named_and_none_is_skipped(tmp_path, record, message):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in [*GOOD, record]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"items.jsonl, line 5: .*" + message):
        load_items(path)


@pytest.mark.parametrize("line", [b"{", b"", b"\xff", b'"a'])
def test_lines_that_are_not_json(tmp_path, line):
    path = tmp_path / "items.jsonl"
    path.write_bytes(json.dumps(GOOD[0]).encode() + b"\n" + line + b"\n" + json.dumps(GOOD[1]).encode())
    with pytest.raises(ValueError, match=r"items.jsonl, line 2: not a JSON object in UTF-8"):
        load_items(path)


def test_bad_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD[0]).encode() * 50)[:-12])
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.txt").write_text("{}")
    for name, message in [
        ("a.jsonl.gz", "damaged or cut off"),
        ("b.jsonl", "no items"),
        ("c.txt", "is not a file"),
        ("d.jsonl", "is not a file"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_items(tmp_path / name)


# accuracy


def results(correct, language="en", start=0):
    ids = [str(start + place) for place in range(len(correct))]
    return pd.DataFrame({"language": language, "id": ids, "correct": np.array(correct, dtype=bool)})


def test_accuracy_and_its_interval():
    generator = np.random.default_rng(0)
    table = pd.concat([results(generator.random(size) < 0.7, label) for label, size in (("fr", 40), ("en", 9))])
    frame = accuracy(table)
    assert list(frame["language"]) == ["fr", "en"]
    for row in frame.to_dict("records"):
        correct = table.loc[table["language"].eq(row["language"]), "correct"]
        n, p, z = len(correct), accuracy_score([True] * len(correct), correct), 1.959963984540054
        middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert (row["items"], row["correct"], row["accuracy"]) == (n, correct.sum(), p)
        assert (row["low"], row["high"]) == pytest.approx(
            ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
        )
    assert accuracy(table, by=["language", "correct"])["accuracy"].tolist().count(1.0) == 2
    with pytest.raises(KeyError, match="dialect"):
        accuracy(table, by="dialect")
    with pytest.raises(KeyError, match="correct"):
        accuracy(table.drop(columns="correct"))


def test_change_of_accuracy_is_paired():
    before = pd.concat([results([1, 1, 1, 1, 1, 1, 0, 0, 0, 1]), results([1, 0, 1], "fr")])
    after = pd.concat([results([1, 0, 0, 0, 0, 0, 1, 0, 0, 1]), results([1, 0, 1], "fr")])
    frame = accuracy_change(before, after.sample(frac=1, random_state=0)).set_index("language")
    english = frame.loc["en"]
    assert (english["before"], english["after"]) == (0.7, 0.3)
    assert english["change"] == pytest.approx(-0.4)
    assert (english["lost"], english["gained"], english["items"]) == (5, 1, 10)
    assert english["p_value"] == pytest.approx(2 * binom.cdf(1, 6, 0.5))
    assert (frame.loc["fr", "change"], frame.loc["fr", "p_value"]) == (0, 1)
    back = accuracy_change(after, before).set_index("language").loc["en"]
    assert (back["lost"], back["gained"], back["p_value"]) == (1, 5, english["p_value"])
    with pytest.raises(ValueError, match="2 are in one only"):
        accuracy_change(results([1, 1]), results([1, 1], start=1))
    with pytest.raises(ValueError, match="each once"):
        accuracy_change(pd.concat([before, before]), after)


# written answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 and 4 make 7.", 7), ("12 #### 1,234,567", 1234567), ("#### 5 #### 8 or 9", 9), ("12 apples ####", 12),
        ("it is 3.99", 3.99), ("down to -3.5 degrees", -3.5), ("-0.5", -0.5), ("answer: $1,000.", 1000), ("none", None),
        ("", None),
        ("১২ টি", 12), ("1 2", 2), ("90071992547409931", 90071992547409931),
    ],
)  # fmt: skip
def test_last_number(text, number):
    assert last_number(text) == number


def longest_common(first, second):
    """By trying all subsequences."""
    subsequences = {each for size in range(len(second) + 1) for each in combinations(second, size)}
    return max(
        len(each) for size in range(len(first) + 1) for each in combinations(first, size) if each in subsequences
    )


def test_overlap_metrics_by_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(60):
        first, second = (list(generator.choice(list("abcd"), generator.integers(1, 8))) for _ in range(2))
        common = longest_common(first, second)
        expected = 2 * common / (len(first) + len(second))
        assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)
        bag = sum(min(first.count(each), second.count(each)) for each in "abcd")
        precision, recall = bag / len(first), bag / len(second)
        expected = 2 * precision * recall / (precision + recall) if bag else 0
        assert token_f1(" ".join(first), " ".join(second)) == pytest.approx(expected)
    assert (rouge_l("", "a"), rouge_l("", "."), token_f1("a", "")) == (0, 1, 0)


def test_units():
    assert units("L'Été, ça va?  \uff21\uff22") == ["lété", "ça", "va", "ab"]
    assert units("雨后河水 ok2。ひらカナー") == [*"雨后河水", "ok2", *"ひらカナー"]
    assert units("ราคา 5 baht") == [*"ราคา", "5", "baht"]
    assert units("한국어 문장") == ["한국어", "문장"]  # Korean has spaces


def test_written_answers():
    items = [Item("2 + 2", ("4",), (), "en", "0"), Item("3 + 3", ("6",), (), "fr", "0")]
    table = evaluate_generated(["#### 4", "no idea"], items, "last_number")
    assert list(table["read"]) == [4, None]
    assert (list(table["correct"]), list(table["score"])) == ([True, False], [1.0, 0.0])
    assert list(accuracy(table)["accuracy"]) == [1, 0]
    assert list(evaluate_generated(lambda prompts: [each[0] for each in prompts], items, "last_number")["text"]) == [
        "2",
        "3",
    ]
    spans = [Item("", ("the big cat", "a cat"), (), "en", "0")]
    for text, f1, exact in [("A cat!", 1, True), ("cat", 2 / 3, False), ("big cat the", 1, False), ("dog", 0, False)]:
        assert evaluate_generated([text], spans, "token_f1")["score"][0] == pytest.approx(f1)
        assert evaluate_generated([text], spans, "exact_match")["correct"][0] == exact
    assert "correct" not in evaluate_generated(["cat"], spans, "rouge_l")
    assert evaluate_generated(["big cat the"], spans, "rouge_l")["score"][0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="1 texts for 2 items"):
        evaluate_generated(["4"], items, "last_number")
    with pytest.raises(ValueError, match="expected one for each"):
        evaluate_generated("46", items, "last_number")
    with pytest.raises(ValueError, match="'a cat' has no number"):
        evaluate_generated(["4"], [Item("", ("a cat",))], "last_number")


# known tasks, from local files with the fields of the real ones


def choices_of(*texts):
    return {"label": list("ABCDE"[: len(texts)]), "text": list(texts)}


MGSM = {"question": "Combien ?", "answer": None, "answer_number": 1234, "equation_solution": None}
XQUAD = {
    "id": "q1",
    "context": "Der Fluss ist hoch.",
    "question": "Was?",
    "answers": {"text": ["Der Fluss", "Fluss"], "answer_start": [0, 4]},
}
XNLI = {"premise": "Il pleut.", "hypothesis": "Il fait sec.", "label": 2}
BELEBELE = {
    "link": "l",
    "question_number": 1,
    "flores_passage": "雨。",
    "question": "什么",
    "dialect": "zho_Hans",
    "mc_answer1": "甲",
    "mc_answer2": "乙",
    "mc_answer3": "丙",
    "mc_answer4": "丁",
    "correct_answer_num": "3",
}
XCSQA = {
    "id": "a1",
    "lang": "ja",
    "question": {"stem": "何?", "choices": choices_of("い", "ろ", "は")},
    "answerKey": "B",
}
EMPTY = {**XCSQA, "id": "a2", "question": {"stem": "何?", "choices": choices_of("い", " ", "は")}}
XLSUM = {"id": "s1", "url": "u", "title": "t", "summary": "短", "text": "长文"}
PAWS = {"id": 7, "sentence1": "Il pleut.", "sentence2": "Il tombe de la pluie.", "label": 1}
FACT = {
    "uuid": "u", "lineid": 0, "obj_uri": "Q90", "obj_label": "Paris", "sub_uri": "Q142", "sub_label": "la France",
    "template": "La capitale de [X] est [Y] .", "language": "fr", "predicate_id": "P36",
}  # fmt: skip
ROWS = {
    # task -> configuration, split, rows
    "mgsm": ("fr", "test", [MGSM]),
    "xquad": ("xquad.de", "validation", [XQUAD]),
    "xnli": ("fr", "test", [XNLI, {**XNLI, "label": 0}]),
    "belebele": ("zho_Hans", "test", [BELEBELE]),
    "xcsqa": ("X-CSQA-jap", "validation", [XCSQA, EMPTY]),
    "xlsum": ("chinese_simplified", "test", [XLSUM]),
    "paws_x": ("fr", "test", [PAWS, {**PAWS, "id": 8, "label": 0}]),
    "m_lama": ("all", "test", [FACT]),
}
LANGUAGES = {
    "mgsm": "fr", "xquad": "de", "xnli": "fr", "belebele": "zh", "xcsqa": "ja", "xlsum": "zh", "paws_x": "fr",
    "m_lama": "fr",
}  # fmt: skip


@pytest.fixture
def local(tmp_path, monkeypatch):
    """`local(task, rows)`: a folder laid out as the data set on the Hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def build(name, rows=None):
        import datasets

        config, split, known = ROWS[name]
        folder = tmp_path / f"set-{name}"
        place = folder / config / split / "0000.parquet"
        place.parent.mkdir(parents=True)
        datasets.Dataset.from_list(known if rows is None else rows).to_parquet(place)
        if TASKS[name].files is None:
            files = f"  data_files:\n  - split: {split}\n    path: {config}/{split}/*\n"
            (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n{files}---\n")
        return folder

    return build


def test_every_task_has_files_to_be_tested_with():
    assert set(ROWS) == set(TASKS) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mgsm", ["Question: Combien ?\nRéponse étape par étape:", ("1234",), (), "0"]),
        ("xquad", ["Der Fluss ist hoch.\n\nFrage: Was?\nAntwort:\n", ("Der Fluss", "Fluss"), (), "q1"]),
        ("xnli", [None, (" false",), (" true", " inconclusive", " false"), "0"]),
        ("belebele", ["雨。\n\n什么\n", ("丙",), ("甲", "乙", "丙", "丁"), "0"]),
        ("paws_x", [None, (" yes",), (" no", " yes"), "7"]),
        ("m_lama", ["La capitale de la France est", (" Paris",), (), "P36 Q142 Q90"]),
        ("xlsum", ["长文\n\nTL;DR:", ("短",), (), "s1"]),
    ],
)
def test_tasks_from_local_files(local, name, expected):
    language, folder = LANGUAGES[name], local(name)
    items = load_task(name, [language], source=folder)
    assert len(items) == len(ROWS[name][2])
    prompt, *rest = expected
    assert [items[0].answers, items[0].choices, items[0].id] == rest
    assert items[0].language == language
    assert prompt is None or items[0].prompt == prompt
    if name == "xnli":
        assert "Il pleut." in items[0].prompt and "Il fait sec." in items[0].prompt
        assert items[1].answers == (" true",)
    assert load_task(name, [language], limit=1, source=folder) == items[:1]


def test_rows_with_empty_texts_are_counted(local):
    with pytest.warns(UserWarning, match="xcsqa, ja: 1 of 2 rows have an empty answer or choice"):
        items = load_task("xcsqa", ["ja"], source=local("xcsqa"))
    assert items == [Item("何?\n", ("ろ",), ("い", "ろ", "は"), "ja", "a1")]


def test_rows_that_cannot_be_asked_are_counted(local):
    pairs = [PAWS, {**PAWS, "label": -1}, {**PAWS, "sentence2": ""}]
    with pytest.warns(UserWarning, match="paws_x, fr: 2 of 3 rows have an empty sentence or no label"):
        assert [item.id for item in load_task("paws_x", ["fr"], source=local("paws_x", pairs))] == ["7"]
    facts = [
        {**FACT, "language": "en"}, FACT, {**FACT, "template": "[Y] est la capitale de [X]."},
        {**FACT, "template": "[X] a [Y] comme capitale."}, {**FACT, "language": "ja", "template": "[X]の首都は[Y]"},
    ]  # fmt: skip
    folder = local("m_lama", facts)
    with pytest.warns(UserWarning, match="m_lama, fr: 2 of 3 rows have a template whose gap is not at its end"):
        items = load_task("m_lama", ["fr", "ja"], source=folder)
    assert [(item.prompt, item.answers, item.language) for item in items] == [
        ("La capitale de la France est", (" Paris",), "fr"), ("la Franceの首都は", ("Paris",), "ja")
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no rows in 'de', only in \['en', 'fr', 'ja'\]"):
        load_task("m_lama", ["de"], source=folder)


@pytest.fixture
def flores(tmp_path, monkeypatch):
    """`flores({code: rows})`: a folder with a configuration per language and the split "dev"."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def build(rows):
        import datasets

        folder, configs = tmp_path / "flores", ""
        for code, some in rows.items():
            (folder / code).mkdir(parents=True)
            datasets.Dataset.from_list(some).to_parquet(folder / code / "dev.parquet")
            configs += f"- config_name: {code}\n  data_files:\n  - split: dev\n    path: {code}/dev.parquet\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        return folder

    return build


def test_parallel_sentences_belong_together_by_id(flores):
    english = [{"id": 3, "text": "Three. "}, {"id": 1, "text": "One."}, {"id": 2, "text": "Two."}]
    chinese = [{"id": 1, "text": "一。"}, {"id": 2, "text": " "}, {"id": 3, "text": "三。"}]
    folder = flores({"eng_Latn": english, "cmn_Hans": chinese})
    found = load_parallel("flores_plus", ["en", "zh"], source=folder)
    assert found == {"en": ["Three.", "One."], "zh": ["三。", "一。"]}
    assert load_parallel("flores_plus", ["zh", "eng_Latn"], source=folder, limit=1) == {
        "zh": ["一。"], "eng_Latn": ["One."]
    }  # fmt: skip
    with pytest.raises(ValueError, match="split 'devtest'"):
        load_parallel("flores_plus", ["en"], source=folder, split="devtest")
    with pytest.raises(KeyError, match="no parallel texts 'ntrex'"):
        load_parallel("ntrex", ["en"])
    with pytest.raises(ConnectionError, match="openlanguagedata/flores_plus"):
        load_parallel("flores_plus", ["en"])


def test_parallel_sentences_of_another_shape_are_refused(flores):
    one = {"id": 1, "text": "One."}
    folder = flores({"eng_Latn": [one, one], "fra_Latn": [{"id": 1, "sentence": "Un."}]})
    for languages, message in [
        (["en"], "flores_plus, en, row 1: id 1 is there already"),
        (["fr"], "flores_plus, fr, row 0: not of the expected shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_parallel("flores_plus", languages, source=folder)


def test_questions_belong_together_by_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "en.txt").write_text("Why is the sky blue?\n\nWhat is rain?\n")
    (folder / "de.txt").write_text("Warum ist der Himmel blau?\nWas ist Regen?\n")
    (folder / "fr.txt").write_text("Pourquoi ?\n")
    found = load_parallel("clas", ["de", "en"], source=folder)
    assert found["de"] == ["Warum ist der Himmel blau?", "Was ist Regen?"]
    assert found["en"] == ["Why is the sky blue?", "What is rain?"]
    with pytest.raises(ValueError, match=r"\{'en': 2, 'fr': 1\} texts: lines belong together"):
        load_parallel("clas", ["en", "fr"], source=folder)
    with pytest.raises(ValueError, match="from a local folder only"):
        load_parallel("clas", ["en"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("xnli", {"label": -1}),
        ("xnli", {"premise": None}),
        ("belebele", {"correct_answer_num": "5"}),
        ("belebele", {"mc_answer2": None}),
        ("xcsqa", {"answerKey": ""}),
        ("mgsm", {"answer_number": None}),
        ("xquad", {"answers": {"text": [], "answer_start": []}}),
    ],
)
def test_rows_of_another_shape_are_an_error(local, name, change):
    rows = [{**ROWS[name][2][0], **change}]
    with pytest.raises(ValueError, match=rf"{name}, {LANGUAGES[name]}, row 0: "):
        load_task(name, [LANGUAGES[name]], source=local(name, rows))


def test_missing_fields_are_named(local):
    rows = [{"question": "Combien ?", "answer": "12"}]
    with pytest.raises(ValueError, match=r"mgsm, fr, row 0: .*answer_number.*'question': 'Combien \?'"):
        load_task("mgsm", ["fr"], source=local("mgsm", rows))


def test_tasks_that_cannot_be_loaded(local, tmp_path, monkeypatch):
    with pytest.raises(KeyError, match="no task 'mmlu'"):
        load_task("mmlu", ["fr"])
    with pytest.raises(ValueError, match="no languages"):
        load_task("xnli", [])
    with pytest.raises(ValueError, match="limit=0"):
        load_task("xnli", ["fr"], limit=0)
    with pytest.raises(ValueError, match=r"xnli', de: .*\(de, split 'test'\) cannot be loaded"):
        load_task("xnli", ["de"], source=local("xnli"))
    with pytest.raises(ValueError, match="no prompt in 'xx'"):
        load_task("mgsm", ["xx"], source=_renamed(local("mgsm"), "fr", "xx"))
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("")
    with pytest.raises(ValueError, match="scripts are no longer supported"):
        load_task("xnli", ["fr"], source=script)
    with pytest.raises(ConnectionError, match="source="):
        load_task("belebele", ["fr"])


def _renamed(folder, old, new):
    (folder / old).rename(folder / new)
    return folder
