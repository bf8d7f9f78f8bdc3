"""Text as people have it: long tables, lists, data sets; and what a notebook shows of it."""

import re
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

import lsn_lens as lsn
from lsn_lens.text.corpora import as_corpora

ROWS = [(("en", "fr")[i % 2], f"text {i}") for i in range(12)]
FRAME = pd.DataFrame(ROWS, columns=["lang", "content"])
TEXTS = {label: [text for own, text in ROWS if own == label] for label in ("en", "fr")}
OPTIONS: dict[str, Any] = {"language_column": "lang", "column": "content"}


def both(corpora):
    return {label: ([*each.find], [*each.hold_out]) for label, each in corpora.items()}


@pytest.mark.parametrize("table", [FRAME, Dataset.from_pandas(FRAME)], ids=["frame", "data set"])
def test_a_long_table_is_its_lists(table):
    assert both(lsn.load_corpora(table, **OPTIONS)) == both(lsn.load_corpora(TEXTS))
    assert list(lsn.load_corpora(table, ["fr"], **OPTIONS)) == ["fr"]
    with pytest.raises(KeyError, match=r"the table has no text for \['de'\]"):
        lsn.load_corpora(table, ["de"], **OPTIONS)
    with pytest.raises(
        ValueError, match=r"no column 'language'; its columns are \['lang', 'content'\].*language_column="
    ):
        lsn.load_corpora(table, column="content")
    with pytest.raises(ValueError, match=r"no column 'text'.*with the text: load_corpora\(..., column="):
        lsn.load_corpora(table, language_column="lang")


def test_series_and_frames_of_one_language():
    series = {label: pd.Series(each) for label, each in TEXTS.items()}
    frames = {label: pd.DataFrame({"text": each}) for label, each in TEXTS.items()}
    assert both(lsn.load_corpora(series)) == both(lsn.load_corpora(frames)) == both(lsn.load_corpora(TEXTS))


def test_two_columns_of_one_name_are_refused():
    for table, named in ((pd.DataFrame([["en", "a", "b"]], columns=["language", "text", "text"]), "the table"),
                         ({"en": pd.DataFrame([["a", "b"]], columns=["text", "text"])}, "en")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{named} has 2 columns 'text'"):
            lsn.load_corpora(table)


@pytest.mark.parametrize("make", [lambda data: data, Dataset.to_iterable_dataset], ids=["data set", "stream"])
def test_a_wrong_column_is_named_at_once(make):
    data = {"en": make(Dataset.from_dict({"content": ["a", "b"]}))}
    with pytest.raises(ValueError, match=r"en has no column 'text'; its columns are \['content'\]"):
        lsn.load_corpora(data)


@pytest.mark.parametrize("given", [["a", "b"], 3, None], ids=str)
def test_what_is_no_source_is_told_what_is(given):
    with pytest.raises(ValueError, match=r"the source is a \w+\. Expected 'demo', a folder.*\{'en': \[...\]"):
        lsn.load_corpora(given)
    with pytest.raises(ValueError, match="Expected 'demo'"):
        as_corpora(given)


def test_functions_take_what_load_corpora_takes(load):
    made = lsn.load_corpora(TEXTS)
    assert as_corpora(made) == made and both(as_corpora(TEXTS)) == both(made)
    runs = [lsn.collect(load("llama"), given, progress=False) for given in (made, TEXTS)]
    assert runs[0].settings == runs[1].settings


def test_losses_and_comparisons_take_what_load_corpora_takes(load):
    model, made = load("llama"), lsn.load_corpora(TEXTS)
    run = lsn.collect(model, TEXTS, ["lape"], progress=False)
    found = lsn.detect(run, "lape", rate=0.2)
    layout = {"layout": lsn.Layout(kind="documents"), "progress": False}
    for measured in (lsn.perplexity_table, lsn.perplexity_matrix):
        assert measured(model, TEXTS, found, **layout).equals(measured(model, made, found, **layout))
    few = {"seeds": 2, "sizes": None, **layout}
    both = [lsn.compare(run, ["lape"], model=model, corpora=each, **few).losses for each in (TEXTS, made)]
    assert both[0].equals(both[1])


def test_what_is_there_can_be_counted_and_looked_at(tmp_path):
    corpus = lsn.load_corpora({"en": ["One <b>.", "two", "", "two", "three", "one", "two"]})["en"]
    for part in (corpus.find, corpus.hold_out):
        texts = [*part]
        assert (len(part), part[0], part[-1]) == (len(texts), texts[0], texts[-1])
        with pytest.raises(IndexError, match="no document 9"):
            part[9]
    assert repr(corpus) == "LanguageCorpus('en' from texts:en: 5 documents, 1 held out, 'One <b>.')"
    kept = lsn.load_corpora({"en": ["same"] * 6})["en"]
    with pytest.warns(UserWarning, match="nothing is held out"):
        assert len(kept.hold_out) == len([*kept.hold_out]) == 2
    (tmp_path / "fr.txt").write_text("\n".join(f"ligne {i}" for i in range(30)))
    corpora = lsn.load_corpora(tmp_path)
    assert "'ligne 0'" in repr(corpora["fr"]) and "documents" not in repr(corpora["fr"])  # not read for that
    assert len(corpora["fr"].find) == 20 and "20 documents, 10 held out" in repr(corpora["fr"])
    shown = lsn.load_corpora({"en": ["One <b>.", "two", "three"]})._repr_html_()
    assert "One &lt;b&gt;." in shown and "<td>2</td>" in shown


def figures(shown):
    """What the boxes of the small figures say."""
    return re.findall(r"<title>(.*?)</title>", shown)


def test_a_corpus_shows_its_documents_and_its_scripts(tmp_path):
    corpus = lsn.load_corpora({"x<y": ["ab 12", "我是c", "дом!", "", "дом"]}, hold_out=0.4)["x<y"]
    shown = corpus._repr_html_()
    # a b c; 我 是; д о м twice
    assert figures(shown) == ["find: 2", "hold_out: 2", "Cyrillic: 0.5455", "Latin: 0.2727", "Han: 0.1818"]
    assert "x&lt;y" in shown and "the first 4 texts" in shown and "ab 12" in shown
    (tmp_path / "fr.txt").write_text("\n".join(["ligne"] * 20 + ["строка"] * 20))
    corpus = lsn.load_corpora(tmp_path)["fr"]
    shown = corpus._repr_html_()  # neither counted nor read to its end for that
    assert figures(shown) == ["Latin: 1"] and "not counted" in shown and not corpus.find.records.was_read
    assert not figures(lsn.load_corpora({"en": ["12"]}, hold_out=0.0)["en"]._repr_html_())[2:]


def test_a_stream_has_no_length_and_is_not_read_to_be_shown():
    def rows():
        raise RuntimeError("read")
        yield {"text": "x"}

    from datasets import Features, IterableDataset, Value

    data = IterableDataset.from_generator(rows, features=Features({"text": Value("string")}))
    corpus = lsn.load_corpora({"en": data})["en"]
    assert repr(corpus).startswith("LanguageCorpus('en' from")
    assert "<svg" not in corpus._repr_html_()
    with pytest.raises(TypeError, match="is a stream"):
        len(corpus.find)


def test_texts_without_an_order_are_refused():
    with pytest.raises(ValueError, match=r"texts of \['en'\] are a set.*give lists"):
        lsn.load_corpora({"en": {"one", "two"}})


def test_a_corpus_whose_hold_out_is_not_counted_says_no_number():
    corpora = lsn.load_corpora("demo", ["en"])
    assert list(corpora["en"].find) and "None" not in repr(corpora["en"])
