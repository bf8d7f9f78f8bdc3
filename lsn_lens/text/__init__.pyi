from .corpora import as_corpora as as_corpora
from .corpora import load_corpora as load_corpora
from .documents import LanguageCorpus as LanguageCorpus
from .plan import Layout as Layout
from .plan import Plan as Plan
