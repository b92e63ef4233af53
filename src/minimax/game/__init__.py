"""The training kernel: everything that learns in this book is a player of a game.

Floor 2; called by the book, most rooms.
"""

from minimax.game.engine import seed_of
from minimax.game.kernel import History, NonFiniteLoss, play
from minimax.game.player import Batches, GameOptions, Options, Player, minibatches, per_player
from minimax.game.start import reinitialise

__all__ = [
    "Batches",
    "GameOptions",
    "History",
    "NonFiniteLoss",
    "Options",
    "Player",
    "minibatches",
    "per_player",
    "play",
    "reinitialise",
    "seed_of",
]
