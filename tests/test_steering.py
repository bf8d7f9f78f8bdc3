"""Texts under interventions are those of the same change written by hand; tables say what is in hand-made rows."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKENDS, D_MLP, D_MODEL, LAYERS
from oracles import loss_of, read_ids, wilson

import lsn_lens as lsn
from lsn_lens.evaluation.perplexity import loss_table
from lsn_lens.generation.groups import is_larger, share_of
from lsn_lens.generation.steering.deactivation import deactivate, deactivation_table, fallback_matrix
from lsn_lens.generation.steering.tables import beats, choose_doses, dose_response, steering_summary, steering_table
from lsn_lens.generation.steering.trials import Trial, _clean, beside, prompts_from, run_trials
from lsn_lens.generation.steering.ways import (
    Steering,
    arithmetics,
    dimensions,
    direction,
    forcing,
    instruction,
    steer,
    steering_losses,
)
from lsn_lens.generation.steering.wording import NAMES, instruction_words
from lsn_lens.generation.texts.identifiers import identifier
from lsn_lens.interventions.intervening import COLUMNS, Intervention
from lsn_lens.interventions.values import language_medians
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import SITES
from lsn_lens.report import plots
from lsn_lens.statistics.needs import Statistic

LANGUAGES = ("de", "en", "zh")
TEXTS = {
    "de": ["Der Fluss steht nach dem Regen hoch.", "Die Brücke ist gesperrt.", "Der Regen"],
    "en": ["The river is high.", "The bridge is closed after the rain.", "It is the river, and the rain."],
    "zh": ["雨后河水上涨。", "桥已经关闭。", "河"],
}
PROMPTS = {"de": ["Der Fluss", "Die"], "en": ["The bridge is"]}
WORDS = {"de": "Der Regen. ", "zh": "雨后。"}
TARGETS = ("de", "zh")
SAMPLES, TOKENS, SEED, STRENGTH, LAYER = 3, 4, 7, 1.5, 1
SETTINGS = {"tokens": TOKENS, "temperature": 0.8, "seed": SEED, "progress": False}
DOCUMENTS = lsn.Layout(kind="documents")

pytestmark = pytest.mark.usefixtures("no_gradients")


def identify(texts):
    """Some label for a text, the same one each time."""
    return [((*LANGUAGES, "und")[sum(text.encode()) % 4], 1.0) for text in texts]


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def some_set(width=D_MLP, basis="mlp", share=0.3):
    chances = torch.rand(len(LANGUAGES), LAYERS, width, generator=torch.Generator().manual_seed(3))
    return NeuronSet(LANGUAGES, {basis: chances < share}, "some")


FOUND, FORCED, DIMENSIONS = some_set(), some_set(basis="mlp_up"), some_set(D_MODEL, "resid")
EMPTY = FORCED - FORCED


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, load):
    return load("llama", request.param)


@pytest.fixture(scope="module")
def statistics(model):
    methods = ["average_precision", "diffmean", "language_dimensions"]
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    extra = [Statistic("mlp_post", "sum")]
    return lsn.collect(model, corpora, methods, extra=extra, progress=False).statistics


@pytest.fixture(scope="module")
def steerings(statistics):
    medians = language_medians(statistics)
    return {
        "force": forcing(FORCED, medians, name="force", dose=3),
        "force at random": forcing(FORCED, medians, name="force", dose=3, seed=1),
        "on": arithmetics(statistics, FOUND, "additive", STRENGTH, name="on"),
        "on at random": arithmetics(statistics, FOUND, "additive", STRENGTH, name="on", seed=1),
        "replace": arithmetics(statistics, FOUND, "replacement", STRENGTH, name="replace"),
        "diffmean": direction(statistics, LAYER, STRENGTH),
        "dimensions": dimensions(statistics, DIMENSIONS, STRENGTH),
        "prompt": instruction(WORDS),
    }


@pytest.fixture(scope="module")
def texts(model, steerings):
    return steer(model, list(steerings.values()), PROMPTS, TARGETS, identify, samples=SAMPLES, **SETTINGS)


def means_of(statistics, site):
    return dict(zip(statistics.languages, statistics.mean(site).float(), strict=True))


def by_hand(name, model, statistics, source, target):
    """The blocks that a steering stands for."""
    means, residual = means_of(statistics, "mlp_post"), means_of(statistics, "resid_post")
    units = FOUND.random_like(1) if "random" in name else FOUND
    on = {"mlp": STRENGTH * means[target]}
    off = [lsn.intervene(model, units[source], lsn.zero)] if source and ("on" in name or name == "replace") else []
    if name.startswith("force"):
        forced = FORCED.random_like(1) if "random" in name else FORCED
        return [lsn.intervene(model, forced[target], language_medians(statistics)[target])]
    if name == "diffmean":
        others = torch.stack([residual[each] for each in LANGUAGES if each != target]).mean(0)
        push = STRENGTH * (residual[target] - others)[LAYER]
        return [model.hooks(fwd_hooks=[(f"blocks.{LAYER}.hook_resid_post", lambda acts, hook: acts + push)])]
    if name == "dimensions":
        return [lsn.intervene(model, DIMENSIONS[target], lsn.set_to({"resid": STRENGTH * residual[target]}))]
    if name == "replace":
        return [*off, lsn.intervene(model, units[target], lsn.set_to(on))]
    return [*off, lsn.intervene(model, units[target], lsn.add(on))] if name.startswith("on") else []


def written_inside(blocks, model, prompts, **settings):
    with torch.no_grad():
        if blocks:
            with blocks[0]:
                return written_inside(blocks[1:], model, prompts, **settings)
        return lsn.generate(model, prompts, **SETTINGS, **settings)["text"].tolist()


def of(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column].isna()] if value is None else frame[frame[column].eq(value)]
    return frame


# texts


@pytest.mark.parametrize(
    "name", ["force", "force at random", "on", "on at random", "replace", "diffmean", "dimensions"]
)
def test_texts_are_those_of_the_change_by_hand(name, model, statistics, steerings, texts):
    way = steerings[name]
    mine = of(texts, steering=way.name, dose=way.dose, seed=way.seed)
    for target in TARGETS:
        for source in ("nothing", *PROMPTS):
            found = of(mine, source=source, target=target)["text"].tolist()
            if source == target:
                assert not found  # nothing is steered to its own language
                continue
            front, own = (None, None) if source == "nothing" else (PROMPTS[source], source)
            more = {"samples": SAMPLES} if front is None else {}
            assert found == written_inside(by_hand(name, model, statistics, own, target), model, front, **more)
            assert found != of(texts, steering="none", source=source)["text"].tolist()


def test_texts_without_steering_and_words_in_front(model, texts):
    for source, prompts in {"nothing": None, **PROMPTS}.items():
        settings = {"samples": SAMPLES} if prompts is None else {}
        plain = of(texts, steering="none", source=source)
        assert plain["text"].tolist() == written_inside([], model, prompts, **settings)
        assert set(plain["target"]) == {""} and set(plain["units"]) == {0}
        for target in set(TARGETS) - {source}:
            fronts = [WORDS[target] + each for each in prompts or [""]]
            found = of(texts, steering="prompt", source=source, target=target)["text"].tolist()
            assert found == written_inside([], model, fronts, **settings)


def test_every_row_says_what_it_is(texts, steerings):
    pairs = 2 * SAMPLES + 1 + 3  # from nothing to both; English to de; German and English to zh
    assert len(texts) == len(steerings) * pairs + SAMPLES + 3
    assert texts["seed"].dtype == "Int64" and set(texts["seed"].dropna()) == {1}
    assert texts["language"].tolist() == [label for label, _ in identify(texts["text"])]
    for target in TARGETS:
        assert set(of(texts, steering="force", target=target)["units"]) == {FORCED.counts()[target]}
        assert set(of(texts, steering="prompt", target=target)["units"]) == {0}
        assert set(of(texts, steering="diffmean", target=target)["units"]) == {D_MODEL}
        both = len(FOUND[["en", target]])
        assert set(of(texts, steering="on", source="en", target=target, seed=None)["units"]) == {both}
    assert set(of(texts, steering="force")["dose"]) == {3} and set(of(texts, steering="diffmean")["dose"]) == {STRENGTH}


def test_clean_log_probabilities_are_those_of_hugging_face(model, texts, hugging_face):
    fronts = {**PROMPTS, "nothing": [""]}
    original = hugging_face("llama")
    for _, rows in texts[texts["tokens"] > 0].groupby(["steering", "seed", "target", "source"], dropna=False):
        for place, row in enumerate(rows.to_dict("records")):
            front = fronts[row["source"]][0 if row["source"] == "nothing" else place]
            front = WORDS[row["target"]] + front if row["steering"] == "prompt" else front
            head = [0, *ids_of(model, front)]
            ids = torch.tensor([head + row["ids"]])
            chances = original(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(head) - 1 :, 0]
            assert row["clean_log_probability"] == pytest.approx(float(chances.mean()), abs=1e-4)


def test_a_text_without_tokens_has_no_log_probability(model):
    trial = Trial(Intervention("none"), ["The", "Der"], [], {})
    empty, some = _clean(model, trial, [0, 1], [[], [5, 6]], {})
    assert math.isnan(empty) and some == _clean(model, trial, [1], [[5, 6]], {})[0] < 0


def test_deactivation_by_hand(model):
    texts = deactivate(
        model, {"some": FOUND}, PROMPTS, identify, lambda each: lsn.scale({"de": 0, "en": -1}[each]), seeds=2,
        samples=2, **SETTINGS,
    )  # fmt: skip
    assert len(texts) == (1 + 3) * 2 * 3
    for source, prompts in PROMPTS.items():
        action = lsn.scale({"de": 0, "en": -1}[source])
        for seed in (None, 0, 1):
            units = FOUND[source] if seed is None else FOUND.random_like(seed)[source]
            found = of(texts, method="some", source=source, seed=seed)
            blocks = [lsn.intervene(model, units, action)]
            assert found["text"].tolist() == written_inside(blocks, model, prompts, samples=2)
            assert set(found["action"]) == {action.name} and set(found["units"]) == {len(units)}
        plain = of(texts, method="none", source=source)
        assert plain["text"].tolist() == written_inside([], model, prompts, samples=2)


# what a steering changes


@pytest.mark.parametrize("kind", ["force", "on", "dimensions"])
def test_random_counterparts_have_the_same_counts(kind, statistics):
    make = {
        "force": lambda seed: forcing(FORCED, language_medians(statistics), name="force", dose=3, seed=seed),
        "on": lambda seed: arithmetics(statistics, FOUND, strength=2.0, name="on", seed=seed),
        "dimensions": lambda seed: dimensions(statistics, DIMENSIONS, 2.0, seed=seed),
    }[kind]
    real, one, other = make(None), make(0), make(1)
    assert (real.name, real.dose) == (one.name, one.dose) and (real.seed, one.seed) == (None, 0)
    for source in ("en", None) if kind == "on" else ("en",):
        changes = [each.make(source, "de") for each in (real, one, other)]
        for (own, action), (drawn, same), (second, _) in zip(*(each.steps for each in changes), strict=True):
            assert own.layer_counts().equals(drawn.layer_counts()) and own.counts().sum() > 0
            assert len(own & drawn) == 0 and drawn != second
            assert action.name == same.name


def test_a_random_direction_has_the_same_length(statistics):
    real, one, other = (
        direction(statistics, LAYER, STRENGTH, seed=seed).make("en", "de").steps[0] for seed in (None, 0, 1)
    )
    assert real[0] == one[0] and real[0].masks["resid"][0].any(1).tolist() == [False, True]
    pushed, drawn, second = (action.values["resid"] for _, action in (real, one, other))
    assert torch.allclose(pushed.norm(dim=1), drawn.norm(dim=1)) and pushed.norm() > 0
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(pushed, drawn).abs().max() < 0.9 and cosine(drawn, second).abs().max() < 0.9
    again = direction(statistics, LAYER, STRENGTH, seed=0).make("en", "de").steps[0][1].values["resid"]
    assert torch.equal(again, drawn)


def read(model, what, site, text="The river is high."):
    """Values at a site in each layer, under an intervention."""
    seen = {}
    names = [SITES[site].hook_name(layer) for layer in range(LAYERS)]
    with lsn.intervene(model, what):
        fwd_hooks = [(name, lambda acts, hook, key=name: seen.update({key: acts.clone()})) for name in names]
        with model.hooks(fwd_hooks=fwd_hooks):
            model(torch.tensor([[0, *ids_of(model, text)]]), return_type="logits")
    return [seen[name][0] for name in names]


def test_forcing_sets_the_values(model, statistics, steerings):
    medians = language_medians(statistics)["zh"].values["mlp_up"]
    for layer, values in enumerate(read(model, steerings["force"].make("en", "zh"), "mlp_up")):
        units = FORCED["zh"].masks["mlp_up"][0, layer]
        assert torch.equal(values[:, units], medians[layer, units].expand(len(values), -1))
        assert not torch.isclose(values[:, ~units], medians[layer, ~units]).any(0).all()


@pytest.mark.parametrize("source", ["en", None])
def test_arithmetics_turns_the_source_off_and_the_target_on(source, model, statistics, steerings):
    before = read(model, lsn.Intervention("same", ((FOUND, lsn.scale(1)),)), "mlp_post")[0]
    after = read(model, steerings["on"].make(source, "zh"), "mlp_post")[
        0
    ]  # nothing changes in front of the first layer
    expected = before.clone()
    if source:
        expected[:, FOUND[source].masks["mlp"][0, 0]] = 0.0
    units = FOUND["zh"].masks["mlp"][0, 0]
    expected[:, units] += STRENGTH * means_of(statistics, "mlp_post")["zh"][0, units]
    assert torch.allclose(after, expected, atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-2)


def test_words_change_nothing_in_the_model(steerings):
    way = steerings["prompt"]
    assert way.make("en", "de").steps == () and way.prefix == WORDS and way.seed is None
    assert all(not each.prefix for name, each in steerings.items() if name != "prompt")
    with pytest.raises(KeyError, match=r"'prompt' has no words for 'en'; it has words for \['de', 'zh'\]"):
        way.make("de", "en")


# losses


def test_losses_one_by_one(model, steerings):
    corpora = lsn.load_corpora(TEXTS, hold_out=0.5)
    held = {label: list(corpus.hold_out) for label, corpus in corpora.items()}
    rows = {
        label: math.log(2) * sum(len(text.encode()) for text in texts) / sum(
            len(ids_of(model, text)) for text in texts
        )
        for label, texts in held.items()
    }  # fmt: skip
    ids = {label: [read_ids(text, model) for text in texts] for label, texts in held.items()}
    clean = {label: loss_of(model, each) for label, each in ids.items()}
    every = list(steerings.values())
    table = steering_losses(model, corpora, every, TARGETS, layout=DOCUMENTS, progress=False)
    names = ["force", "on", "replace", "diffmean", "language_dimensions"]  # neither random ones nor words
    assert table[["steering", "target"]].to_numpy().tolist() == [[name, each] for name in names for each in TARGETS]
    plain = loss_table(model, corpora, [each.make(None, "zh") for each in every[:1]], layout=DOCUMENTS, progress=False)
    assert of(plain, intervention="none")["nll"].tolist() == pytest.approx(list(clean.values()), abs=1e-4)
    for name in ("force", "on", "diffmean"):
        what = steerings[name].make(None, "zh")
        with lsn.intervene(model, what):
            losses = {label: loss_of(model, each) for label, each in ids.items()}
        change = {label: losses[label] - clean[label] for label in held}
        row = of(table, steering=name, target="zh").iloc[0]
        assert row["dose"] == steerings[name].dose
        assert row["target_nll_change"] == pytest.approx(change["zh"], abs=1e-4)
        assert row["other_nll_change"] == pytest.approx((change["de"] + change["en"]) / 2, abs=1e-4)
        worst = max(("de", "en"), key=lambda label: change[label])
        assert (row["worst_other"], row["worst_other_nll_change"]) == (worst, pytest.approx(change[worst], abs=1e-4))
        bits = {label: change[label] / rows[label] for label in held}
        assert row["target_bits_per_byte_change"] == pytest.approx(bits["zh"], abs=1e-4)
        assert row["other_bits_per_byte_change"] == pytest.approx((bits["de"] + bits["en"]) / 2, abs=1e-4)
        if name == "force":
            mine = of(plain, intervention=what.name)
            assert dict(zip(mine["evaluated"], mine["nll"], strict=True)) == pytest.approx(losses, abs=1e-4)
            assert set(mine["units"]) == {len(what)} == {int(FORCED.counts()["zh"])}
            assert mine["nll_change"].tolist() == pytest.approx(list(change.values()), abs=1e-4)


def test_losses_that_cannot_be_measured(model, steerings):
    corpora = lsn.load_corpora(TEXTS, hold_out=0.5)
    settings = {"layout": DOCUMENTS, "progress": False}
    with pytest.raises(KeyError, match=r"targets \['fr'\]: expected some of .* \['de', 'en', 'zh'\]"):
        steering_losses(model, corpora, [steerings["force"]], ["fr"], **settings)
    with pytest.raises(KeyError, match="two languages or more"):
        steering_losses(model, {"de": corpora["de"]}, [steerings["force"]], ["de"], **settings)
    with pytest.raises(ValueError, match="no steering that changes the model"):
        steering_losses(model, corpora, [steerings["prompt"], steerings["on at random"]], ["de"], **settings)
    with pytest.raises(FloatingPointError, match=r"^under 'huge': the loss is NaN or infinite"):
        steering_losses(model, corpora, [huge()], ["de"], **settings)
    with pytest.raises(ValueError, match=r"different names, and none the name 'none': \['a', 'a'\]"):
        loss_table(model, corpora, [Intervention("a"), Intervention("a")], **settings)


# what cannot work


def huge():
    """A change that gives no finite numbers."""
    return Steering("huge", lambda *_: Intervention("huge", ((FOUND, lsn.scale(3e38)), (FOUND, lsn.scale(3e38)))))


def hooks_on(model):
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


def test_numbers_that_are_not_finite_stop_it(model, steerings):
    before = hooks_on(model)
    with pytest.raises(FloatingPointError, match=r"^under 'huge': the logits for new token 0 are NaN or infinite"):
        steer(model, [steerings["force"], huge()], PROMPTS, ["zh"], identify, samples=1, **SETTINGS)
    assert hooks_on(model) == before == 0


def test_no_hooks_are_left(model, texts, steerings):
    assert hooks_on(model) == 0 and len(texts)
    assert COLUMNS.get() is None


def test_an_empty_set_says_that_it_does_nothing(model, statistics, texts):
    medians = language_medians(statistics)
    with pytest.warns(UserWarning, match="'force 0 -> zh' has no units: the model is unchanged"):
        found = steer(
            model,
            [forcing(EMPTY, medians, name="force", dose=0)],
            PROMPTS,
            ["zh"],
            identify,
            samples=SAMPLES,
            **SETTINGS,
        )
    same = of(found, steering="force").drop(columns=["steering", "dose", "target"]).reset_index(drop=True)
    plain = of(found, steering="none").drop(columns=["steering", "dose", "target"]).reset_index(drop=True)
    order = ["source", "text"]
    assert (
        same.sort_values(order)[["text", "units"]].values.tolist()
        == plain.sort_values(order)[["text", "units"]].values.tolist()
    )
    with pytest.warns(UserWarning, match="'some of de, zero' has no units"):
        deactivate(model, {"some": EMPTY}, {"de": ["Der"]}, identify, seeds=0, **SETTINGS)


@pytest.mark.filterwarnings("error::UserWarning")
def test_none_and_words_warn_of_nothing(model, steerings):
    steer(model, [steerings["prompt"]], {"de": ["Der"]}, ["zh"], identify, samples=1, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": ["fr"]}, KeyError, r"identifier does not know the targets \['fr'\]; it knows \['de', 'zh'\]"),
        ({"prompts": {"en": "The"}}, ValueError, r"prompts of \['en'\] are one string: give a list"),
        ({"prompts": {}, "samples": 0}, ValueError, "no text to write: give prompts"),
        ({"prompts": {"en": ["The river is high. " * 12]}}, ValueError, "exceeds the model's context of 64"),
        ({"prompts": {"fr": ["Le pont"]}, "which": "on"}, KeyError, r"no language \['fr'\]"),
    ],
)
def test_what_cannot_be_written(change, error, message, model, steerings):
    given = {"which": "force", "prompts": PROMPTS, "targets": ["zh"], "samples": 1, **change}
    which = given.pop("which")
    with pytest.raises(error, match=message):
        steer(model, [steerings[which]], identify=identifier(["de", "zh"]), **given, **SETTINGS)


def test_unknown_languages(model, statistics):
    medians = language_medians(statistics)
    few = {"de": medians["de"]}
    for way, message in (
        (forcing(FOUND, few, name="force"), r"'force' has no action for 'fr'; it has actions for \['de'\]"),
        (forcing(FOUND, {**medians, "fr": lsn.zero}, name="force"), r"no language \['fr'\]"),
        (arithmetics(statistics, FOUND, name="on"), "no language 'fr'"),
        (direction(statistics, LAYER), "no language 'fr'"),
        (dimensions(statistics, DIMENSIONS), "no language 'fr'"),
    ):
        with pytest.raises(KeyError, match=message):
            way.make(None, "fr")
    with pytest.raises(KeyError, match=r"no language \['fr'\]"):
        deactivate(model, {"some": FOUND}, {"fr": ["Le"]}, identify, **SETTINGS)
    with pytest.raises(ValueError, match="no text to write"):
        run_trials(model, [], identify)


# prompts


@pytest.mark.parametrize("part", ["find", "hold_out"])
def test_prompts_are_the_first_tokens_of_long_enough_documents(part, model):
    texts = [
        f"{word} river is high. " * count for word, count in zip(("The", "A", "One", "Der"), (1, 2, 3, 4), strict=True)
    ]
    corpora = lsn.load_corpora({"en": [*texts, *(text + "Rain." for text in texts)]}, hold_out=0.5)
    every = {name: [ids_of(model, text) for text in getattr(corpora["en"], name)] for name in ("find", "hold_out")}
    length = sorted(map(len, every[part]))[1]  # all but one have as many
    tokens = length // 3
    expected = [model.tokenizer.decode(ids[:tokens]) for ids in every[part] if len(ids) >= 3 * tokens]
    assert 0 < len(expected) < len(every[part]) and every["find"] != every["hold_out"]
    count = len(expected)
    assert prompts_from(model, corpora, count=count, tokens=tokens, part=part) == {"en": expected}
    assert prompts_from(model, corpora, count=count - 1, tokens=tokens, part=part) == {"en": expected[:-1]}
    message = f"^en: {count} documents of {part} have {3 * tokens} tokens or more, {count + 1} are asked for"
    with pytest.raises(ValueError, match=message):
        prompts_from(model, corpora, count=count + 1, tokens=tokens, part=part)


def test_prompts_end_with_whole_characters(model):
    corpora = lsn.load_corpora({"fr": ["ê" * 30] * 4}, hold_out=0.5)
    ids = ids_of(model, "ê" * 30)
    counts = [count for count in range(1, 8) if model.tokenizer.decode(ids[:count]).endswith("\ufffd")]
    assert counts
    for count in counts:
        assert set(prompts_from(model, corpora, count=1, tokens=count)["fr"][0]) <= {"ê"}
    for wrong in ({"count": 0}, {"tokens": 0}):
        with pytest.raises(ValueError, match="expected at least 1 of each"):
            prompts_from(model, corpora, **wrong)


# tables


def rows(steering, languages, target="", source="nothing", dose=1.0, seed=None, repetition=0.0, nll=2.0, units=0):
    """One row a text, its language by its first letter: f(r), d(e), e(n), u(nd)."""
    names = {"f": "fr", "d": "de", "e": "en", "u": "und"}
    same = {"steering": steering, "target": target, "source": source, "dose": dose, "seed": seed, "units": units}
    same |= {"repetition": repetition, "clean_log_probability": -nll}
    return [{**same, "language": names[each]} for each in languages]


def frame(*parts):
    return pd.DataFrame([row for part in parts for row in part]).astype({"seed": "Int64"})


STEERED = (
    rows("none", "ffeeeeeeee", repetition=0.1),
    rows("none", "eeeu", source="en", repetition=0.2, nll=2.5),
    rows("force", "ffffffffdu", "fr", repetition=0.3, nll=3.0, units=9),
    rows("force", "feddeu", "fr", source="en", units=9),
    rows("force", "dddd", "de", units=7, dose=2.0),
    rows("force", "fe", "fr", seed=0, repetition=9.0, nll=9.0, units=9),
    rows("force", "eeef", "fr", seed=1, repetition=9.0, nll=9.0, units=9),
    rows("prompt", "ffuu", "fr"),
)


def test_steering_table_by_hand():
    table = steering_table(frame(*STEERED))
    keys = table[["steering", "dose", "source", "target"]].to_numpy().tolist()
    assert keys == [
        ["force", 1.0, "nothing", "fr"], ["force", 1.0, "en", "fr"], ["force", 2.0, "nothing", "de"],
        ["prompt", 1.0, "nothing", "fr"],
    ]  # fmt: skip
    first, second, third, words = table.to_dict("records")
    expected = {
        "units": 9, "n": 10, "share": 0.8, "low": wilson(8, 10)[0], "high": wilson(8, 10)[1], "none_share": 0.2,
        "random_share": 2 / 6, "und": 0.1, "repetition": 0.3, "none_repetition": 0.1, "text_nll": 3.0,
        "none_text_nll": 2.0,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == pytest.approx(expected)
    assert (first["fallback"], first["clear"]) == ("de", False)  # 8 of 10 against 2 of 6 random ones: p 0.09
    assert (second["n"], second["none_share"], second["share"]) == (6, 0.0, pytest.approx(1 / 6))
    assert second["fallback"] == "de" and math.isnan(second["random_share"])  # two each: the alphabet's first
    assert (second["none_repetition"], second["none_text_nll"], second["und"]) == (0.2, 2.5, pytest.approx(1 / 6))
    assert (third["none_share"], third["fallback"], third["share"], third["high"]) == (0, "", 1, pytest.approx(1))
    assert words["fallback"] == "" and words["und"] == 0.5 and math.isnan(words["random_share"])


def tail(count, n, other, m):
    """By counting: the share of all ways to place the hits in which the first n texts get `count` or more."""
    hits = count + other
    ways = [math.comb(n, first) * math.comb(m, hits - first) for first in range(hits + 1)]
    return sum(ways[count:]) / sum(ways)


def test_a_share_is_larger_by_the_exact_test():
    sizes = [(n, m) for n in range(1, 7) for m in range(1, 7)]
    for n, m in sizes:
        for count, other in itertools.product(range(n + 1), range(m + 1)):
            assert is_larger(count, n, other, m) == (tail(count, n, other, m) <= 0.025)
    assert is_larger(4, 4, 0, 4) and not is_larger(3, 3, 0, 4)


def test_equal_shares_are_called_larger_by_chance_no_more_often_than_said():
    generator = np.random.default_rng(0)
    for n, share in ((2, 0.3), (5, 0.3), (5, 0.6), (20, 0.1), (20, 0.5)):
        pairs = generator.binomial(n, share, size=(2000, 2)).tolist()
        assert np.mean([is_larger(one, n, two, n) for one, two in pairs]) <= 0.025 + 3 * math.sqrt(0.025 / 2000)


@pytest.mark.parametrize(
    ("none", "random", "clear"),
    [
        ("eeeeeeeeee", "eeeeeeeeee", True),  # 8 of 10
        ("ffeeeeeeee", "ffeeeeeeee", True),  # p 0.012
        ("fffeeeeeee", "eeeeeeeeee", False),  # p 0.035
        ("eeeeeeeeee", "fffeeeeeee", False),
        ("eeeeeeeeee", "", True),
        ("fffeeeeeee", "", False),
        ("eee", "eeeeeeeeee", False),  # p 0.035: three texts are few
    ],
)
def test_clear_is_above_both(none, random, clear):
    parts = [rows("none", none), rows("force", "ffffffffdu", "fr"), rows("force", random, "fr", seed=0)]
    assert steering_table(frame(*parts))["clear"].tolist() == [clear]


def test_losses_beside():
    losses = pd.DataFrame(
        {"steering": "force", "dose": [2, 1], "target": ["de", "fr"], "target_nll_change": [0.1, 0.2]}
    )
    table = steering_table(frame(*STEERED), losses)
    assert table["target_nll_change"].tolist()[:3] == [0.2, 0.2, 0.1] and len(table) == 4
    assert math.isnan(table["target_nll_change"].iloc[3])


def test_beside_without_random_units():
    group, plain = frame(rows("a", "fdu", units=4)), frame(rows("none", "fe"))
    row = beside(group, plain, None, "fr")
    assert (row["units"], row["n"], row["none_share"], row["fallback"]) == (4, 3, 0.5, "de")
    assert math.isnan(row["random_share"])
    assert beside(group, plain, plain, "fr")["random_share"] == 0.5


IMPROBABLE = "the texts are improbable to the unchanged model"


def summary_rows(count=4, clear=3, **changed):
    """Pairs of one steering, of which some are clear."""
    fine = {
        "steering": "force", "dose": 1.0, "units": 10, "share": 0.5, "none_share": 0.1, "random_share": 0.2, "und": 0.0,
        "repetition": 0.1, "none_repetition": 0.05, "text_nll": 2.5, "none_text_nll": 2.0,
        "target_nll_change": -0.1, "other_nll_change": 0.3,
    }  # fmt: skip
    return pd.DataFrame([{**fine, **changed, "n": 5, "clear": number < clear} for number in range(count)])


def test_summary_by_hand():
    one = summary_rows().assign(share=[0.1, 0.2, 0.3, 0.8], random_share=[0.1, 0.3, np.nan, 0.2], units=[1, 2, 2, 4])
    table = pd.concat([one, summary_rows(2, 2, dose=2.0, share=0.9), summary_rows(2, 2, steering="a", share=0.6)])
    summary = steering_summary(table)
    assert summary[["steering", "dose"]].to_numpy().tolist() == [["force", 2.0], ["a", 1.0], ["force", 1.0]]
    row = summary.iloc[2]
    assert (row["units"], row["pairs"], row["n"], row["clear"]) == (2, 4, 20, 3)
    assert list(row[["share", "random_share", "none_share"]]) == pytest.approx([0.35, 0.2, 0.1])
    assert (row["target_nll_change"], row["other_nll_change"]) == pytest.approx((-0.1, 0.3))
    assert list(summary.columns)[:9] == [
        "steering", "dose", "units", "pairs", "n", "share", "none_share", "random_share", "clear"
    ]  # fmt: skip
    bare = steering_summary(one.drop(columns=["target_nll_change", "other_nll_change"]))
    assert "target_nll_change" not in bare and bare["warning"].tolist() == [""]


def pairs_of(name, shares):
    """Eight pairs of 300 texts and 56 of 5, of which each share is the mean."""
    table = summary_rows(64, steering=name)
    return table.assign(n=[300] * 8 + [5] * 56, share=shares)


def test_the_interval_of_a_mean_over_pairs_counts_small_pairs_as_small():
    alike = steering_summary(summary_rows(4, share=0.4)).iloc[0]
    assert (alike["low"], alike["high"]) == pytest.approx(tuple(share_of(8, 20).values())[1:])
    generator, covered = np.random.default_rng(0), []
    counts = np.array([300] * 8 + [5] * 56)
    for _ in range(300):
        row = steering_summary(pairs_of("a", generator.binomial(counts, 0.5) / counts)).iloc[0]
        covered.append(row["low"] <= 0.5 <= row["high"])
    assert 0.92 <= np.mean(covered) <= 0.98


def test_a_way_beats_another_by_more_than_its_small_pairs_can_tell():
    tables = [pairs_of(name, share) for name, share in (("a", 0.54), ("b", 0.49), ("c", 0.3))]
    one, two, three = (steering_summary(each).to_dict("records")[0] for each in tables)
    assert beats(one, two) == 0 and beats(one, three) == 1 and beats(three, one) == -1


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, ""),
        ({"clear": 2}, "half of the pairs or more not clearly above no steering and random units"),
        ({"random_share": math.nan}, "no random counterpart"),
        ({"repetition": 0.16}, "the texts repeat themselves"),
        ({"repetition": 0.14}, ""),
        ({"text_nll": 3.1}, IMPROBABLE),
        ({"text_nll": 2.9}, ""),
        ({"target_nll_change": 0.1}, "the target's own text becomes less probable"),
        ({"target_nll_change": math.nan}, ""),
        ({"text_nll": 3.1, "random_share": math.nan}, "no random counterpart; " + IMPROBABLE),
    ],
)  # fmt: skip
def test_warnings_in_words(changed, warning):
    assert steering_summary(summary_rows(**changed))["warning"].tolist() == [warning]


def test_dose_response_by_hand():
    texts = frame(
        rows("none", "fffd", nll=1.0),
        rows("none", "eeuu", source="en", nll=2.0),
        rows("none", "ffff", source="fr", nll=3.0),
        rows("force", "ffd", "fr", source="en", nll=3.0, repetition=0.5),
        rows("force", "dddu", "de", nll=3.0, repetition=0.1),
        rows("force", "dddd", "de", source="fr", nll=3.0, repetition=0.2),
        rows("force", "fe", "fr", dose=2.0),
        rows("force", "df", "de", seed=0, nll=9.0),
        rows("force", "ddd", "fr", seed=1, nll=9.0),
        rows("other", "dfu", "fr"),
    )
    doses = dose_response(texts)
    assert doses[["steering", "dose"]].to_numpy().tolist() == [["force", 1.0], ["force", 2.0], ["other", 1.0]]
    row = doses.iloc[0]
    assert row["n"] == 11 and row["share"] == pytest.approx(9 / 11)
    assert [row["low"], row["high"]] == pytest.approx(wilson(9, 11))
    assert row["random_share"] == pytest.approx(1 / 5)
    assert row["none_share"] == pytest.approx((3 / 8 + 1 / 12) / 2)  # French prompts are not steered to French
    assert row["repetition"] == pytest.approx((3 * 0.5 + 4 * 0.1 + 4 * 0.2) / 11)
    assert (row["text_nll"], row["none_text_nll"]) == (3.0, 2.0)
    assert (
        doses["none_share"].tolist()[1:] == [3 / 8, 3 / 8] and doses["random_share"].isna().tolist()[1:] == [True] * 2
    )
    assert doses["share"].tolist()[1:] == [0.5, pytest.approx(1 / 3)]


def test_the_dose_with_the_largest_share_of_probable_texts():
    rows = [
        ("a", 1, 0.2, 2.0),
        ("a", 2, 0.6, 3.0),
        ("a", 4, 0.9, 3.1),
        ("b", 1, 0.9, 4.0),
        ("b", 2, 0.1, 3.5),
        ("c", 8, 0, 2),
    ]
    doses = pd.DataFrame(rows, columns=["steering", "dose", "share", "text_nll"]).assign(none_text_nll=2.0)
    assert choose_doses(doses) == {"a": 2, "b": 2, "c": 8}
    assert choose_doses(doses.assign(none_text_nll=1.0)) == {"a": 1, "b": 2, "c": 8}
    assert choose_doses(doses.assign(none_text_nll=3.0)) == {"a": 4, "b": 1, "c": 8}


def off(method, languages, source, seed=None):
    return [{**row, "method": method} for row in rows("", languages, source=source, seed=seed, units=5)]


def test_deactivation_table_by_hand():
    texts = frame(
        off("none", "ffff", "fr"), off("none", "dddf", "de"), off("one", "eeeeeddddf", "fr"), off("one", "ddddf", "de"),
        off("one", "ffe", "fr", seed=0), off("one", "f", "fr", seed=1), off("two", "eeee", "fr"),
    )  # fmt: skip
    table = deactivation_table(texts)
    assert table[["method", "source"]].to_numpy().tolist() == [["one", "fr"], ["one", "de"], ["two", "fr"]]
    first, second, third = table.to_dict("records")
    assert (first["share"], first["none_share"], first["random_share"]) == (0.1, 1.0, 0.75)
    assert [first["low"], first["high"]] == pytest.approx(wilson(1, 10))
    assert (first["fallback"], first["clear"], first["units"], first["n"]) == ("en", False, 5, 10)  # 3 of 4: p 0.041
    assert (second["share"], second["none_share"], second["clear"]) == (0.8, 0.75, False)
    assert math.isnan(third["random_share"]) and third["clear"]  # none of 4 below 4 of 4: p 0.014


@pytest.mark.parametrize(
    ("none", "random", "clear"),
    [("ffff", "ffff", True), ("ffff", "ffffe", False), ("ffff", "fffffe", True), ("feee", "ffff", False)],
)  # 2 of 10: below 4 of 4 with p 0.015, below 4 of 5 with p 0.047, below 5 of 6 with p 0.024
def test_left_is_below_both(none, random, clear):
    texts = frame(off("none", none, "fr"), off("one", "ffeeeeeeee", "fr"), off("one", random, "fr", seed=0))
    assert deactivation_table(texts)["clear"].tolist() == [clear]


def test_fallback_matrix_by_hand():
    texts = frame(off("one", "dffu", "fr"), off("one", "ffee", "de"))
    matrix = fallback_matrix(texts)
    assert list(matrix.index) == ["fr", "de"] and list(matrix.columns) == ["fr", "de", "en", "und"]
    assert matrix.to_numpy().tolist() == [[0.5, 0.25, 0.0, 0.25], [0.5, 0.0, 0.5, 0.0]]
    lost = fallback_matrix(frame(off("one", "e", "fr")))
    assert lost.to_dict("list") == {"fr": [0.0], "en": [1.0], "und": [0.0]}
    steered = frame(rows("a", "fe", "fr"), rows("a", "ed", "de", source="fr"))
    assert list(fallback_matrix(steered).columns) == ["fr", "de", "en", "und"]
    assert fallback_matrix(steered).loc["nothing"].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert fallback_matrix(steered, "target").loc["de"].tolist() == [0.0, 0.5, 0.5, 0.0]


# figures

DOSES = pd.DataFrame(
    {
        "dose": [4.0, 1.0, 0.5], "share": [0.5, 0.25, 0.125], "low": [0.4, 0.2, 0.1], "high": [0.7, 0.375, 0.3],
        "random_share": [0.15, np.nan, 0.05], "none_share": [0.06, 0.06, 0.06],
    }
)  # fmt: skip


def test_the_band_is_the_interval(tmp_path):
    chart = plots.dose_curve(DOSES, "force")
    path = lsn.plots.save(chart, tmp_path / "dose.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = chart.matplotlib().axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "1", "4"]
    (band,) = axes.collections
    corners = {(round(x), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 0.1), (0, 0.3), (1, 0.2), (1, 0.375), (2, 0.4), (2, 0.7)}
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(curves["force"]) == [0.125, 0.25, 0.5]
    assert np.array_equal(curves["random counterpart"], [0.05, np.nan, 0.15], equal_nan=True)
    assert list(curves["no steering"]) == [0.06] * 3


def test_the_band_in_plotly():
    band, curve, *others = plots.dose_curve(DOSES, "force").plotly().data
    assert list(band.x) == ["0.5", "1", "4", "4", "1", "0.5"] and band.fill == "toself"
    assert list(band.y) == [0.3, 0.375, 0.7, 0.4, 0.2, 0.1]
    assert list(curve.x) == ["0.5", "1", "4"] and list(curve.y) == [0.125, 0.25, 0.5]
    assert [each.fill for each in others] == [None, None]


def test_shares_in_a_map():
    matrix = pd.DataFrame([[0.25, np.nan]], index=["fr"], columns=["de", "en"])
    trace = plots.share_map(matrix, "title", "to", "from").plotly().data[0]
    assert (trace.zmin, trace.zmax) == (0, 1) and list(trace.x) == ["de", "en"] and list(trace.y) == ["fr"]
    assert np.array_equal(np.asarray(trace.z), matrix, equal_nan=True)


def test_an_instruction_names_the_language():
    made = instruction_words("In {language}: ", ["fr", "zh-Hant", "pt_BR", "php"], names={"php": "PHP", "fr": "F"})
    expected = {"fr": "F", "zh-Hant": "Traditional Chinese", "pt_BR": "Brazilian Portuguese", "php": "PHP"}
    assert made == {label: f"In {name}: " for label, name in expected.items()}
    each = {"de": "Auf {language}, {x}: ", "xx": "Words. ", "fr": "{}"}
    assert instruction_words(each, ["xx", "de"]) == {"xx": "Words. ", "de": "Auf German, {x}: "}
    for label in ("xx", "sr-Latn"):  # not the language without its script
        with pytest.raises(KeyError, match=rf"no name is known for the targets \['{label}'\]: give names={{'{label}'"):
            instruction_words("In {language}: ", ["de", label])
    with pytest.raises(KeyError, match=r"no template for the targets \['en'\]; there are templates for \['de'"):
        instruction_words(each, ["de", "en"])
    with pytest.raises(ValueError, match=r"is the same for all targets: put \{language\} where"):
        instruction_words("Answer in French. ", ["fr"])
    with pytest.raises(ValueError, match="targets='fr' is one string"):
        instruction_words("In {language}: ", "fr")
    assert all(label == label.lower() for label in NAMES) and len(set(NAMES.values())) == len(NAMES)
