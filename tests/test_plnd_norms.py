"""PLND where queries and keys pass a norm: importances against weights without the unit, by transformers alone."""

from functools import cache

import pytest
import torch
import transformers
from conftest import BACKENDS, GROUPED, LLAMA_LIKE, SENTENCES, VOCABULARY
from tiny import SPECIAL, save

import lsn_lens as lsn
from lsn_lens.collection.recorders.attention import read_attention
from lsn_lens.methods.plnd import Plnd
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics import importance as maths
from lsn_lens.statistics import rotations
from lsn_lens.statistics.importance import BASES, Stretch
from lsn_lens.statistics.rotations import HeadNorm

SIZES = {**LLAMA_LIKE, **GROUPED, "head_dim": 8}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "qwen3": ("qwen3", SIZES),
    "qwen3 with biases and a large eps": ("qwen3", {**SIZES, "attention_bias": True, "rms_norm_eps": 0.5}),
    "qwen3 with a window": ("qwen3", {**SIZES, **SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
    "gemma3": ("gemma3_text", {**SIZES, **SLIDING, "query_pre_attn_scalar": 20}),
    "norm over all heads": ("olmo2", {**LLAMA_LIKE, **GROUPED}),
    "layer norms": ("stablelm", {**LLAMA_LIKE, **GROUPED, "qk_layernorm": True}),
    "norm after the rotation": ("hunyuan_v1_dense", SIZES),
}
CLOSED = tuple(MODELS)[:4]
# TransformerLens 3.9 has no such model
AFTER = (
    [("norm after the rotation", "layer 0: the attention pattern is not a softmax")] if BACKENDS == ("bridge",) else []
)
TEXTS = {"en": [SENTENCES[0]], "fr": [SENTENCES[2]]}
DOCUMENTS = lsn.Layout(kind="documents", shards=1)
every_model = pytest.mark.parametrize(  # of these, a HookedTransformer can be made from the first only
    ("name", "backend"), [(name, each) for name in CLOSED for each in BACKENDS if each == "bridge" or name == "qwen3"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(name)`: a tiny model of `MODELS` with random weights."""

    @cache
    def build(name):
        model_type, sizes = MODELS[name]
        config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **SPECIAL, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
        return save(model, tmp_path_factory.mktemp("normed") / f"tiny-{list(MODELS).index(name)}")

    return build


@pytest.fixture(scope="module")
def load(folder):
    return cache(lambda name, backend="bridge": lsn.load_model(folder(name), backend=backend, device="cpu"))


@pytest.fixture(scope="module")
def plain(folder):
    """The model in transformers alone, in 64 bits."""

    def build(name):
        made = transformers.AutoModelForCausalLM.from_pretrained(folder(name), attn_implementation="eager")
        return made.eval().double()

    return build


@pytest.fixture(scope="module")
def collected(load):
    @cache
    def collect(name, backend, plnd):
        corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
        return lsn.collect(load(name, backend), corpora, [plnd], layout=DOCUMENTS, progress=False).statistics

    return collect


def importances(statistics, plnd, basis):
    """Of the English document, `[layer unit]`, no longer per token."""
    tokens = int(statistics.tokens[0, 0]) - plnd.skip_bos
    each = statistics.get(f"{plnd.need.key}.{basis}.sum")[0]
    return each * tokens ** (0.5 if plnd.variant == "paper" else 1)


def ids_of(model):
    ids = model.tokenizer(TEXTS["en"][0], add_special_tokens=False)["input_ids"]
    return torch.tensor([[model.tokenizer.bos_token_id, *ids]])


@torch.no_grad()
def changes(hf_model, ids, layer, basis, first):
    """Norm of the change of the pattern without each row of a projection, and without its bias."""
    projection = getattr(hf_model.model.layers[layer].self_attn, f"{basis}_proj")
    kept = {name: value.clone() for name, value in projection.named_parameters()}
    before = hf_model(ids, output_attentions=True).attentions[layer][0]
    found = []
    for unit in range(len(projection.weight)):
        for value in projection.parameters():
            value[unit] = 0
        after = hf_model(ids, output_attentions=True).attentions[layer][0]
        found.append((after - before)[:, first:, first:].norm())
        for name, value in projection.named_parameters():
            value.copy_(kept[name])
    return torch.stack(found)


@pytest.mark.parametrize("skip_bos", [False, True])
@every_model
def test_importance_is_what_removing_the_weights_changes(name, backend, skip_bos, load, plain, collected):
    plnd, hf_model, ids = Plnd(skip_bos=skip_bos), plain(name), ids_of(load(name, backend))
    statistics = collected(name, backend, plnd)
    assert ids.shape[1] > 2 * SLIDING["sliding_window"]
    for basis in ("q", "k"):
        found = importances(statistics, plnd, basis)
        for layer in range(2):
            expected = changes(hf_model, ids, layer, basis, int(skip_bos))
            assert expected.min() > 1e-3
            torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=0)


@every_model
def test_no_basis_is_left_out(name, backend, load):
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    run = lsn.collect(load(name, backend), corpora, ["plnd"], layout=DOCUMENTS, progress=False)
    assert run.settings["left_out"] == {"methods": {}, "bases": {}}
    found = lsn.detect(run, "plnd")
    assert tuple(found.masks) == BASES and "bases_left_out" not in found.notes
    assert all(run.statistics.get(f"{Plnd().need.key}.{basis}.sum").all() for basis in BASES)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_after_the_rotation_it_is_what_zeroing_one_rotated_dimension_changes(variant, load, collected):
    plnd, model = Plnd(variant, rotary="post"), load("gemma3")
    seen, hook = {}, "blocks.1.attn.hook_"
    with torch.no_grad(), model.hooks(
        fwd_hooks=[(hook + name, lambda acts, hook, name=name: seen.update({name: acts[0].double()}))
                   for name in ("rot_q", "rot_k", "pattern")]
    ):  # fmt: skip
        model(ids_of(model))
    q, k = seen["rot_q"], seen["rot_k"].repeat_interleave(2, 1)
    q, k = (x if x.shape[0] == len(seen["pattern"][0]) else x.transpose(0, 1) for x in (q, k))
    delta = torch.einsum("taj,saj->ajts", q, k) * (1 if variant == "released" else 20**-0.5)
    moved = (seen["pattern"].log()[:, None] - delta).softmax(-1) - seen["pattern"][:, None]
    expected = moved.square().sum((-1, -2))
    by_key = expected.unflatten(0, (-1, 2)).sum(1)
    for basis, each in (("q", expected), ("k", by_key)):
        found = importances(collected("gemma3", "bridge", plnd), plnd, basis)[1]
        torch.testing.assert_close(
            found if variant == "released" else found.square(), each.flatten(), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "norm over all heads",
            r"layer 0: .* no RMS norm over the 8 .* shapes \[\[32\]\].*bases=\(\"mlp\", \"v\", \"z\"\)",
        ),
        ("layer norms", r"layer 0: .* no RMS norm over the 8 .* shapes \[\[8\], \[8\]"),
        *AFTER,
    ],
)
def test_other_norms_are_refused_by_name(name, said, load):
    with pytest.raises(DoesNotApply, match=said):
        read_attention(load(name), 16)
    with pytest.raises(DoesNotApply, match=said):
        lsn.collect(load(name), lsn.load_corpora(TEXTS, hold_out=0.0), [Plnd(bases=("q",))], layout=DOCUMENTS)


@every_model
def test_the_numbers_of_a_norm_are_the_models_own(name, backend, load, plain):
    found, hf_model = read_attention(load(name, backend), 16), plain(name)
    for layer, block in enumerate(hf_model.model.layers):
        norms = block.self_attn.q_norm, block.self_attn.k_norm
        for numbers, norm in zip(found[f"norms.{layer}"], norms, strict=True):
            expected = norm.weight + (name == "gemma3")
            torch.testing.assert_close(numbers[:-1].double(), expected, rtol=1e-5, atol=1e-6)
            assert float(numbers[-1]) == pytest.approx(hf_model.config.rms_norm_eps, rel=1e-3)
    scale = 20**-0.5 if name == "gemma3" else 8**-0.5
    assert found["scale"].tolist() == pytest.approx([scale] * 2, rel=1e-4)


def random_norm(seed=0, eps=1e-6, d_head=6):
    weight = 1 + torch.randn(d_head, generator=torch.Generator().manual_seed(seed)) / 3
    return HeadNorm(weight, torch.tensor(eps))


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("large", [1.0, 1e4])  # beside 1e4, 32 bits hold nothing of the squares of the others
def test_growth_is_that_of_the_norm_without_the_dimension(large, eps):
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(1))
    x[..., 2] *= large
    norm = random_norm(eps=eps)
    before, growth = norm.apply(x.double()), norm.growth(x)
    for unit in range(6):
        without = x.double()
        without[..., unit] = 0
        others = [i for i in range(6) if i != unit]
        after = norm.apply(without)[..., others]
        torch.testing.assert_close(
            before[..., others] * (1 + growth[..., unit, None].double()), after, rtol=1e-4, atol=1e-9
        )
    assert not norm.growth(torch.zeros(1, 1, 6)).any()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("bases", [("q", "k"), ("q",), ("k",)])
@pytest.mark.parametrize("size", [0.05, 1.0, 30.0])  # from tiny changes to a pattern turned over
def test_the_exact_change_is_that_of_two_softmaxes(size, bases, first, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(9, 3, 6, generator=generator) for _ in range(2))
    norms = {basis: random_norm(seed) for seed, basis in enumerate("qk")}
    angle = torch.arange(9.0)[:, None] * torch.tensor([1.0, 0.3, 0.1]).repeat(2)
    sign = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    rotation = maths.Rotation(angle.cos(), angle.sin() * sign, torch.tensor([3, 4, 5, 0, 1, 2]))
    added = torch.randn(3, 9, 9, generator=generator)  # such as ALiBi: it does not grow with the product
    masked = torch.ones(9, 9).triu(1).bool() | torch.ones(9, 9).tril(-5).bool()

    def pattern(q, k):
        rotated = [rotation.apply(norms[b].apply(x.double())).double() for b, x in (("q", q), ("k", k))]
        scores = size * torch.einsum("tad,sad->ats", *rotated) + added
        return scores.masked_fill(masked, -torch.inf).softmax(-1)

    def removed(x, unit):
        return x * (torch.arange(6) != unit)

    masked = masked | (pattern(q, k) < 1e-30)  # what has no number in 32 bits counts as masked
    before = pattern(q, k)
    pairs = {"q": [(removed(q, i), k) for i in range(6)], "k": [(q, removed(k, i)) for i in range(6)]}
    moved = torch.stack([pattern(*pair) - before for basis in bases for pair in pairs[basis]], 1)
    expected = moved[..., first:, first:].square().sum((-1, -2))
    left, right, places, stretch = maths.delta_factors(q, k, rotation, "pre", bases, norms)
    assert places == {basis: slice(6 * i, 6 * i + 6) for i, basis in enumerate(bases)}
    found = maths.exact_change(before.float(), left, right, size, first, stretch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-9)
    for elements, rows in ((1, 16), (100, 2), (1 << 20, 3)):
        monkeypatch.setattr(maths, "ELEMENTS", elements)
        monkeypatch.setattr(maths, "ROWS", rows)
        torch.testing.assert_close(maths.exact_change(before.float(), left, right, size, first, stretch), found)


@pytest.mark.parametrize("rotary", ["pre", "post"])
def test_a_norm_that_changes_nothing_changes_no_importance(rotary):
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(9, 3, 6, generator=generator) for _ in range(2))
    rotation = rotations.no_rotation(6)
    rotation = maths.Rotation(rotation.cos.expand(9, -1), rotation.turn.expand(9, -1), rotation.partner)
    flat = HeadNorm(torch.full((6,), 1e4), torch.tensor(1e8))  # x * 1e4 / sqrt(1e8 + something small)
    pattern = torch.randn(3, 9, 9, generator=generator).softmax(-1)
    plain = maths.delta_factors(q, k, rotation, rotary, ("q", "k"), {})
    normed = maths.delta_factors(q, k, rotation, rotary, ("q", "k"), {"q": flat, "k": flat})
    assert plain[-1] is None and isinstance(normed[-1], Stretch) == (rotary == "pre")
    for basis in ("q", "k"):
        one, other = (
            maths.exact_change(pattern, left, right, 0.4, 0, stretch)[:, places[basis]]
            for left, right, places, stretch in (plain, normed)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_a_dimension_of_zeros_changes_nothing_and_one_of_weight_zero_does():
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(9, 3, 6, generator=generator) for _ in range(2))
    q[..., 2] = 0
    norm = random_norm()
    norm.weight[4] = 0
    rotation = rotations.no_rotation(6)
    left, right, _, stretch = maths.delta_factors(q, k, rotation, "pre", ("q", "k"), {"q": norm, "k": norm})
    pattern = torch.randn(3, 9, 9, generator=generator).softmax(-1)
    found = maths.exact_change(pattern, left, right, 0.4, 0, stretch)
    assert not found[:, 2].any() and found[:, 4].all() and found[:, 10].all()


def test_a_large_dimension_of_weight_zero_turns_the_pattern_over_by_the_growth_of_the_others_alone():
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(9, 3, 6, generator=generator) for _ in range(2))
    q[..., 4] *= 1000
    norm, rotation = random_norm(), rotations.no_rotation(6)
    norm.weight[4] = 0
    left, right, _, stretch = maths.delta_factors(q, k, rotation, "pre", ("q", "k"), {"q": norm, "k": norm})

    def pattern(q):
        return torch.einsum("tad,sad->ats", norm.apply(q.double()), norm.apply(k.double())).mul(30).softmax(-1)

    expected = (pattern(q * (torch.arange(6) != 4)) - pattern(q)).square().sum((-1, -2))
    assert 30 * stretch.largest()[:, 4].min() > 2 * maths.LARGE and expected.min() > 1
    found = maths.exact_change(pattern(q).float(), left, right, 30.0, 0, stretch)[:, 4]
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=0)
