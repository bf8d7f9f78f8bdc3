# %% [markdown]
# # The working language
#
# Some models seem to read in one language, work in another, and answer in the first. The logit lens asks each layer
# which token comes next. This page names the language of these tokens, layer by layer, and says how far to trust it.

# %%
import lsn_lens as lsn
from lsn_lens.analysis import read_probes, token_languages, word_probes, working_language

model, corpora = lsn.load_model("demo"), lsn.load_corpora("demo")
labels = token_languages(model.tokenizer, corpora)
labels.coverage().round(3)

# %% [markdown]
# A token belongs to a language if the language's text has it at least ten times as often as any other language's. Most
# tokens belong to none (`none`), and are left out. Those that are identified are nearly always right (`own` against
# `other`): this is measured on hold-out text.
#
# ## The curve

# %%
layers = working_language(model, corpora, labels, layout=lsn.Layout(max_tokens=500))
lsn.plots.language_curves(layers, "fr")

# %% [markdown]
# On French text, the share of each language among the identified tokens that a layer finds most probable. Layer 0 is
# the embedding, the last layer the model's output. Dashed: what the text itself has, and what random tokens of all
# texts would give.
#
# All languages at once, the share of the text's *own* language:

# %%
own = layers[layers["text"] == layers["language"]].pivot(index="text", columns="layer", values="share")
lsn.plots.language_map(own, "Share of the text's own language")

# %% [markdown]
# ## Is it a bias of the lens?
#
# A layer can name one language often, whatever the text. So compare each share with the mean over all texts:

# %%
mean = layers.groupby(["language", "layer"])["share"].mean().unstack()
lsn.plots.language_map(mean, "Share of each language, mean over all texts", rows="language named")

# %% [markdown]
# A language that a layer names on every text is a bias of the lens there, and no working language. `coverage` of a
# layer says how many of its tokens could be identified at all:

# %%
layers.groupby("layer")["coverage"].mean().round(2).to_frame().T

# %% [markdown]
# ## Parallel words
#
# A second road without identification: prompts end just before a word, and its translations compete. Positive: the
# word of the prompt's own language is more probable than the English one.

# %%
words = word_probes(model, read_probes("demo"))
own_word = words[words["language"].eq(words["text"]) & words["other"].eq("en")]
lsn.plots.log_odds_map(
    own_word.pivot(index="text", columns="layer", values="log_odds"), "Own word against the English word"
)

# %% [markdown]
# The embedded model is far too small for these prompts, so this is an example of the call. [On a real
# model](../real_model.html#in-which-language-the-layers-predict) both roads agree on English in the middle layers of
# Gemma 3 270M. [Working language](../working_language.html) says what the lens cannot see.
