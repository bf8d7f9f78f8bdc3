"""Losses without the logits of a whole batch: equal to those of all logits, for every kind of head."""

import pytest
import tiny
import torch
from conftest import ARCHITECTURES, BACKENDS, HOOKED_LOADS, LLAMA_LIKE, VOCABULARY
from tiny import GROUPED
from torch.nn.functional import cross_entropy, pad

import lsn_lens as lsn
from lsn_lens.model import forward, hooks, structure, unembedding

# what a model does to its logits: softcap, scale, divisor, multiplier, a layer of its own in front of them
HEADS = {
    "gemma2": ("gemma2", {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "cohere2": ("cohere2", {**LLAMA_LIKE, **GROUPED, "logit_scale": 0.3}),
    "granite": ("granite", {**LLAMA_LIKE, **GROUPED, "logits_scaling": 4.0}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "logit_scale": 0.3}),
    "olmo2": ("olmo2", {**LLAMA_LIKE, **GROUPED}),
    **{name: tiny.SIZES[name] for name in ("phi3", "modernbert", "mamba")},
    **{name: ARCHITECTURES[name] for name in ("llama", "gpt2", "bloom", "qwen2", "opt", "neox", "mixtral")},
}
if "hooked" in BACKENDS:  # TransformerLens 3.9 does not run it as Hugging Face does, so `load_model` refuses it
    del HEADS["cohere2"]
BRIDGES = [(name, "bridge") for name in HEADS]
HOOKED = [(name, "hooked") for name in HOOKED_LOADS if name in HEADS and "hooked" in BACKENDS]
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.1}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 7 positions and 100 tokens of the vocabulary: many of each, and the last ones smaller."""
    monkeypatch.setitem(unembedding.PART, "cpu", (7, 4 * 7 * 100))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name, backend, dtype)`: a model of `HEADS`."""
    folders = {}

    def build(name, backend="bridge", dtype=torch.float32):
        if name not in folders:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(tiny.SIZES, name, HEADS[name])
                folders[name] = tiny.checkpoint(name, tmp_path_factory.mktemp("heads"))
        return lsn.load_model(folders[name], backend=backend, device="cpu", dtype=dtype)

    return build


def some_rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.randint(VOCABULARY, (3, 20), generator=generator), torch.ones(3, 20, dtype=torch.long)
    mask[1, 11:] = 0
    scored = mask[:, 1:].bool() & (torch.rand(3, 19, generator=generator) > 0.2)
    return ids, mask, scored


@torch.no_grad()
def plain_losses(model, ids, mask, scored):
    logits = forward.logits(model, ids, mask)[:, :-1][scored].double()
    return cross_entropy(logits, ids[:, 1:][scored], reduction="none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "backend"), BRIDGES + HOOKED)
def test_the_losses_of_all_logits(name, backend, dtype, made, small_parts):
    """Float32: to 1e-5 nats per token. bfloat16: a product of other size may round a logit the other way."""
    model = made(name, backend, dtype)
    assert unembedding.has_parts(model)
    for mask in (some_rows()[1], None):
        ids, _, scored = some_rows()
        expected = plain_losses(model, ids, mask, scored)
        found = unembedding.next_token_losses(model, ids, mask, scored)
        assert found.dtype == torch.float64 and (found - expected).abs().max() < DTYPES[dtype]
        with forward.lean(model):
            assert (unembedding.next_token_losses(model, ids, mask, scored) - expected).abs().max() < DTYPES[dtype]


@pytest.mark.parametrize(("name", "backend"), BRIDGES + HOOKED)
def test_the_gradient_of_all_logits(name, backend, made, monkeypatch):
    """With the logits of 7 positions at a time, the gradient at the first block is that of all logits."""
    model = made(name, backend)
    size = structure.vocabulary_size(model)
    monkeypatch.setattr(unembedding, "FULL", 7 * unembedding.COPIES * 4 * size)
    ids, mask, scored = some_rows()
    at, targets = pad(scored, (0, 1)), ids[:, 1:][scored]
    leaves, sizes = [], []

    def leaf(acts, hook):
        leaves.append(acts.detach().requires_grad_())
        return leaves[-1]

    def count(head, output, hidden, first, last, whole=unembedding._Head.logits):
        sizes.append((len(hidden), last - first))
        return whole(head, output, hidden, first, last)

    assert unembedding.has_parts(model)
    monkeypatch.setattr(unembedding._Head, "logits", count)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", leaf)]):
        hidden, backward = unembedding.forward_for_gradient(model, ids, mask, at, targets)
        loss = backward()
        plain = cross_entropy(forward.logits(model, ids, mask)[at], targets, reduction="sum")
        plain.backward()
    assert not hidden.requires_grad and torch.equal(hidden, forward.hidden_states(model, ids, mask))
    assert (loss - plain).abs() < 1e-5 * plain
    found, expected = (each.grad for each in leaves)
    assert expected.abs().max() > 0 and (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert max(sizes) == (7, size) and sum(n for n, _ in sizes) == len(targets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_never_all_logits(backend, load, small_parts, monkeypatch):
    """Each part has the positions asked for alone, and every token of the vocabulary once."""
    model, (ids, mask, scored) = load("llama", backend), some_rows()
    assert unembedding.has_parts(model)
    monkeypatch.setattr(forward, "logits", None)
    seen = torch.zeros(int(scored.sum()), VOCABULARY)

    def look(tokens, first, logits):
        assert logits.shape[0] <= 7 and logits.shape[1] <= 100
        seen[tokens, first : first + logits.shape[1]] += 1

    at = torch.nn.functional.pad(scored, (0, 1))
    unembedding.token_losses(model, ids, mask, at, ids[:, 1:][scored], look)
    assert (seen == 1).all()


def outside(model):
    """Hook points after a model's body: they see what parts would tear apart."""
    names = ["unembed.hook_in", "unembed.hook_out"] if hasattr(model, "original_model") else []
    return names or ["ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_after_the_body_fire_once_and_count(backend, load, small_parts):
    model, (ids, mask, scored) = load("llama", backend), some_rows()
    for name in outside(model):
        shapes = []

        def hook(acts, hook, shapes=shapes):
            shapes.append(tuple(acts.shape[:2]))
            return 0.5 * acts

        for context in (forward.lean, hooks.as_it_is):
            with context(model), model.hooks(fwd_hooks=[(name, hook)]):
                assert not unembedding.has_parts(model)
                found = unembedding.next_token_losses(model, ids, mask, scored)
                assert shapes == [tuple(ids.shape)]
                assert (found - plain_losses(model, ids, mask, scored)).abs().max() < 1e-5
            shapes.clear()
        assert (found - plain_losses(model, ids, mask, scored)).abs().max() > 0.01
        assert unembedding.has_parts(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_in_the_body_fire_once_and_count(backend, load, small_parts):
    """Also on a bridge's final norm, which its body runs."""
    model, (ids, mask, scored) = load("llama", backend), some_rows()
    bridge = hasattr(model, "original_model")
    for name in ("blocks.1.mlp.hook_post", "hook_embed", *(["ln_final.hook_normalized"] if bridge else [])):
        shapes = []

        def hook(acts, hook, shapes=shapes):
            shapes.append(tuple(acts.shape[:2]))
            return 0.5 * acts

        with model.hooks(fwd_hooks=[(name, hook)]):
            assert unembedding.has_parts(model)
            found = unembedding.next_token_losses(model, ids, mask, scored)
            assert shapes == [tuple(ids.shape)]
            assert (found - plain_losses(model, ids, mask, scored)).abs().max() < 1e-5


def test_torch_hooks_and_replaced_forwards(load, small_parts):
    model, (ids, mask, scored) = load("llama", "bridge"), some_rows()
    unchanged = plain_losses(model, ids, mask, scored)
    owner = model.original_model

    def halved(module, given, made):
        made.logits.mul_(0.5)

    with owner.register_forward_hook(halved):
        found = unembedding.next_token_losses(model, ids, mask, scored)
        assert (found - plain_losses(model, ids, mask, scored)).abs().max() < 1e-5
        assert (found - unchanged).abs().max() > 0.01
    linear = owner.lm_head._modules.get("_original_component", owner.lm_head)
    linear.forward = lambda hidden: 0.5 * type(linear).forward(linear, hidden)
    try:
        halves = unembedding.next_token_losses(model, ids, mask, scored)
    finally:
        del linear.forward
    assert (halves - found).abs().max() < 1e-5
    assert (unembedding.next_token_losses(model, ids, mask, scored) - unchanged).abs().max() < 1e-5


def test_a_head_that_cannot_be_made_in_parts(made, small_parts, monkeypatch):
    """The logits of a position depend on all positions: a few tokens show it, and all logits are made."""
    model, (ids, mask, scored) = made("llama"), some_rows()
    owner = type(model.original_model)
    plain = owner.forward

    def centred(self, *args, **settings):
        output = plain(self, *args, **settings)
        output.logits = output.logits - output.logits.mean((0, 1))
        return output

    monkeypatch.setattr(owner, "forward", centred)
    assert not unembedding.has_parts(model)
    expected = plain_losses(model, ids, mask, scored)
    assert (unembedding.next_token_losses(model, ids, mask, scored) - expected).abs().max() < 1e-5
    assert unembedding.tokens_at_once(model) == unembedding.FULL // (4 * VOCABULARY)


def test_the_model_is_whole_after_an_error(made, small_parts):
    model, (ids, mask, scored) = made("llama"), some_rows()
    expected = plain_losses(model, ids, mask, scored)

    def broken(tokens, first, logits):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop") as kept:
        at = torch.nn.functional.pad(scored, (0, 1))
        unembedding.token_losses(model, ids, mask, at, ids[:, 1:][scored], broken)
    assert torch.equal(plain_losses(model, ids, mask, scored), expected), kept


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers(odd, load):
    """As `cross_entropy` has it: minus infinity is a probability of 0, the others make every loss NaN."""
    logits, targets = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    logits[:, 20:30] = odd
    logits[0, 0] = odd
    parts = [(slice(0, 6), first, logits[:, first : first + 10]) for first in range(0, 50, 10)]
    expected = cross_entropy(logits, targets, reduction="none").double()  # first, as parts are changed in place
    torch.testing.assert_close(unembedding._nats(parts, targets), expected, equal_nan=True)


def test_large_logits_lose_no_digits():
    """GPT-2's logits are near -100: their difference is not."""
    logits, targets = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3 - 1000, torch.arange(6)
    expected = cross_entropy(logits.double(), targets, reduction="none")
    parts = [(slice(0, 6), first, logits[:, first : first + 10]) for first in range(0, 50, 10)]
    assert (unembedding._nats(parts, targets) - expected).abs().max() < 1e-6
