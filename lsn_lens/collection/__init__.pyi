from .collecting import collect as collect
from .merging import merge_runs as merge_runs
from .passes import Pass as Pass
from .passes import constants_of as constants_of
from .planning import plan_of as plan_of
from .planning import plan_run as plan_run
from .wanted import needs_of as needs_of
from .wanted import widths_of as widths_of
