"""Read a Hugging Face checkpoint: configuration, tokenizer and weights, whole and from one place."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lsn_lens.model import gguf_files

DEMO_MODEL = Path(__file__).parents[1] / "demo"
# options of `from_pretrained` that say where files are and whether their code is trusted: all parts need them
PLACE = (
    "cache_dir", "code_revision", "force_download", "gguf_file", "local_files_only", "proxies", "revision", "subfolder",
    "token", "trust_remote_code",
)  # fmt: skip
OURS = {
    "attn_implementation": "hooks need eager attention, which is what load_model takes",
    "output_loading_info": "load_model reads it itself",
    "tp_plan": "a model that is split over devices is not supported; give device=",
    "tp_size": "a model that is split over devices is not supported; give device=",
    "device_mesh": "a model that is split over devices is not supported; give device=",
    "distributed_config": "a model that is split over devices is not supported; give device=",
}
SHOWN = 200  # characters shown of either end of another library's error, since some list all known models


def source_of(name: str | Path) -> str:
    """The name or path for transformers of the model that `load_model` calls `name`."""
    return str(DEMO_MODEL) if str(name) == "demo" else str(name)


def place_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the tokenizer and the configuration need too."""
    return given({key: options.get(key) for key in PLACE})


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def in_short(error: BaseException) -> str:
    """An error's class, and both ends of its message."""
    text = re.sub(r"\[[^]]{99,}\]", "[...]", " ".join(str(error).split()))
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return f"{type(error).__name__}: {text}"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that `load_model` sets itself.

    Raises:
        ValueError: One of these options is given.
    """
    for key, why in OURS.items():
        if options.get(key) is not None:
            raise ValueError(f"{key}={options[key]!r} cannot be given: {why}.")


def dtype_of(dtype: torch.dtype | str | None, options: Mapping[str, Any]) -> torch.dtype | str:
    """The requested dtype (default float32): a `torch.dtype`, or "auto" for the checkpoint's own.

    The option `torch_dtype` is the older name in transformers.

    Raises:
        ValueError: Two dtypes that differ, or a dtype that weights cannot have.
    """
    asked = [_dtype(each) for each in (dtype, options.get("torch_dtype")) if each is not None]
    if len(set(asked)) > 1:
        raise ValueError(f"dtype={dtype} and torch_dtype={options['torch_dtype']} mean the same and differ: give one.")
    return asked[0] if asked else torch.float32


def _dtype(value: torch.dtype | str) -> torch.dtype | str:
    if value == "auto":
        return "auto"
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={value!r}: expected a floating dtype, as torch.bfloat16 or 'bfloat16', or 'auto'.")
    return dtype


def read_config(source: str, options: Mapping[str, Any]) -> Any:
    """The configuration of a causal language model.

    Raises:
        ValueError: The configuration cannot be read, or belongs to another kind of model; a GGUF file that cannot be
            read.
    """
    gguf_files.check_readable(source, options)
    named = options.get("config") or source  # a configuration, or its path
    try:
        is_place = isinstance(named, str | os.PathLike)
        config: Any = AutoConfig.from_pretrained(named, **place_of(options)) if is_place else named
    except Exception as error:  # damaged files raise errors of many classes
        raise _not_loaded(source, error) from error
    check_config(config, source)
    return config


def check_config(config: Any, source: str) -> None:
    """Require a decoder that transformers knows as a causal language model.

    Raises:
        ValueError: The model is another kind of model.
    """
    kind = f"{source!r} ({', '.join(config.architectures or []) or config.model_type})"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder; expected a decoder, which reads and writes one text.")
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not remote:
        parts = [each for each in ("vision_config", "audio_config") if getattr(config, each, None) is not None]
        why = "a multimodal model whose text model transformers does not load by itself" if parts else "no such model"
        raise ValueError(f"{kind} is {why}; expected a causal language model that AutoModelForCausalLM knows.")


def read_tokenizer(source: str, options: Mapping[str, Any]) -> Any:
    """Read the tokenizer from the source of the weights.

    Raises:
        ValueError: The tokenizer cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(source, **place_of(options))
    except Exception as error:  # damaged files raise errors of many classes
        raise _not_loaded(source, error) from error


def read_weights(
    source: str, dtype: torch.dtype | str, options: Mapping[str, Any], attention: str | None = "eager"
) -> Any:
    """Read the Hugging Face model, and check that its weights are complete, finite and on one device.

    Raises:
        ValueError: The model cannot be read, or a check fails.
    """
    _check_one_device(source, options.get("device_map"))
    rest = {key: value for key, value in options.items() if key != "torch_dtype"}
    try:
        # without safetensors files, transformers would ask a service to write them into the hub's repository
        with mock.patch.dict(os.environ, DISABLE_SAFETENSORS_CONVERSION="1"), gguf_files.reading(rest):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation=attention, output_loading_info=True,
                **gguf_files.dequantised(rest),
            )  # fmt: skip
    except Exception as error:  # damaged files raise errors of many classes
        raise _not_loaded(source, error) from error
    hf_model, report = loaded
    if report["missing_keys"]:  # transformers would go on with random numbers
        raise ValueError(f"{source!r}: its files lack the weights {sorted(report['missing_keys'])}.")
    check_finite(source, hf_model)
    # a GGUF file does not name its class, which TransformerLens goes by
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    return hf_model


def check_finite(source: str, hf_model: Any) -> None:
    """Refuse weights that are not finite, and a model that is split over devices.

    Raises:
        ValueError: The message names a weight, or the devices.
    """
    _check_one_device(source, getattr(hf_model, "hf_device_map", None))
    for name, parameter in hf_model.named_parameters():
        ends = parameter.detach().aminmax() if parameter.numel() else ()  # unlike isfinite(), it makes no tensors
        if not all(bool(each.isfinite()) for each in ends):
            raise ValueError(f"{source!r}: weight {name} has NaN or infinite values as {parameter.dtype}.")


def check_tokenizer(source: str, tokenizer: Any, vocabulary: int) -> None:
    """Check that every token but added tokens has an embedding; `tokenize` refuses texts with tokens that have none.

    Raises:
        ValueError: A token without an embedding is not an added token.
    """
    for kind in ("bos", "eos"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None and number >= vocabulary:
            raise ValueError(
                f"{source!r}: the {kind} token {getattr(tokenizer, f'{kind}_token')!r} is number {number}, the model "
                f"knows {vocabulary} tokens: no text can begin with it. Tokenizer and model do not belong together."
            )
    added = set(tokenizer.get_added_vocab())
    without = [token for token, number in tokenizer.get_vocab().items() if number >= vocabulary and token not in added]
    if without:
        raise ValueError(
            f"{source!r}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}, and {len(without)} tokens "
            f"without an embedding are not added tokens, as {without[0]!r}. Tokenizer and model do not belong together."
        )


def _check_one_device(source: str, device_map: Any) -> None:
    devices = sorted({str(each) for each in device_map.values()}) if isinstance(device_map, Mapping) else []
    if len(devices) > 1 or {"disk", "meta"} & set(devices):
        raise ValueError(
            f"{source!r} would be split over the devices {devices}, which is not supported yet: load it on one, for "
            'example device="cuda:0", and in half precision if it is too large for it.'
        )


def _not_loaded(source: str, error: Exception) -> ValueError:
    return ValueError(
        f"{source!r} could not be loaded. Expected 'demo', a folder with a Hugging Face causal language model and "
        f"its tokenizer, or a Hub id that can be reached from here. {in_short(error)}"
    )
