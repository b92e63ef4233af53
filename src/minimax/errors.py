"""One clear sentence for bad input: it names the argument, its value and what is allowed.

Floor 0; called by most rooms.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

ROUNDING = 1e-6  # by which a pixel may lie outside [0, 1]


class Words(NamedTuple):
    """What an error says of a value in words, where the value itself would say too little."""

    text: str


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import here what only an ``extra`` of the package installs, because ``what`` needs it.

    Raises ModuleNotFoundError with one sentence that says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs the package {error.name}: pip install 'minimax-book[{extra}]'.",
            name=error.name,
        ) from None


def refuse(argument: str, value: object, allowed: str) -> NoReturn:
    """Raise ValueError saying that ``argument`` was ``value`` and has to be ``allowed``."""
    got = value.text if isinstance(value, Words) else repr(value)
    raise ValueError(f"{argument} is {got}; it has to be {allowed}.")


def check_number(argument: str, value: Any, *, at_least: float = 0.0) -> float:
    """Return ``value`` as a float, or refuse it unless it is finite and ≥ ``at_least``.

    Numbers of NumPy and tensors with a single element are numbers; text and truth values are none.
    """
    allowed = f"a finite number of at least {at_least:g}"
    if isinstance(value, (str, bytes, bool)):
        refuse(argument, value, allowed)
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        refuse(argument, value, allowed)
    if not math.isfinite(number) or number < at_least:
        refuse(argument, value, allowed)
    return number


def check_count(argument: str, value: Any, *, at_least: int = 1) -> int:
    """Return ``value`` as an int, or refuse it unless it is a whole number ≥ ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        refuse(argument, value, f"a whole number of at least {at_least}")
    return int(value)


def check_batch_size(batch_size: int | None, x: Tensor) -> int:
    """Return how many of ``x`` go through a network at a time.

    By default 256 on a CPU, where small batches stay in the cache, else 1,024.
    """
    if batch_size is None:
        return 256 if x.device.type == "cpu" else 1024
    return check_count("batch_size", batch_size)


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value``, or refuse it unless it is one of ``allowed``."""
    if value not in allowed:
        refuse(argument, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def described(value: object) -> Words:
    """Return what an error says of an argument that should have been a tensor of another kind."""
    if isinstance(value, Tensor):
        return Words(f"{tuple(value.shape)} {value.dtype}")
    return Words(type(value).__name__)


def check_tensor(argument: str, value: Tensor) -> Tensor:
    """Return ``value``, or refuse it unless it is a tensor of numbers."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        refuse(argument, described(value), "a tensor of numbers (torch.as_tensor makes one)")
    return value


def all_copies(x: Tensor) -> Tensor:
    """Return the numbers of all copies, where ``x`` is what a loss sees of one (vmap)."""
    while torch._C._functorch.is_batchedtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def check_pixels(argument: str, x: Tensor) -> None:
    """Refuse ``x`` unless it is a non-empty float batch with every pixel in [0, 1]."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        allowed = "a non-empty batch of images, a float tensor of shape (N, …)"
        refuse(argument, described(x), allowed)
    low, high = x.min().item(), x.max().item()
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):  # written so that NaN is refused too
        span = Words(f"between {low:g} and {high:g}")
        refuse(argument, span, "between 0 and 1 (ε is in pixel units)")


def check_labels(argument: str, y: Tensor, images: int) -> Tensor:
    """Return ``y`` as int64, or refuse it unless it is one whole-numbered class for each image."""
    whole = isinstance(y, Tensor) and not (
        y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
    )
    if not whole or y.shape != (images,):
        refuse(argument, described(y), f"one whole-numbered class per image, of shape ({images},)")
    return y.long()


def check_images(x: Tensor, y: Tensor, labels: str = "y") -> Tensor:
    """Refuse ``x`` unless it is a float batch in [0, 1]; return ``y``, its labels, as int64."""
    check_pixels("x", x)
    return check_labels(labels, y, len(x))


def check_model(model: nn.Module, argument: str = "model") -> None:
    """Refuse ``model`` unless it is a torch.nn.Module."""
    if not isinstance(model, nn.Module):
        allowed = "a torch.nn.Module (give a function a module whose forward calls it)"
        refuse(argument, Words(f"of type {type(model).__name__}"), allowed)


def check_logits(
    logits: Tensor,
    images: int,
    y: Tensor | None = None,
    argument: str = "model",
    labels: str = "y",
) -> Tensor:
    """Return ``logits``; refuse a model whose output is not one finite row per image.

    With the labels ``y`` (N,), refuse one that is no class of the model. Both are called so in what
    is said.
    """
    if not isinstance(logits, Tensor):
        got = Words(f"returning {type(logits).__name__}")
        refuse(argument, got, f"returning a tensor of shape ({images}, classes)")
    if logits.dim() != 2 or len(logits) != images:
        got = Words(f"returning shape {tuple(logits.shape)}")
        refuse(argument, got, f"returning ({images}, classes)")
    if logits.shape[1] < 2:
        refuse(argument, Words("returning one logit"), "returning one for each of several classes")
    if not torch.isfinite(logits).all():
        got = Words("returning NaN or infinity")
        refuse(argument, got, "returning finite logits on images in [0, 1]")
    if y is not None:
        check_classes(labels, y, logits.shape[1])
    return logits


def check_classes(argument: str, y: Tensor, classes: int) -> None:
    """Refuse labels ``y`` that are none of so many ``classes``, in any copy of a game."""
    y = all_copies(y)
    if y.numel() and (y.min() < 0 or y.max() >= classes):
        span = Words(f"from {y.min().item()} to {y.max().item()}")
        refuse(argument, span, f"from 0 to {classes - 1}, the classes that the model knows")


def check_classes_of_loss(y: Tensor, classes: int) -> None:
    """Do as ``check_classes``, in a player's loss: on a GPU nothing may wait there."""
    if y.device.type == "cpu":
        check_classes("y", y, classes)


def logits_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    argument: str = "model",
    labels: str = "y",
) -> Tensor:
    """Return the logits (N, classes) of ``model`` at ``x`` (N, …), checked as by check_logits.

    Images of another precision than the model's weights are refused by name.
    """
    check_model(model, argument)
    try:
        logits = model(x)
    except RuntimeError as error:
        weight = next((w for w in model.parameters() if w.is_floating_point()), None)
        told = any(words in str(error) for words in ("dtype", "scalar type", "should be the same"))
        if not told or weight is None or weight.dtype == x.dtype:
            raise
        refuse("x", Words(str(x.dtype)), f"{weight.dtype}, as the weights of the model are")
    return check_logits(logits, len(x), y, argument, labels)


def check_made(network: str, made: Tensor, rows: int, like: Tensor) -> Tensor:
    """Return ``made``, the answer of ``network``, or refuse it unless its rows are as ``like``'s.

    It has to be of shape (``rows``, …), where … is that of ``like``: differences of other shapes
    would be broadcast without a word.
    """
    wanted = (rows, *like.shape[1:])
    if made.shape != wanted:
        refuse(network, Words(f"giving shape {tuple(made.shape)}"), f"giving {wanted}")
    return made
