"""Generated texts: which language they are in, and whether they are any good."""

from lsn_lens.evaluation.texts.identifiers import IDENTIFIERS, UND, Identify, identifier, identifier_accuracy
from lsn_lens.evaluation.texts.measures import fallbacks, language_shares, measure_texts, pass_rates, text_summary
from lsn_lens.evaluation.texts.strings import distinct, longest_run, repetition

__all__ = [
    "IDENTIFIERS",
    "UND",
    "Identify",
    "distinct",
    "fallbacks",
    "identifier",
    "identifier_accuracy",
    "language_shares",
    "longest_run",
    "measure_texts",
    "pass_rates",
    "repetition",
    "text_summary",
]
