# %% [markdown]
# # Switch off and steer
#
# Two claims about a language's neurons: without them the model leaves the language, and with them it writes in it.
# Both are measured here on texts, beside random units, a direction, and a plain prompt.

# %%
import pandas as pd

import lsn_lens as lsn
from lsn_lens.generation import deactivate, deactivation_table, fallback_matrix, identifier, prompts_from

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr", "de", "ja"])
run = lsn.collect(model, corpora, ["average_precision", "lape", "diffmean"])
sets = {"average_precision": lsn.detect(run, "average_precision", count=300), "lape": lsn.detect(run, "lape")}
pd.DataFrame({name: found.counts() for name, found in sets.items()})

# %% [markdown]
# ## Switch off
#
# Prompts of each language are continued while its units are zero. `seeds=1` adds one random set, with as many units in
# each layer.

# %%
prompts = prompts_from(model, corpora, count=8)
identify = identifier(list(corpora))
off = deactivate(model, sets, prompts, identify, seeds=1, tokens=16)
left = deactivation_table(off)
left

# %% [markdown]
# Which language appears instead? Rows: the language of the prompt, whose units are off. Columns: the language of the
# continuation; `und` is text in which no language can be named.

# %%
fallback = fallback_matrix(off[off["method"].eq("average_precision") & off["seed"].isna()])
lsn.plots.share_map(
    fallback, "Without their units of average precision", "language of the text", "language of the prompt"
)

# %% [markdown]
# A share alone cannot tell a change of language from a broken model. So look at texts:

# %%
fr = off[off["source"].eq("fr") & off["seed"].isna()]
fr.groupby("method").head(3)[["method", "language", "text"]]

# %% [markdown]
# ## Steer
#
# Four ways to get French out of prompts in other languages. `forcing` sets units to their median on the target's
# sentences, `direction` adds the difference of means (DiffMean) in one layer, `instruction` puts words in front.

# %%
from lsn_lens.generation import direction, forcing, instruction, steer, steering_summary, steering_table
from lsn_lens.interventions import language_medians

units, medians = sets["average_precision"], language_medians(run.statistics)
ways = [
    forcing(units, medians, name="average_precision", dose=300),
    forcing(units, medians, name="average_precision", dose=300, seed=0),
    direction(run.statistics, layer=3),
    direction(run.statistics, layer=3, seed=0),
    instruction({"fr": "Le texte est en français.\n"}),
]
texts = steer(model, ways, prompts, ["fr"], identify, samples=1, tokens=16)
table = steering_table(texts)
steering_summary(table)

# %% [markdown]
# `share` is the share of texts in French, `none_share` without an intervention, `random_share` under the random
# counterpart. *Clear* means that the share is above both by Fisher's exact test. How probable the unchanged model finds
# the texts says whether they are still language.
#
# ## What it costs
#
# Steering also changes the loss of real text. Negative: the text of this language became more probable.

# %%
from lsn_lens.generation import steering_losses

layout = lsn.Layout(max_tokens=500)
losses = steering_losses(model, corpora, [each for each in ways[:4] if each.seed is None], ["fr"], layout=layout)
losses

# %% [markdown]
# [Steering](../steering.html) has the whole study with all languages and doses, and `experiments/steer.py` makes it.
# Other actions (`lsn.scale`, `lsn.add`, positions, phases): [interventions](../interventions.html).
