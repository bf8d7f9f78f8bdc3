"""What collecting costs, as ratios against the bare Hugging Face forward and against LAPE in the same interleaved run.

    python experiments/benchmark_speed.py

The baseline is the base model (no LM head, sdpa attention) on the same batches of sentences. Each round runs every
variant once, in turn; the medians of the ratios within a round are printed with their range.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import lsn_lens as lsn
from lsn_lens.collection import Pass, constants_of, needs_of, plan_of, widths_of
from lsn_lens.methods import METHODS, get_method
from lsn_lens.model import source_of

LAPE, SUMS, EVERYTHING, ALONE = "lape", "all but what is apart", "everything in one pass", "alone: "
Backend = Literal["auto", "hooked", "bridge"]


def random_llama(folder: Path) -> Path:
    """An 8-layer, d_model 256 Llama with random weights and the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source_of("demo"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


APART = {  # what costs more than sums: shown on its own
    "average_precision": "values of every sentence",
    "act_grad": "a backward pass",
}


def cheap(name: str) -> Any:
    """A method without what is counted apart: PLND without the exact importance of queries and keys."""
    return get_method(name, bases=("mlp", "v", "z")) if name == "plnd" else get_method(name)


def variants(source: str, tokens: int, backend: Backend) -> tuple[int, dict[str, Callable[[], object]]]:
    """Name -> one pass over the same batches; the first is the baseline."""
    model = lsn.load_model(source, backend=backend)
    bare = AutoModelForCausalLM.from_pretrained(
        source_of(source), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    body = getattr(bare, bare.base_model_prefix)
    corpora = lsn.load_corpora("demo", ["en", "fr"])
    layout = lsn.Layout(kind="documents", max_tokens=tokens // 2, shards=1)
    folder = tempfile.TemporaryDirectory()
    plan = plan_of(model, corpora, Path(folder.name), layout, progress=False)
    batches = [batch for shard in plan.shards for batch in plan.batches(shard)]

    @torch.no_grad()
    def baseline() -> None:
        for batch in batches:
            body(batch.ids, attention_mask=batch.keep.long(), use_cache=False)

    def collecting(methods: list[Any]) -> Callable[[], object]:
        needs = needs_of(model, methods)
        widths = widths_of(model, needs)
        passing = Pass(model, needs, widths, constants_of(model, needs, widths, plan))

        def one_pass() -> None:
            passing.reset()
            with passing.attached(plan) as forward:
                for batch in batches:
                    forward(batch)

        return one_pass

    names = [name for name in METHODS if name != "random"]
    rest = [cheap(name) for name in names if name not in APART]
    return sum(int(batch.keep.sum()) for batch in batches), {
        "bare base model": baseline,
        LAPE: collecting(["lape"]),
        SUMS: collecting(rest),
        "... and average precision": collecting([*rest, "average_precision"]),
        "... and exact attention importance": collecting([*rest, "plnd"]),
        "... and activation x gradient": collecting([*rest, "act_grad"]),
        EVERYTHING: collecting(names),
        **{f"{ALONE}{name}": collecting([cheap(name)]) for name in names},
        f"{ALONE}plnd, exact attention importance": collecting(["plnd"]),
        "bare base model again": baseline,
    }


def baseline_of(times: dict[str, list[float]]) -> list[float]:
    """Each round's baseline: the mean of its first and its last measurement."""
    return [(a + b) / 2 for a, b in zip(times["bare base model"], times["bare base model again"], strict=True)]


def benchmark(
    rounds: int = 7, tokens: int = 8192, backend: Backend = "auto", threads: int | None = None, demo_only: bool = False
) -> None:
    """Print the ratios.

    Args:
        rounds: Interleaved rounds; the first is a warm-up and not counted.
        tokens: Tokens of one pass.
        backend: "auto", "hooked" or "bridge".
        threads: Threads of torch; all cores by default.
        demo_only: Leave out the larger model with random weights.
    """
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        sources = {"demo": "demo"}
        if not demo_only:
            sources["8 layers, d_model 256"] = str(random_llama(Path(folder) / "model"))
        for name, source in sources.items():
            total, passes = variants(source, tokens, backend)
            times: dict[str, list[float]] = {key: [] for key in passes}
            for _ in range(rounds + 1):
                for key, one_pass in passes.items():
                    start = time.perf_counter()
                    one_pass()
                    times[key].append(time.perf_counter() - start)
            times = {key: each[1:] for key, each in times.items()}
            alone = {key.removeprefix(ALONE): each for key, each in times.items() if key.startswith(ALONE)}
            sums = [each for key, each in alone.items() if key in METHODS and key not in APART]
            whole = [each for key, each in alone.items() if key != "plnd"]
            times[f"{SUMS}, one by one"] = [sum(each) for each in zip(*sums, strict=True)]
            times["everything, one by one"] = [sum(each) for each in zip(*whole, strict=True)]
            base = baseline_of(times)
            print(f"\n{name}: {total} tokens per pass, {rounds} rounds, {torch.get_num_threads()} threads; medians")
            columns = {"x bare model": base, "x lape": times[LAPE], f"x {SUMS}": times[SUMS]}
            rows = {key: {title: ratio(each, other) for title, other in columns.items()} for key, each in times.items()}
            print(pd.DataFrame.from_dict(rows, orient="index").to_string())


def ratio(times: list[float], base: list[float]) -> str:
    """Median of the ratios within a round, with their range."""
    each = [a / b for a, b in zip(times, base, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


if __name__ == "__main__":
    from lsn_lens.studies.experiment import run_cli

    run_cli(benchmark)
