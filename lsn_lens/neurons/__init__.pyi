from .exchange import read_scores as read_scores
from .hub import from_hub as from_hub
from .hub import push_to_hub as push_to_hub
from .importing import IMPORTERS as IMPORTERS
from .importing import import_set as import_set
from .importing import plnd_set as plnd_set
from .scores import NeuronScores as NeuronScores
from .sets import NeuronSet as NeuronSet
