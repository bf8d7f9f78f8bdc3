from .experts import ExpertAssignment as ExpertAssignment
from .importance import worst_first_ranks as worst_first_ranks
from .needs import DocumentValues as DocumentValues
from .needs import Statistic as Statistic
from .sums import Statistics as Statistics
