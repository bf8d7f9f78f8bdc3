"""Scores and sums as labelled arrays: the same numbers by name."""

import importlib.util

import pytest
import torch

from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.statistics.sums import Statistics

LABELS = ("en", "fr")
VALUES = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
SCORES = NeuronScores(LABELS, {"mlp": VALUES, "q": VALUES[..., :2]}, "Lape()", {}, {"model": "a/b"})
COUNTS = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
SUMS = Statistics(LABELS, {"mlp_post.sum": VALUES, "mlp_act.histogram": COUNTS}, torch.ones(2, 3).long())


def test_numbers_are_found_by_their_labels():
    pytest.importorskip("xarray")
    scores, counts = SCORES.to_xarray("q"), SUMS.to_xarray("mlp_act.histogram")
    assert scores.dims == ("language", "layer", "unit") and counts.dims == (*scores.dims, "bin")
    assert float(scores.sel(language="fr", layer=2, unit=1)) == VALUES[1, 2, 1] and scores.shape == (2, 3, 2)
    assert int(counts.sel(language="en", layer=1, unit=3, bin=4)) == COUNTS[0, 1, 3, 4]
    assert scores.attrs["method"] == "Lape()" and "a/b" in scores.attrs["model"] and scores.name == "q"
    assert SUMS.to_xarray("mlp_post.sum").mean("unit").values.tolist() == VALUES.mean(-1).tolist()


def test_what_is_not_there_is_said(monkeypatch):
    with pytest.raises(KeyError, match=r"no scores on 'x'; there are scores on \['mlp', 'q'\]"):
        SCORES.to_xarray("x")
    with pytest.raises(KeyError, match="did not collect 'x'"):
        SUMS.to_xarray("x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the package xarray is missing\. pip install 'lsn-lens\[xarray\]'"):
        SCORES.to_xarray()
