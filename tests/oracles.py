"""What tests hold the package against: plain torch and transformers, and edits written by hand."""

import math

import torch
import transformers
from conftest import VOCABULARY, fused_rows, parts
from torch import nn

from lsn_lens.model import structure
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.neurons.sites import WRITE_SITE


def plain(folder, dtype=torch.float32):
    """A checkpoint as anyone would load it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def read_ids(text, model):
    """`[1 token]`: the text behind the separator."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[model.tokenizer.bos_token_id, *ids]])


@torch.no_grad()
def loss_of(model, rows):
    """Mean loss of all tokens behind the separator, in nats; each row `[1 token]` is read alone."""
    outputs = [model(row) for row in rows]
    logits = torch.cat([getattr(each, "logits", each)[0, :-1] for each in outputs]).double()
    return float(nn.functional.cross_entropy(logits, torch.cat([row[0, 1:] for row in rows])))


def wilson(count, n, z=1.959963984540054):
    """The two ends of Wilson's interval, as in the textbook."""
    share, spread = count / n, z * math.sqrt(count / n * (1 - count / n) / n + z**2 / (4 * n**2))
    return [(share + z**2 / (2 * n) + sign * spread) / (1 + z**2 / n) for sign in (-1, 1)]


def some_ids(rows=2, length=9):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, tolerance=2e-5):
    """Equal to within a small part of the expected values' standard deviation."""
    assert expected.std() > 0.1, "a degenerate model shows nothing"
    assert (actual - expected).abs().max() <= tolerance * expected.std()


def keep(seen, key):
    """A hook that keeps what it sees."""

    def hook(acts, hook):
        seen[key] = acts.clone()

    return hook


def hooks_of(model):
    """All hooks on the model; a bridge has a few of its own on some architectures."""
    return {name: [*point._forward_hooks.values(), *point.fwd_hooks] for name, point in model.hook_dict.items()}


def some_units(model, basis="mlp", share=0.4, seed=0):
    """A random set of units of one language, some in every layer."""
    width = structure.site_width(model, WRITE_SITE[basis])
    chances = torch.rand(1, model.cfg.n_layers, width, generator=torch.Generator().manual_seed(seed))
    return NeuronSet(("xx",), {basis: chances < share}, "some")


def weights_of(module):
    """`[out, in]`, also of a Conv1D, as a view."""
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


def silence(module, rows):
    """Make some outputs of a module zero."""
    if "Norm" in type(module).__name__:  # Gemma's norms scale by 1 + weight
        module.weight[rows] = -1.0
        return
    weights_of(module)[rows] = 0.0
    if module.bias is not None:
        module.bias[rows] = 0.0


def edited(hf_model, architecture, found):
    """The Hugging Face model with the units of a set removed from its weights."""
    for basis in found.masks:
        for layer, units in enumerate(found.units(basis)):
            rows, modules = units.nonzero()[:, 0], parts(architecture, hf_model, layer)
            if basis in ("mlp", "z"):
                weights_of(modules.down if basis == "mlp" else modules.o)[:, rows] = 0.0
            elif basis in "qkv" and hasattr(modules, "qkv"):
                silence(modules.qkv, fused_rows(architecture, basis, rows))
            else:
                silence(getattr(modules, basis), rows)
    return hf_model
