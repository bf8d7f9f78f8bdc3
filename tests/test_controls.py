"""Random units are like those they stand for; outliers and kinds of ablation are what measuring by hand gives."""

import math

import pandas as pd
import pytest
import torch
from conftest import BACKENDS, D_MLP, LAYERS, SENTENCES

import lsn_lens as lsn
from lsn_lens.controls.ablations import ablation_sensitivity, kinds_of_ablation
from lsn_lens.controls.causal import measure_controls
from lsn_lens.controls.matched import activity, activity_measure, matched_draws, outlier_effects, outliers, without
from lsn_lens.evaluation.baseline import held_out
from lsn_lens.evaluation.verdict import p_value
from lsn_lens.neurons import draws
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics

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


def by_language(seed=0):
    """Activity that is another one in each language."""
    parts = [random_activity(seed + 10 * place) for place in range(len(LANGUAGES))]
    return {basis: torch.stack([part[basis] for part in parts]) for basis in parts[0]}


@pytest.mark.parametrize("seed", range(3))
def test_draws_match_count_and_layer_are_near_in_activity_and_avoid_own_units(seed):
    found, active = random_set(seed), by_language(seed)
    drawn = found.random_like(seed, active)
    assert drawn.languages == found.languages
    for basis, mask in found.masks.items():
        assert torch.equal(drawn.masks[basis].sum(-1), mask.sum(-1))
        for own, random, values in zip(mask, drawn.masks[basis], active[basis], strict=True):
            for layer in range(len(own)):
                one, two = (each[layer].nonzero()[:, 0] for each in (own, random))
                others = (~own[layer]).nonzero()[:, 0]
                # each drawn unit is one of the 20 others nearest to some own one, counted one by one
                near = [
                    set(others[(values[layer, others] - values[layer, unit]).abs().argsort()[:20]].tolist())
                    for unit in one
                ]
                assert all(any(unit in each for each in near) for unit in two.tolist())
    assert len(drawn & found) == 0
    assert drawn.notes["own"] == dict.fromkeys(LANGUAGES, 0)
    assert drawn == found.random_like(seed, active)
    assert drawn != found.random_like(seed + 1, active)
    assert drawn != found.random_like(seed)


def test_the_most_active_units_get_random_ones_as_active_in_the_own_language():
    """Units that are loud in one language and quiet in all others, as those that detectors find."""
    squares = torch.rand(3, 2, 400, generator=generator(1)).double() + 0.5
    mask = torch.zeros(3, 2, 400, dtype=torch.bool)
    for place in range(3):
        squares[place, :, 40 * place : 40 * (place + 1)] *= 100  # 40 loud units a layer, of which a method finds 8
        mask[place, :, 40 * place : 40 * place + 8] = True
    draws_of = matched_draws(NeuronSet(LANGUAGES, {"mlp": mask}), 10, made_statistics({"mlp_post.squares": squares}))
    for own, random in draws_of.active.values():
        assert 0.8 < own / random < 1.25  # matched over all languages: about 3
    assert draws_of.matched == "count, layer, root mean square in the own language"


def test_random_sets_of_one_unit_are_many():
    mask = torch.zeros(1, 1, 200, dtype=torch.bool)
    mask[0, 0, 100] = True
    active = {"mlp": torch.arange(200.0)[None].double()}
    units = {NeuronSet(("en",), {"mlp": mask}).random_like(seed, active).masks["mlp"].nonzero()[0, 2].item()
             for seed in range(600)}  # fmt: skip
    assert units == {*range(80, 121)} - {100}


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


def test_where_all_near_units_are_taken_the_nearest_left_is():
    mask = torch.zeros(1, 1, 100, dtype=torch.bool)
    mask[0, 0, 50:90] = True  # 40 own units: the 20 nearest others of each are 10 on either side, or fewer
    active = {"mlp": torch.arange(100.0)[None].double()}
    drawn = NeuronSet(("en",), {"mlp": mask}).random_like(0, active)
    chosen = drawn.masks["mlp"][0, 0].nonzero()[:, 0].tolist()
    assert len(chosen) == 40
    assert {*range(90, 100)} < set(chosen)  # there are ten above
    assert drawn.notes["own"] == {"en": 0}


def test_own_units_come_last_where_a_layer_has_too_few_others():
    mask = torch.zeros(1, 2, 10, dtype=torch.bool)
    mask[0, 0, :7] = True
    drawn = NeuronSet(("en",), {"mlp": mask}).random_like(1, {"mlp": torch.rand(2, 10, generator=generator(0))})
    assert drawn.masks["mlp"][0, 0].sum() == 7
    assert drawn.masks["mlp"][0, 0, 7:].all()
    assert drawn.notes["own"] == {"en": 4}
    assert drawn.masks["mlp"][0, 1].sum() == 0


def test_draws_are_even_among_the_nearest():
    mask = torch.zeros(1, 100, dtype=torch.bool)
    mask[0, [34, 80]] = True
    active = torch.arange(100.0)[None]
    total = sum(draws.draw_alike(mask, generator(seed), active)[0].long() for seed in range(900))
    assert total.sum() == 1800
    assert total[34] == total[80] == 0
    near = torch.cat([total[24:34], total[35:45]])
    assert near.sum() == 900
    assert ((near - 45).abs() < 33).all()  # 5 standard deviations


def test_the_level_of_a_test_against_matched_sets_is_its_nominal_one():
    """Units whose effects hang on activity and chance alone: a set is as often among the largest as it should be."""
    hits, runs = 0, 400
    for seed in range(runs):
        active = torch.rand(1, 200, generator=generator(seed)).double()
        effects = active[0] + torch.randn(200, generator=generator(seed + 10_000)).double()
        mask = torch.zeros(1, 200, dtype=torch.bool)
        mask[0, torch.randperm(200, generator=generator(seed + 20_000))[:10]] = True
        gen = generator(seed + 30_000)
        drawn = [float(effects[draws.draw_alike(mask, gen, active)[0]].sum()) for _ in range(39)]
        hits += p_value(float(effects[mask[0]].sum()), drawn) <= 0.05
    assert hits <= 0.05 * runs + 3 * (0.05 * 0.95 * runs) ** 0.5
    assert hits >= 0.05 * runs - 3 * (0.05 * 0.95 * runs) ** 0.5


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
        "root mean square": (squares / 100).sqrt(),
        "firing probability": (fired / 100).double(),
        "size of the mean": sums / 100,
    }
    for dropped, (name, values) in zip(
        ((), ("mlp_post.squares",), ("mlp_post.squares", "mlp_pre.positive")), expected.items(), strict=True
    ):
        kept = made_statistics({key: value for key, value in tensors.items() if key not in dropped})
        assert activity_measure(kept, "mlp") == name
        assert torch.allclose(activity(kept, ["mlp"])["mlp"], values)
        assert torch.allclose(activity(kept, ["mlp"], ["zh", "en"])["mlp"], values[[2, 0]])
    assert activity_measure(kept, "q") == "size of the mean"
    with pytest.raises(KeyError, match=r"nor sums of .*v.*; it has"):
        activity(kept, ["q", "v"])


def test_draws_are_matched_by_activity_where_the_run_has_it():
    sums = made_statistics({"mlp_post.sum": torch.rand(3, 3, 100, generator=generator(0)).double()})
    one = matched_draws(random_set(bases=("mlp",)), 2, sums)
    assert one.matched == "count, layer, size of the mean in the own language"
    assert one.sets[1] == random_set(bases=("mlp",)).random_like(1, activity(sums, ["mlp"]))
    two = matched_draws(random_set(), 2, sums)  # no activity of "q"
    assert two.matched == "count, layer"
    assert two.sets[0] == random_set().random_like(0)
    assert all(math.isnan(each) for pair in two.active.values() for each in pair)
    later = matched_draws(random_set(bases=("mlp",)), 1, sums, first=1)
    assert later.sets == {1: one.sets[1]}


def test_measured_controls_say_what_was_matched(ready):
    model, corpora, run = ready
    found = {"made": random_set(shape=(LAYERS, D_MLP), bases=("mlp",))}
    text = held_out(model, corpora, lsn.Layout(max_tokens=100), progress=False)
    measure = [text, found, {"made": lsn.zero}, 3]
    plain, by_activity = measure_controls(*measure)[0], measure_controls(*measure, run.statistics)[0]
    assert set(plain["matched"]) == {"count, layer"}
    assert set(by_activity["matched"]) == {"count, layer, root mean square in the own language"}
    assert plain["own_rise"].tolist() == by_activity["own_rise"].tolist()
    assert (plain["random_mean"] != by_activity["random_mean"]).all()
    assert plain["activity"].isna().all()
    assert by_activity[["activity", "random_activity"]].gt(0).all(axis=None)


def test_a_rise_that_no_random_set_reaches_gets_more_of_them(ready):
    model, corpora, run = ready
    text = held_out(model, corpora, lsn.Layout(max_tokens=100), progress=False)
    found = {"made": random_set(shape=(LAYERS, D_MLP), bases=("mlp",))}
    first = measure_controls(text, found, {"made": lsn.zero}, 2, run.statistics)[0].set_index("language")
    table, points = measure_controls(text, found, {"made": lsn.zero}, 2, run.statistics, more=3)
    beyond = first["p"] == 1 / 3
    assert 0 < beyond.sum() < 3  # so that both are tried
    for language, row in table.set_index("language").iterrows():
        drawn = points.loc[points["language"].eq(language), "own_rise"]
        assert row["seeds"] == len(drawn) == (5 if beyond[language] else 2)
        assert row["p"] == p_value(row["own_rise"], drawn)
        assert row["own_rise"] == first.loc[language, "own_rise"]


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
    assert set(table["matched"]) == {"count, layer, root mean square in the own language"}
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
        for seed, each in matched_draws(found, 2, run.statistics).sets.items()
    })  # fmt: skip
    assert rows.loc[("zero", "de"), "random_mean"] == pytest.approx(zeroed.mean(), rel=1e-3)
    assert rows.loc[("zero", "de"), "p"] == (1 + (zeroed >= rows.loc[("zero", "de"), "own_rise"]).sum()) / 3


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
