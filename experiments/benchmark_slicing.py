"""Size and speed of sliced checkpoints of five architectures, with random weights, against their originals.

    python experiments/benchmark_slicing.py --rates [0.3,0.5]

prints one row per architecture and rate. The models are small; ratios of a real model's own sizes are measured by
`lsn_lens.applications.slice_ratios`.
"""

import json
import tempfile
from pathlib import Path

import pandas as pd
import torch
import transformers

import lsn_lens as lsn
from lsn_lens.studies.experiment import run_cli

LAYERS, WIDTH, D_MLP = 4, 256, 1024
LLAMA = {"hidden_size": WIDTH, "intermediate_size": D_MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
SIZES = {
    "llama": LLAMA,
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4},
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4},
    "qwen2": {key: value for key, value in LLAMA.items() if key != "head_dim"},
    "gemma2": LLAMA,
}


def measure(rates: tuple[float, ...] = (0.3, 0.5), rows: int = 4, length: int = 128, repeats: int = 15) -> None:
    """Cut random neurons out of each architecture.

    Args:
        rates: Shares of each layer's neurons to cut out.
        rows: Rows of the batch.
        length: Tokens per row.
        repeats: Timed passes.
    """
    tokenizer, table = transformers.AutoTokenizer.from_pretrained(lsn.model.source_of("demo")), []
    for name, sizes in SIZES.items():
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        config = transformers.AutoConfig.for_model(name, vocab_size=len(tokenizer), **special, **sizes)
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / "original"
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
            tokenizer.save_pretrained(source)
            for rate in rates:
                table.append({"architecture": name, "rate": rate, **_cut(source, rate, rows, length, repeats)})
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.3g}".format))


def _cut(source: Path, rate: float, rows: int, length: int, repeats: int) -> dict[str, float]:
    """The ratios at one rate, and the largest difference of logits in standard deviations."""
    units = torch.zeros(1, LAYERS, D_MLP, dtype=torch.bool)
    units[..., torch.randperm(D_MLP)[: round(rate * D_MLP)]] = True
    neurons = lsn.NeuronSet(("random",), {"mlp": units}, "random")
    folder = source.with_name(f"sliced-{rate:g}")
    lsn.applications.slice_checkpoint(source, neurons, folder, with_code=True)
    ratios = lsn.applications.slice_ratios(
        source, folder, rows=rows, length=length, repeats=repeats, progress=False, trust_remote_code=True
    )
    told = ratios["ratio"].to_dict() | {end: ratios.loc["seconds", end] for end in ("low", "high")}
    return {"logits": json.loads((folder / "lsn_lens.json").read_text())["logits_difference"], **told}


if __name__ == "__main__":
    run_cli(measure)
