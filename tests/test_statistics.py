"""Sums over tokens: exact, mergeable, and what is derived from them."""

import pytest
import torch

from lsn_lens.statistics.needs import REDUCTIONS, ROWS, Statistic, count_positive, sum_squares, sum_values
from lsn_lens.statistics.sums import Statistics, merge

SHAPES = [(0, 3), (1, 1), (7, 5), (ROWS - 1, 3), (ROWS, 2), (ROWS + 1, 4), (3 * ROWS + 17, 9), (2000, 31)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_exact(shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    rows = torch.randn(shape, generator=generator).to(dtype)
    rows[torch.rand(shape, generator=generator) < 0.2] = 0.0
    counts = count_positive(rows)
    assert torch.equal(counts.long(), (rows > 0).sum(0))


def test_zeros_nan_and_the_smallest_numbers():
    tiny = torch.finfo(torch.float32).tiny
    rows = torch.tensor([0.0, -0.0, torch.nan, -torch.inf, torch.inf, tiny, -tiny, 1e-45])[:, None]
    each = [int(count_positive(row[None])) for row in rows]
    assert each == [0, 0, 0, 0, 1, 1, 0, 1]
    assert int(count_positive(rows)) == 3


def test_counting_leaves_its_input_alone():
    rows = torch.randn(ROWS + 5, 3)
    before = rows.clone()
    count_positive(rows)
    assert torch.equal(rows, before)


def test_sums_by_hand():
    rows = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert sum_values(rows).tolist() == [4.0, -1.5]
    assert sum_squares(rows).tolist() == [10.0, 4.25]
    assert sum_values(rows.bfloat16()).tolist() == [4.0, -1.5]


def test_a_bfloat16_sum_is_not_summed_in_bfloat16():
    rows = torch.ones(1000, 1, dtype=torch.bfloat16)  # beyond 256, adding 1 in bfloat16 changes nothing
    assert sum_values(rows).item() == 1000
    assert sum_squares(rows).item() == 1000


def part(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "mlp_pre.positive": torch.randint(0, 1 << 40, (2, 5), generator=generator),
        "mlp_post.sum": torch.randn(2, 5, generator=generator, dtype=torch.float64),
        "tokens": torch.full((2,), seed),
    }


def test_merging_adds_in_the_order_given():
    parts = [part(seed) for seed in range(5)]
    merged = merge(parts)
    expected = parts[0]["mlp_post.sum"]
    for each in parts[1:]:
        expected = expected + each["mlp_post.sum"]
    assert torch.equal(merged["mlp_post.sum"], expected)
    assert merged["tokens"].tolist() == [10, 10]


def test_merging_counts_is_associative_and_commutative():
    a, b, c = part(1), part(2), part(3)
    key = "mlp_pre.positive"
    assert torch.equal(merge([merge([a, b]), c])[key], merge([a, merge([b, c])])[key])
    assert torch.equal(merge([a, b, c])[key], merge([c, a, b])[key])


def test_merging_leaves_its_parts_alone():
    a, b = part(1), part(2)
    assert all(torch.equal(value, a[key]) for key, value in merge([a]).items())
    merge([a, b])
    assert all(torch.equal(value, part(1)[key]) for key, value in a.items())


def test_parts_that_do_not_fit_are_not_merged():
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])
    less = {key: value for key, value in part(1).items() if key != "tokens"}
    with pytest.raises(ValueError, match="different statistics"):
        merge([part(0), less])
    narrow = {**part(1), "mlp_post.sum": torch.zeros(2, 1, dtype=torch.float64)}  # would broadcast
    with pytest.raises(ValueError, match=r"different statistics.*\(2, 5\).*\(2, 1\)"):
        merge([part(0), narrow])


@pytest.fixture
def statistics():
    sums = {
        "mlp_pre.positive": torch.tensor([[[1, 2]], [[5, 0]], [[10, 10]]]),
        "mlp_post.sum": torch.tensor([[[2.0, -4.0]], [[10.0, 5.0]], [[-10.0, 0.0]]], dtype=torch.float64),
    }
    return Statistics(("en", "fr", "zh"), sums, torch.tensor([[4], [5], [10]]))


def test_probability_and_mean_by_hand(statistics):
    assert statistics.probability("mlp_pre").tolist() == [[[0.25, 0.5]], [[1.0, 0.0]], [[1.0, 1.0]]]
    assert statistics.probability("mlp_pre").dtype == torch.float64
    assert statistics.mean("mlp_post").tolist() == [[[0.5, -1.0]], [[2.0, 1.0]], [[-1.0, 0.0]]]


def test_pooled_mean_by_hand(statistics):
    assert statistics.pooled_mean("mlp_post").tolist() == [[0.5, 0.0]]
    assert statistics.pooled_mean("mlp_post", without="fr").tolist() == [[-0.25, -0.5]]


def test_what_is_missing_is_named(statistics):
    with pytest.raises(KeyError, match=r"'xx'.*\['en', 'fr', 'zh'\]"):
        statistics.pooled_mean("mlp_post", without="xx")
    with pytest.raises(KeyError, match=r"mlp_act\.sum.*mlp_pre\.positive"):
        statistics.mean("mlp_act")
    alone = Statistics(("en",), {"mlp_post.sum": torch.zeros(1, 1, 2, dtype=torch.float64)}, torch.ones(1, 1).long())
    with pytest.raises(ValueError, match="no language is left without 'en'"):
        alone.pooled_mean("mlp_post", without="en")


def test_keys_and_types():
    assert Statistic("mlp_pre", "positive").key == "mlp_pre.positive"
    assert {name: each.dtype for name, each in REDUCTIONS.items()} == {
        "positive": torch.int64,
        "sum": torch.float64,
        "squares": torch.float64,
        "absolute": torch.float64,
        "act_grad": torch.float64,
    }


def test_bits_do_not_depend_on_the_number_of_threads():
    rows, before = torch.randn(4096, 96, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([reduction.function(rows) for reduction in REDUCTIONS.values()])
    finally:
        torch.set_num_threads(before)
    for each in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], each, strict=True))
