"""Tiny random models of real architecture classes, and the embedded model, for all tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads only wait, and tests run side by side

import copy
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from planted_world import ground, planted, ungated, world  # noqa: F401 - fixtures for all tests
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import lsn_lens as lsn

try:
    from transformer_lens import HookedTransformer  # noqa: F401

    BACKENDS = ("hooked", "bridge")
except ImportError:  # TransformerLens 4 has bridges only
    BACKENDS = ("bridge",)

SENTENCES = (
    "The river is high after the rain, and the bridge is closed.",
    "Der Fluss steht nach dem Regen hoch, und die Brücke ist gesperrt.",
    "La rivière est haute après la pluie et le pont est fermé.",
    "雨后河水上涨桥已经关闭。",
)
VOCABULARY = 320
D_MODEL, D_MLP, LAYERS = 32, 48, 2

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA_LIKE = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
}
# the model type in transformers, and the sizes of a tiny model of it
ARCHITECTURES = {
    "llama": ("llama", {**LLAMA_LIKE, **GROUPED}),
    "llama_mha": ("llama", {**LLAMA_LIKE, "num_attention_heads": 4}),
    "mistral": ("mistral", {**LLAMA_LIKE, **GROUPED, "sliding_window": 6}),
    "qwen2": ("qwen2", {**LLAMA_LIKE, **GROUPED}),
    "gemma2": ("gemma2", {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "sliding_window": 6}),
    "gpt2": ("gpt2", {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}),
    "bloom": ("bloom", {"hidden_size": D_MODEL, "n_layer": LAYERS, "n_head": 4}),
    "opt": (
        "opt",
        {
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": D_MODEL,
            "ffn_dim": D_MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "neox": ("gpt_neox", {**LLAMA_LIKE, "num_attention_heads": 4}),
    "mixtral": ("mixtral", {**LLAMA_LIKE, **GROUPED, "num_local_experts": 4}),
}


# where the layers and their modules are; "qkv" stands for one fused projection
LLAMA_PARTS = {
    "layers": "model.layers",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "act": "mlp.act_fn",
    "down": "mlp.down_proj",
    "attn_out": "self_attn.o_proj",
    "mlp_out": "mlp.down_proj",
}
NEOX_PARTS = {
    "layers": "gpt_neox.layers",
    "qkv": "attention.query_key_value",
    "o": "attention.dense",
    "gate": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "attn_out": "attention.dense",
    "mlp_out": "mlp.dense_4h_to_h",
}
PARTS = {
    "llama": LLAMA_PARTS,
    "llama_mha": LLAMA_PARTS,
    "mistral": LLAMA_PARTS,
    "qwen2": LLAMA_PARTS,
    "gemma2": {
        **LLAMA_PARTS,
        "attn_out": "post_attention_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    },
    "neox": NEOX_PARTS,
    "bloom": {
        **NEOX_PARTS,
        "layers": "transformer.h",
        "qkv": "self_attention.query_key_value",
        "o": "self_attention.dense",
        "attn_out": "self_attention.dense",
    },
    "gpt2": {
        "layers": "transformer.h",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "gate": "mlp.c_fc",
        "down": "mlp.c_proj",
        "attn_out": "attn.c_proj",
        "mlp_out": "mlp.c_proj",
    },
    "opt": {
        "layers": "model.decoder.layers",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "gate": "fc1",
        "down": "fc2",
        "attn_out": "self_attn.out_proj",
        "mlp_out": "fc2",
    },
}


# what HookedTransformer can be made from; the others are bridges in every version
HOOKED_LOADS = ("llama", "llama_mha", "mistral", "qwen2", "gpt2", "bloom", "opt", "neox")
every_model = pytest.mark.parametrize(
    ("architecture", "backend"),
    [(each, backend) for each in PARTS for backend in BACKENDS if backend == "bridge" or each in HOOKED_LOADS],
)


def experiment(name):
    """A script of `experiments/` as a module."""
    spec = importlib.util.spec_from_file_location(
        f"{name}_script", Path(__file__).parents[1] / "experiments" / f"{name}.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(script, **settings):
    """What a script ends with where its settings cannot be meant."""
    with pytest.raises(SystemExit) as stopped:
        script.main(lambda: script.Config(**settings), script.prepare, script.report)
    said = str(stopped.value)
    assert "\n" not in said
    return said


def page_of(study):
    """A study's page, where the provenance has settings of the caller's own."""
    origin = lsn.report.provenance(study.used, study.measured, {"note": "of my own"}, study.started)
    return type(study).page(study, origin)


def parts(architecture, hf_model, layer):
    """The Hugging Face modules of one layer, by the names of `PARTS`; `block` is the layer itself."""
    paths = dict(PARTS[architecture])
    block = hf_model.get_submodule(paths.pop("layers"))[layer]
    modules = {name: block.get_submodule(path) for name, path in paths.items()}
    up = {"mlp_up": modules["up"]} if "up" in modules else {}
    return SimpleNamespace(block=block, **modules, mlp_pre=modules["gate"], **up)


def fused_rows(architecture, basis, units):
    """Which outputs of a fused projection are the units of "q", "k" or "v"."""
    place, d_head = "qkv".index(basis), D_MODEL // 4
    if architecture == "gpt2":  # all queries, all keys, all values
        return place * D_MODEL + units
    return (units // d_head) * 3 * d_head + place * d_head + units % d_head  # head by head


def tiny_tokenizer():
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, trained on `SENTENCES`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@torch.no_grad()
def tiny_model(architecture):
    """A Hugging Face model with random weights large enough that every nonlinearity is used."""
    model_type, sizes = ARCHITECTURES[architecture]
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **special, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1:  # norms keep their ones, biases stop being zero
            weight.add_(0.2 * noise)
        else:
            weight.copy_(0.25 * noise)
    return model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """`tiny_model_folder(architecture)`: the folder of a saved tiny model and its tokenizer."""

    @cache
    def build(architecture):
        # TransformerLens guesses from names such as "llama" in a path: keep them out of it
        folder = tmp_path_factory.mktemp("tiny") / f"model-{list(ARCHITECTURES).index(architecture)}"
        tiny_model(architecture).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def hugging_face(tiny_model_folder):
    """`hugging_face(architecture)`: a fresh Hugging Face model, free to be edited."""

    @cache
    def original(architecture):
        return transformers.AutoModelForCausalLM.from_pretrained(
            tiny_model_folder(architecture), dtype=torch.float32, attn_implementation="eager"
        ).eval()

    return lambda architecture: copy.deepcopy(original(architecture))


@pytest.fixture(scope="session")
def load(tiny_model_folder):
    """`load(architecture, backend)`: the tiny model through `lsn.load_model`, loaded once."""

    @cache
    def build(architecture, backend="auto"):
        return lsn.load_model(tiny_model_folder(architecture), backend=backend, device="cpu")

    return build


@pytest.fixture
def no_gradients():
    """For a whole file: `pytestmark = pytest.mark.usefixtures("no_gradients")`."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session", params=BACKENDS)
def demo(request):
    """The embedded model, once for each backend."""
    return lsn.load_model("demo", backend=request.param, device="cpu")
