"""Minimax: the games behind adversarial examples and generative adversarial networks.

The chapters of the book import this package. Each public function says which chapter
introduces it.
"""

from minimax.claims import ClaimFailed, claim, table
from minimax.machine import keep_memory, settle
from minimax.scale import at_scale, seed, use_device

__all__ = ["ClaimFailed", "at_scale", "claim", "seed", "table", "use_device"]

settle()
keep_memory()
