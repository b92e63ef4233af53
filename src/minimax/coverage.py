"""How good samples are, and how much of the data they cover. Give each score on real data too.

Features are rows (N, d) of a classifier of the book's own; probabilities are its (N, classes).
"""

import torch
from torch import Tensor

from minimax.errors import Words, check_count, refuse


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


def _check_pair(one: Tensor, two: Tensor, least: int) -> None:
    if one.dim() != 2 or two.dim() != 2 or one.shape[1] != two.shape[1]:
        got = Words(f"of shapes {tuple(one.shape)} and {tuple(two.shape)}")
        refuse("the two samples", got, "of shapes (N, d) and (M, d)")
    if min(len(one), len(two)) < least:
        got = Words(f"of {len(one)} and {len(two)} points")
        refuse("the two samples", got, f"of at least {least} points each")
