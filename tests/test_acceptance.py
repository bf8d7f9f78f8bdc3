"""Which models are refused at load, by name, and that the MLPs of the others are what their sites say."""

from functools import cache

import pytest
import tiny
import torch
from conftest import BACKENDS, SENTENCES, VOCABULARY
from oracles import plain

import lsn_lens as lsn
from lsn_lens.methods.catalogue import get_method
from lsn_lens.model import mlps, structure
from lsn_lens.neurons.sites import get_site
from lsn_lens.refusal import DoesNotApply

TEXTS = {label: [text, f"{label} {text}"] * 3 for label, text in zip(("en", "de", "fr"), SENTENCES, strict=False)}
DOCUMENTS = lsn.Layout(kind="documents")

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return cache(lambda name, **changes: tiny.checkpoint(name, tmp_path_factory.mktemp("tiny"), **changes))


@pytest.fixture(scope="module")
def loaded(folder_of):
    return cache(lambda name: lsn.load_model(folder_of(name), device="cpu"))


# refused at load

READS_BOTH_WAYS = "the tokens after a text change its logits for the text"
REFUSED = {
    "bert": rf"\(BertLMHeadModel\) as the plain Hugging Face model: {READS_BOTH_WAYS}",
    "falcon_alibi": r"\(FalconForCausalLM\) .*its eager attention, .* and its default attention \(sdpa\) differ",
    "glm_moe_dsa": "with right padding, .*So do those of the plain Hugging Face model",
    "rwkv": "with left padding, .*So do those of the plain Hugging Face model",
    "recurrent_gemma": "with left padding, .*So do those of the plain Hugging Face model",
    "falcon_40b": r"\(FalconForCausalLM\) cannot be a TransformerBridge of TransformerLens .*split_with_sizes",
    "persimmon": r"\(PersimmonForCausalLM\) cannot be a TransformerBridge .*Could not determine supported architecture",
    "granitemoehybrid": r"Original component not set for model.rotary_emb",
    "t5": r"\(T5ForConditionalGeneration\) is an encoder-decoder; expected a decoder",
    "mt5": r"\(MT5ForConditionalGeneration\) is an encoder-decoder",
    "bart": r"\(BartForConditionalGeneration\) is an encoder-decoder",
    "mbart": r"\(MBartForConditionalGeneration\) is an encoder-decoder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_in_a_sentence(name, folder_of):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        lsn.load_model(folder_of(name), device="cpu")
    assert folder_of(name).name in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_causal_model_made_to_read_both_ways(folder_of):
    folder = folder_of("bert", is_decoder=True)
    assert structure.is_bridge(lsn.load_model(folder, device="cpu"))
    with pytest.raises(ValueError, match=READS_BOTH_WAYS):
        lsn.load_model(folder, device="cpu", is_decoder=False)


def test_half_precision_hides_no_other_attention(folder_of):
    with pytest.raises(ValueError, match=r"its default attention \(sdpa\) differ"):
        lsn.load_model(folder_of("falcon_alibi"), device="cpu", dtype="bfloat16")
    for name in ("mixtral", "llama"):  # rounding sends some tokens to other experts
        assert structure.is_bridge(lsn.load_model(folder_of(name), backend="bridge", device="cpu", dtype="bfloat16"))


def test_a_sparse_attention_that_picks_from_all_is_sound(folder_of):
    assert structure.is_bridge(lsn.load_model(folder_of("glm_moe_dsa", index_topk=64), device="cpu"))


# activation functions


def counted(folder, documents, tokenizer, act):
    """Tokens with act(gate) > 0, by layer and unit, in plain transformers, document by document."""
    hf_model, seen = plain(folder), {}
    for layer, block in enumerate(hf_model.model.layers):
        keep = lambda module, args, out, layer=layer: seen.__setitem__(layer, act(block, out))  # noqa: E731
        gate = block.feed_forward.w1 if hasattr(block, "feed_forward") else act
        (gate if isinstance(gate, torch.nn.Module) else block.mlp.act_fn).register_forward_hook(keep)
    total = torch.zeros((), dtype=torch.long)
    for text in documents:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        hf_model(torch.tensor([ids]))
        total = total + torch.stack([(seen[layer][0] > 0).sum(0) for layer in sorted(seen)])
    return total


def trained_apart(folder):
    """xIELU with parameters of its own in each layer, as training leaves them."""
    hf_model = plain(folder)
    for layer, block in enumerate(hf_model.model.layers):
        block.mlp.act_fn.alpha_n.fill_(0.3 + layer)
        block.mlp.act_fn.alpha_p.fill_(0.9 - 0.5 * layer)
    hf_model.save_pretrained(folder)
    return folder


def test_active_is_where_the_activation_is_above_zero(folder_of):
    """xIELU is positive far below zero, so its units are active there, too."""
    folder = trained_apart(folder_of("apertus"))
    model = lsn.load_model(folder, device="cpu")
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    run = lsn.collect(model, corpora, ["lape"], layout=DOCUMENTS, progress=False)
    counts = torch.stack([
        counted(folder, corpus.find, model.tokenizer, lambda block, out: out) for corpus in corpora.values()
    ])  # fmt: skip
    assert torch.equal(run.statistics.get("mlp_pre.positive"), counts)
    ids = torch.arange(20)[None]
    site, seen = get_site("mlp_pre"), {}
    with model.hooks(fwd_hooks=[(site.hook_name(1), lambda acts, hook: seen.update(pre=acts))]):
        model(ids)
    below, acts = seen["pre"] < 0, structure.firing(model)
    assert acts is not None
    assert 0.01 < (acts[1](seen["pre"])[below] > 0).float().mean() < 0.99


def test_every_layer_has_its_own_activation(folder_of):
    folder = trained_apart(folder_of("apertus"))
    model, hf_model, ids = lsn.load_model(folder, backend="bridge", device="cpu"), plain(folder), torch.arange(20)[None]
    site, read = structure.reader(model, "mlp_act")
    ours, theirs = {}, {}
    for layer, block in enumerate(hf_model.model.layers):
        block.mlp.act_fn.register_forward_hook(lambda module, args, out, layer=layer: theirs.update({layer: out}))
    hooks = [(site.hook_name(i), lambda acts, hook, i=i: ours.update({i: read(acts, i)})) for i in range(2)]
    with model.hooks(fwd_hooks=hooks):
        model(ids)
    hf_model(ids)
    for layer in range(2):
        assert (ours[layer] - theirs[layer]).abs().max() < 1e-5 * theirs[layer].std()


def test_an_activation_that_no_configuration_names(folder_of, loaded):
    model = loaded("lfm2")
    corpora = lsn.load_corpora(TEXTS, hold_out=0.0)
    run = lsn.collect(model, corpora, ["lape"], layout=DOCUMENTS, progress=False)
    silu = torch.nn.functional.silu
    counts = counted(folder_of("lfm2"), corpora["en"].find, model.tokenizer, lambda block, out: silu(out))
    assert torch.equal(run.statistics.get("mlp_pre.positive")[0], counts)
    x = torch.linspace(-4, 4, 50)
    assert all(torch.equal(act(x), silu(x)) for act in structure.activations(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "phi3", "xglm", "arcee", "starcoder2"])
def test_the_sign_of_common_activations_is_the_gates(name, loaded):
    assert structure.firing(loaded(name)) is None


# tensors that are not what they are called


@pytest.mark.parametrize(
    ("name", "sites", "message"),
    [
        ("modernbert", ("mlp_pre", "mlp_act", "mlp_post"), "mlp.hook_pre has 96, mlp.hook_post has 48 units, the down"),
        ("bitnet", ("mlp_pre", "mlp_up", "mlp_post"), r"mlp.hook_post is not act\(hook_pre\) \* hook_pre_linear"),
        ("deepseek_v3", ("q", "k", "v", "z"), r"for a text of 7 tokens, expected \[1, 7, 4, 'd_head'\]"),
        ("qwen3_5", ("q",), r"hook_q shows \[1, 7, 8, 8\] for a text of 7 tokens, expected \[1, 7, 4, 'd_head'\]"),
        ("nemotron_h", ("mlp_pre",), "has no blocks.0.mlp.hook_pre. Expected a dense MLP"),
        ("mamba", ("mlp_post",), "the MLP: .* has no blocks.0.mlp.hook_pre. Expected a dense MLP"),
        ("mixtral", ("mlp_pre", "mlp_post"), "It is a mixture of experts"),
        ("qwen2_moe", ("mlp_pre", "mlp_post"), "It is a mixture of experts"),
    ],
)
def test_sites_that_show_something_else(name, sites, message, loaded, folder_of):
    for site in sites:
        with pytest.raises(DoesNotApply, match=message) as caught:
            structure.site_width(loaded(name), site)
        assert folder_of(name).name in str(caught.value)
        assert not structure.has_site(loaded(name), site)
    assert structure.site_width(loaded(name), "resid_post") == 32


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_activation_that_does_not_fit(name, loaded, monkeypatch):
    monkeypatch.setattr(mlps, "_candidates", lambda model, layer: [torch.tanh])
    with pytest.raises(DoesNotApply, match=r"mlp.hook_post is not act\(hook_pre\)"):
        structure.site_width(loaded(name), "mlp_post")


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bloom"])
def test_a_down_projection_that_reads_something_else(name, folder_of):
    model = lsn.load_model(folder_of(name), backend="bridge", device="cpu")
    assert structure.has_site(model, "mlp_post")
    down = model.blocks[1].mlp.out.original_component

    def mix(module, args):
        return (args[0] + args[0].flip(-1),)

    mix.__module__ = "transformers.mixing"  # a part of the model, not something that somebody put on it
    handle = down.register_forward_pre_hook(mix)
    with pytest.raises(DoesNotApply, match=r"zeroing units of mlp.hook_post does not equal zeroing the weights"):
        structure.site_width(model, "mlp_post")
    handle.remove()
    assert structure.has_site(model, "mlp_post")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_check_leaves_no_trace(backend, folder_of):
    model = lsn.load_model(folder_of("llama"), backend=backend, device="cpu")
    before, logits = structure.describe(model), model(torch.arange(9)[None])
    assert structure.site_width(model, "mlp_act") == 48
    assert structure.describe(model) == before
    assert torch.equal(model(torch.arange(9)[None]), logits)


# models without MLPs that could be read


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "olmoe", "mamba"])
def test_what_needs_no_mlp_works_without(name, folder_of, loaded):
    model, corpora = loaded(name), lsn.load_corpora(TEXTS, hold_out=0.34)
    attends = name != "mamba"
    of_heads = [get_method("average_precision", bases=("q", "k", "v")), get_method("plnd", bases=("v", "z"))]
    run = lsn.collect(
        model,
        corpora,
        ["diffmean", "language_dimensions", *(of_heads if attends else [])],
        layout=DOCUMENTS,
        progress=False,
    )
    assert not any(key.startswith("mlp_") for key in run.statistics.sums)
    hf_model, sums, after = plain(folder_of(name)), torch.zeros(32), []
    first = hf_model.get_submodule("model" if attends else "backbone").layers[0]
    first.register_forward_hook(lambda module, args, out: after.__setitem__(slice(None), out))
    for text in corpora["en"].find:
        ids = [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        hf_model(torch.tensor([ids]))
        sums = sums + after[0].sum(0)
    assert torch.allclose(run.statistics.get("resid_post.sum")[0, 0].float(), sums, rtol=1e-4, atol=1e-4)
    found = lsn.detect(run, "language_dimensions")
    off = lsn.perplexity_matrix(model, corpora, found, layout=DOCUMENTS, progress=False)
    assert off.notna().all().all()
    if attends:
        for method in of_heads:
            assert len(lsn.detect(run, method))
        texts = lsn.generate(model, ["the river", "rain"], tokens=4, progress=False)
        alone = hf_model.generate(
            torch.tensor([[0, *model.tokenizer("rain")["input_ids"]]]), max_new_tokens=4, do_sample=False
        )
        assert texts["ids"][1] == alone[0, -4:].tolist()
    with pytest.raises(DoesNotApply, match="mixture of experts" if attends else "Expected a dense MLP"):
        lsn.collect(model, corpora, ["diffmean", "lape"], layout=DOCUMENTS, progress=False)


def test_where_there_are_mlps_their_means_are_kept(loaded):
    run = lsn.collect(
        loaded("llama"), lsn.load_corpora(TEXTS, hold_out=0.0), ["diffmean"], layout=DOCUMENTS, progress=False
    )
    assert run.statistics.get("mlp_post.sum").shape == (3, 2, 48)


def test_vocabulary(loaded):
    assert structure.vocabulary_size(loaded("llama")) == VOCABULARY
