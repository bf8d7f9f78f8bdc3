"""Pruning plans against brute force, their controls, and what they cost."""

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKENDS, D_MLP, LAYERS, SENTENCES
from oracles import loss_of, read_ids

import lsn_lens as lsn
from lsn_lens import applications
from lsn_lens.applications.prune import CRITERIA, _by_level
from lsn_lens.evaluation.baseline import Measured
from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.statistics.experts import ExpertAssignment, select_experts

pytestmark = pytest.mark.usefixtures("no_gradients")

TEXTS = {
    label: [f"{number} {SENTENCES[place]}" for number in range(12)] for place, label in enumerate(("en", "de", "fr"))
}
LAYOUT = lsn.Layout(kind="documents", length=64)
QUIET = {"progress": False, "layout": LAYOUT}
EXPERTS = {"llama": 4, "gpt2": 8}  # neurons per expert


def methods_of(name):
    return ExpertFrequency(size=EXPERTS[name]), ExpertFrequency(size=EXPERTS[name], selection="cross_layer")


@pytest.fixture(scope="module")
def collected(load):
    """`collected(architecture, backend)`: model, corpora, statistics."""
    made = {}

    def build(name="llama", backend="bridge"):
        if (name, backend) not in made:
            model, corpora = load(name, backend), lsn.load_corpora(TEXTS, hold_out=0.5)
            methods = [*methods_of(name), ExpertFrequency(size=1)]
            run = lsn.collect(model, corpora, methods, extra=applications.prune_needs(), **QUIET)
            made[name, backend] = model, corpora, run.statistics
        return made[name, backend]

    return build


def cached(model, text):
    _, cache = model.run_with_cache(read_ids(text, model))
    return [
        {site: cache[f"blocks.{layer}.mlp.{site}"][0].double().numpy() for site in ("hook_pre", "hook_post")}
        for layer in range(LAYERS)
    ]


# what is removed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXPERTS)
def test_scores_are_those_of_brute_force(name, backend, collected):
    model, corpora, statistics = collected(name, backend)
    method, act = methods_of(name)[0], {"llama": torch.nn.functional.silu, "gpt2": torch.nn.GELU("tanh")}[name]
    experts = method.experts_of(statistics)
    hf = model.original_model if backend == "bridge" else None
    for place, corpus in enumerate(corpora.values()):
        read = [cached(model, text) for text in corpus.find]
        for layer in range(LAYERS):
            hidden, pre = (np.concatenate([each[layer][site] for each in read]) for site in ("hook_post", "hook_pre"))
            rows = model.blocks[layer].mlp.W_out.double().numpy()
            units = {
                "firing": (act(torch.tensor(pre)).numpy() > 0).mean(0),
                "contribution": np.abs(hidden).mean(0) * np.sqrt((rows**2).sum(1)),
                "wanda": np.sqrt((hidden**2).mean(0)) * np.abs(rows).sum(1),
            }
            if hf is not None:
                names = [("gate", 0), ("in", 0), ("out", 1)] if name == "llama" else [("in", 1), ("out", 0)]
                parts = [model.blocks[layer].mlp.submodules[key] for key, _ in names]
                squares = sum(
                    (part.original_component.weight.double().numpy() ** 2).sum(1 - axis)
                    for part, (_, axis) in zip(parts, names, strict=True)
                )
                units["magnitude"] = np.sqrt(squares)
            for by, expected in units.items():
                found = applications.prune_scores(model, statistics, by, method)[place, layer].numpy()
                mine = [expected[experts.units[layer].numpy() == each].mean() for each in range(experts.experts)]
                assert np.allclose(found, mine, rtol=1e-4), by
                single = applications.prune_scores(model, statistics, by, ExpertFrequency(size=1))
                assert np.allclose(single[place, layer].numpy(), expected, rtol=1e-4), by
    frequency = applications.prune_scores(model, statistics, "frequency", method)
    assert torch.equal(frequency, method.frequency(statistics))
    assert torch.equal(applications.prune_scores(model, statistics, "inverted", method), -frequency)


@pytest.mark.parametrize("by", CRITERIA)
def test_plans_remove_the_lowest_whole_experts(by, collected):
    model, _, statistics = collected()
    plain, across = methods_of("llama")
    scores = applications.prune_scores(model, statistics, by, plain).numpy()
    experts = plain.experts_of(statistics)
    uniform = applications.prune_plan(model, statistics, 0.3, by, method=plain)
    gone = [
        [set(experts.units[layer][uniform.masks["mlp"][place, layer]].tolist()) for layer in range(LAYERS)]
        for place in range(3)
    ]
    for place in range(3):
        for layer in range(LAYERS):
            order = sorted(range(12), key=lambda e, place=place, layer=layer: (scores[place, layer, e], e))
            assert gone[place][layer] == set(order[:3])  # floor(0.3 * 12)
    whole = applications.prune_plan(model, statistics, 0.3, by, method=plain, layers="global")
    for place, language in enumerate(statistics.languages):
        every = sorted((scores[place, layer, e], layer, e) for layer in range(LAYERS) for e in range(12))[:6]
        counts = [sum(layer == each for _, each, _ in every) for layer in range(LAYERS)]
        assert whole.notes["removed"][language] == counts
    level = applications.prune_plan(model, statistics, 0.3, by, method=across, layers="level", slope=0.2)
    assert uniform.counts().eq(24).all() and whole.counts().eq(24).all() and level.counts().eq(24).all()
    assert uniform.origin["fingerprint"] == statistics.origin["fingerprint"]
    assert not applications.kept_experts(uniform, "de", experts)[1, list(gone[1][1])].any()


def test_rates_by_level_fall_with_the_level_and_keep_the_mean():
    levels = torch.tensor([4.0, 1.0, 2.0, 9.0])
    counts = _by_level(levels, 10, 40, 0.1)
    assert int(counts.sum()) == 40
    assert counts.argsort(descending=True).tolist() == levels.argsort().tolist()
    z = (levels - levels.mean()) / levels.std(correction=0)
    assert (counts / 40 - (0.25 - 0.1 * z)).abs().max() < 1 / 40
    steep = _by_level(levels, 20, 40, 5.0)  # clipped at both ends
    assert int(steep.sum()) == 80 and steep.max() <= 39 and steep.min() == 0
    with pytest.raises(lsn.DoesNotApply, match=r"equally many selected experts .*selection='cross_layer'"):
        _by_level(torch.ones(4), 10, 40, 0.1)


def test_random_experts_are_whole_and_as_many_in_each_layer(collected):
    model, _, statistics = collected()
    plain, across = methods_of("llama")
    experts = plain.experts_of(statistics)
    plan = applications.prune_plan(model, statistics, 0.3, method=across, layers="level")
    drawn = [applications.random_experts(plan, experts, seed) for seed in range(40)]
    for each in drawn[:4]:
        assert torch.equal(each.masks["mlp"].sum(2), plan.masks["mlp"].sum(2))
        assert all((~applications.kept_experts(each, label, experts)).any() for label in each.languages)
    assert drawn[0] != drawn[1] and drawn[0] == applications.random_experts(plan, experts, 0)
    share = torch.stack([each.masks["mlp"][0].float() for each in drawn]).mean(0)
    assert (share - plan.masks["mlp"][0].float().mean(1, keepdim=True)).abs().max() < 0.4  # every expert can be drawn
    assert share.min() > 0
    single = ExpertFrequency(size=1).experts_of(statistics)
    assert torch.equal(applications.random_experts(plan, single, 0).masks["mlp"].sum(2), plan.masks["mlp"].sum(2))
    by_hand = lsn.NeuronSet.from_dict({"en": [(0, 1)]}, model)
    with pytest.raises(ValueError, match=r"removes \[0, 1\] neurons .*multiples of 4"):
        applications.random_experts(by_hand, experts, 0)
    with pytest.raises(ValueError, match="parts of these experts of 4"):
        applications.kept_experts(by_hand, "en", experts)


def test_what_cannot_be_removed_is_refused(collected, load, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    model, _, statistics = collected()
    method = methods_of("llama")[0]

    def plan(rate, by="frequency", **more):
        return applications.prune_plan(model, statistics, rate, by, method=method, **more)

    with pytest.raises(ValueError, match=r"rate=1 leaves every layer empty"):
        plan(1.0)
    with pytest.raises(ValueError, match=r"removes none of a layer's 12 experts: expected 0.0833"):
        plan(0.05)
    with pytest.raises(ValueError, match=r"rate=-0.1: expected a share"):
        plan(-0.1)
    with pytest.raises(KeyError, match=r"unknown criterion 'size'; the criteria are \['frequency'"):
        plan(0.3, "size")
    with pytest.raises(ValueError, match="layers='some'"):
        plan(0.3, layers="some")
    with pytest.raises(ValueError, match=r"the run is from .*found on another model"):
        applications.prune_plan(load("llama_mha"), statistics, 0.3, method=method)
    flat = statistics.sums[f"{method.counts().key}.selected"].clone()
    flat[:, 0] = 0  # a layer that no token selects
    changed = type(statistics)(
        statistics.languages, {**statistics.sums, f"{method.counts().key}.selected": flat}, statistics.tokens,
        constants=statistics.constants,
    )  # fmt: skip
    with pytest.raises(lsn.DoesNotApply, match=r"en would lose all 12 experts of the layers \[0\]"):
        applications.prune_plan(model, changed, 0.5, method=method, layers="global")


# what it costs


def test_losses_are_those_of_the_masked_model(collected):
    model, corpora, statistics = collected()
    method = methods_of("llama")[0]
    plan = applications.prune_plan(model, statistics, 0.5, method=method)
    losses = applications.prune_losses(model, corpora, {"half": plan}, **QUIET)
    rows = losses.table.set_index(["plan", "language", "evaluated"])
    for on in ("en", "fr"):
        ids = [read_ids(text, model) for text in corpora[on].hold_out]
        clean = loss_of(model, ids)
        with lsn.intervene(model, plan["de"], lsn.zero):
            masked = loss_of(model, ids)
        row = rows.loc[("half", "de", on)]
        assert row["nll"] == pytest.approx(masked, abs=1e-5)
        assert row["rise"] == pytest.approx(masked - clean, abs=1e-5)
        assert row["rise_low"] <= row["rise"] <= row["rise_high"]
        assert row["kept_neurons"] == 0.5 and row["neurons"] == D_MLP
        assert rows.loc[("none", "none", on), "kept_parameters"] == 1
    assert losses.matrix("half").loc["de", "fr"] == rows.loc[("half", "de", "fr"), "rise"]
    table = losses.against_languages("half").set_index("language")
    others = [rows.loc[("half", off, "en"), "rise"] for off in ("de", "fr")]
    assert table.loc["en", "gain"] == pytest.approx(np.mean(others) - rows.loc[("half", "en", "en"), "rise"])
    with pytest.raises(ValueError, match=r"the plans \['plan'\] have a language without neurons"):
        applications.prune_losses(model, corpora, lsn.NeuronSet.from_dict({"en": []}, model), **QUIET)


def test_gains_by_hand():
    tokens = {"en": np.array([10.0, 30.0, 20.0, 20.0, 20.0, 10.0])}
    own = np.array([3.0, 1.0, 4.0, 1.0, 1.0, 1.0])
    rises = {("plan", "en", "en"): own, ("a", "en", "en"): own + tokens["en"] * 0.2,
             ("b", "en", "en"): np.array([8.0, 6.0, 4.0, 4.0, 4.0, 2.0])}  # fmt: skip
    losses = applications.PruneLosses(pd.DataFrame(), Measured(pd.DataFrame(), rises, tokens), {"en": 0.5})
    row = losses.against("plan", ["a", "b"]).iloc[0]
    b = 28 / 110
    assert (row["rise"], row["others_least"], row["others_most"]) == pytest.approx((0.1, b, 0.3))  # 11 of 110 tokens
    assert row["gain"] == pytest.approx((0.3 + b) / 2 - 0.1) and row["better_than"] == row["others"] == 2
    assert row["gain_bits_per_byte"] == pytest.approx(row["gain"] / 2)
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    sure = losses.against("plan", ["a"]).iloc[0]
    assert (sure["gain_low"], sure["gain_high"]) == pytest.approx(
        (0.2, 0.2)
    )  # the same in every document, though both vary
    with pytest.raises(KeyError, match=r"not measured: \[\('c', 'en', 'en'\)\]"):
        losses.against("plan", ["c"])


# sparse activation


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_across_layers_are_those_of_the_dense_model(backend, collected):
    model, _, statistics = collected("llama", backend)
    experts = methods_of("llama")[0].experts_of(statistics)
    pool = torch.rand(LAYERS, 12, generator=torch.Generator().manual_seed(0)) < 0.6
    ids = torch.tensor([[1, 5, 9, 30, 77], [3, 4, 5, 6, 7]])
    dense, cache = model.run_with_cache(ids)
    hidden = [cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1) for layer in range(LAYERS)]
    for among, relative in ((None, False), (pool, False), (pool, True)):
        scores = np.zeros((10, LAYERS, 12))
        for layer, each in enumerate(hidden):
            for e in range(12):
                scores[:, layer, e] = each[:, experts.units[layer] == e].abs().sum(1).numpy()
            if relative:
                scores[:, layer] /= scores[:, layer].mean(1, keepdims=True)
        masks = np.zeros((10, LAYERS, 12), dtype=bool)
        allowed = np.ones((LAYERS, 12), dtype=bool) if among is None else among.numpy()
        for token in range(10):
            best = sorted(((layer, e) for layer in range(LAYERS) for e in range(12) if allowed[layer, e]),
                          key=lambda at, token=token: -scores[token][at])[:6]  # fmt: skip
            for at in best:
                masks[token][at] = True
        hooks = [
            (f"blocks.{layer}.mlp.hook_post",
             lambda acts, hook, at=layer: acts * torch.tensor(masks[:, at])[:, experts.units[at]].view_as(acts))
            for layer in range(LAYERS)
        ]  # fmt: skip
        expected = model.run_with_hooks(ids, fwd_hooks=hooks)
        how = {"among": among, "selection": "cross_layer", "relative": relative}
        with lsn.analysis.only_experts(model, experts, 0.25, **how):
            assert torch.allclose(model(ids), expected, atol=1e-5)
            assert torch.allclose(model(ids), expected, atol=1e-5)  # again, after a first text
        assert not torch.allclose(expected, dense, atol=1e-2)
    assert torch.equal(model(ids), dense)
    with lsn.analysis.only_experts(model, experts, 1.0, selection="cross_layer"):
        assert torch.allclose(model(ids), dense, atol=1e-5)
        with pytest.raises(ValueError, match=r"experts across layers are chosen by a first reading"):
            lsn.generate(model, ["The river"], tokens=3, progress=False)


def test_a_token_chooses_within_its_pool(collected, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked for a user
    model, _, statistics = collected()
    experts = methods_of("llama")[0].experts_of(statistics)
    pool = torch.zeros(LAYERS, 12, dtype=torch.bool)
    pool[:, [2, 5, 7]] = True
    with lsn.analysis.only_experts(model, experts, 2 / 12, among=pool):
        _, cache = model.run_with_cache(torch.tensor([[1, 5, 9, 30]]))
    live = [set(experts.units[1][row].tolist()) for row in cache["blocks.1.mlp.hook_post"][0] != 0]
    assert all(len(each) == 2 and each <= {2, 5, 7} for each in live)
    with lsn.analysis.only_experts(model, experts, 0.9, among=pool):  # fewer than asked for
        _, cache = model.run_with_cache(torch.tensor([[1, 5, 9, 30]]))
    assert {len(set(experts.units[1][row].tolist())) for row in cache["blocks.1.mlp.hook_post"][0] != 0} == {3}
    empty = pool & False
    with pytest.raises(ValueError, match="an expert in every layer"):
        lsn.analysis.only_experts(model, experts, 0.5, among=empty).__enter__()
    with pytest.raises(ValueError, match="selection='some'"):
        lsn.analysis.only_experts(model, experts, 0.5, selection="some").__enter__()  # type: ignore
    zeros = torch.zeros(1, 1, 4)
    assert select_experts(zeros, "threshold", 1.0, among=torch.tensor([[True, False, True, False]])).sum() == 0


def test_sparse_losses_are_those_inside_the_block(collected):
    model, corpora, statistics = collected()
    method = methods_of("llama")[0]
    experts = method.experts_of(statistics)
    plan = applications.prune_plan(model, statistics, 0.5, method=method)
    losses = applications.sparse_losses(model, corpora, {"pool": plan}, experts, 0.25, **QUIET)
    ids = [read_ids(text, model) for text in corpora["de"].hold_out]
    with lsn.analysis.only_experts(model, experts, 0.25, among=applications.kept_experts(plan, "de", experts)):
        expected = loss_of(model, ids)
    row = losses.table.set_index(["plan", "language"]).loc[("pool", "de")]
    assert row["nll"] == pytest.approx(expected, abs=1e-5)
    assert row["rise"] == pytest.approx(expected - loss_of(model, ids), abs=1e-5)
    assert set(losses.against("pool", ["all experts"])["language"]) == set(TEXTS)


# experts of a sibling


def test_an_assignment_is_saved_and_used_on_a_sibling(collected, load, tmp_path):
    _, corpora, statistics = collected()
    method = ExpertFrequency(size=4)
    experts = method.experts_of(statistics)
    kept = ExpertAssignment.load(experts.save(tmp_path / "experts"))
    assert torch.equal(kept.units, experts.units) and kept.origin == experts.origin and kept.digest == experts.digest
    sibling = load("llama_mha")  # another model of the same shape, whose own clusters are others
    same, own = ExpertFrequency(size=4, assignment=kept), ExpertFrequency(size=4)
    run = lsn.collect(sibling, corpora, [same, own], **QUIET)
    assert same.counts().key != own.counts().key and kept.digest in same.counts().key
    assert torch.equal(same.experts_of(run.statistics).units, experts.units)
    assert not torch.equal(own.experts_of(run.statistics).units, experts.units)
    counts = np.zeros((LAYERS, 12))
    for text in corpora["en"].find:
        for layer, each in enumerate(cached(sibling, text)):
            scores = np.stack([np.abs(each["hook_post"][:, experts.units[layer] == e]).sum(1) for e in range(12)], 1)
            best = np.argsort(-scores[1:], axis=1)[:, :2]
            np.add.at(counts[layer], best.ravel(), 1)
    assert np.allclose(run.statistics.get(f"{same.counts().key}.selected")[0].numpy(), counts, atol=1)
    carried = applications.prune_plan(sibling, run.statistics, 0.3, method=same)
    assert carried.origin["fingerprint"] == run.statistics.origin["fingerprint"]
    with pytest.raises(ValueError, match=r"size=8, but the assignment has experts of 4"):
        ExpertFrequency(size=8, assignment=kept)
    with pytest.raises(lsn.DoesNotApply, match=r"\[2, 48\] \[layer, neuron\]; this model has \[2, 128\]"):
        lsn.collect(load("gpt2"), corpora, [same], **QUIET)
    with pytest.raises(ValueError, match="of equal size in every layer"):
        ExpertAssignment(torch.tensor([[0, 0, 1]]))
    with pytest.raises(ValueError, match="holds 'experts', expected 'neurons'"):
        lsn.NeuronSet.load(tmp_path / "experts")
