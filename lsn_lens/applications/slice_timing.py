"""Size and speed of a sliced checkpoint against its original."""

import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lsn_lens.bars import tqdm
from lsn_lens.model.checkpoints import read_config, read_weights, source_of

SIZE = ("original", "sliced", "ratio")


@torch.inference_mode()
def slice_ratios(
    source: str | Path,
    folder: str | Path,
    *,
    rows: int = 4,
    length: int = 64,
    repeats: int = 15,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Parameters, bytes on disk and seconds of a forward pass of a sliced checkpoint, and their ratios.

    Both models run in plain transformers on the same random tokens, one after the other in each repeat, so that a busy
    machine slows down both.

    Args:
        source: The original, `"demo"` or a local folder.
        folder: From `slice_checkpoint`.
        rows: Rows of the batch.
        length: Tokens per row.
        repeats: Timed passes of each; two passes before are not timed.
        device: Where the models run.
        dtype: The dtype of both.
        progress: Show a progress bar.
        options: Options of `from_pretrained`; with code in the folder, trust_remote_code=True.

    Returns:
        Rows "parameters", "bytes" (of the weight files) and "seconds" (median), columns `original`, `sliced`, `ratio`
        (sliced / original; for seconds the median ratio of the repeats), `low` and `high` (the quartiles of these).

    Raises:
        FileNotFoundError: No such folder.
    """
    folders = [Path(source_of(source)), Path(folder)]
    if missing := [str(each) for each in folders if not each.is_dir()]:
        raise FileNotFoundError(f"{missing}: expected folders with a checkpoint, or 'demo'.")
    models = [read_weights(str(place), dtype, options, attention=None).to(device).eval() for place in folders]
    vocabulary = read_config(str(folders[0]), {}).get_text_config().vocab_size
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    times: list[list[float]] = [[], []]
    for turn in tqdm(range(repeats + 2), desc="timing", disable=not progress):
        for place, model in enumerate(models):
            start = time.perf_counter()
            float(model(ids, use_cache=False).logits[0, -1, 0])  # waits for the device
            if turn > 1:
                times[place].append(time.perf_counter() - start)
    ratios = [after / before for before, after in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    sizes = {
        "parameters": [sum(weight.numel() for weight in model.parameters()) for model in models],
        "bytes": [sum(file.stat().st_size for file in place.glob("*.safetensors")) for place in folders],
    }
    table = {name: [*pair, pair[1] / pair[0], float("nan"), float("nan")] for name, pair in sizes.items()}
    table["seconds"] = [*map(statistics.median, times), middle, low, high]
    return pd.DataFrame.from_dict(table, orient="index", columns=[*SIZE, "low", "high"]).rename_axis("measure")
