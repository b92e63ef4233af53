"""Gradient attacks inside a ball of radius ε around the image: FGSM and PGD.

Images are float tensors in [0, 1] of shape (N, …); ε is in the same pixel units. Introduced in the
chapter *Adversarial examples*.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks.products import faster
from minimax.errors import (
    Words,
    check_batch_size,
    check_choice,
    check_count,
    check_images,
    check_model,
    check_number,
    logits_of,
    refuse,
)
from minimax.evaluation import evaluating
from minimax.scale import device_of

Epsilon = float | Sequence[float] | np.ndarray | Tensor
P = ParamSpec("P")
T = TypeVar("T")
TINY = 1e-12  # keeps a zero gradient's norm from dividing by zero


def for_each_epsilon(attack: Callable[P, T]) -> Callable[P, T]:
    """Let ``attack`` take a sequence of E values of ``epsilon``, one after another.

    Tensors of its results get a first dimension of E, all else becomes a list. Introduced in
    *Defenses*.
    """
    signature = inspect.signature(attack)

    @wraps(attack)
    def several(*given: P.args, **named: P.kwargs) -> Any:
        arguments = signature.bind(*given, **named).arguments
        values = _sequence(arguments["epsilon"])
        if values is None:
            return attack(*given, **named)
        call: Callable[..., Any] = attack
        found = [call(**arguments | {"epsilon": one}) for one in values]
        if isinstance(found[0], Tensor):
            return torch.stack(found)
        fields = (list(field) for field in zip(*found, strict=True))
        stacked = (torch.stack(f) if isinstance(f[0], Tensor) else f for f in fields)
        return type(found[0])(*stacked)

    return several


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` fixed: evaluation mode, no gradient for its weights; all restored at the end.

    Raises ValueError for what is no torch.nn.Module. Introduced in *Adversarial examples*.
    """
    check_model(model)
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.requires_grad_(False)
        with evaluating(model), torch.enable_grad(), faster(model):
            yield
    finally:
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return ∇ₓ ℓ(x, y), the gradient of the cross-entropy, of the shape of ``x``.

    ``x`` (N, …) holds images in [0, 1], ``y`` (N,) classes. The weights get no gradient. Raises
    ValueError if either is out of range, and for a model without finite logits or gradients.
    Introduced in *Adversarial examples*.
    """
    y = check_images(x, y)
    with frozen(model):
        return gradient_of(model, x, y)[0].contiguous()


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: Epsilon,
    *,
    targeted: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Return x + ε·sign(∇ₓ ℓ), clipped to [0, 1]: the fast gradient sign method.

    Goodfellow, Shlens and Szegedy (2015), section 4. ``x`` has shape (N, …), ``y`` (N,) holds the
    true classes or, if ``targeted``, the wanted ones (the step then goes down the loss). The
    result has the shape of ``x``; for a sequence of E values of ε it is (E, N, …), from a single
    gradient. Raises ValueError for arguments out of range. Introduced in *Adversarial examples*.
    """
    y = check_images(x, y)
    radii = _epsilons(epsilon, x)
    batch_size = check_batch_size(batch_size, x)
    with frozen(model):
        rows = torch.arange(len(x), device=x.device)
        parts = zip(*(t.split(batch_size) for t in (x, y, rows)), strict=True)
        sign = torch.cat([gradient_of(model, *part)[0].sign() for part in parts])
    step = -sign if targeted else sign
    adversarial = (x.detach() + _per_image(radii, step[None]) * step).clamp_(0, 1)
    return adversarial if np.ndim(epsilon) else adversarial[0]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: Epsilon,
    *,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    restarts: int = 1,
    targeted: bool = False,
    momentum: float = 0.0,
    until_fooled: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the images after projected gradient ascent on the loss inside the ε-ball.

    Madry et al. (2018), section 2.1. With ``random_start=False`` it is the basic iterative method
    of Kurakin et al. (2017); with ``momentum`` μ > 0 that of Dong et al. (2018), equations 6 and 7.

    Shapes: ``x`` (N, …), ``y`` (N,) (true classes, or the wanted ones if ``targeted``). The result
    has the shape of ``x``, or (E, N, …) for a sequence of E values of ε, attacked side by side.
    ``norm`` is "linf" or "l2"; ε and ``step_size`` (default 2.5·ε/steps) are in pixels of [0, 1]
    under that norm. ``start``, of the shape of ``x``, replaces the random start and is projected
    into the ball. Of several ``restarts`` the first that fools the model counts, else the one with
    the highest loss. With ``until_fooled`` an image leaves the batch as soon as the model is
    fooled; without, every image takes all steps. Random numbers come from ``generator``, or from
    torch's global one. ``batch_size`` images, counted once per ε, go through the model at a time.
    Raises ValueError for arguments out of range. Introduced in *Adversarial examples*.
    """
    y = check_images(x, y)
    check_choice("norm", norm, tuple(BALLS))
    steps, restarts = check_count("steps", steps), check_count("restarts", restarts)
    batch_size = check_batch_size(batch_size, x)
    momentum = check_number("momentum", momentum)
    if start is not None:
        if start.shape != x.shape:
            refuse("start", tuple(start.shape), f"a tensor of the shape of x, {tuple(x.shape)}")
        if not start.isfinite().all():
            refuse("start", Words("with NaN or infinity"), "finite")
        start = start.to(x)

    radii = _epsilons(epsilon, x)
    size = check_number("step_size", step_size) if step_size is not None else None
    ascent = _Ascent(model, BALLS[norm], steps, -1 if targeted else 1, momentum, until_fooled)

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.detach().repeat(len(radii), *[1] * (tensor.dim() - 1))

    radius = radii.repeat_interleave(len(x))
    step = torch.full_like(radius, size) if size is not None else radius * (2.5 / steps)
    rows = repeated(torch.arange(len(x), device=x.device))
    batch = [repeated(x), repeated(y), _per_image(radius, x), _per_image(step, x), rows]
    starts = batch[0] if start is None else repeated(start)
    sample = random_start and start is None

    adversarial = []
    with frozen(model):
        for *chunk, first in zip(*(t.split(batch_size) for t in [*batch, starts]), strict=True):
            found = ascent.best_of(restarts, _Batch(*chunk), first, sample, generator)
            adversarial.append(found)
    result = torch.cat(adversarial).view(len(radii), *x.shape)
    return result if np.ndim(epsilon) else result[0]


class _Linf:
    """The ball max|δ| ≤ ε."""

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        return gradient.sign()

    @staticmethod
    def project(point: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        return (x + (point - x).clamp(-radius, radius)).clamp(0, 1)

    @staticmethod
    def sample(x: Tensor, radius: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(x, device=device_of(generator, x))
        noise = noise.uniform_(-1, 1, generator=generator).to(x.device)
        return (x + radius * noise).clamp(0, 1)


class _L2:
    """The ball ‖δ‖₂ ≤ ε."""

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        return (gradient * (1 / _norm(gradient))).to(gradient)

    @staticmethod
    def project(point: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        delta = point - x
        return (x + delta * (radius / _norm(delta)).clamp(max=1)).clamp(0, 1).to(x)

    @staticmethod
    def sample(x: Tensor, radius: Tensor, generator: torch.Generator | None) -> Tensor:
        noise, share = (torch.empty_like(t, device=device_of(generator, x)) for t in (x, radius))
        noise = noise.normal_(generator=generator).to(x.device)
        share = share.uniform_(generator=generator).to(x.device) ** (1 / x[0].numel())
        return (x + radius * share * noise / _norm(noise)).clamp(0, 1).to(x)


BALLS: dict[str, type[_Linf] | type[_L2]] = {"linf": _Linf, "l2": _L2}


class _Batch(NamedTuple):
    """What belongs to each image, so that images can leave together with it."""

    x: Tensor
    y: Tensor
    radius: Tensor
    step: Tensor
    rows: Tensor  # its number among the images of the caller

    def only(self, chosen: Tensor) -> "_Batch":
        return _Batch(*(part[chosen] for part in self))


class _Ascent(NamedTuple):
    model: nn.Module
    ball: type[_Linf] | type[_L2]
    steps: int
    sign: int
    momentum: float
    until_fooled: bool

    def run(self, batch: _Batch, start: Tensor) -> Tensor:
        """Take the steps from ``start``; return where each image ended."""
        result, point = start.clone(), start
        left = torch.arange(len(start), device=start.device)
        velocity = torch.zeros_like(start)
        # Off the CPU no step waits for what the numbers are: NaN and infinity leave a trace.
        waits, trace = self.until_fooled or start.device.type == "cpu", torch.zeros_like(start)
        for step in range(self.steps):
            looks = waits or step == 0
            gradient, logits = gradient_of(self.model, point, batch.y, batch.rows, looks=looks)
            if self.until_fooled:
                result[left] = point
                stay = ~self.fooled(logits, batch.y)
                left, batch, point = left[stay], batch.only(stay), point[stay]
                gradient, velocity = gradient[stay], velocity[stay]
                if len(left) == 0:
                    break
            if not looks:
                trace += 0 * gradient
            if self.momentum:
                velocity = self.momentum * velocity + (gradient / _norm(gradient, 1)).to(gradient)
                gradient = velocity
            moved = point + self.sign * batch.step * self.ball.direction(gradient)
            point = self.ball.project(moved, batch.x, batch.radius)
        result[left] = point
        if not waits:
            check_gradient(trace, batch.rows)
        return result

    def best_of(
        self,
        restarts: int,
        batch: _Batch,
        start: Tensor,
        sample: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Run ``restarts`` times and keep each image's best end."""
        best = batch.x.clone()
        score = torch.full_like(best.flatten(1)[:, 0], -torch.inf)
        left = torch.arange(len(best), device=best.device)
        for _ in range(restarts):
            now = batch.only(left)
            first = self.ball.sample(now.x, now.radius, generator) if sample else start[left]
            end = self.run(now, self.ball.project(first, now.x, now.radius))
            if restarts == 1:
                return end
            new = self.score(end, now.y)
            better = new > score[left]
            best[left[better]], score[left[better]] = end[better], new[better]
            if self.until_fooled:
                left = left[score[left] < torch.inf]
                if len(left) == 0:
                    break
        return best

    def fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        hit = logits.argmax(1) == y
        return hit if self.sign < 0 else ~hit

    @torch.no_grad()
    def score(self, point: Tensor, y: Tensor) -> Tensor:
        """Return each image's loss, from the attacker's side, and ∞ where the model is fooled."""
        logits = self.model(point)
        loss = self.sign * cross_entropy(logits, y, reduction="none")
        return loss.masked_fill(self.fooled(logits, y), torch.inf)


def gradient_of(
    model: nn.Module, x: Tensor, y: Tensor, rows: Tensor | None = None, *, looks: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the cross-entropy at ``x`` and the logits there, ``model`` frozen.

    ``rows`` are the images' numbers in what is said of a gradient that is not finite, if it
    ``looks`` for that: on a GPU a look waits. Introduced in *Adversarial examples*.
    """
    x = x.detach().requires_grad_()
    logits = differentiable(logits_of(model, x, y) if looks else model(x))
    loss = cross_entropy(logits, y, reduction="sum")  # no image's gradient depends on the others
    (gradient,) = torch.autograd.grad(loss, x)
    return check_gradient(gradient, rows) if looks else gradient, logits.detach()


def differentiable(logits: Tensor) -> Tensor:
    """Return ``logits``, or refuse a model through which no gradient reaches the images.

    Introduced in *Adversarial examples*.
    """
    if not logits.requires_grad:
        allowed = "differentiable (black-box attacks need no gradient)"
        refuse("model", Words("without a gradient in x"), allowed)
    return logits


def check_gradient(gradient: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return ``gradient`` (N, …), or refuse one that is not finite by the number of its image.

    Introduced in *Adversarial examples*.
    """
    bad = ~gradient.isfinite().flatten(1).all(1)
    if bad.any():
        first = bad.nonzero()[0, 0]
        image = int(first if rows is None else rows[first])
        refuse("the gradient of model", Words(f"NaN or infinite at image {image}"), "finite")
    return gradient


def _norm(delta: Tensor, p: float = 2) -> Tensor:
    """Return each image's p-norm, shaped to divide ``delta``; in 32 bits at least."""
    precise = torch.promote_types(delta.dtype, torch.float32)
    size = torch.linalg.vector_norm(delta.flatten(1), p, dim=1, dtype=precise)
    return _per_image(size, delta).clamp(min=TINY)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per image, shaped to broadcast over the pixels of ``x``."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _epsilons(epsilon: Epsilon, x: Tensor) -> Tensor:
    """Return ε as a tensor of one value per requested ball."""
    values = _sequence(epsilon)
    values = [epsilon] if values is None else values
    return torch.tensor([check_number("epsilon", v) for v in values], dtype=x.dtype).to(x.device)


def _sequence(epsilon: Any) -> list[Any] | None:
    """Return the values of a sequence of radii; None for a single one."""
    values = epsilon.tolist() if isinstance(epsilon, (Tensor, np.ndarray)) else epsilon
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        return None
    if not len(values):
        refuse("epsilon", epsilon, "a number or a non-empty sequence of numbers")
    return list(values)
