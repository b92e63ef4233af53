"""The training kernel: everything that learns in this book is a player of a game."""

from minimax.game.kernel import History, NonFiniteLoss, play
from minimax.game.player import Player, minibatches

__all__ = ["History", "NonFiniteLoss", "Player", "minibatches", "play"]
