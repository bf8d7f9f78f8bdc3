"""The working language: which language's tokens each layer would write."""

from lsn_lens.evaluation.lens.layers import check_lens, logit_lens, working_language
from lsn_lens.evaluation.lens.vocabulary import TokenLanguages, token_languages
from lsn_lens.evaluation.lens.word_probes import WordProbe, read_probes, word_probes

__all__ = [
    "TokenLanguages",
    "WordProbe",
    "check_lens",
    "logit_lens",
    "read_probes",
    "token_languages",
    "word_probes",
    "working_language",
]
