"""The switches of a run: quick or with the papers' budgets, where it computes, and its seed.

Floor 0; called by the book, most rooms.
"""

import os
import random
from typing import Any, TypeVar

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


def device(at: str | None = None) -> torch.device:
    """Return where a run at scale ``at`` computes: on what the variable MINIMAX_DEVICE names.

    By default the accelerator at paper scale if there is one, and the CPU at quick scale, so that a
    page looks the same everywhere; ``at`` is by default the scale of this run. (Apple's MPS has no
    64-bit floats, which parts of the book need: it has to be asked for.) Raises ValueError for a
    device that is not there. Introduced in *How to use this book*.
    """
    allowed, chosen = ["cpu"], "cpu"
    if found := torch.accelerator.current_accelerator(check_available=True):
        count = torch.accelerator.device_count()
        allowed += [found.type, *(f"{found.type}:{index}" for index in range(count))]
        if (at or scale()) == "paper" and found.type != "mps":
            chosen = found.type
    chosen = os.environ.get("MINIMAX_DEVICE", chosen)
    return torch.device(check_choice("MINIMAX_DEVICE", chosen, allowed))


def use_device(at: str | None = None) -> torch.device:
    """Make ``device(at)`` torch's default device and return it.

    New tensors then lie there, data and networks among them; a generator has to be made there:
    ``torch.Generator(device)``. For matplotlib and NumPy, tensors that lie elsewhere are copied to
    the CPU. On the CPU nothing changes: a default device would cost each call of torch some
    microseconds. Raises ValueError as ``device`` does. Introduced in *How to use this book*.
    """
    chosen = device(at)
    if torch.get_default_device() != chosen:  # to set it to None would end in an error in torch 2.8
        torch.set_default_device(chosen)
    if chosen.type != "cpu":
        torch.Tensor.__array__ = _array  # type: ignore[assignment]
    return chosen


_own_array = torch.Tensor.__array__


def _array(x: torch.Tensor, *given: Any, **named: Any) -> np.ndarray:
    return _own_array(x.cpu(), *given, **named)


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
