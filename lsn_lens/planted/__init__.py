"""Ground truth by construction: models with units of known roles."""

from lsn_lens.planted.detectors import DetectorScores, score_detectors
from lsn_lens.planted.measuring import RoleError
from lsn_lens.planted.planting import Planted, load_planted, plant
from lsn_lens.planted.roles import ROLES, Role
from lsn_lens.planted.world import World, make_world

__all__ = [
    "ROLES",
    "DetectorScores",
    "Planted",
    "Role",
    "RoleError",
    "World",
    "load_planted",
    "make_world",
    "plant",
    "score_detectors",
]
