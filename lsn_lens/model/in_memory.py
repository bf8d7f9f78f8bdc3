"""Check and prepare a Hugging Face model that is already in memory."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn import Module

from lsn_lens.model.checkpoints import check_config, check_finite, dtype_of, given

EXPECTED = "Give load_model(model, tokenizer), both of one causal language model of transformers"


def taken(hf_model: Any, tokenizer: Any, dtype: Any, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A Hugging Face model, or a copy of a PEFT model with merged adapters, with eager attention; and its name.

    Raises:
        ValueError: Another kind of model, a model without a head, a wrong tokenizer, or options for files.
    """
    what = type(hf_model).__name__
    if not isinstance(hf_model, Module) or not hasattr(hf_model, "config"):
        raise ValueError(f"the model is a {what}. {EXPECTED}.")
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        missing = "its tokenizer is missing" if tokenizer is None else f"its tokenizer is a {type(tokenizer).__name__}"
        raise ValueError(f"{what}: {missing}. {EXPECTED}: tokenizer=AutoTokenizer.from_pretrained(...).")
    if given(options):
        raise ValueError(f"{what} is in memory: {sorted(given(options))} say how files are read. Leave them out.")
    name = Path(getattr(hf_model.config, "_name_or_path", "") or what).name
    hf_model, merged = _merged(hf_model)
    check_config(hf_model.config, name)
    if any("_original_component" in module._modules for module in hf_model.modules()):
        raise ValueError(f"{name} ({what}) is wrapped by a TransformerBridge already: load it anew, or use the bridge.")
    if hf_model.get_output_embeddings() is None:
        raise ValueError(f"{name} ({what}) has no head that gives logits: load it by AutoModelForCausalLM.")
    if dtype is not None and dtype != "auto":
        hf_model = hf_model.to(dtype_of(dtype, {}))
    check_finite(name, hf_model)
    hf_model.set_attn_implementation("eager")
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    return hf_model, name + merged


def _merged(hf_model: Any) -> tuple[Any, str]:
    """The model without adapters: for a PEFT model, a copy with merged adapters; and the suffix of its name."""
    kinds = getattr(hf_model, "peft_config", None)
    if kinds is None:
        return hf_model, ""
    names = sorted({str(getattr(each.peft_type, "value", each.peft_type)) for each in dict(kinds).values()})
    if not hasattr(hf_model, "merge_and_unload"):
        raise ValueError(
            f"{type(hf_model).__name__} has adapters ({', '.join(names)}) that cannot be merged into its weights here: "
            "give a PeftModel with merge_and_unload (LoRA, for example), or a model without adapters."
        )
    return copy.deepcopy(hf_model).merge_and_unload(), f" with {', '.join(names)} merged"
