from .scores import NeuronScores as NeuronScores
from .sets import NeuronSet as NeuronSet
