from .checking import Check as Check
from .checking import Subject as Subject
from .checks import CHECKS as CHECKS
from .checks import Checks as Checks
from .comparing import compare as compare
from .result import Comparison as Comparison
