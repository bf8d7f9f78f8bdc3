# %% [markdown]
# # First neurons in five minutes
#
# This page finds neurons that belong to a language, makes a model write French with them, switches languages off, and
# tests the result against random neurons. A small multilingual model and a little text come with the package, so the
# page runs on a laptop without a network. All results below were computed while this page was built.

# %%
import pandas as pd

import lsn_lens as lsn

model = lsn.load_model("demo")
corpora = lsn.load_corpora("demo")
corpora

# %% [markdown]
# `"demo"` is the embedded model (6 layers of 768 neurons). A local folder, a Hugging Face Hub id, or a model in memory
# works in the same way: [your model, your text](own_model_and_text.html). The result is a TransformerLens model.
#
# Each language has a part to *find* neurons with and a *hold-out* part to measure with, so that no neuron is measured
# on the text that it was found with. The sentences are parallel: the n-th says the same in every language.
#
# ## One pass over the text
#
# `collect` runs the model once, for all methods together. It keeps exact sums, not activations. LAPE, average precision
# and DiffMean are three [methods](../which_method.html) that find units: neurons of the MLP layers, outputs of other
# projections, or dimensions of the residual stream.

# %%
run = lsn.collect(model, corpora, ["lape", "average_precision", "diffmean"])
run

# %% [markdown]
# ## Make it write French
#
# Average precision finds units whose value tells whether a sentence is French. Here they are set to their median value
# on French text while the model writes. DiffMean adds one vector to one layer: the mean on French text minus the mean
# on the others. The control is as many random units in each layer, set to *their* median on French text.

# %%
units = lsn.detect(run, "average_precision", rate=0.02)["fr"]
median = lsn.language_median(run.statistics, "fr")
ways = [
    lsn.Intervention("French units", ((units, median),)),
    lsn.Intervention("random units", ((units.random_like(seed=0), median),)),
    lsn.diffmean_steering(run.statistics, "fr", layer=3),
]
written = lsn.generate_each(model, ways, samples=40, tokens=24)
written.groupby("intervention", sort=False).head(4)[["intervention", "text"]].style.hide().set_properties(
    **{"text-align": "left"}
)

# %% [markdown]
# The first four of 40 texts that the model writes from nothing, with the same random numbers under each intervention.
# The model is small, so look at the language, not at the meaning. An identifier names the language of all 40:

# %%
from lsn_lens.generation import identifier, language_shares, measure_texts

identify = identifier(list(corpora), ruled_out=["ms"])  # the model never read Malay, which resembles Indonesian
shares = language_shares(measure_texts(written, identify), by=["intervention"])
french = shares[shares["language"] == "fr"].set_index("intervention")[["count", "n", "low", "high"]]
french.loc[written["intervention"].unique()].style.format("{:.2f}", subset=["low", "high"])

# %% [markdown]
# `count` of `n` texts are French; `low` and `high` are the 95 % interval of the share. Compare French units with random
# units, not only with the unchanged model: the values on French text may carry a part of the language by themselves,
# whichever the units.
#
# ## Find the neurons of each language
#
# A neuron fires on a token if its gate is above 0. LAPE ("language activation probability entropy") looks for neurons
# that fire often in few languages: the lower the entropy of its firing rates over languages, the more specific the
# neuron ([the exact steps](../methods/lape.html)). This needs no further pass, and not even the model.

# %%
found = lsn.detect(run, "lape")
found

# %%
found.plot()

# %% [markdown]
# The best neurons, and the share of each language's tokens on which each of them fires:

# %%
probability = run.statistics.probability("mlp_pre")  # [language, layer, unit]
best = lsn.score(run, "lape").to_frame().sort_values("score", ascending=False)
best = best.drop_duplicates(["layer", "unit"]).head(5)
rows = {
    (layer, unit): probability[:, layer, unit].tolist() for layer, unit in zip(best["layer"], best["unit"], strict=True)
}
table = pd.DataFrame(rows, index=run.languages).T.rename_axis(["layer", "unit"])
table.style.format("{:.2f}").background_gradient("Blues", axis=None, vmin=0, vmax=1)

# %% [markdown]
# ## Switch a language off
#
# Inside the `with` block the French neurons give zero, in every forward pass and at every position. The weights are
# never edited, so the model is unchanged afterwards. The number is the largest difference of a logit:

# %%
prompt = "La rivière"
with lsn.intervene(model, found["fr"], lsn.zero):
    off = model(prompt)
difference = (model(prompt) - off).abs().max()
float(difference)

# %% [markdown]
# Which languages lose? `perplexity_matrix` switches off the neurons of one language after the other and measures the
# hold-out text of all languages each time. Rows: whose neurons are off. Columns: whose text. Values: loss increase in
# nats per token. If the neurons belong to their language, the diagonal stands out.

# %%
four = ["en", "fr", "vi", "zh"]
some = {label: corpora[label] for label in four}
text = lsn.evaluation.held_out(model, some, lsn.Layout(max_tokens=1000))  # prepared once for all measurements
matrix = lsn.perplexity_matrix(model, some, found[four], text=text)
lsn.plots.change_matrix(matrix)

# %% [markdown]
# ## The control
#
# A diagonal could stand out by chance, or because *any* neurons of these layers matter. So the same is measured with
# random neurons: as many in each layer, about as active in the language, none of them the language's own. Five draws.

# %%
from lsn_lens.controls import matched_draws

draws = {f"random {seed}": each for seed, each in matched_draws(found[four], 5, run.statistics).sets.items()}
table = lsn.perplexity_table(model, some, draws, evaluate="own", text=text)
random = table[table["intervened"] != "none"].groupby("intervened")["nll_change"]
summary = pd.DataFrame(
    {
        "neurons": found[four].counts(),
        "own text": [matrix.loc[label, label] for label in four],
        "worst other": [matrix.loc[label].drop([label]).max() for label in four],
        "random, mean": random.mean()[four],
        "random, highest": random.max()[four],
    }
)
summary.style.format("{:+.4f}", subset=summary.columns[1:])

# %%
own = summary["own text"]
answers = {
    "own text is hurt more than any other": [each for each in four if own[each] > summary["worst other"][each]],
    "and more than by any random draw": [each for each in four if own[each] > summary["random, highest"][each]],
}
pd.Series({question: " ".join(each) or "none" for question, each in answers.items()}, name="languages").to_frame()

# %% [markdown]
# Read the numbers, not only the names: a language with few neurons can lose little, 1,000 tokens per language are
# little text, and five draws are few. `make demo` measures all languages with more draws, and `lsn.compare` does the
# same in Python: [compare methods](compare.html).
#
# ## Keep it
#
# A set is one small file (safetensors with a JSON header) and comes back equal. `run.save(folder)` keeps the run.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    again = lsn.NeuronSet.load(found.save(Path(folder) / "lape"), model)
again == found
