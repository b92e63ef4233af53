"""Attacks that see a model only through its answers: labels, or scores.

An oracle is any function from images (N, …) in [0, 1] to labels (N,); a score function returns
logits or probabilities (N, classes). Introduced in the chapter *Black-box and physical attacks*.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minimax.attacks.gradient import Epsilon, for_each_epsilon, frozen
from minimax.attacks.minimal import margin
from minimax.attacks.products import faster
from minimax.errors import (
    Words,
    check_classes,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_model,
    check_number,
    check_pixels,
    logits_of,
    refuse,
)
from minimax.game import Player, minibatches, play
from minimax.scale import device_of

Oracle = Callable[[Tensor], Tensor]


class Substitute(NamedTuple):
    """What training a substitute leaves: the images it asked about, and the oracle's labels.

    ``queries`` and ``watched`` have one entry for each time that the network was trained: how many
    images had been labelled until then, and what ``watch`` gave. Introduced in *Black-box and
    physical attacks*.
    """

    images: Tensor
    labels: Tensor
    queries: list[int]
    watched: list[float]


class Queried(NamedTuple):
    """Adversarial images, and how many queries (N,) each of them took.

    Introduced in *Black-box and physical attacks*.
    """

    images: Tensor
    queries: Tensor


def train_substitute(
    oracle: Oracle,
    network: nn.Module,
    seeds: Tensor,
    *,
    augmentations: int = 6,
    step_size: float = 0.1,
    period: int = 3,
    reservoir: tuple[int, int] | None = None,
    epochs: int = 10,
    lr: float = 1e-3,
    watch: Callable[[], float] | None = None,
    generator: torch.Generator | None = None,
) -> Substitute:
    """Train ``network`` to answer as ``oracle`` does, and return what was asked.

    Papernot et al. (2017), algorithm 1: beginning with ``seeds`` (N, …), the network is trained for
    ``epochs`` on all that the oracle has labelled; then each image x gets a neighbour
    x ± λ·sign(∇ₓ of the network's logit for the oracle's label), with λ = ``step_size`` in pixels,
    whose sign flips every ``period`` augmentations. So each of the ``augmentations`` doubles the
    images; with ``reservoir=(after, keep)``, from augmentation ``after`` on only ``keep`` of the
    neighbours are kept, drawn uniformly (the paper's reservoir sampling). ``watch`` is called after
    each training, without arguments. Raises ValueError for arguments out of range. Introduced in
    *Black-box and physical attacks*.
    """
    check_pixels("seeds", seeds)
    check_model(network, "network")
    augmentations = check_count("augmentations", augmentations, at_least=0)
    period, epochs = check_count("period", period), check_count("epochs", epochs)
    step_size = check_number("step_size", step_size)
    if reservoir is not None:
        check_count("reservoir", reservoir[0], at_least=0)
        check_count("reservoir", reservoir[1])
    drawn_on = device_of(generator, seeds)
    images, labels = seeds, _asked(oracle, seeds)
    queries, watched = [], []
    for augmentation in range(augmentations + 1):
        check_classes("oracle(images)", labels, logits_of(network, images[:1]).shape[1])
        rounds = epochs * math.ceil(len(images) / 128)
        player = Player(network, lambda x, y: cross_entropy(network(x), y), lr=lr)
        batches = minibatches(images, labels, size=min(128, len(images)))
        seed = int(torch.randint(2**31, (), generator=generator, device=drawn_on))
        play([player], batches, rounds=rounds, seed=seed)
        queries.append(len(images))
        if watch is not None:
            watched.append(watch())
        if augmentation == augmentations:
            break
        signed = step_size * (-1) ** (augmentation // period)
        with frozen(network):
            x = images.clone().requires_grad_()
            logits = logits_of(network, x)
            (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), x)
        new = (images + signed * gradient.sign()).clamp(0, 1)
        if reservoir is not None and augmentation >= reservoir[0]:
            order = torch.randperm(len(new), generator=generator, device=drawn_on)
            new = new[order[: reservoir[1]].to(new.device)]
        images, labels = torch.cat([images, new]), torch.cat([labels, _asked(oracle, new)])
    return Substitute(images, labels, queries, watched)


def _asked(oracle: Oracle, images: Tensor) -> Tensor:
    """Return the labels (N,) that ``oracle`` gives to ``images``, or refuse what is none."""
    return check_labels("oracle(images)", oracle(images), len(images)).to(images.device)


@for_each_epsilon
@torch.no_grad()
def square(
    scores: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    epsilon: Epsilon,
    *,
    queries: int = 5000,
    share: float = 0.8,
    generator: torch.Generator | None = None,
) -> Queried:
    """Return images with |δ| ≤ ε found by random squares: the Square attack, L∞.

    Andriushchenko et al. (2020), algorithm 2: begin with vertical stripes of ±ε; then try squares
    of ±ε per channel at random places, and keep those that lower the margin of the true class. A
    square has ``share`` of the area at first, less later. ``x`` is (N, channels, H, W) in [0, 1],
    ``y`` (N,); for a sequence of E values of ε the result has a first dimension of E. An image
    stops asking once it is misclassified, and at most after ``queries``.
    Logits serve better than probabilities: of two that are nearly 1, the margins are equal. Raises
    ValueError for arguments out of range. Introduced in *Black-box and physical attacks*.
    """
    y = check_images(x, y)
    if x.dim() != 4:
        refuse("x", tuple(x.shape), "of shape (N, channels, height, width)")
    radius, queries = check_number("epsilon", epsilon), check_count("queries", queries)
    if not 0 < check_number("share", share) <= 1:
        refuse("share", share, "above 0 and at most 1")
    n, channels, height, width = x.shape
    within, flat = faster(scores), x.flatten(2)

    def lead(images: Tensor, y: Tensor) -> Tensor:
        with within:
            logits = check_logits(scores(images), len(images), y, "scores")
        ahead = margin(logits, y)
        right = logits.argmax(1) == y  # a tie may still be: then the image is not misclassified
        return torch.where(right, ahead.clamp(min=torch.finfo(ahead.dtype).tiny), ahead)

    drawn_on = device_of(generator, x)

    def coins(*shape: int) -> Tensor:
        random = torch.rand(shape, generator=generator, device=drawn_on)
        return (2.0 * (random < 0.5) - 1).to(x)

    best = (x + radius * coins(n, channels, 1, width)).clamp(0, 1)
    lowest = lead(best, y)
    asked = torch.ones(n, dtype=torch.long, device=x.device)
    for query in range(1, queries):
        alive = (lowest > 0).nonzero()[:, 0]
        if not len(alive):
            break
        area = _schedule(query / queries) * share * height * width
        side = min(max(round(math.sqrt(area)), 1), height - 1, width - 1)
        way, shape = torch.arange(side, device=x.device), (len(alive), 1, 1)
        rows, columns = (
            torch.randint(span - side + 1, shape, generator=generator, device=drawn_on).to(way)
            for span in (height, width)
        )
        square = ((rows + way[:, None]) * width + columns + way).flatten(1)  # its pixels
        at = square[:, None].expand(-1, channels, -1)
        delta = radius * coins(len(alive), channels, 1)
        inside = (flat[alive].gather(2, at) + delta).clamp(0, 1)
        tried = best[alive].flatten(2).scatter(2, at, inside).view(-1, *x.shape[1:])
        now = lead(tried, y[alive])
        asked[alive] += 1
        better = now < lowest[alive]
        best[alive[better]], lowest[alive[better]] = tried[better], now[better]
    return Queried(best, asked)


def _schedule(progress: float) -> float:
    """Return the factor of the squares' area, halved at the paper's steps (of 10,000)."""
    halvings = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return 0.5 ** sum(progress > at for at in halvings)


@torch.no_grad()
def hop_skip_jump(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    *,
    queries: int = 2000,
    first_batch: int = 100,
    generator: torch.Generator | None = None,
) -> Queried:
    """Return misclassified images near ``x`` in L2, found from labels alone: HopSkipJump.

    Chen, Jordan and Wainwright (2020), algorithm 2, untargeted. From ``start`` (of the shape of
    ``x``, and not labelled ``y``), each image goes to the boundary by bisection, estimates the
    normal there from the labels of random neighbours, steps along it and goes back to the boundary;
    ``first_batch`` neighbours at first, √t times as many in step t. An image ends once it has used
    ``queries``. Raises ValueError if a start is labelled as its ``y``. Introduced in *Black-box and
    physical attacks*.
    """
    y = check_images(x, y)
    queries, first_batch = check_count("queries", queries), check_count("first_batch", first_batch)
    if start.shape != x.shape:
        refuse("start", tuple(start.shape), f"of the shape of x, {tuple(x.shape)}")
    check_pixels("start", start)
    same = _asked(oracle, start) == y
    if same.any():
        at = int(same.nonzero()[0])
        refuse("start", Words(f"labelled {int(y[at])}"), f"of another class than y at image {at}")
    found = [
        _walk(oracle, image, int(label), first, queries, first_batch, generator)
        for image, label, first in zip(x, y, start, strict=True)
    ]
    images, used = zip(*found, strict=True)
    return Queried(torch.stack(images), torch.tensor(used, device=x.device))


def _normal(fools: Tensor, noise: Tensor) -> Tensor:
    """Return the unit normal of the boundary, from which of the neighbours along ``noise`` fool.

    Chen, Jordan and Wainwright (2020), equation 16: less the mean of the signs, which lowers the
    variance where most neighbours lie on one side.
    """
    sign = 2.0 * fools - 1
    weight = sign if sign.mean().abs() == 1 else sign - sign.mean()
    normal = (weight.view(-1, *[1] * (noise.dim() - 1)) * noise).mean(0)
    return normal / normal.norm().clamp(min=1e-12)


def _walk(
    oracle: Oracle, x: Tensor, y: int, start: Tensor, queries: int, first_batch: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, int]:  # fmt: skip
    used = 1  # for the start

    def fools(images: Tensor) -> Tensor:
        nonlocal used
        used += len(images)
        return _asked(oracle, images) != y

    def to_boundary(point: Tensor) -> Tensor:
        """Return the point nearest to x, on the line to ``point``, that still fools."""
        low, high = 0.0, 1.0  # shares of the way from x to the point
        while (high - low) * (point - x).norm() > tolerance and used < queries:
            middle = (low + high) / 2
            if fools(x + middle * (point - x)[None])[0]:
                high = middle
            else:
                low = middle
        return x + high * (point - x)

    size, drawn_on = x.numel(), device_of(generator, x)
    tolerance = max(float((start - x).norm()) / size**1.5, 1e-3)
    point = to_boundary(start)
    step = 0
    while used < queries:
        step += 1
        distance = float((point - x).norm())
        count = min(int(first_batch * math.sqrt(step)), queries - used)
        shape = (count, *x.shape)
        noise = torch.randn(shape, generator=generator, device=drawn_on).to(x.device)
        noise /= noise.flatten(1).norm(dim=1).view(-1, *[1] * x.dim())
        radius = max(distance / math.sqrt(size), tolerance)
        near = (point + radius * noise).clamp(0, 1)
        noise = (near - point) / radius
        normal = _normal(fools(near), noise)
        length = distance / math.sqrt(step)
        while used < queries:
            ahead = (point + length * normal).clamp(0, 1)
            if fools(ahead[None])[0]:
                candidate = to_boundary(ahead)
                if (candidate - x).norm() < distance:
                    point = candidate
                break
            length /= 2
            if length < tolerance / 10:
                break
    return point, used
