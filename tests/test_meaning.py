"""Measures of what texts say: sacrebleu's numbers, shares by hand, and laws of tables and draws."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import tiny_tokenizer
from sacrebleu.metrics import BLEU, CHRF

from lsn_lens.generation.steering.tables import steering_meaning
from lsn_lens.generation.texts.encoders import sentence_encoder
from lsn_lens.generation.texts.meaning import foreign_words, meaning_table

TEXTS = [
    "Der Fluss steht nach dem Regen sehr hoch.", "The bridge is closed today.", "Die Brücke ist heute gesperrt.",
    "Der Fluss, der Fluss, der Fluss.", "Die Brücke ist offen und der Fluss steht tief.", "Der Regen fällt.",
]  # fmt: skip
WANTED = [
    "Nach dem Regen steht der Fluss sehr hoch.", "Die Brücke ist heute gesperrt.", "Die Brücke ist heute gesperrt.",
    "Der Fluss steht hoch.", "Die Brücke ist offen und der Fluss steht tief.", "Es regnet.",
]  # fmt: skip
FOUND = ["de", "en", "de", "de", "de", "und"]
PROMPTS = ["a", "a", "b", "b", "c", "d"]


def frame(**changed):
    columns = {"text": TEXTS, "reference": WANTED, "language": FOUND, "target": "de", "prompt": PROMPTS, "way": "x"}
    return pd.DataFrame({**columns, **changed})


def table_of(given, **options):
    return meaning_table(given, "target", **{"by": "way", "reference": "reference", "replicates": 50, **options})


def test_a_corpus_has_the_scores_of_sacrebleu_and_their_signatures():
    row = table_of(frame()).iloc[0]
    chrf, bleu = CHRF(), BLEU()
    assert row["chrf"] == pytest.approx(chrf.corpus_score(TEXTS, [WANTED]).score, rel=1e-12)
    assert row["bleu"] == pytest.approx(bleu.corpus_score(TEXTS, [WANTED]).score, rel=1e-12) and row["bleu"] > 10
    single = BLEU(effective_order=True)
    inside = [single.sentence_score(*map_).score for map_, found in zip(pairs(), FOUND, strict=True) if found == "de"]
    assert row["accuracy"] == 4 / 6 and row["bleu_in_target"] == pytest.approx(np.mean(inside))
    assert row["accuracy_bleu"] == pytest.approx(4 / 6 * np.mean(inside))
    signatures = table_of(frame()).attrs["signatures"]
    assert signatures["chrf"]["de"] == str(chrf.get_signature())
    assert signatures["bleu"]["de"] == str(bleu.get_signature())


def pairs():
    return [(text, [wanted]) for text, wanted in zip(TEXTS, WANTED, strict=True)]


def test_a_text_against_itself_has_100_and_against_nothing_alike_0():
    row = table_of(frame(reference=TEXTS)).iloc[0]
    assert row["chrf"] == pytest.approx(100) and row["bleu"] == pytest.approx(100)
    assert row["chrf_low"] == row["chrf_high"] == pytest.approx(100)
    assert table_of(frame(reference="ωψ"))["chrf"].item() == 0


def test_order_of_rows_and_names_of_prompts_change_nothing():
    both = pd.concat([frame(), frame(way="y", text=WANTED)], ignore_index=True)
    table = table_of(both)
    assert table["way"].tolist() == ["x", "y"] and table["chrf"].iloc[1] == pytest.approx(100)
    turned = table_of(both.iloc[::-1]).iloc[::-1].reset_index(drop=True)
    values = ["accuracy", "chrf", "bleu", "bleu_in_target", "accuracy_bleu", "word_pass_rate", "n", "prompts"]
    pd.testing.assert_frame_equal(table[values], turned[values])
    renamed = table_of(both.assign(prompt=both["prompt"].map({"a": "q", "b": "r", "c": "s", "d": "t"})))
    pd.testing.assert_frame_equal(table, renamed)


def test_texts_of_one_prompt_are_drawn_together():
    given = frame(language=["de", "de", "de", "de", "en", "en"])
    row = table_of(given.assign(prompt=["a"] * 4 + ["b"] * 2), replicates=400).iloc[0]
    assert (row["accuracy_low"], row["accuracy_high"]) == (0, 1)  # one prompt is all right, the other all wrong
    apart = table_of(given.assign(prompt=list("abcdef")), replicates=400).iloc[0]
    assert apart["accuracy_low"] > 0 and apart["prompts"] == 6
    alone = table_of(given.assign(prompt="a")).iloc[0]
    assert np.isnan(alone["accuracy_low"]) and alone["accuracy"] == pytest.approx(4 / 6)


def test_the_harmonic_mean_by_hand():
    marks = dict(zip(TEXTS, [1, 0.5, 0, 1, 0.5, 0], strict=True))
    row = table_of(frame(), judge=lambda prompt, text: marks[text]).iloc[0]
    assert row["relevance"] == 0.5
    assert row["harmonic_mean"] == pytest.approx(2 * (4 / 6) * 0.5 / (4 / 6 + 0.5))
    asked = []
    table_of(frame(), judge=lambda *given: asked.append(given) or 0)
    assert asked == list(zip(PROMPTS, TEXTS, strict=True))
    assert table_of(frame(), judge=lambda *_: 0)["harmonic_mean"].item() == 0
    with pytest.raises(ValueError, match=r"from 0\.0 to 2\.0: expected numbers in \[0, 1\]"):
        table_of(frame(), judge=lambda _, text: 2 * marks[text])


def test_words_of_other_scripts_by_hand():
    assert foreign_words("雨が降る Tokyo で 3 kg", "ja") == ["Tokyo", "kg"]
    assert foreign_words("Der Fluss 河 стоит hoch, 3 €", "de") == ["河", "стоит"]
    assert foreign_words("the Fluss", "de") == [] and foreign_words("Srbija je", "sr-Cyrl") == ["Srbija", "je"]
    texts = ["Der Fluss", "Der Fluss 河", "12 !", "Regen", "дождь", "Die"]
    assert table_of(frame(text=texts))["word_pass_rate"].item() == 3 / 5  # one text has no letter


@pytest.mark.parametrize(("target", "name"), [("zh", "zh"), ("zh-Hant", "zh"), ("ja", "char"), ("fr", "13a")])
def test_bleu_cuts_words_as_the_target_writes_them(target, name):
    text, wanted = "雨后河水上涨很快", "雨后河水上涨了"
    row = table_of(frame(text=text, reference=wanted, target=target))
    assert row["bleu"].item() == pytest.approx(BLEU(tokenize=name).corpus_score([text] * 6, [[wanted] * 6]).score)
    assert f"tok:{name}|" in row.attrs["signatures"]["bleu"][target]
    chosen = table_of(frame(target=target), tokenize={target: "none"})
    assert "tok:none|" in chosen.attrs["signatures"]["bleu"][target]


def test_similarity_is_the_mean_cosine():
    where = {text: [1.0, 0.0] for text in WANTED} | {TEXTS[0]: [0.0, 2.0], TEXTS[1]: [3.0, 3.0], TEXTS[3]: [0.0, 0.0]}
    given = frame(text=[TEXTS[0], TEXTS[1], WANTED[2], TEXTS[3], WANTED[4], WANTED[5]])
    row = table_of(given, embed=lambda texts: [where[text] for text in texts])
    assert row["similarity"].item() == pytest.approx((0 + 0.5**0.5 + 1 + 0 + 1 + 1) / 6)
    with pytest.raises(ValueError, match="name their column in reference="):
        table_of(given, embed=len, reference=None)
    with pytest.raises(ValueError, match=r"an array \(1, 2\) for \d+ texts"):
        table_of(given, embed=lambda _: [[1.0, 2.0]])


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="2 rows have no text in the column 'reference'"):
        table_of(frame(reference=[None, 3, *WANTED[2:]]))
    with pytest.raises(ValueError, match="6 rows have no text in the column 'prompt', as 0"):
        table_of(frame(prompt=range(6)), judge=lambda *_: 1)
    with pytest.raises(KeyError, match="no column 'gold'"):
        table_of(frame(), reference="gold")


def test_the_encoder_is_the_mean_over_tokens(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = tiny_tokenizer()
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes)
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    embed = sentence_encoder(tmp_path, batch=2)
    texts = ["The river", "The bridge is", "Regen"]
    for text, row in zip(texts, embed(texts), strict=True):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")
            expected = model(**{key: ids[key] for key in ("input_ids", "attention_mask")}).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 12 tokens"):
        embed(["The river " * 10, "The"])


def steered():
    labels = [
        ("none", None, 1, "de", "", "Der", 0, "Der Fluss steht hoch."),
        ("none", None, 1, "en", "", "The", 0, "The river is high."),
        ("none", None, 1, "nothing", "", "", 0, "Etwas"),
        ("push", None, 2, "en", "de", "The", 0, "Der Fluss steht hoch."),
        ("push", 0, 2, "en", "de", "The", 0, "The river is high."),
        ("push", None, 2, "nothing", "de", "", 0, "Etwas"),
    ]
    columns = ["steering", "seed", "dose", "source", "target", "prompt", "sample", "text"]
    found = pd.DataFrame(labels, columns=columns).astype({"seed": "Int64"})
    return found.assign(language=["de", "en", "de", "de", "en", "de"])


def test_steered_texts_are_compared_with_the_unsteered_answer_or_a_reference():
    table = steering_meaning(steered(), replicates=10).set_index(["steering", "random"])
    assert table.index.tolist() == [("none", False), ("push", False), ("push", True)]
    assert table["n"].tolist() == [1, 1, 1] and table["accuracy"].tolist() == [0, 1, 0]
    assert table["chrf"].iloc[[0, 2]].tolist() == [100, 100] and table["chrf"].iloc[1] < 30
    wanted = {"de": {"The": "Der Fluss steht hoch."}}
    table = steering_meaning(steered(), wanted, replicates=10)
    assert table["chrf"].iloc[1] == 100 and table["chrf"].iloc[2] < 30
    with pytest.raises(KeyError, match="no reference in 'de' for the prompt 'The'"):
        steering_meaning(steered(), {"de": {}})
    with pytest.raises(ValueError, match="no texts with a prompt"):
        steering_meaning(steered().query("source == 'nothing'"))
