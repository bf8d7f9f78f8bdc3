"""How much faster PLND's closed form for MLP neurons is than removing them one by one, and whether it says the same.

    python experiments/benchmark_plnd.py

Two ways to remove a neuron are timed on the same tokens: running the MLP again on its cached input, and running the
whole model again. The closed form takes the MLP's cached activations, so the one pass that gives them is added to it
where whole passes are compared. Removal is timed on a few neurons of every layer and extrapolated to all; values are
compared on these.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from lsn_lens.studies.experiment import run_cli  # before torch, whose idle threads it lets sleep

# isort: split
import torch
from torch import Tensor

import lsn_lens as lsn


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median wall time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cached(model: Any, ids: Tensor, layer: int) -> dict[str, Tensor]:
    """Input of a layer's MLP, of its down projection, and what the projection makes of it."""
    mlp, seen = model.original_model.model.layers[layer].mlp, {}
    handles = [
        mlp.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out)),
        mlp.down_proj.register_forward_hook(lambda module, args, out: seen.update(post=args[0])),
    ]
    model.original_model(ids)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def benchmark(neurons: int = 16, tokens: int = 128, rounds: int = 7, threads: int | None = None) -> None:
    """Print the ratios and the largest relative difference.

    Args:
        neurons: Neurons of each layer that are removed one by one.
        tokens: Length of the document.
        rounds: Timed calls; the median counts.
        threads: Threads of torch; all cores by default.
    """
    if threads:
        torch.set_num_threads(threads)
    model = lsn.load_model("demo", backend="bridge", device="cpu")
    text = " ".join(lsn.load_corpora("demo", ["en"])["en"].find)
    ids = torch.tensor([model.tokenizer(text, truncation=True, max_length=min(tokens, model.cfg.n_ctx))["input_ids"]])
    closed, one_by_one, worst, width = 0.0, 0.0, 0.0, model.cfg.d_mlp
    for layer in range(model.cfg.n_layers):
        mlp, seen = model.original_model.model.layers[layer].mlp, cached(model, ids, layer)
        norms = mlp.down_proj.weight.norm(dim=0)
        post = seen["post"][0]
        closed += seconds(lambda: post.square().sum(0).sqrt() * norms, rounds)  # noqa: B023 (called at once)
        found = post.square().sum(0).sqrt() * norms

        def removed(neuron: int, mlp: Any = mlp, x: Tensor = seen["x"]) -> Tensor:
            column = mlp.down_proj.weight[:, neuron].clone()
            mlp.down_proj.weight[:, neuron] = 0
            out = mlp(x)
            mlp.down_proj.weight[:, neuron] = column
            return out

        for neuron in torch.linspace(0, width - 1, neurons).long().tolist():
            one_by_one += seconds(lambda: removed(neuron), rounds) * width / neurons  # noqa: B023
            expected = (removed(neuron).double() - seen["out"].double()).norm()
            worst = max(worst, float((found[neuron] - expected).abs() / expected))
    once = seconds(lambda: model.original_model(ids), rounds)
    whole = once * width * model.cfg.n_layers
    print(
        f"demo model, {ids.shape[1]} tokens, {width} neurons in each of {model.cfg.n_layers} layers, "
        f"{torch.get_num_threads()} threads\n"
        f"closed form: {closed * 1e3:.2f} ms for all neurons\n"
        f"MLP again for each neuron: {one_by_one:.2f} s, {one_by_one / closed:,.0f} times as long\n"
        f"model again for each neuron: {whole:.2f} s, {whole / (once + closed):,.0f} times as long as one pass and the "
        "closed form\n"
        f"largest relative difference: {worst:.1e}"
    )


if __name__ == "__main__":
    run_cli(benchmark)
