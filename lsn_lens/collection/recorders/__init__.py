"""Recorders: the part of `collect` that computes needs, one recorder per kind of need."""

from collections.abc import Mapping

from torch import Tensor

from lsn_lens.collection.recorders.base import Acts, Recorder, View
from lsn_lens.collection.recorders.documents import DocumentRows
from lsn_lens.collection.recorders.experts import Experts
from lsn_lens.collection.recorders.importance import Importances
from lsn_lens.collection.recorders.tokens import Histograms, TokenSums
from lsn_lens.collection.recorders.writes import WriteProducts
from lsn_lens.model.structure import Model
from lsn_lens.statistics.experts import ExpertCounts
from lsn_lens.statistics.importance import Importance
from lsn_lens.statistics.needs import DocumentValues, Histogram, Need, Statistic, Writes

RECORDERS: dict[type, type[Recorder]] = {
    Statistic: TokenSums,
    Histogram: Histograms,
    DocumentValues: DocumentRows,
    Importance: Importances,
    ExpertCounts: Experts,
    Writes: WriteProducts,
}


def make_recorder(model: Model, need: Need, widths: Mapping[str, int], constants: Mapping[str, Tensor]) -> Recorder:
    """Make the recorder for a need, by the need's class."""
    return RECORDERS[type(need)](model, need, widths, constants)


__all__ = ["RECORDERS", "Acts", "Recorder", "View", "make_recorder"]
