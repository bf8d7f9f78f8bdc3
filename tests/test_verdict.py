"""What a verdict says is what counting says, at the level that it names; and no fault reads as a method left out."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import D_MLP, LAYERS, SENTENCES

import lsn_lens as lsn
from lsn_lens.comparison import draw_checks
from lsn_lens.comparison.checks import Checks
from lsn_lens.controls.ablations import ablation_sensitivity
from lsn_lens.controls.intervals import certainty
from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut, Measured, held_out
from lsn_lens.evaluation.scored import Scored
from lsn_lens.methods.lape import Lape
from lsn_lens.model import unembedding
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.plan import Plan

LANGUAGES = ("en", "de", "zh")
TEXT = dict(zip(LANGUAGES, (SENTENCES[0], SENTENCES[1], SENTENCES[3]), strict=True))


# p-values


@pytest.mark.parametrize(
    ("rise", "drawn", "p"),
    [
        (1.0, [0.0] * 39, 1 / 40),
        (1.0, [0.0] * 18 + [2.0], 2 / 20),  # above 95 % of 19, and no more than 0.1
        (1.0, [1.0] + [0.0] * 38, 2 / 40),  # a tie counts against
        (1.0, [math.nan] + [0.0] * 38, 2 / 40),  # and so does what is no number
        (math.nan, [0.0] * 39, 1.0),
        (math.inf, [0.0] * 39, 1.0),  # a broken model shows nothing
        (0.0, [0.0] * 39, 1.0),
        (1.0, [], 1.0),
    ],
)
def test_p_counts_the_set_itself_and_all_that_do_as_much(rise, drawn, p):
    assert verdict.p_value(rise, drawn) == p


def test_adjusted_p_values_by_hand():
    p = [0.01, 0.04, 0.03, math.nan, 0.5]
    # in order 0.01, 0.03, 0.04, 0.5 of 4: p m / rank, then the least of what follows; NaN is no test
    assert verdict.adjusted(p)[[0, 1, 2, 4]].tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert math.isnan(verdict.adjusted(p)[3])
    assert np.isnan(verdict.adjusted([math.nan])).all()
    assert verdict.fewest_to_pass(104, 39) == 52
    assert (verdict.adjusted([1 / 40] * 52 + [1.0] * 52)[:52] <= 0.05).all()
    assert (verdict.adjusted([1 / 40] * 51 + [1.0] * 53) > 0.05).all()


def test_the_share_of_false_ones_is_held_where_some_are_true():
    generator, shares = np.random.default_rng(0), []
    for _ in range(200):
        true = np.full(30, 1 / 120)
        null = np.ceil(generator.random(70) * 120) / 120  # what 119 random sets give without an effect
        below = verdict.adjusted([*true, *null]) <= 0.05
        shares.append(below[30:].sum() / max(1, below.sum()))
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / math.sqrt(200)


def test_no_effect_passes_more_often_than_the_level():
    """All languages of a table at once, against random sets in two stages: any that passes is a false one."""
    generator, any_passes, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        p = []
        for _ in range(8):
            rise, drawn = generator.normal(), generator.normal(size=119)
            first = verdict.p_value(rise, drawn[:39])
            p.append(verdict.p_value(rise, drawn) if first == 1 / 40 else first)
        any_passes += bool((verdict.adjusted(p) <= 0.05).any())
    assert any_passes <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


# who is hurt most


def changes(nats, bits):
    rises = {"nll_change": nats.values(), "bits_per_byte_change": bits.values(), "nll_relative_change": nats.values()}
    return pd.DataFrame({"evaluated": list(nats), **rises})


def test_beside_random_sets_by_hand():
    row = verdict.beside_random(3.0, [1.0, 2.0, 3.0], units=20)
    assert row == {"random_mean": 2.0, "random_sd": 1.0, "z": 1.0, "p": 2 / 4, "seeds": 3}  # a tie counts against
    assert math.isnan(verdict.beside_random(3.0, [1.0, 2.0], units=0)["p"])  # no units, no test
    assert verdict.beside_random(3.0, [], units=20)["p"] == 1
    one = verdict.beside_random(3.0, [math.nan], units=20)
    assert math.isnan(one["random_mean"]) and math.isnan(one["random_sd"]) and math.isnan(one["z"]) and one["p"] == 1


@pytest.mark.parametrize(
    ("nats", "bits", "most"),
    [
        ((3, 2, 1), (3, 2, 1), "both"),
        ((3, 2, 1), (3, 4, 1), "nats"),
        ((3, 4, 1), (3, 2, 1), "bits"),
        ((3, 4, 1), (3, 4, 1), "neither"),
        ((3, 3, 1), (3, 3, 1), "neither"),  # ties count against
        ((0, 0, 0), (0, 0, 0), "neither"),  # as a set without units gives
        ((-1, -2, -3), (-1, -2, -3), "neither"),
        ((3, math.nan, 1), (3, math.nan, 1), "neither"),
        ((math.nan, 2, 1), (math.nan, 2, 1), "neither"),
        ((math.inf, 2, 1), (math.inf, 2, 1), "neither"),
    ],
)
def test_hurt_most_in_two_units(nats, bits, most):
    given = (dict(zip(LANGUAGES, map(float, each), strict=True)) for each in (nats, bits))
    row = verdict.rises(changes(*given), "en")
    assert row["hurt_most_in"] == most
    assert row["own_hurt_most"] == (most == "both")


def test_a_language_whose_rise_is_no_number_is_hurt_most_and_in_the_mean():
    row = verdict.own_and_others({"en": 1.0, "de": 2.0, "zh": math.nan}, "en")
    assert row["worst_other"] == "zh"
    assert math.isnan(row["worst_other_rise"])
    assert math.isnan(row["mean_other_rise"])
    assert row["own_rank"] == 3
    for wrong in ({"en": 1.0}, {"de": 1.0, "zh": 2.0}):
        with pytest.raises(ValueError, match="evaluate='all'"):
            verdict.own_and_others(wrong, "en")


# held-out text, measured once


@pytest.fixture(scope="module")
def ready(load):
    model = load("llama")
    corpora = lsn.load_corpora(
        {label: [f"{i} {text}" for i in range(40)] for label, text in TEXT.items()}, hold_out=0.4
    )
    run = lsn.collect(model, corpora, ["lape"], layout=lsn.Layout(max_tokens=400), progress=False)
    return model, corpora, run


def some_set(seed=0, share=0.2):
    mask = torch.rand(3, LAYERS, D_MLP, generator=torch.Generator().manual_seed(seed)) < share
    return NeuronSet(LANGUAGES, {"mlp": mask}, "made")


@pytest.mark.parametrize("kind", ["blocks", "documents"])
def test_measuring_on_text_at_hand_is_perplexity_table(ready, kind):
    model, corpora, run = ready
    layout = lsn.Layout(kind=kind, max_tokens=200)
    text = held_out(model, corpora, layout, progress=False)
    sets = {"a": some_set(), "b": some_set(1), "c": some_set(2)}
    sets["b"].masks["mlp"][0] = False  # without units nothing changes
    actions = lsn.other_mean_ablation(run.statistics), lsn.zero.at(slice(3, 9))
    for action, evaluate in zip(actions, ("all", "own"), strict=True):
        mine = text.measure(sets, action, evaluate=evaluate, progress=False)
        table = lsn.perplexity_table(model, corpora, sets, action, evaluate=evaluate, layout=layout, progress=False)
        pd.testing.assert_frame_equal(mine.table, table, rtol=1e-4, atol=1e-5)
        assert mine.table.attrs["text"] == table.attrs["text"]


@pytest.mark.parametrize("kind", ["blocks", "documents"])
def test_losses_of_documents_are_those_of_their_tokens(ready, kind):
    model, corpora, _ = ready
    found, layout = some_set()["de"], lsn.Layout(kind=kind, max_tokens=200)
    text = held_out(model, corpora, layout, progress=False)
    rises = text.measure(found, lsn.zero, progress=False).rises["", "de", "en"]
    tokenizer, start = model.tokenizer, model.tokenizer.bos_token_id
    ids, owner = [], []
    for place, document in enumerate(corpora["en"].hold_out):
        row = [start, *tokenizer(document, add_special_tokens=False)["input_ids"]]
        ids, owner = ids + row, owner + [place] * len(row)
    count = sum(text.plan.tokens_of(shard) for shard in text.plan.shards if shard.language == "en")
    length = model.cfg.n_ctx
    cuts = range(0, count, length) if kind == "blocks" else [i for i in range(count) if ids[i] == start]
    expected, tokens = {}, {}
    for first, last in zip(cuts, [*cuts[1:], count], strict=True):
        row = torch.tensor([ids[first:last]])
        losses = []
        for units in (None, found):
            with lsn.intervene(model, units or found, lsn.scale(1.0) if units is None else lsn.zero):
                log = model(row)[0, :-1].log_softmax(-1)
            losses.append(-log[torch.arange(len(log)), row[0, 1:]])
        for at, (before, after) in enumerate(zip(*losses, strict=True), first + 1):
            if ids[at] != start:
                expected[owner[at]] = expected.get(owner[at], 0.0) + float(after - before)
                tokens[owner[at]] = tokens.get(owner[at], 0) + 1
    assert rises.tolist() == pytest.approx(list(expected.values()), rel=1e-3, abs=1e-4)
    assert text.tokens["en"].tolist() == list(tokens.values())


def test_the_text_is_read_and_the_model_measured_once(ready, monkeypatch):
    """Five kinds of ablation, found and random sets: the unchanged model is not measured for each again."""
    model, corpora, run = ready
    passes = []
    losses = unembedding.next_token_losses

    def counted(model, ids, *args):
        passes.append(ids.numel())
        return losses(model, ids, *args)

    monkeypatch.setattr(unembedding, "next_token_losses", counted)
    layout = lsn.Layout(max_tokens=128, length=64)
    text = held_out(model, corpora, layout, progress=False)
    once, whole = sum(passes), 3 * 128
    assert once == whole
    passes.clear()
    actions = {"zero": lsn.zero, "half": lsn.scale(0.5)}
    ablation_sensitivity(model, corpora, run, some_set(), actions=actions, seeds=2, text=text, progress=False)
    assert sum(passes) == len(actions) * (3 * whole + 2 * whole)


# how sure


def made(rises, tokens=10.0, seed=0):
    """A set `a` of one language, and the rises of each document of each, in nats."""
    names = list(rises)
    counts = {label: np.full(len(each), tokens) for label, each in rises.items()}
    measured = Measured(pd.DataFrame(), {("a", names[0], on): each for on, each in rises.items()}, counts)
    scored = {label: Scored(np.arange(len(each)), each, each * 2 / math.log(2), 1) for label, each in counts.items()}
    text = HeldOut(None, object.__new__(Plan), scored, {})  # type: ignore[arg-type]
    return certainty(text, measured, seed=seed)


def test_an_effect_far_from_chance_is_sure_and_its_interval_has_it():
    generator = np.random.default_rng(0)
    found = made({"en": generator.normal(2, 0.5, 20), "de": generator.normal(0, 0.5, 20)})
    row = found.table.iloc[0]
    assert row["surely_hurt_most"]
    assert row["hurt_most_share"] == 1
    assert row["own_rise_low"] < 0.2 < row["own_rise_high"]  # nats per token
    assert row["difference_bits_per_byte_low"] == pytest.approx(row["difference_low"] / 2)
    assert found.interval_of_count([("a", "en")], surely=True) == (1, 1)
    assert found.interval_of_count([], surely=True) == (0, 0)


def test_surely_hurt_most_at_its_level_where_another_language_is_hurt_as_much():
    generator, sure, runs = np.random.default_rng(2), 0, 100
    for seed in range(runs):
        rises = {label: generator.normal(1, 0.5, 20) for label in ("en", "de")}
        sure += made(rises, seed=seed).table["surely_hurt_most"][0]
    assert sure <= 0.025 * runs + 3 * math.sqrt(0.025 * 0.975 * runs)  # one end of a 95 % interval


@pytest.mark.parametrize("documents", [5, 10, 30])
def test_the_interval_of_the_difference_has_the_truth_where_seven_others_are_hurt_alike(documents):
    generator, held, runs = np.random.default_rng(4), 0, 120
    for seed in range(runs):
        rises = {"en": generator.normal(2, 0.5, documents)}
        rises |= {str(place): generator.normal(1, 0.5, documents) for place in range(7)}
        row = made(rises, seed=seed).table.iloc[0]
        held += row["difference_low"] <= 0.1 <= row["difference_high"]  # nats per token
    assert held >= 0.95 * runs - 3 * math.sqrt(0.05 * 0.95 * runs)


def test_too_few_documents_are_not_sure():
    found = made({"en": np.full(4, 5.0), "de": np.zeros(20)})
    assert math.isnan(found.table["hurt_most_share"][0])
    assert not found.table["surely_hurt_most"][0]
    assert all(map(math.isnan, found.interval_of_count([("a", "en")], surely=True)))


def test_a_document_whose_loss_is_no_number_is_not_left_out():
    rises = {"en": np.full(20, 5.0), "de": np.append(np.zeros(19), math.nan)}
    row = made(rises).table.iloc[0]
    assert not row["surely_hurt_most"]
    assert math.isnan(row["difference_low"])
    assert row["own_rise_low"] == pytest.approx(0.5)


# errors that must not hide


@dataclass(frozen=True)
class Broken(Lape):
    error: type[Exception] = KeyError

    def score(self, statistics):
        raise self.error("a typo of our own")


def test_a_fault_in_a_method_is_no_method_that_was_left_out(ready, monkeypatch):
    run = ready[2]
    monkeypatch.setitem(lsn.METHODS, "lave", Broken)
    for error in (KeyError, ValueError):
        monkeypatch.setitem(lsn.METHODS, "lave", type("B", (Broken,), {"__init__": lambda s, e=error: _set(s, e)}))
        with pytest.raises(error, match="a typo of our own"):
            lsn.compare(run)
    monkeypatch.setitem(lsn.METHODS, "lave", type("B", (Broken,), {"__init__": lambda s: _set(s, DoesNotApply)}))
    assert lsn.compare(run).skipped.set_index("method")["reason"]["lave"] == "a typo of our own"


def _set(method, error):
    Lape.__init__(method)
    object.__setattr__(method, "error", error)


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_fault_in_a_check_is_no_check_that_was_not_done(ready, monkeypatch, error):
    run = ready[2]

    def broken(*_, **__):
        raise error("a typo of our own")

    monkeypatch.setattr(draw_checks, "leave_one_out", broken)
    with pytest.raises(error, match="a typo of our own"):
        lsn.compare(run, ["lape"], trust=Checks(2, 0), progress=False)


def test_what_refuses_is_said(ready):
    run = ready[2]
    short = replace(run, shards={label: each[:3] for label, each in run.shards.items()})
    found = lsn.compare(short, ["lape"], trust=Checks(2, 39), progress=False)
    assert found.trust["not_done"][0].startswith("stability, nulls: too few shards")
