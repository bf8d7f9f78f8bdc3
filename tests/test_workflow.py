"""Stages and structures turned off: the numbers are those of edited weights, the six switches are the whole set."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, BACKENDS, VOCABULARY, experiment, page_of, parts, refused, tiny_tokenizer
from oracles import loss_of, plain, read_ids

import lsn_lens as lsn
from lsn_lens.evaluation import stages as stages_module
from lsn_lens.evaluation.stages import ALL, STRUCTURES, SWITCHES, Stages, search_stages, split_hold_out, switch_sets
from lsn_lens.evaluation.workflow import workflow_effects, workflow_grid, workflow_summary
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.studies.pages import workflow as page

DEPTH = 4
LANGUAGES = ("en", "fr", "zh")
STAGES = Stages(1, 1)
TEXTS = {
    "en": ["The river is high.", "The bridge is closed after rain.", "Rain and more rain.", "A high bridge."],
    "fr": ["La rivière est haute.", "Le pont est fermé.", "De la pluie, encore.", "Un pont après la pluie."],
    "zh": ["雨后河水上涨。", "桥已经关闭。", "河水很高。", "雨后桥关闭。"],
}
WIDTHS = {"mlp": 48, "q": 32, "k": 16, "v": 16, "z": 32}
DOCUMENTS = lsn.Layout(kind="documents")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with enough layers for three stages."""
    model_type, sizes = ARCHITECTURES["llama"]
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    sizes = {**sizes, "num_hidden_layers": DEPTH}
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **special, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(0.25 * torch.randn(weight.shape))
    where = tmp_path_factory.mktemp("deep") / "model"
    model.save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    return where


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, folder):
    return lsn.load_model(folder, backend=request.param, device="cpu")


@pytest.fixture(scope="module")
def corpora():
    return lsn.load_corpora(TEXTS, hold_out=0.5)


def some_set(widths=WIDTHS, share=0.3, languages=LANGUAGES):
    masks = {
        basis: torch.rand(len(languages), DEPTH, width, generator=torch.Generator().manual_seed(place)) < share
        for place, (basis, width) in enumerate(widths.items())
    }
    return NeuronSet(languages, masks, "some")


def held_out_ids(model, corpora):
    return {label: [read_ids(text, model) for text in each.hold_out] for label, each in corpora.items()}


def edited(folder, units):
    """The Hugging Face model whose weights lack the units of a set of one language."""
    model = plain(folder)
    with torch.no_grad():
        for basis, mask in units.masks.items():
            for layer, chosen in enumerate(mask[0]):
                modules = parts("llama", model, layer)
                if basis in ("mlp", "z"):
                    (modules.down if basis == "mlp" else modules.o).weight[:, chosen] = 0.0
                else:
                    getattr(modules, basis).weight[chosen] = 0.0
    return model


# stages and switches


def test_stages_by_hand():
    assert Stages(2, 3).layers(8) == {"understand": range(2), "solve": range(2, 5), "generate": range(5, 8)}
    assert [list(each) for each in Stages(1, 1).layers(3).values()] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("first", "last", "depth", "message"),
    [
        (3, 2, 4, "3 layers to understand and 2 to generate overlap: the model has 4, so together they may have 3"),
        (2, 2, 4, "leave no layer to solve the task"),
        (0, 1, 4, "understand=0: expected a number of layers, 1 or more"),
        (1, True, 4, "generate=True: expected"),
    ],
)
def test_stages_that_do_not_fit(first, last, depth, message):
    with pytest.raises(ValueError, match=message):
        Stages(first, last).layers(depth)


def test_the_six_switches_are_a_partition_of_the_set():
    widths = {basis: 10 + place for place, bases in enumerate(STRUCTURES.values()) for basis in bases}
    whole = some_set(widths, 0.5)
    switches = switch_sets(whole, Stages(2, 1))
    assert tuple(switches) == SWITCHES
    assert switches.pop(ALL) == whole
    union = NeuronSet(LANGUAGES, {basis: torch.zeros_like(mask) for basis, mask in whole.masks.items()})
    for name, part in switches.items():
        stage, structure = name.split()
        layers = {"understand": [0, 1], "solve": [2], "generate": [3]}[stage]
        assert set(part.to_frame()["layer"]) == set(layers)
        assert set(part.to_frame()["basis"]) == set(STRUCTURES[structure])
        assert len(union & part) == 0
        union = union | part
    assert union == whole


def test_units_of_no_structure_are_refused():
    with pytest.raises(ValueError, match=r"bases \['mlp', 'resid'\]"):
        switch_sets(some_set({"mlp": 4, "resid": 4}), STAGES)


# the grid


@pytest.fixture(scope="module")
def grid(model, corpora):
    return workflow_grid(model, corpora, some_set(), STAGES, seeds=1, layout=DOCUMENTS, progress=False)


def test_rises_are_those_of_edited_weights(grid, model, folder, corpora):
    found, hold_out = some_set(), held_out_ids(model, corpora)
    rows = grid.set_index(["switch", "seed", "deactivated", "evaluated"])
    clean = edited(folder, found.only([])["en"])
    before = {label: loss_of(clean, ids) for label, ids in hold_out.items()}
    for switch, part in switch_sets(found, STAGES).items():
        for language in LANGUAGES:
            for seed in (pd.NA, 0) if switch in (ALL, "solve attention") else (pd.NA,):
                units = part[language] if seed is pd.NA else part[language].random_like(seed)
                changed = edited(folder, units)
                for label in LANGUAGES if seed is pd.NA else {language, "en"}:
                    after = loss_of(changed, hold_out[label])
                    row = rows.loc[(switch, seed, language, label)]
                    assert row["before"] == pytest.approx(before[label], abs=2e-5)
                    assert row["rise"] == pytest.approx(after - before[label], abs=5e-5), (switch, language, label)
                    assert row["units"] == len(part[language]) > 0
    assert grid["rise"].abs().median() > 0.01


def test_which_rows_there_are(grid):
    found, random = grid[grid["seed"].isna()], grid[grid["seed"].notna()]
    assert len(found) == 7 * 3 * 3
    assert len(random) == 7 * (1 + 2 + 2)  # English alone for English
    assert set(random["evaluated"][random["deactivated"] == "zh"]) == {"zh", "en"}
    assert list(found["switch"].unique()) == list(SWITCHES)
    assert set(grid.attrs["text"]["languages"]) == set(LANGUAGES)


def test_permuting_languages_permutes_the_rows(grid, model, corpora):
    order, chosen = ("zh", "en", "fr"), ["generate FFN", "understand attention"]
    turned = workflow_grid(
        model, {label: corpora[label] for label in order}, some_set()[order], STAGES, switches=chosen, seeds=1,
        layout=DOCUMENTS, progress=False,
    )  # fmt: skip
    assert list(turned["deactivated"].unique()) == list(order)
    assert list(turned["switch"].unique()) == chosen
    keys = ["switch", "seed", "deactivated", "evaluated"]
    same = grid[grid["switch"].isin(chosen)]
    a, b = (each.sort_values(keys, ignore_index=True) for each in (same, turned))
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-5)


def test_a_switch_without_units_changes_nothing_and_says_so(model, corpora):
    found = some_set({"mlp": 48})
    found.masks["mlp"][1] = False  # French has none
    found.masks["mlp"][2, 0] = False  # Chinese has none in the first layer
    grid = workflow_grid(model, corpora, found, STAGES, seeds=1, layout=DOCUMENTS, progress=False)
    empty = grid[grid["units"] == 0]
    assert (empty["rise"] == 0.0).all()
    assert empty["seed"].isna().all()
    assert (grid["rise"][grid["units"] > 0] != 0.0).all()
    effects = workflow_effects(grid).set_index(["switch", "deactivated"])["note"]
    assert effects["solve attention", "zh"] == "does nothing: the set has no kind of attention unit"
    assert effects["all", "fr"] == "does nothing: the language has no units"
    assert effects["understand FFN", "zh"] == "does nothing: none of the language's units is here"
    assert "does nothing" not in effects["understand FFN", "en"]
    summary = workflow_summary(workflow_effects(grid)).set_index("switch")["note"]
    assert "the set has no kind of attention unit" in summary["solve attention"]
    assert "1 of 2 without units" in summary["all"]


def test_a_function_in_the_place_of_text(grid, model, corpora):
    def measure(changed):
        return pd.Series({label: loss_of(changed, ids) for label, ids in held_out_ids(model, corpora).items()})

    found = some_set()[["en", "fr"]]
    same = workflow_grid(model, measure, found, STAGES, switches=["generate FFN"], seeds=1, progress=False)
    keys = ["switch", "deactivated", "evaluated", "seed"]
    both = grid.merge(same, on=keys, suffixes=("", "_again"))
    assert len(both) == len(same) == 6 + 3
    np.testing.assert_allclose(both["rise"], both["rise_again"], atol=5e-5)


def test_a_function_whose_languages_change_is_refused(model):
    answers = iter([pd.Series({"en": 1.0, "fr": 1.0}), pd.Series({"en": 1.0})])
    with pytest.raises(ValueError, match=r"`measure` gave \['en'\], and \['en', 'fr'\] without intervention"):
        workflow_grid(model, lambda _: next(answers), some_set()[["en", "fr"]], STAGES, seeds=0, progress=False)


def test_actions_by_language(model, corpora):
    asked = []

    def action(language):
        asked.append(language)
        return lsn.scale({"fr": 1.0, "zh": 0.0}[language])

    grid = workflow_grid(
        model, corpora, some_set()[["fr", "zh"]], STAGES, action=action, switches=["all"], seeds=0, layout=DOCUMENTS,
        progress=False,
    )  # fmt: skip
    rises = grid.groupby("deactivated")["rise"].apply(lambda each: each.abs().max())
    assert rises["fr"] < 1e-5 < rises["zh"]
    assert set(asked) == {"fr", "zh"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"english": "de"}, r"nothing to measure \['de'\] on; there is \['en', 'fr', 'zh'\]"),
        ({"switches": ["understand MLP"]}, r"unknown switches \['understand MLP'\]; name some of \['understand att"),
    ],
)
def test_unknown_names(model, corpora, changed, message):
    with pytest.raises(KeyError, match=message):
        workflow_grid(model, corpora, some_set(), STAGES, layout=DOCUMENTS, progress=False, **changed)


# what the rows say

ABOVE = "not shown to hurt more than random sets (q above 0.05)"
MANY = {"random": (0.1, 0.2) * 19 + (0.1,), "random_english": (0.0,) * 39}


def by_hand(own=0.5, english=0.1, random=(0.1, 0.2), random_english=(0.0, 0.0), units=50):
    """One switch of French, beside English, Chinese and Vietnamese."""
    rows = [("fr", pd.NA, own), ("en", pd.NA, english), ("zh", pd.NA, 0.3), ("vi", pd.NA, 0.1)]
    rows += [("fr", seed, rise) for seed, rise in enumerate(random)]
    rows += [("en", seed, rise) for seed, rise in enumerate(random_english)]
    frame = pd.DataFrame(rows, columns=["evaluated", "seed", "rise"]).astype({"seed": "Int64"})
    return frame.assign(switch="all", deactivated="fr", units=units, before=1.0, why_empty="" if units else "because")


def test_effects_by_hand():
    row = workflow_effects(by_hand(random_english=(0.0, -0.4))).iloc[0]
    numbers = ["own_rise", "english_rise", "others_rise", "own_minus_english_rise", "others_minus_english_rise"]
    assert list(row[numbers]) == pytest.approx([0.5, 0.1, 0.2, 0.4, 0.1])
    assert row["random_own_rise"] == pytest.approx(0.15)
    assert row["random_minus_english_rise"] == pytest.approx(0.35)  # 0.1 and 0.6
    assert (row["p_own"], row["p_minus_english"], row["seeds"]) == (1 / 3, 2 / 3, 2)
    assert row["note"] == f"{ABOVE}; not shown to be more above en than random sets"
    assert workflow_effects(by_hand(**MANY)).iloc[0]["note"] == ""


def test_p_values_are_corrected_for_all_switches_and_languages():
    grids = [by_hand(**MANY).assign(switch=f"switch {place}") for place in range(3)]
    table = workflow_effects(pd.concat([*grids, by_hand(own=0.15, **MANY)]))
    assert table["p_own"].tolist() == [1 / 40, 1 / 40, 1 / 40, 20 / 40]
    assert table["q_own"].tolist() == pytest.approx([4 / 3 / 40] * 3 + [20 / 40])  # by hand: p m / rank


def test_a_rise_that_is_no_number_is_not_left_out_of_a_mean():
    grid = by_hand(**MANY)
    grid.loc[grid["evaluated"].eq("zh"), "rise"] = float("nan")
    effects = workflow_effects(grid)
    assert effects["others_rise"].isna().all()
    assert workflow_summary(effects)["others_rise"].isna().all()
    lost = by_hand(english=float("nan"), **MANY)
    assert "the loss is not finite" in workflow_effects(lost)["note"][0]


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"units": 9}, "fewer than 10 neurons"),
        ({"units": 0}, "does nothing: because"),
        ({"random": (0.1, 0.6)}, ABOVE),
        ({"english": 0.5}, "en is hurt as much or more"),
        ({"own": -0.1, "english": -0.5, "random": (-0.2, -0.2), "random_english": (0.0, 0.0)}, "not hurt"),
        ({"own": float("nan")}, "the loss is not finite"),
        ({"own": float("inf")}, "the loss is not finite"),
        ({"random": (), "random_english": ()}, "no random sets"),
    ],
)
def test_notes(changed, note):
    assert note in workflow_effects(by_hand(**changed)).iloc[0]["note"].split("; ")


def test_another_language_to_compare_with():
    row = workflow_effects(by_hand(), "zh").iloc[0]
    assert row["english_rise"] == 0.3
    assert row["others_rise"] == pytest.approx(0.1)  # en and vi
    english = workflow_effects(by_hand(), "fr").iloc[0]  # the pivot's own units
    assert english[["english_rise", "own_minus_english_rise", "p_minus_english", "q_minus_english"]].isna().all()
    assert english["own_rise"] == 0.5
    with pytest.raises(KeyError, match=r"english='ja' was not measured; there is \['en', 'fr', 'vi', 'zh'\]"):
        workflow_effects(by_hand(), "ja")


def test_summary_by_hand():
    grids = [
        by_hand(**MANY),
        by_hand(own=0.1, english=0.2, units=5, **MANY).replace({"fr": "zh", "zh": "fr"}),
        by_hand(own=9.0, **MANY).replace({"fr": "en", "en": "fr"}),  # left out of all means
    ]
    row = workflow_summary(workflow_effects(pd.concat(grids))).iloc[0]
    assert (row["languages"], row["units"]) == (2, 27.5)
    assert row["own_rise"] == pytest.approx(0.3)
    assert row["own_minus_english_rise"] == pytest.approx(0.15)
    assert (row["above_random"], row["above_english"]) == (1, 1)
    assert row["note"] == (
        "1 of 2 with fewer than 10 neurons; 1 of 2 not shown to be above their random sets; 1 of 2 where en is hurt as "
        "much or more"
    )


# where stages end


def test_halves_of_the_hold_out_text():
    corpora = lsn.load_corpora({"en": [f"text {i}" for i in range(30)]}, hold_out=0.5)
    first, second = ([*half["en"].hold_out] for half in split_hold_out(corpora))
    whole = list(corpora["en"].hold_out)
    assert sorted(first + second) == sorted(whole)
    assert (first, second) == (whole[::2], whole[1::2])
    assert [*split_hold_out(corpora)[0]["en"].hold_out] == first  # again the same
    assert list(split_hold_out(corpora)[0]["en"].find) == list(corpora["en"].find)


def test_candidates_are_measured_on_the_text_given(model, corpora):
    found = some_set()
    stages, table = search_stages(model, corpora, found, layout=DOCUMENTS, progress=False)
    assert table[["stage", "layers"]].to_numpy().tolist() == [
        ["understand", 1], ["understand", 2], ["generate", 1], ["generate", 2]
    ]  # fmt: skip
    for row in table.iloc[[1, 2]].to_dict("records"):
        layers = range(row["layers"]) if row["stage"] == "understand" else range(DEPTH - row["layers"], DEPTH)
        losses = lsn.perplexity_matrix(model, corpora, found.only(layers), layout=DOCUMENTS, progress=False)
        own, english = (losses.loc["fr", "fr"] + losses.loc["zh", "zh"]) / 2, losses.loc[["fr", "zh"], "en"].mean()
        assert row["own_rise"] == pytest.approx(own, abs=1e-5)
        assert row["gap_rise"] == pytest.approx(own - english, abs=1e-5)
        assert row["units"] == found.only(layers).counts()[["fr", "zh"]].mean()
    chosen = table[table["chosen"]].set_index("stage")["layers"]
    assert chosen.to_dict() == dataclasses.asdict(stages)


def planted(monkeypatch, gaps):
    """English is hurt by 1, the others by 1 and the gap of the candidate."""

    def table(model, corpora, sets, action, **_):
        rises = [(name, label, 1 + gaps[name] * (label == "fr")) for name in sets for label in ("fr", "en")]
        return pd.DataFrame(rises, columns=["set", "evaluated", "nll_change"]).assign(intervened="fr")

    monkeypatch.setattr(stages_module, "perplexity_table", table)
    monkeypatch.setattr(stages_module, "check_model", lambda model: None)
    return lambda **keywords: search_stages(None, lsn.load_corpora(TEXTS), some_set(), **keywords)


GAPS = {"understand 1": 0.5, "understand 2": 0.625, "generate 1": 0.25, "generate 2": 0.4375}


def test_the_largest_sum_is_chosen(monkeypatch, corpora):
    search = planted(monkeypatch, GAPS)
    assert search()[0] == Stages(1, 2)  # two and two would leave no layer
    assert search(understand=[2])[0] == Stages(2, 1)
    assert search(criterion="gap_per_unit")[0] == Stages(1, 1)
    assert planted(monkeypatch, {**GAPS, "understand 2": 0.6875})()[0] == Stages(1, 2)  # equal: fewer understand
    assert planted(monkeypatch, dict.fromkeys(GAPS, 0.5))()[0] == Stages(1, 1)  # equal: fewer layers


def test_a_search_that_cannot_work(monkeypatch):
    search = planted(monkeypatch, GAPS)
    with pytest.raises(ValueError, match=r"no pair of .* leaves a layer between them: the model has 4"):
        search(understand=[2, 3], generate=[2])
    with pytest.raises(KeyError, match="no text for english='de'"):
        search(english="de")
    with pytest.raises(ValueError, match="no language but 'en'"):
        search_stages(None, lsn.load_corpora(TEXTS), some_set()["en"])


# the script


@pytest.fixture(scope="module")
def script():
    return experiment("workflow")


def test_the_report(script, tmp_path, monkeypatch):
    drawn = set()
    monkeypatch.setattr("lsn_lens.report.page.save", lambda chart, path, **_: drawn.add(path.stem))  # drawing is slow
    config = script.Config(
        out=tmp_path, method="lap", languages=("en", "fr"), seeds=2, length=32, max_tokens=64, evaluation_tokens=64,
        search_tokens=64, device="cpu", png=True,
    )  # fmt: skip
    page = script.report(config, *script.prepare(config)).read_text()
    tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / "tables").glob("*.parquet")}
    assert set(tables) == {"stages", "grid", "effects", "summary", "neurons", "text"}
    assert list(tables["summary"]["switch"]) == list(SWITCHES)
    assert "does nothing: the set has no kind of attention unit" in page
    ffn = {f"{kind}-{stage}-ffn" for kind in ("change", "control") for stage in ("understand", "solve", "generate")}
    assert ffn & drawn
    assert drawn - ffn == {"switches", "layers", "change-all", "control-all"}
    found = NeuronSet.load(tmp_path / "neurons" / "lap.safetensors")
    assert len(tables["neurons"]) == found.counts().sum()
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert origin["settings"]["english"] == "en"
    assert origin["hold_out"]["languages"]["en"]["sha256"] != origin["corpus"]["languages"]["en"]["sha256"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "plnnd"}, "ValueError: unknown method 'plnnd'; name one of"),
        ({"seeds": 1}, "at least two seeds"),
        ({"generate": 2}, "give both understand and generate"),
        ({"understand": 0, "generate": 2}, "understand=0: expected"),
        ({"understand": 3, "generate": 3}, "leave no layer to solve"),
        ({"english": "xx"}, "KeyError: no text for english='xx'"),
    ],
)
def test_settings_that_cannot_work(script, tmp_path, wrong, message):
    assert message in refused(script, out=tmp_path, device="cpu", **wrong)
    assert not list(tmp_path.iterdir())


def test_the_study_in_a_notebook():
    model, corpora = lsn.load_model("demo", device="cpu"), lsn.load_corpora("demo", ["en", "fr"])
    asked = {"method": "lap", "seeds": 2, "length": 32, "max_tokens": 64, "evaluation_tokens": 64}
    settings = lsn.studies.WorkflowSettings(understand=2, generate=1, **asked)
    study = lsn.studies.workflow_study(model, corpora, settings, progress=False)
    assert set(study.tables) == {"grid", "effects", "summary", "neurons", "text"}
    assert study.stages == lsn.evaluation.Stages(2, 1) and study.settings["seeds"] == 2
    assert study.units == lsn.detect(lsn.studies.workflow_run(model, corpora, settings, progress=False), "lap")
    pd.testing.assert_frame_equal(study["summary"], workflow_summary(workflow_effects(study["grid"])))
    assert "above that of 2 random sets" in str(page_of(study).sections)
    with pytest.raises(KeyError, match=r"no table 'stages'; there are \['grid'"):
        study["stages"]


@pytest.mark.parametrize(
    ("seeds", "begins"), [(18, "Cannot tell: with 18 random sets no p-value"), (19, "No sign of the")]
)
def test_too_few_random_sets_are_no_finding(seeds, begins):
    summary = [{"switch": "understand FFN", "above_english": 0, "languages": 3}]
    assert page.lead(summary, "en", seeds).startswith(begins)


def test_the_script_refuses_stages_before_the_weights_are_loaded(monkeypatch):
    script = experiment("workflow")
    monkeypatch.setattr(script, "load_model", None)
    with pytest.raises(ValueError, match="the model has 6, so together they may have 5"):
        script.prepare(script.Config(understand=4, generate=3))
