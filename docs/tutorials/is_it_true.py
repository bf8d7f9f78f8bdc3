# %% [markdown]
# # Is it true?
#
# A detector always returns units, and switching units off always has an effect. Four tests that could prove a result
# wrong: neurons of known role, shuffled labels, random units that are as active, and another spelling.
#
# ## Neurons of known role
#
# On a real model the right answer is unknown. So here it is constructed: a small world of artificial languages, a model
# of it, and planted neurons. A language needs some of them (`truth`); others only look as if it did.

# %%
from pathlib import Path
from tempfile import mkdtemp

import lsn_lens as lsn
from lsn_lens.planted import ROLES, make_world, plant, score_detectors

folder = Path(mkdtemp())
world = make_world(folder / "world", progress=False)
planted = plant(world.folder, world.corpora, folder / "planted", tokens=1500, effect=0.03, progress=False)
roles = [role for role in ROLES if role in set(planted.units["role"])]
units = planted.units.groupby("role")["truth"].agg(["size", "first"]).loc[roles]
units.rename(columns={"size": "units", "first": "needed by a language"})

# %% [markdown]
# Each role was *measured* on hold-out text before the model was returned. Nats per token that the own languages lose
# without the neuron, means per role:

# %%
planted.measured.groupby("role")[["own_rise", "other_rise"]].mean().loc[roles].round(4)

# %% [markdown]
# Which share of each role does a method choose? It should take the needed ones and no others. The settings fit layers
# of 17 units, in which 1 % would be nothing.

# %%
from lsn_lens.methods import Lap, Lape, Plnd

methods = {"lape": Lape(rate=0.4, filter_share=0.5, bar_share=0.5), "lap": Lap(rate=0.4), "plnd": Plnd()}
scores = score_detectors([planted], world.corpora, methods, progress=False)
scores.roles.pivot(index="method", columns="role", values="any")[roles].round(2)

# %% [markdown]
# *Loud* neurons fire on one language and write nothing; *unread* ones write where no later layer reads. A method that
# looks at firing alone cannot tell them from needed ones. [Ground truth](../ground_truth.html) has all roles and
# methods on the embedded model.
#
# ## Shuffled labels
#
# Does the method find more than on text without a difference between languages? The labels of the text's shards are
# permuted. No model is needed.

# %%
from lsn_lens.controls import null_counts

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo")
run = lsn.collect(model, corpora, ["lape", "dln"])
nulls = null_counts(run, ["lape", "dln"], permutations=19)
nulls[nulls["language"].eq("all")][["method", "units", "null_mean", "null_low", "null_high"]].round(1)

# %% [markdown]
# LAPE returns as many units whatever the labels say: its number is a setting, not a finding. A p-value for the *set*,
# and for each unit, comes from `lsn_lens.controls.permutation_test`; see [significance](../significance.html).
#
# ## Random units that are as active
#
# Found units are among the most active of their layer. So are their controls here: as many per layer, the nearest in
# activity in that language.

# %%
from lsn_lens.controls import matched_draws

found = lsn.detect(run, "lape")[["en", "fr", "vi"]]
text = lsn.evaluation.held_out(model, corpora, lsn.Layout(max_tokens=500))
draws = matched_draws(found, 9, run.statistics)
sets = {"found": found, **{f"random {seed}": each for seed, each in draws.sets.items()}}
table = lsn.perplexity_table(model, corpora, sets, evaluate="own", text=text)
table = table[table["intervened"] != "none"]
table.pivot(index="set", columns="intervened", values="nll_change").round(4)

# %% [markdown]
# ## Another spelling
#
# Is it the language or its script? The same method on romanised text, the share of units that it finds again, and the
# ceiling that other text of the same kind gives:

# %%
from lsn_lens.controls import romanised, survival

again = survival(model, corpora, ["lape"], {"romanised": romanised}, run=run, progress=False)
again[["language", "before", "both", "survival", "ceiling", "chance"]].round(2)

# %% [markdown]
# Units of Japanese and Chinese that are not found again are bound to the script. They cannot be called units of the
# *language* on this evidence. [Controls](../controls.html) has the rest: kinds of ablation, outliers, off target.
