from .run import Run as Run
from .run import load_run as load_run
from .state import run_state as run_state
