"""Uses of language-specific units: training them alone, smaller models, growth over training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
