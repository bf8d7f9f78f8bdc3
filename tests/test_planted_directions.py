"""Directions that tell tokens apart, which layers hold them, and the text they are taken from."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
from planted_world import LABELS
from sklearn.linear_model import LogisticRegression

from lsn_lens.planted.cells import (
    Concept,
    _rates,
    concepts_of,
    inside_and_known,
    place_cells,
    script_shares,
    usable_layers,
)
from lsn_lens.planted.directions import PENALTY, answer, at_rates, both_sides, separate
from lsn_lens.planted.reading import Inputs, inputs_of, read_text, token_scripts
from lsn_lens.planted.roles import ROLES

# directions


def plane(seed=0):
    """Tokens of three languages around three means."""
    generator = torch.Generator().manual_seed(seed)
    language = torch.arange(3).repeat_interleave(200)
    means = 4 * torch.eye(3, 8) + torch.nn.functional.one_hot(torch.tensor(7), 8)
    return means[language] + torch.randn(600, 8, generator=generator) * 0.5, language


def test_separate_counts_both_sides_the_same_and_the_unknown_not_at_all():
    acts, language = plane()
    inside = torch.stack([language == 0, language != 1], 1)
    found = separate(acts, inside, torch.ones_like(inside))
    assert (((acts @ found.T) > 0) == inside).float().mean() > 0.99
    known = inside | (torch.arange(600) % 2 == 0)[:, None]
    wrong = torch.where(known, inside, ~inside)
    assert torch.allclose(separate(acts, wrong, known), separate(acts, inside, known), atol=1e-4)
    rare = torch.cat([torch.arange(200)[:10], torch.arange(200, 600)])  # ten tokens against four hundred
    few = separate(acts[rare], inside[rare, :1], torch.ones_like(inside[rare, :1]))
    assert (acts[language == 0] @ few[0] > 0).float().mean() > 0.95


def test_answer_is_least_squares():
    acts, language = plane()
    gate = torch.rand(600, generator=torch.Generator().manual_seed(1))
    wanted = (language == 2).float() * 3
    expected = np.linalg.lstsq((acts * gate[:, None]).numpy(), wanted.numpy(), rcond=None)[0]
    np.testing.assert_allclose(answer(acts, gate, wanted).numpy(), expected, atol=1e-3)
    sides = acts @ both_sides(acts, language == 1)
    assert sides[language == 1].mean() > 0.8
    assert sides[language != 1].mean() < -0.8


def test_at_rates():
    acts, language = plane()
    found = at_rates(acts, language, [0.6, 0.3, 0.1], torch.Generator().manual_seed(3))
    rates = [float((acts[language == place] @ found > 0).float().mean()) for place in range(3)]
    np.testing.assert_allclose(rates, [0.6, 0.3, 0.1], atol=0.05)


def test_which_layers_can_hold_a_concept(ground):
    find, held_out = ground.inputs
    concepts = [Concept(("latin-1",)), Concept(("latin-1", "latin-2"), "LATIN")]
    layers, best = usable_layers(concepts, find, held_out, ground.scripts, ground.languages)
    assert layers == {0: [0, 1], 1: [0, 1]}
    shuffled = dataclasses.replace(find, language=find.language[torch.randperm(len(find.language))])
    lost, said = usable_layers(concepts[:1], shuffled, held_out, ground.scripts, ground.languages)
    assert lost == {0: []}
    assert "fires on" in said[0] and len(best) == 2


def test_a_direction_is_as_good_as_in_its_worst_languages():
    language = torch.arange(4).repeat_interleave(50)
    inside, known = language < 2, torch.ones(200, dtype=torch.bool)
    fires = torch.arange(200) % 50 < torch.tensor([50, 25, 5, 10])[language]
    assert _rates(fires, inside, known, language) == pytest.approx((0.5, 0.2))


def test_groups_are_drawn_for_enough_languages():
    scopes = concepts_of([ROLES["shared"]], LABELS, {}, random.Random(0))
    assert {len(concept.languages) for concept in scopes["group"]} == {2}
    assert len(set(scopes["group"])) == len(scopes["group"]) == 4
    many = concepts_of([ROLES["shared"]], list("abcdef"), {}, random.Random(0))
    assert {len(concept.languages) for concept in many["group"]} == {2, 3}


def marked(rates, per=400):
    """Tokens of as many languages, with a mark that so many of each have, and something common to all."""
    language = torch.arange(len(rates)).repeat_interleave(per)
    has = torch.arange(per) < torch.tensor(rates)[:, None] * per
    acts = torch.stack([torch.where(has.flatten(), 1.0, -1.0), torch.ones(len(language))], 1)
    return acts, language


def test_separate_is_logistic_regression_with_balanced_classes():
    acts, language = marked([0.8, 0.5, 0.3])
    acts = 10 * (acts + torch.randn(acts.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    inside, known = (language == 0)[:, None], (torch.arange(1200) % 3 > 0)[:, None] | (language > 0)[:, None]
    size = acts.square().mean().sqrt()
    expected = LogisticRegression(
        C=1 / (2 * PENALTY * int(known.sum())), class_weight="balanced", fit_intercept=False, tol=1e-8
    ).fit((acts / size)[known[:, 0]], inside[known])
    found = separate(acts, inside, known)[0] * size
    np.testing.assert_allclose(found.numpy(), expected.coef_[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("part", "own", "other", "usable"),
    [
        ("mlp", 0.95, 0.07, ["one", "script", "all"]),
        ("mlp", 0.85, 0.07, ["all"]),
        ("mlp", 0.95, 0.15, ["all"]),
        ("attention", 0.95, 0.02, ["one", "script", "all"]),
        ("attention", 0.95, 0.07, ["script", "all"]),  # on tokens of other scripts it may fire more often
        ("attention", 0.95, 0.15, ["all"]),
    ],
)
def test_how_well_a_layer_must_tell_tokens_apart(part, own, other, usable):
    find, language = marked([0.9, 0.1])
    acts, _ = marked([own, other])
    concepts = {"one": Concept(("a",)), "script": Concept(("a",), "LATIN"), "all": Concept(("a", "b"))}
    texts = [Inputs([each], language, language.clone()) for each in (find, acts)]
    layers, said = usable_layers(list(concepts.values()), *texts, ["LATIN", "GREEK"], ("a", "b"), part)
    assert [name for name, found in zip(concepts, layers.values(), strict=True) if found == [0]] == usable
    assert said[0] == f"layer 0: fires on {own:.0%} of its tokens and {other:.0%} of others'"


def test_the_layer_that_tells_tokens_apart_best_is_named():
    find, language = marked([0.9, 0.1])
    layers = [marked(rates)[0] for rates in ([0.9, 0.3], [0.7, 0.01])]
    texts = [Inputs(each, language, language.clone()) for each in ([find, find], layers)]
    _, said = usable_layers([Concept(("a",))], *texts, [None, None], ("a", "b"))
    assert said == ["layer 1: fires on 70% of its tokens and 1% of others'"]


def test_a_gate_fires_above_zero_and_a_value_above_half_its_height():
    find, language = marked([0.6, 0.5])  # at the best direction's half height most tokens of both
    texts = [Inputs([each], language, language.clone()) for each in (find, marked([1.0, 0.0])[0])]
    for part, expected in (("mlp", [0]), ("attention", [])):
        assert usable_layers([Concept(("a",))], *texts, [None, None], ("a", "b"), part)[0] == {0: expected}


@pytest.mark.parametrize(("part", "share", "usable"), [("mlp", 0.01, False), ("attention", 0.01, True),
                                                        ("attention", 0.07, False)])  # fmt: skip
def test_a_unit_of_nobody_must_be_on_nearly_always(part, share, usable):
    acts, language = marked([1.0, 1.0])
    new = torch.where((torch.arange(800) % 100 < share * 100)[:, None], -acts, acts)
    texts = [Inputs([each], language, language.clone()) for each in (acts, new)]
    layers, _ = usable_layers([Concept(("a", "b"))], *texts, [None, None], ("a", "b"), part)
    assert layers == {0: [0] if usable else []}


def test_tokens_without_a_script_say_nothing_of_scripts():
    language = torch.tensor([0, 0, 0, 1, 1])
    text = Inputs([torch.zeros(5, 2)], language, torch.tensor([0, 2, 1, 1, 2]))
    scripts = ["LATIN", "GREEK", None]
    inside, known = inside_and_known([Concept(("b",)), Concept(("a",), "LATIN")], text, scripts, ("a", "b"))
    assert inside.T.tolist() == [[False, False, False, True, True], [True, False, False, False, False]]
    assert known.T.tolist() == [[True] * 5, [True, False, True, True, False]]
    assert script_shares(text, scripts, ("a", "b")) == {"a": {"LATIN": 0.5, "GREEK": 0.5}, "b": {"GREEK": 1.0}}
    fires = torch.zeros(200, dtype=torch.bool)
    half = torch.arange(200) % 2 == 0
    assert _rates(~fires, half, half, fires.long()) == (1.0, 0.0)  # none of those outside is known
    assert _rates(half, torch.arange(200) < 19, ~fires, fires.long()) == pytest.approx((0.0, 90 / 181))  # 19: too few


def test_scripts_that_tell_languages_apart():
    shares = {"a": {"LATIN": 0.96, "GREEK": 0.04}, "b": {"LATIN": 0.94, "CYRILLIC": 0.06}, "c": {"LATIN": 1.0}}
    found = concepts_of([ROLES["script"]], tuple("abc"), shares, random.Random(0))
    assert found["script"] == [Concept(("b",), "CYRILLIC")]


def test_layers_are_filled_evenly_and_balanced_where_something_is_needed():
    concepts = {"language": [Concept((label,)) for label in "abcd"], "none": [Concept(tuple("abcd"))]}
    layers = {concept: [0, 1, 2] for concept in concepts["language"]}
    roles = [ROLES["specific"], ROLES["loud"], ROLES["balance"]]
    cells = place_cells(roles, concepts, layers, {}, 6, random.Random(0))
    counts = Counter(cell.layer for cell in cells if cell.role.writes != "balance")
    assert counts.total() == 48 and max(counts.values()) - min(counts.values()) <= 2
    layers = {concept: [int(concept.languages[0] == "d")] for concept in concepts["language"]}
    concepts["group"] = [Concept(("a", "b"))]
    cells = place_cells(
        [ROLES["shared"], *roles[1:]], concepts, {**layers, concepts["group"][0]: [2]}, {}, 1, random.Random(0)
    )
    assert [(str(cell.role.name), cell.layer) for cell in cells] == [
        ("shared", 2), ("loud", 0), ("loud", 0), ("loud", 0), ("loud", 1), ("balance", 2),
    ]  # fmt: skip


# text


def test_what_layers_read_is_that_of_single_documents_without_separators(ground, world):
    text = read_text(ground.tokenizer, world.corpora, "find", 100, 30)
    assert {len(ids) for _, ids in text.rows} == {30}  # the separator is among them
    assert [place for place, _ in text.rows] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    rows = [(place, ids[: 10 + number]) for number, (place, ids) in enumerate(text.rows)]
    names = [each.gate for each in ground.names]
    got = inputs_of(ground.hf_model, names, dataclasses.replace(text, rows=rows))
    assert got.ids.tolist() == [token for _, ids in rows for token in ids[1:]]
    assert got.language.tolist() == [place for place, ids in rows for _ in ids[1:]]
    for place, name in enumerate(names):
        seen = []
        handle = ground.hf_model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0][0, 1:])
        )
        with torch.no_grad():
            for _, ids in rows:
                ground.hf_model(torch.tensor([ids]))
        handle.remove()
        torch.testing.assert_close(got.layers[place], torch.cat(seen), atol=1e-5, rtol=1e-4)


def test_a_token_of_two_scripts_or_of_a_part_of_a_letter_has_none():
    class Tokenizer(list):
        def batch_decode(self, rows):
            return [self[token] for (token,) in rows]

    tokens = Tokenizer(["ab", "\u03b1\u03b2", "a\u03b1", "12", "\ufffda", " c."])
    assert token_scripts(tokens, 8) == ["LATIN", "GREEK", None, None, None, "LATIN", None, None]
    assert token_scripts(tokens, 1) == ["LATIN"]
