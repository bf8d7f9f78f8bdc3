from .exchange import read_scores as read_scores
from .importing import IMPORTERS as IMPORTERS
from .importing import import_set as import_set
from .importing import plnd_set as plnd_set
from .scores import NeuronScores as NeuronScores
from .sets import NeuronSet as NeuronSet
