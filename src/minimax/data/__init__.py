"""Data sets behind one call: ``load(name, split=…)``.

Floor 2; called by the book, attacks, collapse, dcgan, robust, reproduce.
"""

from minimax.data.imagenet import Pretrained, squeezenet, squeezenet_available
from minimax.data.messages import Messages
from minimax.data.places import DataError
from minimax.data.readers import Data, available, load, names

__all__ = [
    "Data",
    "DataError",
    "Messages",
    "Pretrained",
    "available",
    "load",
    "names",
    "squeezenet",
    "squeezenet_available",
]
