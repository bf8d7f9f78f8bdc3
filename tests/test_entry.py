"""What is refused at every entry, and half precision."""

import copy

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, BACKENDS, D_MLP, LAYERS, SENTENCES, VOCABULARY
from tiny import redraw

import lsn_lens as lsn
from lsn_lens.model import forward
from lsn_lens.model.entry import check_model

IDS = torch.arange(60).view(2, 30) * 7 % VOCABULARY
QUIET = {"progress": False, "layout": lsn.Layout(length=24)}
HALVES = (torch.bfloat16, torch.float16)


def texts():
    return lsn.load_corpora({"en": [SENTENCES[0]] * 8, "fr": [SENTENCES[2]] * 8}, hold_out=0.5)


@pytest.fixture(scope="module")
def boot(tiny_model_folder):
    """`boot(hf_model)`: a bridge, made as users make one."""
    from transformer_lens.model_bridge import TransformerBridge

    def build(hf_model, **options):
        hf_model.config.architectures = [type(hf_model).__name__]
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_folder("llama"))
        return TransformerBridge.boot_transformers(
            "tiny", hf_model=hf_model, tokenizer=tokenizer, device="cpu", **options
        )

    return build


@pytest.fixture
def bridge(hugging_face, boot):
    return boot(hugging_face("llama"))


@pytest.fixture(scope="module")
def processed(tiny_model_folder):
    """`processed(architecture, **options)`: a HookedTransformer whose weights TransformerLens has changed."""

    def build(architecture, **options):
        model = lsn.load_model(tiny_model_folder(architecture), backend="hooked", device="cpu")
        off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
        model.load_and_process_state_dict(model.state_dict(), **{**off, **options})
        return model

    return build


# --- training ---


def test_dropout_that_is_on_is_named(hugging_face, boot):
    model = boot(hugging_face("gpt2"))
    check_model(model)
    model.blocks[1].attn.train()  # one part of it
    with pytest.raises(ValueError, match=r"training mode \(\w+ blocks.1.attn"):
        check_model(model)
    model.eval()
    check_model(model)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has bridges only")
def test_a_hooked_transformer_without_dropout_may_be_in_training_mode(tiny_model_folder):
    model = lsn.load_model(tiny_model_folder("llama"), backend="hooked", device="cpu").train()
    check_model(model)
    model.blocks[0].mlp.dropout = torch.nn.Dropout(0.1)
    with pytest.raises(ValueError, match=r"training mode \(Dropout blocks.0.mlp.dropout\)"):
        check_model(model)


# --- processed weights ---


def test_a_bridge_with_processed_weights_is_refused(hugging_face, boot):
    model = boot(hugging_face("gpt2"))
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    check_model(model)
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match=r"processed weights .*from_pretrained_no_processing"):
        lsn.generate(model, ["The"], tokens=1, progress=False)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has bridges only")
@pytest.mark.parametrize(
    ("architecture", "option"),
    [
        ("llama", "fold_ln"), ("llama", "center_unembed"), ("gpt2", "fold_ln"), ("gpt2", "center_writing_weights"),
        ("gpt2", "center_unembed"), ("gpt2", "fold_value_biases"), ("qwen2", "fold_value_biases"),
        ("gpt2", "refactor_factored_attn_matrices"),
    ],
)  # fmt: skip
def test_a_hooked_transformer_with_processed_weights_is_refused(processed, architecture, option):
    with pytest.raises(ValueError, match=rf"processed weights \({option}"):
        check_model(processed(architecture, **{option: True}))


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has bridges only")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "bloom", "opt", "neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unprocessed_models_are_let_in(tiny_model_folder, architecture, dtype):
    check_model(lsn.load_model(tiny_model_folder(architecture), backend="hooked", device="cpu", dtype=dtype))


# --- what is no model ---


class Wrapper(torch.nn.Module):
    """Like those of peft and nnsight: hands on what it is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(super().__getattr__("model"), name)


def test_what_is_no_model_is_named(bridge, hugging_face):
    for other, said in (
        (hugging_face("llama"), r"LlamaForCausalLM.*load_model\(model, tokenizer\)"),
        (Wrapper(bridge), "test_entry.Wrapper.*not wrapped in anything"),
        ("demo", r"the text 'demo'.*lsn.load_model\('demo'\)"),
        (None, "NoneType"),
        ({"model": 1}, "builtins.dict"),
    ):
        with pytest.raises(ValueError, match=said):
            lsn.collect(other, texts(), **QUIET)
        with pytest.raises(ValueError, match=said):
            lsn.generate(other, ["The"], tokens=1, progress=False)


# --- hooks where nothing runs ---


@pytest.mark.parametrize("place", ["model.layers.1._original_component.self_attn._original_component", "model.layers"])
def test_a_hook_on_a_module_that_does_not_run_is_refused(bridge, place):
    """The bridge computes attention by itself: `model(ids)` would drop the hook without a word."""
    handle = bridge.original_model.get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"forward on blocks.* \(\w+\), which its forward pass does not run"):
        check_model(bridge)
    handle.remove()
    check_model(bridge)


def test_hooks_where_something_runs_are_let_in(bridge):
    inner = bridge.original_model.get_submodule("model.layers.1._original_component.mlp._original_component")
    with bridge.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda acts, hook: None)]):
        for module in (bridge.blocks[0].attn, inner, inner.act_fn, bridge.hook_dict["blocks.0.attn.hook_z"]):
            handle = module.register_forward_hook(lambda *_: None)
            check_model(bridge)
            handle.remove()


# --- half precision ---


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "neox", "bloom"])
def test_in_half_precision_every_way_gives_the_same_bits(hugging_face, boot, architecture, dtype):
    model = boot(hugging_face(architecture).to(dtype), dtype=dtype)
    expected, logits = forward.hidden_states(model, IDS, None), model(IDS)
    for hook in ("mlp.hook_post", "attn.hook_pattern", "attn.hook_z", "hook_resid_post", "hook_attn_out"):
        names = [f"blocks.{layer}.{hook}" for layer in range(LAYERS)]
        assert forward.lean_is_exact(model, names)
        with forward.lean(model, names):
            assert torch.equal(forward.hidden_states(model, IDS, None), expected)
            assert torch.equal(forward.logits(model, IDS), logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_in_half_precision_do_not_depend_on_the_other_methods(tiny_model_folder, backend):
    model = lsn.load_model(tiny_model_folder("llama"), backend=backend, dtype=torch.bfloat16, device="cpu")
    layout = lsn.Layout(kind="documents")
    alone, together = (
        lsn.collect(model, texts(), methods, progress=False, layout=layout)
        for methods in (["lape"], ["lape", "plnd", "diffmean"])
    )
    for key, values in alone.statistics.sums.items():
        assert torch.equal(values, together.statistics.sums[key])
    if backend == "bridge":
        assert alone.settings["forward"] == together.settings["forward"] == {"modules": "lean", "attention": "eager"}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_intervention_in_half_precision_is_editing_weights(tiny_model_folder, backend, dtype):
    model, edited = (
        lsn.load_model(tiny_model_folder("llama"), backend=backend, dtype=dtype, device="cpu") for _ in range(2)
    )
    units = torch.zeros(1, LAYERS, D_MLP, dtype=torch.bool)
    units[:, :, ::3] = True
    with torch.no_grad():
        for block in edited.blocks:
            down = block.mlp.out.original_component.weight.T if backend == "bridge" else block.mlp.W_out
            down[::3] = 0
    none = lsn.NeuronSet(("x",), {"mlp": torch.zeros_like(units)})
    with lsn.intervene(model, lsn.NeuronSet(("x",), {"mlp": units})):
        table = lsn.perplexity_table(model, texts(), none, **QUIET)
        counts = lsn.collect(model, texts(), **QUIET).statistics.sums["mlp_pre.positive"]
    expected = lsn.perplexity_table(edited, texts(), none, **QUIET)
    assert table["nll"].tolist() == expected["nll"].tolist()
    assert torch.equal(counts, lsn.collect(edited, texts(), **QUIET).statistics.sums["mlp_pre.positive"])


def tiny(model_type, **sizes):
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, **{**ARCHITECTURES["llama"][1], **special, **sizes}
    )
    config._attn_implementation = "eager"
    return redraw(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", ["olmo", "olmo2", "olmo3"])
def test_queries_that_the_bridge_rotates_into_float32(boot, model_type, dtype):
    """Hugging Face's attention casts them back; so do all passes here, and agree with it to the bit."""
    hf_model = tiny(model_type).to(dtype)
    expected = copy.deepcopy(hf_model)(IDS, use_cache=False).logits
    model = boot(hf_model, dtype=dtype)
    assert torch.equal(forward.logits(model, IDS), expected)
    assert torch.equal(forward.step(model, IDS, torch.ones_like(IDS))[0], expected)
    run = lsn.collect(model, texts(), ["lape", "average_precision"], progress=False)
    assert run.settings["forward"] == {"modules": "lean", "attention": "eager"}


def test_a_hook_point_that_another_component_makes_fire(boot):
    model = boot(tiny("granite", residual_multiplier=0.5))
    names = [f"blocks.{layer}.hook_attn_out" for layer in range(LAYERS)]
    seen = []
    recording = model.hooks(fwd_hooks=[(name, lambda acts, hook: seen.append(acts)) for name in names])
    with forward.lean(model, names), recording:
        forward.hidden_states(model, IDS, None)
    assert len(seen) == LAYERS
    assert forward.lean_is_exact(model, names)
