from .collecting import collect as collect
from .collecting import needs_of as needs_of
from .collecting import widths_of as widths_of
from .passes import Pass as Pass
from .planning import plan_run as plan_run
