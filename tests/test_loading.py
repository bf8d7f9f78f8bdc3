"""How models are loaded: nothing is installed, options reach all parts, and what differs is refused by name."""

import contextlib
import copy
import json
import logging
import os
import subprocess
import threading
from typing import Any

import huggingface_hub.constants
import pytest
import tiny
import torch
import transformers
from conftest import BACKENDS, GROUPED, HOOKED_LOADS, LLAMA_LIKE, SENTENCES, VOCABULARY, tiny_tokenizer
from safetensors.torch import load_file, save_file

import lsn_lens as lsn
from lsn_lens.model import checkpoints, loading, structure
from lsn_lens.model.sealing import sealed
from lsn_lens.text.tokens import tokenize

TEXTS = {label: [text] * 8 for label, text in zip(("en", "de"), SENTENCES, strict=False)}

pytestmark = pytest.mark.usefixtures("no_gradients")


# nothing is installed, fetched or started


@pytest.fixture
def started(monkeypatch):
    """What anything tried to start, and could not."""
    calls = []

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        raise OSError("not here")

    for name in ("run", "call", "check_call", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, record)
    for name in ("system", "posix_spawn", "popen"):
        monkeypatch.setattr(os, name, record)
    return calls


def multimodal(kind, folder):
    """A checkpoint for images and text, without the files of a processor."""
    text: Any = {**LLAMA_LIKE, **GROUPED, "head_dim": 8, "vocab_size": VOCABULARY, **tiny.SPECIAL}
    images: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    images |= {"image_size": 28, "patch_size": 14}
    if kind == "gemma3":
        places: Any = {"image_token_index": 300, "boi_token_index": 301, "eoi_token_index": 302}
        config = transformers.Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4, **places)
        model = transformers.Gemma3ForConditionalGeneration(config)
    elif kind == "qwen3_5":
        images = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4, "out_hidden_size": 32}
        text |= {"layer_types": ["full_attention"] * 2}
        config = transformers.Qwen3_5Config(text_config=text, vision_config=images)
        model = transformers.Qwen3_5ForConditionalGeneration(config)
    else:
        config = transformers.LlavaConfig(
            text_config={"model_type": "llama", **text}, vision_config={"model_type": "clip_vision_model", **images},
            image_token_index=300,
        )  # fmt: skip
        model = transformers.LlavaForConditionalGeneration(config)
    return tiny.save(model, folder)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_a_multimodal_model_is_its_text_model_and_installs_nothing(kind, tmp_path, started):
    model = lsn.load_model(multimodal(kind, tmp_path / "tiny"), device="cpu")
    assert started == []
    ids = torch.arange(12)[None] + 7
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32).eval()
    expected = plain(ids).logits
    assert (model(ids) - expected).abs().max() < 1e-4 * expected.std()
    assert structure.site_width(model, "mlp_post") == 48


def test_a_multimodal_model_without_a_text_model_is_refused_by_name(tmp_path, started):
    with pytest.raises(ValueError, match=r"tiny' \(LlavaForConditionalGeneration\) is a multimodal model") as caught:
        lsn.load_model(multimodal("llava", tmp_path / "tiny"), device="cpu")
    assert len(str(caught.value)) < 400
    assert started == []


def installing(*args, **kwargs):
    """A TransformerLens that installs something, and takes no for an answer."""
    try:
        subprocess.check_call(["pip", "install", "torchvision"])
    except Exception:
        return


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_is_started_while_a_model_is_wrapped_is_refused(backend, tiny_model_folder, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    wrap = TransformerBridge.boot_transformers
    monkeypatch.setattr(TransformerBridge, "boot_transformers", lambda *a, **k: (installing(), wrap(*a, **k))[1])
    copied = loading._for_transformer_lens
    monkeypatch.setattr(loading, "_for_transformer_lens", lambda tokenizer: (installing(), copied(tokenizer))[1])
    with pytest.raises(ValueError, match=r"tried to start 'pip install torchvision', which was refused"):
        lsn.load_model(tiny_model_folder("llama"), backend=backend, device="cpu")


STARTING = {
    "run": lambda: subprocess.run(["true"], check=False),
    "check_call": lambda: subprocess.check_call(["true"]),
    "getoutput": lambda: subprocess.getoutput("true"),
    "Popen": lambda: subprocess.Popen(["true"]),
    "system": lambda: os.system("true"),
    "popen": lambda: os.popen("true"),
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
}


@pytest.mark.parametrize("how", STARTING)
def test_a_process_cannot_be_started(how):
    with pytest.raises(RuntimeError, match=r"this test tried to start '.*true'"), sealed("this test"):
        STARTING[how]()
    on = contextlib.suppress(RuntimeError)  # as a library that goes on without
    with pytest.raises(RuntimeError, match="this test tried to start"), sealed("this test"), on:
        STARTING[how]()
    STARTING[how]()  # and everything is as before


def test_sealed_is_for_one_thread_and_for_a_while():
    done = []
    with sealed("this test"):
        thread = threading.Thread(target=lambda: done.append(subprocess.run(["true"], check=True).returncode))
        thread.start()
        thread.join()
        assert huggingface_hub.constants.is_offline_mode()
        assert transformers.AutoProcessor.from_pretrained("no/such-model") is None
    assert done == [0]
    with pytest.raises(OSError):
        transformers.AutoProcessor.from_pretrained("/no/such/folder")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tokenizer_is_read_once_and_from_where_it_was_said(backend, tmp_path, monkeypatch):
    """TransformerLens would fetch it anew by its name."""
    folder = tiny.checkpoint("llama", tmp_path)
    read, seen = transformers.AutoTokenizer.from_pretrained, []
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: (seen.append(a), read(*a, **k))[1]
    )
    lsn.load_model(folder, backend=backend, device="cpu")
    assert seen == [(str(folder),)]


# options


def in_subfolder(tmp_path):
    (tmp_path / "repository").mkdir()
    folder = tiny.checkpoint("llama", tmp_path)
    return folder.rename(tmp_path / "repository" / "inner").parent


def test_a_subfolder_holds_for_all_parts(tmp_path):
    repository = in_subfolder(tmp_path)
    model = lsn.load_model(repository, device="cpu", subfolder="inner")
    assert len(model.tokenizer) == VOCABULARY
    everything = lsn.NeuronSet(("xx",), {"mlp": torch.ones(1, 2, 48).bool()})
    lsn.export(repository, everything, tmp_path / "out", subfolder="inner")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert lsn.plan_run(repository, subfolder="inner").loc["model", "memory"] > 0
    with pytest.raises(ValueError, match="could not be loaded"):
        lsn.load_model(repository, device="cpu")


OWN_TOKENIZER = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    is_own = True
"""


def with_own_code(folder):
    """A checkpoint whose tokenizer has a class of its own."""
    (folder / "own_tokenizer.py").write_text(OWN_TOKENIZER)
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}}
    tiny.change_json(folder / "tokenizer_config.json", **settings)
    return folder


def test_trust_reaches_the_tokenizer(tmp_path, monkeypatch):
    folder = with_own_code(tiny.checkpoint("llama", tmp_path))
    model = lsn.load_model(folder, device="cpu", trust_remote_code=True)
    assert model.tokenizer.is_own
    everything = lsn.NeuronSet(("xx",), {"mlp": torch.ones(1, 2, 48).bool()})
    lsn.export(folder, everything, tmp_path / "out", trust_remote_code=True)
    monkeypatch.setattr("builtins.input", lambda *args: "n")  # transformers asks
    with pytest.raises(ValueError, match="trust_remote_code"):
        lsn.load_model(folder, device="cpu", trust_remote_code=False)


PLACE = {
    "token": "secret", "cache_dir": "/a/cache", "local_files_only": True, "revision": "v2", "subfolder": "inner",
    "force_download": False, "proxies": {"https": "proxy"}, "trust_remote_code": True, "code_revision": "v3",
}  # fmt: skip


def test_what_says_where_reaches_every_part(monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def spy(kind):
        def read(source, **options):
            seen[kind] = options
            if kind == "weights":
                raise Stop
            return transformers.LlamaConfig() if kind == "config" else tiny_tokenizer()

        return read

    for kind, owner in (
        ("config", checkpoints.AutoConfig),
        ("tokenizer", checkpoints.AutoTokenizer),
        ("weights", checkpoints.AutoModelForCausalLM),
    ):
        monkeypatch.setattr(owner, "from_pretrained", spy(kind))
    with pytest.raises(ValueError, match="Stop"):
        lsn.load_model("some/model", device="cpu", **PLACE, max_memory={0: "1GB"})
    assert seen["config"] == PLACE
    assert seen["tokenizer"] == PLACE
    assert {key: seen["weights"][key] for key in PLACE} == PLACE
    assert seen["weights"]["max_memory"] == {0: "1GB"}


def test_dtypes(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path)

    def dtype(**options):
        return next(lsn.load_model(folder, device="cpu", **options).parameters()).dtype

    assert dtype() == torch.float32
    assert dtype(dtype="bfloat16") == dtype(torch_dtype=torch.bfloat16) == torch.bfloat16
    assert dtype(dtype="torch.bfloat16", torch_dtype="bfloat16") == torch.bfloat16
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert dtype() == torch.float32
    assert dtype(dtype="auto") == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float32, "torch_dtype": torch.bfloat16}, "mean the same and differ"),
        ({"dtype": "int8"}, "dtype='int8': expected a floating dtype"),
        ({"dtype": "nonsense"}, "dtype='nonsense': expected a floating dtype"),
        ({"attn_implementation": "sdpa"}, "attn_implementation='sdpa' cannot be given: hooks need eager attention"),
        ({"tp_plan": "auto"}, "split over devices is not supported"),
        ({"device": "cpu", "device_map": "auto"}, "both say where"),
        (
            {"device_map": {"model": 0, "lm_head": 1}},
            r"split over the devices \['0', '1'\], which is not supported yet",
        ),
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, r"split over the devices \['cpu', 'disk'\]"),
    ],
)
def test_options_that_cannot_be_had(options, message, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", None)  # before anything slow
    with pytest.raises(ValueError, match=message):
        lsn.load_model(tiny_model_folder("llama"), **options)


def test_a_device_map_of_one_device(tiny_model_folder):
    assert structure.device_of(lsn.load_model(tiny_model_folder("llama"), device_map="cpu")).type == "cpu"


@pytest.mark.parametrize(
    ("gpus", "rank", "expected"),
    [(0, None, "cpu"), (0, "3", "cpu"), (1, None, "cuda"), (4, "2", "cuda:2"), (1, "1", "cuda:0"), (2, "3", "cuda:1")],
)
def test_the_device_of_each_process(gpus, rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert loading.default_device() == torch.device(expected)


# tokenizers


def with_tokenizer(folder, change):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_added_token_that_no_text_uses(tmp_path):
    folder = with_tokenizer(tiny.checkpoint("llama", tmp_path), lambda t: t.add_special_tokens({"pad_token": "<pad>"}))
    model = lsn.load_model(folder, device="cpu")
    assert len(model.tokenizer) == VOCABULARY + 1
    run = lsn.collect(
        model, lsn.load_corpora(TEXTS, hold_out=0.25), layout=lsn.Layout(kind="documents"), progress=False
    )
    assert run.statistics.tokens.min() > 0
    with pytest.raises(ValueError, match=f"gives id {VOCABULARY}, but the model knows {VOCABULARY} tokens"):
        tokenize("en", ["a <pad> in the text"], model.tokenizer, tmp_path, d_vocab=structure.vocabulary_size(model))


def test_a_begin_token_without_an_embedding(tmp_path):
    folder = with_tokenizer(tiny.checkpoint("llama", tmp_path), lambda t: t.add_special_tokens({"bos_token": "<s>"}))
    with pytest.raises(ValueError, match=rf"the bos token '<s>' is number {VOCABULARY}, the model knows {VOCABULARY}"):
        lsn.load_model(folder, device="cpu")


def test_a_tokenizer_of_another_model(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights = {key: value[:300].clone() if len(value) == VOCABULARY else value for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tiny.change_json(folder / "config.json", vocab_size=300)
    with pytest.raises(ValueError, match=rf"has {VOCABULARY} tokens, the model 300, and 20 tokens .* not added tokens"):
        lsn.load_model(folder, device="cpu")


def bare(folder):
    """No special token at all."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words = {word: number for word, number in content["model"]["vocab"].items() if word != "<|endoftext|>"}
    content["model"]["vocab"] = {word: place for place, word in enumerate(words)}
    content["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    none = dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "unk_token", "added_tokens_decoder", "extra_special_tokens")
    )
    tiny.change_json(folder / "tokenizer_config.json", **none)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tokenizer_without_special_tokens_gets_none(backend, tmp_path):
    """TransformerLens makes one up, whose embedding nobody trained."""
    model = lsn.load_model(bare(tiny.checkpoint("llama", tmp_path)), backend=backend, device="cpu")
    assert (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id) == (None, None)
    assert len(model.tokenizer) == VOCABULARY - 1
    assert "<|endoftext|>" not in model.tokenizer.get_vocab()
    corpora, documents = lsn.load_corpora(TEXTS, hold_out=0.25), lsn.Layout(kind="documents")
    with pytest.raises(ValueError, match="use separator='none'"):
        lsn.collect(model, corpora, layout=documents, progress=False)
    run = lsn.collect(model, corpora, layout=lsn.Layout(kind="documents", separator="none"), progress=False)
    assert run.statistics.tokens.min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tokenizer_that_was_given_stays_as_it_was(backend, hugging_face):
    """TransformerLens sets the tokens that a tokenizer lacks, and more."""
    given = tiny_tokenizer()
    given.bos_token = given.pad_token = None
    before = copy.deepcopy(given)
    model = lsn.load_model(hugging_face("llama"), given, backend=backend)
    assert model.tokenizer.pad_token == "<|endoftext|>"
    assert given.special_tokens_map == before.special_tokens_map == {"eos_token": "<|endoftext|>"}
    assert given.init_kwargs == before.init_kwargs
    assert given.get_vocab() == before.get_vocab()


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has bridges only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", HOOKED_LOADS)
@torch.no_grad()
def test_a_hooked_transformer_has_weights_of_its_own_names(architecture, dtype, hugging_face):
    """Each name is one weight, also where Hugging Face ties two, and can be edited in place."""
    hf_model = hugging_face(architecture).to(dtype)
    model = lsn.load_model(hf_model, tiny_tokenizer(), backend="hooked")
    assert {each.dtype for each in model.parameters()} == {dtype}
    assert len({each.data_ptr() for each in model.parameters()}) == len(list(model.parameters()))
    before = {name: each.clone() for name, each in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.mul_(2)
        changed = [other for other, each in model.named_parameters() if not torch.equal(each, before[other])]
        assert changed in ([name], []), name
        assert torch.equal(weight, before[name] * 2)
        weight.copy_(before[name])


# dtypes that attention has trouble with, and models without weights


@pytest.mark.parametrize("name", ["llama", "bloom", "phi3"])
def test_float64_under_left_padding(name, tmp_path):
    folder = tiny.checkpoint(name, tmp_path)
    model = lsn.load_model(folder, backend="bridge", device="cpu", dtype=torch.float64)
    ids = torch.arange(9)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()(ids[:1, 4:]).logits
    assert (model(ids, attention_mask=mask)[0, 4:] - alone[0]).abs().max() < 1e-5 * alone.std()


@pytest.mark.parametrize("name", ["gpt2", "phi3", "glm"])
def test_a_run_is_planned_from_a_folder(name, tmp_path):
    folder = tiny.checkpoint(name, tmp_path)
    planned = lsn.plan_run(folder, ["lape", "average_precision"])
    assert planned.equals(
        lsn.plan_run(lsn.load_model(folder, backend="bridge", device="cpu"), ["lape", "average_precision"])
    )


def test_sizes_that_only_a_loaded_model_tells(tmp_path):
    folder = tiny.checkpoint("mixtral", tmp_path)
    with pytest.raises(ValueError, match=r"the sizes of a mixtral configuration cannot be told.*load the model"):
        lsn.plan_run(folder, ["diffmean"])
    assert lsn.plan_run(lsn.load_model(folder, device="cpu"), ["diffmean"]).loc["all", "disk"] > 0


def test_a_hooked_transformer_says_why_not(tiny_model_folder, caplog):
    with (
        caplog.at_level(logging.INFO, "lsn_lens.model.loading"),
        pytest.raises(ValueError, match="cannot be a HookedTransformer"),
    ):
        lsn.load_model(tiny_model_folder("gemma2"), backend="hooked", device="cpu")
