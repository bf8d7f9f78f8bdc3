# %% [markdown]
# # First run
#
# A small multilingual model and a little parallel text come with the package, so this page runs on a laptop, without
# a network, in about a minute. It is a notebook kept as a Python file: copy the cells into Jupyter, or open the file
# there with jupytext.
#
# We look for *neurons that belong to a language*, switch those of one language off, and measure which languages get
# worse: that one, all of them, or none. All numbers below were computed while this page was built.

# %% [markdown]
# ## A model
#
# `"demo"` is the embedded model. A local folder, a Hugging Face Hub id, or a Hugging Face model with its tokenizer
# works in the same way. The result is a TransformerLens model, so everything in TransformerLens works with it.

# %%
import pandas as pd
import torch

import lsn_lens as lsn
from lsn_lens.report import plots

model = lsn.load_model("demo")
pd.Series(
    {
        "class": type(model).__name__,
        "layers": model.cfg.n_layers,
        "neurons in each": model.cfg.d_mlp,
        "tokens of context": model.cfg.n_ctx,
    },
    name="demo",
).to_frame()

# %% [markdown]
# ## Text
#
# Each language has a part to *find* neurons with and a *hold-out* part to measure with, so that no neuron is measured
# on the text that it was found with. The embedded sentences are parallel: the n-th sentence says the same in every
# language. So the languages do not differ in topic.

# %%
corpora = lsn.load_corpora("demo")
find_first = [next(iter(each.find)) for each in corpora.values()]
held_first = [next(iter(each.hold_out)) for each in corpora.values()]
first = {"to find with": find_first, "held out": held_first}
first = pd.DataFrame(first, index=list(corpora))
first.style.set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# ## Collect
#
# One pass over the text computes, for every neuron, the statistics that these methods need. Nothing else is kept: a run
# is a set of exact sums, not a store of activations. With `out="runs/first"` the sums stay on disk, and an interrupted
# run goes on where it stopped. `run.save(folder)` keeps a run that was collected in memory. (`progress=False` only
# keeps progress bars out of this page.)

# %%
methods = ["lape", "lap", "lave"]
run = lsn.collect(model, corpora, methods, progress=False)
run

# %% [markdown]
# Every language has the same number of tokens here, that of the smallest language. Otherwise a language with more text
# would be measured more exactly than the others.
#
# The central quantity is the share of a language's tokens on which a neuron fires, `[language, layer, unit]`:

# %%
probability = run.statistics.probability("mlp_pre")
probability.shape

# %% [markdown]
# ## Find
#
# LAPE prefers neurons whose firing is concentrated on few languages (low entropy over languages) among those that fire
# often in at least one. The [method page](../../methods/lape/) has the exact steps. From here to the next heading the
# model is not needed: other methods and other settings take no further pass.

# %%
found = lsn.detect(run, "lape")
found

# %% [markdown]
# The five neurons with the best scores, and the share of each language's tokens on which each of them fires
# (`lsn.score(run, "lape").top("fr")` has the best neurons of one language):

# %%
scores = lsn.score(run, "lape").to_frame()
best = scores.sort_values("score", ascending=False)
best = best.drop_duplicates(["layer", "unit"]).head(5)
shares = pd.DataFrame(
    {
        f"layer {layer}, unit {unit}": probability[:, layer, unit].tolist()
        for layer, unit in zip(best["layer"], best["unit"], strict=True)
    },
    index=run.languages,
).T
style = shares.style.format("{:.2f}")
style.background_gradient("Blues", axis=None, vmin=0, vmax=1)

# %% [markdown]
# How many neurons each layer has:

# %%
found.plot()

# %% [markdown]
# How far languages overlap (a neuron may belong to several languages; `found.shared("fr", "es")` and
# `found.only_in("fr")` are sets):

# %%
found.plot("overlap")

# %% [markdown]
# Two methods on the same run: how many neurons they give each language, and how many both agree on.

# %%
lap = lsn.detect(run, "lap")
both = found & lap
pd.DataFrame({"lape": found.counts(), "lap": lap.counts(), "both": both.counts()})

# %% [markdown]
# ## Switch French off
#
# Inside the `with` block the French neurons give zero, in every forward pass and at every position. Afterwards the
# model is unchanged: the weights were never edited.


# %%
def tokens_of(text):
    """Token ids as `collect` reads them: a document begins with `bos`."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[model.tokenizer.bos_token_id, *ids]])


def loss(label):
    """Mean loss (nats per token) of the first hold-out sentence of a language."""
    sentence = next(iter(corpora[label].hold_out))
    return float(model(tokens_of(sentence), return_type="loss"))


before = {label: loss(label) for label in corpora}
with lsn.intervene(model, found["fr"], lsn.zero):
    during = {label: loss(label) for label in corpora}
after = {label: loss(label) for label in corpora}

table = pd.DataFrame({"before": before, "French off": during, "after": after})
table["change"] = table["French off"] - table["before"]
table.style.format("{:.3f}")

# %% [markdown]
# This is one sentence per language, and one sentence proves nothing. It shows how an intervention works. Is the model
# the same as before? Loss after minus loss before:

# %%
{label: after[label] - before[label] for label in corpora}

# %% [markdown]
# Which tokens (pieces of words) the model expects next, with and without its French neurons:

# %%
start = " ".join(next(iter(corpora["fr"].hold_out)).split()[:5])


def next_tokens(count=6):
    """The likeliest tokens after the start of a French sentence."""
    chances = model(tokens_of(start))[0, -1].softmax(-1)
    values, ids = chances.topk(count)
    words = [model.tokenizer.decode([each]) for each in ids.tolist()]
    pairs = zip(words, values.tolist(), strict=True)
    return [f"{word!r} {value:.2f}" for word, value in pairs]


plain = next_tokens()
with lsn.intervene(model, found["fr"], lsn.zero):
    changed = next_tokens()
shown = pd.DataFrame({"unchanged": plain, "French off": changed})
shown.rename_axis(f"after {start!r}")

# %% [markdown]
# ## Which languages lose?
#
# One sentence is not enough. `perplexity_matrix` switches off the neurons of one language after the other and measures
# the hold-out text of all languages each time. Rows: whose neurons are off. Columns: whose loss is measured. Values:
# loss increase in nats per token. The page uses four languages, to be quick. `held_out` prepares the text once for all
# measurements.

# %%
four = ["en", "fr", "vi", "zh"]
text = {label: corpora[label] for label in four}
measured = lsn.evaluation.held_out(model, text, progress=False)
matrix = lsn.perplexity_matrix(model, text, found[four], "zero", text=measured, progress=False)
plots.change_matrix(matrix)

# %% [markdown]
# If the neurons are language-specific, the diagonal stands out. It could stand out by chance, or because *any* neurons
# of those layers matter. So the same is measured with random neurons: as many in each language and layer, none of them
# the language's own, three draws.

# %%
draws = {f"random {seed}": found[four].random_like(seed) for seed in range(3)}
table = lsn.perplexity_table(model, text, draws, evaluate="own", text=measured, progress=False)
control = table[table["intervened"] != "none"].groupby("intervened")["nll_change"]

summary = pd.DataFrame(
    {
        "units": found[four].counts(),
        "own text": [matrix.loc[label, label] for label in four],
        "others' text": [matrix.loc[label].drop(label).mean() for label in four],
        "random, mean": control.mean()[four],
        "random, highest": control.max()[four],
    }
)
summary.style.format("{:+.4f}", subset=summary.columns[1:])

# %%
own, highest = summary["own text"], summary["random, highest"]
answers = {
    "own text is hurt most": [x for x in four if matrix.loc[x].idxmax() == x],
    "own text is hurt more than by any random draw": [x for x in four if own[x] > highest[x]],
}
answers = {question: " ".join(each) or "none" for question, each in answers.items()}
pd.Series(answers, name="for").to_frame()

# %% [markdown]
# Read the numbers, not only the count: a language with few neurons can lose little, the hold-out text is 80 sentences,
# and three draws are few. `make demo` measures all languages with more draws; `lsn.compare` does the same in Python.

# %% [markdown]
# ## Keep it
#
# A set is one small file (safetensors with a JSON header) and comes back equal.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    path = found.save(Path(folder) / "lape")
    again = lsn.NeuronSet.load(path)
again == found, path.name

# %% [markdown]
# ## What next
#
# * Your own text: [folders, data sets, layouts](../../corpora/). Your own model: [models](../../models/).
# * Other settings: `lsn.detect(run, "lape", rate=0.02)`, or `at_least=10` to give each language at least ten neurons.
# * Other interventions: `lsn.scale(2.0)`, `lsn.mean_ablation(run.statistics)`, [and more](../../interventions/).
# * Long runs: [shards, resuming, several processes](../../runs/).
# * The exact steps of LAPE, and what it cannot see: [the method page](../../methods/lape/).
# * Whole studies in one call, with a report: `lsn.studies` in the [reference](../../api/).
