"""How good samples are, and how much of the data they cover. Give each score on real data too.

Features are rows (N, d) of a classifier of the book's own; probabilities are its (N, classes).

Floor 3; called by the book, collapse.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minimax.errors import Words, check_count, check_number, check_tensor, described, refuse
from minimax.scale import device_of

SMALLEST = 1e-12  # of what has to be positive
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PERFECT_QUALITY = 1 - math.exp(-4.5)  # share of a normal distribution in the plane within 3 sd


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return exp E KL(p(y | x) ‖ p(y)), mean and standard deviation over ``splits``.

    Salimans et al. (2016), section 4, with the classifier that gave ``probabilities`` (N, classes):
    from 1 to the number of classes, and comparable only under the same classifier. The splits are
    consecutive rows, so their order counts: sorted by class, the best samples score 1. Raises
    ValueError for fewer rows than splits, and for rows that are no probabilities (logits, say).
    Introduced in *DCGAN*.
    """
    _check_points("probabilities", probabilities)
    if len(probabilities) < check_count("splits", splits):
        refuse("splits", splits, f"at most {len(probabilities)}, the number of samples")
    low, high = probabilities.min().item(), probabilities.max().item()
    off = (probabilities.double().sum(1) - 1).abs().max().item()
    if not (low >= 0 and high <= 1 and off <= 1e-3):
        got = Words(f"from {low:.3g} to {high:.3g}, with rows that sum to 1 up to {off:.3g}")
        refuse("probabilities", got, "from 0 to 1, each row summing to 1 (softmax makes them so)")
    scores = []
    for p in probabilities.double().tensor_split(splits):
        p = p.clamp(min=1e-12)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    all_scores = torch.stack(scores)
    spread = all_scores.std(unbiased=False).item()
    return all_scores.mean().item(), spread


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the squared Fréchet distance between normal distributions fitted to two samples.

    Heusel et al. (2017), equation 6: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), in squared units of the
    features. It depends on the number of samples: compare equal numbers only. Raises ValueError for
    samples of different width, fewer than two, or with NaN. Introduced in *DCGAN*.
    """
    _check_pair(features, others, 2)
    one, two = features.double(), others.double()
    first, second = (torch.atleast_2d(sample.T.cov()) for sample in (one, two))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (one.mean(0) - two.mean(0)).square().sum()
    return (apart + first.trace() + second.trace() - 2 * overlap).clamp(min=0).item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return how many of ``fake`` lie among the real ones, and how many of ``real`` among the fake.

    Kynkäänniemi et al. (2019), equation 2: a point lies among others if it is as near to one of
    them as that one's ``k``-th neighbour. Raises ValueError for k or fewer points, and for NaN.
    Introduced in *DCGAN*.
    """
    k = check_count("k", k)
    _check_pair(real, fake, k + 1)

    def covered(points: Tensor, others: Tensor) -> float:
        centre = others.double().mean(0)  # so that the fast form of distances loses no digits
        near, far = points.double() - centre, others.double() - centre
        rounding = 1e-7 * far.norm(dim=1).max()
        radius = torch.cdist(far, far).kthvalue(k + 1).values + rounding  # the nearest is itself
        return (torch.cdist(near, far) <= radius).any(1).float().mean().item()

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
    sample the divergence is its greatest value, log K. A sample with NaN is a bad one. Raises
    ValueError for shapes that don't fit, no samples, an ``sd`` of 0, and centres that coincide.
    Introduced in *Mode collapse*.
    """
    sd = check_number("sd", sd, at_least=SMALLEST)
    within = check_number("within", within, at_least=SMALLEST)
    nearest, offset = _offsets(samples, centres, sd / 100)
    distance = offset.abs().amax(1) if box else offset.norm(dim=1)
    return _scores(nearest, distance < within * sd, len(centres))


def embedded_mode_scores(samples: Tensor, centres: Tensor, active: int = 700) -> ModeScores:
    """Return how ``samples`` (N, d) cover modes with unit noise in the first ``active`` axes only.

    A sample belongs to the nearest of ``centres`` (K, d). It is good if the root mean square of its
    noise is within 20 % of 1 in the active axes, and below 0.2 in the others. That is our own
    definition: by VEEGAN's, within ten deviations of the centre, no real point of 700 axes is good
    (``mode_scores`` with sd 1 and within 10). A sample with NaN is a bad one. Raises ValueError for
    shapes that don't fit, no samples, and centres that coincide. Introduced in *Mode collapse*.
    """
    nearest, offset = _offsets(samples, centres, 0.01)
    if check_count("active", active) >= samples.shape[1]:
        refuse("active", active, f"below {samples.shape[1]}, the number of axes")
    noise = offset.square()
    inside, outside = noise[:, :active].mean(1).sqrt(), noise[:, active:].mean(1).sqrt()
    return _scores(nearest, ((inside - 1).abs() < 0.2) & (outside < 0.2), len(centres))


def stacked_mode_scores(images: Tensor, classify: Callable[[Tensor], Tensor]) -> tuple[int, float]:
    """Return how many of 1,000 numbers ``images`` (N, 3, H, W) show, and their reverse KL in nats.

    Each channel is a digit, which ``classify`` maps from (N, 1, H, W) to classes (N,): Metz et al.
    (2017), section 3.3.1. Uniform draws have about 999 / 2N nats. Raises ValueError for images
    without three channels, and for answers that are no digits. Introduced in *Remedies for mode
    collapse*.
    """
    if check_tensor("images", images).dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        refuse("images", Words(f"of shape {tuple(images.shape)}"), "of shape (N, 3, H, W), N > 0")

    def digit(channel: Tensor) -> Tensor:
        answer = classify(channel)
        whole = isinstance(answer, Tensor) and answer.dtype in WHOLE
        if not whole or answer.shape != (len(images),):
            got = Words(f"returning {described(answer).text}")
            refuse("classify", got, f"returning whole-numbered classes of shape ({len(images)},)")
        if answer.min() < 0 or answer.max() > 9:
            got = Words(f"returning classes from {answer.min()} to {answer.max()}")
            refuse("classify", got, "returning digits, from 0 to 9")
        return answer.long()

    hundreds, tens, ones = (digit(channel) for channel in images.split(1, dim=1))
    counts = (100 * hundreds + 10 * tens + ones).bincount(minlength=1000)
    return int((counts > 0).sum()), reverse_kl(counts)


def reverse_kl(counts: Tensor) -> float:
    """Return KL(q ‖ uniform) in nats, where q are the shares of ``counts`` (K,).

    The literature calls it reverse KL. Even exactly uniform sampling has more than 0: see
    ``reverse_kl_floor``. Raises ValueError if nothing was counted, or something less than never.
    Introduced in *Remedies for mode collapse*.
    """
    if check_tensor("counts", counts).dim() != 1 or len(counts) == 0:
        refuse("counts", described(counts), "a vector, with one count for each mode")
    if not bool(((counts >= 0) & counts.isfinite()).all()):
        refuse("counts", Words("with a negative one, NaN or infinity"), "numbers of at least 0")
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
    G: Callable[[Tensor], Tensor],
    images: Tensor,
    codes: int,
    restarts: int = 3,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the codes z (N, codes) whose G(z) is nearest to ``images``, and the errors (N,).

    Inference via optimisation (Metz et al. 2017, section 3.4.1; Srivastava et al. 2017): L-BFGS on
    the mean squared error over pixels, from ``restarts`` random codes each, of which the best is
    kept. All images move together, each with its own history and step length. G has to be in
    evaluation mode. Raises ValueError for counts below 1, for images that are not of the shape that
    G makes, and for NaN. Introduced in *Mode collapse*.
    """
    for name, count in (("codes", codes), ("restarts", restarts), ("steps", steps)):
        check_count(name, count)
    check_tensor("images", images)
    if images.dim() < 2 or images.numel() == 0 or not bool(images.isfinite().all()):
        refuse("images", described(images), "a batch of one image or more, without NaN")
    weight = next(G.parameters(), images) if isinstance(G, nn.Module) else images
    images = images.to(weight.dtype)
    best, error = images.new_zeros(len(images), codes), images.new_full((len(images),), math.inf)

    def errors(z: Tensor) -> Tensor:
        made = G(z)
        if made.shape != images.shape:  # or one image would be spread over all
            allowed = f"of shape {tuple(made.shape)}, as G makes them"
            refuse("images", Words(f"of shape {tuple(images.shape)}"), allowed)
        return (made - images).flatten(1).square().mean(1)

    drawn_on = device_of(generator, images)
    for _ in range(restarts):
        start = torch.randn(len(images), codes, generator=generator, device=drawn_on).to(images)
        z, reached = batched_lbfgs(errors, start, steps)
        better = reached < error
        best[better], error[better] = z[better], reached[better]
    return best, error


def batched_lbfgs(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, memory: int = 10
) -> tuple[Tensor, Tensor]:
    """Return minimisers (N, d) of N separate functions, from ``start`` (N, d), and values (N,).

    ``loss`` maps (N, d) to (N,), row by row. L-BFGS with ``memory`` pairs (Nocedal and Wright 2006,
    algorithm 7.4), each row with its own backtracking line search; no step raises a value. Raises
    ValueError for a loss that does not give one value per row, or gives NaN at the start.
    Introduced in *Mode collapse*.
    """
    if check_tensor("start", start).dim() != 2 or not start.is_floating_point():
        refuse("start", described(start), "a float tensor of shape (N, d)")

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = loss(x)
            if value.shape != (len(x),):
                got = Words(f"returning shape {tuple(value.shape)}")
                refuse("loss", got, f"returning one value per row, of shape ({len(x)},)")
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    x, pairs = start.detach(), []  # type: Tensor, list[tuple[Tensor, Tensor, Tensor]]
    value, slope = evaluate(x)
    if not bool(value.isfinite().all() and slope.isfinite().all()):
        allowed = "finite at the start, as its gradient has to be"
        refuse("loss", Words("NaN or infinite"), allowed)
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


def _distances(points: Tensor, others: Tensor) -> Tensor:
    """Return all distances (N, M), in double precision.

    From differences: the faster product form loses near points that are far from the origin.
    """
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(points.double(), others.double(), compute_mode=exact)


def _offsets(samples: Tensor, centres: Tensor, apart: float) -> tuple[Tensor, Tensor]:
    """Return the nearest of ``centres`` to each of ``samples``, (N,), and what lies between."""
    _check_points("samples", samples, finite=False)
    _check_points("centres", centres)
    if samples.shape[1] != centres.shape[1]:
        got = Words(f"of shapes {tuple(samples.shape)} and {tuple(centres.shape)}")
        refuse("(samples, centres)", got, "of shapes (N, d) and (K, d)")
    if len(centres) > 1 and torch.pdist(centres.double()).min() < apart:
        refuse("centres", Words("with two that coincide"), "distinct, or modes can't be counted")
    nearest = _distances(samples, centres).argmin(1)
    return nearest, samples.double() - centres.double()[nearest]


def _scores(nearest: Tensor, good: Tensor, modes: int) -> ModeScores:
    counts = nearest[good].bincount(minlength=modes)
    divergence = reverse_kl(counts) if good.any() else math.log(modes)
    return ModeScores(int((counts > 0).sum()), good.float().mean().item(), divergence)


def _check_points(argument: str, points: Tensor, *, finite: bool = True) -> None:
    if check_tensor(argument, points).dim() != 2 or points.numel() == 0:
        refuse(argument, Words(f"of shape {tuple(points.shape)}"), "of shape (N, d), not empty")
    if finite and not bool(points.isfinite().all()):
        refuse(argument, Words("with NaN or infinity"), "finite numbers")


def _check_pair(one: Tensor, two: Tensor, least: int) -> None:
    one, two = check_tensor("the first sample", one), check_tensor("the second sample", two)
    if one.dim() != 2 or two.dim() != 2 or one.shape[1] != two.shape[1] or one.shape[1] == 0:
        got = Words(f"of shapes {tuple(one.shape)} and {tuple(two.shape)}")
        refuse("the two samples", got, "of shapes (N, d) and (M, d)")
    if min(len(one), len(two)) < least:
        got = Words(f"of {len(one)} and {len(two)} points")
        refuse("the two samples", got, f"of at least {least} points each")
    if not bool(one.isfinite().all() and two.isfinite().all()):
        refuse("the two samples", Words("with NaN or infinity"), "finite numbers")
