"""Artificial languages: what was asked for is in their text, and the model has learned them."""

import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import loss_of, plain
from planted_world import LABELS

import lsn_lens as lsn
from lsn_lens.planted.planting import plant
from lsn_lens.planted.world import make_world


def test_words_are_of_their_scripts_and_shared_as_asked(world):
    assert tuple(world.words) == LABELS == tuple(world.corpora)
    for label, words in world.words.items():
        assert len(set(words)) == len(words) == 60
        names = {unicodedata.name(letter).split()[0] for word in words for letter in word}
        assert names == {label.split("-")[0].upper()}
    shared = {(a, b): len(set(world.words[a]) & set(world.words[b])) for a in LABELS for b in LABELS if a < b}
    assert {pair for pair, count in shared.items() if count} == {("cyrillic-1", "cyrillic-2"), ("latin-1", "latin-2")}
    assert {count for count in shared.values() if count} == {12}  # a fifth


def test_frequencies_fall_and_orders_differ(world):
    pairs = {}
    for label, corpus in world.corpora.items():
        rows = [text.split() for text in corpus.find]
        counts = Counter(word for row in rows for word in row)
        frequent = [counts[word] for word in world.words[label]]
        assert sum(frequent[:10]) > 3 * sum(frequent[-10:])
        pairs[label] = Counter(pair for row in rows for pair in pairwise(row))
        first, count = max(((a, n) for (a, _), n in pairs[label].items()), key=lambda pair: pair[1])
        assert count > 0.1 * counts[first]  # a follower of its own: by frequency alone it would have less


def test_the_model_has_learned_the_languages_and_its_neurons_do_nothing(world, ground):
    hf_model = plain(world.folder)
    mlps = [weight for name, weight in hf_model.named_parameters() if ".mlp." in name]
    assert len(mlps) == 6
    assert all(1 in weight.shape and not weight.any() for weight in mlps)
    for label, corpus in world.corpora.items():
        place = LABELS.index(label)
        counts = Counter(word for text in corpus.find for word in text.split())
        shares = np.array(list(counts.values())) / sum(counts.values())
        unigram = -(shares * np.log(shares)).sum()  # nats: all that is known of a word without the one before it
        rows = [torch.tensor([ids]) for language, ids in ground.held_out.rows if language == place]
        assert loss_of(hf_model, rows) < unigram - 0.5


def test_same_seed_same_bytes(tmp_path):
    make_world(tmp_path / "a", steps=4, languages=3, progress=False)
    make_world(tmp_path / "b", steps=4, languages=3, progress=False)
    other = make_world(tmp_path / "c", steps=4, languages=3, seed=1, progress=False)
    assert list(other.corpora) == ["latin-1", "cyrillic-1", "latin-2"]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"languages": 1}, ValueError, "at least two"),
        ({"lexical_overlap": 1}, ValueError, r"\[0, 1\)"),
        ({"lexical_overlap": -0.1}, ValueError, r"\[0, 1\)"),
        ({"scripts": ("LATIN", "RUNIC")}, KeyError, "RUNIC"),
        ({"scripts": ()}, KeyError, "script"),
        ({"model_type": "bert"}, KeyError, "bert"),
    ],
)
def test_worlds_that_cannot_be_made(tmp_path, given, error, says):
    with pytest.raises(error, match=says):
        make_world(tmp_path / "w", progress=False, **given)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("make", [make_world, lambda folder: plant("demo", lsn.load_corpora("demo"), folder)])
def test_a_folder_with_something_in_it_is_refused(tmp_path, make):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
