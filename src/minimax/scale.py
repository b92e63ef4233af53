"""The one switch between a quick run and a run with the papers' budgets.

Floor 0; called by the book, likelihood, coverage, attacks, defenses.
"""

import os
import random
from typing import TypeVar

import numpy as np
import torch

from minimax.errors import check_choice, refuse

T = TypeVar("T")


def scale() -> str:
    """Return "quick" (the default) or "paper", as the environment variable MINIMAX_SCALE says.

    Raises ValueError for any other value. Introduced in *How to use this book*.
    """
    return check_choice("MINIMAX_SCALE", os.environ.get("MINIMAX_SCALE", "quick"), SCALES)


SCALES = ("quick", "paper")


def at_scale(*, quick: T, paper: T) -> T:
    """Return ``quick`` or ``paper``, whichever scale this run has.

    Both values stand in the chapter, so a reader sees what a full run takes:
    ``rounds = at_scale(quick=2_000, paper=400_000)``.
    Raises ValueError if MINIMAX_SCALE is neither. Introduced in *How to use this book*.
    """
    return quick if scale() == "quick" else paper


def device_of(generator: torch.Generator | None, x: torch.Tensor) -> torch.device:
    """Return where random numbers for ``x`` are drawn: where the generator is, else where x is.

    Introduced in *Adversarial examples*.
    """
    return x.device if generator is None else generator.device


def seed() -> int:
    """Seed Python, NumPy and torch from the environment variable MINIMAX_SEED and return it.

    The default is 0. Raises ValueError unless it is a whole number from 0 to 2³² − 1.
    Introduced in *How to use this book*.
    """
    text = os.environ.get("MINIMAX_SEED", "0")
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        refuse("MINIMAX_SEED", text, "a whole number from 0 to 4294967295")
    value = int(text)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value
