"""GGUF files: a tiny one is written here, and its model is the one of its dequantised weights."""

import importlib.util
import json

import pytest
import torch
import transformers
from conftest import BACKENDS, SENTENCES, VOCABULARY, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.model import checkpoints, gguf_files

gguf = pytest.importorskip("gguf")
Q8, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    """As llama.cpp calls a weight of Qwen 2, the one architecture here whose weights it does not also change."""
    *path, part, kind = name.split(".")
    layer = f"blk.{path[2]}." if "layers" in path else ""
    return f"{layer}{NAMES[part]}.{kind}"


def write(path, hf_model, quantised, file_type=gguf.LlamaFileType.MOSTLY_Q8_0):
    """Write the model and the tiny tokenizer; give the weights that a reader should get."""
    writer, config = gguf.GGUFWriter(path, "qwen2"), hf_model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if file_type is not None:
        writer.add_file_type(file_type)
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))  # the first is a control token
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    expected = {}
    for name, weight in hf_model.state_dict().items():
        values = weight.numpy()
        if quantised and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            blocks = gguf.quantize(values, Q8)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=Q8)
            values = gguf.dequantize(blocks, Q8)
        else:
            writer.add_tensor(gguf_name(name), values)
        expected[name] = torch.tensor(values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def written(hugging_face, tmp_path_factory):
    """A folder with `q8.gguf`, and the Hugging Face model of its dequantised weights."""
    folder, hf_model = tmp_path_factory.mktemp("files"), hugging_face("qwen2")
    before = hf_model.lm_head.weight.clone()
    hf_model.load_state_dict(write(folder / "q8.gguf", hf_model, quantised=True))
    assert not torch.equal(before, hf_model.lm_head.weight)
    return folder, hf_model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by_option", [False, True])
@torch.no_grad()
def test_a_gguf_file_is_the_model_of_its_dequantised_weights(backend, by_option, written):
    folder, expected = written
    place = ((folder,), {"gguf_file": "q8.gguf"}) if by_option else ((folder / "q8.gguf",), {})
    model = lsn.load_model(*place[0], backend=backend, device="cpu", **place[1])
    ids = model.tokenizer(SENTENCES[1], return_tensors="pt").input_ids
    assert torch.equal(ids, tiny_tokenizer()(SENTENCES[1], return_tensors="pt").input_ids)
    logits = expected(ids).logits
    assert (model(ids) - logits).abs().max() < 1e-4 * logits.std()
    assert (model.tokenizer.eos_token_id, model.tokenizer.bos_token_id) == (0, 0)
    if backend == "bridge":
        weights = model.original_model.state_dict()
        given = {name.replace("._original_component", ""): each for name, each in weights.items()}
        assert all(torch.equal(given[name], each) for name, each in expected.state_dict().items())


def test_a_result_says_that_weights_were_dequantised(written):
    folder, hf_model = written
    model = lsn.load_model(folder / "q8.gguf", device="cpu")
    corpora = lsn.load_corpora({"en": [SENTENCES[0]] * 3, "de": [SENTENCES[1]] * 3}, hold_out=0.0)
    run = lsn.collect(model, corpora, progress=False)
    size = sum(each.numel() for each in hf_model.parameters())
    share = sum(each.numel() for each in hf_model.parameters() if each.ndim == 2 and each.shape[1] == 32) / size
    said = f"GGUF Q8_0 ({share:.0%} Q8_0, {1 - share:.0%} F32), dequantised"
    assert run.settings["model"]["weights"] == lsn.detect(run, "lape").origin["weights"] == said
    assert run.settings["model"]["name"] == "q8.gguf"


def test_plain_numbers_are_not_called_dequantised(hugging_face, tmp_path):
    write(tmp_path / "plain.gguf", hugging_face("qwen2"), quantised=False, file_type=None)
    said = lsn.load_model(tmp_path / "plain.gguf", device="cpu").lsn_lens_source["weights"]
    assert said == "GGUF of no stated type (100% F32)"


def test_a_gguf_file_is_planned_and_exported(written, tmp_path, tiny_model_folder):
    folder, hf_model = written
    assert lsn.plan_run(folder / "q8.gguf").equals(lsn.plan_run(tiny_model_folder("qwen2")))
    mask = torch.zeros(1, 2, 48).bool()
    mask[0, 1, 5] = True
    lsn.export(folder / "q8.gguf", lsn.NeuronSet(("xx",), {"mlp": mask}), tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not again.config.to_dict().get("quantization_config")
    down = hf_model.model.layers[1].mlp.down_proj.weight.detach().clone()
    down[:, 5] = 0
    assert torch.equal(again.model.layers[1].mlp.down_proj.weight, down)


def test_the_file_is_parsed_once(written, monkeypatch):
    parsed, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: (parsed.append(path), reader(path))[1])
    lsn.load_model(written[0] / "q8.gguf", device="cpu")
    assert len(parsed) == 1


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("none.gguf", {}, r"none.gguf': there is no such file.*gguf_file='none.gguf'\)"),
        ("q8.gguf", {"gguf_file": "q8.gguf"}, "both name a GGUF file"),
        ("q8.gguf", {"quantization_config": {}}, "are dequantised; quantization_config cannot be given"),
    ],
)
def test_what_is_refused(name, options, said, written):
    with pytest.raises(ValueError, match=said):
        lsn.load_model(written[0] / name, device="cpu", **options)


def test_without_its_reader_nothing_is_installed(written, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    monkeypatch.setattr(checkpoints, "AutoConfig", None)  # before anything is read
    said = r"to read 'q8.gguf', the package gguf is missing. pip install 'lsn-lens\[gguf\]'"
    with pytest.raises(ValueError, match=said):
        lsn.load_model(written[0] / "q8.gguf", device="cpu")
