"""DLN against NumPy histograms and against all ways to divide the languages."""

from itertools import combinations

import numpy as np
import pytest
import torch

import lsn_lens as lsn
from lsn_lens.methods.dln import Dln, overlaps, smallest_group, weakest_link
from lsn_lens.statistics.sums import Statistics

TEXTS = {
    "en": ["The river is high after the rain.", "The bridge is closed."],
    "de": ["Der Fluss steht hoch.", "Die Brücke ist gesperrt, und wir warten."],
    "zh": ["雨后河水上涨。", "桥已经关闭。"],
}


@pytest.mark.parametrize(("name", "floor"), [("llama", None), ("gpt2", None), ("llama", -0.2)])
def test_counts_are_those_of_a_numpy_histogram(name, floor, load):
    model = load(name)
    method = Dln(bins=10, spread=1.5, floor=floor)
    run = lsn.collect(model, lsn.load_corpora(TEXTS, hold_out=0.0), [method],
                      layout=lsn.Layout(kind="documents", batch_tokens=32), progress=False)  # fmt: skip
    key = "mlp_act.histogram10x1.5" + ("" if floor is None else f"from{floor:g}")
    counts = run.statistics.get(key)
    low, width = (run.constants[f"{key}.{each}"].numpy() for each in ("low", "width"))
    act = torch.nn.functional.silu if name == "llama" else torch.nn.GELU("tanh")
    beyond = 0
    for place, texts in enumerate(TEXTS.values()):
        rows = []
        for text in texts:
            ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
            _, cache = model.run_with_cache(torch.tensor([ids]))
            rows.append(act(cache["blocks.1.mlp.hook_pre"][0]))
        values = torch.cat(rows).detach().numpy()
        for unit in range(values.shape[1]):
            edges = low[1, unit] + width[1, unit] * np.arange(11)
            inner = np.histogram(np.concatenate([values[:, unit]]), np.concatenate([[-1e9], edges, [1e9]]))[0]
            moved = np.abs(inner - counts[place, 1, unit].numpy()).sum()
            assert moved <= 2  # a value on an edge may round to either side
            beyond += inner[0] + inner[-1]
    assert beyond > 0  # the tails are used


@pytest.mark.parametrize("floor", [-0.4, -1.8])  # released; one that some units' bins begin above
def test_bins_begin_at_the_floor_and_end_where_they_did(floor, load):
    layout = lsn.Layout(kind="documents", batch_tokens=32)
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    methods = [Dln(bins=400, spread=3.0), Dln(bins=400, spread=3.0, floor=floor)]
    constants = lsn.collect(load("llama"), corpora, methods, layout=layout, progress=False).constants
    free, bound = ({part: constants[f"mlp_act.histogram400x3{end}.{part}"] for part in ("low", "width")}
                   for end in ("", f"from{floor:g}"))  # fmt: skip
    assert torch.equal(bound["low"], free["low"].clamp_min(floor))
    assert 0 < (free["low"] < floor).double().mean() <= (1 if floor == -0.4 else 0.9)
    ends = [each["low"] + 400 * each["width"] for each in (free, bound)]
    assert torch.allclose(*ends, atol=1e-4)


def test_overlap_by_hand():
    counts = torch.tensor([[[4, 0, 0]], [[0, 2, 2]], [[2, 1, 1]]])
    expected = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]], dtype=torch.float64)
    assert torch.allclose(overlaps(counts)[0], expected)


@pytest.mark.parametrize("languages", [2, 3, 4, 6])
def test_cost_and_group_are_those_of_all_divisions(languages):
    generator = torch.Generator().manual_seed(languages)
    counts = torch.randint(0, 30, (languages, 40, 7), generator=generator) + 1
    means = torch.rand(languages, 40, generator=generator, dtype=torch.float64)
    similarity = overlaps(counts)
    cost = weakest_link(similarity)
    groups = smallest_group(similarity, cost, means)
    for unit in range(40):
        each = similarity[unit]
        found = {}
        for size in range(1, languages):
            for group in combinations(range(languages), size):
                rest = [i for i in range(languages) if i not in group]
                found[group] = float(each[list(group)][:, rest].max())
        best = min(found.values())
        assert float(cost[unit]) == pytest.approx(best, abs=1e-12)
        ways = [group for group, value in found.items() if value <= best + 1e-12]
        chosen = tuple(groups[unit].nonzero()[:, 0].tolist())
        assert chosen in ways
        smallest = min(map(len, ways))
        assert len(chosen) == smallest
        same = [group for group in ways if len(group) == smallest]
        assert float(means[list(chosen), unit].mean()) == pytest.approx(
            max(float(means[list(group), unit].mean()) for group in same)
        )


def test_thirty_languages_are_no_problem():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (30, 2, 50, 12), generator=generator)
    counts[:, :, 3] = torch.tensor([5, 5] + [0] * 10)
    counts[17, :, 3] = torch.tensor([0] * 10 + [5, 5])
    tokens = torch.full((30, 2), 100)
    labels = tuple(f"l{i}" for i in range(30))
    sums = {"mlp_act.histogram10": counts, "mlp_act.sum": torch.rand(30, 2, 50, generator=generator).double()}
    method = Dln(bins=10)
    found = method.select(method.score(Statistics(labels, sums, tokens)))
    assert found["l17"].units("mlp").nonzero().tolist() == [[0, 3], [1, 3]]
    assert found.notes["single language"] >= 2
    assert found.counts().drop("l17").sum() == len(found) - 2 or found.notes["several languages"]


def test_a_neuron_without_differences_is_not_chosen():
    sums = {"mlp_act.histogram2": torch.ones(3, 1, 5, 4).int(), "mlp_act.sum": torch.zeros(3, 1, 5).double()}
    method = Dln(share=1.0, bins=2)
    assert len(method.select(method.score(Statistics(("a", "b", "c"), sums, torch.full((3, 1), 4))))) == 0


def test_settings_that_cannot_be_used():
    with pytest.raises(ValueError, match="bins=0"):
        Dln(bins=0)
    with pytest.raises(ValueError, match="share=0"):
        Dln(share=0.0)
