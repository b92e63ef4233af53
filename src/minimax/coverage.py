"""How good samples are, and how much of the data they cover. Give each score on real data too.

Features are rows (N, d) of a classifier of the book's own; probabilities are its (N, classes).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minimax.errors import Words, check_count, check_number, refuse

PERFECT_QUALITY = 1 - math.exp(-4.5)  # share of a normal distribution in the plane within 3 sd


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return exp E KL(p(y | x) ‖ p(y)), mean and standard deviation over ``splits``.

    Salimans et al. (2016), section 4, with the classifier that gave ``probabilities`` (N, classes):
    from 1 to the number of classes, and comparable only under the same classifier. Raises
    ValueError for fewer rows than splits. Introduced in *DCGAN*.
    """
    if len(probabilities) < check_count("splits", splits):
        refuse("splits", splits, f"at most {len(probabilities)}, the number of samples")
    scores = []
    for p in probabilities.double().chunk(splits):
        p = p.clamp(min=1e-12)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    all_scores = torch.stack(scores)
    spread = all_scores.std(unbiased=False).item()
    return all_scores.mean().item(), spread


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the squared Fréchet distance between normal distributions fitted to two samples.

    Heusel et al. (2017), equation 6: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), in squared units of the
    features. It depends on the number of samples: compare equal numbers only. Raises ValueError for
    samples of different width, or fewer than two. Introduced in *DCGAN*.
    """
    _check_pair(features, others, 2)
    one, two = features.double(), others.double()
    first, second = one.T.cov(), two.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (one.mean(0) - two.mean(0)).square().sum()
    return (apart + first.trace() + second.trace() - 2 * overlap).clamp(min=0).item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return how many of ``fake`` lie among the real ones, and how many of ``real`` among the fake.

    Kynkäänniemi et al. (2019), equation 2: a point lies among others if it is as near to one of
    them as that one's ``k``-th neighbour. Raises ValueError for k or fewer points. Introduced in
    *DCGAN*.
    """
    _check_pair(real, fake, check_count("k", k) + 1)

    def covered(points: Tensor, others: Tensor) -> float:
        radius = torch.cdist(others, others).kthvalue(k + 1).values  # the nearest is itself
        return (torch.cdist(points, others) <= radius).any(1).float().mean().item()

    return covered(fake, real), covered(real, fake)


class ModeScores(NamedTuple):
    """How samples cover the modes of a mixture; see ``mode_scores``. Introduced in *Mode collapse*.

    ``modes`` are captured, ``quality`` is the share of good samples, ``reverse_kl`` the divergence
    of their histogram over modes from the uniform one, in nats.
    """

    modes: int
    quality: float
    reverse_kl: float


def mode_scores(
    samples: Tensor, centres: Tensor, sd: float, within: float = 3.0, *, box: bool = False
) -> ModeScores:
    """Return how ``samples`` (N, d) cover the modes with ``centres`` (K, d) and deviation ``sd``.

    A sample is good if it is less than ``within`` · ``sd`` from the nearest centre, and a mode is
    captured if a good sample is nearest to it: Srivastava et al. (2017), section 4.1, and Lin et
    al. (2018), section 4.1. Perfect samples in the plane have a quality of 98.89 %, not 100 %. With
    ``box`` the rule holds for each axis by itself, as in some public code (99.46 %). Without a good
    sample the divergence is its greatest value, log K. Raises ValueError for shapes that don't fit
    and for centres that coincide. Introduced in *Mode collapse*.
    """
    if samples.dim() != 2 or centres.dim() != 2 or samples.shape[1] != centres.shape[1]:
        got = Words(f"of shapes {tuple(samples.shape)} and {tuple(centres.shape)}")
        refuse("(samples, centres)", got, "of shapes (N, d) and (K, d)")
    check_number("sd", sd)
    if len(centres) > 1 and torch.pdist(centres).min() < sd / 100:
        refuse("centres", Words("with two that coincide"), "distinct, or modes can't be counted")
    nearest = torch.cdist(samples, centres).argmin(1)
    offset = (samples - centres[nearest]).abs()
    distance = offset.amax(1) if box else offset.norm(dim=1)
    good = distance < within * sd
    counts = nearest[good].bincount(minlength=len(centres))
    divergence = reverse_kl(counts) if good.any() else math.log(len(centres))
    return ModeScores(int((counts > 0).sum()), good.float().mean().item(), divergence)


def embedded_mode_scores(samples: Tensor, centres: Tensor, active: int = 700) -> ModeScores:
    """Return how ``samples`` (N, d) cover modes with unit noise in the first ``active`` axes only.

    A sample belongs to the nearest of ``centres`` (K, d). It is good if the root mean square of its
    noise is within 20 % of 1 in the active axes, and below 0.2 in the others. That is our own
    definition: by VEEGAN's, within ten deviations of the centre, no real point of 700 axes is good
    (``mode_scores`` with sd 1 and within 10). Raises ValueError for shapes that don't fit.
    Introduced in *Mode collapse*.
    """
    _check_pair(samples, centres, 1)
    if check_count("active", active) >= samples.shape[1]:
        refuse("active", active, f"below {samples.shape[1]}, the number of axes")
    nearest = torch.cdist(samples, centres).argmin(1)
    noise = (samples - centres[nearest]).square()
    inside, outside = noise[:, :active].mean(1).sqrt(), noise[:, active:].mean(1).sqrt()
    good = ((inside - 1).abs() < 0.2) & (outside < 0.2)
    counts = nearest[good].bincount(minlength=len(centres))
    divergence = reverse_kl(counts) if good.any() else math.log(len(centres))
    return ModeScores(int((counts > 0).sum()), good.float().mean().item(), divergence)


def stacked_mode_scores(images: Tensor, classify: Callable[[Tensor], Tensor]) -> tuple[int, float]:
    """Return how many of 1,000 numbers ``images`` (N, 3, H, W) show, and their reverse KL in nats.

    Each channel is a digit, which ``classify`` maps from (N, 1, H, W) to classes (N,): Metz et al.
    (2017), section 3.3.1. Uniform draws have about 999 / 2N nats. Raises ValueError for images
    without three channels. Introduced in *Mode collapse*.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        refuse("images", Words(f"of shape {tuple(images.shape)}"), "of shape (N, 3, H, W)")
    hundreds, tens, ones = (classify(channel) for channel in images.split(1, dim=1))
    counts = (100 * hundreds + 10 * tens + ones).bincount(minlength=1000)
    return int((counts > 0).sum()), reverse_kl(counts)


def reverse_kl(counts: Tensor) -> float:
    """Return KL(q ‖ uniform) in nats, where q are the shares of ``counts`` (K,).

    The literature calls it reverse KL. Even exactly uniform sampling has more than 0: see
    ``reverse_kl_floor``. Raises ValueError if nothing was counted. Introduced in *Mode collapse*.
    """
    if counts.sum() <= 0:
        refuse("counts", Words("without a sample"), "of at least one sample")
    share = counts.double() / counts.sum()
    return (torch.special.entr(share).sum().neg() + math.log(len(counts))).clamp(min=0).item()


def reverse_kl_floor(modes: int, samples: int) -> float:
    """Return what ``reverse_kl`` gives on average for ``samples`` exact draws: (K − 1) / 2N nats.

    The leading term of the bias of a histogram's entropy (Miller 1955). Introduced in *Mode
    collapse*.
    """
    return (check_count("modes", modes) - 1) / (2 * check_count("samples", samples))


def nearest_codes(
    G: Callable[[Tensor], Tensor], images: Tensor, codes: int, restarts: int = 3, steps: int = 50
) -> tuple[Tensor, Tensor]:
    """Return the codes z (N, codes) whose G(z) is nearest to ``images``, and the errors (N,).

    Inference via optimisation (Metz et al. 2017, section 3.4.1; Srivastava et al. 2017): L-BFGS on
    the mean squared error over pixels, from ``restarts`` random codes each, of which the best is
    kept. All images move together, each with its own history and step length. G has to be in
    evaluation mode. Raises ValueError for counts below 1. Introduced in *Mode collapse*.
    """
    for name, count in (("codes", codes), ("restarts", restarts), ("steps", steps)):
        check_count(name, count)
    best, error = torch.zeros(len(images), codes), torch.full((len(images),), math.inf)

    def errors(z: Tensor) -> Tensor:
        return (G(z) - images).flatten(1).square().mean(1)

    for _ in range(restarts):
        z, reached = batched_lbfgs(errors, torch.randn(len(images), codes), steps)
        better = reached < error
        best[better], error[better] = z[better], reached[better]
    return best, error


def batched_lbfgs(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, memory: int = 10
) -> tuple[Tensor, Tensor]:
    """Return minimisers (N, d) of N separate functions, from ``start`` (N, d), and values (N,).

    ``loss`` maps (N, d) to (N,), row by row. L-BFGS with ``memory`` pairs (Nocedal and Wright 2006,
    algorithm 7.4), each row with its own backtracking line search; no step raises a value.
    Introduced in *Mode collapse*.
    """

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = loss(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    x, pairs = start.detach(), []  # type: Tensor, list[tuple[Tensor, Tensor, Tensor]]
    value, slope = evaluate(x)
    for _ in range(check_count("steps", steps)):
        direction, shares = slope, []
        for s, y, rho in reversed(pairs):
            shares.append(rho * dot(s, direction))
            direction = direction - shares[-1] * y
        if pairs:
            s, y, _ = pairs[-1]
            direction = direction * (dot(s, y) / dot(y, y).clamp(min=1e-20)).clamp(min=1e-8)
        else:
            direction = direction / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
        for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
            direction = direction + s * (share - rho * dot(y, direction))
        downhill = dot(direction, slope)
        direction = torch.where(downhill > 0, direction, slope)  # else start again from the slope
        downhill = dot(direction, slope)
        length = torch.ones_like(downhill)
        for _ in range(20):
            new_value, new_slope = evaluate(x - length * direction)
            enough = value - 1e-4 * (length * downhill).squeeze(1)
            short_of = ~(new_value <= enough)  # so that NaN is short of it too
            if not short_of.any():
                break
            length = torch.where(short_of[:, None], length / 2, length)
        moved = ~short_of[:, None]
        s = torch.where(moved, -length * direction, 0.0)
        y = torch.where(moved, new_slope - slope, 0.0)
        curved = dot(s, y)
        rho = torch.where(curved > 1e-10, 1 / curved.clamp(min=1e-10), 0.0)
        pairs = [*pairs, (s, y, rho)][-memory:]
        x, slope = x + s, torch.where(moved, new_slope, slope)
        value = torch.where(short_of, value, new_value)
    return x, value


def _check_pair(one: Tensor, two: Tensor, least: int) -> None:
    if one.dim() != 2 or two.dim() != 2 or one.shape[1] != two.shape[1]:
        got = Words(f"of shapes {tuple(one.shape)} and {tuple(two.shape)}")
        refuse("the two samples", got, "of shapes (N, d) and (M, d)")
    if min(len(one), len(two)) < least:
        got = Words(f"of {len(one)} and {len(two)} points")
        refuse("the two samples", got, f"of at least {least} points each")
