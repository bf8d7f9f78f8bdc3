"""PLND: every importance against a model whose weights of that unit are gone; ranks, documents, choice."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import BACKENDS, HOOKED_LOADS, fused_rows, parts, tiny_model, tiny_tokenizer
from jaxtyping import TypeCheckError
from transformers.pytorch_utils import Conv1D

import lsn_lens as lsn
from lsn_lens.collection.recorders.attention import read_attention
from lsn_lens.methods.plnd import Plnd
from lsn_lens.statistics import importance as maths
from lsn_lens.statistics import rotations
from lsn_lens.statistics.importance import BASES, Importance
from lsn_lens.statistics.sums import Statistics

TEXTS = {
    "en": ["The river is high after the rain.", "Closed.", "The bridge is closed after the long rain."],
    "fr": ["La rivière est haute.", "Le pont est fermé après la pluie, et la rivière est haute.", "Fermé."],
}
CHECKED = ("llama_mha", "llama", "mistral", "qwen2", "gpt2", "bloom", "opt", "neox")
every_checked_model = pytest.mark.parametrize(
    ("architecture", "backend"),
    [(each, backend) for each in CHECKED for backend in BACKENDS if backend == "bridge" or each in HOOKED_LOADS],
)
rotary_models = pytest.mark.parametrize(
    ("architecture", "backend"), [(each, backend) for each in ("llama", "qwen2") for backend in BACKENDS]
)


@pytest.fixture(scope="session")
def collected(load):
    """`collected(architecture, backend, plnd, batch_tokens, documents)`: statistics of the first documents."""

    @cache
    def collect(architecture, backend, plnd, batch_tokens=1, documents=1):
        corpora = lsn.load_corpora({label: each[:documents] for label, each in TEXTS.items()}, hold_out=0.0)
        layout = lsn.Layout(kind="documents", batch_tokens=batch_tokens, shards=1)
        return lsn.collect(load(architecture, backend), corpora, [plnd], layout=layout, progress=False).statistics

    return collect


def ids_of(model, document=TEXTS["en"][0]):
    ids = model.tokenizer(document, add_special_tokens=False)["input_ids"]
    return torch.tensor([[model.tokenizer.bos_token_id, *ids]])


def importances(statistics, plnd, basis):
    """Of the first English document, `[layer unit]`, no longer per token."""
    each = statistics.get(f"{plnd.need.key}.{basis}.sum")[0]
    tokens = int(statistics.tokens[0, 0]) - plnd.skip_bos
    return each * tokens ** (0.5 if plnd.variant == "paper" else 1)


def outputs(architecture, hf_model, ids, layer):
    """What a layer's MLP and attention write, and its attention pattern."""
    seen = {}

    def keep(name):
        return lambda module, args, out: seen.update({name: out.reshape(-1, out.shape[-1])})

    part = parts(architecture, hf_model, layer)
    handles = [part.down.register_forward_hook(keep("mlp")), part.o.register_forward_hook(keep("o"))]
    with torch.no_grad():
        seen["pattern"] = hf_model(ids, output_attentions=True).attentions[layer][0]
    for handle in handles:
        handle.remove()
    return seen


def remove(module, units, side):
    """Zero what makes the units ("out", with their bias) or what reads them ("in")."""
    with torch.no_grad():
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        if side == "out":
            weight[units] = 0
            if module.bias is not None:
                module.bias[units] = 0
        else:
            weight[:, units] = 0


def without(architecture, hf_model, layer, basis, unit):
    """A copy of the model in which the unit's weights are zero."""
    broken = copy.deepcopy(hf_model)
    part, units = parts(architecture, broken, layer), torch.tensor([unit])
    if basis in ("gate", "up"):
        remove(getattr(part, basis), units, "out")
    elif basis in ("mlp", "z"):
        remove(part.down if basis == "mlp" else part.o, units, "in")
    elif hasattr(part, "qkv"):
        remove(part.qkv, fused_rows(architecture, basis, units), "out")
    else:
        remove(getattr(part, basis), units, "out")
    return broken


def change(one, other, basis, first=0):
    """Norm of the difference in what the basis acts on."""
    if basis in ("q", "k"):
        return float((one["pattern"] - other["pattern"])[:, first:, first:].double().norm())
    name = "o" if basis in ("v", "z") else "mlp"
    return float((one[name] - other[name])[first:].double().norm())


@pytest.mark.parametrize("skip_bos", [False, True])
@every_checked_model
def test_importance_is_what_removing_the_weights_changes(
    architecture, backend, skip_bos, load, hugging_face, collected
):
    plnd = Plnd(skip_bos=skip_bos)
    statistics = collected(architecture, backend, plnd)
    hf_model, ids = hugging_face(architecture).double(), ids_of(load(architecture, backend))
    for layer in range(2):
        whole = outputs(architecture, hf_model, ids, layer)
        for basis in BASES:
            found = importances(statistics, plnd, basis)[layer]
            for unit in (0, 3, 4, len(found) // 2 + 1, len(found) - 1):
                broken = without(architecture, hf_model, layer, basis, unit)
                expected = change(whole, outputs(architecture, broken, ids, layer), basis, int(skip_bos))
                assert float(found[unit]) == pytest.approx(expected, rel=1e-4, abs=1e-6), (basis, layer, unit)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_up_gate_and_down_coincide(architecture, load, hugging_face, collected):
    plnd = Plnd()
    found = importances(collected(architecture, BACKENDS[0], plnd), plnd, "mlp")[1]
    hf_model, ids = hugging_face(architecture).double(), ids_of(load(architecture, BACKENDS[0]))
    whole = outputs(architecture, hf_model, ids, 1)
    for basis in ("gate", "up") if architecture == "llama" else ("gate",):
        broken = without(architecture, hf_model, 1, basis, 7)
        expected = change(whole, outputs(architecture, broken, ids, 1), basis)
        assert float(found[7]) == pytest.approx(expected, rel=1e-4)


def traced(model, ids, layer, hooks=()):
    """q, k, z, pattern and the like of one layer."""
    seen = {}

    def keep(name):
        return lambda acts, hook: seen.update({name: acts[0].clone()})

    names = ("mlp.hook_pre_linear", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_z", "attn.hook_pattern",
             "attn.hook_attn_scores")  # fmt: skip
    reads = [(f"blocks.{layer}.{name}", keep(name.split("hook_")[-1])) for name in names]
    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *reads]):
        model(ids)
    return seen


@rotary_models
def test_after_the_rotation_it_is_what_zeroing_one_rotated_dimension_changes(architecture, backend, load, collected):
    plnd, model = Plnd(rotary="post"), load(architecture, backend)
    statistics, ids = collected(architecture, backend, plnd), ids_of(model)
    before = traced(model, ids, 1)["pattern"]
    for basis in ("q", "k"):
        found = importances(statistics, plnd, basis)[1]
        for unit in (0, 5, len(found) - 1):

            def zero(acts, hook, unit=unit):
                acts = acts.clone()
                acts.flatten(-2)[..., unit] = 0
                return acts

            after = traced(model, ids, 1, [(f"blocks.1.attn.hook_rot_{basis}", zero)])["pattern"]
            assert float(found[unit]) == pytest.approx(float((after - before).norm()), rel=1e-4), (basis, unit)


@rotary_models
def test_released_scores_are_those_of_a_loop(architecture, backend, load, collected):
    plnd, model = Plnd("released"), load(architecture, backend)
    statistics, ids = collected(architecture, backend, plnd), ids_of(model)
    found = {basis: importances(statistics, plnd, basis)[0] for basis in BASES}
    seen = traced(model, ids, 0)
    up, q, k, z = seen["pre_linear"], seen["rot_q"], seen["rot_k"], seen["z"]
    assert torch.allclose(found["mlp"], up.abs().sum(0).double(), rtol=1e-4)
    assert torch.allclose(found["z"], z.abs().sum(0).flatten().double(), rtol=1e-4)
    n_heads, d_head, group = q.shape[1], q.shape[2], q.shape[1] // k.shape[1]
    causal = torch.ones(len(q), len(q)).triu(1).bool()
    by_key, by_value = torch.zeros(n_heads // group, d_head), torch.zeros(n_heads // group, d_head)
    for head in range(n_heads):
        scores = q[:, head] @ k[:, head // group].T / d_head**0.5
        before = scores.masked_fill(causal, -torch.inf).softmax(-1)
        for dim in range(d_head):
            delta = torch.outer(q[:, head, dim], k[:, head // group, dim])  # not divided by the root of d_head
            after = (scores - delta).masked_fill(causal, -torch.inf).softmax(-1)
            each = float((after - before).square().sum())
            assert float(found["q"][head * d_head + dim]) == pytest.approx(each, rel=1e-4)
            by_key[head // group, dim] += each
            by_value[head // group, dim] += z[:, head, dim].abs().sum()
    assert torch.allclose(found["k"], by_key.flatten().double(), rtol=1e-4)
    assert torch.allclose(found["v"], by_value.flatten().double(), rtol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("skip_bos", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend, skip_bos, variant, collected):
    plnd = Plnd(variant, skip_bos=skip_bos)
    one_by_one = collected("llama", backend, plnd, 1, 3)
    together = collected("llama", backend, plnd, 512, 3)
    for key, value in one_by_one.sums.items():
        if key.startswith("plnd") and "rank" not in key:
            assert torch.allclose(value, together.sums[key], rtol=1e-4, atol=1e-7), key
        elif key.startswith("plnd"):
            assert (value == together.sums[key]).double().mean() > 0.98, key  # near ties may swap


def test_minimum_rank_and_sum_are_over_documents(collected):
    plnd = Plnd()
    documents = [collected("llama", BACKENDS[0], plnd, 1, count) for count in (1, 2, 3)]
    sums = [each.get(f"{plnd.need.key}.v.sum") for each in documents]
    values = torch.stack([sums[0], sums[1] - sums[0], sums[2] - sums[1]])
    ranks = (-values).argsort(-1).argsort(-1).amax(0)
    assert torch.allclose(documents[-1].get(f"{plnd.need.key}.v.minimum").double(), values.amin(0), rtol=1e-4)
    assert torch.equal(documents[-1].get(f"{plnd.need.key}.v.rank.maximum"), ranks.float())


def peaked_model(folder, backend):
    """Grouped keys, a rotary embedding, and queries so large that most rows attend to one or two tokens."""
    hf_model = tiny_model("llama")
    with torch.no_grad():
        for layer in range(2):
            parts("llama", hf_model, layer).q.weight.mul_(4)
    hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return lsn.load_model(folder, backend=backend, device="cpu")


def ranks_by_softmax(model, variant, layer, basis, documents):
    """Worst rank of each unit, from the scores without it and two softmaxes in 64 bits."""
    worst = []
    for document in documents:
        seen = {}
        hooks = [(f"blocks.{layer}.attn.hook_{name}", lambda acts, hook, name=name: seen.update({name: acts[0]}))
                 for name in ("q", "k", "rot_q", "rot_k")]  # fmt: skip
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(ids_of(model, document))
        q, k = (seen[name].double() for name in ("rot_q", "rot_k"))
        n_heads, d_head, group = q.shape[1], q.shape[2], q.shape[1] // k.shape[1]
        mask = torch.ones(len(q), len(q)).triu(1).bool()
        table = rotations.fit_rotation(seen["k"], seen["rot_k"], (torch.arange(d_head) + d_head // 2) % d_head)
        change = torch.zeros(n_heads, d_head, dtype=torch.float64)
        for head in range(n_heads):
            one, other = q[:, head], k[:, head // group]
            scores = (one @ other.T) / d_head**0.5
            before = scores.masked_fill(mask, -torch.inf).softmax(-1)
            for dim in range(d_head):
                if variant == "released":
                    less = torch.outer(one[:, dim], other[:, dim])
                else:
                    plain = seen[basis][:, head if basis == "q" else head // group].clone()
                    plain[:, [i for i in range(d_head) if i != dim]] = 0
                    alone = table.apply(plain[:, None])[:, 0].double()
                    less = (alone @ other.T if basis == "q" else one @ alone.T) / d_head**0.5
                after = (scores - less).masked_fill(mask, -torch.inf).softmax(-1)
                change[head, dim] = (after - before).square().sum()
        if basis == "k":
            change = change.unflatten(0, (-1, group)).sum(1)
        worst.append(maths.worst_first_ranks(change.flatten()[None])[0])
    return torch.stack(worst).amax(0)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_ranks_of_queries_and_keys_are_those_of_the_softmax_where_attention_is_peaked(backend, variant, tmp_path):
    model, plnd = peaked_model(tmp_path / "model", backend), Plnd(variant, bases=("q", "k"))
    documents = TEXTS["en"][::2]
    corpora = lsn.load_corpora({"en": documents, "fr": documents}, hold_out=0.0)
    layout = lsn.Layout(kind="documents", shards=1)
    statistics = lsn.collect(model, corpora, [plnd], layout=layout, progress=False).statistics
    for layer in range(2):
        for basis in ("q", "k"):
            ranks = statistics.get(f"{plnd.need.key}.{basis}.rank.maximum")[0, layer]
            assert torch.equal(ranks, ranks_by_softmax(model, variant, layer, basis, documents)), (layer, basis)


def random_attention(seed=0, tokens=9, heads=3, units=4, factors=2, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(factors, heads, tokens, units, generator=generator) * size for _ in range(2))
    scores = torch.randn(heads, tokens, tokens, generator=generator)
    return scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf), left, right


def change_by_softmax(scores, left, right, scale, first=0):
    """Two softmaxes per unit, in 64 bits."""
    scores, left, right = (each.double() for each in (scores, left, right))
    delta = torch.einsum("fhtu,fhsu->uhts", left, right)
    moved = ((scores - scale * delta).softmax(-1) - scores.softmax(-1))[:, :, first:, first:]
    return moved.square().sum((-1, -2)).T


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("size", [0.05, 1.0, 4.0, 30.0])  # from tiny changes to a pattern turned over
def test_the_exact_change_is_that_of_two_softmaxes(size, factors, first, monkeypatch):
    for seed, window in ((0, 9), (1, 4)):
        scores, left, right = random_attention(seed, factors=factors, size=size)
        scores = scores.masked_fill(torch.ones(9, 9).tril(-window).bool(), -torch.inf)
        expected = change_by_softmax(scores, left, right, 0.5, first)
        found = maths.exact_change(scores.softmax(-1), left, right, 0.5, first)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-12)
        for elements, rows in ((1, 16), (100, 2), (1 << 20, 3)):
            monkeypatch.setattr(maths, "ELEMENTS", elements)
            monkeypatch.setattr(maths, "ROWS", rows)
            torch.testing.assert_close(maths.exact_change(scores.softmax(-1), left, right, 0.5, first), found)


def test_a_factor_that_adds_nothing_changes_nothing():
    torch.manual_seed(0)
    pattern, left, right = torch.randn(2, 6, 6).softmax(-1), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    with_zeros = [torch.cat([each, torch.zeros_like(each)]) for each in (left, right)]
    found = maths.exact_change(pattern, *with_zeros, 0.5)
    assert found.all()
    torch.testing.assert_close(found, maths.exact_change(pattern, left, right, 0.5))


def test_attention_to_one_token_cannot_change():
    scores, left, right = random_attention(size=5.0)
    alone = scores.masked_fill(~torch.eye(9).bool(), -torch.inf).softmax(-1)
    assert not maths.exact_change(alone, left, right, 1.0).any()
    assert not maths.exact_change(alone[:, :1, :1], left[:, :, :1], right[:, :, :1], 1.0).any()
    left[:, 1, :, 2] = 0  # a dimension that adds nothing
    assert maths.exact_change(scores.softmax(-1), left, right, 1.0)[1, 2] == 0


@pytest.mark.parametrize(("n", "neighbours"), [(8, False), (8, True), (4, False), (4, True), (2, False)])
def test_the_rotation_is_found_whatever_its_pairing(n, neighbours):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 2, 8, generator=generator)
    angle = torch.arange(12.0)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])[: n // 2]
    turned = torch.view_as_complex(
        torch.stack((x[..., :n:2], x[..., 1:n:2]) if neighbours else (x[..., : n // 2], x[..., n // 2 : n]), -1)
    ) * torch.polar(torch.ones_like(angle), angle)[:, None]  # fmt: skip
    both = torch.view_as_real(turned)
    rotated = x.clone()
    rotated[..., :n] = both.flatten(-2) if neighbours else torch.cat([both[..., 0], both[..., 1]], -1)
    errors = []
    for partner in rotations.pairings(8):
        rotation = rotations.fit_rotation(x, rotated, partner)
        errors.append(float((rotation.apply(x) - rotated).norm()))
        inner = (rotation.components(x)[:, :, 3] * rotation.places(rotated)[:, :, 3]).sum(-1)
        if errors[-1] < 1e-4:
            alone = rotation.apply(torch.nn.functional.one_hot(torch.tensor(3), 8) * x)
            assert torch.allclose((alone * rotated).sum(-1), inner, atol=1e-5)
    assert min(errors) < 1e-4
    assert max(errors) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["gpt2", "neox", "qwen2", "bloom", "opt"])
def test_the_scale_is_the_models_own(architecture, backend, load):
    if architecture in HOOKED_LOADS or backend == "bridge":
        constants = read_attention(load(architecture, backend), 16)
        assert constants["scale"].tolist() == pytest.approx([8**-0.5] * 2, rel=1e-6)
        turns = bool(constants["turn"].any())
        assert turns == (architecture in ("neox", "qwen2"))
        if architecture == "neox":  # rotates a quarter of each head
            assert not constants["turn"][..., 2:].any() or constants["turn"][..., 2:].abs().max() < 1e-5


def test_another_scale_is_found(tmp_path):
    hf_model = tiny_model("gpt2")
    hf_model.config.scale_attn_by_inverse_layer_idx = True
    hf_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = lsn.load_model(tmp_path / "model", backend="bridge", device="cpu")
    scale = read_attention(model, 16)["scale"]
    assert float(scale[1] / scale[0]) == pytest.approx(0.5, rel=1e-4)


def test_what_it_cannot_explain_is_refused(load, collected):
    with pytest.raises(ValueError, match=r'soft cap.*bases=\("mlp", "v", "z"\)'):
        collected("gemma2", "bridge", Plnd(bases=BASES))
    found = collected("gemma2", "bridge", Plnd(bases=("mlp", "v", "z")))
    assert found.get(f"{Plnd(bases=('mlp', 'v', 'z')).need.key}.z.sum").all()


def test_a_pattern_that_is_no_softmax_of_q_and_k_is_refused(load):
    model = load("gpt2", BACKENDS[0])
    name = "blocks.1.attn.hook_attn_scores"
    expected = pytest.raises(ValueError, match=r'layer 1.*not a softmax.*bases=\("mlp", "v", "z"\)')
    with model.hooks(fwd_hooks=[(name, lambda acts, hook: 2 * torch.tanh(acts / 2))]), expected:
        read_attention(model, 16)


def made(minimum, worst, documents=(4, 4, 4), **settings):
    """Statistics of three languages and one layer, with the basis "mlp" only."""
    plnd = Plnd(bases=("mlp",), **settings)
    low, rank = torch.tensor(minimum)[:, None], torch.tensor(worst)[:, None]
    sums = {"minimum": low, "rank.maximum": rank, "sum": low.nan_to_num(posinf=0.0).double() * 4}
    tokens, count = torch.tensor(documents)[:, None] * 10, torch.tensor(documents)
    keyed = {f"{plnd.need.key}.mlp.{name}": each for name, each in sums.items()}
    return plnd, Statistics(("en", "fr", "zh"), keyed, tokens, count)


MINIMUM = [[3.0, 2.0, 1.0, 0.0], [3.0, 0.5, 2.0, 0.0], [4.0, 0.1, 0.2, 0.05]]
WORST = [[0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 3.0], [0.0, 2.0, 1.0, 3.0]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_mlp": 1}, ([], [], [])),  # the first unit is everyone's
        ({"top_mlp": 2}, ([1], [2], [2])),
        ({"top_mlp": 0.5}, ([1], [2], [2])),
        ({"top_mlp": 3}, ([], [], [])),
        ({"top_mlp": 4}, ([], [], [3])),  # where it is silent in a document, a unit is no language's
        ({"eps": 0.4}, ([1, 2], [1, 2], [])),
    ],
)
def test_specific_is_consistent_and_not_shared_by_all(settings, expected):
    plnd, statistics = made(MINIMUM, WORST, **settings)
    masks = plnd.select(plnd.score(statistics)).masks["mlp"]
    assert [mask[0].nonzero()[:, 0].tolist() for mask in masks] == list(expected)


def test_scores_rank_by_importance_against_the_other_languages():
    plnd, statistics = made(MINIMUM, WORST, eps=0.4)
    values = plnd.score(statistics).values["mlp"][:, 0]
    assert float(values[0, 1]) == pytest.approx(torch.tensor(2.0 / (2.6 / 3)).log().item(), rel=1e-5)
    assert values[0, 1] > values[0, 2]


def test_a_language_without_documents_neither_owns_nor_forbids():
    silent = [[torch.inf] * 4]
    plnd, statistics = made([*MINIMUM[:2], *silent], [*WORST[:2], [-torch.inf] * 4], (4, 4, 0), top_mlp=2)
    masks = plnd.select(plnd.score(statistics)).masks["mlp"]
    assert [mask[0].nonzero()[:, 0].tolist() for mask in masks] == [[1], [2], []]


def test_ties_go_to_the_lower_unit():
    values = torch.tensor([1.0, 2.0, 2.0, 3.0])
    assert maths.worst_first_ranks(values[None]).tolist() == [[3, 1, 2, 0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "best"}, "paper"),
        ({"rotary": "both"}, "pre"),
        ({"bases": ("mlp", "mlp")}, "each once"),
        ({"bases": ("o",)}, "some of"),
        ({"top_mlp": 0}, "top_mlp=0"),
        ({"top_attention": 1.5}, "share"),
        ({"eps": 0.0}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises((ValueError, TypeCheckError), match=words):
        Plnd(**settings)


def test_more_than_a_layer_has_is_refused(collected):
    plnd = Plnd()
    with pytest.raises(ValueError, match=r"top_attention=33: basis 'q' has 32 units"):
        replace(plnd, top_attention=33).score(collected("llama", BACKENDS[0], plnd))


def test_keys_tell_settings_apart():
    needs = [
        Importance(), Importance(variant="released"), Importance(rotary="post"), Importance(skip_bos=True),
        Importance(bases=("mlp", "q")),
    ]  # fmt: skip
    assert len({each.key for each in needs}) == len(needs)
