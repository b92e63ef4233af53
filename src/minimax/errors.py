"""One clear sentence for bad input: it names the argument, its value and what is allowed."""

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


class Words(str):
    """A value described in words, which an error shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def refuse(argument: str, value: object, allowed: str) -> NoReturn:
    """Raise ValueError saying that ``argument`` was ``value`` and has to be ``allowed``."""
    raise ValueError(f"{argument} is {value!r}; it has to be {allowed}.")


def check_number(argument: str, value: float, *, at_least: float = 0.0) -> float:
    """Return ``value`` as a float, or refuse it unless it is finite and ≥ ``at_least``."""
    allowed = f"a finite number of at least {at_least:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        refuse(argument, value, allowed)
    if not math.isfinite(number) or number < at_least:
        refuse(argument, value, allowed)
    return number


def check_count(argument: str, value: int, *, at_least: int = 1) -> int:
    """Return ``value``, or refuse it unless it is a whole number ≥ ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        refuse(argument, value, f"a whole number of at least {at_least}")
    return value


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value``, or refuse it unless it is one of ``allowed``."""
    if value not in allowed:
        refuse(argument, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def check_images(x: Tensor, y: Tensor) -> None:
    """Refuse ``x`` unless it is a float batch in [0, 1], and ``y`` unless it holds its labels."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) == 0:
        got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        refuse("x", Words(got), "a non-empty batch of images, a float tensor of shape (N, …)")
    low, high = x.min().item(), x.max().item()
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN is refused too
        refuse("x", Words(f"between {low:g} and {high:g}"), "between 0 and 1 (ε is in pixel units)")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != x.shape[:1]:
        got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        refuse("y", Words(got), f"one whole-numbered class per image, of shape ({len(x)},)")


def check_logits(logits: Tensor, y: Tensor) -> None:
    """Refuse a model whose output is not one finite row of logits per image, or a label outside."""
    if logits.dim() != 2 or len(logits) != len(y):
        got = Words(f"returning shape {tuple(logits.shape)}")
        refuse("model", got, f"returning ({len(y)}, classes)")
    if not torch.isfinite(logits).all():
        got = Words("returning NaN or infinity")
        refuse("model", got, "returning finite logits on images in [0, 1]")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        span = Words(f"from {y.min().item()} to {y.max().item()}")
        refuse("y", span, f"from 0 to {logits.shape[1] - 1}, the classes that the model knows")
