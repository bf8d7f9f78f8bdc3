"""What collecting costs, as ratios against the bare Hugging Face forward in the same interleaved run.

    python experiments/benchmark_speed.py

The baseline is the base model (no LM head, sdpa attention) on the same batches. Each round runs every
variant once, in turn; the medians of the ratios within a round are printed with their range.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jsonargparse import auto_cli

Backend = Literal["auto", "hooked", "bridge"]


def random_llama(folder: Path) -> Path:
    """An 8-layer, d_model 256 Llama with random weights and the demo's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lsn_lens.models import DEMO_MODEL

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def variants(source: str, tokens: int, backend: Backend) -> tuple[int, dict[str, Callable[[], object]]]:
    """Name -> one pass over the same batches; the first is the baseline."""
    import lsn_lens as lsn
    from lsn_lens import models
    from lsn_lens.batches import Plan
    from lsn_lens.collect import Recorder, _tokenize, needed_statistics

    model = lsn.load_model(source, backend=backend)
    bare = models.AutoModelForCausalLM.from_pretrained(
        models.DEMO_MODEL if source == "demo" else source, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    body = getattr(bare, bare.base_model_prefix)
    corpora = lsn.load_corpora("demo", ["en", "fr"])
    layout = lsn.Layout(length=128, max_tokens=tokens // 2, shards=1)
    folder = tempfile.TemporaryDirectory()
    plan = Plan(_tokenize(model, corpora, Path(folder.name), layout, progress=False), layout, model.cfg.n_ctx)
    batches = [batch for shard in plan.shards for batch in plan.batches(shard)]

    @torch.no_grad()
    def baseline() -> None:
        for batch in batches:
            body(batch.ids, use_cache=False)

    def collecting(methods: list[str]) -> Callable[[], object]:
        wanted = needed_statistics(methods)
        recorder = Recorder(model, wanted, {each.site: models.site_width(model, each.site) for each in wanted})

        def one_pass() -> None:
            recorder.reset()
            with recorder.attached(plan) as forward:
                for batch in batches:
                    forward(batch)

        return one_pass

    @torch.no_grad()
    def cached() -> None:
        for batch in batches:
            _, cache = model.run_with_cache(batch.ids, names_filter=lambda name: name.endswith("mlp.hook_post"))
            for layer in range(model.cfg.n_layers):
                (cache[f"blocks.{layer}.mlp.hook_post"] > 0).sum((0, 1))

    return sum(batch.ids.numel() for batch in batches), {
        "bare base model": baseline,
        "collect lape": collecting(["lape"]),
        "collect lape, lap, lave": collecting(["lape", "lap", "lave"]),
        "whole lsn.collect of lape": lambda: lsn.collect(model, corpora, ["lape"], layout=layout, progress=False),
        "run_with_cache of hook_post": cached,
        "bare base model again": baseline,
    }


def benchmark(rounds: int = 9, tokens: int = 8192, backend: Backend = "auto", threads: int | None = None) -> None:
    """Print the ratios.

    Args:
        rounds: Interleaved rounds; the first is a warm-up and not counted.
        tokens: Tokens of one pass.
        backend: "auto", "hooked" or "bridge".
        threads: Threads of torch; all cores by default.
    """
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("demo", "demo"), ("8 layers, d_model 256", str(random_llama(Path(folder) / "model")))):
            total, passes = variants(source, tokens, backend)
            times: dict[str, list[float]] = {key: [] for key in passes}
            for _ in range(rounds + 1):
                for key, one_pass in passes.items():
                    start = time.perf_counter()
                    one_pass()
                    times[key].append(time.perf_counter() - start)
            base = times["bare base model"][1:]
            rows = {}
            for key, each in times.items():
                ratios = [a / b for a, b in zip(each[1:], base, strict=True)]
                rows[key] = {
                    "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                    "tokens/s": round(total / statistics.median(each[1:])),
                }  # fmt: skip
            print(f"\n{name}: {total} tokens a pass, {rounds} rounds, {torch.get_num_threads()} threads")
            print(pd.DataFrame.from_dict(rows, orient="index").round(3).to_string())


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
