from .hub import from_hub as from_hub
from .hub import push_to_hub as push_to_hub
from .run import Run as Run
from .run import load_run as load_run
from .state import run_state as run_state
