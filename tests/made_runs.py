"""Runs drawn at random, without a model."""

import numpy as np
import torch

from lsn_lens.runs.run import Run

UNITS = 30


def synthetic_run(generator, probabilities, shards=8, tokens=200, spread=50.0):
    """A run of counts: each shard's share varies around the true one, as text does between documents.

    `probabilities` is [language, layer, unit]; shares follow a beta distribution of `spread`, None for none.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    parts = {}
    for label, each in zip("abcdefgh", probabilities, strict=False):
        parts[label] = []
        for _ in range(shards):
            share = each if spread is None else generator.beta(each * spread, (1 - each) * spread)
            counts = torch.from_numpy(generator.binomial(tokens, share))
            parts[label].append({"mlp_pre.positive": counts, "tokens": torch.full((len(each),), tokens)})
    return Run(parts, {})


def values_run(generator, shift, shards=8, documents=3):
    """A run of sums in float64 and of values of single documents; the first language is shifted."""
    parts, rows = {}, {}
    for place, label in enumerate("abc"):
        parts[label], rows[label] = [], []
        for _ in range(shards):
            values = torch.from_numpy(generator.normal(size=(documents, UNITS))) + shift * (place == 0)
            parts[label].append({"resid_post.sum": values.sum(0)[None], "tokens": torch.tensor([documents])})
            rows[label].append({"mlp_pre.mean@0": values.float(), "length@0": torch.ones(documents, 1)})
    return Run(parts, {}, documents=rows)
