"""An ensemble of attacks that needs no tuning: APGD with two losses, FAB, then random squares.

Images are float tensors in [0, 1] of shape (N, channels, H, W); ε is in the same pixel units.
Introduced in the chapter *Evaluating defenses*.
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
    check_classes,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    logits_of,
    refuse,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
AUTO_ATTACK = {"steps": 100, "targets": 9, "queries": 5000}
BIAS, BEYOND, BACK = 0.1, 1.05, 0.9  # FAB's α_max, η and β
DLR_CLASSES = 4  # the ratio is scaled by the third and fourth of the logits


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio (N,), which no scaling of the logits changes.

    Croce and Hein (2020), equation 7: −(z_y − z_t) / (z₁ − (z₃ + z₄)/2), the z with numbers being
    the largest logits in their order. Raises ValueError below four classes. Introduced in
    *Evaluating defenses*.
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
    ValueError for arguments out of range. Introduced in *Evaluating defenses*.
    """
    y, radius = check_images(x, y), check_number("epsilon", epsilon)
    check_choice("loss", loss, tuple(LOSSES))
    steps, batch_size = check_count("steps", steps), check_batch_size(batch_size, x)
    if loss == "dlr" and target is None:
        refuse("target", target, "one class per image with the loss 'dlr'")
    target = y if target is None else check_labels("target", target, len(x))
    if loss == "dlr":
        _check_other(target, y)
    with frozen(model):
        parts = zip(*(t.split(batch_size) for t in (x, y, target)), strict=True)
        ascend = partial(_ascend, model, LOSSES[loss], radius, steps, generator)
        found = [ascend(*part) for part in parts]
    return torch.cat(found)


def _check_other(target: Tensor, y: Tensor) -> None:
    if (same := (target == y).nonzero()).numel():
        refuse("target", Words(f"the label itself at image {int(same[0])}"), "another class than y")


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


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    *,
    steps: int = 100,
    batch_size: int | None = None,
) -> Tensor:
    """Return the misclassified images nearest to ``x`` that FAB finds with targets, in L∞.

    Croce and Hein, *Minimally distorted adversarial examples with a fast adaptive boundary attack*
    (2020), algorithm 1 with the border to one class ``target`` (N,), one start and no final search,
    as in AutoAttack: each of the ``steps`` goes to the plane that stands for the border at the
    point, drawn towards the plane's point nearest to ``x``; once misclassified, it goes back a
    tenth of the way. No ε is given. ``x`` is (N, …), ``y`` (N,) the true classes; an image for
    which nothing is found comes back unchanged. Raises ValueError for arguments out of range.
    Introduced in *Evaluating defenses*.
    """
    y, target = check_images(x, y), check_labels("target", target, len(x))
    steps, batch_size = check_count("steps", steps), check_batch_size(batch_size, x)
    _check_other(target, y)
    return _fab(model, x, y, target, steps, batch_size, 0.0)


def _fab(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, steps: int, batch_size: int,
    enough: float,
) -> Tensor:  # fmt: skip
    """``fab``; an image stops once it is misclassified within ``enough``."""
    with frozen(model):
        parts = zip(*(t.split(batch_size) for t in (x, y, target)), strict=True)
        return torch.cat([_border(model, steps, enough, *part) for part in parts])


def _border(
    model: nn.Module, steps: int, enough: float, x: Tensor, y: Tensor, target: Tensor
) -> Tensor:
    nearest, result = torch.full_like(y, torch.inf, dtype=x.dtype), x.clone()
    flat = x.detach().flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    point, rows = flat, torch.arange(len(x), device=x.device)
    for _ in range(steps):
        image = point.to(x.dtype).view(-1, *x.shape[1:]).requires_grad_()
        logits = differentiable(logits_of(model, image, y[rows]))
        check_classes("target", target, logits.shape[1])
        own, wanted = (logits.gather(1, k[rows, None])[:, 0] for k in (y, target))
        gradient = check_gradient(torch.autograd.grad((own - wanted).sum(), image)[0], rows)
        w, lead = gradient.flatten(1).to(flat), (own - wanted).detach().to(flat)
        plane = (w * point).sum(1) - lead  # w·z where the two classes are even, to first order
        to_it, from_x = (_to_plane(z, w, plane) for z in (point, flat[rows]))
        a, b = (delta.abs().amax(1, keepdim=True).clamp(min=1e-8) for delta in (to_it, from_x))
        bias = (a / (a + b)).clamp(max=BIAS)
        ahead, back = point + BEYOND * to_it, flat[rows] + BEYOND * from_x
        point = ((1 - bias) * ahead + bias * back).clamp(0, 1)
        moved = point.to(x.dtype)
        with torch.no_grad():
            wrong = logits_of(model, moved.view_as(image)).argmax(1) != y[rows]
        size = (moved - x[rows].flatten(1)).abs().amax(1)
        closer = wrong & (size < nearest[rows])
        nearest[rows[closer]] = size[closer]
        result[rows[closer]] = moved.view_as(image)[closer]
        point = torch.where(wrong[:, None], flat[rows] + BACK * (point - flat[rows]), point)
        stay = nearest[rows] > enough
        rows, point = rows[stay], point[stay]
        if not len(rows):
            break
    return result


def _to_plane(point: Tensor, w: Tensor, plane: Tensor) -> Tensor:
    """Return the smallest δ (N, d) in L∞ that takes ``point`` (N, d) to w·z = ``plane`` (N,).

    All pixels go equally far, against w or along it, but stop at 0 and 1: the point moves by
    Σ |w| min(λ, room), which rises with λ. Where the box lets no point be so far, δ ends at its
    corner.
    """
    over = (w * point).sum(1) - plane
    way = -w.sign() * over.sign()[:, None]
    room = torch.where(way < 0, point, 1 - point) * (way != 0)
    ordered, order = room.sort(1)
    slope = w.abs().gather(1, order)
    still = slope.flip(1).cumsum(1).flip(1)  # of all pixels that have at least this room
    stopped = (slope * ordered).cumsum(1) - slope * ordered
    k = torch.searchsorted(stopped + ordered * still, over.abs()[:, None])
    corner, k = k == room.shape[1], k.clamp(max=room.shape[1] - 1)
    far = (over.abs()[:, None] - stopped.gather(1, k)) / still.gather(1, k).clamp(min=1e-30)
    far = torch.where(corner, torch.inf, far.clamp(min=0))
    return way * torch.minimum(far, room)


class Ensemble(NamedTuple):
    """The ``images`` (N, …), the accuracy on them ``after`` each attack in turn, what is left out.

    ``left_out`` says what AutoAttack does and this run did not. Introduced in *Evaluating
    defenses*.
    """

    images: Tensor
    after: dict[str, float]
    left_out: list[str]


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
    """Return what APGD, targeted APGD on DLR, targeted FAB and Square together find, in L∞.

    AutoAttack, the ensemble of Croce and Hein (2020), section 6, as its released code runs it. Each
    attack gets the images that the ones before it left correct; the targets are the ``targets``
    likeliest wrong classes. ``left_out`` says where the budget is less than theirs: 100 ``steps``,
    9 targets, 5,000 ``queries`` of Square. The loss DLR needs four classes: with fewer that part is
    left out, as its line in ``after`` says too. ``x`` is (N, channels, H, W), ``y`` (N,); for a
    sequence of E values of ε the images are (E, N, …), the others lists. Raises ValueError for
    arguments out of range. Introduced in *Evaluating defenses*.
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
    for k in range(min(targets, wrong.shape[1] - 1)):
        if len(rows := left()):
            near = _fab(model, x[rows], y[rows], wrong[rows, k], steps, batch_size, radius)
            size = (near - x[rows]).flatten(1).abs().amax(1)
            inside = (size > 0) & (size <= radius)
            images[rows[inside]] = near[inside]
    after["FAB, targeted"] = share()
    if queries and len(rows := left()):
        with frozen(model):
            found = square(logits, x[rows], y[rows], radius, queries=queries, generator=generator)
        images[rows] = found.images
    after["Square"] = share()
    budget = {"steps": steps, "targets": targets, "queries": queries}
    most = AUTO_ATTACK | {"targets": min(AUTO_ATTACK["targets"], wrong.shape[1] - 1)}
    left_out = [f"{name}: {budget[name]} of {n}" for name, n in most.items() if budget[name] < n]
    return Ensemble(images, after, left_out + ["DLR: fewer than four classes"] * few)


__all__ = ["Ensemble", "apgd", "auto_attack", "dlr", "fab"]
