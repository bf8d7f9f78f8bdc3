"""Entropy-lambda against a plain loop over neurons."""

import math

import pytest
import torch

from lsn_lens.methods.entropy_lambda import EntropyLambda, classes
from lsn_lens.statistics.sums import Statistics

LABELS = ("a", "b", "c", "d")
TOKENS = 1000


def statistics(counts):
    return Statistics(LABELS, {"mlp_pre.positive": counts}, torch.full((4, counts.shape[1]), TOKENS))


def random_counts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 200, (4, 3, 40), generator=generator)
    counts[0, :, :6] = 900  # one language
    counts[:2, :, 6:12] = 800  # two
    counts[:, :, 12:15] = 950  # all
    return counts


def by_loop(counts, rate, share, balance):
    """Value and owners of each chosen neuron, written from the formula."""
    p = [[[int(counts[k, layer, j]) / TOKENS for k in range(4)] for j in range(40)] for layer in range(3)]
    pool = sorted(x for layer in p for neuron in layer for x in neuron)
    bar = pool[round(share * len(pool)) - 1]
    rows = []
    for layer in range(3):
        for j in range(40):
            each = p[layer][j]
            entropy = -sum(x / sum(each) * math.log(x / sum(each)) for x in each if x > 0)
            harmonic = sum(1 / i for i in range(1, 5)) / 4
            rows.append((entropy / math.log(4) - balance * max(each) / harmonic, layer, j))
    rows = sorted((round(value, 12), layer, j) for value, layer, j in rows)[: round(rate * 120)]
    return {(layer, j): [k for k in range(4) if p[layer][j][k] > bar] for _, layer, j in rows}


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_equal_to_a_loop(balance):
    counts = random_counts()
    method = EntropyLambda(rate=0.2, bar_share=0.8, balance=balance)
    found = method.select(method.score(statistics(counts)))
    expected = by_loop(counts, 0.2, 0.8, balance)
    for place in range(4):
        owned = {tuple(each) for each in found.masks["mlp"][place].nonzero().tolist()}
        assert owned == {unit for unit, owners in expected.items() if place in owners}
    sizes = {name: int(each.sum()) for name, each in classes(found).items()}
    assert found.notes == sizes
    assert sizes["specific"] == sum(len(owners) == 1 for owners in expected.values())
    assert sizes["general"] == sum(len(owners) == 4 for owners in expected.values())


def test_the_search_stops_just_before_general_neurons():
    counts = random_counts()
    found = EntropyLambda(rate=0.4, bar_share=0.8)
    assert found.select(found.score(statistics(counts))).notes["general"] == 0
    lowest = next(x / 1000 for x in range(100_000) if any(
        len(owners) == 4 for owners in by_loop(counts, 0.4, 0.8, x / 1000).values()))  # fmt: skip
    just, beyond = (EntropyLambda(rate=0.4, bar_share=0.8, balance=lowest + step) for step in (-0.002, 0.002))
    assert just.select(just.score(statistics(counts))) == found.select(found.score(statistics(counts)))
    assert beyond.select(beyond.score(statistics(counts))).notes["general"] > 0


def test_the_classes_by_hand():
    counts = torch.tensor([[[900, 900, 900, 1]], [[1, 900, 900, 1]], [[1, 1, 900, 1]], [[1, 1, 900, 1]]])
    method = EntropyLambda(rate=1.0, bar_share=0.5, balance=0.0)
    found = method.select(method.score(statistics(counts)))
    assert {name: each[0].nonzero()[:, 0].tolist() for name, each in classes(found).items()} == {
        "specific": [0], "related": [1], "general": [2]
    }  # fmt: skip


def test_settings_that_cannot_be_used():
    with pytest.raises(ValueError, match="balance=-1"):
        EntropyLambda(balance=-1.0)
