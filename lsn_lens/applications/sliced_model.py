"""A Hugging Face class whose MLPs have widths that its configuration cannot name; copied into such checkpoints."""

from torch import nn
from transformers.pytorch_utils import Conv1D


def narrowed(base):
    """The class `base`, with the projections of `config.sliced` (name -> inputs, outputs) at their new sizes."""

    def build(self, config, *arguments, **options):
        base.__init__(self, config, *arguments, **options)
        for name, (inputs, outputs) in config.sliced.items():
            old = self.get_submodule(name)
            is_transposed, has_bias = isinstance(old, Conv1D), old.bias is not None
            new = Conv1D(outputs, inputs) if is_transposed else nn.Linear(inputs, outputs, bias=has_bias)
            parent, _, last = name.rpartition(".")
            setattr(self.get_submodule(parent), last, new)

    return type(base.__name__, (base,), {"__init__": build, "__module__": __name__})
