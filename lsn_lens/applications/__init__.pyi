from .prune import prune_plan as prune_plan
from .slicing import slice_checkpoint as slice_checkpoint
