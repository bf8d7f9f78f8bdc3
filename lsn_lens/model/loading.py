"""Load a model through TransformerLens, unprocessed, and check it before it is returned."""

import contextlib
import copy
import importlib
import json
import logging
import os
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsn_lens.model import gguf_files
from lsn_lens.model.acceptance import check, reference_of
from lsn_lens.model.checkpoints import (
    DEMO_MODEL,
    check_options,
    check_tokenizer,
    dtype_of,
    given,
    in_short,
    place_of,
    read_config,
    read_tokenizer,
    read_weights,
    source_of,
)
from lsn_lens.model.in_memory import taken
from lsn_lens.model.sealing import sealed
from lsn_lens.model.structure import Model

log = logging.getLogger(__name__)


def load_model(
    name: Any,
    tokenizer: Any = None,
    *,
    backend: Literal["auto", "hooked", "bridge"] = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    hf_model: Any = None,
    **options: Any,
) -> Model:
    """Load a model and its tokenizer, unprocessed, and check it against Hugging Face's own logits.

    Nothing is installed, and nothing but the model's own files is downloaded.

    Args:
        name: `"demo"` (the embedded model), a local folder or GGUF file, or a Hub id (a GGUF file in it:
            `gguf_file="..."`); or a Hugging Face model in memory, with its tokenizer. The model is not copied: a bridge
            wraps it in place, in evaluation mode and without gradients. For a PEFT model, a copy with merged adapters
            is used. Weights of a GGUF file are dequantised (extra `[gguf]`), and results say so.
        tokenizer: The tokenizer of a model in memory; otherwise a replacement for the files' tokenizer.
        backend: "hooked" (HookedTransformer, TransformerLens 3.9), "bridge" (TransformerBridge), or "auto": a
            HookedTransformer if the installed TransformerLens can load this model as one that passes the check,
            otherwise a bridge.
        device: The device; by default a GPU if there is one, and under `torchrun` a GPU per process. A model in memory
            stays on its device.
        dtype: The dtype of the weights, as `torch.bfloat16` or "bfloat16"; "auto" is the checkpoint's own. Default:
            float32; for a model in memory, its own dtype.
        revision: Branch, tag or commit of a Hub model.
        hf_model: The model in memory, if `name` is only its name.
        options: Options of `AutoModelForCausalLM.from_pretrained`. Those that locate files or trust their code
            (`trust_remote_code`, `subfolder`, `token`, `cache_dir`, `local_files_only` ...) apply to the tokenizer and
            the configuration too.

    Returns:
        A HookedTransformer or a TransformerBridge, in evaluation mode.

    Raises:
        ValueError: A model that cannot be loaded, lacks weights, has NaN weights, is split over devices, is not a
            decoder, differs from Hugging Face's logits, or lacks ids of its tokenizer; a device that does not exist.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise ValueError(f"backend={backend!r}: expected 'auto', 'hooked' or 'bridge'.")
    check_device(device)
    weights, options = None, {**options, "revision": revision}
    if hf_model is None and isinstance(name, str | Path):
        source, options = gguf_files.located(source_of(name), options)
        with gguf_files.reading(options):
            hf_model, tokenizer, weights = _from_files(source, tokenizer, device, dtype, options)
        name = gguf_files.named(source, options) if weights else name
    else:
        made = taken(name if hf_model is None else hf_model, tokenizer, dtype, options)
        hf_model, source = made[0] if device is None else made[0].to(device), made[1]
        name = name if isinstance(name, str) else source
    check_tokenizer(source, tokenizer, len(hf_model.get_input_embeddings().weight))
    hf_model = _with_finite_masks(hf_model.eval().requires_grad_(False))
    reference = reference_of(hf_model, source)
    if backend != "bridge":
        try:
            model = _hooked_transformer(source, hf_model, tokenizer)
            check(model, reference)
            return labelled(model, name, revision, weights)
        except Exception as error:  # whatever TransformerLens raises for a model it cannot convert
            if backend == "hooked":
                raise ValueError(f"{source!r} cannot be a HookedTransformer: {in_short(error)}") from error
            if not isinstance(error, ImportError):
                log.info("%s: no HookedTransformer (%s), using a TransformerBridge.", source, error)
    model = _bridge(source, hf_model, tokenizer)
    check(model, reference)
    return labelled(model, name, revision, weights)


def _from_files(
    source: str, tokenizer: Any, device: Any, dtype: torch.dtype | str | None, options: dict[str, Any]
) -> tuple[Any, Any, str | None]:
    """The model, on its device, the tokenizer of a checkpoint, and what its weights are if they are not its own."""
    check_options(options)
    if device is not None and options.get("device_map") is not None:
        raise ValueError(f"device={device} and device_map={options['device_map']!r} both say where: give device alone.")
    kind, options = dtype_of(dtype, options), given(options)
    read_config(source, options)
    tokenizer = read_tokenizer(source, options) if tokenizer is None else tokenizer
    hf_model = read_weights(source, kind, options)
    if "device_map" not in options:
        hf_model = hf_model.to(torch.device(device or default_device()))
    return hf_model, tokenizer, gguf_files.weights_of(source, options, place_of(options))


def check_device(device: str | torch.device | None) -> None:
    """Refuse what is no device, and a GPU that does not exist.

    Raises:
        ValueError: The message gives the number of GPUs.
    """
    try:
        wanted = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}: expected a device of PyTorch, as 'cuda', 'cuda:1' or 'cpu'.") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise ValueError(
            f"device={str(device)!r}: PyTorch {torch.__version__} finds {count} GPUs here. Leave device out, or give "
            "device='cpu'."
        )


def default_device() -> torch.device:
    """A GPU if there is one; under `torchrun` the processes of a machine are spread over its GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if rank is None else torch.device("cuda", int(rank) % torch.cuda.device_count())


def skeleton(config: Any, tokenizer: Any = None) -> Model:
    """A TransformerBridge of a Hugging Face configuration without weights: it tells sizes and takes no memory.

    Raises:
        ValueError: TransformerLens cannot wrap the model.
    """
    config, name = copy.deepcopy(config), f"a {config.model_type} configuration"
    config._attn_implementation = "eager"
    config.pad_token_id = None  # otherwise some models look for padding among tokens without values
    with torch.device("meta"):
        hf_model = AutoModelForCausalLM.from_config(config)
    with _fused_without_weights():
        model = _bridge(name, hf_model, tokenizer or AutoTokenizer.from_pretrained(DEMO_MODEL))
    return labelled(model, name, None)


def labelled(model: Model, name: str | Path, revision: str | None, weights: str | None = None) -> Model:
    """Store the source of a model in the model, and what its weights are if they were rounded."""
    source = {"name": Path(name).name if Path(name).exists() else str(name), "revision": revision}
    model.lsn_lens_source = source | ({"weights": weights} if weights else {})
    return model


def _bridge(source: str, hf_model: Any, tokenizer: Any) -> Model:
    """A TransformerBridge around a Hugging Face model."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        with sealed(f"wrapping {source!r}"):
            model = TransformerBridge.boot_transformers(
                source, hf_model=hf_model, tokenizer=_for_transformer_lens(tokenizer), device=hf_model.device,
                dtype=hf_model.dtype,
            )  # fmt: skip
    except Exception as error:  # whatever TransformerLens raises for a model it cannot wrap
        raise ValueError(
            f"{source!r} ({type(hf_model).__name__}) cannot be a TransformerBridge of TransformerLens "
            f"{version('transformer-lens')}: {in_short(error)}"
        ) from error
    return _with_own_tokens(model.eval().requires_grad_(False), tokenizer)


def _hooked_transformer(source: str, hf_model: Any, tokenizer: Any) -> Model:
    """A HookedTransformer from a Hugging Face model, even if TransformerLens does not know its name."""
    # TransformerLens 3.9 only; 4 raises ImportError
    loading_from_pretrained: Any = importlib.import_module("transformer_lens.loading_from_pretrained")
    hooked_transformer: Any = importlib.import_module("transformer_lens").HookedTransformer
    dtype, config = hf_model.dtype, hf_model.config.to_dict()
    config.setdefault("n_ctx", config.get("n_positions"))
    # The converter reads a folder, and guesses the architecture from names such as "llama" in its path.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), sealed(f"converting {source!r}"):
        warnings.simplefilter("ignore", DeprecationWarning)
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        cfg = loading_from_pretrained.get_pretrained_model_config(
            folder, hf_cfg=config, device=str(hf_model.device), dtype=dtype, default_prepend_bos=False
        )
        _correct_heads(cfg, config.get("head_dim"))
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
        cfg.model_name = Path(source).name  # instead of the temporary folder's name
        model = hooked_transformer(cfg, _for_transformer_lens(tokenizer), move_to_device=False)
        _share(model, state)
    model.move_model_modules_to_device()
    model.generation_config = getattr(hf_model, "generation_config", None)  # it has the tokens that end a text
    return _with_own_tokens(model.eval().requires_grad_(False), tokenizer)


def _share(model: Model, state: dict[str, Tensor]) -> None:
    """Make Hugging Face's weights, mostly seen from another side, the HookedTransformer's own: no second copy.

    TransformerLens would copy each, in half precision by way of a float32 copy of all. A weight that two names share,
    as a tied embedding, is copied once: here the names are two weights. A matrix that Hugging Face's model lacks, and
    that is not used, would be what is in memory by chance, and another in each process.
    """
    own, given, taken = model.state_dict(), set(state), set()
    for name, value in model.fill_missing_keys(state).items():
        weight = value.to(own[name].dtype) if name in own else value
        weight = weight.zero_() if "W_" in name and name not in given else weight
        place = (weight.device, weight.data_ptr(), weight.numel())
        state[name] = weight.clone() if place in taken else weight
        taken.add(place)
    model.load_state_dict(state, strict=False, assign=True)


def _correct_heads(cfg: Any, d_head: int | None) -> None:
    """Correct the width of heads, which the converter assumes to be d_model / n_heads."""
    if d_head and cfg.d_head != d_head:
        cfg.rotary_dim = d_head if cfg.rotary_dim == cfg.d_head else cfg.rotary_dim
        cfg.attn_scale = d_head**0.5 if cfg.attn_scale == cfg.d_head**0.5 else cfg.attn_scale
        cfg.d_head = d_head


def _for_transformer_lens(tokenizer: Any) -> Any:
    """A copy of the tokenizer that TransformerLens may change, marked as one that adds a BOS token.

    TransformerLens loads any other tokenizer again by name, from another revision, subfolder or cache. Without an EOS
    token it adds tokens to the vocabulary; otherwise the copy shares the vocabulary, which can take 200 MB.
    """
    copied = (copy.deepcopy if tokenizer.eos_token_id is None else copy.copy)(tokenizer)
    vars(copied).update({name: dict(each) for name, each in vars(copied).items() if isinstance(each, dict)})
    copied.init_kwargs |= {"add_bos_token": True, "name_or_path": copied.name_or_path}  # one made in memory has none
    return copied


def _with_own_tokens(model: Model, tokenizer: Any) -> Model:
    """Restore the tokenizer: TransformerLens invents an EOS token if there is none, which the model never learned."""
    if tokenizer.eos_token_id is None:
        is_property = hasattr(type(model), "tokenizer")  # setting it would add the same tokens again
        setattr(model, "_tokenizer" if is_property else "tokenizer", tokenizer)
    return model


def _with_finite_masks(hf_model: Any) -> Any:
    """Clamp masks of float64 models, whose lowest number becomes -inf in attention's float32 softmax.

    A padding token that attends to no token would otherwise be NaN, and so would every tensor computed from it.
    """
    lowest = torch.finfo(torch.float32).min

    def clamp(value: Any) -> Any:
        is_mask = isinstance(value, Tensor) and value.ndim == 4 and value.dtype == torch.float64
        return value.clamp_min(lowest) if is_mask else value

    def clamp_all(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(map(clamp, args)), {key: clamp(value) for key, value in kwargs.items()}

    for module in hf_model.modules() if hf_model.dtype == torch.float64 else ():
        module.register_forward_pre_hook(clamp_all, with_kwargs=True)
    return hf_model


def _fused_without_weights() -> contextlib.AbstractContextManager[Any]:
    """Let TransformerLens split fused projections without values, since only their sizes are needed."""
    quantization: Any = importlib.import_module("transformer_lens.utilities.quantization")
    return mock.patch.object(quantization, "unreadable_weight_reason", lambda weight: None)
