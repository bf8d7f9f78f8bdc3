"""Scores and sets: algebra, controls, files."""

import builtins
import errno
import io
import json
import os
import pickle
import subprocess
import sys
import traceback

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import D_MLP, LAYERS
from safetensors.torch import save_file

from lsn_lens.files import labels_of, unit_mask, whole_number, write_bytes
from lsn_lens.model import structure
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE, widths_of
from lsn_lens.report import plots

LANGUAGES = ("en", "fr", "zh")


def random_set(seed, share=0.3, languages=LANGUAGES, method="test"):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(languages), 3, 20, generator=generator)
    wide = torch.rand(len(languages), 3, 30, generator=generator)
    return NeuronSet(languages, {"mlp": draw < share, "z": wide < share}, method)


def one_basis(units, languages=LANGUAGES, shape=(2, 10)):
    """A set from (language, layer, unit) triples."""
    mask = torch.zeros(len(languages), *shape, dtype=torch.bool)
    for language, layer, unit in units:
        mask[languages.index(language), layer, unit] = True
    return NeuronSet(languages, {"mlp": mask}, "by hand")


# algebra


@pytest.mark.parametrize("seed", range(5))
def test_set_algebra(seed):
    a, b, c = (random_set(3 * seed + i, 0.4) for i in range(3))
    assert a & b == b & a
    assert a | b == b | a
    assert (a & b) & c == a & (b & c)
    assert a & (b | c) == (a & b) | (a & c)
    assert a - b == a - (a & b)
    assert a ^ b == (a | b) - (a & b)
    assert (a - b) | (a & b) == a
    assert a & a == a == a | a
    assert len(a - a) == len(a ^ a) == 0
    assert (a | b).counts().tolist() == (a.counts() + b.counts() - (a & b).counts()).tolist()


def test_operators_by_hand():
    a = one_basis([("en", 0, 1), ("en", 1, 2), ("fr", 0, 1)])
    b = one_basis([("en", 1, 2), ("fr", 0, 5), ("zh", 0, 1)])
    assert a & b == one_basis([("en", 1, 2)])
    assert a | b == one_basis([("en", 0, 1), ("en", 1, 2), ("fr", 0, 1), ("fr", 0, 5), ("zh", 0, 1)])
    assert a - b == one_basis([("en", 0, 1), ("fr", 0, 1)])
    assert a ^ b == one_basis([("en", 0, 1), ("fr", 0, 1), ("fr", 0, 5), ("zh", 0, 1)])
    assert (a & b).method == "(by hand & by hand)"


@pytest.mark.parametrize(
    "other",
    [
        one_basis([], languages=("en", "fr", "de")),
        one_basis([], languages=("fr", "en", "zh")),
        one_basis([], shape=(2, 11)),
        random_set(0),
    ],
    ids=["languages", "order", "shape", "bases"],
)
def test_sets_that_do_not_fit_are_not_combined(other):
    with pytest.raises(ValueError, match="differ in languages or shape"):
        one_basis([]) & other


def test_only_keeps_layers_and_bases():
    whole = random_set(7)
    part = whole.only(layers=[2, 0], bases=["z"])
    assert not part.masks["mlp"].any()
    assert not part.masks["z"][:, 1].any()
    assert torch.equal(part.masks["z"][:, [0, 2]], whole.masks["z"][:, [0, 2]])
    rest = whole.only(bases=["mlp"]) | whole.only(layers=[1])
    assert part | rest == whole
    assert len(part) + len(rest) == len(whole)
    assert whole.only() == whole
    assert len(whole.only(layers=[])) == len(whole.only(bases=[])) == 0
    assert whole.random_like(3).only([1], ["z"]) == whole.only([1], ["z"]).random_like(3)
    assert whole == random_set(7)  # unchanged


@pytest.mark.parametrize(("wrong", "named"), [({"layers": [0, 3]}, r"\[3\]"), ({"bases": ["q"]}, r"\['q'\]")])
def test_only_refuses_what_the_set_lacks(wrong, named):
    with pytest.raises(KeyError, match=named + r"; the set has 3 layers and the bases \['mlp', 'z'\]"):
        random_set(0).only(**wrong)


def test_counts_and_units():
    found = one_basis([("en", 0, 1), ("en", 1, 2), ("zh", 0, 1)])
    assert found.counts().to_dict() == {"en": 2, "fr": 0, "zh": 1}
    assert found.layer_counts().to_dict("list") == {"en": [1, 1], "fr": [0, 0], "zh": [1, 0]}
    assert len(found) == 2  # (0, 1) belongs to two languages
    assert found.units("mlp").nonzero().tolist() == [[0, 1], [1, 2]]
    assert random_set(0).counts().tolist() == [
        int(random_set(0).masks["mlp"][i].sum() + random_set(0).masks["z"][i].sum()) for i in range(3)
    ]


def test_languages_are_picked_by_name_and_in_order():
    found = random_set(1)
    assert found["fr"].languages == ("fr",)
    assert torch.equal(found["fr"].masks["z"][0], found.masks["z"][1])
    assert found[["zh", "en"]].languages == ("zh", "en")
    assert found[["zh", "en"]][["en", "zh"]] == found[["en", "zh"]]
    assert "fr" in found
    assert "xx" not in found
    with pytest.raises(KeyError, match=r"\['xx'\].*\['en', 'fr', 'zh'\]"):
        found["xx"]


def test_jaccard_by_hand():
    found = one_basis([("en", 0, 1), ("en", 0, 2), ("en", 1, 1), ("fr", 0, 1), ("fr", 1, 1), ("fr", 1, 9)])
    table = found.jaccard()
    assert table.loc["en", "fr"] == table.loc["fr", "en"] == 2 / 4
    assert table.loc["en", "en"] == table.loc["fr", "fr"] == 1
    assert table.loc["en", "zh"] == 0
    assert pd.isna(table.loc["zh", "zh"])


def test_equality_is_by_content():
    assert random_set(0) == random_set(0, method="another name")
    assert random_set(0) != random_set(1)
    assert random_set(0) != random_set(0)[["fr", "en", "zh"]]
    assert one_basis([]) != random_set(0)
    assert one_basis([]) != "a set"
    with pytest.raises(TypeError, match="unhashable"):
        hash(random_set(0))


def test_masks_that_are_not_masks_are_refused():
    with pytest.raises(ValueError, match="named twice"):
        one_basis([], languages=("en", "en"))
    with pytest.raises(ValueError, match=r"\[language=2, layer, unit\].*\(3, 2, 10\)"):
        NeuronSet(("en", "fr"), {"mlp": torch.zeros(3, 2, 10, dtype=torch.bool)})


# the random control


@pytest.mark.parametrize("seed", range(4))
def test_random_like_matches_and_avoids(seed):
    found = random_set(seed, 0.15)
    control = found.random_like(seed)
    assert control.languages == found.languages
    for basis, mask in found.masks.items():
        assert torch.equal(control.masks[basis].sum(-1), mask.sum(-1))
    assert len(control & found) == 0
    assert control == found.random_like(seed)
    assert control != found.random_like(seed + 1)


def test_random_like_draws_for_a_language_whatever_the_others_are():
    found = random_set(2)
    assert found.random_like(5)["zh"] == found["zh"].random_like(5)
    alike = NeuronSet(LANGUAGES, {"mlp": random_set(2).masks["mlp"][:1].expand(3, -1, -1)})
    assert alike.random_like(0)["en"].units("mlp").ne(alike.random_like(0)["fr"].units("mlp")).any()


def test_random_like_in_a_layer_with_too_few_others_takes_own_units_last():
    mask = torch.zeros(1, 2, 10, dtype=torch.bool)
    mask[0, 0, :7] = True
    control = NeuronSet(("en",), {"mlp": mask}).random_like(0).masks["mlp"][0, 0]
    assert control.sum() == 7
    assert control[7:].all()


def test_random_like_is_even():
    mask = torch.zeros(1, 1, 11, dtype=torch.bool)
    mask[0, 0, 4] = True
    found = NeuronSet(("en",), {"mlp": mask})
    drawn = sum(found.random_like(seed).masks["mlp"][0, 0].long() for seed in range(2000))
    assert drawn[4] == 0
    assert drawn.sum() == 2000
    assert ((drawn - 200).abs()[torch.arange(11) != 4] < 70).all()  # 5 standard deviations


# tables and texts


def test_to_frame():
    found = one_basis([("en", 1, 2), ("zh", 0, 1)])
    expected = [
        {"language": "en", "basis": "mlp", "layer": 1, "unit": 2},
        {"language": "zh", "basis": "mlp", "layer": 0, "unit": 1},
    ]
    assert found.to_frame().to_dict("records") == expected
    assert one_basis([]).to_frame().columns.tolist() == ["language", "basis", "layer", "unit"]
    values = torch.full((2, 1, 3), -torch.inf)
    values[1, 0, 2] = 0.5
    scores = NeuronScores(("en", "fr"), {"mlp": values}, "test")
    assert scores.to_frame().to_dict("records") == [
        {"language": "fr", "basis": "mlp", "layer": 0, "unit": 2, "score": 0.5}
    ]
    assert scores.rank("mlp").tolist() == [[-torch.inf, -torch.inf, 0.5]]


def test_what_a_notebook_shows():
    found = one_basis([("en", 1, 2), ("zh", 0, 1)])
    assert repr(found) == "NeuronSet(2 units: en 1, fr 0, zh 1; mlp [2, 10]; by hand)"
    shown = NeuronSet(found.languages, found.masks, "a < b")._repr_html_()
    assert "2 units, a &lt; b" in shown
    assert "<td>1</td>" in shown
    assert all(f"<th>{label}</th>" in shown for label in found.languages)


# files


def test_sets_are_saved_and_loaded(tmp_path):
    mask = random_set(4).masks["mlp"]
    found = NeuronSet(LANGUAGES, {"mlp": mask, "q": mask}, "Some(rate=0.1)", {"asked": 3, "rate": 0.25})
    path = found.save(tmp_path / "deep" / "found.v1")
    assert path == tmp_path / "deep" / "found.v1.safetensors"
    loaded = NeuronSet.load(path)
    assert loaded == found
    assert (loaded.method, loaded.notes) == (found.method, found.notes)
    assert found.save(path) == path
    assert NeuronSet.load(found["fr"].save(tmp_path / "fr")) == found["fr"]


def test_scores_are_saved_and_loaded(tmp_path):
    values = {"mlp": torch.randn(2, 3, 4, dtype=torch.float64), "z": torch.randn(2, 3, 5)}
    values["mlp"][0, 1] = -torch.inf
    scores = NeuronScores(("en", "fr"), values, "test", {"mlp": torch.randn(3, 4)})
    loaded = NeuronScores.load(scores.save(tmp_path / "scores"))
    assert (loaded.languages, loaded.method) == (scores.languages, scores.method)
    assert all(torch.equal(loaded.values[basis], value) for basis, value in values.items())
    assert torch.equal(loaded.rank("mlp"), scores.ranking["mlp"])
    assert torch.equal(loaded.rank("z"), values["z"].amax(0))


def test_files_of_another_kind_are_refused(tmp_path):
    path = random_set(0).save(tmp_path / "set")
    with pytest.raises(ValueError, match="holds 'neurons', expected 'scores'"):
        NeuronScores.load(path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="something else"):
        NeuronSet.load(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"set\.safetensors is damaged"):
        NeuronSet.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        NeuronSet.load(tmp_path / "nowhere.safetensors")


# the released masks' format


def test_lape_file_round_trip(tmp_path):
    found = one_basis([("en", 0, 1), ("en", 1, 9), ("fr", 0, 1), ("en", 0, 0)])  # zh comes last and has none
    found.to_lape_file(tmp_path / "masks.pth")
    lists = torch.load(tmp_path / "masks.pth", weights_only=True)
    assert [[index.tolist() for index in layers] for layers in lists] == [[[0, 1], [9]], [[1], []], [[], []]]
    assert all(index.dtype == torch.int64 for layers in lists for index in layers)
    loaded = NeuronSet.from_lape_file(tmp_path / "masks.pth", LANGUAGES, d_mlp=10)
    assert loaded == found
    assert loaded.counts()["zh"] == 0
    assert "masks.pth" in loaded.method


def test_lape_file_languages_are_in_the_order_of_the_file(tmp_path):
    torch.save([[torch.tensor([3])], [torch.tensor([], dtype=torch.long)]], tmp_path / "masks.pth")
    assert NeuronSet.from_lape_file(tmp_path / "masks.pth", ["zh", "en"], 10).counts().to_dict() == {"zh": 1, "en": 0}
    with pytest.raises(ValueError, match="named twice"):
        NeuronSet.from_lape_file(tmp_path / "masks.pth", ["zh", "zh"], 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[torch.tensor([1])]], r"has 1 languages, but 2 were named: \['en', 'fr'\]"),
        ([[torch.tensor([1])]] * 3, "has 3 languages, but 2"),
        ([[torch.tensor([1])], [torch.tensor([1])] * 2], r"different numbers of layers: \[1, 2\]"),
        ([[torch.tensor([1])], [torch.tensor([2, 10])]], "fr, layer 0 has indices from 2 to 10, but d_mlp is 10"),
        ([[torch.tensor([1])], [torch.tensor([-1, 3])]], "indices from -1 to 3"),
        ({"en": []}, "expected a list of languages"),
        ([torch.tensor([1]), torch.tensor([2])], "expected a list of languages"),
    ],
    ids=["fewer", "more", "layers", "beyond", "negative", "dict", "flat"],
)
def test_lape_files_that_do_not_fit_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "masks.pth")
    with pytest.raises(ValueError, match=message):
        NeuronSet.from_lape_file(tmp_path / "masks.pth", ["en", "fr"], d_mlp=10)


class Trap:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (builtins.exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("content", "named"),
    [([[Trap()]], "exec"), ([[np.array([1, 2])]], r"numpy.*_reconstruct"), ([[np.int64(3)]], r"numpy.*scalar")],
    ids=["trap", "numpy array", "numpy number"],
)
def test_lape_files_with_objects_are_refused_without_bad_advice(content, named, tmp_path):
    torch.save(content, tmp_path / "masks.pth")
    with pytest.raises(ValueError, match=f"holds .*{named}.*can run code.*torch.from_numpy") as caught:
        NeuronSet.from_lape_file(tmp_path / "masks.pth", ["en"], d_mlp=10)
    whole = "".join(traceback.format_exception(caught.value))
    assert "weights_only" not in whole
    assert "safe_globals" not in whole


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer.*git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", r"cut off, damaged or no file of torch.save \(it begins with b'<!DOCTYPE"),
        (b"PK\x03\x04\x00\x00", "cut off, damaged"),
        (legacy([[torch.arange(5)]])[:-3], "cut off, damaged"),
        (legacy([[torch.arange(5)]])[:40], "cut off, damaged"),
        (pickle.dumps([[1, 2], [3]]), "no file of torch.save"),
    ],
    ids=["lfs", "empty", "html", "cut", "old and cut", "old and cut early", "pickle"],
)
def test_what_is_no_lape_file_is_refused_without_bad_advice(content, message, tmp_path):
    (tmp_path / "masks.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        NeuronSet.from_lape_file(tmp_path / "masks.pth", ["en"], d_mlp=10)
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))


def hot(*units, width=10, dtype=torch.bool):
    return torch.isin(torch.arange(width), torch.tensor(units)).to(dtype)


ALL_TYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("units", [(1, 5), (0,), (0, 1), (9,), (), tuple(range(10))], ids=str)
def test_masks_are_read_as_masks(units, dtype, tmp_path):
    content = [[hot(*units, dtype=dtype), hot(7, dtype=dtype)], [hot(dtype=dtype), hot(0, dtype=dtype)]]
    expected = [("en", 0, unit) for unit in units] + [("en", 1, 7), ("fr", 1, 0)]
    for rows in (content, [[layer.tolist() for layer in each] for each in content]):
        torch.save(rows, tmp_path / "masks.pth")
        found = NeuronSet.from_lape_file(tmp_path / "masks.pth", ("en", "fr"), 10)
        assert found == one_basis(expected, languages=("en", "fr"))


@pytest.mark.parametrize(
    ("given", "units"),
    [
        ([0, 1], [0, 1]), (torch.tensor([1, 0]), [0, 1]), ([1], [1]), (torch.tensor([[2], [5]]), [2, 5]),
        (torch.tensor(3), [3]), (3, [3]), ([], []), (torch.tensor([]), []), (torch.zeros(0, 1).long(), []),
        (torch.randperm(10), list(range(10))), (torch.tensor([3, 1], dtype=torch.uint8), [1, 3]),
        (torch.tensor([3, 1], dtype=torch.int16), [1, 3]), ((4, 2), [2, 4]), (hot(3)[:, None], [3]),
    ],
)  # fmt: skip
def test_indices_are_read_as_indices(given, units):
    assert unit_mask(given, 10, "here").nonzero()[:, 0].tolist() == units


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([1.9, 5.2]), "float32.*neither indices, which are integers, nor a mask of 10"),
        (torch.tensor([1.0, 5.0]), "neither indices"), ([1, 2.0], "neither indices"), (torch.tensor(1.5), "neither"),
        (torch.rand(10), "neither"), (torch.full((10,), torch.nan), "neither"),
        (torch.ones(9).bool(), r"\[9\]: a bool mask, but not of d_mlp=10"), (torch.tensor(True), "a bool mask, but"),
        (hot(1, 5, width=12, dtype=torch.int64), "12 indices, but only 2.*If it is a mask: it has 12 values, not 10"),
        (torch.tensor([3, 4, 3]), "3 indices, but only 2 different"), ([0, 1, 1], "but only 2"),
        (torch.tensor([-1, 3]), "from -1 to 3"), ([10], "from 10 to 10"), (torch.tensor(2**40), "but d_mlp is 10"),
        (torch.tensor([[1, 2], [3, 4]]), r"\[2, 2\], expected a list of indices"), ([[1, 2], [3]], "got list"),
        (torch.tensor([[1, 2]]), r"\[1, 2\], expected a list"), (torch.tensor([1j]), "complex"),
        ([True, 5], "truth values and numbers are mixed"), ([2**70], "got list"), (["1"], "got list"),
        (None, "NoneType"), ({"a": 1}, "got dict"), (torch.tensor([0, 1]).to_sparse(), "expected a plain one"),
    ],
)  # fmt: skip
def test_what_is_neither_mask_nor_indices_is_refused(given, message):
    with pytest.raises(ValueError, match=f"here.*{message}"):
        unit_mask(given, 10, "here")


def test_two_units_are_never_taken_for_a_mask():
    assert unit_mask([0, 1], 2, "here").tolist() == [True, True]  # as a mask it would be unit 1 alone
    assert unit_mask([False, True], 2, "here").tolist() == [False, True]


@pytest.mark.parametrize("number", [0, -3, 10.0, True, "10", None, torch.tensor([1, 2])], ids=str)
def test_the_width_is_a_whole_number(number):
    with pytest.raises(ValueError, match=r"d_mlp=.*expected a whole number of 1 or more"):
        whole_number(number, "d_mlp", least=1)
    assert whole_number(np.int64(7), "d_mlp") == whole_number(torch.tensor(7), "d_mlp") == 7


# labels


ONE_STRING = "languages='en' is one string: give a list"


def test_one_string_is_no_list_of_labels(tmp_path):
    torch.save([[torch.tensor([1])], [torch.tensor([2])]], tmp_path / "masks.pth")
    with pytest.raises(ValueError, match=ONE_STRING):
        NeuronSet.from_lape_file(tmp_path / "masks.pth", "en", 8)
    for wrong in ({"en", "fr"}, ["en", False], [1, 2], ["en", "en"], 7):
        with pytest.raises(ValueError, match=r"languages=|named twice"):
            labels_of(wrong)
    for right in (["en", "fr"], ("en", "fr"), {"en": 0, "fr": 1}, iter(["en", "fr"]), np.array(["en", "fr"])):
        assert labels_of(right) == ("en", "fr")


def test_labels_in_a_list_are_as_good_as_in_a_tuple(tmp_path):
    masks = one_basis([("en", 0, 1)]).masks
    listed, fixed = NeuronSet(list(LANGUAGES), masks), NeuronSet(LANGUAGES, masks)
    assert listed == fixed == listed & fixed == NeuronSet.load(listed.save(tmp_path / "set"))
    assert isinstance(listed.languages, tuple)
    scores = NeuronScores(list(LANGUAGES), {"mlp": masks["mlp"].double()}, "test")
    assert scores.languages == NeuronScores.load(scores.save(tmp_path / "scores")).languages == LANGUAGES
    for wrong in (lambda: NeuronSet("en", {"mlp": masks["mlp"][:2]}), lambda: NeuronScores("en", {}, "test")):
        with pytest.raises(ValueError, match=ONE_STRING):
            wrong()


def test_a_mask_of_layers_is_not_taken_for_layers():
    with pytest.raises(KeyError, match="no layer or basis"):
        random_set(0).only(layers=[True, False, True])
    assert random_set(0).only(bases="mlp") == random_set(0).only(bases=["mlp"])


# sets from tables


@pytest.mark.parametrize("seed", range(3))
def test_a_table_read_back_is_the_set(seed):
    found = random_set(seed)
    shuffled = found.to_frame().sample(frac=1, random_state=seed).assign(score=0.5)
    again = NeuronSet.from_frame(shuffled, {"mlp": (3, 20), "z": (3, 30)}, LANGUAGES, "method", {"a": 1})
    assert again == found
    assert (again.method, again.notes) == ("method", {"a": 1})


def test_languages_without_units_are_named_and_others_taken_from_the_table():
    found = one_basis([("zh", 1, 2), ("en", 0, 1)])
    table = found.to_frame()
    assert NeuronSet.from_frame(table, {"mlp": (2, 10)}, LANGUAGES) == found
    assert NeuronSet.from_frame(table.drop(columns="basis"), {"mlp": (2, 10)}) == found[["en", "zh"]]
    assert NeuronSet.from_frame(table[:0], {"mlp": (2, 10)}, LANGUAGES) == one_basis([])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"unit": [1.9, 2.0]}, ValueError, "'unit' is float64, expected whole numbers"),
        ({"unit": [True, False]}, ValueError, "'unit' is bool"),
        ({"unit": ["1", "2"]}, ValueError, "'unit' is"),
        ({"unit": pd.array([1, None], dtype="Int64")}, ValueError, "none missing"),
        ({"unit": [3, 10]}, ValueError, r"unit \[10\], expected 0 to 9"),
        ({"layer": [-1, 0]}, ValueError, r"layer \[-1\], expected 0 to 1"),
        ({"language": ["en", "xx"]}, KeyError, r"language \['xx'\].*\['en', 'fr', 'zh'\]"),
        ({"basis": ["mlp", "q"]}, KeyError, r"basis \['q'\].*\['mlp'\]"),
        ({"language": "en", "layer": 0, "unit": 1}, ValueError, r"repeated rows: \[\['en', 0, 1\]\]"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, error, message):
    table = one_basis([("en", 0, 1), ("zh", 1, 2)]).to_frame().assign(**change)
    with pytest.raises(error, match=message):
        NeuronSet.from_frame(table, {"mlp": (2, 10)}, LANGUAGES)


def test_a_table_without_a_column_and_shapes_that_are_none():
    table = one_basis([("en", 0, 1)]).to_frame()
    with pytest.raises(KeyError, match=r"no columns \['unit'\]"):
        NeuronSet.from_frame(table.drop(columns="unit"), {"mlp": (2, 10)}, LANGUAGES)
    with pytest.raises(KeyError, match=r"no columns \['basis'\]"):
        NeuronSet.from_frame(table.drop(columns="basis"), {"mlp": (2, 10), "z": (2, 10)}, LANGUAGES)
    with pytest.raises(ValueError, match=r"shapes\['mlp'\]=0"):
        NeuronSet.from_frame(table, {"mlp": (2, 0)}, LANGUAGES)


def test_lape_file_holds_mlp_only(tmp_path):
    with pytest.raises(ValueError, match=r"'mlp' alone.*\['mlp', 'z'\]"):
        random_set(0).to_lape_file(tmp_path / "masks.pth")
    assert not list(tmp_path.iterdir())


# whole files or none


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_bytes_replaces_a_file(tmp_path):
    write_bytes(tmp_path / "new" / "file", b"one")
    write_bytes(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(at, tmp_path, monkeypatch):
    path = tmp_path / "set.safetensors"
    kept = random_set(0)
    kept.save(path)
    if at == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr(type(path), "replace", no_space)
    message = r"No space left.*No partial file.*Make room and run the same call again"
    with pytest.raises(OSError, match=message) as caught:
        random_set(1).save(path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
    assert NeuronSet.load(path) == kept


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Give a place that can be written to.*file/set"):
        random_set(0).save(tmp_path / "file" / "set")


def test_the_header_is_json(tmp_path):
    path = random_set(0).save(tmp_path / "set")
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["lsn_lens"]
    assert json.loads(header)["languages"] == list(LANGUAGES)


def test_truth_values_as_tensors_are_not_mixed_with_numbers(tmp_path):
    torch.save([[[torch.tensor(True), 3], []], [[], []]], tmp_path / "m.pth")
    with pytest.raises(ValueError, match="truth values and numbers are mixed"):
        NeuronSet.from_lape_file(tmp_path / "m.pth", ("en", "fr"), 8)


@pytest.mark.parametrize("shape", [8, (2, 1, 8)])
def test_shapes_of_a_table_are_layers_and_units(shape, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    frame = pd.DataFrame({"language": ["en"], "basis": ["mlp"], "layer": [0], "unit": [1]})
    with pytest.raises(ValueError, match=r"expected two numbers, \(layers, units\)"):
        NeuronSet.from_frame(frame, {"mlp": shape})


# as people type it


def test_a_set_is_gone_through_like_a_dictionary(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: types are not checked before
    found = one_basis([("en", 0, 1), ("en", 1, 2), ("zh", 0, 1)])
    assert [(language, each.languages, len(each)) for language, each in found] == [
        ("en", ("en",), 2), ("fr", ("fr",), 0), ("zh", ("zh",), 1),
    ]  # fmt: skip
    assert list(found) == list(dict(found).items())
    assert len(found) == 2  # units, not languages
    with pytest.raises(KeyError, match=r"0 is not a label: found\['fr'\] is the set of one of \['en', 'fr', 'zh'\]"):
        found[0]


def test_what_languages_share_and_what_is_theirs_alone():
    triples = [("en", 0, 1), ("fr", 0, 1), ("zh", 0, 1), ("en", 0, 2), ("fr", 0, 2), ("fr", 1, 3)]
    found = one_basis(triples)

    def units(each):
        return each.languages, each.to_frame()[["layer", "unit"]].values.tolist()

    assert units(found.shared("fr", "en")) == (("fr & en",), [[0, 1], [0, 2]])
    assert units(found.shared()) == (("en & fr & zh",), [[0, 1]])
    assert units(found.only_in("fr")) == (("fr",), [[1, 3]])
    assert units(found.only_in("en", "fr")) == (("en & fr",), [[0, 2]])
    assert found.only_in("zh").method == "by hand, only in zh"
    with pytest.raises(KeyError, match=r"no language \['de'\]"):
        found.shared("de", "en")
    with pytest.raises(ValueError, match=r"found\.shared\(\"fr\", \"en\"\), found\.only_in\(\"fr\"\)"):
        found["fr"] & found["en"]


@pytest.mark.parametrize("seed", range(3))
def test_shared_and_alone_by_algebra(seed):
    found = random_set(seed, 0.5)
    one, other, rest = (found[each].masks for each in found.languages)
    for basis, mask in found.shared("en", "fr").masks.items():
        assert torch.equal(mask, one[basis] & other[basis])
    for basis, mask in found.only_in("en").masks.items():
        assert torch.equal(mask, one[basis] & ~other[basis] & ~rest[basis])


def test_the_best_units_of_a_language():
    values = torch.full((2, 2, 3), -torch.inf)
    values[0] = torch.tensor([[0.5, 2.0, -torch.inf], [2.0, 0.1, 3.0]])
    wide = torch.full((2, 2, 4), -torch.inf)
    wide[0, 1, 3] = 2.5
    scores = NeuronScores(("fr", "en"), {"mlp": values, "z": wide}, "by hand")
    assert scores.top("fr", 4).to_dict("list") == {
        "layer": [1, 1, 0, 1], "unit": [2, 3, 1, 0], "basis": ["mlp", "z", "mlp", "mlp"],
        "score": [3.0, 2.5, 2.0, 2.0], "rank": [1, 2, 3, 4],
    }  # fmt: skip
    assert scores.top("fr", 2, "z")["unit"].tolist() == [3]
    assert len(scores.top("fr")) == 6 and len(scores.top("en")) == 0
    assert "inf" not in scores._repr_html_() and scores._repr_html_().count("<td>mlp") == 4
    assert scores.top("en").dtypes["layer"] == "int64" and "0.0<" not in scores._repr_html_()
    assert repr(scores) == "NeuronScores(fr, en; mlp [2, 2, 3], z [2, 2, 4] [language, layer, unit]; by hand)"
    for wrong in (("de",), ("fr", 3, "q")):
        with pytest.raises(KeyError, match=r"there are \['fr', 'en'\] on \['mlp', 'z'\]"):
            scores.top(*wrong)


def test_a_table_of_somebody_and_pairs_become_a_set(load, tmp_path):
    expected = one_basis([("fr", 0, 1), ("fr", 1, 9), ("en", 1, 2)], languages=("fr", "en"))
    pairs = {"fr": [(0, 1), (1, 9)], "en": [(1, 2)]}
    assert NeuronSet.from_dict(pairs, (2, 10)) == expected
    (tmp_path / "theirs.csv").write_text("language,layer,unit\nfr,0,1\nfr,1,9\nen,1,2\n")
    table = pd.read_csv(tmp_path / "theirs.csv")
    assert NeuronSet.from_frame(table, {"mlp": (2, 10)}) == expected
    model = load("llama")
    ours = NeuronSet.from_frame(table, model)
    assert ours == NeuronSet.from_dict(pairs, model) and ours.masks["mlp"].shape[1:] == (LAYERS, D_MLP)
    assert NeuronSet.from_dict({"fr": [(0, 1)], "en": []}, model, "v").counts().to_dict() == {"fr": 1, "en": 0}
    for basis, width in widths_of(model.cfg).items():
        assert width == structure.site_width(model, WRITE_SITE[basis]), basis
    with pytest.raises(KeyError, match=r"no basis \['router'\]; the bases are \['mlp'"):
        NeuronSet.from_frame(table.assign(basis="router"), model)


@pytest.mark.parametrize(
    ("given", "shape", "said"),
    [
        ({"fr": [(0, 1, 2)]}, (2, 10), r"\[\(0, 1, 2\)\]: expected pairs \(layer, unit\)"),
        ({"fr": [(0, 10)]}, (2, 10), r"unit \[10\], expected 0 to 9"),
        ({"fr": [(0, 1), (0, 1)]}, (2, 10), "repeated rows"),
        ({"fr": [(0, 1)]}, 10, r"shapes=10: expected .*or a model"),
    ],
)
def test_pairs_that_are_none(given, shape, said):
    with pytest.raises(ValueError, match=said):
        NeuronSet.from_dict(given, shape)


def test_the_suffix_may_be_left_out(tmp_path):
    found = random_set(0)
    assert found.save(tmp_path / "x") == tmp_path / "x.safetensors"
    assert NeuronSet.load(tmp_path / "x") == NeuronSet.load(tmp_path / "x.safetensors") == found
    (tmp_path / "x.safetensors").rename(tmp_path / "plain")
    assert NeuronSet.load(tmp_path / "plain") == found
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        NeuronSet.load(tmp_path / "x")


def test_a_set_draws_itself():
    found = random_set(0)
    for drawn, by_table in ((found.plot(), plots.layer_counts(found.layer_counts())),
                            (found.plot("overlap"), plots.overlap(found.jaccard()))):  # fmt: skip
        assert drawn.title == by_table.title
        assert drawn.marks[0].values.equals(by_table.marks[0].values)


def test_a_set_draws_itself_in_a_fresh_interpreter():
    code = """
import sys
from lsn_lens.neurons.sets import NeuronSet
found = NeuronSet.from_dict({"fr": [(0, 1)], "en": []}, (2, 10))
assert "lsn_lens.report.plots" not in sys.modules
print(found.plot().title)
try:
    found.plot("pie")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "Neurons per layer and language", "kind='pie': expected one of ['layers', 'overlap'].",
    ]  # fmt: skip
