"""An ensemble of attacks that needs no tuning: APGD with two losses, then random squares.

Images are float tensors in [0, 1] of shape (N, channels, H, W); ε is in the same pixel units.
Introduced in the chapter *Defenses*.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks.black_box import square
from minimax.attacks.gradient import (
    BALLS,
    Epsilon,
    check_gradient,
    differentiable,
    for_each_epsilon,
    frozen,
)
from minimax.errors import (
    Words,
    check_batch_size,
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    logits_of,
    refuse,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
DLR_CLASSES = 4  # the ratio is scaled by the third and fourth of the logits


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio (N,), which no scaling of the logits changes.

    Croce and Hein (2020), equation 7: −(z_y − z_t) / (z₁ − (z₃ + z₄)/2), the z with numbers being
    the largest logits in their order. Raises ValueError below four classes. Introduced in
    *Defenses*.
    """
    if logits.shape[1] < DLR_CLASSES:
        got = Words(f"returning {logits.shape[1]} classes")
        refuse("model", got, f"returning at least {DLR_CLASSES} for the loss 'dlr'")
    if target.min() < 0 or target.max() >= logits.shape[1]:
        span = Words(f"from {target.min().item()} to {target.max().item()}")
        refuse("target", span, f"from 0 to {logits.shape[1] - 1}, the classes of the model")
    ordered = logits.sort(1, descending=True).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    own, wanted = (logits.gather(1, k[:, None])[:, 0] for k in (y, target))
    return (wanted - own) / (scale + 1e-12)


def _cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="none")


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "dlr": dlr}


@for_each_epsilon
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: Epsilon,
    *,
    loss: str = "cross_entropy",
    target: Tensor | None = None,
    steps: int = 100,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the images after projected ascent with a step size that finds itself: APGD, L∞.

    Croce and Hein (2020), algorithm 1: the step begins at 2ε and is halved, with a return to the
    best image so far, whenever too few steps have raised the loss. ``loss`` is "cross_entropy" or
    "dlr", which needs a class ``target`` (N,) to move to. ``x`` is (N, …) and ``y`` (N,); the
    result has the shape of ``x``, or (E, N, …) for a sequence of E values of ε. An image stops once
    it is misclassified; one that never is comes back with the highest loss that was found. Raises
    ValueError for arguments out of range. Introduced in *Defenses*.
    """
    y, radius = check_images(x, y), check_number("epsilon", epsilon)
    check_choice("loss", loss, tuple(LOSSES))
    steps, batch_size = check_count("steps", steps), check_batch_size(batch_size, x)
    if loss == "dlr" and target is None:
        refuse("target", target, "one class per image with the loss 'dlr'")
    target = y if target is None else check_labels("target", target, len(x))
    if loss == "dlr" and (same := (target == y).nonzero()).numel():
        refuse("target", Words(f"the label itself at image {int(same[0])}"), "another class than y")
    with frozen(model):
        parts = zip(*(t.split(batch_size) for t in (x, y, target)), strict=True)
        ascend = partial(_ascend, model, LOSSES[loss], radius, steps, generator)
        found = [ascend(*part) for part in parts]
    return torch.cat(found)


@dataclass
class _Search:
    """The state of each image that is not misclassified yet; (N, …) or (N,)."""

    rows: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    point: Tensor
    before: Tensor  # the point one step earlier
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    size: Tensor
    rises: Tensor  # steps since the last check that raised the loss
    checked_value: Tensor  # the best value at the last check
    halved: Tensor  # whether the step was halved then

    def only(self, chosen: Tensor) -> "_Search":
        return _Search(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _ascend(
    model: nn.Module,
    loss: Loss,
    epsilon: float,
    steps: int,
    generator: torch.Generator | None,
    x: Tensor,
    y: Tensor,
    target: Tensor,
) -> Tensor:
    ball, radius = BALLS["linf"], torch.tensor(epsilon, dtype=x.dtype, device=x.device)

    def look(point: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = point.detach().requires_grad_()
        logits = differentiable(logits_of(model, point, y))
        values = loss(logits, y, target)
        gradient = check_gradient(torch.autograd.grad(values.sum(), point)[0])
        return gradient, values.detach(), logits.argmax(1) != y

    point = ball.sample(x, radius, generator)
    gradient, value, fooled = look(point, y, target)
    n = len(x)
    result = point.clone()
    s = _Search(
        torch.arange(n, device=x.device), x, y, target, point, point, gradient, value,
        point, gradient, value, torch.full_like(value, 2 * epsilon), torch.zeros_like(value),
        value, torch.ones(n, dtype=torch.bool, device=x.device),
    ).only(~fooled)  # fmt: skip
    checks = _checks(steps)
    for step in range(1, steps + 1):
        if not len(s.rows):
            break
        size = s.size.view(-1, *[1] * (x.dim() - 1))
        ahead = ball.project(s.point + size * s.gradient.sign(), s.x, radius)
        if step > 1:
            ahead = s.point + 0.75 * (ahead - s.point) + 0.25 * (s.point - s.before)
            ahead = ball.project(ahead, s.x, radius)
        s.before, s.point = s.point, ahead
        s.gradient, now, fooled = look(s.point, s.y, s.target)
        s.rises = s.rises + (now > s.value)
        s.value = now
        better = now > s.best_value
        where = better.view(size.shape)
        s.best = torch.where(where, s.point, s.best)
        s.best_gradient = torch.where(where, s.gradient, s.best_gradient)
        s.best_value = torch.where(better, now, s.best_value)
        result[s.rows] = torch.where(fooled.view(size.shape), s.point, s.best)
        if step in checks:
            stuck = ~s.halved & (s.checked_value >= s.best_value)
            s.halved = (s.rises < 0.75 * checks[step]) | stuck
            s.checked_value, s.rises = s.best_value, torch.zeros_like(s.rises)
            s.size = torch.where(s.halved, s.size / 2, s.size)
            back = s.halved.view(size.shape)
            s.point = torch.where(back, s.best, s.point)
            s.gradient = torch.where(back, s.best_gradient, s.gradient)
        s = s.only(~fooled)
    return result


def _checks(steps: int) -> dict[int, int]:
    """Return the steps after which the size is checked, and how many lie since the last one."""
    shares, gap = [0.0, 0.22], 0.22
    while shares[-1] < 1:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    at = [math.ceil(share * steps) for share in shares]
    return {now: now - last for last, now in pairwise(at) if now > last}


class Ensemble(NamedTuple):
    """The ``images`` (N, …), and the accuracy on them ``after`` each attack in turn.

    Introduced in *Defenses*.
    """

    images: Tensor
    after: dict[str, float]


@for_each_epsilon
def auto_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: Epsilon,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Ensemble:
    """Return what APGD on cross-entropy, targeted APGD on DLR and Square together find, in L∞.

    The ensemble of Croce and Hein (2020), section 6, without its attack FAB. Each attack gets the
    images that the ones before it left correct; the targets are the ``targets`` likeliest wrong
    classes. The loss DLR needs four classes: with fewer that part is left out, as its line in
    ``after`` says. ``x`` is (N, channels, H, W), ``y`` (N,); for a sequence of E values of ε the
    images are (E, N, …), and ``after`` is a list. Raises ValueError for arguments out of range.
    Introduced in *Defenses*.
    """
    y, radius = check_images(x, y), check_number("epsilon", epsilon)
    steps, batch_size = check_count("steps", steps), check_batch_size(batch_size, x)
    targets = check_count("targets", targets, at_least=0)
    queries = check_count("queries", queries, at_least=0)
    if queries and x.dim() != 4:
        refuse("x", Words(f"of shape {tuple(x.shape)}"), "of shape (N, channels, height, width)")
    images, after = x.clone(), {}

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        with frozen(model), torch.no_grad():
            return torch.cat([logits_of(model, part) for part in images.split(batch_size)])

    def left() -> Tensor:
        return (logits(images).argmax(1) == y).nonzero()[:, 0]

    def share() -> float:
        return len(left()) / len(y)

    clean = check_logits(logits(x), len(x), y)
    after["none"] = share()
    options: dict[str, Any] = {"steps": steps, "generator": generator, "batch_size": batch_size}
    if len(rows := left()):
        images[rows] = apgd(model, x[rows], y[rows], radius, **options)
    after["APGD, cross-entropy"] = share()
    wrong = clean.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    few = wrong.shape[1] < DLR_CLASSES
    for k in range(0 if few else min(targets, wrong.shape[1] - 1)):
        if len(rows := left()):
            target = wrong[rows, k]
            images[rows] = apgd(
                model, x[rows], y[rows], radius, loss="dlr", target=target, **options
            )
    after["APGD, targeted DLR" + (": left out, fewer than four classes" if few else "")] = share()
    if queries and len(rows := left()):
        with frozen(model):
            found = square(logits, x[rows], y[rows], radius, queries=queries, generator=generator)
        images[rows] = found.images
    after["Square"] = share()
    return Ensemble(images, after)


__all__ = ["Ensemble", "apgd", "auto_attack", "dlr"]
