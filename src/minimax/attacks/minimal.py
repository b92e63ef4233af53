"""Attacks that look for the smallest perturbation: box-constrained L-BFGS and Carlini–Wagner.

Images are float tensors in [0, 1] of shape (N, …). Introduced in *Adversarial examples*.
"""

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from minimax.attacks.gradient import check_gradient, differentiable, frozen
from minimax.errors import check_count, check_images, check_number, logits_of
from minimax.later import Later

optimize = Later("scipy.optimize")


def lbfgs(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    search_steps: int = 8,
    steps: int = 50,
    c: float = 1.0,
) -> Tensor:
    """Return images near ``x`` that ``model`` takes for ``target``, by box-constrained L-BFGS.

    Szegedy et al. (2014), section 4.1: minimise c·‖r‖² + ℓ(x + r, target) with x + r in [0, 1].
    The paper writes c·|r|; like later implementations we take the square, which is smooth at 0.
    The largest c that still reaches the target is searched: from ``c`` downwards by factors of
    ten, or upwards by factors of two, then by ``search_steps`` bisections of log c; each trial is
    at most ``steps`` rounds of L-BFGS-B. ``x`` is (N, …), ``target`` (N,); an image for which
    no c works comes back unchanged. Raises ValueError for arguments out of range. Introduced in
    *Adversarial examples*.
    """
    target = check_images(x, target, "target")
    search_steps = check_count("search_steps", search_steps, at_least=0)
    steps = check_count("steps", steps)
    c = check_number("c", c, at_least=1e-12)
    # SciPy's and torch's threads, taking turns on the same cores, would stall each other
    with frozen(model), threadpool_limits(1, "blas"):
        pairs = zip(x.split(1), target.split(1), strict=True)
        found = [_lbfgs_one(model, *pair, search_steps, steps, c) for pair in pairs]
    return torch.cat(found)


def _lbfgs_one(
    model: nn.Module, x: Tensor, target: Tensor, search_steps: int, steps: int, c: float
) -> Tensor:
    origin = x.detach().double().flatten().cpu().numpy()
    best = x.detach().clone()

    def as_image(flat: np.ndarray) -> Tensor:
        return torch.from_numpy(flat).to(x).view_as(x)

    def reaches(c: float) -> bool:
        """Solve for this c; keep the solution if the model takes it for the target."""
        nonlocal best

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            image = as_image(flat).requires_grad_()
            logits = differentiable(logits_of(model, image, target, labels="target"))
            loss = cross_entropy(logits, target)
            gradient = check_gradient(torch.autograd.grad(loss, image)[0])
            r = flat - origin
            slope = 2 * c * r + gradient.flatten().double().cpu().numpy()
            return c * (r @ r) + loss.item(), slope

        options, box = {"maxiter": steps}, optimize.Bounds(0, 1)
        end = optimize.minimize(
            objective, origin, jac=True, method="L-BFGS-B", bounds=box, options=options
        )
        image = as_image(end.x).clamp(0, 1)
        if model(image).argmax(1).item() != target.item():
            return False
        best = image
        return True

    if reaches(c):  # c is too small to be the largest: go up until it fails
        low, high = c, 2 * c
        while high < c * 2**10 and reaches(high):
            low, high = high, 2 * high
    else:
        low, high = c / 10, c
        while not reaches(low):
            if low < c * 1e-8:
                return best
            low, high = low / 10, low
    for _ in range(search_steps):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return best


def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    targeted: bool = False,
    confidence: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    lr: float = 1e-2,
    c: float = 1e-3,
) -> Tensor:
    """Return the images nearest to ``x`` in L2 that Carlini and Wagner's attack finds.

    Carlini and Wagner (2017), section VI.A: minimise ‖δ‖² + c·f(x + δ) over w, with
    x + δ = (tanh w + 1)/2 in the box and f the margin by which the attack still fails, plus
    ``confidence``. Per image, c is doubled tenfold until the attack succeeds and then bisected,
    ``search_steps`` times, each with ``steps`` rounds of Adam. ``x`` is (N, …), ``y`` (N,) the
    true classes, or the wanted ones if ``targeted``; an image for which the attack fails comes
    back unchanged. Adam ends early once nothing moves any more, never before every image has been
    turned. Raises ValueError for arguments out of range. Introduced in *Adversarial examples*.
    """
    y = check_images(x, y)
    steps, search_steps = check_count("steps", steps), check_count("search_steps", search_steps)
    confidence = check_number("confidence", confidence)
    for name, value in (("lr", lr), ("c", c)):
        check_number(name, value, at_least=1e-12)

    given, x = x.dtype, x.detach().to(torch.promote_types(x.dtype, torch.float32))
    shape = (-1, *[1] * (x.dim() - 1))
    w_clean = torch.atanh((2 * x - 1) * 0.999999)  # finite at black and white pixels
    clean = (torch.tanh(w_clean) + 1) / 2
    best, nearest = x.clone(), torch.full((len(x),), torch.inf).to(x)
    weight = torch.full_like(nearest, c)
    low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)

    with frozen(model):
        for _ in range(search_steps):
            reached = torch.zeros_like(nearest, dtype=torch.bool)
            delta = torch.zeros_like(x, requires_grad=True)
            optimiser = torch.optim.Adam([delta], lr=lr, fused=True)
            previous = torch.inf
            for step in range(steps):
                image = (torch.tanh(w_clean + delta) + 1) / 2
                logits = differentiable(logits_of(model, image.to(given), y))
                f = margin(logits, y, targeted) + confidence
                loss = ((image - clean) ** 2).sum() + (weight * f.clamp(min=0)).sum()
                delta.grad = check_gradient(torch.autograd.grad(loss, delta)[0])
                optimiser.step()

                with torch.no_grad():
                    succeeds = f < 0 if confidence == 0 else f <= 0
                    distance = (image - x).flatten(1).norm(dim=1)
                    closer = succeeds & (distance < nearest)
                    best = torch.where(closer.view(shape), image.detach(), best)
                    nearest = torch.where(closer, distance, nearest)
                    reached |= succeeds
                if step % -(-steps // 10) == 0:  # ten looks: stop when nothing moves any more
                    if reached.all() and loss.item() > 0.9999 * previous:
                        break
                    previous = loss.item()
            high = torch.where(reached, weight, high)
            low = torch.where(reached, low, weight)
            weight = torch.where(high.isinf(), weight * 10, (low + high) / 2)
    return best.to(given)


def margin(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Return how far each image is from success (N,): negative once the attack has succeeded.

    By how much the logit of the true class ``y`` leads, or that of the wanted one trails.
    Introduced in *Adversarial examples*.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.masked_fill(one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(1)
    return others - own if targeted else own - others
