"""Random units are like those they stand for; outliers and kinds of ablation are what measuring by hand gives."""

import math

import pandas as pd
import pytest
import torch
from conftest import BACKENDS, D_MLP, LAYERS, SENTENCES

import lsn_lens as lsn
from lsn_lens import draws
from lsn_lens.evaluation.ablations import ablation_sensitivity, kinds_of_ablation
from lsn_lens.evaluation.causal import measure_controls
from lsn_lens.evaluation.controls import activity, activity_measure, matched_draws, outlier_effects, outliers, without
from lsn_lens.neurons import NeuronSet
from lsn_lens.statistics import Statistic, Statistics

LANGUAGES = ("en", "de", "zh")
TEXT = dict(zip(("en", "de", "zh"), (SENTENCES[0], SENTENCES[1], SENTENCES[3]), strict=True))
SHORT = lsn.Layout(max_tokens=64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_set(seed=0, share=0.1, shape=(3, 100), languages=LANGUAGES, bases=("mlp", "q")):
    masks = {
        basis: torch.rand(len(languages), *shape, generator=generator(seed + place)) < share
        for place, basis in enumerate(bases)
    }
    return NeuronSet(languages, masks, "made")


def random_activity(seed=0, shape=(3, 100), bases=("mlp", "q")):
    return {basis: torch.rand(shape, generator=generator(100 + seed + i)).double() for i, basis in enumerate(bases)}


def histogram(mask, values):
    """Units in each layer and tenth of it, counted one by one."""
    counts = torch.zeros(len(mask), 10, dtype=torch.long)
    for layer, unit in mask.nonzero().tolist():
        below = int((values[layer] < values[layer, unit]).sum())
        counts[layer, below * 10 // mask.shape[1]] += 1
    return counts


def made_statistics(tensors, tokens=100):
    layers = next(iter(tensors.values())).shape[1]
    return Statistics(LANGUAGES, tensors, torch.full((len(LANGUAGES), layers), tokens))


@pytest.fixture(scope="module", params=BACKENDS)
def ready(request, load):
    """A tiny model, its text, and a run with means and squares."""
    model = load("llama", request.param)
    corpora = lsn.load_corpora({label: [f"{i} {text}" for i in range(12)] for label, text in TEXT.items()})
    extra = [Statistic("mlp_post", "squares")]
    return model, corpora, lsn.collect(model, corpora, ["lape"], extra=extra, progress=False)


# random units


@pytest.mark.parametrize("seed", range(3))
def test_draws_match_count_layer_and_decile_and_avoid_own_units(seed):
    found, active = random_set(seed), random_activity(seed)
    drawn = found.random_like(seed, active)
    assert drawn.languages == found.languages
    for basis, mask in found.masks.items():
        for one, two in zip(mask, drawn.masks[basis], strict=True):
            assert torch.equal(histogram(one, active[basis]), histogram(two, active[basis]))
    assert len(drawn & found) == 0
    assert drawn.notes["borrowed"] == drawn.notes["own"] == dict.fromkeys(LANGUAGES, 0)
    assert drawn == found.random_like(seed, active)
    assert drawn != found.random_like(seed + 1, active)
    assert drawn != found.random_like(seed)


def test_a_draw_hangs_on_the_label_and_seed_alone():
    found, active = random_set(3), random_activity(3)
    assert found.random_like(5, active)["zh"] == found["zh"].random_like(5, active)
    assert found[["zh", "en"]].random_like(5, active)["en"] == found.random_like(5, active)["en"]


def test_without_activity_the_draw_is_by_layer_alone():
    found = random_set(1)
    drawn = found.random_like(0)
    assert drawn.notes == {}
    for basis, mask in found.masks.items():
        assert torch.equal(drawn.masks[basis].sum(-1), mask.sum(-1))
    quiet = {basis: mask[:, :, :10].sum() for basis, mask in drawn.masks.items()}
    assert all(count > 0 for count in quiet.values())  # where `test_a_full_decile` has none


def test_a_full_decile_borrows_from_the_nearest_and_counts_it():
    mask = torch.zeros(1, 1, 100, dtype=torch.bool)
    mask[0, 0, 52:60] = True  # of the decile 50 to 59; two others are left in it
    active = {"mlp": torch.arange(100.0)[None].double()}
    drawn = NeuronSet(("en",), {"mlp": mask}).random_like(0, active)
    chosen = drawn.masks["mlp"][0, 0].nonzero()[:, 0].tolist()
    assert len(chosen) == 8
    assert {50, 51} < set(chosen)
    assert all(40 <= unit < 50 for unit in chosen if unit not in (50, 51))  # the less active neighbour first
    assert drawn.notes["borrowed"] == {"en": 6}
    assert drawn.notes["own"] == {"en": 0}


def test_own_units_come_last_where_a_layer_has_too_few_others():
    mask = torch.zeros(1, 2, 10, dtype=torch.bool)
    mask[0, 0, :7] = True
    drawn = NeuronSet(("en",), {"mlp": mask}).random_like(1, {"mlp": torch.rand(2, 10, generator=generator(0))})
    assert drawn.masks["mlp"][0, 0].sum() == 7
    assert drawn.masks["mlp"][0, 0, 7:].all()
    assert drawn.notes["own"] == {"en": 4}
    assert drawn.masks["mlp"][0, 1].sum() == 0


def test_draws_are_even_within_a_decile():
    mask = torch.zeros(1, 100, dtype=torch.bool)
    mask[0, 34] = True
    active = torch.arange(100.0)[None]
    total = sum(draws.draw_alike(mask, generator(seed), active)[0][0].long() for seed in range(900))
    assert total.sum() == total[30:40].sum() == 900
    assert total[34] == 0
    others = torch.cat([total[30:34], total[35:40]])
    assert ((others - 100).abs() < 48).all()  # 5 standard deviations


@pytest.mark.parametrize(
    ("active", "error"),
    [
        ({"mlp": torch.zeros(3, 100)}, KeyError),
        ({"mlp": torch.zeros(3, 100), "q": torch.zeros(3, 99)}, ValueError),
        ({"mlp": torch.zeros(3, 100), "q": torch.full((3, 100), math.nan)}, ValueError),
    ],
)
def test_activity_that_does_not_fit_is_refused(active, error):
    with pytest.raises(error, match="'q'"):
        random_set().random_like(0, active)


# how active units are


def test_activity_prefers_squares_then_firing_then_means():
    squares, fired, sums = (torch.rand(3, 2, 5, generator=generator(i)).double() * 100 for i in range(3))
    fired = fired.round().long()
    tensors = {"mlp_post.sum": -sums, "mlp_pre.positive": fired, "mlp_post.squares": squares, "q.sum": sums}
    expected = {
        "root mean square": (squares / 100).sqrt().mean(0),
        "firing probability": (fired / 100).double().mean(0),
        "size of the mean": (sums / 100).mean(0),
    }
    for dropped, (name, values) in zip(
        ((), ("mlp_post.squares",), ("mlp_post.squares", "mlp_pre.positive")), expected.items(), strict=True
    ):
        kept = made_statistics({key: value for key, value in tensors.items() if key not in dropped})
        assert activity_measure(kept, "mlp") == name
        assert torch.allclose(activity(kept, ["mlp"])["mlp"], values)
    assert activity_measure(kept, "q") == "size of the mean"
    with pytest.raises(KeyError, match=r"nor sums of .*v.*; it has"):
        activity(kept, ["q", "v"])


def test_draws_are_matched_by_activity_where_the_run_has_it():
    sums = made_statistics({"mlp_post.sum": torch.rand(3, 3, 100, generator=generator(0)).double()})
    one, words = matched_draws(random_set(bases=("mlp",)), 2, sums)
    assert words == "count, layer, decile of size of the mean"
    assert one[1] == random_set(bases=("mlp",)).random_like(1, activity(sums, ["mlp"]))
    two, words = matched_draws(random_set(), 2, sums)  # no activity of "q"
    assert words == "count, layer"
    assert two[0] == random_set().random_like(0)


def test_measured_controls_say_what_was_matched(ready):
    model, corpora, run = ready
    found = {"made": random_set(shape=(LAYERS, D_MLP), bases=("mlp",))}
    measure = [model, corpora, found, {"made": lsn.zero}, 3, 100, None, False]
    plain, by_activity = measure_controls(*measure)[0], measure_controls(*measure, run.statistics)[0]
    assert set(plain["matched"]) == {"count, layer"}
    assert set(by_activity["matched"]) == {"count, layer, decile of root mean square"}
    assert plain["own_rise"].tolist() == by_activity["own_rise"].tolist()
    assert (plain["random_mean"] != by_activity["random_mean"]).all()


# outliers


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_unit_made_loud_is_found_by_name_and_taken_out(backend, hugging_face, load, tmp_path):
    hf_model = hugging_face("llama")
    with torch.no_grad():
        hf_model.model.layers[1].mlp.up_proj.weight[7] *= 200
    hf_model.save_pretrained(tmp_path / "model")
    load("llama", backend).tokenizer.save_pretrained(tmp_path / "model")
    model = lsn.load_model(tmp_path / "model", backend=backend, device="cpu")
    corpora = lsn.load_corpora({label: [f"{i} {text}" for i in range(12)] for label, text in TEXT.items()})
    run = lsn.collect(model, corpora, ["lape"], extra=[Statistic("mlp_post", "squares")], progress=False)
    mask = torch.zeros(3, LAYERS, D_MLP, dtype=torch.bool)
    mask[1, 1, 5:9] = True
    found = NeuronSet(LANGUAGES, {"mlp": mask}, "made")
    table = outliers(run.statistics, {"one": found, "two": found["en"]}, multiple=30)
    assert table[["basis", "layer", "unit"]].values.tolist() == [["mlp", 1, 7]]
    row = table.iloc[0]
    assert row["languages"] == "one: de"
    values = (run.statistics.get("mlp_post.squares") / run.statistics.tokens[..., None]).sqrt().mean(0)[1]
    assert row["ratio"] == pytest.approx(float(values[7] / values.median()))
    assert outliers(run.statistics, multiple=1e9).empty
    left = without(found, table)
    assert left.to_frame().values.tolist() == [["de", "mlp", 1, unit] for unit in (5, 6, 8)]
    assert left.notes["removed"] == {"en": 0, "de": 1, "zh": 0}
    effects = outlier_effects(model, corpora, found, table, layout=SHORT, progress=False).set_index("language")
    assert effects["outliers"].to_dict() == {"en": 0, "de": 1, "zh": 0}
    matrix = lsn.perplexity_matrix(model, corpora, left, layout=SHORT, progress=False)
    assert effects.loc["de", "own_rise_without"] == pytest.approx(matrix.loc["de", "de"], rel=1e-4, abs=1e-6)
    assert abs(effects.loc["de", "own_rise_of_outliers"]) > abs(effects.loc["de", "own_rise_without"])
    assert (effects.loc[["en", "zh"], ["own_rise", "own_rise_without", "own_rise_of_outliers"]] == 0).all(axis=None)


@pytest.mark.parametrize("multiple", [1, -3, math.inf])
def test_outliers_need_a_multiple(multiple):
    with pytest.raises(ValueError, match="above 1"):
        outliers(made_statistics({"mlp_post.sum": torch.ones(3, 2, 4).double()}), multiple=multiple)


def test_how_often_a_unit_fires_is_no_outlier():
    with pytest.raises(KeyError, match="neither squares nor sums"):
        outliers(made_statistics({"mlp_pre.positive": torch.ones(3, 2, 4).long()}))


# kinds of ablation


def test_each_kind_of_ablation_is_what_one_intervention_at_a_time_gives(ready):
    model, corpora, run = ready
    found = random_set(4, 0.3, (LAYERS, D_MLP), bases=("mlp",))
    table = ablation_sensitivity(model, corpora, run, found, seeds=2, layout=SHORT, progress=False)
    assert len(table) == 5 * len(LANGUAGES)
    assert set(table["matched"]) == {"count, layer, decile of root mean square"}
    rows = table.set_index(["ablation", "language"])
    kinds = kinds_of_ablation(model, corpora, run, found)
    assert list(kinds) == ["zero", "mean", "other mean", "resample", "half"]

    def losses():
        nothing = NeuronSet(("nobody",), {"mlp": torch.zeros(1, LAYERS, D_MLP, dtype=torch.bool)})
        return lsn.perplexity_table(model, corpora, nothing, layout=SHORT, progress=False).set_index(
            ["intervened", "evaluated"]
        )

    clean = losses()
    for name, action in kinds.items():
        what = action if isinstance(action, lsn.Action) else action("de")
        with lsn.intervene(model, found["de"], what):
            changed = losses()
        rises = {column: (changed[column] - clean[column]).loc["none"] for column in ("nll", "bits_per_byte")}
        for ending, column in (("", "nll"), ("_bits_per_byte", "bits_per_byte")):
            row, others = rows.loc[(name, "de")], rises[column].drop("de")
            assert row[f"own_rise{ending}"] == pytest.approx(rises[column]["de"], rel=1e-3, abs=1e-5)
            assert row[f"worst_other{ending}"] == others.idxmax()
            assert row[f"worst_other_rise{ending}"] == pytest.approx(others.max(), rel=1e-3, abs=1e-5)
            assert row[f"own_rank{ending}"] == 1 + (others >= rises[column]["de"]).sum()
    for name in kinds:
        mine = rows.loc[name]
        most = (mine["own_rank"].eq(1) & mine["own_rise"].gt(0)) & mine["own_rank_bits_per_byte"].eq(1)
        assert mine["own_hurt_most"].tolist() == most.tolist()
    zeroed = pd.Series({
        seed: lsn.perplexity_matrix(model, corpora, each, layout=SHORT, progress=False).loc["de", "de"]
        for seed, each in matched_draws(found, 2, run.statistics)[0].items()
    })  # fmt: skip
    assert rows.loc[("zero", "de"), "random_rise"] == pytest.approx(zeroed.mean(), rel=1e-3)
    below = (zeroed < rows.loc[("zero", "de"), "own_rise"]).mean()
    assert rows.loc[("zero", "de"), "share_above_random"] == below


def test_resampled_values_are_of_other_languages(ready):
    model, corpora, run = ready
    found = random_set(4, 0.3, (LAYERS, D_MLP), bases=("mlp",))
    kinds = kinds_of_ablation(model, corpora, run, found, tokens=40)
    others = [text for pair in zip(corpora["en"].find, corpora["zh"].find, strict=True) for text in pair]
    expected = lsn.resample(model, others, tokens=40, progress=False).values["mlp"]
    assert torch.equal(kinds["resample"]("de").values["mlp"], expected)


def test_bad_input_to_ablations(ready):
    model, corpora, run = ready
    with pytest.raises(ValueError, match=r"no means of \['mlp_pre'\]"):
        kinds_of_ablation(model, corpora, run, random_set(shape=(LAYERS, D_MLP), bases=("mlp_pre",)))
    found = random_set(shape=(LAYERS, D_MLP), bases=("mlp",))
    for wrong in ({"actions": {}}, {"seeds": 0}):
        with pytest.raises(ValueError, match="expected one or more"):
            ablation_sensitivity(model, corpora, run, found, **wrong)
    with pytest.raises(ValueError, match="two languages or more"):
        ablation_sensitivity(model, {"en": corpora["en"]}, run, found)
