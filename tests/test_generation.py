"""What a model writes is what Hugging Face writes, with and without a cache, padding and interventions."""

import math

import pytest
import torch
from conftest import BACKENDS, LAYERS, VOCABULARY, every_model, parts
from jaxtyping import TypeCheckError
from oracles import edited, hooks_of, some_units
from transformers import RepetitionPenaltyLogitsProcessor

import lsn_lens as lsn
from lsn_lens.generation import sampling
from lsn_lens.interventions.actions import Action
from lsn_lens.interventions.intervening import COLUMNS, Intervention
from lsn_lens.model import forward, structure
from lsn_lens.neurons.sites import SITES, WRITE_SITE

PROMPTS = ["The river is high after the rain, and", "雨", "Der Fluss steht"]
TOKENS = 6
END = 0  # the tiny tokenizer's only special token

pytestmark = pytest.mark.usefixtures("no_gradients")


def random_values(model, bases, places=None):
    generator, place = torch.Generator().manual_seed(3), [places] if places else []
    widths = {basis: structure.site_width(model, WRITE_SITE[basis]) for basis in bases}
    return {basis: torch.randn(LAYERS, *place, width, generator=generator) for basis, width in widths.items()}


def step(basis="mlp", action=None, seed=0):
    """One change; an action may be made from the model."""

    def make(model):
        return some_units(model, basis, 0.4, seed), action if isinstance(action, Action) else action(model)

    return make


def values(make, basis="mlp", places=None):
    return lambda model: make(random_values(model, [basis], places))


# every kind of change, each by itself
KINDS = {
    "zero": [step(action=lsn.zero)],
    "set": [step(action=lsn.set_to(0.7))],
    "set values": [step(action=values(lsn.set_to))],
    "scale": [step(action=lsn.scale(-1.5))],
    "add values": [step("resid", values(lsn.add, "resid"))],
    "direction": [step("resid", values(lsn.remove_direction, "resid"))],
    "values by place": [step(action=values(lsn.set_to, places=5))],
    "act": [step(action=lsn.set_to(1.5).on("mlp_act"))],
    "act, by place and phase": [
        step(action=lambda model: values(lsn.set_to, places=5)(model).on("mlp_act").at("last"))
    ],
    **{basis: [step(basis, lsn.scale(-1.0))] for basis in WRITE_SITE if basis != "mlp"},
    "prompt": [step("v", lsn.set_to(1.0).at("prompt"))],
    "generated": [step("z", lsn.scale(-2).at("generated"))],
    "last": [step("mlp_out", lsn.add(0.5).at("last"))],
    "positions": [step("k", lsn.scale(-2).at(slice(1, 9, 2)))],
    "off and on": [step(action=lsn.zero), step(action=values(lsn.add), seed=1)],
}
# many at once, for every architecture
MIXED = [KINDS[kind][0] for kind in ("act, by place and phase", "positions", "prompt", "generated", "add values", "q")]


def intervention(model, steps, name="some"):
    return Intervention(name, tuple(each(model) for each in steps))


def write(model, prompts=PROMPTS, **settings):
    return lsn.generate(model, prompts, **{"tokens": TOKENS, "progress": False, **settings})


def one_by_one(model, prompts=PROMPTS, **settings):
    return [row for each in prompts for row in write(model, [each], **settings).to_dict("records")]


def assert_same(frame, rows):
    rows = rows if isinstance(rows, list) else rows.to_dict("records")
    assert frame["ids"].tolist() == [row["ids"] for row in rows]
    for mine, row in zip(frame["log_probability"], rows, strict=True):
        assert mine == pytest.approx(row["log_probability"], abs=2e-4)


def read_ids(prompt, model):
    return [END, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]


# cache, padding


@every_model
def test_cache_and_padding_change_nothing(architecture, backend, load):
    model = load(architecture, backend)
    plain, hooks = write(model), hooks_of(model)
    with lsn.intervene(model, intervention(model, MIXED)):
        changed = write(model)
        assert_same(changed, write(model, cache=False))
        assert_same(changed, one_by_one(model))
    assert changed["ids"].tolist() != plain["ids"].tolist()
    assert hooks_of(model) == hooks and COLUMNS.get() is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_cache_and_padding_under_every_kind_of_change(kind, backend, load):
    model = load("llama", backend)
    plain = write(model, PROMPTS[:2], tokens=4)
    with lsn.intervene(model, intervention(model, KINDS[kind])):
        changed = write(model, PROMPTS[:2], tokens=4)
        assert_same(changed, write(model, PROMPTS[:2], tokens=4, cache=False))
        assert_same(changed, one_by_one(model, PROMPTS[:2], tokens=4))
    assert (changed["log_probability"] - plain["log_probability"]).abs().max() > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_texts_do_not_depend_on_the_batch(backend, load):
    model = load("mistral", backend)
    settings = {"samples": 4, "temperature": 1.0, "repetition_penalty": 1.2}
    with lsn.intervene(model, intervention(model, KINDS["off and on"])):
        frame = write(model, **settings)
        for others in ({"batch": 1}, {"batch": 5}, {"cache": False}):
            assert_same(frame, write(model, **settings, **others))
        backwards = write(model, PROMPTS[::-1], **settings)
        shorter = write(model, **{**settings, "samples": 2}, tokens=3)
    expected = [backwards[backwards["prompt"] == len(PROMPTS) - 1 - number] for number in range(len(PROMPTS))]
    assert frame["ids"].tolist() == [ids for each in expected for ids in each["ids"]]
    assert shorter["ids"].tolist() == [ids[:3] for ids in frame.loc[frame["sample"] < 2, "ids"]]
    assert len(set(map(tuple, frame["ids"]))) == len(frame), "samples and prompts differ"
    assert frame[["prompt", "sample"]].values.tolist() == [[p, s] for p in range(len(PROMPTS)) for s in range(4)]
    assert write(model, **settings, seed=1)["ids"].tolist() != write(model, **settings)["ids"].tolist()


# against Hugging Face


@every_model
def test_greedy_texts_are_those_of_hugging_face(architecture, backend, load, hugging_face):
    model = load(architecture, backend)
    found = some_units(model)
    rows = [read_ids(prompt, model) for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([[END] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with lsn.intervene(model, found):
        frame = write(model)
    for hf_model, mine in (
        (hugging_face(architecture), write(model)),
        (edited(hugging_face(architecture), architecture, found), frame),
    ):
        expected = hf_model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, pad_token_id=END)
        for new, row in zip(expected[:, longest:].tolist(), mine.to_dict("records"), strict=True):
            kept = new[: new.index(END)] if END in new else new
            assert (row["ids"], row["ended"], row["tokens"]) == (kept, END in new, len(kept))
            assert row["text"] == model.tokenizer.decode(kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_log_probabilities_are_those_of_hugging_face(architecture, backend, load, hugging_face):
    """Of the chosen tokens, the end token included, before temperature and penalty."""
    model, hf_model = load(architecture, backend), hugging_face(architecture)
    frame = write(model, samples=60, temperature=6.0, repetition_penalty=1.3, tokens=12)
    assert 0 < frame["ended"].sum() < len(frame), "texts of both kinds are needed"
    for row in frame.to_dict("records"):
        prompt, chosen = read_ids(PROMPTS[row["prompt"]], model), row["ids"] + [END] * row["ended"]
        logits = hf_model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
        scores = logits.log_softmax(-1).gather(1, torch.tensor(chosen)[:, None])
        assert row["log_probability"] == pytest.approx(float(scores.mean()), abs=1e-4)
        assert END not in row["ids"] and row["ended"] == (row["tokens"] < 12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("penalty", [0.6, 1.8])
def test_repetition_penalty_is_that_of_hugging_face(penalty, backend, load, hugging_face):
    model, hf_model = load("llama", backend), hugging_face("llama")
    hf_model.generation_config.eos_token_id = None
    for prompt, mine in zip(PROMPTS, write(model, tokens=20, repetition_penalty=penalty)["ids"], strict=True):
        ids = torch.tensor([read_ids(prompt, model)])  # without padding, which transformers would count as seen
        settings = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": penalty, "pad_token_id": END}
        expected = hf_model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
        assert mine == expected[: len(mine)] and (len(mine) == 20 or expected[len(mine)] == END)
    assert (
        write(model, tokens=20)["ids"].tolist() != write(model, tokens=20, repetition_penalty=penalty)["ids"].tolist()
    )


# where: each phase by hand

PLACES = {
    # given the prompt's length and the number of tokens so far: which positions are changed
    "all": ("all", lambda prompt, total: range(total)),
    "prompt": ("prompt", lambda prompt, total: range(prompt)),
    "generated": ("generated", range),
    "last": ("last", lambda prompt, total: range(prompt - 1, total)),
    "first": (slice(0, 1), lambda prompt, total: range(1)),
    "from 4": (slice(4, None), lambda prompt, total: range(4, total)),
    "2 to 5": (slice(2, 5), lambda prompt, total: range(2, min(5, total))),
    "every third": (slice(1, 12, 3), lambda prompt, total: range(1, min(12, total), 3)),
}


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
def test_where_by_hand(place, backend, architecture, load, hugging_face):
    """A batch with a cache, against one text at a time, read again whole for each token, in Hugging Face's modules."""
    model, hf_model = load(architecture, backend), hugging_face(architecture)
    found, (where, positions) = some_units(model), PLACES[place]
    state = {}
    for layer, units in enumerate(found.units("mlp")):
        parts(architecture, hf_model, layer).down.register_forward_pre_hook(by_hand(units, state))
    with lsn.intervene(model, found, lsn.add(2.0).at(where)):
        frame = write(model)
    for prompt, row in zip(PROMPTS, frame.to_dict("records"), strict=True):
        ids, scores = read_ids(prompt, model), []
        start = len(ids)
        for _ in range(len(row["ids"]) + row["ended"]):
            state["positions"] = list(positions(start, len(ids)))
            chances = hf_model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(chances.argmax()))
            scores.append(float(chances.max()))
        assert ids[start:] == row["ids"] + [END] * row["ended"]
        assert row["log_probability"] == pytest.approx(sum(scores) / len(scores), abs=2e-4)


def by_hand(units, state):
    def hook(module, args):
        acts = args[0].clone()
        flat = acts.view(-1, acts.shape[-1])  # one text
        for position in state["positions"]:
            flat[position, units] += 2.0
        return (acts, *args[1:])

    return hook


@pytest.mark.parametrize("backend", BACKENDS)
def test_phases_are_known_in_generation_only(backend, load):
    model = load("llama", backend)
    for phase in ("prompt", "generated", "last"):
        with (
            pytest.raises(RuntimeError, match=rf"'zero, {phase}': only lsn.generate knows where the prompt ends"),
            lsn.intervene(model, some_units(model), lsn.zero.at(phase)),
        ):
            model(torch.ones(1, 4, dtype=torch.long))


# sampling


def chance_of(counts, probabilities):
    """P value of a chi-square test; tokens expected fewer than 5 times are one class."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    seen, due = (torch.cat([each[~rare], each[rare].sum()[None]]) for each in (counts.double(), expected))
    statistic = ((seen - due) ** 2 / due).sum()
    return float(torch.special.gammaincc(torch.tensor((len(due) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_have_the_models_distribution(backend, load, hugging_face):
    model, hf_model = load("llama", backend), hugging_face("llama")
    frame = write(model, None, samples=4000, tokens=2, temperature=0.8, batch=4000)
    first = torch.tensor([(ids or [END])[0] for ids in frame["ids"]])
    logits = hf_model(torch.tensor([[END]])).logits[0, -1]
    assert 0.01 < chance_of(first.bincount(minlength=VOCABULARY), (logits / 0.8).softmax(-1)) < 0.99
    assert chance_of(first.bincount(minlength=VOCABULARY), logits.softmax(-1)) < 1e-6, "the test has no power"
    common = int(first.mode().values)
    second = torch.tensor([(*ids, END)[1] for ids in frame["ids"] if ids and ids[0] == common])
    logits = hf_model(torch.tensor([[END, common]])).logits[0, -1]
    assert 0.01 < chance_of(second.bincount(minlength=VOCABULARY), (logits / 0.8).softmax(-1)) < 0.99


def test_a_token_is_where_the_random_number_falls():
    """The most probable first: then rounding, which differs from batch to batch, moves few places by much."""
    logits = torch.tensor([[0.25, 0.5, 0.0, 0.25]]).log()
    ids, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    for draw, expected in ((0.0, 1), (0.4999, 1), (0.5001, 0), (0.7499, 0), (0.7501, 3), (1 - 2**-53, 3)):
        chosen = sampling._choose(logits, ids, mask, torch.tensor([draw], dtype=torch.float64), 1.0, 1.0)
        assert chosen.tolist() == [expected]


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    ids, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    for draw, expected in ((0.0, 1), (1 - 2**-53, 2)):
        chosen = sampling._choose(logits, ids, mask, torch.tensor([draw], dtype=torch.float64), 1.0, 1.0)
        assert chosen.tolist() == [expected]


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_penalties_of_negative_logits_and_of_padding(penalty):
    generator = torch.Generator().manual_seed(0)
    ids, logits = torch.randint(12, (300, 4), generator=generator), torch.randn(300, 12, generator=generator)
    draws = torch.zeros(300, dtype=torch.float64)
    for shift in (-3.0, 0.0, 3.0):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits + shift).argmax(-1)
        assert (expected != logits.argmax(-1)).any()
        chosen = sampling._choose(logits + shift, ids, torch.ones_like(ids), draws, 0.0, penalty)
        assert torch.equal(chosen, expected)
    padded, mask = torch.tensor([[0, 1]]), torch.tensor([[0, 1]])  # 0 stands for padding here, and has not occurred
    chosen = sampling._choose(torch.tensor([[1.0, -9.0, 0.9]]), padded, mask, draws[:1], 0.0, penalty)
    assert chosen.tolist() == [0]
    chosen = sampling._choose(torch.tensor([[0.9, -9.0, 1.0]]), padded, mask, draws[:1], 0.0, penalty)
    assert chosen.tolist() == [2]


def test_defaults_are_those_of_kojima(load):
    model = load("llama")
    frame = lsn.generate(model, tokens=3, progress=False)
    assert len(frame) == 100 and set(frame["prompt"]) == {0} and frame["sample"].tolist() == list(range(100))
    explicit = write(model, None, samples=100, temperature=0.8, tokens=3)
    assert frame["ids"].tolist() == explicit["ids"].tolist()
    prompted = write(model)
    assert len(prompted) == len(PROMPTS)
    assert prompted["ids"].tolist() == write(model, temperature=0, samples=1)["ids"].tolist()


# ends


@pytest.mark.parametrize("backend", BACKENDS)
def test_stop_strings(backend, load, hugging_face):
    model, hf_model = load("llama", backend), hugging_face("llama")
    rows = [row for row in write(model, samples=4, tokens=12, temperature=1).to_dict("records") if len(row["text"]) > 8]
    assert len(rows) > 4
    for row in rows[:4]:
        text, stop = row["text"], row["text"][5:7]
        again = write(model, samples=4, tokens=12, temperature=1, stop=["never there", stop])
        stopped = again[(again["prompt"] == row["prompt"]) & (again["sample"] == row["sample"])].iloc[0]
        assert stop in text and stopped["text"] == text[: text.index(stop)]
        assert stopped["ended"] and stopped["tokens"] == len(stopped["ids"])
        assert stopped["ids"] == row["ids"][: stopped["tokens"]]
        assert stop in model.tokenizer.decode(stopped["ids"]) and stop not in model.tokenizer.decode(
            stopped["ids"][:-1]
        )
        prompt = read_ids(PROMPTS[row["prompt"]], model)
        logits = hf_model(torch.tensor([prompt + stopped["ids"]])).logits[0, len(prompt) - 1 : -1]
        scores = logits.log_softmax(-1).gather(1, torch.tensor(stopped["ids"])[:, None])
        assert stopped["log_probability"] == pytest.approx(float(scores.mean()), abs=1e-4)


def test_a_tokenizer_without_an_end_token(load, monkeypatch):
    model = load("llama")
    ends = write(model, samples=40, temperature=3.0, repetition_penalty=1.3, tokens=12)
    assert ends["ended"].any()
    monkeypatch.setattr(type(model.tokenizer), "eos_token_id", None, raising=False)
    config = getattr(model, "original_model", model).generation_config
    monkeypatch.setattr(config, "eos_token_id", None)
    frame = write(model, samples=40, temperature=3.0, repetition_penalty=1.3, tokens=12)
    assert not frame["ended"].any() and set(frame["tokens"]) == {12}
    for ids, shorter in zip(frame["ids"], ends["ids"], strict=True):
        assert ids[: len(shorter)] == shorter


def test_a_prompt_may_fill_the_context_and_no_more(load):
    model = load("gpt2")
    ids = [*range(5, 5 + model.cfg.n_ctx - 1 - TOKENS)]
    prompt = model.tokenizer.decode(ids)
    room = model.cfg.n_ctx - len(read_ids(prompt, model))
    assert room > 0
    write(model, [prompt], tokens=room)
    with pytest.raises(
        ValueError, match=rf"prompt 1 has .* with {room + 1} new ones it exceeds the model's context of 64"
    ):
        write(model, ["a", prompt], tokens=room + 1)


# what goes wrong


BAD = {
    "no prompts": ({"prompts": []}, "no prompts"),
    "one string": ({"prompts": "abc"}, "is one string: give a list"),
    "one stop string": ({"stop": "abc"}, "is one string: give a list"),
    "empty stop string": ({"stop": [""]}, "empty stop string"),
    "tokens": ({"tokens": 0}, "tokens=0: expected a whole number"),
    "samples": ({"samples": 0}, "samples=0: expected a whole number"),
    "batch": ({"batch": -1}, "batch=-1: expected a whole number"),
    "cold": ({"temperature": -0.1}, "temperature=-0.1"),
    "nan": ({"temperature": math.nan}, "temperature=nan"),
    "penalty": ({"repetition_penalty": 0}, "repetition_penalty=0"),
    "nothing": ({"prompts": None, "separator": "none"}, "prompt 0 is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case, load):
    settings, words = BAD[case]
    with pytest.raises((ValueError, TypeCheckError), match=words):
        write(load("llama"), **{"prompts": PROMPTS, **settings})


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_not_finite_stop_it_and_name_the_intervention(backend, load):
    model, hooks = load("llama", backend), hooks_of(load("llama", backend))
    found = some_units(model, "mlp_out")
    huge = Intervention("too strong", ((found, lsn.scale(3e38)), (found, lsn.scale(3e38))))
    with pytest.raises(
        FloatingPointError, match=r"^under 'too strong': the logits for new token 0 are NaN or infinite"
    ):
        lsn.generate_each(model, [Intervention("fine", ((found, lsn.zero),)), huge], PROMPTS, tokens=2, progress=False)
    with (
        pytest.raises(FloatingPointError, match=r"^under 'scale 0.5': under 'too strong': the logits for"),
        lsn.intervene(model, found, lsn.scale(0.5)),
        lsn.intervene(model, huge),
    ):
        write(model)
    assert hooks_of(model) == hooks and COLUMNS.get() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_behind_by_an_exception(backend, load):
    model, calls = load("llama", backend), []
    hooks, plain = hooks_of(model), write(model)

    def change(acts, values):
        calls.append(COLUMNS.get())
        if len(calls) > 2 * LAYERS:
            raise RuntimeError("at the third token")
        return acts

    with (
        pytest.raises(RuntimeError, match="at the third token"),
        lsn.intervene(model, some_units(model), Action("broken", change)),
    ):
        write(model)
    assert [each.first for each in calls[::LAYERS]] == [0, calls[0].prompt, calls[0].prompt + 1]
    assert hooks_of(model) == hooks and COLUMNS.get() is None
    assert_same(write(model), plain)


# several interventions


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_intervention_in_its_turn(backend, load):
    model = load("llama", backend)
    every = [intervention(model, KINDS[kind], kind) for kind in ("zero", "off and on")]
    table = lsn.generate_each(model, every, PROMPTS, tokens=TOKENS, progress=False)
    expected = {"none": write(model)}
    for each in every:
        with lsn.intervene(model, each):
            expected[each.name] = write(model)
    assert table["intervention"].unique().tolist() == list(expected)
    for name, rows in table.groupby("intervention"):
        assert rows["ids"].tolist() == expected[name]["ids"].tolist()
        assert set(rows["units"]) == {len(dict(zip(("zero", "off and on"), every, strict=True)).get(name, ""))}


def test_each_intervention_needs_units_and_a_name_of_its_own(load):
    model = load("llama")
    empty = Intervention("empty", ((some_units(model, share=0.0), lsn.zero),))
    with pytest.warns(UserWarning, match="'empty' has no units: the model is unchanged") as warned:
        table = lsn.generate_each(model, [empty], PROMPTS, tokens=2, progress=False)
    assert len([each for each in warned if "no units" in str(each.message)]) == 1, "none itself is no reason to warn"
    both = table.groupby("intervention")["ids"].agg(list)
    assert both["none"] == both["empty"] and set(table["units"]) == {0}
    for names in (["a", "a"], ["none"]):
        with pytest.raises(ValueError, match="need different names"):
            lsn.generate_each(model, [Intervention(name) for name in names], PROMPTS, progress=False)


def test_generation_inside_a_lean_forward(load):
    model = load("llama", "bridge")
    found = some_units(model)
    with lsn.intervene(model, found):
        expected = write(model)
        with forward.lean(model, [SITES["mlp_post"].hook_name(layer) for layer in range(LAYERS)]):
            assert_same(write(model), expected)
