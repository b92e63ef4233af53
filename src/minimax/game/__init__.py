"""The training kernel: everything that learns in this book is a player of a game."""

from minimax.game.engine import seed_of
from minimax.game.kernel import History, NonFiniteLoss, play
from minimax.game.player import Batches, Player, minibatches
from minimax.game.start import reinitialise

__all__ = [
    "Batches",
    "History",
    "NonFiniteLoss",
    "Player",
    "minibatches",
    "play",
    "reinitialise",
    "seed_of",
]
