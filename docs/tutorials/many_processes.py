# %% [markdown]
# # Many processes and GPUs
#
# A run is cut into shards. Processes share them, an interrupted run goes on, and the sums are the same to the last bit.
# This page does all three on the embedded model.

# %%
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd

import lsn_lens as lsn

folder = Path(mkdtemp())
model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr"])
layout = lsn.Layout(shards=4)
whole = lsn.collect(model, corpora, "lape", out=folder / "one", layout=layout)
sorted(path.name for path in (folder / "one").rglob("*") if path.is_file())

# %% [markdown]
# ## Before a long run
#
# Memory and disk from the configuration alone. Here for a model of 32 layers, seven languages and 1,000 documents each:

# %%
import transformers

config = transformers.LlamaConfig(
    num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32000
)
lsn.plan_run(config, ["lape", "average_precision"], languages=7, documents=1000)

# %% [markdown]
# ## Interrupted
#
# Two shards are deleted, as if the process had been killed before they were written. The same call computes these two
# and reads the others. A damaged file is noticed by its checksum and computed again.

# %%
for path in sorted((folder / "one" / "shards").iterdir())[:2]:
    path.unlink()
again = lsn.collect(model, corpora, "lape", out=folder / "one", layout=layout)


def same_bits(run):
    """Whether each sum is that of the first run, to the last bit."""
    sums = run.statistics.sums
    return pd.Series({key: bool((sums[key] == value).all()) for key, value in whole.statistics.sums.items()})


same_bits(again)

# %% [markdown]
# Where a run stands, also while others write to it:

# %%
table, _ = lsn.runs.run_state(folder / "one")
table

# %% [markdown]
# ## Several processes
#
# On one machine without a GPU, `lsn.processes` shares the work of everything inside the block (Linux only):

# %%
with lsn.processes(2):
    shared = lsn.collect(model, corpora, "lape", layout=layout)
same_bits(shared)

# %% [markdown]
# Under `torchrun` the processes share one `out`. On a machine with GPUs each takes the one of its `LOCAL_RANK`, and
# each holds the whole model. Nothing else changes in the script:

# %%
script = folder / "collect.py"
script.write_text(
    f"""
import lsn_lens as lsn

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr"])
lsn.collect(model, corpora, "lape", out={str(folder / "two")!r}, layout=lsn.Layout(shards=4), progress=False)
"""
)
torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
subprocess.run([*torchrun, str(script)], check=True, capture_output=True)
same_bits(lsn.load_run(folder / "two"))

# %% [markdown]
# Nothing has to be merged by hand: `load_run` adds the shards up in their order, one in memory at a time. Where
# processes cannot share a folder, each has its own, and `merge_runs` joins them; runs of different methods, too:

# %%
lsn.collect(model, corpora, "diffmean", out=folder / "three", layout=layout)
merged = lsn.collection.merge_runs([folder / "one", folder / "three"], folder / "merged")
len(lsn.detect(merged, "lape")), len(lsn.detect(merged, "diffmean"))

# %% [markdown]
#
# ## What is not there
#
# A model that is split over devices is refused, since hooks would find its tensors in different places:

# %%
try:
    lsn.load_model("demo", device_map={"model": 0, "lm_head": 1})
except ValueError as error:
    print(error)

# %% [markdown]
# So each process needs one device that holds the whole model: `dtype=torch.bfloat16` halves the memory.
# [Performance](../performance.html#large-models-on-paper) has an estimate for 7B and 70B. Under
# `torchrun`, `collect` alone is shared; parts of
# [`top_texts`](../neuron_pages.html#strongest-texts-by-themselves) can be read by several processes, too.
