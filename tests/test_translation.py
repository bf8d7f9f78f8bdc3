"""The translation study on the embedded model: its table is that of its texts, and refusals come before it runs."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import experiment
from sacrebleu.metrics import CHRF

import lsn_lens as lsn
from lsn_lens.refusal import DoesNotApply
from lsn_lens.studies import translation as study
from lsn_lens.studies.pages import translation as section
from lsn_lens.studies.settings.translation import TranslationSettings

SMALL = {
    "languages": ("en", "fr"), "sentences": 2, "shots": 1, "counts": (30,), "tokens": 4, "longest": 60, "replicates": 20
}  # fmt: skip
SHORT = {
    "find": {"en": "It rains.\nThe bus is late.\nCome in.\n", "fr": "Il pleut.\nLe bus est en retard.\nEntrez.\n"},
    "hold-out": {"en": "It snows.\nThe bridge is closed.\n", "fr": "Il neige.\nLe pont est fermé.\n"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    script, text = experiment("translate"), tmp_path_factory.mktemp("text")
    for part, some in SHORT.items():
        (text / part).mkdir()
        for label, each in some.items():
            (text / part / f"{label}.txt").write_text(each)
    config = script.Config(out=tmp_path_factory.mktemp("translate"), corpus=str(text), device="cpu", **SMALL)
    return script.report(config, *script.prepare(config)).parent


@pytest.fixture(scope="module")
def tables(written):
    return {path.stem: pd.read_parquet(path) for path in (written / "tables").glob("*.parquet")}


def test_each_way_is_compared_with_the_parallel_sentence(tables):
    table, texts = tables["translation"], tables["texts"]
    ways = list(zip(table["steering"], table["random"], table["dose"], strict=True))
    assert ways == [("none", False, 1), ("average_precision", False, 30), ("average_precision", True, 30),
                    ("examples", False, 1)]  # fmt: skip
    assert set(table["target"]) == {"fr"} and set(table["n"]) == {2} and not texts["text"].str.contains("\n").any()
    pairs = {
        study.ASK.format("It snows."): "Il neige.",
        study.ASK.format("The bridge is closed."): "Le pont est fermé.",
    }
    for (steering, drawn, _), value in zip(ways, table["chrf"], strict=True):
        mine = texts.loc[texts["steering"].eq(steering) & texts["seed"].notna().eq(drawn)]
        wanted = [pairs[prompt] for prompt in mine["prompt"]]
        assert value == pytest.approx(CHRF().corpus_score(mine["text"].tolist(), [wanted]).score)


def test_the_page_says_what_the_table_says(written, tables):
    page = (written / "report.md").read_text()
    best = section.means(tables).set_index(["steering", "random"])
    forced, words = best.loc[("average_precision", False)], section.lead(tables)
    assert words in page and f"units forced {forced['accuracy']:.0%} of the texts" in words
    assert words.count("of the texts are in the target") == 4


TEXTS = {"en": ["One  day.", "Two days, " * 9, "Three."], "fr": ["Un jour.", "Deux.", "Trois."]}


def test_sentences_and_examples_by_hand():
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    settings = TranslationSettings(longest=20)
    sentences = study.parallel(corpora, settings, "find", 2)
    assert sentences == {"en": ["One day.", "Three."], "fr": ["Un jour.", "Trois."]}
    assert study.examples(sentences, "en") == {
        "fr": "Sentence: One day.\nTranslation: Un jour.\n\nSentence: Three.\nTranslation: Trois.\n\n"
    }
    with pytest.raises(DoesNotApply, match="find has 2 documents of at most 20 characters in every language, and 3"):
        study.parallel(corpora, settings, "find", 3)
    other = lsn.load_corpora({**TEXTS, "fr": TEXTS["fr"][:2]}, hold_out=0.0)
    with pytest.raises(DoesNotApply, match=r"needs parallel text, and find has \{'en': 3, 'fr': 2\} documents"):
        study.parallel(other, settings, "find", 1)
    # in the part to measure on, each language lacks one sentence: a repeated one, and one that is missing
    apart = {"en": ["One.", "Two.", "One.", "Three.", "Four."], "fr": ["Un.", "Deux.", "Une.", "Trois.", None]}
    other = lsn.load_corpora(apart, hold_out=0.999)
    assert list(other["en"].hold_out) == ["Two.", "Three.", "Four."]
    with pytest.raises(DoesNotApply, match=r"document 1 is not the same record.*\{'en': 3, 'fr': 2\}"):
        study.parallel(other, settings, "hold_out", 1)
    taken = study.parallel(other, replace(settings, check_parallel=False), "hold_out", 2)
    assert taken == {"en": ["Two.", "Three."], "fr": ["Deux.", "Une."]}


def test_what_cannot_run_is_refused_first(load, monkeypatch):
    monkeypatch.setattr(study, "collect", None)
    model = load("llama")
    with pytest.raises(KeyError, match="source='de': no text in it"):
        study.translation_study(model, TEXTS, TranslationSettings(source="de"))
    texts = {label: some * 4 for label, some in {"en": ["One.", "Two."], "fr": ["Un.", "Deux."]}.items()}
    corpora = lsn.load_corpora({label: [f"{i} {each}" for i, each in enumerate(some)] for label, some in texts.items()})
    with pytest.raises(ValueError, match="exceeds the model's context"):
        study.translation_study(model, corpora, TranslationSettings(sentences=1, shots=2, tokens=1000))
    for name, least in (("sentences", 1), ("seeds", 1), ("shots", 0)):
        with pytest.raises(ValueError, match=f"{name}={least - 1}: expected at least {least}"):
            TranslationSettings(**{name: least - 1})
    with pytest.raises(ValueError, match="expected at least one count"):
        TranslationSettings(counts=())
