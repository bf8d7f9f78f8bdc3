from .checkpoints import source_of as source_of
from .loading import load_model as load_model
