from .checks import Checks as Checks
from .comparing import Comparison as Comparison
from .comparing import compare as compare
