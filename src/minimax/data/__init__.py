"""Data sets behind one call: ``load(name, split=…)``."""

from minimax.data.load import Data, load, names
from minimax.data.messages import Messages
from minimax.data.places import DataError

__all__ = ["Data", "DataError", "Messages", "load", "names"]
