"""What a network says: in evaluation mode, batch after batch, without a trace.

Introduced in the chapter *Adversarial examples*.

Floor 1; called by the book, most rooms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from minimax.errors import (
    Words,
    check_batch_size,
    check_classes,
    check_labels,
    check_model,
    check_tensor,
    logits_of,
    refuse,
)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` into evaluation mode; each of their parts gets its own mode back at the end.

    Introduced in *The minimax game*.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def statistics_held() -> Iterator[None]:
    """Let batch normalisations in training go by the batch, and leave their running statistics.

    So a network may be asked about images or weights that are only tried, as Miyato et al. (2018)
    do, and ``torch.func.grad``, which can't differentiate what it would change, goes through it.
    Introduced in *Defenses*.
    """
    held: list[_BatchNorm] = []

    def hold(module: nn.Module, _: Any) -> None:
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.track_running_stats = False
            held.append(module)

    hook = register_module_forward_pre_hook(hold)
    try:
        yield
    finally:
        hook.remove()
        for module in held:
            module.track_running_stats = True


def evaluate(network: nn.Module, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Return what ``network`` gives for ``x`` (N, …), in evaluation mode, batch after batch.

    Raises ValueError for what is no torch.nn.Module, and for no images. Introduced in *DCGAN*.
    """
    check_model(network, "network")
    return _in_batches(network, network, x, batch_size)


def predict_proba(model: nn.Module, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Return ``model``'s class probabilities (N, classes), in evaluation mode.

    Raises ValueError if it does not return one finite row of logits for each of ``x`` (N, …).
    Introduced in *Adversarial examples*.
    """
    check_model(model)
    return _in_batches(lambda part: logits_of(model, part).softmax(1), model, x, batch_size)


@torch.no_grad()
def _in_batches(
    function: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, batch_size: int | None
) -> Tensor:
    if len(check_tensor("x", x)) == 0:
        refuse("x", Words(f"of shape {tuple(x.shape)}"), "a batch of at least one")
    with evaluating(network):
        return torch.cat([function(part) for part in x.split(check_batch_size(batch_size, x))])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of ``x`` (N, …) that ``model`` puts into class ``y`` (N,).

    Raises ValueError as ``predict_proba`` does, and for labels of another shape or that ``model``
    does not know. Introduced in *Adversarial examples*.
    """
    y = check_labels("y", y, len(x))
    probabilities = predict_proba(model, x)
    check_classes("y", y, probabilities.shape[1])
    return (probabilities.argmax(1) == y).float().mean().item()
