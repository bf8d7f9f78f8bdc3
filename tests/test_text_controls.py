"""Changed text is what it is said to be, and survival is counted right."""

import re
from collections import Counter

import pytest
import torch
from conftest import BACKENDS, SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

import lsn_lens as lsn
from lsn_lens.controls.changed_text import pieces, romanised, same_script, shuffled_words
from lsn_lens.controls.redetection import same_script_survival, survival, survivors
from lsn_lens.controls.resampling import rearranged
from lsn_lens.methods.lape import Lape
from lsn_lens.neurons.sets import NeuronSet

TEXT = dict(zip(("en", "de", "fr", "zh"), SENTENCES, strict=True))


def corpora_of(texts, count=12):
    return lsn.load_corpora({label: [f"{i} {text}" for i in range(count)] for label, text in texts.items()})


def one(text, change, **settings):
    beside = corpora_of({label: TEXT[label] for label in ("en", "zh")}, 1)
    return next(iter(change(beside | lsn.load_corpora({"xx": [text]}), **settings)["xx"].find))


@pytest.fixture(scope="module", params=BACKENDS)
def ready(request, load):
    model, corpora = load("llama", request.param), corpora_of(TEXT)
    return model, corpora, lsn.collect(model, corpora, ["lape"], progress=False)


# text


def test_romanised_text_is_ascii_and_stays_as_it_is_when_romanised_again():
    corpora = lsn.load_corpora("demo")
    first = romanised(corpora)
    assert list(first) == list(corpora)
    for label, corpus in first.items():
        for part in ("find", "hold_out"):
            texts = list(getattr(corpus, part))
            assert all(text.isascii() and text.strip() for text in texts)
            assert len(texts) == len(list(getattr(corpora[label], part)))
            again = [one(text, romanised) for text in texts[:3]]
            assert again == texts[:3]
    assert list(first["id"].find)[:5] == list(corpora["id"].find)[:5]
    assert first["zh"].source == f"{corpora['zh'].source}, romanised"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Москва", "Moskva"),
        ("bếp đã thơm", "bep da thom"),
        ("Größe", "Grosse"),
        ("にじみ", "nijimi"),
        ("我们", "WoMen"),
    ],
)
def test_what_romanising_gives(text, expected):
    assert one(text, romanised) == expected


def test_romanising_needs_two_scripts():
    with pytest.raises(ValueError, match=r"have the same script, \['Latn'\]"):
        romanised(corpora_of({label: TEXT[label] for label in ("en", "de")}))


def test_shuffling_keeps_the_words_and_their_number():
    corpora = lsn.load_corpora("demo", ["fr", "ja"])
    shuffled = shuffled_words(corpora, seed=3)
    for label, corpus in shuffled.items():
        before, after = list(corpora[label].find), list(corpus.find)
        assert [Counter(pieces(text)) for text in after] == [Counter(pieces(text)) for text in before]
        assert sum(a != b for a, b in zip(before, after, strict=True)) > 150
        assert list(corpus.find) == after  # the same when read again
    assert list(shuffled["fr"].find) != list(shuffled_words(corpora, seed=4)["fr"].find)
    assert list(shuffled["fr"].find) == list(shuffled_words({"fr": corpora["fr"]}, seed=3)["fr"].find)


def test_words_are_cut_where_scripts_do_not_space_them():
    assert pieces("the cat,  sat\n") == ["the", "cat,", "sat"]
    assert pieces("我有iPhone。") == ["我", "有", "iPhone。"]
    assert pieces("กิน") == ["กิ", "น"]  # a vowel sign stays with its letter
    mixed = one("a b c d e 我们是他", shuffled_words)
    assert sorted(pieces(mixed)) == sorted("abcde我们是他")
    assert not re.search("[我们是他] | [我们是他]", mixed)
    assert not re.search("[a-e][a-e]", mixed)


ALPHABET = st.sampled_from("ab ,.\n\t我们のカก\u0e34\u0301é한क\u0940-1")


@given(st.text(ALPHABET, min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_shuffling_keeps_the_words_of_any_text(text, seed):
    if text.strip():
        assert Counter(pieces(one(text, shuffled_words, seed=seed))) == Counter(pieces(text))
    assert "".join(pieces(text)) == "".join(text.split())


def test_unusable_records_stay_unusable():
    corpora = lsn.load_corpora({"en": ["one two", None, "  ", "three four"], "zh": ["我们", 3, "他们", "你们"]})
    changed = romanised(corpora)
    assert [len(list(each.find)) for each in changed.values()] == [len(list(each.find)) for each in corpora.values()]
    assert changed["en"].find.skipped == corpora["en"].find.skipped == {"not text but NoneType": 1, "empty": 1}


def test_scripts_are_found():
    scripts = same_script(lsn.load_corpora("demo"))
    assert scripts == {"Latn": ("de", "en", "es", "fr", "id", "vi"), "Jpan": ("ja",), "Hani": ("zh",)}
    more = lsn.load_corpora({"ru": ["Привет, мир"], "uk": ["Добрий день"], "ko": ["안녕하세요 大韓民國"], "en": ["A"]})
    assert same_script(more) == {"Cyrl": ("ru", "uk"), "Kore": ("ko",), "Latn": ("en",)}
    kanji = lsn.load_corpora(
        {"ja": ["東京都知事選挙の結果"], "zh": ["東京都知事選舉結果"]}
    )  # mostly Chinese characters
    assert same_script(kanji) == {"Jpan": ("ja",), "Hani": ("zh",)}
    with pytest.raises(ValueError, match="en: the text has no letters"):
        same_script(lsn.load_corpora({"en": ["1 + 1 = 2"]}))


# survival


def test_all_survives_where_the_text_stays(ready):
    model, corpora, run = ready
    same = survival(model, corpora, ["lape"], {"same": lambda text: text}, run=run, progress=False)
    assert (same.loc[same["before"] > 0, "survival"] == 1).all()
    assert (same["before"] == same["after"]).all()
    assert same["before"].sum() > 0
    assert set(same["changed"]) == {0}
    assert set(same["note"]) == {"letters change in 0.0% of its documents only"}


def test_survival_is_what_two_runs_by_hand_share(ready):
    model, corpora, _ = ready
    table = survival(model, corpora, {"wide": Lape(rate=0.2)}, progress=False)
    assert set(table["method"]) == {"wide"}
    rows = table.set_index(["control", "language"])

    def found(text):
        return lsn.detect(lsn.collect(model, text, ["lape"], progress=False), "lape", rate=0.2)

    before = found(corpora)
    run = lsn.collect(model, corpora, ["lape"], progress=False)
    cuts = {label: [[(label, i) for i in range(a, b)] for a, b in ((0, len(each) // 2), (len(each) // 2, len(each)))]
            for label, each in run.shards.items()}  # fmt: skip
    parts = [
        lsn.detect(rearranged(run, {label: pairs[part] for label, pairs in cuts.items()}), "lape", rate=0.2)
        for part in (0, 1)
    ]
    for control, change in (("romanised", romanised), ("shuffled words", shuffled_words)):
        after = found(change(corpora))
        for label in corpora:
            row = rows.loc[(control, label)]
            assert row["both"] == len(before[label] & after[label])
            assert row["survival"] == pytest.approx(len(before[label] & after[label]) / len(before[label]))
            ends = parts[0][label], parts[1][label]
            assert row["ceiling"] == pytest.approx(len(ends[0] & ends[1]) / len(ends[0]), nan_ok=True)
            assert len(ends[0])
    assert rows.loc[("romanised", "en"), "note"] == "letters change in 0.0% of its documents only"
    assert rows.loc[("romanised", "zh"), "note"] == rows.loc[("shuffled words", "en"), "note"] == ""


def test_chance_is_what_random_sets_share():
    generator = torch.Generator().manual_seed(0)
    before, after = (
        NeuronSet(("en",), {"mlp": torch.rand(1, 2, 50, generator=generator) < torch.tensor([[0.2], [0.6]])})
        for _ in range(2)
    )
    nobody = NeuronSet(("en",), {"mlp": torch.zeros(1, 2, 50, dtype=torch.bool)})
    orders = [torch.rand(1, 2, 50, generator=generator).argsort(-1).argsort(-1) for _ in range(500)]
    drawn = [order < after.masks["mlp"].sum(-1, keepdim=True) for order in orders]
    shared = sum(int((before.masks["mlp"] & each).sum()) for each in drawn) / 500 / len(before)
    assert survivors(before, after)["chance"][0] == pytest.approx(shared, abs=0.02)
    empty = survivors(nobody, after)
    assert empty[["survival", "chance"]].isna().all(axis=None)


def test_bad_input_to_survival(ready):
    model, corpora, run = ready
    with pytest.raises(ValueError, match="name at least one"):
        survival(model, corpora, [], run=run)
    with pytest.raises(ValueError, match="expected the same"):
        survival(model, corpora, controls={"fewer": lambda text: {"en": text["en"]}}, run=run)
    latin = {label: corpora[label] for label in ("en", "de")}
    with pytest.raises(ValueError, match="have the same script"):
        survival(model, latin)
    with pytest.raises(KeyError, match="no text for the run's languages"):
        same_script_survival(run, latin)
    with pytest.raises(ValueError, match="expected two or more, and one of them with two"):
        same_script_survival(run, dict.fromkeys(corpora, corpora["en"]))


def test_same_script_survival_is_what_runs_without_the_others_give(ready):
    model, corpora, _ = ready
    layout = lsn.Layout(equal=False)  # or fewer languages would mean other amounts of text

    def found(labels):
        text = {label: corpora[label] for label in labels}
        return lsn.detect(lsn.collect(model, text, ["lape"], layout=layout, progress=False), "lape", rate=0.2)

    run = lsn.collect(model, corpora, ["lape"], layout=layout, progress=False)
    table = same_script_survival(run, corpora, {"wide": Lape(rate=0.2)}).set_index("language")
    assert list(table.index) == list(corpora)
    assert table.loc["zh", "note"] == "the only language in its script"
    latin = ["en", "de", "fr"]
    before, after = found(corpora), found(latin)
    without = {gone: found([label for label in corpora if label != gone]) for gone in latin}
    for label in latin:
        row = table.loc[label]
        assert row["survival"] == pytest.approx(len(before[label] & after[label]) / len(before[label]))
        assert row["changed"] == pytest.approx(1 / 3)
        shares = [
            len(before[label] & kept[label]) / len(before[label]) for gone, kept in without.items() if gone != label
        ]
        assert row["ceiling"] == pytest.approx(sum(shares) / 2)
