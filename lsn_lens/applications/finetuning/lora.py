"""LoRA with a given number of parameters, through PEFT (the optional extra `lora`)."""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lsn_lens.applications.finetuning.delta import Change
from lsn_lens.neurons.draws import generator_of

EXTRA = "pip install 'lsn-lens[lora]' (or: pip install peft)"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of the projections that units of some bases belong to, merged into the weights at the end.

    Each projection gets a rank of its own: ranks grow by one, in an order drawn by the seed, while they fit into
    `parameters`. All adapters are scaled by 2.

    Attributes:
        parameters: The largest number of trained parameters.
        bases: Kinds of units whose projections get adapters.

    Raises:
        ValueError: Fewer than one parameter.

    Source: Hu et al. 2022 (arXiv 2106.09685). The ranks by budget are ours.
    """

    parameters: int
    bases: tuple[str, ...] = ("mlp",)

    def __post_init__(self) -> None:
        if self.parameters < 1:
            raise ValueError(f"parameters={self.parameters}: expected 1 or more.")


def check_peft() -> None:
    """Require PEFT.

    Raises:
        ImportError: It is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"LoRA needs the package peft, which is missing. {EXTRA}.")


def ranks_of(sizes: dict[str, int], parameters: int, seed: int) -> dict[str, int]:
    """A rank for each module that gets an adapter, from the parameters of rank one of each module.

    Raises:
        ValueError: The smallest adapter has more parameters.
    """
    names = list(sizes)
    order = [names[place] for place in torch.randperm(len(names), generator=generator_of("lora", seed)).tolist()]
    ranks, left = dict.fromkeys(names, 0), parameters
    while fitting := [name for name in order if sizes[name] <= left]:
        for name in fitting:
            if sizes[name] <= left:
                ranks[name], left = ranks[name] + 1, left - sizes[name]
    if not any(ranks.values()):
        raise ValueError(f"Lora(parameters={parameters}): the smallest adapter takes {min(sizes.values())} parameters.")
    return {name: rank for name, rank in ranks.items() if rank}


def adapted(hf_model: Any, lora: Lora, names: list[str], seed: int) -> Any:
    """A PEFT model with adapters of the modules named; the Hugging Face model's modules are replaced in it.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: The budget is too small.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    modules: dict[str, Any] = {name: hf_model.get_submodule(name) for name in names}
    ranks = ranks_of({name: sum(each.weight.shape) for name, each in modules.items()}, lora.parameters, seed)
    config = LoraConfig(
        target_modules=list(ranks), task_type="CAUSAL_LM", lora_dropout=0.0, bias="none",
        rank_pattern={re.escape(name): rank for name, rank in ranks.items()},
        alpha_pattern={re.escape(name): 2 * rank for name, rank in ranks.items()},
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in ranks),
    )  # fmt: skip
    return get_peft_model(hf_model, config)


@torch.no_grad()
def merged(peft_model: Any) -> dict[str, Change]:
    """The weights that adapters change, with the adapters added."""
    targets = [name for name, each in peft_model.base_model.model.named_modules() if hasattr(each, "lora_A")]
    plain: Any = peft_model.merge_and_unload(safe_merge=True)
    return {f"{name}.weight": Change(plain.get_submodule(name).weight.detach().clone()) for name in targets}
