from .program import main as main
from .table import COMMANDS as COMMANDS
from .table import Command as Command
