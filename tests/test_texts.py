# ruff: noqa: RUF001
import copy
import math
import random
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from foreign import FOREIGN, pieces
from oracles import wilson

from lsn_lens import generation
from lsn_lens.generation.texts import identifiers, strings
from lsn_lens.generation.texts.identifiers import IDENTIFIERS, UND, identifier, identifier_accuracy
from lsn_lens.generation.texts.languages import script_shares, scripts_of
from lsn_lens.generation.texts.measures import fallbacks, language_shares, measure_texts, pass_rates, text_summary
from lsn_lens.generation.texts.strings import distinct, longest_run, repetition
from lsn_lens.text.corpora import load_corpora

LANGUAGES = ["en", "de", "fr", "es", "id", "vi", "zh", "ja"]
SENTENCES = {
    "en": "We walked along the river until the rain began, and then we went home.",
    "de": "Gestern haben wir im Garten gearbeitet und danach zusammen gegessen.",
    "fr": "Le matin, les enfants marchent jusqu'à l'école avec leur grand-mère.",
    "es": "Mi hermana trabaja en una tienda pequeña cerca de la estación.",
    "id": "Kemarin kami pergi ke pasar karena ingin membeli sayuran dan ikan segar.",
    "vi": "Hôm qua chúng tôi đi chợ mua rau và cá tươi cho bữa tối.",
    "zh": "昨天我们去市场买了新鲜的蔬菜和鱼。",
    "ja": "きのう市場で新しい野菜と魚を買いました。",
}


@pytest.fixture(scope="module")
def identify():
    return identifier(LANGUAGES)


def spoken(texts):
    """An identifier for tests: texts say their language and confidence, as in "fr 0.9 and words"."""
    words = [text.split() for text in texts]
    return [(each[0], float(each[1])) if len(each) > 1 else (UND, 0.0) for each in words]


def backend(monkeypatch, **chances):
    """Puts an identifier "fake" in the table, which always gives the same chances."""

    def weigh(codes):
        return lambda text: {code: chances[code] for code in codes}

    monkeypatch.setitem(IDENTIFIERS, "fake", lambda: (list(chances), weigh))


# which language


@pytest.mark.parametrize("language", LANGUAGES)
def test_known_sentences_are_named(identify, language):
    [(label, confidence)] = identify([SENTENCES[language]])
    assert label == language and identifiers.THRESHOLD <= confidence <= 1


def test_the_order_of_languages_does_not_matter(identify):
    cut = [text[:length] for text in SENTENCES.values() for length in (6, 12, 25, 99)]
    for seed in range(3):
        shuffled = random.Random(seed).sample(LANGUAGES, len(LANGUAGES))
        for (one, a), (other, b) in zip(identify(cut), identifier(shuffled)(cut), strict=True):
            assert one == other and a == pytest.approx(b, abs=1e-6)


def test_the_same_as_the_library_where_it_does_not_abstain():
    from py3langid import langid

    before = copy.copy(langid._get_identifier())
    free = identifier(["fr", "es", "en"], threshold=0, letters=0)
    own = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    cut = [text[:length] for text in SENTENCES.values() for length in (6, 12, 25, 99)]
    found = free(cut)
    for text, (label, confidence) in zip(cut, found, strict=True):
        best, chance = own.classify(text)
        assert label == (best if best in free.languages else UND)
        if label != UND:
            assert confidence == pytest.approx(chance, abs=1e-6)
    assert sum(label != UND for label, _ in found) >= 9
    after = langid._get_identifier()
    assert after.nb_classes is before.nb_classes and after._norm_probs == before._norm_probs  # nobody's else


def test_two_identifiers_do_not_disturb_each_other():
    first = identifier(["en", "fr"])
    second = identifier(["de", "zh"])
    assert [label for label, _ in first([SENTENCES["fr"], SENTENCES["en"]])] == ["fr", "en"]
    assert [label for label, _ in second([SENTENCES["de"], SENTENCES["zh"]])] == ["de", "zh"]


def test_labels_come_back_as_they_were_given():
    named = identifier(["zh-Hans", "en_GB", "pt-BR"])
    assert named.languages == ("zh-Hans", "en_GB", "pt-BR")
    assert [label for label, _ in named([SENTENCES["zh"], SENTENCES["en"]])] == ["zh-Hans", "en_GB"]


@pytest.mark.parametrize("text", ["", "   \n", "2024 15:30 100%", "?!...", "ok", "12 ab 34", "🙂🙂🙂🙂🙂🙂"])
def test_nothing_to_go_by_is_und(identify, text):
    assert identify([text]) == [(UND, 0.0)]


def test_letters_needed_can_be_chosen(identify):
    assert identify(["你好"]) == [(UND, 0.0)]
    assert identifier(LANGUAGES, letters=2)(["你好"])[0][0] == "zh"


@pytest.mark.parametrize(
    ("chances", "threshold", "expected"),
    [
        ({"de": 0.8, "fr": 0.1, "nl": 0.1}, 0.8, "de"), ({"de": 0.79, "fr": 0.2, "nl": 0.01}, 0.8, UND),
        ({"de": 0.4, "fr": 0.3, "nl": 0.3}, 0, "de"), ({"de": 0.4, "fr": 0.1, "nl": 0.5}, 0, UND),
        ({"de": 1 / 3, "fr": 1 / 3, "nl": 1 / 3}, 0, UND),
    ],
)  # fmt: skip
def test_low_confidence_another_language_and_no_preference_are_und(monkeypatch, chances, threshold, expected):
    backend(monkeypatch, **chances)
    found = identifier(["de", "fr"], "fake", threshold=threshold)(["many letters"])
    assert found == [(expected, chances["de"])]


@pytest.mark.parametrize("text", ["", "12345 67890", "?!"])
def test_without_letters_there_is_nothing_to_identify(monkeypatch, text):
    backend(monkeypatch, de=0.9, fr=0.1)
    lenient = identifier(["de", "fr"], "fake", threshold=0, letters=0)
    assert lenient([text, "a"]) == [(UND, 0.0), ("de", 0.9)]


# texts in languages that are not the run's


RELATIVES = {"ms": {"id"}, "gl": {"es", "pt"}, "ca": {"es"}, "nb": {"da"}, "da": {"nb"}, "hr": {"bs", "sr"}}


@pytest.mark.parametrize(("length", "most"), [(20, 0.02), (50, 0.02), (100, 0.0)])
def test_languages_outside_the_run_are_not_named(identify, length, most):
    texts = [piece for text in FOREIGN.values() for piece in pieces(text, length)]
    named = [label for label, _ in identify(texts) if label != UND]
    assert len(texts) > 40 and len(named) <= most * len(texts)


@pytest.mark.parametrize(
    "run", [["en", "fr"], ["en", "ru"], ["ar", "en"], ["hi", "en"], ["zh", "ja"], ["ko", "es", "pt"]]
)
def test_whatever_the_run_is(run):
    identify = identifier(run)
    for language, text in FOREIGN.items():
        for sentence, (label, _) in zip(parts := split(text), identify(parts), strict=True):
            allowed = {UND, language} if language in run else {UND}
            assert label in allowed or label in RELATIVES.get(language, ()), (language, sentence)
    own = [label for language in run if language in FOREIGN for label, _ in identify(split(FOREIGN[language]))]
    assert own.count(UND) <= len(own) / 4, "and the run's own are"


def split(text):
    return [each.strip() for each in re.split("[.।።։۔]", text) if len(each) > 15]


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (["en", "fr"], "الطقس جميل جدا اليوم، لنذهب في نزهة إلى الحديقة"),
        (["en", "ru"], "आज मौसम बहुत अच्छा है, चलो बगीचे में टहलने चलते हैं"),
        (["ja", "ko"], "昨天我们去市场买了新鲜的蔬菜和鱼，然后一起回家做饭。"),
        (["en", "el"], "ქალაქის ცენტრში ახალი ბიბლიოთეკა გაიხსნა"),
        (["en", "fr"], "Der Weg nach Hause war lang, und es regnete die ganze Nacht."),
        (["sr-Latn", "en"], "Деца се после наставе играју у школском дворишту."),
        (["en", "de"], "ok: في المدينة سوق كبير وفيه بضائع كثيرة من كل البلاد"),
        (["en", "zh"], "ᚠᚢᚦᚨᚱᚲ ᚷᚹᚺᚾᛁᛃ ᛇᛈᛉᛊᛏᛒ"),
        (["en", "zh"], "🙂🙂 12 🙂 3.5 🙂"),
    ],
)
def test_a_script_or_language_that_no_language_of_the_run_has(run, text):
    assert identifier(run, threshold=0)([text])[0][0] == UND


def test_foreign_words_inside_do_not_matter(identify):
    texts = ["我们用 TensorFlow 训练了一个新的语言模型。", "The word الطقس means weather in Arabic, as far as I know."]
    assert [label for label, _ in identify(texts)] == ["zh", "en"]


def test_members_count_as_their_macrolanguage(monkeypatch):
    backend(monkeypatch, zh=0.3, yue=0.25, wuu=0.1, en=0.35)
    assert identifier(["zh", "en"], "fake")(["letters 字"]) == [("zh", pytest.approx(0.65))]
    assert identifier(["zh", "yue", "en"], "fake")(["letters 字"]) == [("zh", pytest.approx(0.4))]


def test_ruled_out_languages_are_not_weighed():
    malay = split(FOREIGN["ms"])
    assert identifier(["id", "en"])(malay[1:])[0][0] == UND
    assert identifier(["id", "en"], ruled_out=["ms"])(malay[1:])[0][0] == "id"
    with pytest.raises(ValueError, match=r"'id'.* are languages to name"):
        identifier(["id", "en"], ruled_out=["id"])
    with pytest.raises(KeyError, match="xx"):
        identifier(["id", "en"], ruled_out=["xx"])


@pytest.mark.parametrize("language", [*FOREIGN, *SENTENCES])
def test_every_language_is_written_in_its_scripts(language):
    shares = script_shares({**FOREIGN, **SENTENCES}[language])
    assert sum(shares.get(script, 0) for script in scripts_of(language)) == pytest.approx(1)
    assert max(shares, key=shares.get) in scripts_of(language)


@pytest.mark.parametrize(
    ("label", "scripts"),
    [("sr", {"CYRILLIC", "LATIN"}), ("sr-Latn", {"LATIN"}), ("zh_Hant_TW", {"HAN"}), ("pt-BR", {"LATIN"})],
)
def test_scripts_of_labels(label, scripts):
    assert scripts_of(label) == scripts


def test_mixed_text_is_less_certain_than_either_part(identify):
    mixed = " ".join(word for pair in zip(SENTENCES["en"].split(), SENTENCES["id"].split()) for word in pair)
    (_, one), (_, both) = identify([SENTENCES["en"], mixed])
    assert both < one


@pytest.mark.parametrize(
    ("languages", "options", "error", "message"),
    [
        (["en", "python"], {}, KeyError, r"'python'.*knows.*\bvi\b.*own function"),
        (["en", "xx", "yy-Latn"], {}, KeyError, r"'xx', 'yy-Latn'"),
        (["zh-Hans", "zh-Hant"], {}, ValueError, "zh-Hans.*zh-Hant.*both 'zh'"),
        (["en"], {}, ValueError, "two or more"),
        ("en", {}, ValueError, "one string"),
        (["en", "en"], {}, ValueError, "two or more"),
        (["en", "de"], {"name": "fasttext"}, KeyError, "py3langid.*lingua"),
        (["en", "de"], {"threshold": 1.5}, ValueError, "threshold=1.5"),
    ],
)
def test_what_cannot_be_identified_is_an_error(languages, options, error, message):
    with pytest.raises(error, match=message):
        identifier(languages, **options)


def test_one_text_is_not_taken_for_its_letters(identify):
    with pytest.raises(ValueError, match="list of texts"):
        identify(SENTENCES["en"])


def test_lingua_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ImportError, match=r"pip install 'lsn-lens\[lingua\]'"):
        identifier(["en", "fr"], "lingua")


def test_lingua_names_known_sentences():
    pytest.importorskip("lingua")
    named = identifier([*LANGUAGES[:6], "zh-Hans", "ja"], "lingua", threshold=0.5)
    found = [label for label, _ in named(list(SENTENCES.values()))]
    assert found == [*LANGUAGES[:6], "zh-Hans", "ja"]
    assert named(["", "1234 5678"]) == [(UND, 0.0)] * 2
    with pytest.raises(KeyError, match="python"):
        identifier(["en", "python"], "lingua")


def test_accuracy_on_text_whose_language_is_known(identify):
    corpora = load_corpora("demo")
    held = {label: list(corpora[label].hold_out) for label in ("en", "es", "zh")}
    table = identifier_accuracy(held, identify, cuts=(20, None))
    assert table["language"].tolist() == ["en", "en", "es", "es", "zh", "zh"]
    for row in table.itertuples():
        cut = [text[: row.characters] for text in held[row.language] if len(text) >= row.characters] if not pd.isna(
            row.characters
        ) else held[row.language]  # fmt: skip
        found = [identify([text])[0][0] for text in cut]
        assert row.n == len(cut) > 0
        assert row.correct == pytest.approx(found.count(row.language) / len(cut))
        assert row.und == pytest.approx(found.count(UND) / len(cut))
        assert row.correct + row.wrong + row.und == pytest.approx(1)
    assert table.loc[table["characters"].isna(), "correct"].min() > 0.95
    assert identifier_accuracy({"en": ["four", "fives"]}, identify, cuts=[4, 5, 6])["n"].tolist() == [2, 1, 0]
    assert identifier_accuracy({"en": ["short"]}, identify, cuts=[20])[["n", "und"]].isna().sum().tolist() == [0, 1]
    with pytest.raises(ValueError, match="no texts"):
        identifier_accuracy({}, identify)


# each text by itself


def random_texts(count, alphabet="ab \n", longest=30, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randrange(longest))) for _ in range(count)]


def brute_repetition(text, n):
    before, again = [], 0
    for start in range(len(text) - n + 1):
        gram = text[start : start + n]
        again += gram in before
        before.append(gram)
    return again / len(before) if before else math.nan


def brute_run(text):
    longest = 0
    for start in range(len(text)):
        for end in range(start + 2, len(text) + 1):
            piece = text[start:end]
            periods = range(1, len(piece) // 2 + 1)
            if any(all(piece[at] == piece[at - p] for at in range(p, len(piece))) for p in periods):
                longest = max(longest, len(piece))
    return longest


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_repetition_is_what_a_loop_counts(n):
    for text in random_texts(60):
        assert repetition(text, n) == pytest.approx(brute_repetition(text, n), nan_ok=True)


def test_the_longest_run_is_what_loops_find():
    found = [longest_run(text) for text in random_texts(80, "abc", 22)]
    assert found == [brute_run(text) for text in random_texts(80, "abc", 22)]
    assert len(set(found)) > 5


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("", 0),
        ("a", 0),
        ("abc", 0),
        ("aa", 2),
        ("so ha ha ha.", 9),
        ("我们我们我们", 6),
        ("xabababy", 6),
        ("abcabx", 0),
    ],
)
def test_known_runs(text, run):
    assert longest_run(text) == run


def test_a_loop_is_seen_in_any_script():
    for text in ("the house of " * 20, "我们去市场买" * 20):
        assert repetition(text) > 0.9 and longest_run(text) == len(text)
    for text in SENTENCES.values():
        assert repetition(text) < 0.1 and longest_run(text) <= 8


def test_texts_are_measured_one_by_one(identify):
    written = [*SENTENCES.values(), "", "aha aha aha\n\n \nzwei Zeilen", "12345 67890 12345 67890", "हिन्दी ä̈"]
    frame = pd.DataFrame({"text": written, "seed": range(len(written))}, index=range(7, 7 + len(written)))
    measured = measure_texts(frame, identify)
    assert measured[["text", "seed"]].equals(frame) and list(frame.columns) == ["text", "seed"]
    for row in measured.itertuples():
        assert (row.language, row.confidence) == identify([row.text])[0]
        assert row.letters == sum(unicodedata.category(char)[0] == "L" for char in row.text)
        assert row.lines == len([line for line in row.text.split("\n") if line.strip()])
        assert row.repetition == pytest.approx(brute_repetition(row.text, 10), nan_ok=True)
        assert row.longest_run == brute_run(row.text)
    assert "agree" not in measured


def test_a_second_identifier_stands_beside_the_first(identify):
    frame = pd.DataFrame({"text": [SENTENCES["de"], SENTENCES["fr"], "123"]})
    measured = measure_texts(frame, identify, lambda each: [("de", 1.0)] * 2 + [(UND, 0.0)])
    assert measured["second_language"].tolist() == ["de", "de", UND]
    assert measured["agree"].tolist() == [True, False, True]
    assert text_summary(measured)["agree"].item() == pytest.approx(2 / 3)
    shares = language_shares(measured, column="second_language", languages=["de", "fr"])
    assert shares["count"].tolist() == [2, 0, 1]


# tables


@pytest.fixture(scope="module")
def measured():
    """Random texts of two kinds, made up so that `spoken` knows their language."""
    rng = random.Random(3)
    rows = []
    for _ in range(200):
        lines = [
            f"{rng.choice(['en', 'fr', 'zh', UND])} {rng.choice(['0.2', '0.3', '0.9'])}"
            + " word" * rng.choice([1, 3, 4, 6])
            for _ in range(rng.randrange(4))
        ]
        kind, target = rng.choice(["clean", "pushed"]), rng.choice(["fr", "zh"])
        rows.append({"text": rng.choice(["\n", "\n\n"]).join(lines), "kind": kind, "target": target})
    rows += [{"text": "en 0.9 word word", "kind": None, "target": "zh"}]
    return measure_texts(pd.DataFrame(rows), spoken)


def test_shares_are_what_loops_count(measured):
    shares = language_shares(measured, by=["kind", "target"])
    kinds = dict.fromkeys(zip(measured["kind"].fillna("?"), measured["target"], strict=True))
    assert len(shares) == 4 * len(kinds) and len(kinds) == 5
    for row in shares.fillna({"kind": "?"}).itertuples():
        group = [
            language
            for language, kind, target in zip(
                measured["language"], measured["kind"].fillna("?"), measured["target"], strict=True
            )
            if (kind, target) == (row.kind, row.target)
        ]
        assert (row.count, row.n) == (group.count(row.language), len(group))
        assert row.share == row.count / row.n
        assert (row.low, row.high) == pytest.approx(wilson(row.count, row.n), abs=1e-12)
    assert shares.groupby(["kind", "target"], dropna=False)["share"].sum().to_numpy() == pytest.approx(np.ones(5))
    assert shares["language"].tolist() == ["en", "fr", "zh", UND] * 5


def test_groups_come_in_the_order_of_their_first_rows():
    frame = pd.DataFrame({"language": "fr", "set": ["z", "a", "z", "m"]})
    assert language_shares(frame, "set", ["fr"])["set"].tolist() == ["z", "z", "a", "a", "m", "m"]


def test_languages_are_listed_as_asked_for_also_without_texts(measured):
    shares = language_shares(measured, languages=["zh", "ja", "en", "fr"])
    assert shares["language"].tolist() == ["zh", "ja", "en", "fr", UND]
    assert shares["count"].tolist()[1] == 0 and shares["low"].tolist()[1] == 0 < shares["high"].tolist()[1]
    assert shares["n"].tolist() == [201] * 5
    with pytest.raises(KeyError, match=r"'zh'.*languages="):
        language_shares(measured, languages=["en", "fr"])


def test_the_identifiers_languages_are_all_listed(identify):
    measured = measure_texts(pd.DataFrame({"text": [SENTENCES["fr"]], "set": ["a"]}), identify)
    assert language_shares(measured, by="set")["language"].tolist() == [*LANGUAGES, UND]
    assert fallbacks(measured.assign(target="fr"), "target")["language"].tolist() == [
        label for label in [*LANGUAGES, UND] if label != "fr"
    ]


def test_renamed_languages_get_each_others_shares(measured):
    other = {"en": "fr", "fr": "zh", "zh": "en", UND: UND}
    renamed = measured.assign(language=measured["language"].map(other), target=measured["target"].map(other))
    one, two = (language_shares(each, by="kind").set_index(["kind", "language"]) for each in (measured, renamed))
    for kind in ("clean", "pushed"):
        for language, new in other.items():
            assert one.loc[(kind, language), "share"] == two.loc[(kind, new), "share"]


def brute_rates(group, confidence=0.3, fewest=5):
    good = judged = all_pass = lines = short = 0
    share = []
    for text, target in group:
        good += spoken([text])[0][0] == target and spoken([text])[0][1] > confidence
        kept = []
        for line in text.split("\n"):
            if not line.strip():
                continue
            if sum(any(char.isalpha() for char in word) for word in line.split()) < fewest:
                short += 1
                continue
            label, score = spoken([line])[0]
            kept.append(label == target and score > confidence)
        lines += len(kept)
        if kept:
            judged += 1
            all_pass += all(kept)
            share.append(sum(kept) / len(kept))
    n = len(group)
    return [n, good / n, judged, all_pass / judged, sum(share) / judged, lines, short, *wilson(good, n)], all_pass


def test_pass_rates_are_what_loops_count(measured):
    some = measured.dropna(subset=["kind"])
    rates = pass_rates(some, "target", spoken, by=["kind"])
    assert rates["kind"].tolist() == list(dict.fromkeys(some["kind"]))
    for row in rates.itertuples():
        here = some[some["kind"] == row.kind]
        expected, passed = brute_rates(list(zip(here["text"], here["target"], strict=True)))
        assert list(row)[2:11] == pytest.approx(expected)
        assert (row.line_low, row.line_high) == pytest.approx(wilson(passed, row.judged))
        assert 0 < row.line_pass_rate < row.line_share < 1 and row.short_lines > 0


def test_pass_rates_of_one_label_and_other_bars(measured):
    group = [(text, "fr") for text in measured["text"]]
    for confidence, fewest in ((0, 1), (0.2, 3), (0.89, 6), (0.3, 5)):
        rates = pass_rates(measured, "fr", spoken, confidence=confidence, tokens=fewest)
        assert rates.iloc[0, :9].tolist() == pytest.approx(brute_rates(group, confidence, fewest)[0])


def test_nothing_to_judge_is_missing_not_zero():
    rates = pass_rates(pd.DataFrame({"text": ["fr 0.9 mot", ""]}), "fr", spoken)
    assert rates["response_pass_rate"].item() == 0.5 and rates["judged"].item() == 0
    assert rates[["line_pass_rate", "line_share", "line_low"]].isna().all(axis=None)
    assert rates["short_lines"].item() == 1


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("one two - 3 four", 3), ("你好。世界「2024」", 4), ("きのう、買った", 6), ("English 和 中文", 4), ("สวัสดี", 4),
        ("안녕하세요 세계", 2), ("नमस्ते दुनिया", 2), ("l'eau d'or", 2), ("", 0),
    ],
)  # fmt: skip
def test_tokens_are_words_or_unspaced_letters(line, tokens):
    assert strings.count_tokens(line) == tokens


def test_a_wrong_line_in_a_right_text(identify):
    text = f"{SENTENCES['fr']}\n{SENTENCES['fr']}\n{SENTENCES['fr']}\n{SENTENCES['en']}\nOK."
    rates = pass_rates(pd.DataFrame({"text": [text, SENTENCES["fr"]]}), "fr", identifier(LANGUAGES, threshold=0))
    assert rates["line_pass_rate"].item() == 0.5 and rates["line_share"].item() == pytest.approx((3 / 4 + 1) / 2)
    assert rates["lines"].item() == 5 and rates["short_lines"].item() == 1


def test_fallbacks_are_what_loops_count(measured):
    found = fallbacks(measured, "target", by="kind").fillna({"kind": "?"})
    assert set(found["language"]) == {"en", "fr", "zh", UND} and (found["language"] != found["target"]).all()
    assert len(found) == 5 * 3
    columns = (measured["language"], measured["kind"].fillna("?"), measured["target"])
    for row in found.itertuples():
        group = [
            language
            for language, kind, target in zip(*columns, strict=True)
            if (kind, target) == (row.kind, row.target)
        ]
        others = Counter(language for language in group if language != row.target)
        assert (row.n, row.missed, row.count) == (len(group), others.total(), others[row.language])
        assert row.share == pytest.approx(others[row.language] / others.total())
        assert others[row.fallback] == max(others.values())


def test_equal_fallbacks_go_to_the_first_listed():
    frame = pd.DataFrame({"language": ["zh", "en", "fr", UND], "wanted": "fr"})
    assert set(fallbacks(frame, "wanted")["fallback"]) == {"en"}
    assert set(fallbacks(frame.iloc[::-1], "wanted")["fallback"]) == {"en"}
    found = fallbacks(frame, "wanted", languages=["zh", "fr", "en"])
    assert found["language"].tolist() == ["zh", "en", UND] and set(found["fallback"]) == {"zh"}
    assert set(fallbacks(frame[frame["language"] == UND], "wanted", languages=["en", "fr"])["fallback"]) == {UND}


def test_without_a_miss_there_is_no_fallback():
    found = fallbacks(pd.DataFrame({"language": ["fr", "fr"], "target": "fr"}), "target", languages=["en", "fr"])
    assert found["fallback"].isna().all() and found["share"].isna().all() and found["missed"].tolist() == [0, 0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_is_what_loops_count(n):
    written = random_texts(40)
    grams = [text[start : start + n] for text in written for start in range(len(text) - n + 1)]
    assert distinct(written, n) == len(set(grams)) / len(grams)
    ids = [[ord(char) for char in text] for text in written]
    for form in (list, tuple, np.array, torch.tensor):
        assert distinct([form(each) for each in ids], n) == distinct(written, n)


def test_distinct_does_not_reach_over_the_end_of_a_text():
    assert distinct(["ab", "ab"], 2) == 0.5 and distinct(["ab", "cd"], 2) == 1
    assert math.isnan(distinct(["a", ""], 2))
    with pytest.raises(ValueError, match="n=0"):
        distinct(["ab"], 0)


def test_the_summary_is_what_loops_count(measured):
    frame = measured.assign(ids=[[len(word) for word in text.split()] for text in measured["text"]])
    summary = text_summary(frame, by=["target"], units="ids")
    assert summary["target"].tolist() == list(dict.fromkeys(measured["target"]))
    for row in summary.to_dict("records"):
        here = frame[frame["target"] == row["target"]]
        assert row["n"] == len(here)
        for label in ("en", "fr", "zh", UND):
            assert row[f"share_{label}"] == here["language"].tolist().count(label) / len(here)
        for name in ("letters", "lines", "longest_run"):
            assert row[name] == pytest.approx(sum(here[name]) / len(here))
        long = [repetition(text) for text in here["text"] if len(text) >= 10]
        assert row["repetition"] == pytest.approx(sum(long) / len(long))
        assert row["without_repetition"] == len(here) - len(long) > 0
        for n in (1, 2, 3):
            assert row[f"distinct_{n}"] == distinct(here["ids"], n) != distinct(here["text"], n)
    assert text_summary(frame)["distinct_2"].item() == distinct(frame["text"], 2)


def test_the_share_alone_would_mislead():
    identify = identifier(["en", "de", "fr"])
    one_word = measure_texts(pd.DataFrame({"text": ["Englisch und Deutsch"] * 20, "set": "echo"}), identify)
    real = measure_texts(
        pd.DataFrame({"text": [SENTENCES["de"] + f" {n}" for n in range(20)], "set": "real"}), identify
    )
    table = text_summary(pd.concat([one_word, real]), by="set").set_index("set")
    assert table["share_de"].tolist() == [1, 1]
    assert table.loc["echo", "letters"] < table.loc["real", "letters"] / 2


# bad input


def test_a_missing_column_is_named(measured):
    bare = pd.DataFrame({"words": ["a"]})
    for call in (
        lambda: measure_texts(bare, spoken),
        lambda: language_shares(bare),
        lambda: language_shares(measured, by="seed"),
        lambda: pass_rates(bare, "fr", spoken),
        lambda: pass_rates(measured, "target", spoken, by=["seed"]),
        lambda: fallbacks(measured, "wanted"),
        lambda: text_summary(bare),
        lambda: text_summary(measured, units="ids"),
    ):
        with pytest.raises(KeyError, match="no column"):
            call()


def test_an_empty_frame_is_an_error(measured):
    none = measured.iloc[:0]
    for call in (
        lambda: measure_texts(none[["text"]], spoken),
        lambda: language_shares(none),
        lambda: pass_rates(none, "target", spoken),
        lambda: fallbacks(none, "target"),
        lambda: text_summary(none),
    ):
        with pytest.raises(ValueError, match="no rows"):
            call()


def test_texts_that_are_missing_and_columns_that_are_taken():
    with pytest.raises(ValueError, match="1 of 2 rows have no text"):
        measure_texts(pd.DataFrame({"text": ["a", None]}), spoken)
    with pytest.raises(ValueError, match=r"'language'.*overwrite"):
        measure_texts(pd.DataFrame({"text": ["a"], "language": ["en"]}), spoken)
    with pytest.raises(ValueError, match="1 results for 2 texts"):
        measure_texts(pd.DataFrame({"text": ["a", "b"]}), lambda each: [("en", 1.0)])
    frame = measure_texts(pd.DataFrame({"text": ["a"], "n": [3]}), spoken)
    with pytest.raises(ValueError, match=r"own columns.*'n'"):
        language_shares(frame, by="n")


def test_unknown_targets(measured, identify):
    written = pd.DataFrame({"text": list(SENTENCES.values()), "wanted": "fr"})
    known = measure_texts(written, identify)
    for target, frame in (("xx", known), ("wanted", known.assign(wanted="xx"))):
        with pytest.raises(KeyError, match=r"'xx'.*no language of the identifier"):
            pass_rates(frame, target, identify)
    with pytest.raises(KeyError, match=r"'kinds'.*no column"):
        pass_rates(measured, "kinds", spoken)
    with pytest.raises(KeyError, match="'xx'"):
        fallbacks(known.assign(wanted="xx"), "wanted")
    for nothing in (None, UND, math.nan):
        for call in (lambda f: pass_rates(f, "wanted", spoken), lambda f: fallbacks(f, "wanted")):
            with pytest.raises(ValueError, match="201 texts have no language as their target"):
                call(measured.assign(wanted=nothing))


def test_everything_can_be_had_from_one_module():
    assert all(hasattr(generation, name) for name in generation.__all__)
    assert generation.identifier is identifiers.identifier
