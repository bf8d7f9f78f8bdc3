# %% [markdown]
# # Read a neuron
#
# What does one neuron do? `lsn.show_neuron` shows it from all sides: on which texts it is strong, what it writes, who
# loses without it, and what each method says about it.

# %%
import lsn_lens as lsn

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr", "ja"])
run = lsn.collect(model, corpora, ["lape", "diffmean"])
best = lsn.score(run, "lape").top("fr", 5)
best

# %% [markdown]
# The first neuron of French by LAPE (low entropy of its firing rates over languages). Nine random units of its layer,
# as active on French, are the control of its effect, which is measured on at most 500 hold-out tokens per language:
# text that it was not found on. With nine random units no p is below 0.1; the default of 19 allows 0.05.

# %%
first = best.iloc[0]
short = lsn.Layout(max_tokens=500)
page = lsn.show_neuron(model, corpora, run, "mlp", int(first["layer"]), int(first["unit"]), random=9, evaluation=short)
page

# %% [markdown]
# ## The parts are tables

# %%
list(page.tables)

# %%
page.tables["activity"]

# %%
page.tables["effects"]

# %% [markdown]
# Read `effects` before the rest: texts and promoted tokens make a good story of almost any neuron. One neuron of 4,608
# rarely moves a loss by much, and the random units say how much is much.
#
# ## Many neurons
#
# A gallery has a page for each unit of a set, and an index to search and sort. `out=` writes it to a folder that opens
# offline.

# %%
from pathlib import Path
from tempfile import mkdtemp

folder = Path(mkdtemp()) / "gallery"
found = lsn.detect(run, "lape")
gallery = lsn.neuron_gallery(
    model, corpora, run, found, units=2, scores=lsn.score(run, "lape"), random=2, evaluation=short, out=folder
)
gallery.to_frame()

# %%
sorted(each.name for each in folder.iterdir())

# %% [markdown]
# [Neuron pages](../neuron_pages.html) explains each part, its control and its limits.
