# %% [markdown]
# # Compare methods fairly
#
# Methods return sets of different sizes, so the size of an effect says little about the method. This page compares four
# methods on one pass, at their own size against random units, and at equal size against each other.

# %%
import lsn_lens as lsn

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo", ["en", "fr", "vi"])
methods = ["lape", "lave", "diffmean", "language_dimensions"]
run = lsn.collect(model, corpora, methods)

# %% [markdown]
# One call measures everything. To be quick, this page takes 500 hold-out tokens and one size; the 39 random sets per
# method and language are the default.

# %%
comparison = lsn.compare(
    run, methods, model=model, corpora=corpora, sizes=[0.01], size_seeds=1, layout=lsn.Layout(max_tokens=500)
)
comparison.ranking[["method", "units", "shown", "own_hurt_most", "compared_on", "place", "area"]]

# %% [markdown]
# * `shown`: the number of languages that pass. A language passes if its own loss rises (1) more than with random units
#   of the same layers that are as active, and (2) surely more than that of every other language.
# * `own_hurt_most`: the number of languages that are hurt most by their own units, whatever random units do.
# * `place` and `area`: the comparison at equal size, within each kind of unit (`compared_on`).
#
# **Larger sets pass more easily**, so `shown` does not rank methods.
#
# ## At equal size
#
# Each method orders the units of a language. The first 1 % of each method's order are set to the other languages' mean.
# `area` is the own loss increase minus that of the worst other language, with its interval over documents.

# %%
size = comparison.equal_size
size[["bases", "method", "area", "area_low", "area_high", "own_area", "random_area", "place"]]

# %% [markdown]
# What a ranking may say: a method *leads* only if its distance from all other methods of its kind excludes 0. MLP
# neurons are compared with MLP neurons and residual dimensions with residual dimensions: one residual dimension does
# more than one neuron, whichever method chooses it.
#
# ## Against random units
#
# One row per method and language. `p` counts the random sets that do as much. Where none of 39 does, 80 more are drawn.
# `q` is corrected for all methods and languages of the table.

# %%
control = comparison.control_by_language
control[control["method"] == "lave"][["language", "units", "own_rise", "random_mean", "seeds", "p", "q"]].round(4)

# %%
lave = control["method"] == "lave"
points = comparison.control_points
lsn.plots.control(control[lave], points[points["method"] == "lave"], "LAVE: own language against random units")

# %% [markdown]
# ## Do they find the same units?
#
# At equal size. `chance_corrected` is 1 for the same units and 0 for the overlap of random sets. Only methods on one
# kind of unit can agree.

# %%
comparison.agreement[["method", "other", "jaccard", "chance_corrected"]].dropna().round(2)

# %% [markdown]
# ## Doubts, in words

# %%
comparison.warnings

# %% [markdown]
# `comparison.report(folder)` writes all tables and figures as one page: [how to read it](../read_report.html).
# `trust=lsn.Checks()` also draws other samples of the text and shuffled labels. The full comparison of all methods on
# this model: [Comparison](../comparison.html). Which method fits which question: [which method](../which_method.html).
