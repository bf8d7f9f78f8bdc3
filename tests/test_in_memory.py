"""Models that are in memory already."""

import copy
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
import transformers
from conftest import BACKENDS, tiny_tokenizer

import lsn_lens as lsn
from lsn_lens.model import structure

IDS = torch.arange(9)[None]
TEXTS = {"en": ["The river is high."] * 3, "fr": ["La rivière est haute."] * 3}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_in_memory_is_its_checkpoint(hugging_face, load, backend):
    in_memory = lsn.load_model(hugging_face("llama"), tiny_tokenizer(), backend=backend)
    from_files = load("llama", backend)
    with torch.no_grad():
        assert torch.equal(in_memory(IDS), from_files(IDS))
    told, expected = structure.describe(in_memory), structure.describe(from_files)
    assert told == expected
    sums = [
        lsn.collect(each, lsn.load_corpora(TEXTS), progress=False).statistics.sums for each in (in_memory, from_files)
    ]
    assert all(torch.equal(sums[0][key], sums[1][key]) for key in sums[0])


def test_a_name_for_it_and_another_dtype(hugging_face):
    model = lsn.load_model("mine", hf_model=hugging_face("gpt2"), tokenizer=tiny_tokenizer(), dtype="bfloat16")
    told = structure.describe(model)
    assert (told["name"], told["dtype"]) == ("mine", "bfloat16")
    assert structure.describe(lsn.load_model(hugging_face("gpt2").double(), tiny_tokenizer()))["dtype"] == "float64"


class Adapted(torch.nn.Module):
    """Looks like a PEFT model: an adapter beside a model, which `merge_and_unload` adds to its weights."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config
        self.peft_config = {"default": SimpleNamespace(peft_type="LORA")}
        self.delta = torch.nn.Parameter(torch.full((), 0.5))

    def merge_and_unload(self):
        with torch.no_grad():
            self.model.lm_head.weight += self.delta
        return self.model


def lora(hf_model):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(hf_model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return adapted


@pytest.mark.parametrize("adapt", [Adapted, lora])
@torch.no_grad()
def test_adapters_are_merged_into_a_copy(hugging_face, adapt):
    adapted, plain = adapt(hugging_face("llama")), hugging_face("llama")(IDS).logits
    before = copy.deepcopy(adapted)
    expected = copy.deepcopy(adapted).merge_and_unload()(IDS).logits
    assert (expected - plain).abs().max() > 0.1
    model = lsn.load_model(adapted, tiny_tokenizer(), backend="bridge")
    assert torch.allclose(model(IDS), expected, atol=1e-4)
    assert structure.describe(model)["name"].endswith(" with LORA merged")
    assert all(map(torch.equal, adapted.state_dict().values(), before.state_dict().values()))


def test_what_cannot_be_taken_is_said_in_short(hugging_face, tiny_model_folder, monkeypatch):
    model, tokenizer = hugging_face("llama"), tiny_tokenizer()
    prompted = copy.deepcopy(model)
    prompted.peft_config = {"default": SimpleNamespace(peft_type="PROMPT_TUNING")}
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[3] = torch.nan
    wrapped = copy.deepcopy(model)
    lsn.load_model(wrapped, tokenizer, backend="bridge")
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    for arguments, options, said in (
        ((model,), {}, r"its tokenizer is missing.*load_model\(model, tokenizer\)"),
        ((model, "gpt2"), {}, "its tokenizer is a str"),
        (("mine",), {"hf_model": model}, "its tokenizer is missing"),
        ((torch.nn.Linear(2, 2), tokenizer), {}, "the model is a Linear"),
        ((3, tokenizer), {}, "the model is a int"),
        ((model, tokenizer), {"trust_remote_code": True, "revision": "main"}, "'revision', 'trust_remote_code'"),
        ((model.model, tokenizer), {}, "no head that gives logits"),
        ((prompted, tokenizer), {}, r"adapters \(PROMPT_TUNING\) that cannot be merged"),
        ((broken, tokenizer), {}, "lm_head.weight has NaN"),
        ((wrapped, tokenizer), {}, "wrapped by a TransformerBridge already"),
        ((t5, tokenizer), {}, "is an encoder-decoder"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            lsn.load_model(*arguments, **options)
        assert len(str(caught.value)) < 320
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked before
    with pytest.raises(ValueError, match=r"the name or folder that load_model got.*LlamaForCausalLM"):
        lsn.export(model, lsn.NeuronSet(("en",), {"mlp": torch.zeros(1, 2, 48, dtype=torch.bool)}), tiny_model_folder)


def test_a_gpu_that_there_is_not(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda': PyTorch .* finds 0 GPUs here"):
        lsn.load_model(tiny_model_folder("llama"), device="cuda")
