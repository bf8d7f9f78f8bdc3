"""Agreement, controls and warnings are what they are on cases whose answer is known."""

import copy
import html
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import D_MLP, LAYERS, SENTENCES
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, jaccard_score

import lsn_lens as lsn
from lsn_lens.comparison import doubts, sizes
from lsn_lens.comparison.overlaps import (
    agreement,
    average_agreement,
    mean_agreement,
    overlap_at_equal_size,
    rank_correlation,
    strongest,
)
from lsn_lens.controls.matched import activity
from lsn_lens.methods.lape import Lape
from lsn_lens.methods.random import Random
from lsn_lens.model import forward, structure
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import TOKENS

UNITS = 60
TEXT = {"en": SENTENCES[0], "de": SENTENCES[1]}


def corpora_of(texts):
    return lsn.load_corpora({label: [f"{place} {text}" for place in range(60)] for label, text in texts.items()})


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_subset(count, among, size, seed):
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[among[torch.randperm(len(among), generator=generator(seed))[:count]]] = True
    return chosen


def make_set(units, shape=(2, 10), basis="mlp", languages=("xx",)):
    """One language's units as (layer, unit), the same for all languages."""
    mask = torch.zeros(len(languages), *shape, dtype=torch.bool)
    for layer, unit in units:
        mask[:, layer, unit] = True
    return NeuronSet(tuple(languages), {basis: mask}, "made")


def make_scores(found, seed=0):
    values = {basis: torch.rand(mask.shape, generator=generator(seed)).double() for basis, mask in found.masks.items()}
    return NeuronScores(found.languages, values, "made")


def two(a, b, scores_a=None, scores_b=None):
    return agreement({"a": a, "b": b}, {"a": scores_a or make_scores(a, 1), "b": scores_b or make_scores(b, 2)})


# agreement


def test_known_overlap():
    a = make_set([(0, 0), (0, 1), (0, 2), (1, 0)])
    b = make_set([(0, 1), (0, 2), (0, 3), (1, 5)])
    row = two(a, b).iloc[0]
    assert (row["units"], row["bases"], row["note"]) == (4, "mlp", "")
    assert row["jaccard"] == pytest.approx(2 / 6)
    assert row["overlap"] == pytest.approx(2 / 4)
    assert row["expected_overlap"] == pytest.approx((3 * 3 / 10 + 1 * 1 / 10) / 4)
    assert row["chance_corrected"] == pytest.approx((0.5 - 0.25) / 0.75)


@pytest.mark.parametrize("count", [1, 7, 30, 59])
def test_one_layer_is_cohens_kappa(count):
    a, b = (random_subset(count, torch.arange(UNITS), UNITS, seed) for seed in (1, 2))
    values = overlap_at_equal_size(a, b, torch.zeros(UNITS, dtype=torch.long))
    assert values["chance_corrected"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert values["jaccard"] == pytest.approx(jaccard_score(a, b))


def test_identical_sets_agree_wholly_and_random_ones_by_chance():
    layers = torch.arange(3).repeat_interleave(UNITS)
    size = len(layers)
    same = random_subset(20, torch.arange(size), size, 0)
    assert overlap_at_equal_size(same, same, layers)["chance_corrected"] == 1
    # both sets lie in the middle layer: a chance level over all layers would call them alike
    middle = (layers == 1).nonzero()[:, 0]
    draws = [
        overlap_at_equal_size(
            random_subset(20, middle, size, 2 * seed), random_subset(20, middle, size, 2 * seed + 1), layers
        )
        for seed in range(300)
    ]
    corrected = pd.Series([each["chance_corrected"] for each in draws])
    assert abs(corrected.mean()) < 4 * corrected.std() / math.sqrt(len(corrected))
    assert pd.Series([each["overlap"] for each in draws]).mean() == pytest.approx(1 / 3, abs=0.03)


def test_sets_that_fill_their_layers_have_no_corrected_value():
    full = torch.ones(5, dtype=torch.bool)
    assert math.isnan(overlap_at_equal_size(full, full, torch.zeros(5, dtype=torch.long))["chance_corrected"])


def test_equal_size_takes_the_best_of_the_larger_set():
    large = make_set([(0, unit) for unit in range(6)])
    small = make_set([(0, 4), (0, 5)])
    scores = make_scores(large)
    scores.values["mlp"][0, 0] = torch.arange(10.0)  # units 4 and 5 are the large set's best
    row = two(large, small, scores).iloc[0]
    assert (row["units"], row["jaccard"], row["chance_corrected"]) == (2, 1, 1)
    scores.values["mlp"][0, 0] = -torch.arange(10.0)
    assert two(large, small, scores).iloc[0]["jaccard"] == 0
    assert two(small, large, None, scores).iloc[0]["jaccard"] == 0  # whichever comes first


def test_ties_and_units_that_cannot_belong_come_in_order():
    chosen = torch.tensor([True, True, False, True, True])
    scores = torch.tensor([-math.inf, 1.0, 9.0, 1.0, 2.0])
    assert [strongest(chosen, scores, n).nonzero()[:, 0].tolist() for n in (1, 2, 4)] == [[4], [1, 4], [0, 1, 3, 4]]


def test_rank_correlation_is_spearmans():
    a, b = (torch.randn(UNITS, generator=generator(seed)).double().round(decimals=1) for seed in (1, 2))
    b = b + a
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    a[:20], b[10:30] = -math.inf, -math.inf  # 10 to 19 are neither's
    kept = [*range(10), *range(20, UNITS)]
    low = [torch.where(each.isfinite(), each, torch.tensor(-99.0).double())[kept] for each in (a, b)]
    assert rank_correlation(a, b) == pytest.approx(spearmanr(*low).statistic)
    assert math.isnan(rank_correlation(a, torch.zeros(UNITS).double()))


def test_only_common_bases_are_compared():
    a, b = make_set([(0, 0), (1, 1)]), make_set([(0, 0), (1, 1)], basis="q")
    row = two(a, b).iloc[0]
    assert row["note"] == "no common basis"
    assert math.isnan(row["chance_corrected"])
    both = replace(b, masks={**b.masks, "mlp": make_set([(0, 0), (0, 1), (0, 2)]).masks["mlp"]})
    row = two(a, both).iloc[0]
    assert (row["bases"], row["units"]) == ("mlp", 2)


def test_languages_without_units_are_named_and_not_averaged():
    languages = ("en", "fr")
    a, b = (make_set([(0, 0), (0, 1)], languages=languages) for _ in range(2))
    b.masks["mlp"][1] = False
    frame = two(a, b)
    assert list(frame["language"]) == ["en", "fr"]  # best first: missing values come last
    average = average_agreement(frame).iloc[0]
    assert (average["languages"], average["chance_corrected"]) == (1, 1)
    assert average["note"] == "no units of b on the common bases in fr"


def test_mean_agreement_counts_each_pair_for_both():
    average = pd.DataFrame(
        {"method": ["a", "a", "b"], "other": ["b", "c", "c"], "chance_corrected": [1.0, 0.0, math.nan]}
    )
    assert mean_agreement(average).to_dict() == {"a": 0.5, "b": 1.0, "c": 0.0}


# a made-up run: no model


def made_run(languages=("en", "fr", "zh"), keys=("mlp_pre.positive", "mlp_act.sum"), layers=3, units=200):
    shards = {}
    for label in languages:
        sums = {TOKENS: torch.full((layers,), 1000)}
        for key in keys:
            shared, own = (generator(sum(label.encode()) + more) for more in (0, len(key)))
            share = (torch.rand(layers, units, generator=shared) ** 8).lerp(
                torch.rand(layers, units, generator=own), 0.1
            )
            sums[key] = (1000 * share).long() if key.endswith("positive") else (1000 * share).double()
        shards[label] = [sums]
    model, text = {"name": "made"}, {"languages": {}}
    costs = {"forward": 9.0, **{key: place + 1.0 for place, key in enumerate(keys)}}
    return Run(shards, {"statistics": list(keys), "model": model, "text": text, "rows": False}, costs=costs)


def test_without_a_model_the_tables_that_need_none_are_there():
    found = lsn.compare(made_run(), ["lape", "lave", "lap"])
    assert set(found.ranking["method"]) == {"lape", "lave", "lap"}
    assert len(found.agreement) == 3
    assert len(found.agreement_by_language) == 9
    assert len(found.layers) == 9
    for name in ("effects", "effects_by_language", "specificity", "control", "control_by_language", "losses"):
        assert not hasattr(found, name)
        assert name in repr(found)
        with pytest.raises(
            KeyError, match=rf"no table '{name}': it was not measured: compare\(run, ..., model=..., cor"
        ):
            found[name]
    assert "own_rise" not in found.ranking


def test_a_comparison_is_a_mapping_of_its_tables():
    found = lsn.compare(made_run(), ["lape", "lave"])
    assert next(iter(found)) == "ranking"
    assert len(found) == len(list(found)) == 8
    for name, table in found.items():
        assert table is found[name] is getattr(found, name)
        assert name in dir(found)
    with pytest.raises(AttributeError, match=r"trust=Checks\(replicates=...\)"):
        _ = found.stability
    with pytest.raises(AttributeError, match=r"no table 'rankin': there is no such table. The tables are \['ranking'"):
        _ = found.rankin
    assert copy.deepcopy(found.sizes).equals(copy.copy(found).sizes)
    assert found in [found]
    assert found != lsn.compare(made_run(), ["lape", "lave"])


def test_methods_are_named_or_objects_alone_or_several():
    parameters = {"lape": {"rate": 0.05}}
    found = lsn.compare(made_run(), [Lape(rate=0.1), "lape"], parameters=parameters)
    assert list(found.found) == [repr(Lape(rate=0.1)), "lape"]
    assert list(found.sizes["units"]) == [60, 30]
    assert list(lsn.compare(made_run(), Lape()).found) == [repr(Lape())]
    assert list(lsn.compare(made_run(), "lave").found) == ["lave"]


def test_a_wrong_parameter_lists_those_that_there_are():
    with pytest.raises(TypeError, match=r"compare\(\) has no parameter method; it has run, methods, model"):
        lsn.compare(made_run(), method=["lape"])


def test_sizes_are_those_of_the_sets():
    run = made_run()
    found = lsn.compare(run, ["lape"], parameters={"lape": {"rate": 0.05}})
    neurons = lsn.detect(run, "lape", rate=0.05)
    assert found.found["lape"] == neurons
    row = found.sizes.iloc[0]
    assert {label: row[label] for label in run.languages} == neurons.counts().to_dict()
    assert (row["units"], row["rate"]) == (30, pytest.approx(0.05))
    assert "asked 30" in row["notes"]
    layers = found.layers.set_index("layer")[list(run.languages)]
    assert (layers.to_numpy() == neurons.layer_counts().to_numpy()).all()


def test_permuting_languages_changes_no_number():
    orders, rates = (("en", "fr", "zh"), ("zh", "en", "fr")), {name: {"rate": 0.1} for name in ("lape", "lave")}
    one, other = (lsn.compare(made_run(labels), list(rates), parameters=rates) for labels in orders)
    keys = ["method", "other", "language"]
    a, b = (each.agreement_by_language.sort_values(keys, ignore_index=True) for each in (one, other))
    pd.testing.assert_frame_equal(a, b)
    columns = ["method", "en", "fr", "zh", "units", "mean_jaccard"]
    pd.testing.assert_frame_equal(one.sizes[columns], other.sizes[columns])
    assert not a["jaccard"].eq(a["jaccard"][0]).all()  # languages do differ


def test_methods_that_the_run_cannot_feed_are_reported():
    run = made_run(keys=("mlp_act.sum",))
    found = lsn.compare(run)
    skipped = found.skipped.set_index("method")["reason"]
    assert "mlp_pre.positive" in skipped["lape"]
    assert "lave" in set(found.ranking["method"])
    assert set(skipped.index) | set(found.ranking["method"]) == set(lsn.METHODS) - {"random"}
    assert "left out: lape" in repr(found)
    with pytest.raises(KeyError, match=r"lape.*mlp_pre\.positive"):
        lsn.compare(run, ["lape", "lave"])


def test_a_method_that_refuses_the_run_is_reported():
    asked = {"lave": {"at_least": 10_000}}
    found = lsn.compare(made_run(), parameters=asked)
    assert "at_least=10000" in found.skipped.set_index("method")["reason"]["lave"]
    with pytest.raises(ValueError, match="at_least=10000"):
        lsn.compare(made_run(), ["lave"], parameters=asked)


def test_cost_counts_needs_for_each_method(tmp_path, load):
    run = made_run()
    cost = lsn.compare(run, ["lape", "lap", "lave"]).cost.set_index("method")
    assert cost["seconds_in_pass"].to_dict() == {"lape": 1.0, "lap": 1.0, "lave": 2.0}
    assert list(cost.index)[-1] == "lave"
    assert cost["bytes"].to_dict() == dict.fromkeys(("lape", "lap", "lave"), 3 * 3 * 200 * 8)
    assert cost.attrs["forward"] == 9.0
    run = lsn.collect(load("llama"), corpora_of(TEXT), ["lape"], out=tmp_path / "run", progress=False)
    stored = sizes.stored_bytes(run)
    assert stored["mlp_pre.positive"] == sum(map(len, run.shards.values())) * LAYERS * D_MLP * 8


def test_sets_nearly_alike_are_not_specific():
    run = made_run()
    alike = make_set([(0, unit) for unit in range(12)], (3, 200), languages=run.languages)
    found = lsn.compare(run, ["lape", "lave"], found={"lape": alike})
    assert found.found["lape"] == alike
    words = found.ranking.set_index("method")["warnings"]
    assert "not specific" in words["lape"]
    assert "not specific" not in words["lave"]


def test_few_neurons_and_none_are_said():
    counts = make_set([], (3, 200), languages=("en", "fr", "zh"))
    counts.masks["mlp"][0, 0, :3], counts.masks["mlp"][1, 0, 10:30] = True, True
    words = doubts.in_words(doubts.warnings_table({"a": counts}), "a")
    assert words == "no neurons (zh); fewer than 10 neurons (en)"


def test_variants_of_one_method_by_names_of_ones_own():
    found = lsn.compare(made_run(), {"one": Lape(rate=0.01), "five": Lape(rate=0.05)})
    assert found.agreement.iloc[0]["chance_corrected"] == 1  # the best of the larger set are the smaller one


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"corpora": {}}, "both a model and corpora"),
        ({"seeds": 1}, "at least 2 random sets"),
        ({"parameters": {"plum": {}}}, "plum"),
        ({"found": {"lape": make_set([(0, 0)])}}, "set given for 'lape'"),
        ({"methods": {"lape random 3": Random()}}, "those of random sets"),
        ({"methods": []}, "no methods: name at least one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        lsn.compare(made_run(), **{"methods": ["lape"], **options})


def test_a_run_that_no_method_can_use_is_refused():
    with pytest.raises(
        ValueError, match=r"no method can be used on this run: lape, lap, .*entropy_lambda: the run did not"
    ):
        lsn.compare(made_run(keys=("mlp_act.squares",)))


def test_repr_and_html():
    found = lsn.compare(made_run(keys=("mlp_act.sum", "mlp_pre.positive")))
    assert repr(found).startswith(f"Comparison of {len(found.ranking)} methods, not ranked, as no model was given\n")
    for name in found.ranking["method"]:
        assert name in repr(found)
        assert f"<td>{name}</td>" in found._repr_html_()
    assert "<table" in found._repr_html_()
    assert set(found) == {
        "ranking", "agreement", "agreement_by_language", "sizes", "layers", "cost", "warnings", "skipped"
    }  # fmt: skip


# effects: a small trained model with units that matter and units that do nothing

PLANTED, DEAD = range(6), range(40, 48)


@pytest.fixture(scope="module")
def planted(hugging_face, load, tmp_path_factory):
    """The model, its corpora and a run of it."""
    hf_model, tokenizer = hugging_face("llama"), load("llama").tokenizer
    with torch.no_grad():
        for layer in hf_model.model.layers:
            layer.mlp.down_proj.weight[:, list(PLANTED)] *= 6
    rows = [torch.tensor([tokenizer(text * 8)["input_ids"][:64]]) for text in TEXT.values()]
    optimizer = torch.optim.Adam(hf_model.requires_grad_().parameters(), lr=1e-2)
    for _ in range(30):
        loss = sum(hf_model(ids, labels=ids).loss for ids in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for layer in hf_model.model.layers:
            layer.mlp.down_proj.weight[:, list(DEAD)] = 0
    folder = tmp_path_factory.mktemp("planted") / "model"
    hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = lsn.load_model(folder, device="cpu")
    corpora = corpora_of(TEXT)
    return model, corpora, lsn.collect(model, corpora, ["lape", "lave"], progress=False)


def chosen(units):
    return make_set([(layer, unit) for layer in range(LAYERS) for unit in units], (LAYERS, D_MLP), languages=TEXT)


@pytest.fixture(scope="module")
def compared(planted):
    model, corpora, run = planted
    sets = {"lape": chosen(DEAD), "lave": chosen(PLANTED)}
    return lsn.compare(
        run, list(sets), model=model, corpora=corpora, found=sets, action=lsn.zero, control_tokens=64, progress=False
    )


def test_units_that_matter_are_above_random_ones_and_units_that_do_nothing_are_not(compared):
    control = compared.control.set_index("method")
    assert control["p"]["lave"] == 1 / 120  # above all of 39 and of 80 more
    assert control["share_above_random"].to_dict() == {"lave": 1.0, "lape": 0.0}
    assert control["z"]["lave"] > 3
    rows = compared.control_by_language.set_index(["method", "language"])
    assert rows["seeds"].loc["lave"].tolist() == [119, 119]
    assert rows["seeds"].loc["lape"].tolist() == [39, 39]
    assert rows.loc[("lape", "en"), "own_rise"] == pytest.approx(0, abs=1e-6)
    assert (rows.loc["lape"]["q"] > 0.05).all()
    assert list(compared.control["method"]) == ["lave", "lape"]
    words = compared.ranking.set_index("method")["warnings"]
    assert "not shown to hurt more than random sets (q above 0.05) (en, de)" in words["lape"]
    assert "random sets" not in words["lave"]


def test_p_counts_the_random_sets_that_do_as_much(planted, compared):
    model, corpora, run = planted
    layout = lsn.Layout(max_tokens=64, length=64)
    active = activity(run.statistics, ["mlp"], TEXT)
    for name, units in (("lave", PLANTED), ("lape", DEAD)):
        row = compared.control_by_language.set_index(["method", "language"]).loc[(name, "en")]
        found, seeds = chosen(units), range(row["seeds"])
        sets = {"true": found, **{str(seed): found.random_like(seed, active)["en"] for seed in seeds}}
        table = lsn.perplexity_table(model, corpora, sets, evaluate="own", layout=layout, progress=False)
        rises = table.loc[table["intervened"].eq("en")].set_index("set")["nll_change"]
        drawn = rises.drop("true")
        assert row["own_rise"] == pytest.approx(rises["true"], rel=1e-4, abs=1e-6)
        assert row["random_mean"] == pytest.approx(drawn.mean(), rel=1e-3)
        assert row["z"] == pytest.approx((row["own_rise"] - drawn.mean()) / drawn.std(), rel=1e-2)
        assert row["p"] == (1 + (drawn >= row["own_rise"]).sum()) / (1 + len(drawn))
        assert row["matched"] == "count, layer, root mean square in the own language"
        own, random = (row[each] for each in ("activity", "random_activity"))
        values = active["mlp"][0]
        assert own == pytest.approx(float(values[found.masks["mlp"][0]].mean()))
        first = [values[sets[str(seed)].masks["mlp"][0]].mean() for seed in range(39)]
        assert random == pytest.approx(float(torch.stack(first).mean()))


def test_effects_and_specificity_are_those_of_the_losses(planted, compared):
    model, corpora, _ = planted
    matrix = lsn.perplexity_matrix(model, corpora, chosen(PLANTED), progress=False)
    row = compared.effects_by_language.set_index(["method", "language"]).loc[("lave", "de")]
    own, other = matrix.loc["de", "de"], matrix.loc["de", "en"]
    assert row["own_rise"] == pytest.approx(own, rel=1e-4)
    assert row["own_rise_per_neuron"] == pytest.approx(own / (LAYERS * len(PLANTED)), rel=1e-4)
    assert row["difference"] == pytest.approx(own - other, rel=1e-3, abs=1e-5)
    assert row["ratio"] == pytest.approx(own / other, rel=1e-3)
    table = compared.effects.set_index("method")
    assert list(table.index) == ["lave", "lape"]
    assert table["own_rise"]["lave"] == pytest.approx((own + matrix.loc["en", "en"]) / 2, rel=1e-4)
    # both languages have the same units, so only one of them can be hurt most by its own in one unit
    assert table["units"]["lave"] == 2 * LAYERS * len(PLANTED)
    rows = compared.effects_by_language.set_index(["method", "language"]).loc["lave"]
    other = {"en": "de", "de": "en"}
    for language in TEXT:
        bits = rows.loc[language, "own_rise_bits_per_byte"] > rows.loc[language, "worst_other_rise_bits_per_byte"]
        nats = rows.loc[language, "own_rise"] > matrix.loc[language, other[language]]
        assert rows.loc[language, "own_hurt_most"] == (bits and nats)
    assert table["own_hurt_most"]["lave"] == rows["own_hurt_most"].sum() <= 1
    specific = compared.specificity.set_index("method")
    assert specific["difference"]["lave"] == pytest.approx(0, abs=1e-5)
    ranking = compared.ranking
    passes = compared.effects_by_language.groupby("method")["passes"].sum()
    assert ranking.set_index("method")["shown"].to_dict() == passes.to_dict()
    assert "not measured" not in repr(compared)


def test_the_mean_of_other_languages_where_the_run_has_it(planted):
    model, corpora, run = planted
    few = {"seeds": 2, "control_tokens": 64, "sizes": None}
    options = {"model": model, "corpora": corpora, "progress": False, **few}
    assert set(lsn.compare(run, ["lape"], **options).effects["action"]) == {"other languages' mean"}
    sums = {label: [{key: each[key] for key in each if key != "mlp_post.sum"} for each in parts]
            for label, parts in run.shards.items()}  # fmt: skip
    without = replace(run, shards=sums)
    found = lsn.compare(without, ["lape"], **options)
    assert set(found.effects["action"]) == {"zero"}
    assert "only 2 random sets" in repr(found)
    assert "fewer than 2,000 tokens (en, de)" in repr(found)


def test_units_that_cannot_be_written_to_are_said(planted):
    model, corpora, run = planted

    class Experts(Lape):
        def select(self, scores):
            return NeuronSet(scores.languages, {"experts": super().select(scores).masks["mlp"]}, "experts")

    found = lsn.compare(
        run, {"lape": Lape(), "experts": Experts()}, model=model, corpora=corpora, seeds=2, control_tokens=64,
        progress=False,
    )  # fmt: skip
    assert list(found.ranking["method"]) == ["lape", "experts"]
    assert "no effect was measured: no intervention writes to experts" in found.ranking["warnings"][1]
    assert found.agreement["note"][0] == "no common basis"


def test_no_hook_is_left(planted, compared):
    model = planted[0]
    assert not any(
        handle for point in model.hook_dict.values() for handle in point.fwd_hooks if not handle.is_permanent
    )


def test_what_is_known_of_the_model_is_asked_once(planted, monkeypatch):
    model, corpora, _ = planted
    asked = {"width": 0, "exact": []}
    width, exact = structure.site_width, forward.lean_is_exact

    def counted_width(*arguments):
        asked["width"] += 1
        return width(*arguments)

    def counted_exact(model, names):
        asked["exact"].append(names)
        return exact(model, names)

    monkeypatch.setattr(structure, "site_width", counted_width)
    monkeypatch.setattr(forward, "lean_is_exact", counted_exact)
    sets = {str(seed): chosen(PLANTED).random_like(seed) for seed in range(4)}
    table = lsn.perplexity_table(model, corpora, sets, evaluate="own", progress=False)
    assert asked["width"] == 1
    assert len(asked["exact"]) == len(set(asked["exact"])) == 2  # without hooks, and with both layers'
    assert table.loc[table["action"].eq("zero"), "nll_change"].abs().min() > 0


# warnings, from tables with known numbers


SURE = {"surely_hurt_most": True, "hurt_most_share": 1.0}


def known_tables(rise=0.2, clean=2.0, worst=0.1, p=0.025, q=0.05, tokens=5000, seeds=39, most="both", **sure):
    languages = ("en", "fr")
    losses = pd.DataFrame(
        [{"set": "", "action": "none", "evaluated": on, "nll": clean, "nll_change": 0.0} for on in languages]
        + [
            {"set": "a", "action": "zero", "evaluated": on, "nll": clean + change, "nll_change": change}
            for off in languages
            for on, change in {on: rise if on == off else worst for on in languages}.items()
        ]
    )
    losses.attrs["text"] = {"languages": {label: {"tokens_used": tokens} for label in languages}}
    effects = pd.DataFrame({"method": "a", "language": languages, "action": "zero", "units": 20, "p": p, "q": q})
    effects = effects.assign(own_rise=rise, worst_other_rise=worst, hurt_most_in=most, own_hurt_most=most == "both")
    effects = effects.assign(**(SURE | sure))
    control = effects[["method", "language", "units", "p", "q"]].assign(seeds=seeds)
    found = NeuronSet(languages, {"mlp": torch.zeros(2, 1, 60, dtype=torch.bool)})
    found.masks["mlp"][0, 0, :20], found.masks["mlp"][1, 0, 20:40] = True, True
    return {"a": found}, losses, effects, control, 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"rise": 3.5}, "collapse: worse than a uniform guess, or a rise of more than 3 nats (en, fr)"),
        ({"rise": 2.9}, "collapse: worse than a uniform guess, or a rise of more than 3 nats (en, fr)"),  # 4.9 > ln 100
        ({"rise": 2.5}, ""),
        (
            {"rise": math.nan, "most": "neither"},
            "the loss is not finite (en, fr); not hurt, or another language hurt as much or more (en, fr)",
        ),
        ({"worst": math.nan, "most": "bits"}, "the loss is not finite (en, fr); hurt most in bits per byte alone: in "
         "nats per token another language is (en, fr)"),
        ({"q": 0.051}, "not shown to hurt more than random sets (q above 0.05) (en, fr)"),
        ({"most": "nats"}, "hurt most in nats per token alone: in bits per byte another language is (en, fr)"),
        (
            {"surely_hurt_most": False, "hurt_most_share": 0.9},
            "hurt most, but other documents may say otherwise: the interval of the difference holds 0 (en, fr)",
        ),
        (
            {"surely_hurt_most": False, "hurt_most_share": math.nan},
            "too few documents to say how sure: measure more text (en, fr)",
        ),
    ],
)  # fmt: skip
def test_warnings_in_words(change, words):
    assert doubts.in_words(doubts.warnings_table(*known_tables(**change)), "a") == words


def test_warnings_about_the_measurement():
    table = doubts.warnings_table(*known_tables(clean=5.0, tokens=100, seeds=5, p=1 / 6, q=1 / 6))
    assert doubts.in_words(table, doubts.EVERY) == (
        "effects were measured on fewer than 2,000 tokens (en, fr); only 5 random sets: no p-value reaches 0.05; "
        "the unchanged model predicts no better than a uniform guess (en, fr)"
    )
    assert "collapse" not in doubts.in_words(table, "a")  # a loss that was beyond before is no collapse


def test_a_correction_that_nothing_can_pass_is_said():
    found, losses, effects, control, vocabulary = known_tables(p=0.025, q=0.1)
    control.attrs["tests"] = 104
    words = doubts.in_words(doubts.warnings_table(found, losses, effects, control, vocabulary), doubts.EVERY)
    assert words == (
        "corrected for 104 tests, none is beyond random sets: with 39 of them it takes 52 languages above all of "
        "theirs. Give more random sets"
    )


def test_sets_of_other_sizes_and_kinds_are_no_ranking():
    small, large = make_set([(0, 1), (1, 3)]), make_set([(layer, unit) for layer in range(2) for unit in range(10)])
    words = doubts.in_words(doubts.warnings_table({"a": small, "b": large}), doubts.EVERY)
    assert words == "sets of different sizes (mlp: 2 to 20 units per language): numbers at own size do not rank methods"
    words = doubts.in_words(
        doubts.warnings_table({"a": small, "b": make_set([(0, 0), (0, 1)], basis="q")}), doubts.EVERY
    )
    assert words == "sets of different kinds of unit: numbers at own size do not rank methods"
    assert doubts.warnings_table({"a": large, "b": large}).empty


def test_tables_are_not_changed_by_looking(compared):
    before = copy.deepcopy(dict(compared))
    repr(compared)
    table, folded = compared._repr_html_().split("<details>")
    assert all(f"<td>{name}</td>" in table for name in compared.ranking["method"])
    for words in filter(None, map(html.escape, compared.ranking["warnings"])):
        assert words not in table and words in folded
    for name, table in compared.items():
        pd.testing.assert_frame_equal(table, before[name])


def test_bytes_go_to_the_need_with_the_longest_key():
    keys = ("q.mean", "q.mean.skip_bos")
    run = made_run(("en",), keys)
    rows = {"q.mean@0": torch.zeros(5, 7), "q.mean.skip_bos@0": torch.zeros(5, 9), "length@0": torch.zeros(5, 1)}
    stored = sizes.stored_bytes(replace(run, documents={"en": [rows]}))
    assert {key: stored[key] for key in keys} == {"q.mean": 4800 + 140, "q.mean.skip_bos": 4800 + 180}
