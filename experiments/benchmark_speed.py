"""What collecting costs: ratios to the bare Hugging Face forward and to LAPE, measured in the same interleaved run.

    python experiments/benchmark_speed.py

The baseline is the base model (no LM head, sdpa attention) on the same batches of sentences. Three other ways to count
how often each neuron fires are timed beside LAPE: a patched MLP forward in transformers, as released code does it, and
TransformerLens with hooks and with its cache. Each round runs every variant once, in turn. The table has the medians of
the ratios within a round, with their range; tokens per second; and the memory that a pass takes at its peak, beyond
what was in use before (Linux only). Time is CPU time of all threads: other programs on the machine count little.
"""

import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lsn_lens.studies.experiment import run_cli  # before torch, whose idle threads it lets sleep

# isort: split
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import lsn_lens as lsn
from lsn_lens.collection import Pass, constants_of, needs_of, plan_of, widths_of
from lsn_lens.methods import METHODS, get_method
from lsn_lens.model import source_of

BARE, LAPE, ALL, ALONE = "bare base model", "lape", "every method in one pass", "alone: "
SIZES = {"8 layers, d_model 1024, d_mlp 4096": (8, 1024, 4096)}  # beside the embedded model; random weights
APART = ("average_precision", "act_grad", "plnd")  # what costs more than sums
Backend = Literal["auto", "hooked", "bridge"]
Variant = Callable[[], Any]


def random_llama(folder: Path, layers: int, width: int, hidden: int) -> Path:
    """A Llama with random weights, heads of 64, and the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source_of("demo"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def counted(counts: Tensor, layer: int, keep: Tensor, acts: Tensor) -> None:
    """Count the neurons of a layer that fire, the plain way."""
    counts[layer] += (acts[keep] > 0).sum(0)


@torch.no_grad()
def patched(body: Any, batches: list[Any]) -> Tensor:
    """Every MLP's forward replaced by one that counts."""
    mlps = [layer.mlp for layer in body.layers]
    counts, keep = torch.zeros(len(mlps), mlps[0].gate_proj.out_features, dtype=torch.int64), torch.empty(0)

    def forward(layer: int, mlp: Any, x: Tensor) -> Tensor:
        active = mlp.act_fn(mlp.gate_proj(x))
        counted(counts, layer, keep, active)
        return mlp.down_proj(active * mlp.up_proj(x))

    for layer, mlp in enumerate(mlps):
        mlp.forward = partial(forward, layer, mlp)
    try:
        for batch in batches:
            keep = batch.keep
            body(batch.ids, attention_mask=keep.long(), use_cache=False)
    finally:
        for mlp in mlps:
            del mlp.forward
    return counts


@torch.no_grad()
def with_hooks(model: Any, batches: list[Any]) -> Tensor:
    """TransformerLens, one hook per layer that counts."""
    counts = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.int64)
    for batch in batches:
        hooks = [
            (f"blocks.{i}.mlp.hook_pre", lambda acts, hook, i=i, keep=batch.keep: counted(counts, i, keep, acts))
            for i in range(model.cfg.n_layers)
        ]
        model.run_with_hooks(batch.ids, attention_mask=batch.keep.long(), fwd_hooks=hooks)
    return counts


@torch.no_grad()
def with_cache(model: Any, batches: list[Any]) -> Tensor:
    """TransformerLens, all layers' gates kept in its cache, then counted."""
    counts = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.int64)
    for batch in batches:
        mask, wanted = batch.keep.long(), lambda name: name.endswith("mlp.hook_pre")
        _, cache = model.run_with_cache(batch.ids, attention_mask=mask, names_filter=wanted)
        for layer in range(len(counts)):
            counted(counts, layer, batch.keep, cache[f"blocks.{layer}.mlp.hook_pre"])
    return counts


@torch.no_grad()
def bare(body: Any, batches: list[Any]) -> None:
    """The base model alone."""
    for batch in batches:
        body(batch.ids, attention_mask=batch.keep.long(), use_cache=False)


def collecting(model: Any, plan: Any, batches: list[Any], methods: list[Any]) -> Variant:
    """One pass for these methods; gives the counts of firing neurons."""
    needs = needs_of(model, methods)
    widths = widths_of(model, needs)
    passing = Pass(model, needs, widths, constants_of(model, needs, widths, plan))

    def one_pass() -> Tensor | None:
        passing.reset()
        with passing.attached(plan) as forward:
            for batch in batches:
                forward(batch)
        return passing.sums_on_cpu().get("mlp_pre.positive")

    return one_pass


@contextmanager
def variants(source: str, tokens: int, backend: Backend, alone: bool) -> Iterator[tuple[int, dict[str, Variant]]]:
    """The number of tokens, and name -> one pass over the same batches; the first is the baseline."""
    model = lsn.load_model(source, backend=backend, device="cpu")
    hugging_face = AutoModelForCausalLM.from_pretrained(source_of(source), dtype=torch.float32).eval()
    body = getattr(hugging_face, hugging_face.base_model_prefix)
    layout = lsn.Layout(kind="documents", max_tokens=tokens // 2, shards=1)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(model, lsn.load_corpora("demo", ["en", "fr"]), Path(folder), layout, progress=False)
        batches = [batch for shard in plan.shards for batch in plan.batches(shard)]
        collect, names = partial(collecting, model, plan, batches), [name for name in METHODS if name != "random"]
        chosen: dict[str, Variant] = {
            BARE: partial(bare, body, batches),
            LAPE: collect(["lape"]),
            "patched MLP forward, transformers": partial(patched, body, batches),
            "TransformerLens, hooks": partial(with_hooks, model, batches),
            "TransformerLens, cache": partial(with_cache, model, batches),
            "sums of all methods": collect([get_method(name) for name in names if name not in APART]),
            ALL: collect([get_method(name) for name in names]),
        }
        one_by_one = names[1:] if alone else APART
        yield (
            sum(int(batch.keep.sum()) for batch in batches),
            chosen | {f"{ALONE}{name}": collect([get_method(name)]) for name in one_by_one},
        )


def peak(variant: Variant) -> float:
    """MiB that a call takes at its peak, beyond what the process had; NaN where the system does not say."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        variant()
        return max(0.0, (_status("VmHWM") - before) / 1024)
    except (OSError, AttributeError):
        return float("nan")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def check(passes: dict[str, Variant]) -> None:
    """Refuse to compare the speed of variants that do not count the same."""
    made = {name: one_pass() for name, one_pass in passes.items()}
    expected = made[LAPE]
    for name, counts in made.items():
        if counts is not None and (counts - expected).abs().sum() > 1e-3 * expected.sum():
            raise ValueError(f"{name} counts other neurons than {LAPE}.")


def benchmark(
    rounds: int = 5, tokens: int = 4096, backend: Backend = "auto", threads: int | None = None,
    demo_only: bool = False, alone: bool = False,
) -> None:  # fmt: skip
    """Print the tables.

    Args:
        rounds: Interleaved rounds, after one that checks that all variants count the same.
        tokens: Tokens of one pass.
        backend: "auto", "hooked" or "bridge".
        threads: Threads of torch; all cores by default.
        demo_only: Leave out the larger model with random weights.
        alone: Also time every method alone.
    """
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        sources = {"demo": "demo"}
        for name, shape in {} if demo_only else SIZES.items():
            sources[name] = str(random_llama(Path(folder) / name.replace(" ", "_"), *shape))
        for name, source in sources.items():
            with variants(source, tokens, backend, alone) as (total, passes):
                check(passes)
                memory = {key: peak(one_pass) for key, one_pass in passes.items()}
                times: dict[str, list[float]] = {key: [] for key in passes}
                for _ in range(rounds):
                    for key, one_pass in passes.items():
                        start = time.process_time()
                        one_pass()
                        times[key].append(time.process_time() - start)
            print(f"\n{name}: {total} tokens per pass, {rounds} rounds, {torch.get_num_threads()} threads; medians")
            print(table(times, total, memory).to_string())


def table(times: dict[str, list[float]], total: int, memory: dict[str, float]) -> pd.DataFrame:
    """One row per variant."""
    rows = {
        key: {
            f"x {BARE}": ratio(each, times[BARE]),
            f"x {LAPE}": ratio(each, times[LAPE]),
            "tokens per second": round(total / statistics.median(each)),
            "MiB at peak": round(memory[key], 1),
        }
        for key, each in times.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def ratio(times: list[float], base: list[float]) -> str:
    """Median of the ratios within a round, with their range."""
    each = [a / b for a, b in zip(times, base, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


if __name__ == "__main__":
    run_cli(benchmark)
