# %% [markdown]
# # Your model, your text
#
# Any decoder on which TransformerLens agrees with Hugging Face, and any text that you can name by language. This page
# makes both on the spot: a folder of files, a long table, and a tiny Hugging Face model with random weights in memory.
#
# ## A folder of files
#
# The part of a file's name before its first dot is the language. Each line of a `.txt` file is a document.

# %%
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd

import lsn_lens as lsn

folder = Path(mkdtemp())
embedded = lsn.load_corpora("demo", ["en", "fr", "de"])
for label, corpus in embedded.items():
    (folder / f"{label}.txt").write_text("\n".join(corpus.find), encoding="utf-8")
corpora = lsn.load_corpora(folder)
corpora

# %% [markdown]
# Every third record is held out to measure with; `hold_out=0.5` takes half. Other endings are `.jsonl`, `.csv`,
# `.parquet` and [more](../corpora.html#folders). A record that cannot be used is counted and reported, never dropped
# silently.
#
# ## A table with a column of languages
#
# A long DataFrame, or a `datasets.Dataset`, needs the names of two columns:

# %%
table = pd.DataFrame(
    [(label, text) for label, each in embedded.items() for text in each.find], columns=["lang", "review"]
)
from_table = lsn.load_corpora(table, language_column="lang", column="review")
{label: len(each.find) for label, each in from_table.items()}

# %% [markdown]
# ## A model in memory
#
# Give the Hugging Face model with its tokenizer. Here the tokenizer is trained on the text above, and the weights are
# random. With a fine-tuned model of yours nothing else changes; a PEFT model is copied with its adapters merged.

# %%
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

torch.manual_seed(0)
trained = ByteLevelBPETokenizer()
trained.train_from_iterator(table["review"], vocab_size=1000, special_tokens=["<s>"], show_progress=False)
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="<s>")
config = transformers.LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=0,
)
hf_model = transformers.LlamaForCausalLM(config).eval()
model = lsn.load_model(hf_model, tokenizer)
type(model).__name__, model.cfg.n_layers, model.cfg.d_mlp

# %% [markdown]
# Before you get the model, its logits are compared with those of Hugging Face's own model, alone and padded. A folder
# or a Hub id is loaded the same way: `lsn.load_model("folder")`, `lsn.load_model("org/name", revision=...)`.
#
# ## What a run will need
#
# From the configuration alone, before anything is loaded: bytes of memory and disk.

# %%
lsn.plan_run(config, ["lape", "average_precision"], languages=3, documents=150)

# %% [markdown]
# ## From documents to batches: the layout
#
# A layout is a function of text and model, never of the methods. By default each document is one row where all fit
# into the context, else text is packed into blocks. `run` says which it was, and how many tokens each language has:
# all have as many documents or blocks as the smallest.

# %%
run = lsn.collect(model, corpora, ["lape", "diffmean"])
run

# %%
run.to_frame()

# %% [markdown]
# Packed blocks are what LAPE's released code reads. Some models have learned that every text begins with the BOS (the
# "beginning of sequence" token); `bos=` decides whether each *block* does. By default it is the tokenizer's habit. This
# tokenizer adds none by itself. With the BOS a block has one text token less, so there are more blocks; the BOS counts:

# %%
counts = {
    bos: lsn.collect(model, corpora, "lape", layout=lsn.Layout(kind="blocks", length=64, bos=bos)).to_frame()
    for bos in (False, True)
}
pd.DataFrame({f"bos={bos}": frame["tokens_used"] for bos, frame in counts.items()})

# %% [markdown]
# ## Neurons
#
# Everything after the pass is the same as for the embedded model. A model with random weights cannot have language
# neurons that matter, yet LAPE returns its 1 %: a detector always returns units.

# %%
found = lsn.detect(run, "lape")
matrix = lsn.perplexity_matrix(model, corpora, found)
lsn.plots.change_matrix(matrix)

# %% [markdown]
# The control: as many random neurons in each layer. The mean of the diagonal, in nats per token:

# %%
random = lsn.perplexity_matrix(model, corpora, found.random_like(seed=0))
own = {
    name: sum(each.loc[label, label] for label in corpora) / len(corpora)
    for name, each in {"LAPE's neurons": matrix, "random neurons": random}.items()
}
pd.Series(own, name="own loss increase").to_frame().style.format("{:+.5f}")

# %% [markdown]
# Compare both with [the trained model](first_run.html#switch-a-language-off). One random set is one draw:
# [Is it true?](is_it_true.html) has the controls with p-values.
