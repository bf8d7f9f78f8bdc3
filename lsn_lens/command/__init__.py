"""The `lsn-lens` command: one row per subcommand, its settings, and what it does."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
