from .run import Run as Run
from .run import load_run as load_run
