"""Tiny checkpoints of any class of transformers, with random weights large enough that every part matters."""

import json

import torch
import transformers
from conftest import LLAMA_LIKE, VOCABULARY, tiny_tokenizer

SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
HEADS = {"num_attention_heads": 4}
GROUPED = {**HEADS, "num_key_value_heads": 2}
LATENT = {
    **HEADS, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

# name -> model type and sizes
SIZES = {
    "llama": ("llama", {**LLAMA_LIKE, **GROUPED}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "phi3": ("phi3", {**LLAMA_LIKE, **GROUPED}),
    "glm": ("glm", {**LLAMA_LIKE, **GROUPED, "head_dim": 8}),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "arcee": ("arcee", {**LLAMA_LIKE, **GROUPED}),
    "starcoder2": ("starcoder2", {**LLAMA_LIKE, **GROUPED}),
    "apertus": ("apertus", {**LLAMA_LIKE, **GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "lfm2": (
        "lfm2",
        {**LLAMA_LIKE, **GROUPED, "layer_types": ["full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    ),
    "bitnet": ("bitnet", {**LLAMA_LIKE, **GROUPED}),
    "modernbert": ("modernbert-decoder", {**LLAMA_LIKE, **HEADS, "global_attn_every_n_layers": 1}),
    "bert": ("bert", {**LLAMA_LIKE, **HEADS}),
    "falcon_alibi": (
        "falcon",
        {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon_40b": ("falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        {
            **LLAMA_LIKE, **LATENT, **EXPERTS, "mlp_layer_types": ["dense", "dense"], "index_topk": 8,
            "index_n_heads": 2, "index_head_dim": 8,
        },
    ),
    "deepseek_v3": ("deepseek_v3", {**LLAMA_LIKE, **LATENT, **EXPERTS, "first_k_dense_replace": 2}),
    "qwen3_5": ("qwen3_5_text", {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "layer_types": ["full_attention"] * 2}),
    "mixtral": ("mixtral", {**LLAMA_LIKE, **GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **LLAMA_LIKE, **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "olmoe": ("olmoe", {**LLAMA_LIKE, **GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "nemotron_h": (
        "nemotron_h",
        {
            **LLAMA_LIKE, **GROUPED, "num_hidden_layers": 3, "layers_block_type": ["mamba", "mlp", "attention"],
            "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **LLAMA_LIKE, **GROUPED, "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16,
            "mamba_n_groups": 1, "mamba_d_state": 8, "num_local_experts": 0, "num_experts_per_tok": 0,
            "shared_intermediate_size": 48, "position_embedding_type": None,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **LLAMA_LIKE, **GROUPED, "num_hidden_layers": 3, "lru_width": 32, "head_dim": 8,
            "attention_window_size": 16, "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}),
    "persimmon": ("persimmon", {**LLAMA_LIKE, **HEADS}),
    "t5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
    "mt5": ("mt5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
    "bart": ("bart", SEQ2SEQ),
    "mbart": ("mbart", SEQ2SEQ),
}  # fmt: skip


@torch.no_grad()
def redraw(model):
    """Random weights, all of which matter."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.eval().parameters():
        noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weight.add_(0.2 * noise) if weight.ndim == 1 else weight.copy_(0.25 * noise)
    return model


def save(model, folder, tokenizer=None):
    """Random weights into a model, and the model into a folder."""
    redraw(model).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def checkpoint(name, parent, **changes):
    """The folder of a model of `SIZES`. Its name says nothing: TransformerLens guesses from names such as "llama"."""
    model_type, sizes = SIZES[name]
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **SPECIAL, **{**sizes, **changes})
    is_seq2seq = getattr(config, "is_encoder_decoder", False)
    kind = transformers.AutoModelForSeq2SeqLM if is_seq2seq else transformers.AutoModelForCausalLM
    return save(kind.from_config(config), parent / f"tiny-{list(SIZES).index(name)}")


def change_json(path, **values):
    """Set fields of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
