"""Ground truth by construction: models with units of known roles."""

from lsn_lens.planted.planting import Planted, load_planted, plant
from lsn_lens.planted.roles import ROLES, Role

__all__ = ["ROLES", "Planted", "Role", "load_planted", "plant"]
