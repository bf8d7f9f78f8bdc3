"""LAPE with frozen thresholds: thresholds that stay, and the rule that cannot see a change."""

import pytest
import torch

from lsn_lens.analysis.frozen_lape import frozen_counts
from lsn_lens.methods.frozen_lape import FrozenLape
from lsn_lens.methods.lape import Lape
from lsn_lens.runs.run import Run

LABELS, TOKENS, UNITS = ("new", "old", "other"), 1000, 400


def checkpoint(own, seed=0, sha="x"):
    """A run in which `own` neurons fire in the language "new" alone, the others more or less everywhere."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(100, 500, (1, 2, UNITS), generator=generator)
    counts = base + torch.randint(0, 60, (3, 2, UNITS), generator=generator)
    counts[:, 0, :own] = torch.tensor([900, 10, 10])[:, None]
    tokens = torch.full((2,), TOKENS)
    shards = {label: [{"mlp_pre.positive": counts[i], "tokens": tokens}] for i, label in enumerate(LABELS)}
    return Run(shards, {"text": {"languages": {label: {"sha256": sha} for label in LABELS}}, "statistics": []})


def test_without_numbers_it_is_lape():
    statistics = checkpoint(12).statistics
    for rate in (0.01, 0.05, 0.3):
        one, other = FrozenLape(rate=rate), Lape(rate=rate)
        assert one.select(one.score(statistics)) == other.select(other.score(statistics))


def test_frozen_on_itself_it_finds_what_it_found():
    statistics = checkpoint(12).statistics
    method = FrozenLape(rate=0.015)  # 12 of 800
    frozen = method.frozen(statistics)
    assert frozen.select(frozen.score(statistics)) == method.select(method.score(statistics))
    assert eval(repr(frozen), {"FrozenLape": FrozenLape}) == frozen


def test_frozen_thresholds_see_the_fall_that_the_fixed_share_cannot():
    planted = {"1000": 24, "2000": 16, "3000": 8, "4000": 2}
    runs = {name: checkpoint(own, seed) for seed, (name, own) in enumerate(planted.items())}
    table = frozen_counts(runs, "1000", rate=0.03)  # 24 of 800
    new = table[table["language"] == "new"].set_index("checkpoint")
    assert new["frozen"].to_dict() == planted
    assert new["frozen_total"].to_dict() == planted
    assert set(new["fixed_share_total"]) == {24}  # whatever the model learned


def test_bad_input_is_named():
    runs = {"1": checkpoint(4), "2": checkpoint(4, sha="y")}
    with pytest.raises(KeyError, match=r"no checkpoint '3'.*\['1', '2'\]"):
        frozen_counts(runs, "3")
    with pytest.raises(ValueError, match=r"\['2'\] have other languages or other text"):
        frozen_counts(runs, "1")
    with pytest.raises(ValueError, match="together"):
        FrozenLape(bar=0.5)
    with pytest.raises(ValueError, match="no threshold to freeze"):
        FrozenLape(rate=1e-6).frozen(checkpoint(4).statistics)
