"""Find, compare and test language-specific neurons, on TransformerLens."""

import importlib

import lazy_loader

from lsn_lens.neurons import figures

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
figures.PLOTS[:] = [lambda: importlib.import_module("lsn_lens.report.plots")]  # when the first figure is drawn
