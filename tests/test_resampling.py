"""Runs drawn anew from their shards: what stays to the bit, what is drawn, and what is refused."""

import os
from itertools import chain

import numpy as np
import pytest
import torch
from made_runs import UNITS, synthetic_run, values_run

import lsn_lens as lsn
from lsn_lens.controls.resampling import (
    halves,
    load_shards,
    permuted,
    rearranged,
    resampled,
    seeds,
    shuffled_labels,
    subset,
)
from lsn_lens.methods.catalogue import get_method
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import write_shard


@pytest.fixture
def run():
    generator = np.random.default_rng(0)
    return synthetic_run(generator, generator.uniform(0.05, 0.6, size=(3, 2, UNITS)))


def whole(run):
    return {label: [(label, place) for place in range(len(shards))] for label, shards in run.shards.items()}


def test_every_shard_once_is_the_run_itself_to_the_bit():
    run = values_run(np.random.default_rng(0), 1.0)
    again = rearranged(run, whole(run))
    assert torch.equal(again.statistics.get("resid_post.sum"), run.statistics.get("resid_post.sum"))
    ours, theirs = (each.statistics.documents("mlp_pre.mean", 0) for each in (again, run))
    assert all(torch.equal(ours[label], theirs[label]) for label in run.languages)


def test_a_draw_sums_exactly_the_shards_it_names(run):
    drawn = rearranged(run, {"x": [("a", 1), ("a", 1), ("c", 4)], "y": [("b", 0)]})
    first, second = (run.shards[label][place]["mlp_pre.positive"] for label, place in (("a", 1), ("c", 4)))
    assert torch.equal(drawn.statistics.get("mlp_pre.positive")[0], 2 * first + second)
    assert drawn.languages == ("x", "y") and drawn.statistics.tokens.tolist() == [[600, 600], [200, 200]]


def test_values_of_documents_and_sums_are_drawn_together():
    run = values_run(np.random.default_rng(0), 1.0)
    for drawn in (resampled(run, 3), permuted(run, 3), permuted(run, 3, paired=True)):
        documents = drawn.statistics.documents("mlp_pre.mean", 0)
        sums = drawn.statistics.get("resid_post.sum")[:, 0]
        for place, label in enumerate(drawn.languages):
            torch.testing.assert_close(documents[label].double().sum(0), sums[place], rtol=1e-5, atol=1e-4)


def test_a_resample_has_as_many_shards_of_the_same_language(run):
    names = {id(part): (label, i) for label, parts in run.shards.items() for i, part in enumerate(parts)}
    drawn = [resampled(run, seed) for seed in range(200)]
    picked = [[names[id(part)] for part in each.shards["b"]] for each in drawn]
    assert all(len(each) == 8 and {label for label, _ in each} == {"b"} for each in picked)
    share = np.mean([len(set(each)) / 8 for each in picked])
    assert abs(share - (1 - (1 - 1 / 8) ** 8)) < 0.02  # how many different shards a bootstrap has
    assert picked[0] != picked[1]


def test_a_permutation_uses_every_shard_once_and_mixes_languages(run):
    names = {id(part): (label, i) for label, parts in run.shards.items() for i, part in enumerate(parts)}
    drawn = [permuted(run, seed) for seed in range(200)]
    for each in drawn[:5]:
        picked = [names[id(part)] for label in each.languages for part in each.shards[label]]
        assert sorted(picked) == sorted(names.values()) and len(each.shards["a"]) == 8
    own = np.mean([names[id(part)][0] == "a" for each in drawn for part in each.shards["a"]])
    assert abs(own - 1 / 3) < 0.03


@pytest.mark.parametrize("draw", [resampled, permuted])
def test_paired_draws_keep_places_together(run, draw):
    names = {id(part): place for parts in run.shards.values() for place, part in enumerate(parts)}
    places = [[names[id(part)] for part in draw(run, 5, paired=True).shards[label]] for label in run.languages]
    assert sorted(places[0]) == sorted(places[1]) == sorted(places[2])


@pytest.mark.parametrize("draw", [resampled, permuted])
@pytest.mark.parametrize("paired", [False, True])
def test_the_order_of_the_languages_does_not_matter(run, draw, paired):
    other = subset(run, ["c", "a", "b"])
    one, two = (draw(each, 9, paired=paired).statistics for each in (run, other))
    order = [two.languages.index(label) for label in one.languages]
    assert torch.equal(one.get("mlp_pre.positive"), two.get("mlp_pre.positive")[order])


def test_a_run_on_disk_gives_the_same_draws_as_in_memory(load, tmp_path):
    texts = {label: [f"{word} {i}" for i in range(12)] for label, word in (("en", "the river"), ("fr", "la pluie"))}
    model, corpora = load("llama"), lsn.load_corpora(texts, hold_out=0.0)
    methods = ["lape", "average_precision"]
    run = lsn.collect(
        model, corpora, methods, out=tmp_path, layout=lsn.Layout(kind="documents", shards=6), progress=False
    )
    small = load_shards(run, [get_method(each) for each in methods])
    assert list(load_shards(run, [get_method("lape")]).statistics.sums) == ["mlp_pre.positive"]
    for method in methods:
        assert lsn.detect(resampled(run, 1), method) == lsn.detect(resampled(small, 1), method)
        assert lsn.detect(small, method) == lsn.detect(run, method)
    assert "fr" not in repr(subset(run, ["en"]).to_frame())
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        load_shards(run, [get_method("lape")])


def test_bad_input_says_what_to_do(run):
    few = synthetic_run(np.random.default_rng(0), np.full((2, 1, 3), 0.5), shards=4)
    with pytest.raises(ValueError, match=r"too few shards.*'a': 4.*Layout\(shards=16\)"):
        resampled(few, 0)
    with pytest.raises(ValueError, match="too few shards"):
        permuted(few, 0)
    uneven = rearranged(run, {**whole(run), "a": [("a", place) for place in range(6)]})
    assert len(permuted(uneven, 0).shards["a"]) == 6
    with pytest.raises(ValueError, match="paired draw"):
        resampled(uneven, 0, paired=True)
    with pytest.raises(KeyError, match=r"no shards \[\('a', 8\)"):
        rearranged(run, {"a": [("a", 8)]})
    with pytest.raises(KeyError, match="no language"):
        subset(run, ["a", "z"])


def test_seeds_differ():
    assert len(set(seeds(0, 1000))) == 1000 and seeds(0, 3) == seeds(0, 5)[:3] and seeds(0, 3) != seeds(1, 3)


@pytest.mark.parametrize("paired", [False, True])
def test_shuffled_labels_keep_documents_and_their_numbers(paired):
    texts = {label: [f"{label}{i}" for i in range(90)] for label in ("en", "fr", "de")}
    corpora = lsn.load_corpora(texts, hold_out=1 / 3)
    shuffled = shuffled_labels(corpora, 1, paired=paired)
    for part in ("find", "hold_out"):
        before, after = ({label: list(getattr(each[label], part)) for label in texts} for each in (corpora, shuffled))
        assert sorted(chain(*before.values())) == sorted(chain(*after.values()))
        assert {label: len(each) for label, each in after.items()} == {label: len(before[label]) for label in texts}
        assert all(len({text[:2] for text in each}) == 3 for each in after.values())
        if paired:
            assert all(len({text[2:] for text in row}) == 1 for row in zip(*after.values(), strict=True))
    assert list(shuffled["en"].find) == list(shuffled["en"].find)  # can be read again
    uneven = lsn.load_corpora({**texts, "fr": texts["fr"][:20]}, hold_out=0.0)
    assert len(list(shuffled_labels(uneven)["fr"].find)) == 20
    with pytest.raises(ValueError, match="paired shuffle"):
        shuffled_labels(uneven, paired=True)


def test_halves_are_the_shards_cut_in_two(run):
    uneven = rearranged(run, {**whole(run), "a": [("a", place) for place in range(7)]})
    first, second = halves(uneven)
    for label, shards in uneven.shards.items():
        assert [*first.shards[label], *second.shards[label]] == list(shards)
        assert len(first.shards[label]) == len(shards) // 2
    with pytest.raises(ValueError, match=r"\['b'\] have fewer than two shards"):
        halves(rearranged(run, {**whole(run), "b": [("b", 0)]}))


def test_a_file_that_changes_after_it_was_read_is_checked_again(tmp_path, run):
    path, sums = tmp_path / "0.safetensors", dict(run.shards["a"][0])
    write_shard(path, sums | {"other": torch.ones(1)})
    stored = Run({"a": [path]}, {})
    read = load_shards(stored, [get_method("lape")]).shards["a"][0]
    assert set(read) == set(sums)
    assert all(torch.equal(read[key], sums[key]) for key in sums)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="missing or damaged"):
        load_shards(stored, [get_method("lape")])
