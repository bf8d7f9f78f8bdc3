"""Neurons by type, off and raised: against plain Hugging Face modules with hooks, and types counted by hand."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from conftest import BACKENDS, LAYERS, SENTENCES, parts

import lsn_lens as lsn
from lsn_lens import analysis, applications, generation
from lsn_lens.applications.item_types import TypeSets
from lsn_lens.controls.matched import matched_draws
from lsn_lens.methods.sharing import TYPES
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*items are too few")
LABELS = ("en", "de", "fr")
TEXTS = {
    label: [f"{number} {SENTENCES[place][: 20 + 5 * number]}" for number in range(6)]
    for place, label in enumerate(LABELS)
}
QUIET = {"progress": False}


def read(model, tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[tokenizer.bos_token_id, *ids]])


@torch.no_grad()
def by_hand(architecture, model, tokenizer, item):
    """Types `[layer][unit]` and mean contributions `[layer, unit]` of an item, from Hugging Face's own tensors."""
    gates, sizes = [], []
    for label in LABELS:
        seen, hooks = {}, []
        for layer in range(LAYERS):
            each = parts(architecture, model, layer)
            keep = lambda _, given, out, layer=layer: seen.update({("m", layer): given[0].reshape(-1, D(given))[-1]})  # noqa: E731
            hooks.append(each.down.register_forward_hook(keep))
            if hasattr(each, "act"):
                act = lambda _, given, out, layer=layer: seen.update({("act", layer): out.reshape(-1, D(given))[-1]})  # noqa: E731
                hooks.append(each.act.register_forward_hook(act))
        model(read(model, tokenizer, TEXTS[label][item]))
        for hook in hooks:
            hook.remove()
        gates.append(torch.stack([seen.get(("act", layer), seen["m", layer]) for layer in range(LAYERS)]) > 0)
        norms = []
        for layer in range(LAYERS):
            weight = parts(architecture, model, layer).down.weight
            norms.append((weight if weight.shape[1] == 32 else weight.T).norm(dim=1))
        sizes.append(torch.stack([seen["m", layer] for layer in range(LAYERS)]).abs() * torch.stack(norms))
    count = torch.stack(gates).sum(0)
    names = {len(LABELS): "all-shared", 0: "non-activated", 1: "specific"}
    types = [[names.get(int(each), "partial-shared") for each in row] for row in count]
    return types, torch.stack(sizes).mean(0)


def D(given):
    return given[0].shape[-1]


@torch.no_grad()
def loss_of(architecture, model, tokenizer, text, types=None, name="", factor=0.0):
    """Summed loss and tokens of a text, the neurons of a type multiplied in the input of the down projection."""
    hooks = []
    for layer in range(LAYERS if types else 0):
        units = [unit for unit, each in enumerate(types[layer]) if each == name]

        def change(_, given, units=units):
            new = given[0].clone()
            new[..., units] *= factor
            return (new,)

        hooks.append(parts(architecture, model, layer).down.register_forward_pre_hook(change))
    ids = read(model, tokenizer, text)
    logits = model(ids).logits[0].double()
    for hook in hooks:
        hook.remove()
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")), ids.shape[1] - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sets_and_losses_are_those_by_hand(load, hugging_face, architecture, backend):
    model, original = load(architecture, backend), hugging_face(architecture)
    actions = {"zero": lsn.zero, **applications.strengths([1.5])}
    kept = applications.type_sets(model, TEXTS, **QUIET)
    effects = applications.type_losses(model, TEXTS, actions=actions, seeds=1, **QUIET)
    rises = {}
    for item in range(6):
        types, sizes = by_hand(architecture, original, model.tokenizer, item)
        assert torch.allclose(kept.contributions[item].float(), sizes, atol=1e-4)
        for name in TYPES:
            expected = [[each == name for each in row] for row in types]
            assert kept.sets[item][name].masks["mlp"][0].tolist() == expected
            for label in LABELS:
                text = TEXTS[label][item]
                clean, tokens = loss_of(architecture, original, model.tokenizer, text)
                for action, factor in (("zero", 0.0), ("scale 1.5", 1.5)):
                    changed, _ = loss_of(architecture, original, model.tokenizer, text, types, name, factor)
                    found = effects.measured.rises[f"{action}/own/0", name, label][item]
                    assert found == pytest.approx(changed - clean, abs=2e-3)
                    rises.setdefault((action, name, label), []).append((changed - clean, tokens))
    for (action, name, label), pairs in rises.items():
        row = one(effects.table, action=action, type=name, language=label, control="contribution")
        assert row["change"] == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs), abs=1e-4)
    for name in TYPES:
        every = [pair for label in LABELS for pair in rises["zero", name, label]]
        row = one(effects.table, action="zero", type=name, language="(all)", control="number")
        assert row["change"] == pytest.approx(sum(a for a, _ in every) / sum(b for _, b in every), abs=1e-4)
        assert row["low"] < row["change"] < row["high"]
        assert row["excess"] == pytest.approx(row["change"] - row["control_change"])
    assert max(abs(each[0]) for pairs in rises.values() for each in pairs) > 0.05  # or nothing would be tried


def one(table, **values):
    for column, value in values.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def made(masks, sizes):
    """`TypeSets` of items with one type."""
    sets = [NeuronSet(("all-shared",), {"mlp": mask[None]}) for mask in masks]
    return TypeSets(sets, sets, sizes, {"en": [], "de": []})


def test_controls_match_number_and_contribution_and_leave_the_type_out():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(3, 2, 400, generator=generator).double() ** 3
    masks = torch.rand(3, 2, 400, generator=generator) < 0.1 + 0.4 * (
        sizes > 0.3
    )  # large ones have the type more often
    kept = made(masks, sizes)
    for item in range(3):
        own = masks[item]
        gaps = {}
        for trial in kept.trials(item, 4):
            mask = trial.sets.masks["mlp"][0]
            if trial.control == "other item":
                assert torch.equal(mask, masks[(item + 1) % 3])
            elif trial.control != "own":
                assert torch.equal(mask.sum(-1), own.sum(-1)) and not (mask & own).any()
                gaps.setdefault(trial.control, []).append(
                    abs(float(sizes[item][mask].mean() - sizes[item][own].mean()))
                )
        assert np.mean(gaps["contribution"]) < 0.3 * np.mean(gaps["number"])
    (told,) = kept.described(0, kept.sets[1]).values()
    assert told["of_type"] == pytest.approx(float((masks[0] & masks[1]).sum() / masks[1].sum()))
    assert told["contribution"] == pytest.approx(float(sizes[0][masks[1]].sum() / sizes[0].sum()))


def test_a_share_is_drawn_from_the_type_and_controls_still_leave_the_whole_type_out(load):
    kept = applications.type_sets(load("llama"), TEXTS, share=0.1, **QUIET)
    for item, (sets, whole) in enumerate(zip(kept.sets, kept.whole, strict=True)):
        few, every = (each.masks["mlp"] for each in (sets, whole))
        assert not (few & ~every).any()
        assert torch.equal(few.sum(-1), every.sum(-1).clamp_max(5))  # round(0.1 * 48)
        for trial in kept.trials(item, 2)[1:5]:
            drawn = trial.sets.masks["mlp"]
            enough = (~every).sum(-1) >= few.sum(-1)
            assert not (drawn & every & enough[..., None]).any()
    again = applications.type_sets(load("llama"), TEXTS, share=0.1, seed=1, **QUIET)
    assert not all(a == b for a, b in zip(kept.sets, again.sets, strict=True))


def test_values_to_match_are_matched_and_named():
    mask = torch.zeros(1, 1, 300, dtype=torch.bool)
    mask[0, 0, :20] = True
    sizes = {"mlp": torch.linspace(0, 1, 300)[None].double().flip(-1)}
    draws = matched_draws(NeuronSet(("en",), {"mlp": mask}), 3, values=sizes, words="contribution")
    assert draws.matched == "count, layer, contribution"
    own, drawn = draws.active["en"]
    assert own == pytest.approx(float(sizes["mlp"][0, :20].mean())) and 0.8 < drawn < own
    with pytest.raises(ValueError, match="give one of them"):
        matched_draws(NeuronSet(("en",), {"mlp": mask}), 1, statistics_of(torch.ones(3, 5, 1, 300)), values=sizes)


def test_the_task_is_measured_under_each_items_own_sets(load):
    model = load("llama")
    items = generation.ending_items(TEXTS, choices=2)
    effects = applications.type_accuracy(model, items, types=["all-shared"], seeds=1, normalise="bytes", **QUIET)
    prompts = {label: [each.prompt for each in items if each.language == label] for label in LABELS}
    kept = applications.type_sets(model, prompts, **QUIET)
    before = generation.evaluate_items(model, items, normalise="bytes", **QUIET)
    before = before.set_index(["language", "id"])["correct"].astype(float)
    for item in range(6):
        with lsn.intervene(model, kept.sets[item]["all-shared"]):
            own = [each for each in items if each.id == str(item)]
            rows = generation.evaluate_items(model, own, normalise="bytes", **QUIET)
        for row in rows.itertuples():
            change = effects.measured.rises["zero/own/0", "all-shared", row.language][item]
            assert change == row.correct - before[row.language, row.id]
    row = one(effects.table, language="(all)", control="contribution")
    assert row["accuracy"] == pytest.approx(before.mean())
    assert row["change"] == pytest.approx(
        np.mean([effects.measured.rises["zero/own/0", "all-shared", label].mean() for label in LABELS])
    )


def test_ending_items_are_parallel_and_have_their_own_ending():
    items = generation.ending_items(TEXTS, choices=3)
    assert [each.id for each in items] == [str(i) for _ in LABELS for i in range(6)]
    for each in items:
        text = TEXTS[each.language][int(each.id)]
        assert each.prompt + each.answers[0] == text and len(set(each.choices)) == 3
    places = [each.choices.index(each.answers[0]) for each in items[:6]]
    assert sorted(set(places)) == [0, 1, 2]
    with pytest.raises(ValueError, match="choices=1: expected 2"):
        generation.ending_items(TEXTS, choices=1)
    with pytest.raises(lsn.DoesNotApply, match="en: 2 documents with 1 different endings"):
        generation.ending_items({"en": ["a b c", "a b c"]}, choices=2)


def test_two_equal_models_do_not_differ_and_a_planted_change_is_found(load):
    model = load("llama")
    same = analysis.compare_sharing(model, model, TEXTS, halvings=3, **QUIET)
    assert (same.agreement["same_items"] == 1).all() and (same.agreement["beyond"] == 0).all()
    assert not len(same.units) and (same.profiles["change"] == 0).all()
    sums = same.transitions.groupby("layer")["share"].sum()
    assert sums.tolist() == pytest.approx([1] * LAYERS)


def statistics_of(values, languages=("en", "de", "fr")):
    def get(key, layer):
        flat = values[:, :, layer] if key != "length" else torch.ones(values.shape[:2])[..., None]
        return dict(zip(languages, flat, strict=True))

    return Statistics(languages, {}, torch.ones(len(languages), values.shape[2]).long(), read=get)


def test_units_that_change_are_those_changed():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 12, 2, 30, generator=generator)
    values[:, :, 1, :4] = -1  # never active
    changed = values.clone()
    changed[:, :, 1, 1:3] = 1  # always active, in all languages
    found = analysis.sharing_change(statistics_of(values), statistics_of(changed), halvings=5)
    assert found.units.to_dict("records") == [
        {"layer": 1, "unit": unit, "before": "non-activated", "after": "all-shared"} for unit in (1, 2)
    ]
    rows = found.agreement.set_index("layer")
    assert rows.loc["0", "beyond"] == 0 < rows.loc["1", "beyond"] == pytest.approx(2 / 30)
    assert rows.loc["1", "same_items"] == pytest.approx(28 / 30)
    assert rows.loc["all", "beyond"] == pytest.approx(1 / 30)
    profiles = found.profiles.set_index(["layer", "type"])["change"]
    assert profiles[1, "all-shared"] == pytest.approx(2 / 30) == -profiles[1, "non-activated"]


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_what_cannot_be_meant_is_refused(load, unchecked):
    model = load("llama")
    for change, words in (
        ({"types": ["shared"]}, r"types=\['shared'\]: expected one or more of \['all-shared'"),
        ({"types": []}, "expected one or more of"),
        ({"share": 0.0}, "share=0.0: expected a share"),
        ({"seeds": 0}, "1 actions and 0 seeds"),
        ({"actions": {}}, "0 actions and 3 seeds"),
        ({"actions": {"up": 2.0}}, "expected an action"),
    ):
        with pytest.raises(ValueError, match=words):
            applications.type_losses(model, TEXTS, **QUIET, **change)
    for factors in ([math.inf], [math.nan], []):
        with pytest.raises(ValueError, match="finite numbers"):
            applications.strengths(factors)
    with pytest.raises(lsn.DoesNotApply, match=r"numbers of documents differ: \{'en': 6, 'de': 6, 'fr': 5\}"):
        applications.type_losses(model, {**TEXTS, "fr": TEXTS["fr"][:5]}, **QUIET)
    gaps = {label: list(own) for label, own in TEXTS.items()}
    gaps["en"][1], gaps["de"][4], gaps["fr"][4] = None, None, None
    with pytest.raises(lsn.DoesNotApply, match="document 1 is not the same record"):
        applications.type_losses(model, gaps, **QUIET)
    with pytest.raises(lsn.DoesNotApply, match="two languages or more"):
        applications.type_losses(model, {"en": TEXTS["en"]}, **QUIET)
    items = generation.ending_items(TEXTS, choices=2)
    for given in (items[1:], items[:6], [*items, items[0]]):
        with pytest.raises(lsn.DoesNotApply, match="items are not parallel"):
            applications.type_accuracy(model, given, **QUIET)
    with pytest.raises(ValueError, match=r"the models have .* neurons correspond only in models of one shape"):
        analysis.compare_sharing(model, load("gpt2"), TEXTS, **QUIET)
    with pytest.raises(ValueError, match="over the same items"):
        values = torch.randn(3, 12, 2, 30)
        analysis.sharing_change(statistics_of(values), statistics_of(values[:, :10]))
    with pytest.raises(lsn.DoesNotApply, match="3 items: expected 4"):
        analysis.sharing_change(statistics_of(values[:, :3]), statistics_of(values[:, :3]))
