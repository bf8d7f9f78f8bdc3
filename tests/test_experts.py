"""Fine-grained experts against brute force in NumPy and against the dense model."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKENDS

import lsn_lens as lsn
from lsn_lens.analysis import experts as evaluation
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.report.plots import expert_heatmap
from lsn_lens.statistics.experts import balanced_clusters, select_experts, select_mass, select_top
from lsn_lens.statistics.sums import Statistics

TEXTS = {
    "en": ["The river is high after the rain.", "The bridge is closed."],
    "de": ["Der Fluss steht hoch.", "Die Brücke ist gesperrt."],
    "zh": ["雨后河水上涨。", "桥已经关闭。"],
}
LAYOUT = lsn.Layout(kind="documents", batch_tokens=48)


def collected(model, method):
    return lsn.collect(model, lsn.load_corpora(TEXTS, hold_out=0.0), [method], layout=LAYOUT, progress=False)


def test_clusters_are_balanced_deterministic_and_find_what_is_there():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 10, generator=generator)
    truth = torch.arange(6).repeat_interleave(8)[torch.randperm(48, generator=generator)]
    rows = 3 * (centres[truth] + 0.05 * torch.randn(48, 10, generator=generator))
    found = balanced_clusters(rows, 8)
    assert torch.equal(found.bincount(), torch.full((6,), 8))
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 6
    assert torch.equal(found, balanced_clusters(rows * 7, 8))  # directions count, not lengths
    noise = torch.randn(60, 5, generator=generator)
    assert torch.equal(balanced_clusters(noise, 4).bincount(), torch.full((15,), 4))
    with pytest.raises(ValueError, match=r"experts of 7 .* 48; sizes that do: \[1, 2, 3, 4, 6, 8, 12, 16, 24, 48\]"):
        balanced_clusters(rows, 7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_counts_are_those_of_brute_force(name, backend, load):
    model = load(name, backend)
    width = model.blocks[0].mlp.W_out.shape[0]
    size, act = (4, torch.nn.functional.silu) if name == "llama" else (8, torch.nn.GELU("tanh"))
    many_experts = width // size
    for score, selection, share in (
        ("l1", "per_layer", 0.25), ("l2", "cross_layer", 0.3), ("contribution", "threshold", 0.6),
        ("pos", "per_layer", 0.2),
    ):  # fmt: skip
        method = ExpertFrequency(size=size, score_of=score, selection=selection, share=share)
        run = collected(model, method)
        assignment = run.constants[f"{method.counts().key}.assignment"].numpy()
        frequency = method.frequency(run.statistics).numpy()
        for place, texts in enumerate(TEXTS.values()):
            counts, tokens = np.zeros((2, many_experts)), 0
            for text in texts:
                ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
                _, cache = model.run_with_cache(torch.tensor([ids]))
                scores = np.zeros((2, len(ids), many_experts))
                for layer in range(2):
                    hidden = cache[f"blocks.{layer}.mlp.hook_post"][0].double().numpy()
                    norms = model.blocks[layer].mlp.W_out.detach().double().norm(dim=1).numpy()
                    gate = act(cache[f"blocks.{layer}.mlp.hook_pre"][0]).double().numpy()
                    unit = {"l1": abs(hidden), "l2": hidden**2, "contribution": abs(hidden) * norms,
                            "pos": gate.clip(0)}[score]  # fmt: skip
                    for expert in range(many_experts):
                        scores[layer, :, expert] = unit[:, assignment[layer] == expert].sum(1)
                for token in range(1, len(ids)):  # without the separator
                    tokens += 1
                    each = scores[:, token]
                    if selection == "cross_layer":
                        best = np.argsort(-each.ravel())[: round(share * 2 * many_experts)]
                        counts.ravel()[best] += 1
                        continue
                    for layer in range(2):
                        order = np.argsort(-each[layer])
                        many = max(1, round(share * many_experts))
                        if selection == "threshold":
                            many = int(np.searchsorted(each[layer][order].cumsum(), share * each[layer].sum())) + 1
                        counts[layer, order[:many]] += 1
            assert np.allclose(frequency[place], counts / tokens, atol=1.5 / tokens)  # a tie in rounding moves one
            assert np.abs(frequency[place] * tokens - counts).sum() <= 2
        if selection == "per_layer":
            assert np.allclose(frequency.sum(2), max(1, round(share * many_experts)))
        if selection == "cross_layer":
            assert np.allclose(frequency.sum((1, 2)), round(share * 2 * many_experts))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_experts_are_the_dense_model(name, backend, load):
    model = load(name, backend)
    method = ExpertFrequency(size=model.blocks[0].mlp.W_out.shape[0] // 16)
    assignment = collected(model, method).constants[f"{method.counts().key}.assignment"]
    ids = torch.tensor([[1, 5, 9, 30, 77]])
    dense, cache = model.run_with_cache(ids)
    hidden, rows = cache["blocks.1.mlp.hook_post"][0], model.blocks[1].mlp.W_out
    parts = [hidden[:, assignment[1] == each] @ rows[assignment[1] == each] for each in range(16)]
    assert torch.allclose(sum(parts), hidden @ rows, atol=1e-4)
    with evaluation.only_experts(model, assignment, 1.0):
        assert torch.allclose(model(ids), dense, atol=1e-5)
    with evaluation.only_experts(model, assignment, 0.25):
        masked, kept = model.run_with_cache(ids)
    live = kept["blocks.0.mlp.hook_post"][0] != 0
    experts = [set(assignment[0][row].tolist()) for row in live]
    assert all(len(each) == 4 for each in experts)
    assert not torch.allclose(masked, dense, atol=1e-2)
    assert torch.equal(model(ids), dense)
    with pytest.raises(ValueError, match="share=0"):
        evaluation.only_experts(model, assignment, 0).__enter__()


def test_selection_rules_by_hand():
    scores = torch.tensor([[3.0, 1.0, 3.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    assert select_top(scores, 2).tolist() == [[True, False, True, False], [True, False, False, True]]
    assert select_mass(scores, 0.6).tolist() == [[True, False, True, False], [False, False, False, True]]
    raised = torch.stack([scores, 100 * scores])  # the later layer is larger
    raw, relative = (select_experts(raised, "cross_layer", 0.5, each) for each in (False, True))
    assert raw[0, 0].sum() == 0 and raw[1, 0].sum() == 4
    assert relative[0, 0].sum() == 3 and relative[1, 0].sum() == 1  # ties go to the lower layer


def made_up(frequency):
    """Statistics with the frequencies given, `[language, layer, expert]`, and two neurons an expert."""
    key, labels = ExpertFrequency(size=2).counts().key, tuple("abcdef"[: len(frequency)])
    layers, experts = frequency.shape[1:]
    sums = {
        f"{key}.selected": (frequency * 1000).round().long(),
        f"{key}.counted": torch.full((len(labels), layers), 1000),
        "mlp_post.squares": torch.ones(len(labels), layers, 2 * experts).double(),
    }
    constants = {f"{key}.assignment": torch.arange(experts).repeat_interleave(2).expand(layers, -1)}
    return Statistics(labels, sums, torch.full((len(labels), layers), 1000), constants=constants)


def test_exclusive_experts_by_hand():
    frequency = torch.full((3, 1, 10), 0.1)
    frequency[0, 0, 3] = 0.9
    frequency[1, 0, 4] = frequency[2, 0, 4] = 0.8  # of two languages
    method = ExpertFrequency(size=2, rate=0.3)
    statistics = made_up(frequency)
    statistics.sums["mlp_post.squares"][:, 0, 7] = 0  # one neuron of expert 3 never fires
    found = method.select(method.score(statistics))
    assert found["a"].units("mlp")[0].nonzero()[:, 0].tolist() == [6]
    assert found["b"].counts().item() == found["c"].counts().item() == 0
    sets = evaluation.expert_sets(statistics, method, {"pair": ["b", "c"]}).set_index("set")["experts"]
    assert sets.to_dict() == {"shared by all": 0, "only a": 1, "only b": 0, "only c": 0, "family pair": 1}
    with pytest.raises(KeyError, match=r"\['x'\]"):
        evaluation.expert_sets(statistics, method, {"odd": ["x"]})


def test_expected_overlap_is_that_of_random_draws():
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(400):
        table = evaluation.expert_sets(made_up(torch.rand(3, 1, 10, generator=generator)),
                                       ExpertFrequency(size=2, high=0.4), {"pair": ["a", "b"]})  # fmt: skip
        draws.append(table.set_index("set"))
    mean = sum(each["experts"] for each in draws) / len(draws)
    assert np.allclose(mean, draws[0]["expected"], atol=0.15)


@pytest.mark.parametrize("measure", ["pearson", "cosine", "jaccard"])
def test_families_that_are_there_are_found_and_others_are_not(measure):
    generator = torch.Generator().manual_seed(1)
    base = torch.rand(2, 4, 20, generator=generator)
    planted = torch.stack([base[i % 2] + 0.1 * torch.rand(4, 20, generator=generator) for i in range(6)]) / 1.2
    similarity = evaluation.expert_similarity(made_up(planted), ExpertFrequency(size=2), measure)
    families = {"odd": ["b", "d", "f"], "even": ["a", "c", "e"]}
    found = evaluation.family_test(similarity, families, permutations=2000)
    assert found["difference"] > 0.2
    assert found["p"] < 0.15  # of 20 divisions into threes, two are this one
    none = evaluation.family_test(similarity, {"one": ["a", "b"], "two": ["c", "d"]}, permutations=2000)
    assert none["p"] > 0.3
    top = evaluation.language_clusters(similarity)[:4, :2]
    assert top.shape == (4, 2)
    with pytest.raises(ValueError, match="no pair within"):
        evaluation.family_test(similarity, {"one": ["a"]})


def test_one_order_of_experts_for_all_languages():
    table = evaluation.frequencies(made_up(torch.rand(3, 2, 10)), ExpertFrequency(size=2))
    assert table.shape == (6, 10)
    charts = [expert_heatmap(table, language) for language in ("a", "b")]
    assert charts[0].marks[0].limits == charts[1].marks[0].limits == (0.0, 1.0)
    assert all(isinstance(each.marks[0].values, pd.DataFrame) for each in charts)
    assert list(charts[0].marks[0].values.columns) == list(charts[1].marks[0].values.columns)


def test_what_cannot_be_is_refused(load):
    with pytest.raises(ValueError, match=r"experts of 32 neurons do not divide a layer of 48; sizes that do: \[1, 2"):
        collected(load("llama"), ExpertFrequency())
    with pytest.raises(ValueError, match="measure='x'"):
        evaluation.expert_similarity(made_up(torch.rand(3, 1, 10)), ExpertFrequency(size=2), "x")
    with pytest.raises(ValueError, match="high=2"):
        ExpertFrequency(high=2.0)
