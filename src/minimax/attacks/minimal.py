"""Attacks that look for the smallest perturbation: L-BFGS, Carlini–Wagner, DeepFool, and JSMA.

Images are float tensors in [0, 1] of shape (N, …). Introduced in *Adversarial examples*,
*Defenses* and *Evaluating defenses*.
"""

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from minimax.attacks.gradient import TINY, check_gradient, differentiable, frozen
from minimax.errors import (
    check_batch_size,
    check_choice,
    check_count,
    check_images,
    check_number,
    logits_of,
)
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
    The largest c that still reaches the target is searched (the paper says the minimum, but the
    larger c, the shorter r): from ``c`` downwards by factors of ten, or upwards by factors of two,
    then by ``search_steps`` bisections of log c; each trial is at most ``steps`` rounds of
    L-BFGS-B. ``x`` is (N, …), ``target`` (N,); an image for which no c works comes back
    unchanged. Raises ValueError for arguments out of range. Introduced in
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


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    steps: int = 50,
    targets: int = 9,
    overshoot: float = 0.02,
    batch_size: int | None = None,
) -> Tensor:
    """Return images just beyond the border that is nearest while ``model`` counts as linear.

    Moosavi-Dezfooli, Fawzi and Frossard (2016), algorithm 2: step onto the nearest border between
    the true class and the ``targets`` likeliest others, as the gradients at the image have it;
    look again from there, until the class changes, ``steps`` times at most. All steps together are
    lengthened by the share ``overshoot``. ``norm`` is "l2", or "linf" (equation 11, p = ∞). Two
    things are not in the paper: each point is clipped to [0, 1], and each step is 10⁻⁴ longer, as
    in the authors' code, so that it leaves a tie. ``x`` is (N, …), ``y`` (N,) the true classes; an
    image for which the attack fails comes back unchanged, as does one that is misread as it is.
    Raises ValueError for arguments out of range. Introduced in *Evaluating defenses*.
    """
    y = check_images(x, y)
    check_choice("norm", norm, ("l2", "linf"))
    steps, targets = check_count("steps", steps), check_count("targets", targets)
    longer = 1 + check_number("overshoot", overshoot)
    batch_size = check_batch_size(batch_size, x)
    with frozen(model):
        pairs = zip(x.detach().split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([_deepfool(model, *pair, norm, steps, targets, longer) for pair in pairs])


def _deepfool(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int, targets: int, longer: float
) -> Tensor:
    result, rows = x.clone(), torch.arange(len(x), device=x.device)
    logits = logits_of(model, x, y).detach()
    wrong = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    classes = torch.cat([y[:, None], wrong[:, :targets]], 1)  # the true one comes first
    origin, point, walked = x, x, torch.zeros_like(x)
    for step in range(steps + 1):
        stay = logits.argmax(1) == classes[:, 0]
        result[rows[~stay]] = point[~stay]
        rows, classes, origin = rows[stay], classes[stay], origin[stay]
        point, walked = point[stay], walked[stay]
        if step == steps or len(rows) == 0:
            break
        walked = walked + _to_the_nearest_border(model, point, classes, norm).view_as(point)
        point = (origin + longer * walked).clamp(0, 1)
        logits = logits_of(model, point).detach()
    return result


def _to_the_nearest_border(model: nn.Module, x: Tensor, classes: Tensor, norm: str) -> Tensor:
    """Return the step (N, pixels) from the first of ``classes`` (N, K) to the nearest other."""
    x = x.detach().requires_grad_()
    z = differentiable(logits_of(model, x)).gather(1, classes)
    slopes = [
        check_gradient(torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)[0]).flatten(1)
        for k in range(classes.shape[1])
    ]
    gap = (z[:, :1] - z[:, 1:]).detach()
    w = torch.stack(slopes[1:], 1) - slopes[0][:, None]
    size = w.abs().sum(2) if norm == "linf" else w.norm(dim=2)
    distance = gap / size.clamp(min=TINY)
    nearest = distance.argmin(1, keepdim=True)
    w = w.gather(1, nearest[:, :, None].expand(-1, 1, w.shape[2]))[:, 0]
    direction = w.sign() if norm == "linf" else w / size.gather(1, nearest).clamp(min=TINY)
    return (distance.gather(1, nearest) + 1e-4) * direction


def jsma(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    pixels: int = 112,
    outputs: str = "logits",
) -> Tensor:
    """Return images that ``model`` takes for ``target``, a few of whose pixels are white now.

    Papernot et al. (2016, The limitations of deep learning in adversarial settings), algorithms 2
    and 3, θ = +1: of all pairs of pixels the one with the largest −α·β turns white, where α > 0 is
    by how much the two raise the target's output and β < 0 by how much they raise those of all
    other classes together; then again, until the target is reached or no more than ``pixels`` have
    changed (112 of 784 are the paper's Υ = 14.5 %). ``outputs`` are the "logits", as there, or the
    "probabilities", by which the paper on distillation judged. Of an image with colours each
    channel of a pixel counts. ``x`` is (N, …), ``target`` (N,); an image for which the attack fails
    comes back unchanged. Raises ValueError for arguments out of range. Introduced in *Defenses*.
    """
    target = check_images(x, target, "target")
    pixels = check_count("pixels", pixels, at_least=2)
    check_choice("outputs", outputs, ("logits", "probabilities"))
    result, point = x.detach().clone(), x.detach().clone()
    rows = torch.arange(len(x), device=x.device)
    with frozen(model):
        for pairs in range(pixels // 2 + 1):
            now = point[rows].requires_grad_()
            logits = differentiable(logits_of(model, now, target[rows], labels="target"))
            reached = logits.argmax(1) == target[rows]
            result[rows[reached]] = point[rows[reached]]
            if pairs == pixels // 2 or reached.all():
                break
            said = logits if outputs == "logits" else logits.softmax(1)
            own = said.gather(1, target[rows, None]).sum()
            (alpha,) = torch.autograd.grad(own, now, retain_graph=True)
            (beta,) = torch.autograd.grad(said.sum() - own, now)
            white = (now >= 1).flatten(1)
            alpha = check_gradient(alpha).flatten(1).masked_fill(white, -torch.inf)
            beta = check_gradient(beta).flatten(1)
            going: list[bool] = []
            for row, a, b in zip(rows.tolist(), alpha, beta, strict=True):
                pair = None if reached[len(going)] else _most_salient_pair(a, b)
                if pair is not None:
                    point[row].view(-1)[pair] = 1
                going.append(pair is not None)
            rows = rows[torch.tensor(going, device=rows.device)]
            if len(rows) == 0:
                break
    return result


def _most_salient_pair(raises: Tensor, others: Tensor) -> Tensor | None:
    """Return the two pixels with the largest −α·β, α > 0 and β < 0; None if there are none.

    ``raises`` are what each adds to α, ``others`` what it adds to β. A pixel beside which two
    others are at least as good in both is in no best pair: what is
    left is the front of those that no other beats in both, and the front without that one.
    """
    first = _front(raises, -others)
    rest = torch.ones_like(raises, dtype=torch.bool).index_fill(0, first, False).nonzero()[:, 0]
    few = torch.cat([first, rest[_front(raises[rest], -others[rest])]])
    a, b = raises[few, None] + raises[few], others[few, None] + others[few]
    saliency = torch.where((a > 0) & (b < 0), -a * b, 0).triu(1)
    best = int(saliency.argmax())
    if saliency.view(-1)[best] <= 0:
        return None
    return few[list(divmod(best, len(few)))]


def _front(a: Tensor, b: Tensor) -> Tensor:
    """Return the indices at which no other value of ``a`` and of ``b`` is larger together."""
    order = a.argsort(descending=True)
    return order[b[order] >= b[order].cummax(0).values]
