"""Loading, checking, sites and the lean forward, on tiny random models of real architecture classes."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from conftest import (
    BACKENDS,
    D_MLP,
    HOOKED_LOADS,
    LAYERS,
    PARTS,
    VOCABULARY,
    every_model,
    fused_rows,
    parts,
)
from oracles import assert_close, some_ids
from safetensors.torch import load_file, save_file

import lsn_lens as lsn
from lsn_lens.interventions.intervening import intervention_hooks
from lsn_lens.model import forward, loading, mlps, structure
from lsn_lens.neurons.sites import SITES, get_site

CLASSES = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def variant(tiny_model_folder, tmp_path):
    """`variant(architecture)`: a copy of a tiny model's folder, to be damaged."""
    return lambda architecture="llama": shutil.copytree(tiny_model_folder(architecture), tmp_path / "copy")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# loading


@every_model
def test_logits_equal_hugging_faces(architecture, backend, load, hugging_face):
    model = load(architecture, backend)
    assert type(model).__name__ == CLASSES[backend]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = some_ids(length=20)  # longer than the sliding windows
    expected = hugging_face(architecture)(ids).logits
    assert_close(model(ids), expected)
    assert_close(forward.logits(model, ids), expected)


@pytest.mark.parametrize("architecture", [*PARTS, "mixtral"])
def test_auto_is_hooked_where_that_works(architecture, tiny_model_folder):
    folder = tiny_model_folder(architecture)
    is_hooked = "hooked" in BACKENDS and architecture in (*HOOKED_LOADS, "mixtral")
    assert type(lsn.load_model(folder, device="cpu")).__name__ == CLASSES["hooked" if is_hooked else "bridge"]
    if not is_hooked:
        with pytest.raises(ValueError, match="cannot be a HookedTransformer"):
            lsn.load_model(folder, backend="hooked", device="cpu")


def test_auto_falls_back_where_the_conversion_fails(variant):
    """HookedTransformer takes GPT-2's MLP to be four times as wide as the model."""
    folder = variant("gpt2")
    change_config(folder, n_inner=D_MLP)
    cut = {"c_fc.weight": (slice(None), slice(D_MLP)), "c_fc.bias": slice(D_MLP), "mlp.c_proj.weight": slice(D_MLP)}

    def narrow(weights):
        for name in weights:
            for ending, kept in cut.items():
                if name.endswith(ending):
                    weights[name] = weights[name][kept].contiguous()

    change_weights(folder, narrow)
    model = lsn.load_model(folder, device="cpu")
    assert structure.is_bridge(model)
    assert structure.site_width(model, "mlp_post") == D_MLP
    with pytest.raises(ValueError, match="cannot be a HookedTransformer"):
        lsn.load_model(folder, backend="hooked", device="cpu")


def test_demo(demo):
    assert structure.describe(demo)["name"] == "demo"
    ids = torch.tensor([demo.tokenizer.encode("A small boat on the river")])
    assert forward.hidden_states(demo, ids, None).isfinite().all()
    assert structure.site_width(demo, "mlp_pre") == structure.site_width(demo, "mlp_post")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(backend, dtype, tiny_model_folder):
    model = lsn.load_model(tiny_model_folder("llama"), backend=backend, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.cfg.dtype == dtype
    assert structure.describe(model)["dtype"] == str(dtype).removeprefix("torch.")
    assert model(some_ids()).dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_describe(backend, load, tiny_model_folder):
    folder = tiny_model_folder("qwen2")
    model = lsn.load_model(folder, backend=backend, device=torch.device("cpu"), revision="main")
    told = structure.describe(model)
    assert told["name"] == folder.name
    assert (told["revision"], told["class"], told["dtype"]) == ("main", CLASSES[backend], "float32")
    assert told["layers"] == LAYERS
    assert told["weights_hash"] == structure.describe(load("qwen2", backend))["weights_hash"]
    model.blocks[1].mlp.W_out.data[0, 0] += 1e-6
    assert told["weights_hash"] != structure.describe(model)["weights_hash"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ready_model_can_be_described(backend, load):
    model = load("llama_mha", backend)
    kept = model.lsn_lens_source
    del model.lsn_lens_source
    try:
        assert structure.describe(model)["name"]
    finally:
        model.lsn_lens_source = kept


def test_the_tokenizer_comes_along(load, tiny_model_folder):
    expected = transformers.AutoTokenizer.from_pretrained(tiny_model_folder("llama"))
    for backend in BACKENDS:
        encoded = load("llama", backend).tokenizer("le pont est fermé", add_special_tokens=False)["input_ids"]
        assert encoded == expected("le pont est fermé", add_special_tokens=False)["input_ids"]


# the self-check


def break_conversion(monkeypatch, backend, harm):
    """Let the wrapper come out broken, as a faulty version of TransformerLens would make it."""
    from transformer_lens.model_bridge import TransformerBridge

    owner, name = (loading, "_hooked_transformer") if backend == "hooked" else (TransformerBridge, "boot_transformers")
    convert = getattr(owner, name)

    def broken(*args, **kwargs):
        model = convert(*args, **kwargs)
        harm(model)
        return model

    monkeypatch.setattr(owner, name, broken)


def harm_weight(model):
    model.blocks[1].mlp.W_out.data.mul_(1.1)


def change_weight(model):
    """Not in place: the tensors are Hugging Face's own, of which the bridge is made next."""
    mlp = model.blocks[1].mlp
    mlp.W_out = torch.nn.Parameter(mlp.W_out * 1.1)


def ignore_mask(model):
    forward = model.forward

    def without_mask(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    model.forward = without_mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("harm", "message"), [(harm_weight, "logits differ"), (ignore_mask, "with left padding")])
def test_a_wrong_wrapper_is_caught(backend, harm, message, monkeypatch, tiny_model_folder):
    break_conversion(monkeypatch, backend, harm)
    folder = tiny_model_folder("llama")
    with pytest.raises(ValueError, match=message) as caught:
        lsn.load_model(folder, backend=backend, device="cpu")
    assert folder.name in str(caught.value)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="this TransformerLens has bridges only: nothing to fall back from")
def test_auto_falls_back_from_a_wrong_hooked_transformer(monkeypatch, tiny_model_folder, caplog):
    break_conversion(monkeypatch, "hooked", change_weight)
    with caplog.at_level(logging.INFO, "lsn_lens.model.loading"):
        model = lsn.load_model(tiny_model_folder("llama"), device="cpu")
    assert structure.is_bridge(model)
    assert "logits differ" in caplog.text


# bad input


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "a/b/c"])
def test_not_a_model(name):
    with pytest.raises(ValueError, match=r"could not be loaded. Expected 'demo', a folder") as caught:
        lsn.load_model(name, device="cpu")
    assert repr(name) in str(caught.value)


def test_damaged_folders(variant):
    folder = variant()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:9000])
    with pytest.raises(ValueError, match=r"could not be loaded.*Safetensor"):
        lsn.load_model(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not be loaded"):
        lsn.load_model(folder, device="cpu")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"could not be loaded.*and its tokenizer"):
        lsn.load_model(folder, device="cpu")


def test_a_missing_weight_is_not_made_up(variant):
    folder, name = variant(), "model.layers.1.mlp.down_proj.weight"
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lack the weights.*{name}"):
        lsn.load_model(folder, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(value, variant):
    """Also in the embedding of a token that no check happens to use."""
    folder = variant()

    def harm(weights):
        weights["model.embed_tokens.weight"][VOCABULARY - 1, 3] = value

    change_weights(folder, harm)
    with pytest.raises(ValueError, match=r"copy.*embed_tokens.weight has NaN or infinite"):
        lsn.load_model(folder, device="cpu")


def test_a_dtype_too_small_for_the_weights(variant):
    folder = variant()
    change_weights(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].mul_(1e6))
    with pytest.raises(ValueError, match=r"up_proj.weight has NaN or infinite values as torch.float16"):
        lsn.load_model(folder, device="cpu", dtype=torch.float16)


def test_an_unknown_backend(tiny_model_folder):
    load_model = getattr(lsn.load_model, "__wrapped__", lsn.load_model)  # without the type checker's own refusal
    with pytest.raises(ValueError, match="backend='jax': expected 'auto', 'hooked' or 'bridge'"):
        load_model(tiny_model_folder("llama"), backend="jax")


# sites


def seen_by_hooks(model, ids, names):
    """What hooks at the sites see, by (site, layer), units flat; through `reader`, as statistics see it."""
    seen, hooks = {}, []
    for name in names:
        site, read = structure.reader(model, name)
        for layer in range(model.cfg.n_layers):
            hooks.append((site.hook_name(layer), keep(seen, (name, layer), read)))
    with model.hooks(fwd_hooks=hooks):
        model(ids)
    return seen


def keep(seen, key, read):
    def hook(acts, hook):
        seen[key] = read(acts, key[1]).clone()

    return hook


def seen_by_hugging_face(architecture, hf_model, ids):
    """The same from plain torch hooks on the modules: (part, layer) -> output, and ("o in", ...), ("down in", ...)."""
    seen = {}

    def outputs(key):
        def hook(module, args, output):
            seen[key] = output[0] if isinstance(output, tuple) else output

        return hook

    def inputs(key):
        def hook(module, args):
            seen[key] = args[0]

        return hook

    for layer in range(LAYERS):
        modules = vars(parts(architecture, hf_model, layer))
        for name, module in modules.items():
            module.register_forward_hook(outputs((name, layer)))
        for name in ("o", "down"):
            modules[name].register_forward_pre_hook(inputs((f"{name} in", layer)))
    hf_model(ids)
    return {key: acts.reshape(*ids.shape, -1) for key, acts in seen.items()}


@every_model
def test_sites_are_what_their_names_say(architecture, backend, load, hugging_face):
    model, ids = load(architecture, backend), some_ids()
    theirs = seen_by_hugging_face(architecture, hugging_face(architecture), ids)
    gated = "up" in PARTS[architecture]
    assert structure.is_gated(model) == gated
    meant = {
        "mlp_pre": "gate",
        "mlp_act": "act" if gated else "down in",
        "mlp_post": "down in",
        "z": "o in",
        "attn_out": "attn_out",
        "mlp_out": "mlp_out",
        "resid_post": "block",
        **({"mlp_up": "up"} if gated else {}),
        **({} if "qkv" in PARTS[architecture] else {"q": "q", "k": "k", "v": "v"}),
    }
    ours = seen_by_hooks(model, ids, [*meant, "q", "k", "v"])
    for layer in range(LAYERS):
        for site, part in meant.items():
            assert_close(ours[site, layer], theirs[part, layer])
        if "qkv" in PARTS[architecture]:
            for basis in "qkv":
                units = torch.arange(ours[basis, layer].shape[-1])
                assert_close(ours[basis, layer], theirs["qkv", layer][..., fused_rows(architecture, basis, units)])
    for (site, _), acts in ours.items():
        assert structure.site_width(model, site) == acts.shape[-1]


def test_widths(load):
    for backend in BACKENDS:
        llama = load("llama", backend)
        assert {structure.site_width(llama, name) for name in ("mlp_pre", "mlp_act", "mlp_up", "mlp_post")} == {D_MLP}
        assert {name: structure.site_width(llama, name) for name in "qkvz"} == {"q": 32, "k": 16, "v": 16, "z": 32}
        assert structure.site_width(load("opt", backend), "mlp_pre") == 48
        assert structure.site_width(load("bloom", backend), "mlp_post") == 4 * 32


@every_model
def test_active_in_lape_is_the_gate(architecture, backend, load):
    """`mlp_pre > 0` is `act(gate) > 0`; on gated models it is not `mlp_post > 0`."""
    seen = seen_by_hooks(load(architecture, backend), some_ids(), ("mlp_pre", "mlp_act", "mlp_post"))
    pre, act, post = (
        torch.stack([seen[name, layer] > 0 for layer in range(LAYERS)]) for name in ("mlp_pre", "mlp_act", "mlp_post")
    )
    assert 0.1 < pre.float().mean() < 0.9
    assert torch.equal(pre, act)
    assert torch.equal(pre, post) != ("up" in PARTS[architecture])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixture_of_experts_is_refused_by_name(backend, load):
    model = load("mixtral", backend)
    for name in ("mlp_pre", "mlp_act", "mlp_post"):
        with pytest.raises(ValueError, match=r"mixture of experts \(num_(local_)?experts=4\)") as caught:
            structure.site_width(model, name)
        assert structure.describe(model)["name"] in str(caught.value)
    assert structure.site_width(model, "z") == 32


def test_a_model_without_mlp_is_refused(tmp_path, variant):
    folder = variant()
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = lsn.load_model(folder, device="cpu")
    with pytest.raises(ValueError, match=r"copy has no blocks.0.mlp.hook_p.*Expected a dense MLP"):
        structure.site_width(model, "mlp_pre")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_site_that_computes_something_else_is_refused(backend, load, monkeypatch):
    """As when a version of TransformerLens names another tensor `mlp.hook_pre`."""
    monkeypatch.setattr(mlps, "_candidates", lambda model, layer: [torch.tanh])
    for name in ("mlp_pre", "mlp_post"):
        with pytest.raises(ValueError, match=r"is not act\(hook_pre\) \* hook_pre_linear"):
            structure.site_width(load("llama", backend), name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sites_that_a_model_lacks(backend, load):
    with pytest.raises(ValueError, match=r"has no blocks.0.mlp.hook_pre_linear"):
        structure.site_width(load("gpt2", backend), "mlp_up")
    with pytest.raises(KeyError, match="unknown site 'mlp'; the sites are"):
        structure.site_width(load("gpt2", backend), "mlp")
    with pytest.raises(KeyError, match="mlp_post"):
        get_site("nothing")


# the lean forward

SITES_TO_COUNT = (("mlp_pre",), ("mlp_post", "mlp_up"), ("z", "v"), ("attn_out", "resid_post"), ())


def hook_names(model, sites):
    names = [SITES[site].hook_name(layer) for site in sites for layer in range(model.cfg.n_layers)]
    return [name for name in names if name in model.hook_dict]  # ungated models have no "mlp_up"


@every_model
def test_lean_gives_the_same(architecture, backend, load):
    model, ids = load(architecture, backend), some_ids(length=20)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    kept = mask.bool()
    expected = model(ids, attention_mask=mask)
    hidden = forward.hidden_states(model, ids, mask)
    everything = [name for name in SITES if name != "mlp_act" and hook_names(model, (name,))]
    full = seen_by_names(model, ids, mask, hook_names(model, everything))
    before = modules_of(model)
    for sites in SITES_TO_COUNT:
        names = hook_names(model, sites)
        with forward.lean(model, names) as inside:
            assert inside is model
            assert_close(forward.logits(model, ids, mask)[kept], expected[kept])
            assert_close(forward.hidden_states(model, ids, mask)[kept], hidden[kept])
            for name, acts in seen_by_names(model, ids, mask, names).items():
                assert_close(acts[kept], full[name][kept])
        assert modules_of(model) == before
    assert torch.equal(model(ids, attention_mask=mask), expected)


def seen_by_names(model, ids, mask, names):
    """What each hook sees, each exactly once."""
    seen = {}

    def keep_once(name):
        def hook(acts, hook):
            assert name not in seen
            seen[name] = acts.clone()

        return hook

    with model.hooks(fwd_hooks=[(name, keep_once(name)) for name in names]):
        forward.hidden_states(model, ids, mask)
    assert set(seen) == set(names)
    return seen


def modules_of(model):
    """Which module object is where, and the way attention is computed."""
    implementation = model.original_model.config._attn_implementation if structure.is_bridge(model) else None
    return {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}, implementation


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_lean_drops_what_is_not_needed(architecture, load):
    """Hook points that nobody needs do not fire, and attention runs without its matrix of scores."""
    model, fired = load(architecture, "bridge"), []
    others = [
        f"blocks.{layer}.{hook}"
        for layer in range(LAYERS)
        for hook in ("attn.hook_pattern", "attn.hook_z", "ln2.hook_normalized")
    ]

    def record(acts, hook):
        fired.append(hook.name)

    record.__module__ = "transformer_lens.plumbing"  # a hook that somebody puts on would be needed
    for name in others:
        model.hook_dict[name].add_hook(record, is_permanent=True)
    forward.hidden_states(model, some_ids(), None)
    assert len(fired) == len(others)
    fired.clear()
    with forward.lean(model, hook_names(model, ("mlp_pre",))):
        forward.hidden_states(model, some_ids(), None)
        # sdpa cannot cap attention logits, as Gemma 2 does
        expected = "eager" if architecture == "gemma2" else "sdpa"
        assert model.original_model.config._attn_implementation == expected
    assert not fired
    forward.hidden_states(model, some_ids(), None)
    assert len(fired) == len(others)
    for name in others:
        model.hook_dict[name].fwd_hooks.pop().hook.remove()


def test_lean_restores_after_an_exception(load):
    model = load("llama", "bridge")
    before, expected = modules_of(model), model(some_ids())
    with pytest.raises(RuntimeError, match="inside"), forward.lean(model, hook_names(model, ("mlp_pre",))):
        assert modules_of(model) != before
        raise RuntimeError("inside")
    assert modules_of(model) == before
    with pytest.raises(KeyError), forward.lean(model, ["blocks.0.no_such_hook"]):
        pass
    assert modules_of(model) == before
    assert torch.equal(model(some_ids()), expected)


@every_model
def test_interventions_inside_lean(architecture, backend, load):
    """As evaluation runs them: hooks of an intervention, the rest of the model bare."""
    model, ids = load(architecture, backend), some_ids()
    chances = torch.rand(1, LAYERS, structure.site_width(model, "mlp_post"), generator=torch.Generator().manual_seed(0))
    hooks = intervention_hooks(model, lsn.NeuronSet(("xx",), {"mlp": chances < 0.4}), lsn.zero)
    with model.hooks(fwd_hooks=hooks):
        expected = model(ids)
    with forward.lean(model, [name for name, _ in hooks]), model.hooks(fwd_hooks=hooks):
        assert_close(forward.logits(model, ids), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_left_padding_is_refused_by_the_lean_forward(backend, load):
    """Hugging Face's own modules would count GPT-2's positions from the padding on."""
    model, ids = load("gpt2", backend), some_ids()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for run in (forward.hidden_states, forward.logits):
        with pytest.raises(ValueError, match="expected all padding on the right"):
            run(model, ids, mask)
