"""Load a model, and check that it computes what Hugging Face computes.

A *model* is an unwrapped `HookedTransformer` (TransformerLens 3.9) or `TransformerBridge` (3.9 and 4.x).
Weights are never processed: folding and centring change what several methods measure.
"""

import hashlib
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.activations import ACT2FN

from lsn_lens.hooks import set_aside
from lsn_lens.sites import SITES, Site, flat, get_site

DEMO_MODEL = Path(__file__).parent / "demo"
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-4}  # of the logits' standard deviation
HALF_TOLERANCE = 0.1

log = logging.getLogger(__name__)
Model = Any


def load_model(
    name: str | Path,
    *,
    backend: Literal["auto", "hooked", "bridge"] = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    **options: Any,
) -> Model:
    """Load a model and its tokenizer, unprocessed, and check it against Hugging Face's own logits.

    Args:
        name: `"demo"` (the embedded model), a local folder, or a Hub id.
        backend: "hooked" (HookedTransformer, TransformerLens 3.9), "bridge" (TransformerBridge), or "auto":
            a HookedTransformer where the installed TransformerLens has one that can load this model
            and passes the check, else a bridge.
        device: Where to; a GPU if there is one.
        dtype: Of the weights.
        revision: Branch, tag or commit of a Hub model.
        options: For `AutoModelForCausalLM.from_pretrained` (for example `trust_remote_code=True`).

    Returns:
        A HookedTransformer or a TransformerBridge, in evaluation mode.

    Raises:
        ValueError: A model that cannot be loaded, lacks weights or has NaN among them, disagrees with
            Hugging Face, or whose tokenizer has ids that the model lacks.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise ValueError(f"backend={backend!r}: expected 'auto', 'hooked' or 'bridge'.")
    source = str(DEMO_MODEL) if str(name) == "demo" else str(name)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hf_model, tokenizer = _hugging_face(source, revision, dtype, options)
    hf_model = hf_model.to(device).eval().requires_grad_(False)
    expected = _probe_logits(hf_model, source)
    if backend != "bridge":
        try:
            model = _hooked_transformer(source, hf_model, tokenizer, device, dtype)
            _check_logits(model, expected, source)
            return _labelled(model, name, revision)
        except Exception as error:  # whatever TransformerLens raises for a model it cannot convert
            if backend == "hooked":
                raise ValueError(f"{source!r} cannot be a HookedTransformer: {error}") from error
            if not isinstance(error, ImportError):
                log.info("%s: no HookedTransformer (%s), using a TransformerBridge.", source, error)
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        source, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
    )
    model.eval().requires_grad_(False)
    _check_logits(model, expected, source)
    return _labelled(model, name, revision)


def skeleton(config: Any, tokenizer: Any = None) -> Model:
    """A TransformerBridge of a Hugging Face configuration without any weights: for sizes, in no memory."""
    from transformer_lens.model_bridge import TransformerBridge

    config._attn_implementation = "eager"
    with torch.device("meta"):
        hf_model = AutoModelForCausalLM.from_config(config)
    model = TransformerBridge.boot_transformers(
        config.model_type, hf_model=hf_model, tokenizer=tokenizer or AutoTokenizer.from_pretrained(DEMO_MODEL),
        device="meta",
    )  # fmt: skip
    return _labelled(model, config.model_type, None)


def _hugging_face(source: str, revision: str | None, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer; the weights are whole, finite, and enough for the tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options
        )
    except Exception as error:  # damaged files raise errors of many classes
        raise ValueError(
            f"{source!r} could not be loaded. Expected 'demo', a folder with a Hugging Face causal language model and "
            f"its tokenizer, or a Hub id that can be reached from here. {type(error).__name__}: {error}"
        ) from error
    hf_model, report = loaded
    if report["missing_keys"]:  # transformers would go on with random numbers
        raise ValueError(f"{source!r}: its files lack the weights {sorted(report['missing_keys'])}.")
    for name, parameter in hf_model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{source!r}: weight {name} has NaN or infinite values as {dtype}.")
    vocabulary = hf_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{source!r}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}. "
            "They do not belong together."
        )
    return hf_model, tokenizer


def _labelled(model: Model, name: str | Path, revision: str | None) -> Model:
    model.lsn_lens_source = {"name": Path(name).name if Path(name).exists() else str(name), "revision": revision}
    return model


def _hooked_transformer(source: str, hf_model: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Model:
    """A HookedTransformer from a Hugging Face model that TransformerLens need not know by name."""
    # TransformerLens 3.9 only; 4 raises ImportError
    loading_from_pretrained: Any = importlib.import_module("transformer_lens.loading_from_pretrained")
    hooked_transformer: Any = importlib.import_module("transformer_lens").HookedTransformer
    config = hf_model.config.to_dict()
    config.setdefault("n_ctx", config.get("n_positions"))
    # The converter reads a folder, and guesses the architecture from names such as "llama" in its path.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        cfg = loading_from_pretrained.get_pretrained_model_config(
            folder, hf_cfg=config, device=str(device), dtype=dtype, default_prepend_bos=False
        )
        _correct_heads(cfg, config.get("head_dim"))
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
        cfg.model_name = Path(source).name  # it would be the temporary folder's
        model = hooked_transformer(cfg, tokenizer, move_to_device=False)
        model.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    model.move_model_modules_to_device()
    return model.eval().requires_grad_(False)


def _correct_heads(cfg: Any, d_head: int | None) -> None:
    """A head may be wider than the residual stream over the number of heads, which the converter takes it for."""
    if d_head and cfg.d_head != d_head:
        cfg.rotary_dim = d_head if cfg.rotary_dim == cfg.d_head else cfg.rotary_dim
        cfg.attn_scale = d_head**0.5 if cfg.attn_scale == cfg.d_head**0.5 else cfg.attn_scale
        cfg.d_head = d_head


def _probe_ids(vocabulary: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (size,), generator=generator) for size in (12, 7)]


@torch.no_grad()
def _probe_logits(hf_model: Any, source: str) -> list[Tensor]:
    embedding = hf_model.get_input_embeddings().weight
    logits = [hf_model(ids[None].to(embedding.device)).logits[0].cpu() for ids in _probe_ids(len(embedding))]
    if not all(bool(each.isfinite().all()) for each in logits):
        raise ValueError(
            f"{source!r}: the Hugging Face model gives NaN or infinite logits as {embedding.dtype}; try torch.float32."
        )
    return logits


@torch.no_grad()
def _check_logits(model: Model, expected: list[Tensor], source: str) -> None:
    """Logits equal Hugging Face's, alone and under left and right padding."""
    rows = _probe_ids(vocabulary_size(model))
    longest = max(len(ids) for ids in rows)
    allowed = TOLERANCE.get(expected[0].dtype, HALF_TOLERANCE)
    for side in ("right", "left"):
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[i, place], mask[i, place] = row, 1
        logits = model(ids.to(device_of(model)), attention_mask=mask.to(device_of(model)), return_type="logits").cpu()
        for i, reference in enumerate(expected):
            difference = (logits[i][mask[i].bool()] - reference).float().abs().max() / reference.float().std()
            if not difference <= allowed:
                raise ValueError(
                    f"{source!r} as {type(model).__name__}: with {side} padding, logits differ from Hugging Face's by "
                    f"{difference:.2g} of their standard deviation, at most {allowed:g} is allowed. This version of "
                    "TransformerLens computes another function; try the other backend or a newer version."
                )


def is_bridge(model: Model) -> bool:
    """Whether a model is a TransformerBridge (else a HookedTransformer)."""
    return hasattr(model, "original_model")


def vocabulary_size(model: Model) -> int:
    """Tokens that the model has embeddings for."""
    return model.original_model.get_input_embeddings().weight.shape[0] if is_bridge(model) else model.cfg.d_vocab


def device_of(model: Model) -> torch.device:
    """Where the model's input goes."""
    return next(model.parameters()).device


def describe(model: Model) -> dict[str, Any]:
    """Name, class, dtype and a hash of all weights, as plain data."""
    digest = hashlib.sha256()
    parameters = (model.original_model if is_bridge(model) else model).named_parameters()
    for _, parameter in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return {
        **_source(model),
        "class": type(model).__name__,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "layers": model.cfg.n_layers,
        "weights_sha256": digest.hexdigest(),
    }


def _source(model: Model) -> dict[str, Any]:
    return getattr(model, "lsn_lens_source", {"name": str(model.cfg.model_name), "revision": None})


def is_gated(model: Model) -> bool:
    """Whether the MLP multiplies act(gate) with a second projection."""
    return SITES["mlp_up"].hook_name(0) in model.hook_dict


def activation(model: Model) -> Callable[[Tensor], Tensor]:
    """The MLP's activation function."""
    if not is_bridge(model):
        return model.blocks[0].mlp.act_fn
    config = model.original_model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field in ("hidden_activation", "hidden_act", "activation_function"):
        if getattr(config, field, None):
            return ACT2FN[getattr(config, field)]
    raise ValueError(f"{type(config).__name__} does not name its activation function.")


def reader(model: Model, name: str) -> tuple[Site, Callable[[Tensor], Tensor]]:
    """The site to hook for a named tensor, and what to apply to it: `[batch pos unit]` comes out."""
    site = get_site(name)
    if site.activated and not is_gated(model):
        return SITES["mlp_post"], lambda acts: acts
    act = activation(model) if site.activated else (lambda acts: acts)
    return site, lambda acts: act(flat(acts, site))


def has_site(model: Model, name: str) -> bool:
    """Whether the first layer has the site's hook point."""
    return reader(model, name)[0].hook_name(0) in model.hook_dict


@torch.no_grad()
def site_width(model: Model, name: str) -> int:
    """Units of a site, measured with a few tokens in every layer.

    Raises:
        ValueError: The model lacks the site in some layer, its layers differ, or the tensor is not what
            the site's name says (as in mixtures of experts).
    """
    site, read = reader(model, name)
    what = f"{type(model).__name__} of {_source(model)['name']}"
    layers = range(model.cfg.n_layers)
    needed = {site.hook}
    if site.basis == "mlp":
        needed |= {SITES[each].hook for each in ("mlp_pre", "mlp_post", *(["mlp_up"] if is_gated(model) else []))}
    names = [f"blocks.{layer}.{hook}" for hook in sorted(needed) for layer in layers]
    missing = [each for each in names if each not in model.hook_dict]
    if missing:
        raise ValueError(f"site {name!r}: {what} has no {missing[0]}. {_why_no_mlp(model)}")
    seen: dict[str, Tensor] = {}
    with set_aside(model), model.hooks(fwd_hooks=[(each, _keep(seen, each)) for each in names]):
        model(_probe_ids(vocabulary_size(model))[1][None].to(device_of(model)))
    widths = {layer: read(seen[site.hook_name(layer)]).shape[-1] for layer in layers if site.hook_name(layer) in seen}
    if len(set(widths.values())) != 1 or len(widths) != len(layers):
        raise ValueError(f"site {name!r}: {what} has layers of different widths or without it: {widths}.")
    if site.basis == "mlp" and device_of(model).type != "meta":  # without values there is nothing to check
        for layer in layers:
            _check_mlp(model, layer, seen, what)
    return widths[0]


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(acts: Tensor, hook: Any) -> None:
        seen[name] = acts.detach()

    return hook


def _why_no_mlp(model: Model) -> str:
    config = model.original_model.config if is_bridge(model) else model.cfg
    experts = next(
        (k for k in ("num_local_experts", "num_experts", "n_routed_experts") if getattr(config, k, None)), None
    )
    if experts:
        return f"It is a mixture of experts ({experts}={getattr(config, experts)}), which has no single MLP to count."
    return "Expected a dense MLP with the usual TransformerLens hooks."


def _check_mlp(model: Model, layer: int, seen: dict[str, Tensor], what: str) -> None:
    """`mlp_post` is the down projection's input, and what the activation makes of `mlp_pre`."""
    post = seen[SITES["mlp_post"].hook_name(layer)]
    try:
        d_mlp = model.blocks[layer].mlp.W_out.shape[0]
    except (AttributeError, TypeError, KeyError):
        d_mlp = None
    if post.shape[-1] != d_mlp:
        raise ValueError(
            f"{what}, layer {layer}: mlp.hook_post has {post.shape[-1]} units, the down projection takes {d_mlp}. "
            f"{_why_no_mlp(model)}"
        )
    pre = seen.get(SITES["mlp_pre"].hook_name(layer))
    if pre is not None and is_gated(model) and bool(post.isfinite().all()):
        made = activation(model)(pre) * seen[SITES["mlp_up"].hook_name(layer)]
        if not torch.allclose(made.float(), post.float(), rtol=0.02, atol=1e-3 * float(post.float().std())):
            raise ValueError(f"{what}, layer {layer}: mlp.hook_post is not act(hook_pre) * hook_pre_linear.")
